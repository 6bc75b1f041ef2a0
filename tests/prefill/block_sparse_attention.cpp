// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/prefill/block_sparse_attention.hpp>

#include "support/random_prompt.hpp"

using namespace kvtrim;
using namespace support;

namespace {

struct output {
    std::vector<float> out, log_sum_exp;
    index_t heads, rows, columns;

    template <class Inputs>
    explicit output(const Inputs& in)
        : heads(extent(in.queries, 0)), rows(extent(in.queries, 1)), columns(extent(in.values, 2)) {
        out.assign(static_cast<std::size_t>(heads * rows * columns), -777.0f);
        log_sum_exp.assign(static_cast<std::size_t>(heads * rows), -777.0f);
    }
    [[nodiscard]] strided<float, 3> get() { return {out.data(), {heads, rows, columns}}; }
    [[nodiscard]] bool is_untouched() const {
        return std::all_of(out.begin(), out.end(), [](float x) { return x == -777.0f; }) &&
               std::all_of(log_sum_exp.begin(), log_sum_exp.end(), [](float x) { return x == -777.0f; });
    }
};

template <class Inputs, class Executor = serial_executor>
output attend(const Inputs& in, const prune_plan& plan, const attention_options& options = {},
              Executor ex = {}) {
    output o(in);
    growing_workspace memory;
    const status s = block_sparse_attention(in, plan, options, o.get(), o.log_sum_exp, memory, ex);
    INFO(s.what());
    REQUIRE(s.ok());
    return o;
}

void check_against_oracle(output& got, const attention_result& expected, double tolerance) {
    CHECK(distance(got.get(), expected.out) <= tolerance);
    oracle::row sums;
    for (const auto& row : expected.log_sum_exp) { sums.insert(sums.end(), row.begin(), row.end()); }
    CHECK(difference(got.log_sum_exp, sums, 1e-5, 1e-4) == "");
}

layer_shape random_shape_of_prompt(support::random& r) {
    return {.kv_heads = r.between(1, 3),
            .group = r.between(1, 5),
            .tokens = r.between(1, 300),
            .head_dim = r.one_of({4, 16, 33, 64}),
            .value_dim = r.one_of({8, 20, 64}),
            .hidden = 1};
}

} // namespace

TEST_CASE("block_sparse_attention: it equals masked attention in double, whatever the plan",
          "[prefill][oracle]") {
    at_each_cpu_level([] {
        support::random r(801);
        for (int i = 0; i < 60; ++i) {
            const layer_shape shape = random_shape_of_prompt(r);
            const index_t block = r.one_of({1, 7, 16, 32, 64, 128});
            const index_t segment = block * r.between(1, 4);
            const index_t first = r.chance(0.5) ? 0 : r.between(0, (shape.tokens - 1) / segment) * segment;
            const chunk_data data = random_chunk(shape, first, 8010 + static_cast<std::uint64_t>(i));
            const auto in = data.inputs();
            const prune_plan plan =
                random_prune_plan(r, data.grid(segment, block), shape.kv_heads, r.uniform());
            attention_options options{.scale = r.chance(0.3) ? 0.3f : 0.0f,
                                      .soft_cap = r.chance(0.3) ? 5.0f : 0.0f,
                                      .sliding_window = r.chance(0.3) ? r.between(1, shape.tokens) : 0};
            std::vector<float> sinks;
            for (index_t h = 0; h < shape.q_heads(); ++h) { sinks.push_back(static_cast<float>(r.normal())); }
            if (r.chance(0.3)) { options.sink_logits = sinks; }
            CAPTURE(i, shape.tokens, first, segment, block, options.sliding_window, options.soft_cap);
            output got = attend(in, plan, options);
            check_against_oracle(got, attention_over(in, plan, options), 2e-5);
        }
    });
}

TEST_CASE("block_sparse_attention: a plan of everything is dense causal attention", "[prefill]") {
    at_each_cpu_level([] {
        const chunk_data data =
            random_chunk({.kv_heads = 2, .group = 4, .tokens = 700, .head_dim = 64}, 0, 802);
        const auto in = data.inputs();
        prune_plan dense;
        REQUIRE(plan_dense(data.grid(128, 32), 2, dense).ok());
        const oracle::tensor a = oracle::attention(to_oracle(in.queries), to_oracle(in.keys), {});
        oracle::tensor expected;
        for (std::size_t h = 0; h < a.size(); ++h) {
            expected.emplace_back();
            const oracle::tensor values = to_oracle(in.values);
            for (const auto& weights : a[h]) {
                expected.back().push_back(oracle::times(weights, values[h / 4]));
            }
        }
        output got = attend(in, dense);
        CHECK(distance(got.get(), expected) <= 1e-5);
        // The division into segments and blocks is of no consequence beyond rounding.
        prune_plan other;
        REQUIRE(plan_dense(data.grid(64, 8), 2, other).ok());
        output again = attend(in, other);
        CHECK(distance(again.get(), expected) <= 1e-5);
    });
}

TEST_CASE("block_sparse_attention: chunks whose earlier keys are cached give the rows of the whole prompt",
          "[prefill]") {
    at_each_cpu_level([] {
        support::random r(803);
        const chunk_data whole =
            random_chunk({.kv_heads = 2, .group = 2, .tokens = 330, .head_dim = 16}, 0, 803);
        const prune_plan plan = random_prune_plan(r, whole.grid(64, 16), 2, 0.4);
        output expected = attend(whole.inputs(), plan);
        for (const index_t first : {64, 192, 320}) {
            const index_t end = std::min<index_t>(first + 128, 330);
            const view all = whole.layer.queries();
            const view queries(all.data_handle() + first * 16, {4, end - first, 16}, {330 * 16, 16, 1});
            prune_plan part;
            const segment_grid grid{64, 16, first, end};
            std::vector<index_t> counts;
            for (index_t g = 0; g < 2; ++g) {
                for (index_t s = 0; s < grid.segments(); ++s) {
                    counts.push_back(std::ssize(plan.row(g, first / 64 + s)));
                }
            }
            REQUIRE(part.reset(grid, 2, counts).ok());
            for (index_t g = 0; g < 2; ++g) {
                for (index_t s = 0; s < grid.segments(); ++s) {
                    const auto row = plan.row(g, first / 64 + s);
                    std::copy(row.begin(), row.end(), part.writable_row(g, s).begin());
                }
            }
            output got = attend(layer(whole.layer.keys(), whole.layer.values()).with_queries(queries), part);
            for (index_t h = 0; h < 4; ++h) {
                for (index_t i = first; i < end; ++i) {
                    for (index_t d = 0; d < 16; ++d) {
                        CHECK(got.get()(h, i - first, d) == expected.get()(h, i, d));
                    }
                }
            }
        }
    });
}

TEST_CASE("block_sparse_attention: any layout, element and source of the same numbers gives the same result",
          "[prefill]") {
    at_each_cpu_level([] {
        support::random r(804);
        const chunk_data data =
            random_chunk({.kv_heads = 2, .group = 3, .tokens = 150, .head_dim = 24, .value_dim = 40}, 0, 804);
        const auto in = data.inputs();
        const prune_plan plan = random_prune_plan(r, data.grid(32, 16), 2, 0.5);
        output expected = attend(in, plan);
        for (const auto order : {layout::token_major, layout::transposed, layout::reversed, layout::gapped}) {
            const auto k = store(in.keys, order), v = store(in.values, order), q = store(in.queries, order);
            const output got = attend(layer(k.get(), v.get()).with_queries(q.get()), plan);
            CHECK(got.out == expected.out);
            CHECK(got.log_sum_exp == expected.log_sum_exp);
        }
        const output generic = attend(
            layer(generic_view{in.keys}, generic_view{in.values}).with_queries(generic_view{in.queries}),
            plan);
        CHECK(generic.out == expected.out);
        const output decoded = attend(layer(decoding_source(in.keys), decoding_source(in.values))
                                          .with_queries(decoding_source(in.queries)),
                                      plan);
        CHECK(decoded.out == expected.out);
        const auto check_element = [&]<class T>(T) {
            const auto k = store<T>(in.keys, layout::head_major), v = store<T>(in.values, layout::head_major),
                       q = store<T>(in.queries, layout::head_major);
            const auto halves = layer(k.get(), v.get()).with_queries(q.get());
            output got = attend(halves, plan);
            check_against_oracle(got, attention_over(halves, plan, {}), 2e-5); // of the same rounded numbers
        };
        check_element(f16{});
        check_element(bf16{});
        check_element(double{});
    });
}

TEST_CASE("block_sparse_attention: it writes where the engine wants it, in the engine's element",
          "[prefill]") {
    support::random r(805);
    const chunk_data data =
        random_chunk({.kv_heads = 2, .group = 2, .tokens = 70, .head_dim = 16, .value_dim = 16}, 0, 805);
    const auto in = data.inputs();
    const prune_plan plan = random_prune_plan(r, data.grid(32, 16), 2, 0.5);
    output expected = attend(in, plan);
    growing_workspace memory;
    std::vector<bf16> token_major(70 * 4 * 16);
    const strided<bf16, 3> heads(token_major.data(), {4, 70, 16}, {16, 64, 1});
    REQUIRE(block_sparse_attention(in, plan, {}, heads, {}, memory).ok());
    std::vector<float> channels_outside(70 * 4 * 16);
    const strided<float, 3> transposed(channels_outside.data(), {4, 70, 16}, {70 * 16, 1, 70});
    REQUIRE(block_sparse_attention(in, plan, {}, transposed, {}, memory).ok());
    for (index_t h = 0; h < 4; ++h) {
        for (index_t i = 0; i < 70; ++i) {
            for (index_t d = 0; d < 16; ++d) {
                const float x = expected.get()(h, i, d);
                CHECK(transposed(h, i, d) == x);
                CHECK(heads(h, i, d).bits == element_traits<bf16>::from_float(x).bits);
            }
        }
    }
}

TEST_CASE("block_sparse_attention: threads do not change a bit", "[prefill]") {
    at_each_cpu_level([] {
        support::random r(806);
        const chunk_data data =
            random_chunk({.kv_heads = 3, .group = 2, .tokens = 500, .head_dim = 16}, 0, 806);
        const prune_plan plan = random_prune_plan(r, data.grid(64, 16), 3, 0.3);
        const output expected = attend(data.inputs(), plan);
        CHECK(attend(data.inputs(), plan, {}, thread_executor{4}).out == expected.out);
        CHECK(attend(data.inputs(), plan, {}, shuffling_executor{7}).out == expected.out);
    });
}

TEST_CASE("block_sparse_attention: broken keys do not spoil the others, and a row that sees nothing is zero",
          "[prefill][odd]") {
    constexpr float nan = std::numeric_limits<float>::quiet_NaN();
    constexpr float infinity = std::numeric_limits<float>::infinity();
    at_each_cpu_level([&] {
        chunk_data data =
            random_chunk({.kv_heads = 1, .group = 1, .tokens = 40, .head_dim = 8, .value_dim = 8}, 0, 807);
        prune_plan dense;
        REQUIRE(plan_dense(data.grid(16, 16), 1, dense).ok());
        data.layer.key(0, 3)[2] = nan; // counts as masked
        output with_nan = attend(data.inputs(), dense);
        for (const float x : with_nan.out) { CHECK(std::isfinite(x)); }
        for (index_t t = 0; t < 40; ++t) { std::fill_n(data.layer.key(0, t), 8, nan); }
        output all_masked = attend(data.inputs(), dense);
        CHECK(all_masked.out == std::vector<float>(40 * 8, 0.0f));
        CHECK(all_masked.log_sum_exp == std::vector<float>(40, -infinity));
        // One infinite logit takes all the attention.
        data = random_chunk({.kv_heads = 1, .group = 1, .tokens = 40, .head_dim = 8, .value_dim = 8}, 0, 808);
        for (float& x : data.layer.q) { x = 1; }
        std::fill_n(data.layer.key(0, 5), 8, infinity);
        output taken = attend(data.inputs(), dense);
        for (index_t d = 0; d < 8; ++d) { CHECK(taken.get()(0, 39, d) == Approx(data.layer.value(0, 5)[d])); }
    });
}

TEST_CASE("block_sparse_attention: extreme logits stay defined", "[prefill][odd]") {
    at_each_cpu_level([] {
        chunk_data data =
            random_chunk({.kv_heads = 1, .group = 2, .tokens = 50, .head_dim = 8, .value_dim = 8}, 0, 809);
        for (float& x : data.layer.k) { x *= 65504.0f; } // the largest f16
        prune_plan dense;
        REQUIRE(plan_dense(data.grid(16, 8), 1, dense).ok());
        const output got = attend(data.inputs(), dense);
        for (const float x : got.out) { CHECK(std::isfinite(x)); }
    });
}

TEST_CASE("block_sparse_attention: bad input is answered, broken contracts are named, nothing is written",
          "[prefill][errors]") {
    const chunk_data data =
        random_chunk({.kv_heads = 2, .group = 2, .tokens = 64, .head_dim = 8, .value_dim = 8}, 0, 810);
    const auto in = data.inputs();
    prune_plan plan;
    REQUIRE(plan_dense(data.grid(32, 8), 2, plan).ok());
    output o(in);
    growing_workspace memory;
    const auto answer = [&](const auto& inputs, const prune_plan& p, const attention_options& options) {
        const status s = block_sparse_attention(inputs, p, options, o.get(), o.log_sum_exp, memory);
        CHECK(o.is_untouched());
        return s.code();
    };
    constexpr float nan = std::numeric_limits<float>::quiet_NaN();
    CHECK(answer(in, plan, {.scale = -1}) == errc::invalid_parameter);
    CHECK(answer(in, plan, {.soft_cap = nan}) == errc::invalid_parameter);
    CHECK(answer(in, plan, {.sliding_window = -1}) == errc::invalid_parameter);
    prune_plan other;
    REQUIRE(plan_dense({32, 8, 0, 63}, 2, other).ok());
    CHECK(answer(in, other, {}) == errc::plan_mismatch);
    REQUIRE(plan_dense(data.grid(32, 8), 1, other).ok());
    CHECK(answer(in, other, {}) == errc::plan_mismatch);
    REQUIRE(plan_dense({32, 8, 32, 96}, 2, other).ok()); // the cache is too short
    CHECK(answer(in, other, {}) == errc::plan_mismatch);
    const auto three_heads =
        layer(data.layer.keys(), data.layer.values()).with_queries(view(data.layer.q.data(), {3, 64, 8}));
    {
        std::vector<float> out(3 * 64 * 8, -777.0f);
        const strided<float, 3> to(out.data(), {3, 64, 8});
        CHECK(block_sparse_attention(three_heads, plan, {}, to, {}, memory).code() ==
              errc::heads_not_divisible);
        CHECK(out == std::vector<float>(3 * 64 * 8, -777.0f));
    }
    const index_t bytes = block_sparse_attention_bytes(in, plan, {}, o.get());
    std::vector<std::byte> exact(static_cast<std::size_t>(bytes));
    workspace too_short(std::span<std::byte>(exact).first(exact.size() / 2));
    CHECK(block_sparse_attention(in, plan, {}, o.get(), o.log_sum_exp, too_short).code() ==
          errc::workspace_too_small);
    CHECK(o.is_untouched());

    const auto message = [&](const auto& to, std::span<float> sums, const attention_options& options) {
        return violation_of(
            [&] { static_cast<void>(block_sparse_attention(in, plan, options, to, sums, memory)); });
    };
    CHECK(message(strided<float, 3>(o.out.data(), {4, 63, 8}), {}, {}) ==
          "the output must be [q_heads, queries, value head_dim]");
    CHECK(message(o.get(), std::span(o.log_sum_exp).first(5), {}) ==
          "log_sum_exp must be empty or [q_heads * queries]");
    const std::vector<float> sinks(3, 0.0f);
    CHECK(message(o.get(), {}, {.sink_logits = sinks}) ==
          "attention.sink_logits must have one entry per query head");
    CHECK(o.is_untouched());
    workspace enough(exact);
    CHECK(block_sparse_attention(in, plan, {}, o.get(), o.log_sum_exp, enough).ok());
}

TEST_CASE("block_sparse_attention: no queries, no work", "[prefill][odd]") {
    const chunk_data data = random_chunk({.kv_heads = 2, .group = 2, .tokens = 64, .head_dim = 8}, 64, 811);
    prune_plan plan;
    REQUIRE(plan_dense(data.grid(32, 8), 2, plan).ok());
    CHECK(plan.rows() == 0);
    CHECK(attend(data.inputs(), plan).out.empty());
}

TEST_CASE("block_sparse_attention: its memory does not grow with the prompt", "[prefill]") {
    const auto bytes = [](index_t tokens) {
        const std::vector<float> none(1);
        const strided<const float, 3> keys(none.data(), {8, tokens, 128}),
            queries(none.data(), {32, tokens, 128});
        std::vector<float> to(1);
        prune_plan plan;
        REQUIRE(plan_dense({.segment_tokens = 512, .block_tokens = 512, .end_token = tokens}, 8, plan).ok());
        return block_sparse_attention_bytes(layer(keys, keys).with_queries(queries), plan, {},
                                            strided<float, 3>(to.data(), {32, tokens, 128}));
    };
    CHECK(bytes(131072) == bytes(8192));
    CHECK(bytes(131072) < 4 << 20);
}
