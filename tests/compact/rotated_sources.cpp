// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// rerotate_keys on caches that are not plain memory. Each is compared with the floats that it decoded to before, rotated
// as floats (which tests/compact/rerotate_keys.cpp checks against the formula): what is left is the error of one
// encoding.

#include <kvtrim/compact/rerotate_keys.hpp>

#include <kvtrim/cache/filled.hpp>
#include <kvtrim/cache/ggml_rows.hpp>
#include <kvtrim/cache/indexed_rows.hpp>
#include <kvtrim/cache/paged_rows.hpp>
#include <kvtrim/cache/row_range.hpp>
#include <kvtrim/cache/scaled_rows.hpp>
#include <kvtrim/core/fp8.hpp>

#include "compact/random_cache.hpp"

#include <cmath>

using namespace kvtrim;
using namespace support;

namespace {

constexpr index_t heads = 2, tokens = 50;

struct turn {
    std::vector<float> table;
    rope_pairing pairing = rope_pairing::half_split;
    [[nodiscard]] rope get() const { return {.inverse_frequencies = table, .pairing = pairing}; }

    turn(index_t rotary_dim, rope_pairing how) : pairing(how) {
        for (index_t i = 0; i < rotary_dim / 2; ++i) {
            table.push_back(std::pow(10000.0f, -2 * static_cast<float>(i) / static_cast<float>(rotary_dim)));
        }
    }
};

template <class View>
std::vector<float> floats_of(const View& view, const std::vector<index_t>& lengths) {
    const index_t dim = extent(view, 2);
    std::vector<float> all(static_cast<std::size_t>(heads * tokens * dim), 0.0f);
    for (index_t g = 0; g < heads; ++g) {
        load_rows(view, g, 0, lengths[static_cast<std::size_t>(g)], all.data() + g * tokens * dim);
    }
    return all;
}

// Fills a cache with a model's keys; some channels are larger than others, as keys' are.
template <class View>
void fill(const View& view, support::random& r, const std::vector<index_t>& lengths) {
    const index_t dim = extent(view, 2);
    std::vector<float> row(static_cast<std::size_t>(dim));
    for (index_t g = 0; g < heads; ++g) {
        for (index_t t = 0; t < lengths[static_cast<std::size_t>(g)]; ++t) {
            for (index_t d = 0; d < dim; ++d) {
                row[static_cast<std::size_t>(d)] = static_cast<float>(r.normal() * (d % 7 == 3 ? 5 : 1));
            }
            store_rows(view, g, t, 1, row.data());
        }
    }
}

// allowed(head, row, channel, right value): the error of one encoding. Rows before `still` keep their positions.
template <class View, class Allowed>
void check_rotation(const View& view, index_t rotary_dim, Allowed&& allowed,
                    const std::vector<index_t>& lengths, index_t channels_touched) {
    support::random r(static_cast<std::uint64_t>(rotary_dim) + 7);
    const index_t dim = extent(view, 2), still = 5;
    for (const rope_pairing pairing : {rope_pairing::half_split, rope_pairing::interleaved}) {
        const turn by(rotary_dim, pairing);
        fill(view, r, lengths);
        const std::vector<float> before = floats_of(view, lengths);
        std::vector<float> right = before;
        std::vector<std::int32_t> offsets{0}, from;
        for (const index_t length : lengths) {
            for (index_t i = 0; i < length; ++i) {
                from.push_back(
                    static_cast<std::int32_t>(i < still || i % 11 == 10 ? i : i + r.between(1, 3000)));
            }
            offsets.push_back(static_cast<std::int32_t>(from.size()));
        }
        const row_positions positions{offsets, from};
        growing_workspace memory;
        const strided<float, 3> floats(right.data(), {heads, tokens, dim});
        workspace scratch = memory.of_bytes(rerotate_keys_bytes(floats, by.get()));
        REQUIRE(rerotate_keys(floats, by.get(), positions, scratch).ok());
        growing_workspace own_memory;
        workspace own = own_memory.of_bytes(rerotate_keys_bytes(view, by.get()));
        REQUIRE(rerotate_keys(view, by.get(), positions, own).ok());
        const std::vector<float> after = floats_of(view, lengths);
        double worst = 0;
        bool moved = false;
        for (index_t g = 0; g < heads; ++g) {
            for (index_t i = 0; i < lengths[static_cast<std::size_t>(g)]; ++i) {
                const bool stays =
                    positions.row(g)[static_cast<std::size_t>(i)] == static_cast<std::int32_t>(i);
                for (index_t d = 0; d < dim; ++d) {
                    const auto at = static_cast<std::size_t>((g * tokens + i) * dim + d);
                    if (stays || d >= channels_touched) {
                        REQUIRE(after[at] == before[at]);
                        continue;
                    }
                    moved = moved || after[at] != before[at];
                    const double error =
                        std::abs(static_cast<double>(after[at]) - static_cast<double>(right[at]));
                    if (error > 0) {
                        worst = std::max(worst, error / static_cast<double>(allowed(g, i, d, right[at])));
                    }
                }
            }
        }
        CHECK(worst <= 1);
        CHECK(moved);
    }
}

template <class View, class Allowed>
void check_rotation(const View& view, index_t rotary_dim, Allowed&& allowed) {
    check_rotation(view, rotary_dim, allowed, std::vector<index_t>(heads, tokens), rotary_dim);
}

template <class T>
auto half_ulp() {
    return [](index_t, index_t, index_t, float right) {
        const float relative = std::is_same_v<T, float> ? 1e-6f
                               : std::is_same_v<T, f16> ? 1.0f / 2048
                                                        : 1.0f / 256;
        return std::abs(right) * relative * 1.001f + 1e-6f;
    };
}

constexpr float half_step = 0.5001f;

template <class Block>
void check_ggml(bool token_major) {
    for (const index_t rotary_dim : {64, 40, 32, 128}) {
        constexpr index_t dim = 128, blocks = dim / 32;
        std::vector<Block> data(static_cast<std::size_t>(heads * tokens * blocks));
        constexpr index_t row = blocks * static_cast<index_t>(sizeof(Block));
        const auto strides = token_major ? std::array<index_t, 2>{row, heads * row}
                                         : std::array<index_t, 2>{tokens * row, row};
        const ggml_rows<Block> rows(data.data(), {heads, tokens, dim}, strides);
        check_rotation(
            rows, rotary_dim,
            [&](index_t g, index_t i, index_t d, float) {
                return half_step * std::abs(to_float(rows.row(g, i)[d / 32].scale));
            },
            std::vector<index_t>(heads, tokens), (rotary_dim + 31) / 32 * 32);
    }
}

template <class T>
void check_paged(index_t rotary_dim) {
    constexpr index_t dim = 48;
    support::random r(5);
    for (const bool nhd : {true, false}) {
        const page_layout layout = nhd ? nhd_pages(16, heads, dim, 9) : hnd_pages(16, heads, dim, 9);
        std::vector<T> pool = random_elements<T>(r, 9 * layout.page_stride);
        const std::vector<std::int32_t> indptr{0, 4}, indices{7, 2, 8, 0}, last{2}; // 50 tokens
        const auto untouched = pool;
        check_rotation(paged_rows(pool.data(), layout, page_table{indptr, indices, last}, 0, heads, dim),
                       rotary_dim, half_ulp<T>());
        for (const index_t page : {1, 3, 4, 5, 6}) { // of others
            const auto begin = static_cast<std::size_t>(page * layout.page_stride),
                       size = static_cast<std::size_t>(layout.page_stride);
            CHECK((bytes_of(std::vector<T>(pool.begin() + static_cast<index_t>(begin),
                                           pool.begin() + static_cast<index_t>(begin + size))) ==
                   bytes_of(std::vector<T>(untouched.begin() + static_cast<index_t>(begin),
                                           untouched.begin() + static_cast<index_t>(begin + size)))));
        }
    }
    // Heads with rows and lengths of their own.
    const page_layout layout = nhd_pages(16, 1, dim, 9);
    std::vector<T> pool(static_cast<std::size_t>(9 * layout.page_stride));
    const std::vector<std::int32_t> indptr{0, 4, 7}, indices{7, 2, 8, 0, 1, 5, 3}, last{2, 9};
    check_rotation(paged_head_rows(pool.data(), layout, page_table{indptr, indices, last}, 0, heads, dim),
                   rotary_dim, half_ulp<T>(), {50, 41}, rotary_dim);
}

} // namespace

TEST_CASE("rerotate_keys: q8_0 and q4_0 rows are off by half a step of their new scales at most, and blocks "
          "without "
          "rotary channels keep their bits",
          "[compact][sources]") {
    for (const bool token_major : {true, false}) {
        check_ggml<block_q8_0>(token_major);
        check_ggml<block_q4_0>(token_major);
    }
}

TEST_CASE("rerotate_keys: paged rows, of pages for all heads or for one, are rotated within one rounding",
          "[compact][sources]") {
    for (const index_t rotary_dim : {48, 20}) {
        check_paged<float>(rotary_dim);
        check_paged<f16>(rotary_dim);
        check_paged<bf16>(rotary_dim);
    }
}

TEST_CASE("rerotate_keys: rows behind indices, ranges and fill levels are rotated within one rounding",
          "[compact][sources]") {
    constexpr index_t dim = 32, slots = 80;
    support::random r(6);
    std::vector<bf16> pool = random_elements<bf16>(r, heads * slots * dim);
    std::vector<std::int32_t> indices;
    for (std::int32_t i = 0; i < tokens; ++i) { indices.push_back((i * 37 + 11) % slots); }
    const strided<bf16, 3> token_major(pool.data(), {heads, slots, dim}, {dim, heads * dim, 1});
    check_rotation(indexed_rows(token_major, indices), 32, half_ulp<bf16>());
    check_rotation(indexed_rows(token_major, indices), 12, half_ulp<bf16>());
    check_rotation(row_range(token_major, 30, tokens), 12, half_ulp<bf16>());
    const std::vector<index_t> lengths{50, 33};
    check_rotation(filled(token_major, lengths), 12, half_ulp<bf16>(), lengths, 12);
    std::vector<block_q8_0> blocks(static_cast<std::size_t>(heads * slots));
    const ggml_rows<block_q8_0> cells(blocks.data(), {heads, slots, dim}, {34, heads * 34});
    check_rotation(
        indexed_rows(cells, indices), 16,
        [&](index_t g, index_t i, index_t, float) {
            return half_step * to_float(cells.row(g, indices[static_cast<std::size_t>(i)])->scale);
        },
        std::vector<index_t>(heads, tokens), 32);
}

TEST_CASE(
    "rerotate_keys: int8 and fp8 rows with scales of their own get new ones, and are off by half a step",
    "[compact][sources]") {
    constexpr index_t dim = 40;
    std::vector<std::int8_t> codes(heads * tokens * dim);
    std::vector<float> scales(heads * tokens), zeros(heads * tokens);
    for (const bool with_zeros : {false, true}) {
        const scaled_rows<std::int8_t, float> rows(
            codes.data(), {heads, tokens, dim}, {tokens * dim, dim},
            {scales.data(), {tokens, 1, 0}, with_zeros ? zeros.data() : nullptr});
        for (const index_t rotary_dim : {40, 12}) { // one scale for the row: all of it is encoded anew
            check_rotation(
                rows, rotary_dim,
                [&](index_t g, index_t i, index_t, float) {
                    return 1.001f * half_step * scales[static_cast<std::size_t>(g * tokens + i)];
                },
                std::vector<index_t>(heads, tokens), dim);
        }
    }
    std::vector<f8_e4m3> small(heads * tokens * dim);
    const scaled_rows<f8_e4m3, float> rows(small.data(), {heads, tokens, dim}, {tokens * dim, dim},
                                           {scales.data(), {tokens, 1, 0}});
    check_rotation(rows, 40, [&](index_t g, index_t i, index_t, float right) {
        return std::max(std::abs(right) / 16, scales[static_cast<std::size_t>(g * tokens + i)] / 1024) *
               1.001f;
    });
}

TEST_CASE(
    "rerotate_keys: codes by scales that others share are rounded anew, and only rotary channels change",
    "[compact][sources]") {
    constexpr index_t dim = 40;
    std::vector<std::int8_t> codes(heads * tokens * dim);
    const std::vector<float> scales(heads * dim, 0.25f); // wide enough that nothing saturates
    const std::vector<float> zeros(heads * dim, -3.0f);
    for (const auto& strides : {std::array<index_t, 3>{dim, 0, 1}, std::array<index_t, 3>{1, 0, 0},
                                std::array<index_t, 3>{0, 0, 0}}) {
        const scaled_rows<std::int8_t> rows(codes.data(), {heads, tokens, dim}, {dim, heads * dim},
                                            {scales.data(), strides, zeros.data()});
        for (const index_t rotary_dim : {40, 12}) {
            check_rotation(rows, rotary_dim,
                           [&](index_t, index_t, index_t, float) { return half_step * 0.25f; });
        }
    }
}

namespace {

// Rows of two heads in one run of blocks, of which a head cannot be written alone.
struct joined_heads {
    std::vector<float>* data;
    [[nodiscard]] index_t extent(std::size_t r) const { return r == 0 ? 2 : 4; }
    void load_rows(index_t, index_t, index_t count, float* tile) const { std::fill_n(tile, count * 4, 1.0f); }
    void store_rows(index_t, index_t, index_t, const float*) const { data->push_back(1); }
    [[nodiscard]] bool heads_move_together() const { return true; }
};

} // namespace

TEST_CASE(
    "rerotate_keys: heads that cannot be written one by one are refused, also behind indices and ranges",
    "[compact][sources][errors]") {
    const turn by(4, rope_pairing::half_split);
    std::vector<float> written;
    const joined_heads keys{&written};
    const std::vector<std::int32_t> offsets{0, 2, 4}, from{3, 4, 5, 6}, indices{2, 0};
    growing_workspace memory;
    const auto answer = [&](const auto& view) {
        workspace scratch = memory.of_bytes(rerotate_keys_bytes(view, by.get()));
        return rerotate_keys(view, by.get(), {offsets, from}, scratch).code();
    };
    CHECK(answer(keys) == errc::invalid_parameter);
    CHECK(answer(indexed_rows(keys, indices)) == errc::invalid_parameter);
    CHECK(answer(row_range(keys, 0, 2)) == errc::invalid_parameter);
    CHECK(written.empty());
}

TEST_CASE("rerotate_keys: a page or slot that stands twice is refused, with the keys unchanged",
          "[compact][sources][errors]") {
    const turn by(4, rope_pairing::half_split);
    std::vector<float> pool(8 * 4 * 2, 1.0f);
    const std::vector<float> before = pool;
    const std::vector<std::int32_t> offsets{0, 6}, from{3, 4, 5, 6, 7, 8};
    growing_workspace memory;
    const auto answer = [&](const auto& view, const row_positions& positions) {
        workspace scratch = memory.of_bytes(rerotate_keys_bytes(view, by.get()));
        const status s = rerotate_keys(view, by.get(), positions, scratch);
        if (!s.ok()) { CHECK(pool == before); }
        return s.code();
    };
    const std::vector<std::int32_t> indptr{0, 3, 5}, twice{4, 0, 4, 1, 2}, across{3, 1, 0, 1, 2}, last{2, 2};
    const page_layout layout = nhd_pages(2, 1, 4, 5);
    CHECK(answer(paged_rows(pool.data(), layout, page_table{indptr, twice, last}, 0, 1, 4),
                 {offsets, from}) == errc::invalid_table);
    CHECK(answer(paged_rows(pool.data(), layout, page_table{indptr, across, last}, 0, 1, 4),
                 {offsets, from}) == errc::ok);
    pool = before;
    const std::vector<std::int32_t> both{0, 6, 10},
        more{3, 4, 5, 6, 7, 8, 9, 10, 11, 12}; // page 1 is of both heads
    CHECK(answer(paged_head_rows(pool.data(), layout, page_table{indptr, across, last}, 0, 2, 4),
                 {both, more}) == errc::invalid_table);
    const strided<float, 3> slots(pool.data(), {1, 16, 4});
    const std::vector<std::int32_t> indices{9, 8, 7, 6, 5, 9};
    CHECK(answer(indexed_rows(slots, indices), {offsets, from}) == errc::invalid_table);
}

TEST_CASE("rerotate_keys: slots that are far apart are rotated with the workspace that was asked for",
          "[compact]") {
    constexpr std::int32_t far = 20000;
    const std::vector<float> table{0.5f};
    std::vector<float> slots(2 * (far + 1), 1.0f), rows{1, 2, 3, 4};
    std::copy_n(rows.begin(), 2, slots.begin() + 2 * far);
    std::copy_n(rows.begin() + 2, 2, slots.begin());
    const std::vector<std::int32_t> indices{far, 0}, offsets{0, 2}, from{3, 9};
    const indexed_rows keys(strided<float, 3>(slots.data(), {1, far + 1, 2}), indices);
    const strided<float, 3> plain(rows.data(), {1, 2, 2});
    const auto rotate = [&](const auto& view) {
        growing_workspace memory;
        workspace scratch = memory.of_bytes(rerotate_keys_bytes(view, rope{table}));
        return rerotate_keys(view, {table}, {offsets, from}, scratch);
    };
    REQUIRE(rotate(keys).ok());
    REQUIRE(rotate(plain).ok());
    CHECK(std::equal(rows.begin(), rows.begin() + 2, slots.begin() + 2 * far));
    CHECK(std::equal(rows.begin() + 2, rows.end(), slots.begin()));
}
