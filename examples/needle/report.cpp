// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#include "report.hpp"

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <stdexcept>
#include <system_error>

namespace needle {
namespace {

// Distinct values of a field, in order of appearance.
template <class Rows, class Field>
auto distinct(const Rows& rows, Field field) {
    std::vector<std::decay_t<decltype(field(rows.front()))>> values;
    for (const auto& row : rows) {
        if (std::find(values.begin(), values.end(), field(row)) == values.end()) {
            values.push_back(field(row));
        }
    }
    return values;
}

const auto policy_of = [](const result_row& r) { return r.policy; };
const auto task_of = [](const result_row& r) { return r.task; };
const auto setting_of = [](const result_row& r) { return r.when; };
const auto tokens_of = [](const result_row& r) { return r.tokens; };
const auto ratio_of = [](const result_row& r) { return r.kept_ratio; };

// Sums of the rows of one line of a table.
struct totals {
    index_t rows = 0;
    double accuracy = 0, kept_mass = 0, error = 0, projected = 0, bytes = 0;
    stage_seconds plan;
    double compact = 0;
    double decode = 0;
    double one_shot_peak = 0, cascade_peak = 0;

    void add(const result_row& r) {
        ++rows;
        accuracy += r.accuracy;
        kept_mass += r.kept_mass;
        error += r.output_error;
        projected += r.output_error_projected;
        bytes += r.cache_bytes;
        plan.score += r.plan_seconds.score;
        plan.allocate += r.plan_seconds.allocate;
        plan.select += r.plan_seconds.select;
        compact += r.compact_seconds;
        decode += r.decode_seconds;
        one_shot_peak += r.one_shot_peak_bytes;
        cascade_peak += r.cascade_peak_bytes;
    }
    [[nodiscard]] double mean(double sum) const { return rows == 0 ? 0 : sum / static_cast<double>(rows); }
};

// Accuracy of every task, and the mean of everything else, at one setting, length and ratio.
void print_table(const report& results, setting when, index_t tokens, double kept_ratio) {
    const auto tasks = distinct(results.rows, task_of);
    fmt::print("\n{}, {} tokens, {:g} % of the cache\n{:20}", name_of(when), tokens, 100 * kept_ratio,
               "policy");
    for (const std::string& task : tasks) { fmt::print("{:>11}", task); }
    fmt::print("{:>8}{:>8}{:>9}{:>9}{:>9}{:>8}{:>8}{:>8}{:>8}{:>8}\n", "mean", "mass", "error", "err W_O",
               "KiB", "score", "alloc", "select", "compact", "decode");
    std::string peaks;
    for (const std::string& policy : distinct(results.rows, policy_of)) {
        totals line;
        std::map<std::string, double> accuracy;
        for (const result_row& r : results.rows) {
            if (r.policy != policy || r.when != when || r.tokens != tokens || r.kept_ratio != kept_ratio) {
                continue;
            }
            accuracy[r.task] = r.accuracy;
            line.add(r);
        }
        fmt::print("{:20}", policy);
        for (const std::string& task : tasks) { fmt::print("{:>11.3f}", accuracy[task]); }
        fmt::print("{:>8.3f}{:>8.3f}{:>9.3f}{:>9.3f}{:>9.0f}{:>8.2f}{:>8.2f}{:>8.2f}{:>8.2f}{:>8.2f}\n",
                   line.mean(line.accuracy), line.mean(line.kept_mass), line.mean(line.error),
                   line.mean(line.projected), line.mean(line.bytes) / 1024, 1e3 * line.mean(line.plan.score),
                   1e3 * line.mean(line.plan.allocate), 1e3 * line.mean(line.plan.select),
                   1e3 * line.mean(line.compact), 1e3 * line.mean(line.decode));
        if (line.cascade_peak > 0) {
            peaks += fmt::format("{}: most KiB held during prefill {:.0f} in one shot, {:.0f} as a cascade\n",
                                 policy, line.mean(line.one_shot_peak) / 1024,
                                 line.mean(line.cascade_peak) / 1024);
        }
    }
    fmt::print("{}", peaks);
}

nlohmann::json json_of(const result_row& r) {
    return {{"policy", r.policy},
            {"task", r.task},
            {"setting", name_of(r.when)},
            {"tokens", r.tokens},
            {"kept_ratio", r.kept_ratio},
            {"accuracy", r.accuracy},
            {"samples", r.samples},
            {"kept_mass", r.kept_mass},
            {"output_error", r.output_error},
            {"output_error_projected", r.output_error_projected},
            {"cache_bytes", r.cache_bytes},
            {"one_shot_peak_bytes", r.one_shot_peak_bytes},
            {"cascade_peak_bytes", r.cascade_peak_bytes},
            {"score_seconds", r.plan_seconds.score},
            {"allocate_seconds", r.plan_seconds.allocate},
            {"select_seconds", r.plan_seconds.select},
            {"compact_seconds", r.compact_seconds},
            {"decode_seconds", r.decode_seconds}};
}

// Appending nothing changes no file; one that this creates is removed again.
void expect_writable(const std::string& option, const std::string& file) {
    std::error_code ignored;
    const bool is_new = !std::filesystem::exists(file, ignored);
    const bool opened = std::ofstream(file, std::ios::app).is_open();
    if (opened && is_new) { std::filesystem::remove(file, ignored); }
    if (!opened) { throw std::runtime_error(option + ": cannot write " + file); }
}

// gnuplot's name for what draws a file with this ending.
std::string terminal_for(const std::string& file) {
    const std::string ending = std::filesystem::path(file).extension().string();
    if (ending == ".svg") { return "svg"; }
    if (ending == ".png") { return "pngcairo"; }
    throw std::runtime_error("--plot takes a .svg or .png file, not " + file);
}

// Text in gnuplot's single quotes.
std::string quoted(const std::string& text) {
    std::string out = "'";
    for (const char c : text) { out += c == '\'' ? "''" : std::string(1, c); }
    return out + "'";
}

} // namespace

progress_bar::progress_bar(index_t steps)
    : steps_(std::max<index_t>(1, steps)), terminal_(isatty(STDERR_FILENO) != 0) {
    draw();
}

void progress_bar::begin(const std::string& what) {
    what_ = what;
    draw();
}

void progress_bar::step() {
    ++finished_;
    draw();
}

void progress_bar::draw() {
    const index_t percent = 100 * finished_ / steps_;
    if (terminal_) {
        constexpr index_t width = 40;
        const auto filled = static_cast<std::size_t>(finished_ * width / steps_);
        fmt::print(stderr, "\r[{:<{}}] {:>3} % {:<48}", std::string(filled, '#'), width, percent, what_);
    } else if (20 * finished_ / steps_ > drawn_twentieth_) {
        drawn_twentieth_ = 20 * finished_ / steps_;
        fmt::print(stderr, "{:>3} % {}\n", percent, what_);
    }
}

void progress_bar::done() const {
    if (terminal_) { fmt::print(stderr, "\n"); }
}

void print_tables(const report& results) {
    fmt::print(
        "\nAccuracy: share of samples whose every answer token is right. mass, error: attention of the "
        "later\n"
        "queries on what was kept, and L1 distance of the attention output to the full cache's, before and\n"
        "after W_O. Times in milliseconds per sample, all layers.\n");
    for (const setting when : distinct(results.rows, setting_of)) {
        for (const index_t tokens : distinct(results.rows, tokens_of)) {
            for (const double ratio : distinct(results.rows, ratio_of)) {
                print_table(results, when, tokens, ratio);
            }
        }
    }
    for (const comparison_row& c : results.comparisons) {
        fmt::print("\n{} at {:g} %:", name_of(c.when), 100 * c.kept_ratio);
        if (c.has_errors) {
            fmt::print(
                " CriticalKV's output error is below SnapKV's in {:.1f} % of heads, equal in {:.1f} %.",
                100 * c.lower_error, 100 * c.equal_error);
        }
        if (c.has_overlap) {
            fmt::print(" L1 and Gram norms keep {:.1f} % in common.", 100 * c.gram_overlap);
        }
    }
    fmt::print("\n\n{:.0f} seconds in all\n", results.seconds);
}

void expect_json_can_be_written(const std::string& file) {
    expect_writable("--json", file);
}

void expect_plot_can_be_drawn(const std::string& file) {
    const std::string terminal = terminal_for(file);
    expect_writable("--plot", file);
    if (std::system(("gnuplot -e 'set terminal " + terminal + "' >/dev/null 2>&1").c_str()) != 0) {
        throw std::runtime_error("--plot needs gnuplot with its terminal " + terminal +
                                 " (Debian: gnuplot-nox)");
    }
}

void write_json(const report& results, const std::string& file) {
    nlohmann::json json{{"first_index", results.first_index}, {"seconds", results.seconds}};
    json["rows"] = nlohmann::json::array();
    for (const result_row& r : results.rows) { json["rows"].push_back(json_of(r)); }
    json["comparisons"] = nlohmann::json::array();
    for (const comparison_row& c : results.comparisons) {
        nlohmann::json row{{"setting", name_of(c.when)}, {"kept_ratio", c.kept_ratio}};
        if (c.has_errors) {
            row["criticalkv_below_snapkv_heads"] = c.lower_error;
            row["criticalkv_equal_snapkv_heads"] = c.equal_error;
        }
        if (c.has_overlap) { row["gram_overlap"] = c.gram_overlap; }
        json["comparisons"].push_back(row);
    }
    std::ofstream out(file);
    out << json.dump(1) << '\n';
    if (!out.flush()) { throw std::runtime_error("cannot write " + file); }
}

void write_plot(const report& results, const std::string& file) {
    const std::string terminal = terminal_for(file);
    const auto settings = distinct(results.rows, setting_of);
    const auto policies = distinct(results.rows, policy_of);
    const auto ratios = distinct(results.rows, ratio_of);
    std::string script = fmt::format(
        "set terminal {} size {},560 enhanced\nset output {}\nset multiplot layout 1,{}\n"
        "set xlabel 'kept share of the cache, %'\nset ylabel 'accuracy, mean over tasks'\nset yrange "
        "[0:1.02]\n"
        "set logscale x\nset xtics (1,2,5,10,20,50,100)\nset xrange [{}:110]\nset grid\nset bmargin 9\n"
        "set key at screen 0.5,0.01 bottom center maxrows 3\n",
        terminal == "svg" ? "svg background 'white'" : terminal, 620 * settings.size(), quoted(file),
        settings.size(), 90 * *std::min_element(ratios.begin(), ratios.end()));
    for (const setting when : settings) {
        std::string name = name_of(when);
        std::replace(name.begin(), name.end(), '_', '-');
        script += fmt::format("set title '{}'\nplot ", name);
        std::string data;
        for (std::size_t p = 0; p < policies.size(); ++p) {
            script += fmt::format("{}'-' with linespoints lw 2 lt {} title '{}' noenhanced",
                                  p == 0 ? "" : ", ", p + 1, policies[p]);
            for (const double ratio : ratios) {
                totals at;
                for (const result_row& r : results.rows) {
                    if (r.policy == policies[p] && r.when == when && r.kept_ratio == ratio) { at.add(r); }
                }
                if (at.rows > 0) { data += fmt::format("{} {}\n", 100 * ratio, at.mean(at.accuracy)); }
            }
            data += "e\n";
        }
        script += "\n" + data;
    }
    script += "unset multiplot\n";
    std::signal(SIGPIPE, SIG_IGN); // a gnuplot that ends early is a failed write, not the end of this program
    std::FILE* gnuplot = popen("gnuplot", "w");
    if (gnuplot == nullptr) { throw std::runtime_error("cannot run gnuplot"); }
    const bool written = std::fwrite(script.data(), 1, script.size(), gnuplot) == script.size();
    const int result = pclose(gnuplot);
    std::error_code unreadable; // gnuplot does not notice a full disk
    const bool drawn = std::filesystem::file_size(file, unreadable) > 0 && !unreadable;
    if (!written || result != 0 || !drawn) { throw std::runtime_error("gnuplot could not draw " + file); }
}

} // namespace needle
