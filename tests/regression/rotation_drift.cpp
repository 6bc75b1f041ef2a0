// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Keys that are shifted by one position after every cut drift: llama.cpp#4097 (a cache shifted again and again answers
// worse and worse). Rounding to nearest loses small turns, so the errors add up; positions that are integers do not.

#include <kvtrim/decode/close_up.hpp>

#include <kvtrim/cache/ggml_rows.hpp>

#include "support/checks.hpp"

#include <cmath>

using namespace kvtrim;

namespace {

constexpr index_t head_dim = 128, left = 8;

struct shifted {
    double after_each_cut, once; // the largest error of a key, as a share of its length
};

// A sequence that loses its oldest token `cuts` times, and is closed up after each cut or once.
template <class View, class Make>
shifted shift(index_t cuts, Make&& make) {
    support::random r(static_cast<std::uint64_t>(cuts));
    std::vector<float> table;
    for (int i = 0; i < 64; ++i) { table.push_back(std::pow(10000.0f, -static_cast<float>(i) / 64)); }
    const rope turn{.inverse_frequencies = table};
    const index_t tokens = cuts + left;
    std::vector<float> prompt(static_cast<std::size_t>(tokens * head_dim));
    for (float& x : prompt) { x = static_cast<float>(r.normal()); }
    std::vector<std::int32_t> offsets{0, left}, from, to;
    for (std::int32_t i = 0; i < left; ++i) {
        from.push_back(static_cast<std::int32_t>(cuts) + i);
        to.push_back(i);
    }
    growing_workspace memory, float_memory;
    const auto error_of = [&](bool after_each_cut) {
        auto cache = make(tokens);
        const View keys = cache.view();
        store_rows(keys, 0, 0, tokens, prompt.data());
        std::vector<float> right(static_cast<std::size_t>(left * head_dim)), got(right.size());
        load_rows(keys, 0, cuts, left, right.data()); // the cache's own bits are where the error counts from
        const strided<float, 3> floats(right.data(), {1, left, head_dim});
        workspace of_floats = float_memory.of_bytes(rerotate_keys_bytes(floats, turn));
        REQUIRE(rerotate_keys(floats, turn, {offsets, from}, {offsets, to}, of_floats).ok());

        cache_positions positions(1, tokens);
        REQUIRE(positions.append(tokens).ok());
        workspace scratch = memory.of_bytes(rerotate_keys_bytes(keys, turn));
        keep_plan plan;
        for (index_t cut = 0; cut < cuts; ++cut) {
            const index_t count = positions.tokens(0) - 1;
            REQUIRE(plan.reset(std::span(&count, 1)).ok());
            const auto row = plan.writable_row(0);
            for (std::size_t i = 0; i < row.size(); ++i) { row[i] = static_cast<std::int32_t>(i) + 1; }
            REQUIRE(compact_in_place(keys, plan).ok());
            REQUIRE(positions.compact(plan).ok());
            if (after_each_cut) { REQUIRE(close_up(keys, positions, turn, {}, scratch).ok()); }
        }
        REQUIRE(close_up(keys, positions, turn, {}, scratch).ok());
        REQUIRE(positions.next_position() == left);
        load_rows(keys, 0, 0, left, got.data());
        double worst = 0;
        for (std::size_t i = 0; i < left; ++i) {
            double error = 0, length = 0;
            for (std::size_t d = i * head_dim; d < (i + 1) * head_dim; ++d) {
                error += std::pow(static_cast<double>(got[d]) - static_cast<double>(right[d]), 2);
                length += std::pow(static_cast<double>(right[d]), 2);
            }
            worst = std::max(worst, std::sqrt(error / length));
        }
        return worst;
    };
    return {error_of(true), error_of(false)};
}

template <class T>
struct plain_cache {
    std::vector<T> data;
    index_t tokens;
    [[nodiscard]] strided<T, 3> view() { return {data.data(), {1, tokens, head_dim}}; }
};
template <class T>
shifted shift_plain(index_t cuts) {
    return shift<strided<T, 3>>(cuts, [](index_t tokens) {
        return plain_cache<T>{std::vector<T>(static_cast<std::size_t>(tokens * head_dim)), tokens};
    });
}

struct q8_cache {
    std::vector<block_q8_0> data;
    index_t tokens;
    [[nodiscard]] ggml_rows<block_q8_0> view() { return {data.data(), {1, tokens, head_dim}, {0, 136}}; }
};

} // namespace

TEST_CASE("regression: keys of a cache that is cut 1, 16, 256 or 2048 times are rounded once, not once for "
          "each cut",
          "[regression][close_up]") {
    for (const index_t cuts : {1, 16, 256, 2048}) {
        CAPTURE(cuts);
        const shifted b = shift_plain<bf16>(cuts);
        CHECK(b.once <= 1.0 / 256); // half a unit in the last place
        const shifted h = shift_plain<f16>(cuts);
        CHECK(h.once <= 1.0 / 2048);
        const shifted q = shift<ggml_rows<block_q8_0>>(cuts, [](index_t tokens) {
            return q8_cache{std::vector<block_q8_0>(static_cast<std::size_t>(tokens * 4)), tokens};
        });
        CHECK(q.once <= 0.012); // half of 1 / 127 of a channel up to 3 times as large as most
        if (cuts >= 256) {      // what the header's table says of closing up after every cut
            CHECK(b.after_each_cut > 0.05);
            CHECK(h.after_each_cut > 0.008);
            CHECK(q.after_each_cut > 0.1);
        }
    }
}
