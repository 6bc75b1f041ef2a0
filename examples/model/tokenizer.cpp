// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#include "tokenizer.hpp"

#include "unicode_ranges.hpp"

#include <algorithm>
#include <queue>
#include <stdexcept>

namespace lm {
namespace {

// ---- Characters ----

struct character {
    std::uint32_t code;
    std::size_t bytes;
};

// The character at the front of a text that is not empty; a byte that begins none stands for itself, as no letter.
character first_character(std::string_view text) {
    const auto byte = [&](std::size_t i) { return static_cast<std::uint8_t>(text[i]); };
    const std::uint8_t lead = byte(0);
    if (lead < 0x80) { return {lead, 1}; }
    const std::size_t bytes = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
    constexpr character broken{0xFFFD, 1};
    if (lead < 0xC2 || lead > 0xF4 || bytes > text.size()) { return broken; }
    std::uint32_t code = lead & (0x7Fu >> bytes);
    for (std::size_t i = 1; i < bytes; ++i) {
        if ((byte(i) & 0xC0u) != 0x80u) { return broken; }
        code = code << 6 | (byte(i) & 0x3Fu);
    }
    constexpr std::uint32_t least[] = {0x80, 0x800, 0x10000};
    const bool is_surrogate = code >= 0xD800 && code <= 0xDFFF;
    if (code < least[bytes - 2] || code > 0x10FFFF || is_surrogate) { return broken; }
    return {code, bytes};
}

enum class kind { space, letter, number, other };

kind kind_of(std::uint32_t code) {
    const auto within = [code](const auto& ranges) {
        const auto* const after = std::upper_bound(std::begin(ranges), std::end(ranges), code,
                                                   [](auto c, const code_range& r) { return c < r.first; });
        return after != std::begin(ranges) && code <= (after - 1)->last;
    };
    if (code < 0x80) {
        if (code == ' ' || (code >= 9 && code <= 13)) { return kind::space; }
        if (code >= '0' && code <= '9') { return kind::number; }
        const std::uint32_t lower = code | 0x20u;
        return lower >= 'a' && lower <= 'z' ? kind::letter : kind::other;
    }
    static constexpr code_range spaces[] = {{0x85, 0x85},     {0xA0, 0xA0},     {0x1680, 0x1680},
                                            {0x2000, 0x200A}, {0x2028, 0x2029}, {0x202F, 0x202F},
                                            {0x205F, 0x205F}, {0x3000, 0x3000}};
    if (within(spaces)) { return kind::space; }
    if (within(letter_ranges)) { return kind::letter; }
    return within(number_ranges) ? kind::number : kind::other;
}

// Bytes of the longest run of characters of a kind at the front.
std::size_t run_of(kind wanted, std::string_view text) {
    std::size_t length = 0;
    while (length < text.size()) {
        const character c = first_character(text.substr(length));
        if (kind_of(c.code) != wanted) { break; }
        length += c.bytes;
    }
    return length;
}

// The bytes of white space at the front that are a word: all but the last character, where something follows it.
std::size_t space_word(std::string_view text) {
    std::size_t length = 0, before_last = 0;
    while (length < text.size()) {
        const character c = first_character(text.substr(length));
        if (kind_of(c.code) != kind::space) { break; }
        before_last = length;
        length += c.bytes;
    }
    return length == text.size() || before_last == 0 ? length : before_last;
}

// Bytes of the word at the front of a text that is not empty.
std::size_t word_length(std::string_view text) {
    for (const std::string_view contraction : {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"}) {
        if (text.starts_with(contraction)) { return contraction.size(); }
    }
    const std::size_t space = text[0] == ' ' && text.size() > 1 ? 1 : 0;
    const kind next = kind_of(first_character(text.substr(space)).code);
    if (next != kind::space) { return space + run_of(next, text.substr(space)); }
    return space_word(text);
}

void append_words(std::string_view text, std::vector<std::string_view>& words) {
    while (!text.empty()) {
        words.push_back(text.substr(0, word_length(text)));
        text.remove_prefix(words.back().size());
    }
}

// ---- Bytes as printable characters ----

// The code point that stands for each byte: itself where it prints, else one from 256 on.
std::array<std::uint32_t, 256> printable_bytes() {
    std::array<std::uint32_t, 256> codes{};
    std::uint32_t next = 256;
    for (std::uint32_t b = 0; b < 256; ++b) {
        const bool prints = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
        codes[b] = prints ? b : next++;
    }
    return codes;
}

// The bytes that a token's text stands for; characters that stand for no byte are kept.
std::string bytes_of(std::string_view text) {
    static const std::unordered_map<std::uint32_t, char> bytes = [] {
        std::unordered_map<std::uint32_t, char> map;
        const auto codes = printable_bytes();
        for (std::size_t b = 0; b < codes.size(); ++b) { map[codes[b]] = static_cast<char>(b); }
        return map;
    }();
    std::string result;
    while (!text.empty()) {
        const character c = first_character(text);
        const auto found = bytes.find(c.code);
        if (found != bytes.end()) {
            result += found->second;
        } else {
            result += text.substr(0, c.bytes);
        }
        text.remove_prefix(c.bytes);
    }
    return result;
}

} // namespace

std::vector<std::string_view> split_words(std::string_view text, bool single_digits) {
    std::vector<std::string_view> words;
    std::size_t begin = 0, at = 0; // of what lies between two digits
    while (single_digits && at < text.size()) {
        const character c = first_character(text.substr(at));
        if (kind_of(c.code) == kind::number) {
            append_words(text.substr(begin, at - begin), words);
            words.push_back(text.substr(at, c.bytes));
            begin = at + c.bytes;
        }
        at += c.bytes;
    }
    append_words(text.substr(begin), words);
    return words;
}

tokenizer::tokenizer(const gguf& file) {
    if (file.text("tokenizer.ggml.model") != "gpt2") {
        file.fail("has a tokenizer of the kind " + std::string(file.text("tokenizer.ggml.model")) +
                  ", not byte-level pairs (gpt2)");
    }
    const std::string_view pre = file.text("tokenizer.ggml.pre", "gpt-2");
    single_digits_ = pre != "gpt-2";
    if (pre != "gpt-2" && pre != "smollm" && pre != "starcoder" && pre != "refact" && pre != "command-r") {
        file.fail("has words split as in " + std::string(pre) + ", which this tokenizer does not do");
    }

    const auto& texts = file.texts("tokenizer.ggml.tokens");
    const std::vector<std::int64_t> none;
    const auto& types =
        file.has("tokenizer.ggml.token_type") ? file.integers("tokenizer.ggml.token_type") : none;
    if (!types.empty() && types.size() != texts.size()) { file.fail("has tokens without a type"); }
    constexpr std::int64_t normal = 1, control = 3;
    for (std::size_t t = 0; t < texts.size(); ++t) {
        const std::int64_t type = types.empty() ? normal : types[t];
        texts_.push_back(type == normal ? bytes_of(texts[t]) : std::string(texts[t]));
        if (type == control) { control_.emplace(texts[t], static_cast<token_id>(t)); }
    }
    const auto token_named = [&](const char* key) {
        return static_cast<token_id>(file.integer(key, -1, std::ssize(texts_) - 1, -1));
    };
    end_ = token_named("tokenizer.ggml.eos_token_id");
    end_of_turn_ = token_named("tokenizer.ggml.eot_token_id");
    if (end_of_turn_ < 0) { end_of_turn_ = this->control("<|im_end|>"); }
    read_merges(file);
}

void tokenizer::read_merges(const gguf& file) {
    const auto& texts = file.texts("tokenizer.ggml.tokens");
    std::unordered_map<std::string_view, token_id> ids;
    for (std::size_t t = 0; t < texts.size(); ++t) { ids.emplace(texts[t], static_cast<token_id>(t)); }
    const auto id_of = [&](std::string_view text) {
        const auto found = ids.find(text);
        return found == ids.end() ? token_id{-1} : found->second;
    };

    const auto unknown = static_cast<token_id>(
        file.integer("tokenizer.ggml.unknown_token_id", -1, std::ssize(texts_) - 1, -1));
    bytes_.fill(unknown);
    for (std::size_t t = 0; t < texts_.size(); ++t) {
        if (texts_[t].size() == 1 && !control_.contains(texts_[t])) {
            bytes_[static_cast<std::uint8_t>(texts_[t][0])] = static_cast<token_id>(t);
        }
    }

    std::int32_t rank = 0;
    for (const std::string_view pair : file.texts("tokenizer.ggml.merges")) {
        const std::size_t gap = pair.find(' ', 1); // neither half is empty
        if (gap == std::string_view::npos) { file.fail("has a merge of one part: " + std::string(pair)); }
        const std::string_view left = pair.substr(0, gap), right = pair.substr(gap + 1);
        const token_id merged = id_of(std::string(left) + std::string(right));
        const token_id a = id_of(left), b = id_of(right);
        if (a < 0 || b < 0 || merged < 0) { file.fail("has a merge of no tokens: " + std::string(pair)); }
        merges_.emplace(static_cast<std::uint64_t>(a) << 32 | static_cast<std::uint32_t>(b),
                        merge{rank++, merged});
    }
}

const tokenizer::merge* tokenizer::find_merge(token_id left, token_id right) const {
    if (left < 0 || right < 0) { return nullptr; }
    const auto found =
        merges_.find(static_cast<std::uint64_t>(left) << 32 | static_cast<std::uint32_t>(right));
    return found == merges_.end() ? nullptr : &found->second;
}

void tokenizer::encode_word(std::string_view word, std::vector<token_id>& to) const {
    // Tokens in a list; a merged one lives on in its left half.
    struct symbol {
        token_id token;
        std::int32_t before, after;
    };
    struct candidate {
        std::int32_t rank, left, right;
        token_id left_token, right_token; // a candidate whose halves have changed is no longer one
        bool operator<(const candidate& other) const {
            return rank != other.rank ? rank > other.rank : left > other.left;
        }
    };
    std::vector<symbol> symbols;
    for (const char byte : word) {
        const auto i = static_cast<std::int32_t>(symbols.size());
        symbols.push_back({bytes_[static_cast<std::uint8_t>(byte)], i - 1, i + 1});
    }
    symbols.back().after = -1;
    const auto at = [&](std::int32_t i) -> symbol& { return symbols[static_cast<std::size_t>(i)]; };
    std::priority_queue<candidate> pairs;
    const auto consider = [&](std::int32_t left, std::int32_t right) {
        if (left < 0 || right < 0) { return; }
        if (const merge* const m = find_merge(at(left).token, at(right).token)) {
            pairs.push({m->rank, left, right, at(left).token, at(right).token});
        }
    };
    for (std::int32_t i = 1; i < std::ssize(symbols); ++i) { consider(i - 1, i); }

    constexpr token_id merged_away = -2;
    while (!pairs.empty()) {
        const candidate c = pairs.top();
        pairs.pop();
        symbol &left = at(c.left), &right = at(c.right);
        if (left.token != c.left_token || right.token != c.right_token || left.after != c.right) { continue; }
        left.token = find_merge(left.token, right.token)->merged;
        left.after = right.after;
        right.token = merged_away;
        if (left.after >= 0) { at(left.after).before = c.left; }
        consider(left.before, c.left);
        consider(c.left, left.after);
    }
    for (const symbol& s : symbols) {
        if (s.token >= 0) { to.push_back(s.token); }
    }
}

std::vector<token_id> tokenizer::encode(std::string_view text) const {
    std::vector<token_id> tokens;
    for (const std::string_view word : split_words(text, single_digits_)) { encode_word(word, tokens); }
    return tokens;
}

token_id tokenizer::control(const std::string& name) const {
    const auto found = control_.find(name);
    return found == control_.end() ? -1 : found->second;
}

std::string tokenizer::decode(std::span<const token_id> tokens) const {
    std::string text;
    for (const token_id token : tokens) { text += texts_.at(static_cast<std::size_t>(token)); }
    return text;
}

} // namespace lm
