// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Byte-level byte-pair encoding, as a GGUF file carries it (tokenizer.ggml.model "gpt2").
//
// A text is cut into words: contractions ('s 't 're 've 'm 'll 'd), letters, numbers, other characters, each with at most one
// space before it, and white space, of which the last space goes to what follows. With tokenizer.ggml.pre "smollm" (and what
// splits alike) every digit is a word of its own first. Within a word, the neighbouring pair of tokens with the lowest merge
// rank becomes one token until no pair has a rank. In the file's texts each byte stands as a printable character.
// Source: the pattern and the bytes' characters of GPT-2; the order of merges of Sennrich et al., arXiv:1508.07909.
// Cost: O(n log n) in the bytes of a word, whatever the word.

#include "gguf.hpp"
#include "tensor.hpp"

#include <array>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace lm {

class tokenizer {
  public:
    // Throws std::runtime_error, with the file's name in the text, for a file without such a tokenizer.
    explicit tokenizer(const gguf& file);

    [[nodiscard]] index_t size() const { return std::ssize(texts_); }

    // A text's tokens. What looks like a control token is text: prompts may hold anything. Bytes that are no UTF-8 are
    // encoded like other characters.
    [[nodiscard]] std::vector<token_id> encode(std::string_view text) const;

    // The control token of that name, for example <|im_start|>; -1 if there is none.
    [[nodiscard]] token_id control(const std::string& name) const;
    // Whether generation ends with this token.
    [[nodiscard]] bool is_end(token_id token) const { return token == end_ || token == end_of_turn_; }

    // The bytes of tokens, one after the other; control tokens by their names. Throws std::out_of_range.
    [[nodiscard]] std::string decode(std::span<const token_id> tokens) const;

  private:
    struct merge {
        std::int32_t rank;
        token_id merged;
    };

    void read_merges(const gguf& file);
    void encode_word(std::string_view word, std::vector<token_id>& to) const;
    [[nodiscard]] const merge* find_merge(token_id left, token_id right) const;

    bool single_digits_ = true;
    std::vector<std::string> texts_; // bytes of each token
    std::unordered_map<std::string, token_id> control_;
    std::unordered_map<std::uint64_t, merge> merges_; // of left << 32 | right
    std::array<token_id, 256> bytes_{};
    token_id end_ = -1;
    token_id end_of_turn_ = -1;
};

// The words of a text in the sense above, one after the other.
[[nodiscard]] std::vector<std::string_view> split_words(std::string_view text, bool single_digits);

} // namespace lm
