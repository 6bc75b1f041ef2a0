// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// From the document of a run to what people look at.

#include "results.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <set>

namespace bench {

namespace {

using json = nlohmann::ordered_json;

// A number of an entry, or an empty cell.
std::string cell(const json& entry, const char* key, fmt::format_string<double> format, double factor = 1) {
    return entry.contains(key) ? fmt::format(format, factor * entry[key].get<double>()) : "";
}

std::string text(const json& entry, const char* key) {
    return entry.contains(key) ? entry[key].get<std::string>() : "";
}

const json* find(const json& rows, const std::string& name) {
    for (const json& row : rows) {
        if (row["name"] == name) { return &row; }
    }
    return nullptr;
}

std::string stage_of(const json& row) {
    const auto name = row["name"].get<std::string>();
    return name.substr(0, name.find('/'));
}

std::string goals_table(const json& document) {
    std::string out = "## Goals\n\n| goal | measured | must | aim | holds |\n|---|---|---|---|---|\n";
    for (const json& g : document["goals"]) {
        const auto sign = g["sense"] == "at most" ? "<= " : ">= ";
        const auto bound = [&](const char* key) {
            return g.contains(key) ? sign + cell(g, key, "{:.3g}") : std::string();
        };
        out += fmt::format("| {} | {} | {} | {} | {} |\n", text(g, "unit"), cell(g, "value", "{:.3g}"),
                           bound("must"), bound("aim"), text(g, "held"));
    }
    return out + "\n";
}

std::string limits_table(const json& document) {
    std::string out = "## Limits\n\n| limit | threads | 10^9/s | of | variation |\n|---|---|---|---|---|\n";
    for (const json& l : document["limits"]) {
        out += fmt::format("| `{}` | {} | {} | {} | {} |\n", text(l, "name"), l["threads"].get<int>(),
                           cell(l, "rate", "{:.1f}", 1e-9), text(l, "unit"),
                           cell(l, "variation", "{:.1f} %", 100));
    }
    return out + "\n";
}

// Every peer's row beside ours.
std::string peers_table(const json& document) {
    std::string out;
    for (const json& row : document["rows"]) {
        if (!row.contains("beside") || !row.contains("ms")) { continue; }
        const json* ours = find(document["rows"], text(row, "beside"));
        if (ours == nullptr || !ours->contains("ms")) { continue; }
        out += fmt::format("| `{}` | {} | {} | {:.3g} | {} | {} |\n", text(row, "name"),
                           cell(row, "ms", "{:.4g}"), cell(*ours, "ms", "{:.4g}"),
                           row["ms"].get<double>() / (*ours)["ms"].get<double>(),
                           cell(row, "workspace_bytes", "{:.1f}", 1.0 / (1 << 20)), text(row, "note"));
    }
    return out.empty() ? out
                       : "## Peers\n\n| peer | its ms | kvtrim's | ratio | extra MiB | note |\n"
                         "|---|---|---|---|---|---|\n" +
                             out + "\n";
}

std::string stage_table(const json& rows, const std::string& stage) {
    std::string out =
        "### " + stage +
        "\n\n| row | level | threads | ms | limit ms | of limit | limited by | variation | runs | "
        "extra MiB | note |\n|---|---|---|---|---|---|---|---|---|---|---|\n";
    for (const json& row : rows) {
        if (stage_of(row) != stage) { continue; }
        out += fmt::format("| `{}` | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |\n", text(row, "name"),
                           text(row, "level"), row["threads"].get<int>(), cell(row, "ms", "{:.4g}"),
                           cell(row, "limit_ms", "{:.4g}"), cell(row, "of_limit", "{:.2f}"),
                           text(row, "limited_by"), cell(row, "variation", "{:.1f} %", 100),
                           cell(row, "repetitions", "{:.0f}"),
                           cell(row, "workspace_bytes", "{:.1f}", 1.0 / (1 << 20)),
                           row.contains("error") ? "**" + text(row, "error") + "**" : text(row, "note"));
    }
    return out + "\n";
}

} // namespace

std::string markdown_of(const json& document) {
    std::string out = fmt::format(
        "# kvtrim's benchmark suite, {}\n\n{}, {} hardware threads; instruction-set level {}; compiler {}. "
        "One layer of the Llama-3.1-8B shape, random data.\n\nMedians of {} interleaved rounds, of three for "
        "rows "
        "that take more than a second; variation is the standard deviation over the mean. A limit is the "
        "time for "
        "the same work at the rates of the table Limits, measured in the same rounds: the longest part of a "
        "stage, "
        "summed over stages. It counts keys and values as read from memory; where they fit the cache, at "
        "8192 "
        "tokens, a row can pass it. Made by `./dev bench`.\n\n",
        text(document, "date"), text(document, "cpu"), document["hardware_threads"].get<int>(),
        text(document, "level"), text(document, "compiler"), document["rounds"].get<int>());
    out += goals_table(document) + peers_table(document) + limits_table(document) + "## Rows\n\n";
    std::set<std::string> written;
    for (const json& row : document["rows"]) {
        const std::string stage = stage_of(row);
        if (written.insert(stage).second) { out += stage_table(document["rows"], stage); }
    }
    return out;
}

std::string plot_data_of(const json& document) {
    std::string out, previous;
    for (const json& row : document["rows"]) {
        const auto name = text(row, "name");
        if (stage_of(row) != "policy" || !row.contains("limit_ms")) { continue; }
        const std::size_t begin = name.find('/') + 1, end = name.find("/tokens:");
        const std::string policy = name.substr(begin, end - begin);
        if (policy != previous) { // a block: its name, then a line for each length
            out += (previous.empty() ? "" : "\n\n") + policy + "\n";
            previous = policy;
        }
        out += fmt::format("{} {} {}\n", name.substr(end + 8), row["ms"].get<double>(),
                           row["limit_ms"].get<double>());
    }
    return out;
}

} // namespace bench
