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
    double one_shot_peak_bytes = 0; // held during prefill; 0 for policies over one layer
    double cascade_peak_bytes = 0;
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

// A progress line on a terminal, drawn at once; where stderr is no terminal, one line per twentieth.
class progress_bar {
  public:
    explicit progress_bar(index_t steps);
    void begin(const std::string& what); // the steps that follow belong to this
    void step();
    void done() const;

  private:
    void draw();

    index_t steps_;
    index_t finished_ = 0;
    index_t drawn_twentieth_ = -1;
    std::string what_;
    bool terminal_;
};

void print_tables(const report& results);

// For files that are written after minutes of work: both throw std::runtime_error now if it is already known that the
// file cannot be written, and leave no file behind that was not there. For a plot the ending decides, and gnuplot is asked.
void expect_json_can_be_written(const std::string& file);
void expect_plot_can_be_drawn(const std::string& file);

// Throws std::runtime_error if the file cannot be written.
void write_json(const report& results, const std::string& file);

// Accuracy against cache size, one line per policy, one panel per setting; .svg or .png by the file's ending.
// Throws std::runtime_error for another ending, without gnuplot, or if gnuplot reports an error.
void write_plot(const report& results, const std::string& file);

} // namespace needle
