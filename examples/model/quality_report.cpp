// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#include "quality_report.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <set>
#include <stdexcept>

namespace lm {
namespace {

using nlohmann::json;

// To so many digits: results are read, and kept, by people.
double rounded(double x, int digits = 5) {
    return std::isfinite(x) ? std::stod(fmt::format("{:.{}g}", x, digits)) : 0;
}

json rounded(const std::vector<double>& numbers, int digits = 5) {
    json all = json::array();
    for (const double x : numbers) { all.push_back(rounded(x, digits)); }
    return all;
}

json json_of(const quality_key& key, const quality_cell& cell) {
    json row{
        {"tokens", key.tokens}, {"task", key.task}, {"policy", key.policy}, {"kept_ratio", key.kept_ratio}};
    if (has_answers(key.task)) {
        const estimate accuracy = ratio_of(cell.right, cell.asked);
        row["values"] = key.values;
        row["question"] = key.question_seen ? "seen" : "unseen";
        row["accuracy"] = rounded(accuracy.mean);
        row["standard_error"] = rounded(accuracy.standard_error);
        row["right"] = cell.right;
        row["asked"] = cell.asked;
        return row;
    }
    row["kl_mean"] = rounded(mean_of(cell.kl).mean);
    row["kl_standard_error"] = rounded(mean_of(cell.kl).standard_error);
    row["perplexity"] = rounded(std::exp(mean_of(cell.nll).mean));
    row["kl"] = rounded(cell.kl, 9);
    row["nll"] = rounded(cell.nll, 9);
    if (key.task == "live") { return row; }
    row["error"] = rounded(cell.error);
    row["error_projected"] = rounded(cell.error_projected);
    row["kept_rows"] = rounded(cell.kept_rows);
    return row;
}

std::vector<double> numbers_of(const json& row, const char* name) {
    return row.contains(name) ? row.at(name).get<std::vector<double>>() : std::vector<double>{};
}

void append(std::vector<double>& to, const std::vector<double>& more) {
    to.insert(to.end(), more.begin(), more.end());
}

// Means of more samples: what was there has so much weight.
void mix(std::vector<double>& means, double weight, const std::vector<double>& more) {
    if (means.empty()) {
        means = more;
        return;
    }
    for (std::size_t i = 0; i < std::min(means.size(), more.size()); ++i) {
        means[i] = weight * means[i] + (1 - weight) * more[i];
    }
}

// Of the cells that match, in the order of the policies' names in all_policies(), unknown ones last.
struct table_axes {
    std::vector<std::string> policies;
    std::vector<double> shares; // the largest first
};

template <class Match>
table_axes axes_of(const quality_results& results, const Match& match) {
    std::set<std::string> names;
    std::set<double, std::greater<>> shares;
    for (const auto& [key, cell] : results.cells) {
        if (!match(key) || key.policy == "full") { continue; }
        names.insert(key.policy);
        shares.insert(key.kept_ratio);
    }
    table_axes axes{{}, {shares.begin(), shares.end()}};
    for (const named_policy& p : all_policies()) {
        if (names.erase(p.name) > 0) { axes.policies.push_back(p.name); }
    }
    axes.policies.insert(axes.policies.end(), names.begin(), names.end());
    return axes;
}

const quality_cell* find(const quality_results& results, quality_key key, const std::string& policy,
                         double share) {
    key.policy = policy;
    key.kept_ratio = share;
    const auto at = results.cells.find(key);
    return at == results.cells.end() ? nullptr : &at->second;
}

// Of one sample there is no error to speak of.
std::string with_error(const estimate& e, std::size_t samples, int digits) {
    return samples < 2 ? fmt::format("{:.{}f}", e.mean, digits)
                       : fmt::format("{:.{}f} ± {:.{}f}", e.mean, digits, e.standard_error, digits);
}

std::string percent(double share) {
    return fmt::format("{:g} %", std::round(share * 1e4) / 1e2);
}

// A row for each policy, a column for each share; cell(policy, share) is empty where nothing was measured.
template <class Cell>
std::string table_of(const table_axes& axes, const Cell& cell) {
    std::string out = "| policy |", line = "|---|";
    for (const double share : axes.shares) {
        out += " " + percent(share) + " |";
        line += "---|";
    }
    out += "\n" + line + "\n";
    for (const std::string& policy : axes.policies) {
        out += "| `" + policy + "` |";
        for (const double share : axes.shares) {
            const std::string text = cell(policy, share);
            out += (text.empty() ? "" : " " + text) + " |";
        }
        out += "\n";
    }
    return out;
}

// Query heads whose error after W_O is below the other's, and above it.
std::string heads_below(const quality_cell& cell, const quality_cell* other) {
    if (other == nullptr || other == &cell) { return "-"; }
    double below = 0;
    for (std::size_t i = 0; i < cell.error_projected.size(); ++i) {
        below += cell.error_projected[i] < other->error_projected[i] ? 1 : 0;
    }
    return fmt::format("{:.0f} %", 100 * below / static_cast<double>(cell.error_projected.size()));
}

std::string text_table(const quality_results& results, index_t tokens) {
    const quality_key key{.tokens = tokens, .task = "text", .values = "", .policy = ""};
    const auto axes =
        axes_of(results, [&](const quality_key& k) { return k.tokens == tokens && k.task == "text"; });
    if (axes.policies.empty()) { return ""; }
    std::string out = fmt::format("### Running text after {} tokens\n\n", tokens);
    if (const quality_cell* full = find(results, key, "full", 1)) {
        out += fmt::format("Full cache: perplexity {:.2f}, {} samples. Mean KL ± its standard error:\n\n",
                           std::exp(mean_of(full->nll).mean), full->nll.size());
    }
    out += table_of(axes, [&](const std::string& policy, double share) {
        const quality_cell* cell = find(results, key, policy, share);
        if (cell == nullptr) { return std::string(); }
        return with_error(mean_of(cell->kl), cell->kl.size(), 4);
    });
    out += "\nPerplexity; output error before / after W_O, mean over heads; heads whose error after W_O is "
           "below that of "
           "`snapkv`:\n\n";
    out += table_of(axes, [&](const std::string& policy, double share) {
        const quality_cell* cell = find(results, key, policy, share);
        if (cell == nullptr) { return std::string(); }
        return fmt::format("{:.2f}; {:.3f} / {:.3f}; {}", std::exp(mean_of(cell->nll).mean),
                           mean_of(cell->error).mean, mean_of(cell->error_projected).mean,
                           heads_below(*cell, find(results, key, "snapkv", share)));
    });
    return out + "\n";
}

std::string live_table(const quality_results& results, index_t tokens) {
    const quality_key key{.tokens = tokens, .task = "live", .values = "", .policy = ""};
    const auto axes =
        axes_of(results, [&](const quality_key& k) { return k.tokens == tokens && k.task == "live"; });
    const quality_cell* full = find(results, key, "full", 1);
    if (axes.policies.empty() || full == nullptr) { return ""; }
    return fmt::format(
               "### A text of {} tokens in a cache that is cut every 64\n\nMean KL ± its standard error, and "
               "perplexity (full cache: {:.2f}), over the second half:\n\n",
               tokens, std::exp(mean_of(full->nll).mean)) +
           table_of(axes,
                    [&](const std::string& policy, double share) {
                        const quality_cell* cell = find(results, key, policy, share);
                        if (cell == nullptr) { return std::string(); }
                        return with_error(mean_of(cell->kl), cell->kl.size(), 4) +
                               fmt::format("; {:.2f}", std::exp(mean_of(cell->nll).mean));
                    }) +
           "\n";
}

// Of the needle tasks that have answers, each as much as the others; the mean is below 0 where none has.
estimate mean_over_tasks(const quality_results& results, quality_key key) {
    double sum = 0, squares = 0, count = 0;
    for (const std::string_view task : all_needle_tasks) {
        key.task = task;
        const auto at = results.cells.find(key);
        if (at == results.cells.end() || mean_of(at->second.asked).mean == 0) { continue; }
        const estimate accuracy = ratio_of(at->second.right, at->second.asked);
        sum += accuracy.mean;
        squares += accuracy.standard_error * accuracy.standard_error;
        count += 1;
    }
    return count == 0 ? estimate{-1, 0} : estimate{sum / count, std::sqrt(squares) / count};
}

std::string needle_table(const quality_results& results, index_t tokens, const std::string& values,
                         bool seen) {
    const auto is_here = [&](const quality_key& k) {
        return k.tokens == tokens && k.task != "text" && k.values == values && k.question_seen == seen;
    };
    const auto axes = axes_of(results, is_here);
    if (axes.policies.empty()) { return ""; }
    std::vector<std::string> tasks;
    for (const std::string_view task : all_needle_tasks) {
        const quality_key key{tokens, std::string(task), values, seen, "full", 1};
        if (results.cells.contains(key)) { tasks.emplace_back(task); }
    }
    std::string out = fmt::format("### Needles of {}, {} tokens, question {}\n\nFull cache:", values, tokens,
                                  seen ? "seen" : "unseen");
    for (const std::string& task : tasks) {
        const quality_cell& full = results.cells.at({tokens, task, values, seen, "full", 1});
        double right = 0, asked = 0;
        for (const double x : full.right) { right += x; }
        for (const double x : full.asked) { asked += x; }
        out += fmt::format(" {} {:.0f} of {:.0f} ({} samples);", task, right, asked, full.asked.size());
    }
    out.back() = '.';
    out += " Of these, mean over the tasks ± its standard error (each task):\n\n";
    out += table_of(axes, [&](const std::string& policy, double share) {
        std::string each;
        std::size_t samples = 0;
        for (const std::string& task : tasks) {
            const quality_cell* cell = find(results, {tokens, task, values, seen, "", 0}, policy, share);
            if (cell != nullptr) { samples = std::max(samples, cell->right.size()); }
            each += cell == nullptr || mean_of(cell->asked).mean == 0
                        ? " -"
                        : fmt::format(" {:.2f}", ratio_of(cell->right, cell->asked).mean);
        }
        const estimate all = mean_over_tasks(results, {tokens, "", values, seen, policy, share});
        if (all.mean < 0) { return std::string(); }
        return fmt::format("{} ({})", with_error(all, samples, 2), each.substr(1));
    });
    return out + "\n";
}

} // namespace

json json_of(const quality_results& results, const quality_setting& setting, const quality_request& request) {
    json all{
        {"model", setting.model},
        {"text", setting.text},
        {"kv_heads", results.kv_heads},
        {"seeds", {request.first_seed, request.first_seed + static_cast<std::uint64_t>(request.samples)}},
        {"cache", name_of(request.format)},
        {"sink_tokens", request.sink_tokens},
        {"window_tokens", request.window_tokens},
        {"next_tokens", request.next_tokens},
        {"seconds", std::round(results.seconds)},
        {"rows", json::array()}};
    for (const auto& [key, cell] : results.cells) { all["rows"].push_back(json_of(key, cell)); }
    return all;
}

void read_results(const std::string& file, quality_results& results) {
    try {
        std::ifstream in(file);
        const json all = json::parse(in);
        results.kv_heads = all.at("kv_heads");
        if (results.kv_heads <= 0) { throw std::runtime_error(file + ": kv_heads must be positive"); }
        for (const json& row : all.at("rows")) {
            const quality_key key{row.at("tokens"),        row.at("task"),
                                  row.value("values", ""), row.value("question", "") == "seen",
                                  row.at("policy"),        row.at("kept_ratio")};
            quality_cell& cell = results.cells[key];
            const auto before = static_cast<double>(cell.kl.size());
            append(cell.right, numbers_of(row, "right"));
            append(cell.asked, numbers_of(row, "asked"));
            append(cell.kl, numbers_of(row, "kl"));
            append(cell.nll, numbers_of(row, "nll"));
            const auto after = static_cast<double>(cell.kl.size());
            mix(cell.error, before / after, numbers_of(row, "error"));
            mix(cell.error_projected, before / after, numbers_of(row, "error_projected"));
            mix(cell.kept_rows, before / after, numbers_of(row, "kept_rows"));
        }
    } catch (const json::exception& error) {
        throw std::runtime_error(file + ": not a file of results (" + error.what() + ")");
    }
}

std::string tables_of(const quality_results& results) {
    std::set<index_t> lengths;
    std::set<std::string> values;
    for (const auto& [key, cell] : results.cells) {
        lengths.insert(key.tokens);
        if (!key.values.empty()) { values.insert(key.values); }
    }
    std::string out;
    for (const index_t tokens : lengths) { out += text_table(results, tokens) + live_table(results, tokens); }
    for (const index_t tokens : lengths) {
        for (const std::string& v : values) {
            for (const bool seen : {false, true}) { out += needle_table(results, tokens, v, seen); }
        }
    }
    return out;
}

void write_plot_data(const quality_results& results, const std::string& stem) {
    if (results.cells.empty()) { return; }
    const index_t tokens = results.cells.begin()->first.tokens; // keys are in order
    std::ofstream kl(stem + ".kl.dat"), accuracy(stem + ".accuracy.dat"), budget(stem + ".budget.dat");
    const auto block = [](std::ofstream& out, const std::string& name, const std::string& lines) {
        if (!lines.empty()) { out << name << '\n' << lines << "\n\n"; }
    };
    const quality_key text{tokens, "text", "", false, "", 0};
    const auto in_text = [&](const quality_key& k) { return k.tokens == tokens && k.task == "text"; };
    const table_axes axes = axes_of(results, in_text);
    for (const std::string& policy : axes.policies) {
        std::string lines;
        double nearest = 2;
        for (const double share : axes.shares) {
            const quality_cell* cell = find(results, text, policy, share);
            if (cell == nullptr) { continue; }
            const estimate mean = mean_of(cell->kl);
            lines += fmt::format("{:g} {:.6g} {:.6g}\n", 100 * share, mean.mean, mean.standard_error);
            if (std::abs(share - 0.2) < std::abs(nearest - 0.2)) { nearest = share; }
        }
        block(kl, policy, lines);

        const quality_cell* cell = find(results, text, policy, nearest);
        const auto rows = cell == nullptr ? std::vector<double>{} : cell->kept_rows;
        if (rows.empty() || *std::ranges::min_element(rows) == *std::ranges::max_element(rows)) { continue; }
        std::string heads;
        for (std::size_t i = 0; i < rows.size(); ++i) {
            heads += fmt::format("{:.4f}{}", rows[i] / static_cast<double>(tokens),
                                 (static_cast<index_t>(i) + 1) % results.kv_heads == 0 ? '\n' : ' ');
        }
        block(budget, fmt::format("# {} at {}", policy, percent(nearest)), heads);
    }

    const auto in_needles = [&](const quality_key& k) {
        return k.tokens == tokens && k.values == "numbers" && !k.question_seen;
    };
    const table_axes needles = axes_of(results, in_needles);
    for (const std::string& policy : needles.policies) {
        std::string lines;
        for (const double share : needles.shares) {
            const estimate mean = mean_over_tasks(results, {tokens, "", "numbers", false, policy, share});
            if (mean.mean >= 0) {
                lines += fmt::format("{:g} {:.6g} {:.6g}\n", 100 * share, mean.mean, mean.standard_error);
            }
        }
        block(accuracy, policy, lines);
    }
    for (std::ofstream* out : {&kl, &accuracy, &budget}) {
        out->close();
        if (!*out) { throw std::runtime_error(stem + ".*.dat: cannot be written"); }
    }
}

std::string check_whole_caches(const quality_results& results) {
    index_t checked = 0;
    for (const auto& [key, cell] : results.cells) {
        if (key.policy == "full" || key.kept_ratio < 1) { continue; }
        ++checked;
        const bool same =
            cell.right == cell.asked &&
            std::all_of(cell.kl.begin(), cell.kl.end(), [](double kl) { return std::abs(kl) < 1e-9; });
        if (!same) {
            return key.policy + " kept everything, but " + key.task + " differs from the full cache's";
        }
    }
    return checked > 0 ? "" : "nothing kept everything: --check needs a --keep of 1";
}

} // namespace lm
