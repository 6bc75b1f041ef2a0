// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include "results.hpp"

#include "goals.hpp"

#include <fmt/chrono.h>
#include <nlohmann/json.hpp>

#include <cmath>
#include <ctime>
#include <fstream>
#include <map>
#include <numeric>
#include <optional>

namespace bench {

namespace {

using json = nlohmann::ordered_json;

double median(std::vector<double> x) {
    std::sort(x.begin(), x.end());
    const std::size_t n = x.size();
    return (x[(n - 1) / 2] + x[n / 2]) / 2;
}

// Standard deviation over mean; 0 of a single value.
double variation(const std::vector<double>& x) {
    const auto n = static_cast<double>(x.size());
    const double mean = std::accumulate(x.begin(), x.end(), 0.0) / n;
    double squares = 0;
    for (const double value : x) { squares += (value - mean) * (value - mean); }
    return x.size() < 2 ? 0 : std::sqrt(squares / (n - 1)) / mean;
}

// Four digits say all that a timing does.
double rounded(double x) {
    return std::stod(fmt::format("{:.4g}", x));
}

std::string cpu_name() {
    std::ifstream info("/proc/cpuinfo");
    for (std::string line; std::getline(info, line);) {
        if (line.starts_with("model name")) { return line.substr(line.find(':') + 2); }
    }
    return "unknown";
}

bool is_limit(const measured_row& row) {
    return row.facts.amount > 0;
}

// ---- Limits ------------------------------------------------------------------------------------

// Units of work per ms, from the medians of the rows limit/...
class machine {
  public:
    explicit machine(const std::vector<measured_row>& rows) {
        for (const measured_row& row : rows) {
            if (is_limit(row) && !row.ms.empty()) { rates_[row.name] = row.facts.amount / median(row.ms); }
        }
    }

    struct bound {
        double ms = 0;
        std::string by; // the limits that bind, of each pass one
    };

    // The row of the products in f32 at the level of this name. A level of other programs has none.
    [[nodiscard]] static std::string float_products_at(const std::string& level) {
        for (const level_limit& of : product_limits()) {
            if (level == kvtrim::name_of(of.level)) {
                return fmt::format("products_{}", kvtrim::name_of(float_level(of.level)));
            }
        }
        return "none";
    }

    // The least time for a row's stages; none where a rate was not measured.
    [[nodiscard]] std::optional<bound> limit_of(const row_facts& facts) const {
        const std::string float_products = float_products_at(facts.level);
        bound sum;
        for (const work& w : facts.stages) {
            bound longest;
            const std::pair<double, std::string> parts[] = {{w.flops, float_products},
                                                            {w.bf16_flops, "products_" + facts.level},
                                                            {w.read_bytes, "read"},
                                                            {w.cached_bytes, "read_cached"},
                                                            {w.copied_bytes, "copy"}};
            for (const auto& [amount, by] : parts) {
                if (amount == 0) { continue; }
                const auto rate = rates_.find(fmt::format("limit/{}/threads:{}", by, facts.threads));
                if (rate == rates_.end()) { return std::nullopt; }
                if (amount / rate->second > longest.ms) { longest = {amount / rate->second, by}; }
            }
            sum.ms += longest.ms;
            sum.by += (sum.by.empty() ? "" : " + ") + longest.by;
        }
        return sum.ms > 0 ? std::optional(sum) : std::nullopt;
    }

  private:
    std::map<std::string, double> rates_;
};

json limit_entry(const measured_row& row) {
    return {{"name", row.name},
            {"threads", row.facts.threads},
            {"level", row.facts.level},
            {"rate", rounded(1e3 * row.facts.amount / median(row.ms))},
            {"unit", row.facts.unit + "/s"},
            {"variation", rounded(variation(row.ms))},
            {"repetitions", row.ms.size()}};
}

json row_entry(const measured_row& row, const machine& limits) {
    json entry = {{"name", row.name}, {"level", row.facts.level}, {"threads", row.facts.threads}};
    if (!row.error.empty()) { entry["error"] = row.error; }
    if (row.ms.empty()) { return entry; }
    entry["ms"] = rounded(median(row.ms));
    entry["variation"] = rounded(variation(row.ms));
    entry["repetitions"] = row.ms.size();
    entry["call_seconds"] = rounded(row.seconds_of_call); // of the suite's ten minutes
    if (const auto limit = limits.limit_of(row.facts)) {
        entry["limit_ms"] = rounded(limit->ms);
        entry["limited_by"] = limit->by;
        entry["of_limit"] = rounded(median(row.ms) / limit->ms);
    }
    if (row.facts.workspace_bytes >= 0) { entry["workspace_bytes"] = row.facts.workspace_bytes; }
    if (!row.facts.beside.empty()) { entry["beside"] = row.facts.beside; }
    if (!row.facts.note.empty()) { entry["note"] = row.facts.note; }
    for (const double ms : row.ms) { entry["all_ms"].push_back(rounded(ms)); }
    return entry;
}

// ---- Goals -------------------------------------------------------------------------------------

// One number of a row, if the row was measured and has it.
std::optional<double> number_of(const json& rows, std::string_view name, const char* key) {
    for (const json& row : rows) {
        if (row["name"] == name && row.contains(key)) { return row[key].get<double>(); }
    }
    return std::nullopt;
}

// The time that a goal's `over` or `under` stands for.
std::optional<double> time_of(const json& rows, std::string_view text, std::string_view other) {
    constexpr std::string_view limit_of = "limit of ", times = " * ";
    if (text == limit) { return number_of(rows, other, "limit_ms"); }
    if (text.starts_with(limit_of)) { return number_of(rows, text.substr(limit_of.size()), "limit_ms"); }
    double factor = 1;
    if (const auto at = text.find(times); at != std::string_view::npos) {
        factor = std::stod(std::string(text.substr(0, at)));
        text.remove_prefix(at + times.size());
    }
    const auto ms = number_of(rows, text, "ms");
    return ms ? std::optional(factor * *ms) : std::nullopt;
}

std::optional<double> value_of(const json& rows, const goal& g) {
    if (g.under == workspace) {
        const auto bytes = number_of(rows, g.over, "workspace_bytes");
        return bytes ? std::optional(*bytes / (1 << 20)) : std::nullopt;
    }
    const auto over = time_of(rows, g.over, g.under), under = time_of(rows, g.under, g.over);
    return over && under ? std::optional(*over / *under) : std::nullopt;
}

json goal_entry(const json& rows, const goal& g) {
    json entry = {{"unit", g.unit},
                  {"over", g.over},
                  {"under", g.under},
                  {"sense", g.direction == sense::at_most ? "at most" : "at least"}};
    if (g.must > 0) { entry["must"] = g.must; }
    if (g.aim > 0) { entry["aim"] = g.aim; }
    const bool applies = g.on_level.empty() || g.on_level == kvtrim::name_of(kvtrim::active_cpu_level());
    const auto value = applies ? value_of(rows, g) : std::nullopt;
    if (!value) {
        entry["held"] = applies ? "not measured" : fmt::format("needs {}", g.on_level);
        return entry;
    }
    entry["value"] = rounded(*value);
    const auto holds = [&](double bound) {
        return bound > 0 && (g.direction == sense::at_most ? *value <= bound : *value >= bound);
    };
    entry["held"] = g.must == 0 ? "no goal" : holds(g.aim) ? "aim" : holds(g.must) ? "must" : "no";
    return entry;
}

} // namespace

json document_of(const std::vector<measured_row>& rows, int rounds) {
    const machine limits(rows);
    json document = {{"date", fmt::format("{:%Y-%m-%d}", fmt::gmtime(std::time(nullptr)))},
                     {"cpu", cpu_name()},
                     {"hardware_threads", std::thread::hardware_concurrency()},
                     {"level", kvtrim::name_of(kvtrim::active_cpu_level())},
                     {"compiler", __VERSION__},
                     {"rounds", rounds},
                     {"limits", json::array()},
                     {"rows", json::array()},
                     {"goals", json::array()}};
    for (const measured_row& row : rows) {
        if (!is_limit(row)) {
            document["rows"].push_back(row_entry(row, limits));
        } else if (!row.ms.empty()) {
            document["limits"].push_back(limit_entry(row));
        }
    }
    for (const goal& g : goals) { document["goals"].push_back(goal_entry(document["rows"], g)); }
    return document;
}

} // namespace bench
