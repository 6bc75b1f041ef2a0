// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Results of quality as a file, as tables, and as numbers to draw.

#include "quality_measure.hpp"

#include <nlohmann/json.hpp>

#include <string>
#include <vector>

namespace lm {

// What a results file says besides the numbers, as given.
struct quality_setting {
    std::string model;
    std::string text;
};

[[nodiscard]] nlohmann::json json_of(const quality_results& results, const quality_setting& setting,
                                     const quality_request& request);

// Adds what a results file holds. Throws std::runtime_error, with the file's name in the text.
void read_results(const std::string& file, quality_results& results);

// Markdown: for every length running text, and needles by values and question.
[[nodiscard]] std::string tables_of(const quality_results& results);

// Numbers for quality.gnuplot of the shortest length: STEM.kl.dat, STEM.accuracy.dat and STEM.budget.dat, which are empty where the
// results have none. Throws std::runtime_error if they cannot be written.
void write_plot_data(const quality_results& results, const std::string& stem);

// Fails unless a cache that kept everything has lost nothing: an empty string, or what differs.
[[nodiscard]] std::string check_whole_caches(const quality_results& results);

} // namespace lm
