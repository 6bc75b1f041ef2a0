// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Scorers called without a policy: what plan() would refuse they refuse themselves, before anything is read or written.

#include <kvtrim/aggregate/dispersion_attention.hpp>
#include <kvtrim/aggregate/mean_attention.hpp>
#include <kvtrim/aggregate/worst_case_attention.hpp>
#include <kvtrim/cache/ragged.hpp>
#include <kvtrim/score/before_rope.hpp>
#include <kvtrim/score/consensus.hpp>
#include <kvtrim/score/expected_attention_score.hpp>
#include <kvtrim/score/given_scores.hpp>
#include <kvtrim/score/key_norm_score.hpp>
#include <kvtrim/score/lag_score.hpp>
#include <kvtrim/score/layer_preference.hpp>
#include <kvtrim/score/padded.hpp>
#include <kvtrim/score/projected_norm_weighted.hpp>
#include <kvtrim/score/random_score.hpp>
#include <kvtrim/score/recency.hpp>
#include <kvtrim/score/redundancy_aware.hpp>
#include <kvtrim/score/value_norm_weighted.hpp>
#include <kvtrim/score/window_attention.hpp>

#include "support/checks.hpp"

using namespace kvtrim;
using namespace support;

namespace {

// fn(scorer) for every scorer of the library, wrapped ones too.
template <class Fn>
void for_each_scorer(const layer_data& layer, const query_statistics& statistics, Fn&& fn) {
    const window_attention window{mean_attention{}};
    fn(recency{});
    fn(random_score{});
    fn(given_scores{strided<const float, 2>(layer.k.data(), {2, 40})});
    fn(key_norm_score{});
    fn(key_diff_score{});
    fn(before_rope<key_diff_score>{});
    fn(lag_score{.lag = 8});
    fn(expected_attention_score{&statistics});
    fn(window);
    fn(window_attention{worst_case_attention{}});
    fn(window_attention{mean_variance_attention{}});
    fn(padded<window_attention<mean_attention>>{window, 4});
    fn(consensus{window});
    fn(redundancy_aware<window_attention<mean_attention>>{window});
    fn(value_norm_weighted<key_norm_score>{});
    fn(projected_norm_weighted<window_attention<mean_attention>>{window});
}

} // namespace

TEST_CASE(
    "every scorer, called without a policy, refuses inputs and outputs that do not fit, with nothing written",
    "[properties][errors]") {
    const layer_data layer = small_layer();
    const query_statistics statistics(4, 8);
    const auto in = layer.inputs();
    const eviction_request request{};
    score_memory memory(in, {});
    for_each_scorer(layer, statistics, [&](const auto& scorer) {
        const auto refuses = [&](const auto& inputs, const eviction_request& asked, const token_scores& out) {
            CHECK_FALSE(score_directly(scorer, inputs, asked, out).ok());
            CHECK(memory.is_untouched());
        };
        const auto keys = [&](const view& k) {
            return kvtrim::layer(k, layer.values())
                .with_queries(layer.queries())
                .with_output_projection(layer.projection());
        };
        refuses(keys(view(nullptr, {2, 40, 8})), request, memory.get());
        refuses(keys(view(layer.k.data(), {2, -40, 8})), request, memory.get());
        refuses(keys(view(layer.k.data(), {0, 40, 8})), request, memory.get());
        refuses(keys(view(layer.k.data(), {1, 40, 8})), request, memory.get());
        refuses(keys(view(layer.k.data(), {2, 39, 8})), request, memory.get());
        refuses(keys(view(layer.k.data(), {2, 40, 7})), request, memory.get());
        const std::vector<std::int32_t> ends{0, 40, 30};
        refuses(kvtrim::layer(ragged<const float>(layer.k.data(), ends, 8), layer.values())
                    .with_queries(layer.queries())
                    .with_output_projection(layer.projection()),
                request, memory.get());
        for (const index_t odd : {index_t{-1}, std::numeric_limits<index_t>::min()}) {
            refuses(in, {.budget = {}, .protect = {.sink_tokens = odd}}, memory.get());
            refuses(in, {.budget = {}, .protect = {.window_tokens = odd}}, memory.get());
            refuses(in, {.budget = {}, .protect = {.rollback_tokens = odd}}, memory.get());
        }
        refuses(in, {.budget = {}, .protect = {.sink_tokens = 3}}, memory.get()); // rows for other candidates
        token_scores out = memory.get();
        out.importance = out.importance.first(79);
        refuses(in, request, out);
        out = memory.get();
        out.offsets = out.offsets.first(2);
        refuses(in, request, out);
        out.offsets = {};
        refuses(in, request, out);
        out = memory.get();
        out.protected_mass = out.protected_mass.first(1);
        refuses(in, request, out);
    });
}

TEST_CASE("every scorer, called without a policy, scores what fits", "[properties]") {
    const layer_data layer = small_layer();
    const query_statistics statistics(4, 8);
    for_each_scorer(layer, statistics, [&](const auto& scorer) {
        score_memory memory(layer.inputs(), {});
        CHECK(score_directly(scorer, layer.inputs(), {}, memory.get()).ok());
        CHECK(std::find(memory.importance.begin(), memory.importance.end(), score_memory::untouched) ==
              memory.importance.end());
    });
}

TEST_CASE("layer preference: a negative protection is refused, with the preference as it was",
          "[properties][errors]") {
    const layer_data layer = random_layer({}, 1);
    growing_workspace memory;
    double preference = -7;
    const eviction_request request{.budget = {}, .protect = {.sink_tokens = -5}};
    CHECK(layer_preference{}.measure(layer.inputs(), request, preference, memory).code() ==
          errc::invalid_parameter);
    CHECK(preference == -7);
}
