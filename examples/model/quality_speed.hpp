// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// What a smaller cache and a pruned prefill save, on the model: time and memory.
//
//   prefill   time to the first token, dense and with the blocks of CritiPrefill's budgets; the mean KL of the next tokens against
//             the dense prefill's; and, on contexts with needles (multikey), answers that stay right
//   decode    tokens per second, one after the other, and the process's resident memory, with the full cache and with what
//             SnapKV leaves of it: one sequence that is cut further and further (its choices are nested)
//   peer      the same of another engine on the same tokens, a process of its own, by turns with the rows above
// Processor time stands beside time, for machines that do other things meanwhile.

#include "quality_measure.hpp"

#include <nlohmann/json.hpp>

#include <string>
#include <vector>

namespace lm {

struct prefill_speed {
    index_t tokens = 0;
    index_t budget_tokens = 0;   // 0: dense
    std::string options;         // of CritiPrefill, where they are not its own
    double pairs_share = 1;      // of the queries' and keys' pairs of dense attention
    std::vector<double> seconds; // to the first token, a sample each
    std::vector<double> processor_seconds;
    std::vector<double> kl;
    std::vector<double> right; // needles, of those that the dense prefill gets right; dense: of all
    std::vector<double> asked;
};

struct decode_speed {
    index_t tokens = 0;
    double kept_ratio = 1;
    double tokens_per_second = 0;
    double processor_seconds = 0; // per token
    std::size_t cache_bytes = 0;
    std::size_t resident_bytes = 0;
};

struct peer_speed {
    std::string name;
    index_t tokens = 0;
    std::vector<double> seconds; // to the first token, a sample each
    std::vector<double> tokens_per_second;
    std::size_t resident_bytes = 0;
};

// Another engine, whole cache: answers in a line of JSON, {"first_token_seconds", "tokens_per_second", "resident_bytes"}.
struct speed_peer {
    std::string name;
    std::string
        command; // behind which --tokens FILE --prompt N --steps N are put; FILE: prompt, then what follows
};

struct speed_results {
    std::vector<prefill_speed> prefill;
    std::vector<decode_speed> decode;
    std::vector<peer_speed> peers;
};

struct speed_request {
    std::vector<index_t> prefill_budgets;         // beside dense prefill
    std::vector<std::string> prefill_options{""}; // each at every budget (block_pruning)
    index_t decode_steps = 0;                     // per share; the first token is not timed
    std::vector<speed_peer> peers;
};

// With the tokens, samples, kept ratios, next tokens and format of `samples`. Throws std::runtime_error where a peer fails.
[[nodiscard]] speed_results measure_speed(const llama_model& model, const sample_source& source,
                                          const quality_request& samples, const speed_request& request,
                                          const quality_progress& progress);

[[nodiscard]] nlohmann::json json_of(const speed_results& results);
[[nodiscard]] std::string tables_of(const speed_results& results);

} // namespace lm
