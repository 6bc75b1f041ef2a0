// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// What a pruned prefill keeps of the model's abilities: haystack and first question are prefilled through
// kvtrim's block-sparse attention, the rest is decoded over the full cache, and every answer token must be right.
//
// Kept mass and output error compare each pruned layer with dense attention on the same inputs; the times are those of
// planning and of attention in the pruned layers, both with kvtrim's kernels.

#include "engine.hpp"
#include "report.hpp"
#include "samples.hpp"

#include <functional>
#include <string>
#include <vector>

namespace needle {

struct prefill_options {
    std::vector<std::string> tasks = {};
    std::vector<index_t> tokens = {};
    std::vector<index_t> budgets = {}; // cache tokens per KV head and segment
    index_t segment_tokens = 64;
    index_t block_tokens = 16;
    index_t samples = 16;
    index_t first_index = 0;
};

// Means over the samples of one policy, task, length and budget.
struct prefill_row {
    std::string policy;
    std::string task;
    index_t tokens = 0;
    index_t budget_tokens = 0; // 0: dense
    index_t samples = 0;
    double accuracy = 0;
    double work_share = 0; // query-key pairs of pruned layers over those of dense attention
    double kept_mass = 0;
    double output_error = 0; // L1 over the L1 norm of the dense output
    double plan_seconds = 0;
    double attention_seconds = 0;
};

// Names of the compared policies, dense first.
[[nodiscard]] std::vector<std::string> prefill_policy_names();

[[nodiscard]] std::vector<prefill_row> evaluate_prefill(const llama_model& model,
                                                        const prefill_options& chosen);

void print_prefill_tables(const std::vector<prefill_row>& rows);

// Throws std::runtime_error if the file cannot be written.
void write_prefill_json(const std::vector<prefill_row>& rows, const prefill_options& chosen,
                        const std::string& file);

} // namespace needle
