// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/score/redundancy_aware.hpp>

#include <kvtrim/aggregate/mean_attention.hpp>
#include <kvtrim/aggregate/worst_case_attention.hpp>
#include <kvtrim/score/given_scores.hpp>
#include <kvtrim/score/key_norm_score.hpp>
#include <kvtrim/score/random_score.hpp>
#include <kvtrim/score/recency.hpp>
#include <kvtrim/score/window_attention.hpp>

#include "oracle/redundancy.hpp"
#include "support/checks.hpp"

#include <cmath>

using namespace kvtrim;
using namespace support;

namespace {

template <class Scorer>
std::vector<float> scores_of(const Scorer& scorer, const layer_data& layer,
                             const eviction_request& request = {}) {
    return score_layer(scorer, layer.inputs(), request).importance;
}

// Only the redundancy: older tokens that others resemble score lowest.
constexpr redundancy_aware<recency> redundancy_only{{}, 0.0f, 0.5f, 0};

} // namespace

TEST_CASE("redundancy_aware: scores equal the formulas with the whole matrix of cosines", "[score][oracle]") {
    support::random r(541);
    std::vector<float> sinks;
    int compared = 0;
    for (std::uint64_t seed = 0; seed < 80; ++seed) {
        layer_shape shape = random_shape(r);
        shape.tokens = std::min<index_t>(shape.tokens, 280);
        shape.queries = std::min(shape.queries, shape.tokens);
        const layer_data layer = random_layer(shape, 5400 + seed);
        const eviction_request request = random_request(r, shape, sinks);
        const redundancy_aware<random_score> scorer{{seed},
                                                    r.one_of({0.0f, 0.1f, 0.5f, 1.0f}),
                                                    r.one_of({0.0f, 0.3f, 0.5f, 0.9f}),
                                                    r.one_of({0, 1, 20, 100})};
        score_memory base = score_layer(random_score{seed}, layer.inputs(), request);
        const layer_oracle slow(layer.inputs(), request);
        oracle::matrix expected;
        bool close = false;
        for (std::size_t g = 0; g < slow.heads(); ++g) {
            const auto all = oracle::key_redundancy(
                slow.keys[g], slow.keys[g].size() - slow.setup.rollback_tokens,
                static_cast<double>(scorer.similar_above), static_cast<std::size_t>(scorer.search_tokens));
            close = close || all.close_to_border;
            const auto row = base.importance_rows().row(static_cast<index_t>(g));
            expected.push_back(oracle::less_redundant({row.begin(), row.end()}, slow.candidates(g),
                                                      all.values,
                                                      static_cast<double>(scorer.importance_share)));
        }
        if (close) { continue; }
        ++compared;
        CAPTURE(seed, shape.tokens, shape.head_dim, scorer.importance_share, scorer.similar_above,
                scorer.search_tokens);
        score_memory got = score_layer(scorer, layer.inputs(), request);
        CHECK(difference(got.importance_rows(), expected, 1e-4, 1e-5) == "");
    }
    CHECK(compared >= 50);
}

TEST_CASE("redundancy_aware: of equal keys the newest is not charged, and a key of its own least",
          "[score]") {
    // Six tokens along x, one along y, then one along x: the last of its kind.
    std::vector<float> k;
    for (int t = 0; t < 6; ++t) { k.insert(k.end(), {1.0f + static_cast<float>(t), 0.0f}); }
    k.insert(k.end(), {0.0f, 2.0f, 3.0f, 0.0f});
    const view keys(k.data(), {1, 8, 2});
    const auto s = score_layer(redundancy_only, kvtrim::layer(keys), {}).importance;
    for (std::size_t t = 1; t < 5; ++t) { CHECK(s[t] == Approx(s[0])); }
    CHECK(s[7] > s[0]);
    CHECK(s[6] > s[0]);
    // Token 5 is what the newest one resembles: it is spared that one, the newest all the others.
    CHECK(s[5] == Approx(s[0] * std::exp(-0.125f)));
    CHECK(s[7] == Approx(s[6]));
}

TEST_CASE("redundancy_aware: the scale of the base scores does not matter, nor their sign", "[score]") {
    const layer_data layer = small_layer(16);
    std::vector<float> given(80);
    support::random r(542);
    for (float& x : given) { x = static_cast<float>(r.uniform()); }
    std::vector<float> scaled = given;
    for (float& x : scaled) { x *= 1e-6f; }
    using scorer = redundancy_aware<given_scores<strided<const float, 2>>>;
    const auto plain = scores_of(scorer{{{given.data(), {2, 40}}}}, layer);
    const auto small = scores_of(scorer{{{scaled.data(), {2, 40}}}}, layer);
    CHECK(difference(small, oracle::row(plain.begin(), plain.end())) == "");
    // Negative scores: the larger one is still the better one.
    const auto alone = score_layer(redundancy_aware<key_norm_score>{{}, 1.0f}, layer.inputs(), {}).importance;
    const auto norms = score_layer(key_norm_score{}, layer.inputs(), {}).importance;
    for (std::size_t i = 1; i < 40; ++i) { CHECK((alone[i] < alone[i - 1]) == (norms[i] < norms[i - 1])); }
}

TEST_CASE("redundancy_aware: a scorer that writes attention keeps its attention", "[score]") {
    const layer_data layer = small_layer(16);
    const eviction_request request{.budget = {}, .protect = {.window_tokens = 4}};
    using inner = window_attention<worst_case_attention>;
    const score_memory bare = score_layer(inner{}, layer.inputs(), request);
    const score_memory mixed = score_layer(redundancy_aware<inner>{}, layer.inputs(), request);
    CHECK(mixed.attention == bare.attention);
    CHECK(mixed.protected_mass == bare.protected_mass);
    CHECK(mixed.importance != bare.importance);
}

TEST_CASE("redundancy_aware: a key without a direction scores NaN and changes no other score",
          "[score][odd]") {
    constexpr float infinity = std::numeric_limits<float>::infinity();
    layer_data without = small_layer(16); // token 7 of each head is left out
    const layer_data layer = small_layer(16);
    without.shape.tokens = 39;
    without.k.clear();
    for (index_t t = 0; t < 80; ++t) {
        const float* key = layer.k.data() + t * 8;
        if (t % 40 != 7) { without.k.insert(without.k.end(), key, key + 8); }
    }
    const auto expected = score_layer(redundancy_only, kvtrim::layer(without.keys()), {}).importance;
    for (const float odd : {std::numeric_limits<float>::quiet_NaN(), infinity, 1e30f}) {
        layer_data broken = layer;
        for (index_t g = 0; g < 2; ++g) { broken.key(g, 7)[3] = odd; }
        const auto got = scores_of(redundancy_only, broken);
        for (std::size_t i = 0; i < 80; ++i) {
            CAPTURE(odd, i);
            if (i % 40 == 7) {
                CHECK(std::isnan(got[i]));
            } else {
                CHECK(got[i] == Approx(expected[i / 40 * 39 + i % 40 - (i % 40 > 7 ? 1 : 0)]));
            }
        }
    }
}

TEST_CASE("redundancy_aware: zero keys are alike to none, scores that are not finite stay", "[score][odd]") {
    layer_data layer = small_layer(16);
    std::fill(layer.k.begin(), layer.k.end(), 0.0f);
    CHECK(scores_of(redundancy_only, layer) == std::vector<float>(80, -1.0f));
    std::vector<float> given(80, 1.0f);
    given[3] = std::numeric_limits<float>::infinity();
    given[4] = std::numeric_limits<float>::quiet_NaN();
    const redundancy_aware<given_scores<strided<const float, 2>>> scorer{{{given.data(), {2, 40}}}, 0.5f};
    const auto got = scores_of(scorer, layer);
    CHECK(got[3] == given[3]);
    CHECK(std::isnan(got[4]));
    for (std::size_t i = 5; i < 80; ++i) { CHECK(got[i] == 0.0f); }
    std::fill(given.begin(), given.end(), 0.0f); // nothing to be important with
    CHECK(scores_of(scorer, layer) == std::vector<float>(80, -0.5f));
}

TEST_CASE("redundancy_aware: its workspace is linear in the tokens", "[score]") {
    const std::vector<float> one(16, 1.0f);
    const auto bytes = [&](index_t tokens) { // every token the same memory
        const strided<const float, 3> keys(one.data(), {1, tokens, 16}, {0, 0, 1});
        return redundancy_only.workspace_bytes(kvtrim::layer(keys), {});
    };
    CHECK(bytes(2000000) - bytes(1000000) == 8 * 1000000);
}

TEST_CASE("redundancy_aware: bad input is named, a small workspace refused with nothing written",
          "[score][errors]") {
    const layer_data layer = small_layer(16);
    const float nan = std::numeric_limits<float>::quiet_NaN();
    for (const redundancy_aware<recency>& bad : {redundancy_aware<recency>{{}, -0.1f},
                                                 {{}, 1.1f},
                                                 {{}, nan},
                                                 {{}, 0.1f, -0.1f},
                                                 {{}, 0.1f, 1.1f},
                                                 {{}, 0.1f, nan},
                                                 {{}, 0.1f, 0.5f, -1}}) {
        CHECK(bad.validate(layer.inputs(), {}).code() == errc::invalid_parameter);
    }
    using inner = window_attention<mean_attention>;
    CHECK(redundancy_aware<inner>{{{.kernel_tokens = 2}}}.validate(layer.inputs(), {}).code() ==
          errc::invalid_parameter);
    const redundancy_aware<inner> scorer;
    serial_executor ex;
    for (const index_t size : {index_t{0}, scorer.workspace_bytes(layer.inputs(), {}) / 2}) {
        score_memory memory(layer.inputs(), {});
        std::vector<std::byte> few(static_cast<std::size_t>(size));
        workspace scratch(few);
        const status s = scorer.score(layer.inputs(), {}, memory.get(), scratch, ex);
        CHECK(s.code() == errc::workspace_too_small);
        CHECK(s.needed() == scorer.workspace_bytes(layer.inputs(), {}));
        CHECK(memory.is_untouched());
    }
}
