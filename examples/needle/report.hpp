// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Results of a run as a terminal table, as JSON, and as a picture through gnuplot.

#include "evaluate.hpp"

#include <string>
#include <vector>

namespace needle {

// Means over the samples of one policy, task, setting, length and ratio.
struct result_row {
    std::string policy;
    std::string task;
    setting when = setting::question_aware;
    index_t tokens = 0;
    double kept_ratio = 1;
    index_t samples = 0;
    double accuracy = 0;
    double kept_mass = 0;
    double output_error = 0;
    double output_error_projected = 0;
    double cache_bytes = 0;
    stage_seconds plan_seconds = {};
    double compact_seconds = 0;
    double decode_seconds = 0;
};

// How two policies compare at one setting and ratio, over all samples, layers and heads.
struct comparison_row {
    setting when = setting::question_aware;
    double kept_ratio = 1;
    double lower_error = 0; // share of heads whose projected error is lower with CriticalKV than with SnapKV
    double equal_error = 0;
    double gram_overlap = 0; // share of kept entries that the exact L1 and the Gram L2 form have in common
    bool has_errors = false;
    bool has_overlap = false;
};

struct report {
    std::vector<result_row> rows = {};
    std::vector<comparison_row> comparisons = {};
    index_t first_index = 0;
    double seconds = 0;
};

// A progress line on a terminal; one line per step where stderr is no terminal.
class progress_bar {
  public:
    explicit progress_bar(index_t steps);
    void step(const std::string& what);
    void done() const;

  private:
    index_t steps_;
    index_t finished_ = 0;
    bool terminal_;
};

void print_tables(const report& results);

// Throws std::runtime_error if the file cannot be written.
void write_json(const report& results, const std::string& file);

// Accuracy against cache size, one line per policy, one panel per setting; .svg or .png by the file's ending.
// Throws std::runtime_error for another ending, without gnuplot, or if it fails.
void write_plot(const report& results, const std::string& file);

} // namespace needle
