// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/score/single_eviction.hpp>

#include "support/cpu_levels.hpp"
#include "support/losses.hpp"

#include <cmath>

using namespace kvtrim;
using namespace support;

namespace {

const std::vector<std::size_t> all_rows(1000, 1000); // a query scores every row

} // namespace

TEST_CASE("single_eviction: losses equal those of outputs without the token, for random shapes and options",
          "[score][oracle]") {
    support::random r(81);
    std::vector<float> sinks;
    for (std::uint64_t seed = 0; seed < 40; ++seed) {
        layer_shape shape = random_shape(r);
        shape.tokens = std::min<index_t>(shape.tokens, 120);
        shape.queries = std::min(shape.queries, shape.tokens);
        const layer_data layer = random_layer(shape, 8100 + seed);
        const eviction_request request = random_request(r, layer.shape, sinks);
        const layer_oracle slow(layer.inputs(), request);
        for (const token_loss loss : all_losses) {
            CAPTURE(seed, loss, shape.tokens, shape.head_dim, shape.value_dim, shape.queries, shape.group);
            const single_eviction scorer{loss};
            score_memory plain = score_layer(
                scorer, kvtrim::layer(layer.keys(), layer.values()).with_queries(layer.queries()), request);
            score_memory projected = score_layer(scorer, layer.inputs(), request);
            const gram_projection gram(layer.projection());
            score_memory prepared =
                score_layer(scorer, layer.inputs().with_output_projection(gram.view()), request);
            for (std::size_t g = 0; g < slow.heads(); ++g) {
                const auto row = static_cast<index_t>(g);
                auto expected = oracle::at(losses_of(slow, loss, g, all_rows), slow.candidates(g));
                auto bare = oracle::at(losses_of(slow, loss, g, all_rows, false), slow.candidates(g));
                const double heads =
                    loss == token_loss::output_square_sum ? static_cast<double>(shape.group) : 1.0;
                for (double& x : expected) { x /= std::sqrt(heads); }
                for (double& x : bare) { x /= std::sqrt(heads); }
                CHECK(loss_difference(projected.importance_rows().row(row), expected) == "");
                CHECK(loss_difference(prepared.importance_rows().row(row), expected) == "");
                CHECK(loss_difference(plain.importance_rows().row(row), bare) == "");
            }
        }
    }
}

TEST_CASE(
    "single_eviction: a value that every query gets anyway costs nothing, however much attention it has",
    "[score]") {
    layer_data layer = random_layer({.kv_heads = 1, .group = 2, .tokens = 40, .queries = 6}, 3);
    for (index_t t = 0; t < 40; ++t) {
        for (index_t d = 0; d < layer.shape.value_dim; ++d) { layer.value(0, t)[d] = 1; }
    }
    score_memory same = score_layer(single_eviction{}, layer.inputs(), eviction_request{});
    score_memory attention =
        score_layer(single_eviction{token_loss::attention_maximum}, layer.inputs(), eviction_request{});
    const float most = *std::max_element(same.importance.begin(), same.importance.end());
    CHECK(*std::max_element(attention.importance.begin(), attention.importance.end()) > 0.04f);
    CHECK(most < 0.02f);
    for (index_t d = 0; d < layer.shape.value_dim; ++d) { layer.value(0, 7)[d] = 3; }
    score_memory one = score_layer(single_eviction{}, layer.inputs(), eviction_request{});
    CHECK(one.importance[7] > 10 * most);
}

TEST_CASE("single_eviction: values and keys that are not finite leave other tokens their scores, or none",
          "[score][degenerate]") {
    for (const float odd : {INFINITY, -INFINITY, NAN}) {
        layer_data layer = random_layer({.kv_heads = 1, .group = 2, .tokens = 60, .queries = 4}, 4);
        layer.value(0, 9)[1] = odd;
        layer.key(0, 20)[0] = odd;
        for (const token_loss loss : all_losses) {
            score_memory got = score_layer(single_eviction{loss}, layer.inputs(), eviction_request{});
            for (const float x : got.importance_rows().row(0)) { CHECK(x >= 0); }
        }
    }
}

TEST_CASE("single_eviction: bad input is named, a small workspace refused with nothing written",
          "[score][errors]") {
    const layer_data layer = random_layer({}, 1);
    CHECK(single_eviction{.newest_queries = -1}.validate(layer.inputs(), {}).code() ==
          errc::invalid_parameter);
    CHECK(single_eviction{.kept_logit_bytes = -1}.validate(layer.inputs(), {}).code() ==
          errc::invalid_parameter);
    const gram_view other{layer.w.data(), layer.shape.q_heads(), layer.shape.value_dim - 1};
    CHECK(single_eviction{}.validate(layer.inputs().with_output_projection(other), {}).code() ==
          errc::invalid_parameter);
    const gram_view fewer{layer.w.data(), layer.shape.kv_heads, layer.shape.value_dim};
    CHECK(!single_eviction{}.validate(layer.inputs().with_output_projection(fewer), {}).ok());
    score_memory memory(layer.inputs(), protection{});
    workspace none({});
    serial_executor ex;
    const single_eviction scorer;
    const status s = scorer.score(layer.inputs(), {}, memory.get(), none, ex);
    CHECK(s.code() == errc::workspace_too_small);
    CHECK(memory.is_untouched());
}

TEST_CASE("single_eviction: scores do not depend on what of the logits is kept", "[score]") {
    const layer_data layer = random_layer({.kv_heads = 2, .group = 3, .tokens = 300, .queries = 90}, 2);
    for (const token_loss loss : all_losses) {
        score_memory kept = score_layer(single_eviction{loss}, layer.inputs(), eviction_request{});
        score_memory twice = score_layer(single_eviction{.loss = loss, .kept_logit_bytes = 0}, layer.inputs(),
                                         eviction_request{});
        CHECK(kept.importance == twice.importance);
    }
}

TEST_CASE("single_eviction: a serial call keeps as many logits as the bound allows for all heads together",
          "[score][workspace]") {
    const layer_data layer = random_layer({.kv_heads = 8, .group = 2, .tokens = 100, .queries = 9}, 2);
    const auto bytes = [&](index_t kept, const auto& ex) {
        return single_eviction{.kept_logit_bytes = kept}.workspace_bytes(layer.inputs(), {}, ex);
    };
    const serial_executor serial;
    CHECK(bytes(6400, serial) - bytes(0, serial) == 6400);
    CHECK(bytes(index_t{1} << 30, serial) - bytes(0, serial) == 9 * 2 * 100 * 4 + 32); // whole cache lines
    const counted_executor wide{4};
    CHECK(bytes(6400, wide) - bytes(0, wide) == 6400);
}

TEST_CASE("single_eviction: every instruction set finds the same losses within rounding", "[score]") {
    const layer_data layer = random_layer({.kv_heads = 2, .group = 3, .tokens = 90, .queries = 20}, 6);
    const layer_oracle slow(layer.inputs(), eviction_request{});
    at_each_cpu_level([&] {
        score_memory got = score_layer(single_eviction{}, layer.inputs(), eviction_request{});
        for (std::size_t g = 0; g < slow.heads(); ++g) {
            oracle::row expected = losses_of(slow, token_loss::output_square_sum, g, all_rows);
            for (double& x : expected) { x /= std::sqrt(3.0); }
            CHECK(loss_difference(got.importance_rows().row(static_cast<index_t>(g)), expected) == "");
        }
    });
}
