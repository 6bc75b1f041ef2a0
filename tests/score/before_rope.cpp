// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/score/before_rope.hpp>

#include "support/checks.hpp"
#include "support/rotated.hpp"

#include <kvtrim/cache/ragged.hpp>
#include <kvtrim/score/key_norm_score.hpp>

using namespace kvtrim;
using namespace support;

namespace {

oracle::matrix key_differences(const layer_data& plain, const eviction_request& request) {
    const layer_oracle slow(plain.inputs(), request);
    oracle::matrix differences;
    for (std::size_t g = 0; g < slow.heads(); ++g) {
        differences.push_back(oracle::at(oracle::key_differences(slow.keys[g]), slow.candidates(g)));
    }
    return differences;
}

} // namespace

TEST_CASE("before_rope: scores of cached keys are the formula's of the keys before their rotation",
          "[score][oracle]") {
    support::random r(2504);
    std::vector<float> sinks;
    for (std::uint64_t seed = 0; seed < 60; ++seed) {
        layer_shape shape = random_shape(r);
        shape.head_dim = std::max<index_t>(4, shape.head_dim / 4 * 4);
        const layer_data plain = random_layer(shape, 7300 + seed);
        const eviction_request request = random_request(r, shape, sinks);
        const std::vector<float> table = random_frequencies(r, shape.head_dim);
        const rope model = random_rope(r, table);
        const layer_data cached = rotated(plain, model);
        score_memory scores =
            score_layer(before_rope<key_diff_score>{{}, model}, kvtrim::layer(cached.keys()), request);
        CAPTURE(seed, shape.tokens, shape.head_dim, model.pairs());
        CHECK(difference(scores.importance_rows(), key_differences(plain, request), 1e-4, 2e-6) == "");
    }
}

TEST_CASE("before_rope: the keys of a cut cache are turned back from the positions of their rows",
          "[score]") {
    const std::vector<float> table = rope_frequencies(8);
    const rope model{table};
    const layer_data plain = random_layer({.kv_heads = 2, .group = 1, .tokens = 70, .head_dim = 16}, 9);
    const std::int32_t farther = GENERATE(0, 1); // head
    std::vector<std::int32_t> positions;
    for (std::int32_t i = 0; i < 140; ++i) {
        positions.push_back(i * 37 % 5000 + (i / 70 == farther ? 100000 : 0));
    }
    const std::vector<std::int32_t> offsets{0, 70, 140};
    const layer_data cached = rotated(
        plain, model, [&](index_t g, index_t t) { return positions[static_cast<std::size_t>(g * 70 + t)]; });
    const auto in = kvtrim::layer(cached.keys());
    const before_rope<key_diff_score> scorer{{}, model, {offsets, positions}};
    CHECK(difference(score_layer(scorer, in, {}).importance_rows(), key_differences(plain, {}), 1e-4, 2e-6) ==
          "");
    score_memory by_row_numbers = score_layer(before_rope<key_diff_score>{{}, model}, in, {});
    CHECK(difference(by_row_numbers.importance_rows(), key_differences(plain, {}), 1e-4, 2e-6) != "");
}

TEST_CASE("before_rope: heads of different lengths are turned back each by its own positions",
          "[score][ragged]") {
    const std::vector<float> table = rope_frequencies(4);
    const rope model{table};
    const layer_data plain = random_layer({.kv_heads = 2, .group = 1, .tokens = 40, .head_dim = 8}, 11);
    const layer_data cached = rotated(plain, model);
    // Head 0 keeps its even tokens, head 1 its newest ten.
    std::vector<float> rows, plain_rows;
    std::vector<std::int32_t> offsets{0, 20, 30}, positions;
    for (std::int32_t i = 0; i < 20; ++i) { positions.push_back(2 * i); }
    for (std::int32_t i = 0; i < 10; ++i) { positions.push_back(30 + i); }
    oracle::matrix expected(2);
    for (std::size_t g = 0; g < 2; ++g) {
        oracle::matrix keys;
        for (auto i = offsets[g]; i < offsets[g + 1]; ++i) {
            const index_t t = positions[static_cast<std::size_t>(i)];
            const float* const from = cached.keys().data_handle() + (static_cast<index_t>(g) * 40 + t) * 8;
            rows.insert(rows.end(), from, from + 8);
            const float* const before = plain.keys().data_handle() + (static_cast<index_t>(g) * 40 + t) * 8;
            keys.emplace_back(before, before + 8);
        }
        expected[g] = oracle::key_differences(keys);
    }
    const ragged<const float> keys(rows.data(), offsets, 8);
    REQUIRE(keys.validate().ok());
    const before_rope<key_diff_score> scorer{{}, model, {offsets, positions}};
    CHECK(difference(score_layer(scorer, kvtrim::layer(keys), {}).importance_rows(), expected, 1e-4, 2e-6) ==
          "");
}

TEST_CASE("before_rope: an executor of any width gives the same scores", "[score]") {
    const std::vector<float> table = rope_frequencies(4);
    const layer_data layer = random_layer({.kv_heads = 5, .group = 1, .tokens = 300, .head_dim = 8}, 12);
    const auto in = kvtrim::layer(layer.keys());
    const before_rope<key_diff_score> scorer{{}, rope{table}};
    const score_memory alone = score_layer(scorer, in, {});
    score_memory together(in, {});
    counted_executor ex{3};
    growing_workspace memory;
    workspace scratch = memory.of_bytes(scorer.workspace_bytes(in, eviction_request{}, ex));
    REQUIRE(scorer.score(in, eviction_request{}, together.get(), scratch, ex).ok());
    CHECK(together.importance == alone.importance);
}

TEST_CASE("before_rope: what cannot be turned back is refused, with nothing written", "[score][errors]") {
    const layer_data layer = random_layer({.kv_heads = 2, .group = 1, .tokens = 20, .head_dim = 8}, 13);
    const auto in = kvtrim::layer(layer.keys());
    const std::vector<float> table = rope_frequencies(4), wide = rope_frequencies(5);
    const std::vector<float> infinite{std::numeric_limits<float>::infinity()};
    const std::vector<std::int32_t> offsets{0, 20, 40}, one_head{0, 20}, short_row{0, 20, 39};
    std::vector<std::int32_t> positions(40);
    const auto refusal = [&](const rope& model, const row_positions& of_rows) {
        score_memory scores(in, {});
        const std::vector<float> before = scores.importance;
        const before_rope<key_diff_score> scorer{{}, model, of_rows};
        const status s = score_directly(scorer, in, {}, scores.get());
        CHECK(scorer.workspace_bytes(in, eviction_request{}) == 0);
        CHECK(scores.importance == before);
        return s.code();
    };
    CHECK(refusal(rope{wide}, {}) == errc::invalid_parameter);
    CHECK(refusal(rope{infinite}, {}) == errc::invalid_parameter);
    CHECK(refusal(rope{.inverse_frequencies = table, .attention_factor = 0}, {}) == errc::invalid_parameter);
    CHECK(refusal(rope{table}, {one_head, positions}) == errc::plan_mismatch);
    CHECK(refusal(rope{table}, {short_row, positions}) == errc::plan_mismatch);
    positions[7] = -1;
    CHECK(refusal(rope{table}, {offsets, positions}) == errc::invalid_table);

    const before_rope<key_diff_score> scorer{{}, rope{table}};
    score_memory scores(in, {});
    const std::vector<float> before = scores.importance;
    std::vector<std::byte> bytes(
        static_cast<std::size_t>(scorer.workspace_bytes(in, eviction_request{}) - 65));
    workspace scratch(bytes);
    serial_executor ex;
    CHECK(scorer.score(in, eviction_request{}, scores.get(), scratch, ex).code() ==
          errc::workspace_too_small);
    CHECK(scores.importance == before);
}
