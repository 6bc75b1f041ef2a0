// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// What the rounds measured, and what follows from it: limits, ratios, goals.

#include "row.hpp"

#include <nlohmann/json_fwd.hpp>

namespace bench {

// One row after all rounds.
struct measured_row {
    std::string name;           // stage/row/tokens:N, as registered
    row_facts facts;            // of its last round
    std::vector<double> ms;     // one per round it took part in
    std::string error;          // empty where all went well
    double seconds_of_call = 0; // of its shortest round; the first one may prepare data for all
};

// Medians, limits and goals as one document; its form is that of the files in bench/results/.
[[nodiscard]] nlohmann::ordered_json document_of(const std::vector<measured_row>& rows, int rounds);

// The document as Markdown, for people.
[[nodiscard]] std::string markdown_of(const nlohmann::ordered_json& document);

// Time against tokens of the rows policy/..., with their limits, as blocks for plot.gnuplot.
[[nodiscard]] std::string plot_data_of(const nlohmann::ordered_json& document);

} // namespace bench
