// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/prefill/pruning_options.hpp>

#include "support/prefill.hpp"

#include <limits>
#include <string>

using namespace kvtrim;
using namespace support;

namespace {

constexpr index_t most = std::numeric_limits<index_t>::max();

struct request_shape {
    index_t q_heads = 4, queries = 40, kv_heads = 2, cached = 40;
};

status answer(const pruning_options& o, const prefill_chunk& chunk = {}, const request_shape& s = {}) {
    return valid_pruning(o, chunk, s.q_heads, s.queries, s.kv_heads, s.cached);
}

// The defaults of small_options with one field changed.
template <class Field>
pruning_options with(Field pruning_options::*field, Field value) {
    pruning_options o = small_options;
    o.*field = value;
    return o;
}

segment_range pruned(const pruning_options& o, index_t tokens, const prefill_chunk& chunk = {}) {
    return pruned_segments(o, chunk, grid_of(o, chunk, tokens));
}

bool is_range(segment_range r, index_t begin, index_t end) {
    return r.begin == begin && r.end == end;
}

} // namespace

TEST_CASE("pruning_options: the authors' defaults, and one sink and local block", "[prefill]") {
    const pruning_options o;
    CHECK(o.segment_tokens == 512);
    CHECK(o.block_tokens == 32);
    CHECK(o.budget_blocks() == 64);
    CHECK(o.dense_below_tokens == 4096);
    CHECK(o.dense_layers == 1);
    CHECK(o.dense_last_segment);
    CHECK(o.sink_blocks == 1);
    CHECK(o.local_blocks == 1);
    CHECK(with(&pruning_options::budget_tokens, index_t{15}).budget_blocks() == 3); // rounded down
}

TEST_CASE("valid_pruning: what can be served is", "[prefill]") {
    CHECK(answer(small_options).ok());
    CHECK(answer({}).ok());
    CHECK(answer(small_options, {}, {.queries = 0, .cached = 0}).ok());
    CHECK(answer(small_options, {}, {.cached = 1000}).ok());
    CHECK(answer(small_options, {.first_token = 24}, {.queries = 16, .cached = 40}).ok());
    CHECK(answer(with(&pruning_options::budget_tokens, most)).ok());
    CHECK(answer(with(&pruning_options::dense_layers, most)).ok());
    CHECK(answer(with(&pruning_options::dense_below_tokens, most)).ok());
    CHECK(answer(small_options, {.layer = most}).ok());
}

TEST_CASE("valid_pruning: sizes and counts that make no sense are invalid parameters", "[prefill]") {
    for (auto field : {&pruning_options::segment_tokens, &pruning_options::block_tokens}) {
        CHECK(answer(with(field, index_t{0})).code() == errc::invalid_parameter);
        CHECK(answer(with(field, index_t{-4})).code() == errc::invalid_parameter);
    }
    CHECK(answer(with(&pruning_options::block_tokens, index_t{5})).code() == errc::invalid_parameter);
    CHECK(answer(with(&pruning_options::block_tokens, index_t{24})).code() == errc::invalid_parameter);
    for (auto field : {&pruning_options::dense_below_tokens, &pruning_options::dense_layers,
                       &pruning_options::sink_blocks, &pruning_options::local_blocks}) {
        CHECK(answer(with(field, index_t{-1})).code() == errc::invalid_parameter);
    }
    CHECK(answer(small_options, {.layer = -1}).code() == errc::invalid_parameter);
    for (const index_t wrong : {index_t{-1}, -most - 1}) {
        CHECK(answer(small_options, {}, {.queries = wrong}).code() == errc::invalid_parameter);
        CHECK(answer(small_options, {}, {.cached = wrong}).code() == errc::invalid_parameter);
        CHECK(answer(small_options, {}, {.q_heads = wrong}).code() == errc::heads_not_divisible);
        CHECK(answer(small_options, {}, {.kv_heads = wrong}).code() == errc::heads_not_divisible);
    }
}

TEST_CASE(
    "pruning_options: blocks without tokens are no budget, and a grid that does not divide prunes nothing",
    "[prefill]") {
    CHECK(with(&pruning_options::block_tokens, index_t{0}).budget_blocks() == 0);
    CHECK(with(&pruning_options::block_tokens, index_t{-4}).budget_blocks() == 0);
    for (const index_t block_tokens : {0, -4, 5}) {
        CHECK(is_range(pruned(with(&pruning_options::block_tokens, block_tokens), 60), 0, 0));
    }
    CHECK(is_range(pruned(small_options, most, {.first_token = most}), 0, 0));
}

TEST_CASE("valid_pruning: a chunk must begin at a segment, and its keys must be cached", "[prefill]") {
    CHECK(answer(small_options, {.first_token = 13}, {.queries = 12, .cached = 40}).code() ==
          errc::invalid_parameter);
    CHECK(answer(small_options, {.first_token = -12}).code() == errc::invalid_parameter);
    const status s = answer(small_options, {.first_token = 24}, {.queries = 17, .cached = 40});
    CHECK(s.code() == errc::invalid_parameter);
    CHECK(s.needed() == 41); // rows of the cache
    CHECK(answer(small_options, {.first_token = most}).code() == errc::invalid_parameter);
}

TEST_CASE("valid_pruning: a budget below one block, and one below sink and local blocks", "[prefill]") {
    for (const index_t tokens : {index_t{3}, index_t{0}, index_t{-100}}) {
        const status s = answer(with(&pruning_options::budget_tokens, tokens));
        CHECK(s.code() == errc::budget_zero);
        CHECK(s.needed() == 4);
    }
    pruning_options o = small_options;
    o.sink_blocks = 2;
    o.local_blocks = 1;
    CHECK(answer(o).ok());
    o.local_blocks = 2;
    CHECK(answer(o).code() == errc::budget_below_protection);
    CHECK(answer(o).needed() == 16);
    o.sink_blocks = most;
    o.local_blocks = most;
    CHECK(answer(o).code() == errc::budget_below_protection);
    CHECK(answer(o).needed() == most); // as much as there is
}

TEST_CASE("valid_pruning: query heads must be a positive multiple of KV heads", "[prefill]") {
    CHECK(answer(small_options, {}, {.q_heads = 2}).ok());
    for (const index_t q_heads : {0, 1, 3}) {
        CHECK(answer(small_options, {}, {.q_heads = q_heads}).code() == errc::heads_not_divisible);
    }
    CHECK(answer(small_options, {}, {.kv_heads = 0}).code() == errc::heads_not_divisible);
}

TEST_CASE("valid_pruning: more tokens or blocks than 32 bits count are an overflow", "[prefill]") {
    constexpr index_t limit = std::numeric_limits<std::int32_t>::max();
    pruning_options o; // segment 512, block 32
    const auto code_of = [&](index_t tokens, index_t kv_heads = 1) {
        return answer(o, {}, {.q_heads = kv_heads, .queries = tokens, .kv_heads = kv_heads, .cached = tokens})
            .code();
    };
    CHECK(code_of(131072, 8) == errc::ok);
    CHECK(code_of(limit) == errc::index_overflow); // of blocks
    CHECK(code_of(limit + 1) == errc::index_overflow);
    CHECK(code_of(most) == errc::index_overflow);
    CHECK(code_of(index_t{1} << 22, 1) == errc::ok);
    CHECK(code_of(index_t{1} << 22, 8) == errc::index_overflow); // too many heads
    CHECK(code_of(1024, most / 512) == errc::index_overflow);
    o.segment_tokens = o.block_tokens = 1;
    CHECK(code_of(limit, 64) == errc::index_overflow);
    o.segment_tokens = o.block_tokens = most; // one segment
    o.budget_tokens = most;
    o.sink_blocks = o.local_blocks = 0;
    CHECK(code_of(1000) == errc::ok);
}

TEST_CASE("pruned_segments: only those with more blocks than the budget, above the threshold", "[prefill]") {
    // Segments begin at 0, 12, 24, ...; allowed blocks 0, 3, 6, ...; budget 3.
    CHECK(is_range(pruned(small_options, 60), 2, 5));
    CHECK(is_range(pruned(with(&pruning_options::budget_tokens, index_t{24}), 60), 3, 5));
    CHECK(is_range(pruned(with(&pruning_options::budget_tokens, index_t{23}), 60), 2, 5));
    CHECK(is_range(pruned(with(&pruning_options::dense_below_tokens, index_t{36}), 60), 3, 5));
    CHECK(is_range(pruned(with(&pruning_options::dense_below_tokens, index_t{37}), 60), 4, 5));
    CHECK(is_range(pruned(with(&pruning_options::dense_below_tokens, index_t{1000}), 60), 5, 5));
    CHECK(is_range(pruned(with(&pruning_options::budget_tokens, most), 60), 5, 5));
}

TEST_CASE("pruned_segments: the last segment of the prompt is dense, whole or not, and no other chunk's",
          "[prefill]") {
    const pruning_options o = with(&pruning_options::dense_last_segment, true);
    CHECK(is_range(pruned(o, 60), 2, 4));
    CHECK(is_range(pruned(o, 61), 2, 5));
    CHECK(is_range(pruned(o, 59), 2, 4));
    CHECK(is_range(pruned(o, 60, {.ends_prompt = false}), 2, 5));
    CHECK(is_range(pruned(o, 24, {.first_token = 36}), 0, 1));
    CHECK(is_range(pruned(o, 24, {.first_token = 36, .ends_prompt = false}), 0, 2));
    CHECK(is_range(pruned(o, 12), 0, 0));
    CHECK(is_range(pruned(o, 0), 0, 0));
    CHECK(is_range(pruned(o, 0, {.first_token = 36}), 0, 0));
}

TEST_CASE("pruned_segments: the first layers are dense", "[prefill]") {
    const pruning_options o = with(&pruning_options::dense_layers, index_t{2});
    for (const index_t layer : {0, 1}) {
        const segment_range r = pruned(o, 60, {.layer = layer});
        CHECK(r.begin == r.end);
    }
    CHECK(is_range(pruned(o, 60, {.layer = 2}), 2, 5));
}
