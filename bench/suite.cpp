// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// The suite: all rows in rounds, one after the other, so that a slow minute of the machine falls on all of them, limits
// and peers included. The median of a row over the rounds is its time. A row that takes long takes part in the first, the
// middle and the last round only.
//
// With any of Google Benchmark's own options this is a plain Google Benchmark program.

#include "peers/peers.hpp"
#include "results.hpp"

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <cctype>
#include <filesystem>
#include <fstream>
#include <regex>
#include <sstream>
#include <string_view>
#include <unistd.h>

namespace bench {

void add_limit_rows(); // limit_rows.cpp

namespace {

struct options {
    std::string filter = ".";
    int rounds = 9;
    bool is_quick = false;
    std::string results = "."; // folder
};

constexpr double slow_seconds = 1; // a call that takes longer, preparation included, makes a row slow

// Keeps what a run of one row gave.
class collector : public benchmark::BenchmarkReporter {
  public:
    bool ReportContext(const Context&) override { return true; }
    void ReportRuns(const std::vector<Run>& runs) override {
        for (const Run& run : runs) {
            error = run.error_occurred ? run.error_message : "";
            ms = run.error_occurred || run.iterations == 0
                     ? 0
                     : 1e3 * run.real_accumulated_time / static_cast<double>(run.iterations);
        }
    }
    std::string error;
    double ms = 0;
};

void set_flag(std::string flag) {
    std::string program = "kvtrim_bench";
    char* arguments[] = {program.data(), flag.data(), nullptr};
    int count = 2;
    benchmark::Initialize(&count, arguments);
}

// The registered names, without what Google Benchmark adds about its own settings.
std::string short_name(const std::string& name) {
    static const std::regex settings("/(real_time|manual_time|iterations:[0-9]+|process_time)");
    return std::regex_replace(name, settings, "");
}

std::vector<std::string> names_of_rows() {
    std::ostringstream names;
    collector none;
    none.SetOutputStream(&names);
    set_flag("--benchmark_list_tests=true");
    benchmark::RunSpecifiedBenchmarks(&none, nullptr, ".");
    set_flag("--benchmark_list_tests=false");
    std::vector<std::string> out;
    std::istringstream lines(names.str());
    for (std::string line; std::getline(lines, line);) { out.push_back(line); }
    return out;
}

// Quick is what needs a cache of 8192 tokens at most.
bool is_chosen(const std::string& name, const options& o) {
    if (name.starts_with("limit/")) { return true; }
    const bool is_long = name.find("tokens:32768") != std::string::npos ||
                         name.find("tokens:131072") != std::string::npos || name.starts_with("model/") ||
                         name.find("/interval") != std::string::npos;
    return std::regex_search(name, std::regex(o.filter)) && !(o.is_quick && is_long);
}

bool takes_part(const measured_row& row, int round, int rounds) {
    const bool is_slow = row.seconds_of_call > slow_seconds;
    return row.error.empty() && (!is_slow || round == 0 || round == rounds / 2 || round == rounds - 1);
}

std::string regex_for(const std::string& name) {
    static const std::regex special(R"([.^$|()\[\]{}*+?\\])");
    return "^" + std::regex_replace(name, special, R"(\$&)") + "$";
}

void run_row(const std::string& registered_name, measured_row& row) {
    collector result;
    last_row = {.level = kvtrim::name_of(kvtrim::active_cpu_level())}; // for rows that say nothing
    const double seconds =
        seconds_of([&] { benchmark::RunSpecifiedBenchmarks(&result, nullptr, regex_for(registered_name)); });
    row.seconds_of_call = row.ms.empty() ? seconds : std::min(seconds, row.seconds_of_call);
    row.facts = last_row;
    row.error = result.error;
    if (result.error.empty()) { row.ms.push_back(result.ms); }
}

// One line that moves on a terminal, one per round elsewhere; errors stay.
class progress {
  public:
    explicit progress(int rounds) : rounds_(rounds) {}

    void before(int round, std::size_t index, std::size_t count, const std::string& name) const {
        if (is_terminal_) {
            fmt::print(stderr, "\r\033[Kround {} of {}, row {} of {}, {:.0f} s: {}", round + 1, rounds_,
                       index + 1, count, seconds(), name);
        } else if (index == 0) {
            fmt::print(stderr, "round {} of {}, {:.0f} s\n", round + 1, rounds_, seconds());
        }
        std::fflush(stderr);
    }
    void failed(const measured_row& row) const {
        fmt::print(stderr, "{}{}: {}\n", is_terminal_ ? "\r\033[K" : "", row.name, row.error);
    }
    void done() const { fmt::print(stderr, "{}done, {:.0f} s\n", is_terminal_ ? "\r\033[K" : "", seconds()); }

  private:
    [[nodiscard]] double seconds() const {
        return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    }
    int rounds_;
    bool is_terminal_ = isatty(STDERR_FILENO) == 1;
    std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

std::vector<measured_row> run_rounds(const options& o) {
    std::vector<std::string> registered;
    std::vector<measured_row> rows;
    for (const std::string& name : names_of_rows()) {
        if (!is_chosen(name, o)) { continue; }
        registered.push_back(name);
        rows.emplace_back().name = short_name(name);
    }
    set_flag(fmt::format("--benchmark_min_time={}", o.is_quick ? 0.001 : 0.05));
    const progress shown(o.rounds);
    for (int round = 0; round < o.rounds; ++round) {
        for (std::size_t i = 0; i < rows.size(); ++i) {
            if (!takes_part(rows[i], round, o.rounds)) { continue; }
            shown.before(round, i, rows.size(), rows[i].name);
            run_row(registered[i], rows[i]);
            if (!rows[i].error.empty()) { shown.failed(rows[i]); }
        }
    }
    shown.done();
    return rows;
}

// "Intel(R) Xeon(R) Processor" as part of a file's name.
std::string slug_of(const std::string& cpu) {
    std::string slug = std::regex_replace(cpu, std::regex(R"(\((R|TM|tm)\))"), "");
    for (char& c : slug) {
        c = std::isalnum(static_cast<unsigned char>(c)) != 0
                ? static_cast<char>(std::tolower(static_cast<unsigned char>(c)))
                : '-';
    }
    return std::regex_replace(slug, std::regex("-+"), "-");
}

void write_file(const std::filesystem::path& path, const std::string& content) {
    std::ofstream out(path, std::ios::binary);
    out << content;
    if (!out.flush()) { throw std::runtime_error("cannot write " + path.string()); }
    fmt::print(stderr, "wrote {}\n", path.string());
}

// Prints the files' common stem, for ./dev.
void write_report(const nlohmann::ordered_json& document, std::filesystem::path stem) {
    write_file(stem.replace_extension(".md"), markdown_of(document));
    write_file(stem.replace_extension(".dat"), plot_data_of(document));
    fmt::print("{}\n", std::filesystem::absolute(stem.replace_extension("")).string());
}

int run_suite(const options& o) {
    const std::vector<measured_row> rows = run_rounds(o);
    const auto document = document_of(rows, o.rounds);
    std::filesystem::path stem =
        std::filesystem::path(o.results) /
        (document["date"].get<std::string>() + "-" + slug_of(document["cpu"].get<std::string>()));
    std::filesystem::create_directories(o.results);
    write_file(stem.replace_extension(".json"), document.dump(1) + "\n");
    write_report(document, stem);
    return std::any_of(rows.begin(), rows.end(), [](const auto& row) { return !row.error.empty(); }) ? 1 : 0;
}

} // namespace

} // namespace bench

int main(int argc, char** argv) {
    bench::add_limit_rows();
    bench::add_ggml_rows();
    const auto is_own = [](std::string_view argument) { return !argument.starts_with("--benchmark_"); };
    if (!std::all_of(argv + 1, argv + argc, is_own)) {
        benchmark::Initialize(&argc, argv);
        if (benchmark::ReportUnrecognizedArguments(argc, argv)) { return 1; }
        benchmark::RunSpecifiedBenchmarks();
        return 0;
    }

    CLI::App app{
        "kvtrim's benchmark suite; with Google Benchmark's options (--benchmark_filter=REGEX, ...) a plain "
        "run of its rows"};
    bench::options o;
    std::string report, reference_data;
    std::vector<std::string> torch;
    app.add_option("--filter", o.filter, "regular expression: only these rows, and the limits");
    app.add_option("--rounds", o.rounds)->check(CLI::PositiveNumber)->capture_default_str();
    app.add_flag("--quick", o.is_quick, "one round of the short rows: to see that all of it runs");
    app.add_option("--results", o.results, "folder for JSON, Markdown and plot data")->capture_default_str();
    app.add_option("--torch", torch,
                   "command that serves torch rows (peers/torch.cpp), as ./dev bench --peers gives it");
    app.add_option("--report", report, "no run: Markdown and plot data once more, from this JSON");
    app.add_option("--write-reference", reference_data,
                   "no run: a small layer and its results, into this folder");
    CLI11_PARSE(app, argc, argv);
    try {
        if (!reference_data.empty()) { return bench::write_reference_data(reference_data); }
        if (!report.empty()) {
            bench::write_report(nlohmann::ordered_json::parse(std::ifstream(report)), report);
            return 0;
        }
        if (o.is_quick) { o.rounds = 1; }
        for (const std::string& command : torch) { bench::add_torch_rows(command); }
        return bench::run_suite(o);
    } catch (const std::exception& e) {
        fmt::print(stderr, "kvtrim_bench: {}\n", e.what());
        return 1;
    }
}
