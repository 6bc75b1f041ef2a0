// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/prefill/block_bounds.hpp>

#include "core/own_views.hpp"
#include "support/prefill.hpp"
#include "support/special_floats.hpp"

#include <limits>
#include <vector>

using namespace kvtrim;
using namespace support;

namespace {

constexpr float untouched = 31337.0f;

struct bounds_memory {
    std::vector<float> high, low;
    index_t blocks, head_dim;

    bounds_memory(index_t heads, index_t block_count, index_t dim)
        : high(static_cast<std::size_t>(heads * block_count * dim), untouched), low(high),
          blocks(block_count), head_dim(dim) {}
    [[nodiscard]] block_bounds get() { return {high, low, blocks, head_dim}; }
};

// Computes with exactly the workspace that is asked for.
template <class View, class Executor = serial_executor>
status compute(const View& v, index_t rows, index_t per_block, index_t first, bounds_memory& out,
               Executor ex = {}) {
    growing_workspace memory;
    workspace scratch = memory.of_bytes(block_bounds_bytes(ex, extent(v, 0), extent(v, 2)));
    return compute_block_bounds(v, rows, per_block, first, out.get(), scratch, ex);
}

// Whether blocks [first, ...) hold exactly the bounds of the rows, and all others nothing.
template <class View>
bool are_bounds(bounds_memory& got, const View& v, index_t rows, index_t per_block, index_t first) {
    const oracle::tensor all = to_oracle(v);
    bool right = true;
    for (index_t h = 0; h < extent(v, 0); ++h) {
        for (index_t b = 0; b < got.blocks; ++b) {
            const bounds_rows row = got.get().rows(h, b, 1);
            const bool written = b >= first && b * per_block < rows;
            const auto begin = static_cast<std::size_t>(b * per_block);
            const auto end = static_cast<std::size_t>(std::min(rows, (b + 1) * per_block));
            const auto& of_head = all[static_cast<std::size_t>(h)];
            const auto high = written ? oracle::maximum_of(of_head, begin, end) : oracle::row{};
            const auto low = written ? oracle::minimum_of(of_head, begin, end) : oracle::row{};
            for (index_t d = 0; d < got.head_dim; ++d) {
                const auto i = static_cast<std::size_t>(d);
                right = right &&
                        static_cast<double>(row.maximum[d]) == (written ? high[i] : double{untouched}) &&
                        static_cast<double>(row.minimum[d]) == (written ? low[i] : double{untouched});
            }
        }
    }
    return right;
}

template <class View>
void check(const View& v, index_t rows, index_t per_block, index_t first) {
    bounds_memory out(extent(v, 0), block_count(rows, per_block) + 2, extent(v, 2));
    CAPTURE(rows, per_block, first);
    REQUIRE(compute(v, rows, per_block, first, out).ok());
    CHECK(are_bounds(out, v, rows, per_block, first));
}

} // namespace

TEST_CASE("block_count: the last block may be shorter", "[prefill]") {
    CHECK(block_count(0, 4) == 0);
    CHECK(block_count(1, 4) == 1);
    CHECK(block_count(4, 4) == 1);
    CHECK(block_count(5, 4) == 2);
}

TEST_CASE("compute_block_bounds: any view in any order gives the exact maximum and minimum", "[prefill]") {
    support::random r(101);
    for (int n = 0; n < 12; ++n) {
        const layer_data layer = random_prompt({.kv_heads = r.between(1, 3),
                                                .group = 1,
                                                .tokens = r.between(1, 150),
                                                .head_dim = r.between(1, 40)},
                                               r.bits());
        const view keys = layer.keys();
        const index_t rows = r.chance(0.5) ? layer.shape.tokens : r.between(1, layer.shape.tokens);
        const index_t per_block = r.one_of({1, 2, 7, 16, 32, 33, 64, 200});
        const index_t first = r.chance(0.5) ? 0 : r.between(0, block_count(rows, per_block));
        check(keys, rows, per_block, first);
        for (const layout order :
             {layout::token_major, layout::transposed, layout::reversed, layout::gapped}) {
            check(store(keys, order).get(), rows, per_block, first);
            check(store<bf16>(keys, order).get(), rows, per_block, first);
        }
        check(store<f16>(keys, layout::token_major).get(), rows, per_block, first);
        check(generic_view{keys}, rows, per_block, first);
        check(decoding_source(keys), rows, per_block, first);
        check(own::quantised(keys), rows, per_block, first);
        check(own::indexable{{2, rows, 3}}, rows, per_block, first);
    }
}

TEST_CASE("compute_block_bounds: a growing cache pays for its new rows only", "[prefill]") {
    const layer_data layer = random_prompt({.kv_heads = 2, .group = 1, .tokens = 50, .head_dim = 5}, 1);
    bounds_memory grown(2, 7, 5);
    REQUIRE(compute(layer.keys(), 20, 8, 0, grown).ok());
    REQUIRE(compute(layer.keys(), 50, 8, 2, grown).ok()); // block 2 was not whole
    CHECK(are_bounds(grown, layer.keys(), 50, 8, 0));
}

TEST_CASE("compute_block_bounds: NaN counts as absent, and a channel of NaN only has bounds of 0",
          "[prefill]") {
    layer_data layer = random_prompt({.kv_heads = 1, .group = 1, .tokens = 6, .head_dim = 3}, 2);
    layer.key(0, 1)[0] = not_a_number;
    layer.key(0, 2)[1] = infinity;
    layer.key(0, 3)[1] = -infinity;
    for (index_t t = 3; t < 6; ++t) { layer.key(0, t)[2] = not_a_number; }
    bounds_memory out(1, 2, 3);
    REQUIRE(compute(layer.keys(), 6, 3, 0, out).ok());
    CHECK(are_bounds(out, layer.keys(), 6, 3, 0));
    CHECK(out.high[0] == std::max(layer.key(0, 0)[0], layer.key(0, 2)[0]));
    CHECK(out.high[1] == infinity);
    CHECK(out.low[4] == -infinity);
    CHECK(out.high[5] == 0);
    CHECK(out.low[5] == 0);
}

TEST_CASE("compute_block_bounds: bounds hold every element between them", "[prefill]") {
    const layer_data layer = random_prompt({.kv_heads = 2, .group = 1, .tokens = 70, .head_dim = 9}, 3);
    bounds_memory out(2, 9, 9);
    REQUIRE(compute(layer.keys(), 70, 8, 0, out).ok());
    int outside = 0;
    for (index_t h = 0; h < 2; ++h) {
        for (index_t t = 0; t < 70; ++t) {
            const bounds_rows row = out.get().rows(h, t / 8, 1);
            for (index_t d = 0; d < 9; ++d) {
                const float x = layer.keys()(h, t, d);
                outside += x > row.maximum[d] || x < row.minimum[d] ? 1 : 0;
            }
        }
    }
    CHECK(outside == 0);
    CHECK(out.get().rows(1, 3, 2).maximum == out.high.data() + (9 + 3) * 9);
    CHECK(out.get().rows(1, 3, 2).blocks == 2);
}

TEST_CASE("compute_block_bounds: a workspace that is too small writes nothing", "[prefill]") {
    const layer_data layer = random_prompt({.kv_heads = 2, .group = 1, .tokens = 70, .head_dim = 9}, 4);
    serial_executor ex;
    bounds_memory out(2, 9, 9);
    const index_t needed = block_bounds_bytes(ex, 2, 9);
    for (const index_t bytes : {needed - workspace::alignment_bytes - 1, index_t{0}}) {
        alignas(64) std::byte memory[1 << 16];
        REQUIRE(needed < index_t{1} << 16);
        workspace scratch({memory, static_cast<std::size_t>(bytes)});
        const status s = compute_block_bounds(layer.keys(), 70, 8, 0, out.get(), scratch, ex);
        CHECK(s.code() == errc::workspace_too_small);
        CHECK(s.needed() == needed);
    }
    CHECK(std::count(out.high.begin(), out.high.end(), untouched) == 2 * 9 * 9);
    CHECK(std::count(out.low.begin(), out.low.end(), untouched) == 2 * 9 * 9);
}

TEST_CASE("compute_block_bounds: threads do not change it", "[prefill]") {
    const layer_data layer = random_prompt({.kv_heads = 5, .group = 1, .tokens = 70, .head_dim = 9}, 5);
    bounds_memory serial(5, 9, 9), threaded(5, 9, 9);
    const auto source = decoding_source(layer.keys());
    REQUIRE(compute(source, 70, 8, 0, serial).ok());
    REQUIRE(compute(source, 70, 8, 0, threaded, thread_executor{3}).ok());
    CHECK(serial.high == threaded.high);
    CHECK(serial.low == threaded.low);
}

TEST_CASE("compute_block_bounds: bounds or rows of another shape are refused, with nothing written",
          "[prefill][errors]") {
    constexpr index_t most = std::numeric_limits<index_t>::max();
    const layer_data layer = random_prompt({.kv_heads = 2, .group = 1, .tokens = 20, .head_dim = 4}, 6);
    bounds_memory out(2, 3, 4);
    const auto answer = [&](const auto& rows_of_heads, index_t rows, index_t per_block, index_t first_block,
                            const block_bounds& bounds) {
        serial_executor ex;
        std::vector<std::byte> memory(1 << 14);
        workspace scratch(memory);
        const status s =
            compute_block_bounds(rows_of_heads, rows, per_block, first_block, bounds, scratch, ex);
        if (!s.ok()) {
            CHECK(std::count(out.high.begin(), out.high.end(), untouched) == std::ssize(out.high));
            CHECK(std::count(out.low.begin(), out.low.end(), untouched) == std::ssize(out.low));
        }
        return s.code();
    };
    const errc refused = errc::invalid_parameter;
    const auto with = [&](index_t blocks, index_t head_dim) {
        return block_bounds{out.high, out.low, blocks, head_dim};
    };
    const view keys = layer.keys();
    for (const index_t blocks : {index_t{2}, index_t{4}, index_t{-1}, index_t{1} << 61, most}) {
        CHECK(answer(keys, 20, 8, 0, with(blocks, 4)) == refused); // too few, or more than memory
    }
    CHECK(answer(keys, 20, 8, 0, with(3, 5)) == refused);
    CHECK(answer(keys, 20, 8, 0, {out.high, std::span(out.low).first(23), 3, 4}) == refused);
    for (const index_t rows : {index_t{21}, index_t{-1}, most}) {
        CHECK(answer(keys, rows, 8, 0, with(3, 4)) == refused);
    }
    for (const index_t per_block : {index_t{0}, index_t{-8}, index_t{7} - most}) {
        CHECK(answer(keys, 20, per_block, 0, with(3, 4)) == refused);
    }
    CHECK(answer(keys, 20, 8, -1, with(3, 4)) == refused);
    CHECK(answer(view(nullptr, {2, 20, 4}), 20, 8, 0, with(3, 4)) == refused);
    const ragged_cache cut(keys, {20, 19}); // the second head has no row 19
    CHECK(answer(cut.get(), 20, 8, 0, with(3, 4)) == refused);

    CHECK(answer(keys, 20, 8, most, with(3, 4)) == errc::ok); // no block is left
    CHECK(std::count(out.high.begin(), out.high.end(), untouched) == std::ssize(out.high));
    CHECK(answer(keys, 20, most, 0, with(3, 4)) == errc::ok); // one block
    CHECK(answer(cut.get(), 19, 8, 0, with(3, 4)) == errc::ok);
}

TEST_CASE("block_count, block_bounds_bytes: impossible numbers give no blocks, and more bytes than there are",
          "[prefill][errors]") {
    constexpr index_t most = std::numeric_limits<index_t>::max();
    CHECK(block_count(9, 4) == 3);
    CHECK(block_count(most, 2) == index_t{1} << 62);
    CHECK(block_count(most, most) == 1);
    CHECK(block_count(9, 0) == 0);
    CHECK(block_count(9, -1) == 0);
    CHECK(block_count(-9, 4) == 0);
    CHECK(block_bounds_bytes(serial_executor{}, 2, most) > index_t{1} << 60);
    workspace scratch(std::span<std::byte>{});
    const block_bounds none = block_bounds::take(most, most, most, scratch);
    CHECK(none.maximum.empty());
    CHECK(none.minimum.empty());
}
