// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// What a cut costs, against the full cache: answers, the distribution of the next token, the attention's output.
//
// A context is prefilled once, replayed once for all policies, and planned once for all tasks that ask about it; every policy and
// every share then cuts a copy of its caches. A question that is seen is prefilled behind a copy of it.
//   answers     teacher forcing: a value is right if each of its tokens is the likeliest one behind the question and the
//               right tokens so far. It then is in greedy decoding, too.
//   KL, nll     mean over the next tokens of sum_w p(w) log(p(w) / q(w)), p with the full cache, q with the cut one; mean of
//               -log q(next token). Perplexity is the latter's exponential.
//   live        KL and nll over the second half of a text that comes 64 tokens at a time, as a long answer would, into a cache that
//               is cut back to its share each time (../needle/live_sequence.hpp). Throws for a policy that cannot.
//   error       per query head, sum |o - o'| / sum |o| over the next tokens, o being the attention's output of the full cache for
//               the queries that the full cache leads to; and the same of o W_O.
// Cost: a forward pass over the question or the next tokens for each cut. Numerics: sums in double.

#include "quality_samples.hpp"
#include "session.hpp"

#include <functional>
#include <map>
#include <string>
#include <vector>

namespace lm {

struct quality_request {
    std::vector<std::string> policies;
    std::vector<double> kept_ratios;
    std::vector<std::string> tasks; // of all_needle_tasks, "text" and "live"
    std::vector<needle_values> values;
    std::vector<bool> question_seen; // the cut happens behind the question, before it, or each in turn
    std::vector<index_t> tokens;
    index_t samples = 8;
    std::uint64_t first_seed = first_judging_seed;
    index_t next_tokens = 256;
    cache_format format = cache_format::f32;
    index_t sink_tokens = 4;
    index_t window_tokens = 32;
    policy_aids aids = {};
};

// One cut of one kind of samples. The full cache is the policy "full" with a kept ratio of 1.
struct quality_key {
    index_t tokens = 0;
    std::string task; // "text", "live": running text
    std::string values;
    bool question_seen = false;
    std::string policy;
    double kept_ratio = 1;

    auto operator<=>(const quality_key&) const = default;
};

// Whether a task asks for answers.
[[nodiscard]] inline bool has_answers(const std::string& task) {
    return task != "text" && task != "live";
}

struct quality_cell {
    // A number per sample. Needles: values that were right of those that the full cache gets right; of the policy "full", of all.
    std::vector<double> right;
    std::vector<double> asked;
    // Running text.
    std::vector<double> kl;
    std::vector<double> nll;
    // Means over the samples of running text.
    std::vector<double> error;           // [layers * q_heads]
    std::vector<double> error_projected; // [layers * q_heads], after W_O
    std::vector<double> kept_rows;       // [layers * kv_heads]
};

struct estimate {
    double mean = 0;
    double standard_error = 0;
};

// Mean of numbers, and its standard error; 0 for fewer than two.
[[nodiscard]] estimate mean_of(const std::vector<double>& numbers);
// sum(parts) / sum(wholes), and the standard error of that ratio over samples, whose wholes differ.
[[nodiscard]] estimate ratio_of(const std::vector<double>& parts, const std::vector<double>& wholes);

// Logits become the logarithms of a distribution, row by row.
void log_softmax(matrix& logits);

// Mean over the rows of sum p log(p / q).
[[nodiscard]] double mean_kl(const matrix& log_p, const matrix& log_q);

// Which values of an answer are right, token by token behind the question, from caches of `position` tokens; with the logits behind
// the question if the caches hold it.
[[nodiscard]] std::vector<bool> right_values(const llama_model& model, std::vector<kv_cache> caches,
                                             index_t position, const asked_question& q,
                                             const matrix* behind_question = nullptr);

struct quality_results {
    std::map<quality_key, quality_cell> cells;
    index_t kv_heads = 1; // of the model
    double seconds = 0;
};

// progress(done, all, what) before each sample.
using quality_progress = std::function<void(index_t done, index_t all, const std::string& what)>;

// Throws what the source and the session throw.
[[nodiscard]] quality_results measure_quality(const llama_model& model, const sample_source& source,
                                              const quality_request& request,
                                              const quality_progress& progress);

} // namespace lm
