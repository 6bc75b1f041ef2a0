// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#include "samples.hpp"

#include <algorithm>
#include <cstdint>
#include <map>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

namespace needle {
namespace {

// ---- Vocabulary ----

constexpr token_id bos = 1;
constexpr token_id key_mark = 2; // KEY a b v1 v2 v3
constexpr token_id ref_mark = 3; // KEY a b REF a' b'
constexpr token_id ask_mark = 4;
constexpr token_id freq_mark = 5;
constexpr token_id first_mark = 6;
constexpr token_id last_mark = 7;
constexpr token_id say_mark = 8; // SAY v

constexpr token_id first_half = 16;
constexpr token_id second_half = 48;
constexpr token_id half_symbols = 32; // of each half
constexpr token_id value_symbol = 80;
constexpr token_id value_symbols = 32;
constexpr token_id word = 112;
constexpr token_id words = 16;
constexpr token_id filler = 128;
constexpr token_id filler_symbols = 64;

using piece = std::vector<token_id>; // neighbours in the haystack

class split_mix64 {
  public:
    explicit split_mix64(std::uint64_t state) : state_(state) {}

    std::uint64_t next() {
        state_ += 0x9E3779B97F4A7C15U;
        std::uint64_t z = state_;
        z = (z ^ (z >> 30U)) * 0xBF58476D1CE4E5B9U;
        z = (z ^ (z >> 27U)) * 0x94D049BB133111EBU;
        return z ^ (z >> 31U);
    }

    // Uniform in [0, bound). Requires bound < 2^32.
    template <class Integer>
    Integer below(Integer bound) {
        return static_cast<Integer>(((next() >> 32U) * static_cast<std::uint64_t>(bound)) >> 32U);
    }

  private:
    std::uint64_t state_;
};

// The first `count` entries of a shuffle of 0 .. symbols - 1.
std::vector<token_id> draw_distinct(split_mix64& random, token_id symbols, index_t count) {
    std::vector<token_id> ids(static_cast<std::size_t>(symbols));
    std::iota(ids.begin(), ids.end(), 0);
    for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) {
        std::swap(ids[i], ids[i + random.below(ids.size() - i)]);
    }
    ids.resize(static_cast<std::size_t>(count));
    return ids;
}

piece draw_value(split_mix64& random) {
    piece value(3);
    for (token_id& symbol : value) { symbol = value_symbol + random.below(value_symbols); }
    return value;
}

piece join(const piece& a, const piece& b, const piece& c) {
    piece all = a;
    all.insert(all.end(), b.begin(), b.end());
    all.insert(all.end(), c.begin(), c.end());
    return all;
}

index_t needles_of(task_kind task, index_t haystack_tokens) {
    switch (task) {
    case task_kind::single:
        return 1;
    case task_kind::freqword:
        return 4;
    case task_kind::dense:
        return haystack_tokens / 12;
    default:
        return haystack_tokens / 32;
    }
}

index_t tokens_of_pieces(const std::vector<piece>& pieces) {
    std::size_t tokens = 0;
    for (const piece& p : pieces) { tokens += p.size(); }
    return static_cast<index_t>(tokens);
}

// Markov-like symbols with local copies.
std::vector<token_id> draw_filler(split_mix64& random, index_t count) {
    std::vector<token_id> symbols(static_cast<std::size_t>(count));
    for (std::size_t t = 0; t < symbols.size(); ++t) {
        if (t < 4) {
            symbols[t] = random.below(filler_symbols);
            continue;
        }
        const int kind = random.below(8);
        const token_id jump = kind == 4 ? 1 : kind == 5 ? 2 : 0;
        symbols[t] = kind >= 6 ? symbols[t - 4] : (5 * symbols[t - 1] + 1 + 7 * jump) % filler_symbols;
    }
    for (token_id& symbol : symbols) { symbol += filler; }
    return symbols;
}

// Puts the pieces, in `order`, at the cuts of the filler. The value that a mention (SAY) names is
// drawn here, since it depends on the needles placed before it.
std::vector<token_id> assemble(split_mix64& random, const std::vector<piece>& pieces,
                               const std::vector<std::size_t>& order, const std::vector<index_t>& cuts,
                               const std::vector<token_id>& filler_tokens) {
    std::vector<token_id> haystack{bos};
    std::vector<token_id> seen; // first value symbols of the value needles so far
    auto from = filler_tokens.begin();
    for (std::size_t k = 0; k < order.size(); ++k) {
        const auto to = filler_tokens.begin() + cuts[k];
        haystack.insert(haystack.end(), from, to);
        from = to;

        piece p = pieces[order[k]];
        if (p[0] == say_mark) {
            const bool of_needle = random.below(4) < 3 && !seen.empty();
            p[1] = of_needle ? seen[random.below(seen.size())] : value_symbol + random.below(value_symbols);
        } else if (p[0] == key_mark && p[3] != ref_mark) {
            seen.push_back(p[3]);
        }
        haystack.insert(haystack.end(), p.begin(), p.end());
    }
    haystack.insert(haystack.end(), from, filler_tokens.end());
    return haystack;
}

} // namespace

std::string_view name_of(task_kind task) {
    return task_names[static_cast<std::size_t>(task)];
}

task_kind parse_task(std::string_view name) {
    const auto found = std::find(task_names.begin(), task_names.end(), name);
    if (found == task_names.end()) { throw std::invalid_argument("unknown task: " + std::string(name)); }
    return static_cast<task_kind>(found - task_names.begin());
}

// The draws happen in a fixed order: it is part of what a sample is.
sample make_sample(task_kind task, index_t haystack_tokens, index_t index) {
    if (haystack_tokens < min_haystack_tokens || haystack_tokens > max_haystack_tokens) {
        throw std::invalid_argument("haystacks have " + std::to_string(min_haystack_tokens) + " to " +
                                    std::to_string(max_haystack_tokens) + " tokens");
    }
    if (index < 0 || index >= (index_t{1} << 24)) {
        throw std::invalid_argument("sample indices lie in [0, 2^24)");
    }
    split_mix64 random(static_cast<std::uint64_t>(task) << 48U |
                       static_cast<std::uint64_t>(haystack_tokens) << 24U |
                       static_cast<std::uint64_t>(index));

    // Needles.
    const index_t needles = needles_of(task, haystack_tokens);
    std::vector<piece> keys;
    for (const token_id id : draw_distinct(random, half_symbols * half_symbols, needles)) {
        keys.push_back({first_half + id / half_symbols, second_half + id % half_symbols});
    }
    std::vector<piece> values;
    std::vector<piece> pieces;
    for (const piece& key : keys) {
        values.push_back(draw_value(random));
        pieces.push_back(join({key_mark}, key, values.back()));
    }

    // What the task adds to them.
    const std::size_t second_definition = pieces.size();
    piece second_value;
    token_id winner = 0;
    if (task == task_kind::multivalue) {
        second_value = draw_value(random);
        pieces.push_back(join({key_mark}, keys[0], second_value));
    } else if (task == task_kind::chain) {
        for (const std::size_t i : {0U, 1U, 3U, 4U}) { // 0 -> 1 -> 2, distractor 3 -> 4 -> 5
            pieces[i] = join({key_mark}, keys[i], join({ref_mark}, keys[i + 1], {}));
        }
    } else if (task == task_kind::freqword) {
        const std::vector<token_id> ids = draw_distinct(random, words, 4);
        const index_t base = haystack_tokens / 50;
        const index_t counts[] = {2 * base, base, base / 2, base / 2};
        for (std::size_t k = 0; k < 4; ++k) {
            pieces.insert(pieces.end(), static_cast<std::size_t>(counts[k]), {word + ids[k]});
        }
        winner = word + ids[0];
    }
    const index_t mentions = (haystack_tokens - tokens_of_pieces(pieces)) / 24;
    pieces.insert(pieces.end(), static_cast<std::size_t>(mentions), {say_mark, 0});

    // Where everything goes.
    std::vector<std::size_t> order(pieces.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    for (std::size_t i = order.size() - 1; i > 0; --i) { std::swap(order[i], order[random.below(i + 1)]); }
    const index_t filler_tokens = haystack_tokens - 1 - tokens_of_pieces(pieces);
    const std::vector<token_id> symbols = draw_filler(random, filler_tokens);
    std::vector<index_t> cuts(pieces.size());
    for (index_t& cut : cuts) { cut = random.below(filler_tokens + 1); }
    std::sort(cuts.begin(), cuts.end());

    sample made;
    made.haystack = assemble(random, pieces, order, cuts, symbols);
    switch (task) {
    case task_kind::multiquery:
        for (std::size_t i = 0; i < 4; ++i) {
            made.turns.push_back({join({ask_mark}, keys[i], {}), values[i]});
        }
        break;
    case task_kind::multivalue: {
        const auto place = [&](std::size_t i) { return std::find(order.begin(), order.end(), i); };
        const bool in_order = place(0) < place(second_definition);
        made.turns = {{join({first_mark}, keys[0], {}), in_order ? values[0] : second_value},
                      {join({last_mark}, keys[0], {}), in_order ? second_value : values[0]}};
        break;
    }
    case task_kind::chain:
        made.turns = {
            {join({ask_mark}, keys[0], {}), join(join({ref_mark}, keys[1], {ref_mark}), keys[2], values[2])}};
        break;
    case task_kind::freqword:
        made.turns = {{{freq_mark}, {winner}}};
        break;
    default:
        made.turns = {{join({ask_mark}, keys[0], {}), values[0]}};
        break;
    }
    return made;
}

std::vector<turn> ask_every_needle(const sample& from, index_t answer_tokens, std::uint64_t seed) {
    std::map<piece, std::vector<piece>> definitions; // of each key; KEY stands nowhere but before one
    for (auto at = from.haystack.begin(); at != from.haystack.end(); ++at) {
        if (*at == key_mark) { definitions[{at[1], at[2]}].push_back({at + 3, at + 6}); }
    }
    std::vector<turn> questions;
    for (const auto& [key, values] : definitions) {
        const bool asked = values.size() == 1 && values[0][0] != ref_mark;
        if (asked) { questions.push_back({join({ask_mark}, key, {}), values[0]}); }
    }
    if (questions.empty()) { throw std::invalid_argument("the haystack has no needle to ask for"); }

    split_mix64 random(seed);
    std::vector<turn> stream;
    for (index_t answered = 0; answered < answer_tokens;) {
        for (std::size_t i = questions.size() - 1; i > 0; --i) {
            std::swap(questions[i], questions[random.below(i + 1)]);
        }
        for (std::size_t i = 0; i < questions.size() && answered < answer_tokens; ++i) {
            stream.push_back(questions[i]);
            answered += std::ssize(questions[i].answer);
        }
    }
    return stream;
}

flat_sample flatten(const sample& from) {
    flat_sample flat{.tokens = from.haystack, .answer_positions = {}};
    for (const turn& t : from.turns) {
        flat.tokens.insert(flat.tokens.end(), t.question.begin(), t.question.end());
        for (const token_id answer : t.answer) {
            flat.answer_positions.push_back(static_cast<index_t>(flat.tokens.size()));
            flat.tokens.push_back(answer);
        }
    }
    return flat;
}

} // namespace needle
