// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// What quality is measured on: contexts with questions about them, and running text.
//
// Needle tasks have the form of RULER's (2404.06654): sentences "One of the special magic numbers for KEY is: VALUE." at random
// places of running text, whose values are numbers of seven digits, or words.
//   single      one key and value                        one question
//   multikey    four keys, a value each                  a question for each
//   multiquery  the text of multikey                     one question for all keys
//   multivalue  one key with four values                 one question, all values in the order of the text
//
// A seed names the same sample on every machine. Seeds below `first_judging_seed` are for choosing, those from there on for
// judging: they draw on another text, other keys and other words, so that what was chosen cannot know them.
//
// Texts of different seeds do not overlap: for each task and length a book is cut into stretches, which the seeds from 0 and from
// first_judging_seed on are given in an order of chance. A seed behind the last is refused.

#include "tokenizer.hpp"

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace lm {

inline constexpr std::uint64_t first_judging_seed = 1000;

// Of the text that a table of the model's rows is made from.
inline constexpr index_t calibration_tokens = 1024;

inline constexpr std::array<std::string_view, 4> needle_tasks{"single", "multikey", "multiquery",
                                                              "multivalue"};
// With those that the demo's model alone was trained for.
inline constexpr std::array<std::string_view, 7> all_needle_tasks{
    "single", "multikey", "multiquery", "multivalue", "chain", "freqword", "dense"};

enum class needle_values { numbers, words };

// A run of an answer's tokens that is right or wrong as one.
struct token_range {
    index_t begin;
    index_t end;
};

struct asked_question {
    std::vector<token_id> question;
    std::vector<token_id> answer;
    std::vector<token_range> values; // of the answer; what is between them is given, not judged
};

struct needle_sample {
    std::vector<token_id> context; // of exactly the tokens that were asked for
    std::vector<asked_question> questions;
};

struct running_text {
    std::vector<token_id> context;
    std::vector<token_id> next; // what follows
};

// Where samples come from. Calls throw std::invalid_argument for what the source does not have, a seed behind its last text too.
class sample_source {
  public:
    virtual ~sample_source() = default;
    [[nodiscard]] virtual std::vector<needle_values> values() const = 0;
    [[nodiscard]] virtual needle_sample needles(std::string_view task, needle_values values, index_t tokens,
                                                std::uint64_t seed) const = 0;
    [[nodiscard]] virtual running_text text(index_t tokens, index_t next_tokens,
                                            std::uint64_t seed) const = 0;
    // calibration_tokens tokens for choosing, of which no sample has any.
    [[nodiscard]] virtual std::vector<token_id> calibration() const = 0;
    // What the texts are, for the results.
    [[nodiscard]] virtual std::string description() const = 0;
};

// Texts in the model's words, a paragraph a line: `choosing` for seeds below first_judging_seed, else `judging`. The tokenizer
// must outlive it. Throws std::runtime_error for a file that cannot be read.
[[nodiscard]] std::unique_ptr<sample_source>
text_source(const tokenizer& words, const std::string& choosing_file, const std::string& judging_file);

// The samples that the demo's model was trained for (../needle/samples.hpp), which has no words; numbers only.
[[nodiscard]] std::unique_ptr<sample_source> recall_source();

} // namespace lm
