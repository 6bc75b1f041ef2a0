// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Makes the retrieval samples that the recall model was trained for.
//
// A haystack hides key/value pairs ("needles") in filler; the questions after it ask for some of
// them. Everything is integer arithmetic on a SplitMix64 stream, so (task, haystack_tokens, index)
// names the same sample on every machine.

#include "engine.hpp"

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

namespace needle {

// Numbered as in the generator's seed.
enum class task_kind {
    single,     // 1 needle, one question
    multikey,   // one of many needles
    multiquery, // four of many needles, asked one after the other
    multivalue, // a key defined twice: its first value, then its last
    chain,      // a key that points to a key that points to a needle
    freqword,   // the most frequent word
    dense,      // one of so many needles that they fill half of the haystack
};

inline constexpr std::array<std::string_view, 7> task_names{"single", "multikey", "multiquery", "multivalue",
                                                            "chain",  "freqword", "dense"};

[[nodiscard]] std::string_view name_of(task_kind task);

// Throws std::invalid_argument for a name not in task_names.
[[nodiscard]] task_kind parse_task(std::string_view name);

struct turn {
    std::vector<token_id> question;
    std::vector<token_id> answer;
};

struct sample {
    std::vector<token_id> haystack; // [haystack_tokens], BOS included
    std::vector<turn> turns;        // asked in this order
};

// Every task exists for haystacks of these lengths.
inline constexpr index_t min_haystack_tokens = 192;
inline constexpr index_t max_haystack_tokens = 12288;

// Throws std::invalid_argument for a length outside the limits or an index outside [0, 2^24).
[[nodiscard]] sample make_sample(task_kind task, index_t haystack_tokens, index_t index);

// Questions for all that the haystack defines once with a value of its own, each once in an order drawn from `seed`, then
// each again in another order, and so on until their answers have at least `answer_tokens` tokens.
// Throws std::invalid_argument if there is nothing to ask.
[[nodiscard]] std::vector<turn> ask_every_needle(const sample& from, index_t answer_tokens,
                                                 std::uint64_t seed);

// Haystack, questions and right answers in one sequence, and where the answer tokens are in it.
struct flat_sample {
    std::vector<token_id> tokens;
    std::vector<index_t> answer_positions;
};

[[nodiscard]] flat_sample flatten(const sample& from);

} // namespace needle
