// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/measure/eviction_loss.hpp>

#include "support/checks.hpp"

#include <cmath>

using namespace kvtrim;
using namespace support;

namespace {

// Any rows of each head, also none.
keep_plan random_plan(support::random& r, const layer_shape& s) {
    std::vector<oracle::token_set> sets;
    for (index_t g = 0; g < s.kv_heads; ++g) {
        const double share = r.one_of({0.0, 0.1, 0.5, 0.9});
        oracle::token_set set;
        for (std::size_t t = 0; t < static_cast<std::size_t>(s.tokens); ++t) {
            if (r.chance(share)) { set.push_back(t); }
        }
        sets.push_back(set);
    }
    return plan_of(sets);
}

eviction_loss measure(const layer_data& layer, const eviction_request& request, const keep_plan& plan) {
    eviction_loss loss;
    const status s = measure_eviction(layer.inputs(), request, plan, loss);
    REQUIRE(s.ok());
    return loss;
}

std::string difference_of(const std::vector<double>& got, const oracle::row& expected, double tolerance) {
    const std::vector<float> floats(got.begin(), got.end());
    return difference(floats, expected, 1e-4, tolerance);
}

keep_plan everything(const layer_shape& s) {
    oracle::token_set all(static_cast<std::size_t>(s.tokens));
    std::iota(all.begin(), all.end(), std::size_t{0});
    return plan_of(std::vector<oracle::token_set>(static_cast<std::size_t>(s.kv_heads), all));
}

} // namespace

TEST_CASE("eviction_loss: every figure equals that of two whole softmaxes, for random plans and options",
          "[measure][oracle]") {
    support::random r(301);
    std::vector<float> sinks;
    for (std::uint64_t seed = 0; seed < 80; ++seed) {
        layer_shape shape = random_shape(r);
        shape.tokens = std::min<index_t>(shape.tokens, 270);
        shape.queries = std::min(shape.queries, shape.tokens);
        const layer_data layer = random_layer(shape, 7000 + seed);
        eviction_request request = random_request(r, shape, sinks);
        const keep_plan plan = random_plan(r, shape);
        const layer_oracle slow(layer.inputs(), request);
        const auto expected = oracle::eviction_loss(slow.queries, slow.keys, slow.values, slow.w_o,
                                                    kept_sets(plan), slow.setup);
        const eviction_loss loss = measure(layer, request, plan);
        CAPTURE(seed, shape.tokens, shape.queries, shape.group, shape.value_dim, shape.hidden);
        CHECK(difference_of(loss.kept_mass, expected.kept_mass, 1e-6) == "");
        CHECK(difference_of(loss.evicted_mass, expected.evicted_mass, 1e-6) == "");
        CHECK(difference_of(loss.error, expected.error, 1e-4) == "");
        CHECK(difference_of(loss.error_projected, expected.error_projected, 1e-4) == "");
        CHECK(loss.layer_error == Approx(expected.layer_error).epsilon(1e-4).margin(1e-4));
        CHECK(loss.layer_bound == Approx(expected.layer_bound).epsilon(1e-4).margin(1e-2));
    }
}

TEST_CASE("eviction_loss: a sink logit holds a part of the attention that no plan can keep", "[measure]") {
    const layer_data layer = small_layer();
    const std::vector<float> sinks(4, 2.0f);
    eviction_request request{};
    const eviction_loss without = measure(layer, request, everything(layer.shape));
    request.attention.sink_logits = sinks;
    const eviction_loss with = measure(layer, request, everything(layer.shape));
    for (std::size_t h = 0; h < 4; ++h) {
        CHECK(without.kept_mass[h] == Approx(1.0));
        CHECK(with.kept_mass[h] < 0.99);
        CHECK(with.evicted_mass[h] == 0.0);
        CHECK(with.error[h] == 0.0);
    }
    CHECK(with.layer_bound == 0.0);
}

TEST_CASE("eviction_loss: a sink stays in the denominator when tokens leave it", "[measure]") {
    // One query, two tokens of logit 0, a sink of logit log 2: weights 1/4, 1/4, 1/2. Without the second token the
    // first has 1/3: its output moves by 1/12, and a quarter of the second's is lost.
    const std::vector<float> zeros(2, 0.0f);
    const std::vector<float> v{12.0f, 4.0f};
    const std::vector<float> one{1.0f};
    const std::vector<float> sinks{std::log(2.0f)};
    const auto in = kvtrim::layer(view(zeros.data(), {1, 2, 1}), view(v.data(), {1, 2, 1}))
                        .with_queries(view(zeros.data(), {1, 1, 1}))
                        .with_output_projection(view(one.data(), {1, 1, 1}));
    eviction_request request{};
    request.attention.sink_logits = sinks;
    eviction_loss loss;
    REQUIRE(measure_eviction(in, request, plan_of({{0}}), loss).ok());
    CHECK(loss.kept_mass[0] == Approx(0.25));
    CHECK(loss.evicted_mass[0] == Approx(0.25));
    CHECK(loss.layer_error == Approx(0.0).margin(1e-6)); // 4 / 4 - 12 / 12
    CHECK(loss.layer_bound == Approx(2 * 12.0 * 0.25));
    REQUIRE(measure_eviction(in, request, plan_of({{1}}), loss).ok());
    CHECK(loss.layer_error == Approx(12.0 / 4 - 4.0 / 12));
    REQUIRE(measure_eviction(in, request, plan_of({{}}), loss).ok());
    CHECK(loss.layer_error == Approx(4.0)); // all of the output; the sink has no value
}

TEST_CASE("eviction_loss: a tiny kept mass, or next to it a tiny sink, costs no digits", "[measure]") {
    // Logits 0 and -30: the kept token has weight 1e-13 before and all that the sink leaves it after.
    const std::vector<float> k{30.0f, 0.0f};
    const std::vector<float> q{1.0f};
    const std::vector<float> v{3.0f, 5.0f};
    const auto in = kvtrim::layer(view(k.data(), {1, 2, 1}), view(v.data(), {1, 2, 1}))
                        .with_queries(view(q.data(), {1, 1, 1}));
    for (const float sink : {-std::numeric_limits<float>::infinity(), -2.0f, 0.0f, 10.0f}) {
        const std::vector<float> sinks{sink};
        eviction_request request{};
        request.attention.sink_logits = sinks;
        eviction_loss loss;
        REQUIRE(measure_eviction(in, request, plan_of({{1}}), loss).ok());
        const double after = 1.0 / (1.0 + std::exp(static_cast<double>(sink)));
        const double all = std::exp(30.0) + 1.0 + std::exp(static_cast<double>(sink));
        CAPTURE(sink);
        CHECK(loss.error[0] ==
              Approx(std::abs((3.0 * std::exp(30.0) + 5.0) / all - 5.0 * after)).epsilon(1e-5));
    }
}

TEST_CASE("eviction_loss: a plan that keeps everything costs nothing", "[measure]") {
    const layer_data layer = small_layer();
    const eviction_loss loss = measure(layer, {}, everything(layer.shape));
    CHECK(loss.error == std::vector<double>(4, 0.0));
    CHECK(loss.error_projected == std::vector<double>(4, 0.0));
    CHECK(loss.layer_error == 0.0);
    CHECK(loss.layer_bound == 0.0);
}

TEST_CASE("eviction_loss: a plan that keeps nothing of a head loses its whole output", "[measure][odd]") {
    const layer_data layer = small_layer();
    const layer_oracle slow(layer.inputs(), {});
    const eviction_loss loss = measure(layer, {}, plan_of({{}, {}}));
    for (std::size_t h = 0; h < 4; ++h) {
        double expected = 0;
        for (const auto& weights : slow.attention[h]) {
            expected += oracle::l1_norm(oracle::times(weights, slow.values[h / 2])) / 4;
        }
        CHECK(loss.kept_mass[h] == 0.0);
        CHECK(loss.error[h] == Approx(expected).epsilon(1e-4));
    }
}

TEST_CASE("eviction_loss: without W_O its figures are left out, the bound only if asked", "[measure]") {
    const layer_data layer = small_layer();
    support::random r(302);
    const keep_plan plan = random_plan(r, layer.shape);
    const eviction_loss full = measure(layer, {}, plan);
    eviction_loss loss;
    const auto bare = kvtrim::layer(layer.keys(), layer.values()).with_queries(layer.queries());
    REQUIRE(measure_eviction(bare, {}, plan, loss).ok());
    CHECK(loss.kept_mass == full.kept_mass);
    CHECK(loss.error == full.error);
    CHECK(loss.error_projected.empty());
    CHECK(loss.layer_error == 0.0);
    CHECK(loss.layer_bound == 0.0);
    REQUIRE(measure_eviction(layer.inputs(), {}, plan, loss, loss_bound::skipped).ok());
    CHECK(loss.layer_error == full.layer_error);
    CHECK(loss.layer_bound == 0.0);
}

TEST_CASE("eviction_loss: heads of different lengths are measured each on its own", "[measure]") {
    const layer_data layer = small_layer();
    const ragged_cache keys(layer.keys(), {40, 25});
    const ragged_cache values(layer.values(), {40, 25});
    const auto in = kvtrim::layer(keys.get(), values.get())
                        .with_queries(layer.queries())
                        .with_output_projection(layer.projection());
    const std::vector<oracle::token_set> kept{{0, 3, 20, 36, 37, 38, 39}, {1, 2, 22, 24}};
    const layer_oracle slow(in, {});
    const auto expected =
        oracle::eviction_loss(slow.queries, slow.keys, slow.values, slow.w_o, kept, slow.setup);
    eviction_loss loss;
    REQUIRE(measure_eviction(in, {}, plan_of(kept), loss).ok());
    CHECK(difference_of(loss.kept_mass, expected.kept_mass, 1e-6) == "");
    CHECK(difference_of(loss.error, expected.error, 1e-4) == "");
    CHECK(loss.layer_error == Approx(expected.layer_error).epsilon(1e-4));
    CHECK(loss.layer_bound == Approx(expected.layer_bound).epsilon(1e-4));
}

TEST_CASE(
    "eviction_loss: W_O of other heads or channels, or without memory, is refused with the loss unchanged",
    "[measure][errors]") {
    const layer_data layer = small_layer();
    const auto answer = [&](const view& w) {
        eviction_loss loss;
        loss.layer_error = 42;
        const status s =
            measure_eviction(layer.inputs().with_output_projection(w), {}, everything(layer.shape), loss);
        CHECK((loss.layer_error == 42) == !s.ok());
        CHECK(loss.kept_mass.empty() == !s.ok());
        return s.code();
    };
    CHECK(answer(view(layer.w.data(), {4, 8, 24})) == errc::ok);
    for (const index_t heads : {0, 2}) {
        CHECK(answer(view(layer.w.data(), {heads, 8, 24})) == errc::invalid_parameter);
    }
    CHECK(answer(view(layer.w.data(), {3, 8, 24})) != errc::ok); // nor a multiple of kv_heads
    for (const index_t rows : {0, 7}) {
        CHECK(answer(view(layer.w.data(), {4, rows, 24})) == errc::invalid_parameter);
    }
    CHECK(answer(view(nullptr, {4, 8, 24})) == errc::invalid_parameter);
    CHECK(answer(view(layer.w.data(), {4, 8, -24})) == errc::invalid_parameter);
    CHECK(answer(view(layer.w.data(), {4, 8, index_t{1} << 62})) == errc::invalid_parameter);
}

TEST_CASE("eviction_loss: values of no channels lose nothing, however wide W_O says it is",
          "[measure][odd]") {
    const layer_data layer = small_layer();
    const auto in = kvtrim::layer(layer.keys(), view(nullptr, {2, 40, 0}))
                        .with_queries(layer.queries())
                        .with_output_projection(view(nullptr, {4, 0, index_t{1} << 40}));
    eviction_loss loss;
    REQUIRE(measure_eviction(in, {}, plan_of({{0, 1}, {2}}), loss).ok());
    CHECK(loss.layer_error == 0.0);
    CHECK(loss.layer_bound == 0.0);
}

TEST_CASE("eviction_loss: more tokens than a plan addresses are refused before memory is asked for",
          "[measure][errors]") {
    constexpr index_t tokens = index_t{1} << 31;
    const auto in = kvtrim::layer(view(nullptr, {2, tokens, 0}), view(nullptr, {2, tokens, 0}))
                        .with_queries(view(nullptr, {4, 4, 0}));
    eviction_loss loss;
    const status s = measure_eviction(in, {}, plan_of({{}, {}}), loss);
    CHECK(s.code() == errc::index_overflow);
    CHECK(s.needed() == tokens);
}

TEST_CASE("eviction_loss: ada_kv_loss_bound is twice the evicted mass times the largest projected norm",
          "[measure][paper]") {
    CHECK(ada_kv_loss_bound(std::vector<double>{0.5, 0.25, 0.0}, 4.0) == Approx(6.0));
    CHECK(ada_kv_loss_bound({}, 4.0) == 0.0);
}

TEST_CASE("eviction_loss: another cache's plan and bad input are refused with the loss unchanged",
          "[measure][errors]") {
    const layer_data layer = small_layer();
    eviction_loss loss;
    loss.layer_error = 42;
    const auto answer = [&](const auto& in, const eviction_request& request, const keep_plan& plan) {
        const status s = measure_eviction(in, request, plan, loss);
        CHECK(loss.layer_error == 42);
        CHECK(loss.kept_mass.empty());
        return s.code();
    };
    const auto in = layer.inputs();
    CHECK(answer(in, {}, plan_of({{0, 1}})) == errc::plan_mismatch);
    CHECK(answer(in, {}, plan_of({{0, 1}, {40}})) == errc::plan_mismatch);
    CHECK(answer(in, {}, plan_of({{1, 1}, {}})) == errc::plan_mismatch);
    CHECK(answer(in, {}, plan_of({{1, 0}, {}})) == errc::plan_mismatch);
    CHECK(answer(in, {.budget = {}, .protect = {.rollback_tokens = 37}}, plan_of({{}, {}})) ==
          errc::window_exceeds_tokens);
    eviction_request negative{};
    negative.attention.scale = -1;
    CHECK(answer(in, negative, plan_of({{}, {}})) == errc::invalid_parameter);
    const view three(layer.q.data(), {3, 4, 8});
    CHECK(answer(kvtrim::layer(layer.keys(), layer.values()).with_queries(three), {}, plan_of({{}, {}})) ==
          errc::heads_not_divisible);
    const view narrow(layer.q.data(), {4, 4, 7});
    const auto with_queries = [&](const view& q) {
        return answer(kvtrim::layer(layer.keys(), layer.values()).with_queries(q), {}, plan_of({{}, {}}));
    };
    CHECK(with_queries(narrow) == errc::invalid_parameter);
    CHECK(with_queries(view(nullptr, {4, 4, 8})) == errc::invalid_parameter);
    const view shorter(layer.v.data(), {2, 39, 8});
    CHECK(answer(kvtrim::layer(layer.keys(), shorter).with_queries(layer.queries()), {}, plan_of({{}, {}})) ==
          errc::invalid_parameter);
}
