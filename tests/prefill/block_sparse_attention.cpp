// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/prefill/block_sparse_attention.hpp>

#include "core/own_views.hpp"
#include "support/cpu_levels.hpp"
#include "support/emulated_tiles.hpp"
#include "support/prefill.hpp"
#include "support/special_floats.hpp"

#include <cmath>
#include <string>
#include <vector>

using namespace kvtrim;
using namespace support;

namespace {

constexpr float unwritten = -7.5f; // exact in every element

template <class T>
strided<T, 3> writable(stored<T>& s) {
    return {s.elements.data() + s.origin, s.extents, s.strides};
}

// An output in any order, filled with a mark.
template <class T>
stored<T> output_for(const layer_data& layer, index_t queries, layout order) {
    const index_t dim = layer.shape.value_dim;
    const std::vector<float> nothing = zeros(layer.shape.q_heads() * queries * dim);
    stored<T> s = store<T>(view(nothing.data(), {layer.shape.q_heads(), queries, dim}), order);
    std::fill(s.elements.begin(), s.elements.end(), element_traits<T>::from_float(unwritten));
    return s;
}

template <class T>
index_t marks(const stored<T>& s) {
    return std::count_if(s.elements.begin(), s.elements.end(),
                         [](const T& x) { return to_float(x) == unwritten; });
}

// A prompt whose values are at most 1, cut at a chunk's first token.
struct prompt_case {
    layer_data layer;
    segment_grid grid;

    [[nodiscard]] view queries() const { return rows_of(layer.queries(), grid.first_token, grid.end_token); }
    [[nodiscard]] auto inputs() const {
        return kvtrim::layer(layer.keys(), layer.values()).with_queries(queries());
    }
};

prompt_case make_case(const layer_shape& shape, const segment_grid& grid, std::uint64_t seed) {
    prompt_case c{random_prompt(shape, seed), grid};
    float largest = 1e-6f;
    for (const float x : c.layer.v) { largest = std::max(largest, std::abs(x)); }
    for (float& x : c.layer.v) { x /= largest; }
    return c;
}

prompt_case random_case(support::random& r) {
    segment_grid grid;
    grid.block_tokens = r.one_of({1, 7, 16, 32, 5});
    grid.segment_tokens = grid.block_tokens * r.between(1, grid.block_tokens > 10 ? 4 : 12);
    const index_t tokens = r.between(1, 200);
    grid.first_token =
        r.chance(0.5) ? 0 : r.between(0, (tokens - 1) / grid.segment_tokens) * grid.segment_tokens;
    grid.end_token = tokens;
    const layer_shape shape{.kv_heads = r.between(1, 2),
                            .group = r.between(1, 5),
                            .tokens = tokens + (r.chance(0.3) ? r.between(1, 20) : 0), // cached for later
                            .head_dim = r.one_of({4, 8, 16, 33, 64}),
                            .value_dim = r.one_of({3, 8, 16, 40, 64})};
    return make_case(shape, grid, r.bits());
}

attention_options random_attention_options(support::random& r, const prompt_case& c,
                                           std::vector<float>& sinks) {
    attention_options o;
    o.scale = r.chance(0.3) ? static_cast<float>(0.05 + 0.3 * r.uniform()) : 0.0f;
    o.soft_cap = r.chance(0.3) ? static_cast<float>(1 + 30 * r.uniform()) : 0.0f;
    o.sliding_window = r.chance(0.3) ? r.between(1, c.grid.end_token + 5) : 0;
    sinks.clear();
    for (index_t h = 0; h < c.layer.shape.q_heads() && r.chance(0.98); ++h) {
        sinks.push_back(static_cast<float>(2 * r.normal()));
    }
    if (static_cast<index_t>(sinks.size()) != c.layer.shape.q_heads() || r.chance(0.6)) { sinks.clear(); }
    o.sink_logits = sinks;
    return o;
}

using expected_rows = std::vector<std::vector<oracle::attended_row>>;

template <class Inputs>
expected_rows expected_of(const Inputs& in, const prune_plan& plan, const attention_options& o) {
    const segment_grid& grid = plan.grid();
    return oracle::block_sparse_attention(to_oracle(in.queries), to_oracle(in.keys), to_oracle(in.values),
                                          rows_of(plan), static_cast<std::size_t>(grid.segment_tokens),
                                          static_cast<std::size_t>(grid.block_tokens),
                                          static_cast<std::size_t>(grid.first_token),
                                          to_oracle(eviction_request{.budget = {}, .attention = o}));
}

// An empty text, or the first difference.
template <class T>
std::string compare(const stored<T>& out, std::span<const float> lse, const expected_rows& expected,
                    double tolerance, double absolute) {
    for (std::size_t h = 0; h < expected.size(); ++h) {
        for (std::size_t i = 0; i < expected[h].size(); ++i) {
            std::vector<float> row;
            for (index_t d = 0; d < out.extents[2]; ++d) {
                row.push_back(to_float(out.get()(static_cast<index_t>(h), static_cast<index_t>(i), d)));
            }
            const std::string at = "head " + std::to_string(h) + ", query " + std::to_string(i) + ", ";
            if (const auto text = difference(row, expected[h][i].out, tolerance, absolute); !text.empty()) {
                return at + text;
            }
            if (lse.empty()) { continue; }
            const float got = lse[h * expected[h].size() + i];
            if (static_cast<double>(got) == expected[h][i].log_sum_exp) { continue; }
            const auto text = difference({&got, 1}, {expected[h][i].log_sum_exp}, 2e-5, 2e-5);
            if (!text.empty()) { return at + "log-sum-exp, " + text; }
        }
    }
    return {};
}

// Calls attend(out, log_sum_exp) and compares; tolerance is absolute, of values of at most 1, or that of T.
template <class T = float, class Inputs, class Attend>
std::string difference_of(const prompt_case& c, const Inputs& in, const prune_plan& plan,
                          const attention_options& o, layout order, bool with_lse, double tolerance,
                          Attend&& attend) {
    const index_t queries = c.grid.tokens();
    stored<T> out = output_for<T>(c.layer, queries, order);
    std::vector<float> lse = zeros(with_lse ? c.layer.shape.q_heads() * queries : 0);
    const status s = attend(writable(out), lse);
    if (!s.ok()) { return s.what(); }
    const index_t written = c.layer.shape.q_heads() * queries * c.layer.shape.value_dim;
    const auto all = static_cast<index_t>(out.elements.size());
    if (marks(out) != all - written) { return "what lies between the rows was written, or a row was not"; }
    const bool wide = sizeof(T) == 4;
    return compare(out, lse, expected_of(in, plan, o), wide ? 0 : 1e-2, std::max(tolerance, wide ? 0 : 1e-4));
}

// AMX rounds weights to bf16, each by at most 2^-9 of itself.
constexpr double amx_tolerance = 0x1p-9 + 1e-5;

template <class Inputs>
double tolerance_of(const Inputs&) {
    double tolerance = 1e-5;
    detail::with_query_tile<Inputs>([&]<class Tile>() {
        if (sizeof(typename Tile::element) == 2) { tolerance = amx_tolerance; }
    });
    return tolerance;
}

// Attends with exactly the workspace that is asked for, and compares.
template <class T = float, class Inputs, class Executor = serial_executor>
std::string checked(const prompt_case& c, const Inputs& in, const prune_plan& plan,
                    const attention_options& o, layout order, bool with_lse = true, Executor ex = {}) {
    return difference_of<T>(
        c, in, plan, o, order, with_lse, tolerance_of(in), [&](const auto& out, std::span<float> lse) {
            std::vector<std::byte> memory(
                static_cast<std::size_t>(block_sparse_attention_bytes(in, plan, o, out, ex)));
            workspace scratch(memory);
            return block_sparse_attention(in, plan, o, out, lse, scratch, ex);
        });
}

} // namespace

TEST_CASE("block_sparse_attention: random plans, shapes and options equal the oracle within 1e-5",
          "[prefill]") {
    support::random r(131);
    for (int n = 0; n < 40; ++n) {
        const prompt_case c = random_case(r);
        const prune_plan plan = random_plan(c.grid, c.layer.shape.kv_heads, r);
        std::vector<float> sinks;
        const attention_options o = random_attention_options(r, c, sinks);
        const bool with_lse = r.chance(0.7);
        CAPTURE(n, c.grid.segment_tokens, c.grid.block_tokens, c.grid.first_token, c.grid.end_token,
                c.layer.shape.group, c.layer.shape.head_dim, c.layer.shape.value_dim, o.sliding_window,
                o.soft_cap);
        at_each_cpu_level(
            [&] { CHECK(checked(c, c.inputs(), plan, o, layout::head_major, with_lse) == ""); });
    }
}

TEST_CASE("block_sparse_attention: every block and segment size, over borders of tiles and passes",
          "[prefill]") {
    support::random r(132);
    for (const index_t block : {1, 7, 16, 32, 64, 128}) {
        for (const index_t blocks_per_segment : {1, 2, 3}) {
            const index_t segment = block * blocks_per_segment;
            const index_t tokens = 2 * segment + r.between(1, segment);
            segment_grid grid{.segment_tokens = segment, .block_tokens = block, .end_token = tokens};
            if (r.chance(0.5)) { grid.first_token = segment; }
            const prompt_case c = make_case(
                {.kv_heads = 1, .group = 2, .tokens = tokens, .head_dim = 8, .value_dim = 4}, grid, r.bits());
            const prune_plan plan = random_plan(grid, 1, r);
            CAPTURE(block, segment, tokens);
            at_each_cpu_level([&] { CHECK(checked(c, c.inputs(), plan, {}, layout::head_major) == ""); });
        }
    }
}

TEST_CASE("block_sparse_attention: a segment of several passes, and groups larger than a tile", "[prefill]") {
    support::random r(133);
    // 1024 query rows are a pass: 1100 queries of one head, 300 of 5 heads, 70 of 40 heads.
    const struct { index_t group, segment, tokens; } shapes[]{{1, 1104, 1150}, {5, 304, 350}, {40, 40, 75}};
    for (const auto& s : shapes) {
        const segment_grid grid{.segment_tokens = s.segment, .block_tokens = 8, .end_token = s.tokens};
        const prompt_case c =
            make_case({.kv_heads = 1, .group = s.group, .tokens = s.tokens, .head_dim = 4, .value_dim = 2},
                      grid, r.bits());
        const prune_plan plan = random_plan(grid, 1, r);
        CAPTURE(s.group);
        at_each_cpu_level([&] { CHECK(checked(c, c.inputs(), plan, {}, layout::head_major) == ""); });
    }
}

TEST_CASE("block_sparse_attention: a plan of everything is dense causal attention", "[prefill]") {
    support::random r(134);
    for (int n = 0; n < 6; ++n) {
        const prompt_case c = random_case(r);
        prune_plan plan;
        REQUIRE(plan_dense(c.grid, c.layer.shape.kv_heads, plan).ok());
        stored<float> out = output_for<float>(c.layer, c.grid.tokens(), layout::head_major);
        growing_workspace memory;
        REQUIRE(block_sparse_attention(c.inputs(), plan, {}, writable(out), {}, memory).ok());
        // Dense attention of the oracle, which knows no plan; its cache ends with the chunk.
        const auto keys = to_oracle(rows_of(c.layer.keys(), 0, c.grid.end_token));
        const auto values = to_oracle(c.layer.values());
        const auto weights = oracle::attention(to_oracle(c.queries()), keys, {});
        double worst = 0;
        for (std::size_t h = 0; h < weights.size(); ++h) {
            for (std::size_t i = 0; i < weights[h].size(); ++i) {
                const oracle::row expected =
                    oracle::times(weights[h][i], values[h / static_cast<std::size_t>(c.layer.shape.group)]);
                for (std::size_t d = 0; d < expected.size(); ++d) {
                    const float got =
                        out.get()(static_cast<index_t>(h), static_cast<index_t>(i), static_cast<index_t>(d));
                    worst = std::max(worst, std::abs(static_cast<double>(got) - expected[d]));
                }
            }
        }
        CHECK(worst <= 1e-5);
    }
}

TEST_CASE("block_sparse_attention: inputs and outputs in any order, decoded ones and 16 bits", "[prefill]") {
    support::random r(135);
    for (int n = 0; n < 4; ++n) {
        const prompt_case c = random_case(r);
        const prune_plan plan = random_plan(c.grid, c.layer.shape.kv_heads, r);
        const view k = c.layer.keys(), v = c.layer.values(), q = c.queries();
        constexpr layout orders[]{layout::head_major, layout::token_major, layout::transposed,
                                  layout::reversed, layout::gapped};
        at_each_cpu_level([&] {
            for (const layout order : orders) {
                const auto random_order = [&] { return r.one_of(orders); };
                CAPTURE(n, static_cast<int>(order));
                {
                    const auto sk = store(k, order), sv = store(v, random_order()),
                               sq = store(q, random_order());
                    const auto in = kvtrim::layer(sk.get(), sv.get()).with_queries(sq.get());
                    CHECK(checked(c, in, plan, {}, order) == "");
                    CHECK(checked<bf16>(c, in, plan, {}, order) == "");
                }
                {
                    const auto sk = store<bf16>(k, order), sv = store<bf16>(v, random_order()),
                               sq = store<bf16>(q, random_order());
                    const auto in = kvtrim::layer(sk.get(), sv.get()).with_queries(sq.get());
                    CHECK(checked<bf16>(c, in, plan, {}, order) == "");
                    CHECK(checked(c, in, plan, {}, order) == "");
                }
                {
                    const auto sk = store<f16>(k, random_order()), sv = store<f16>(v, order),
                               sq = store<f16>(q, order);
                    const auto in = kvtrim::layer(sk.get(), sv.get()).with_queries(sq.get());
                    CHECK(checked<f16>(c, in, plan, {}, random_order()) == "");
                }
            }
            CHECK(checked(c, kvtrim::layer(decoding_source(k), generic_view{v}).with_queries(generic_view{q}),
                          plan, {}, layout::head_major) == "");
            CHECK(
                checked(c,
                        kvtrim::layer(own::quantised(k), decoding_source(v)).with_queries(decoding_source(q)),
                        plan, {}, layout::token_major) == "");
        });
    }
}

TEST_CASE("block_sparse_attention: executors and what else the cache holds do not change a bit",
          "[prefill]") {
    support::random r(136);
    for (int n = 0; n < 4; ++n) {
        prompt_case c = random_case(r);
        const prune_plan plan = random_plan(c.grid, c.layer.shape.kv_heads, r);
        at_each_cpu_level([&] {
            const auto run = [&](const prompt_case& of, auto ex) {
                stored<float> out = output_for<float>(of.layer, of.grid.tokens(), layout::token_major);
                std::vector<float> lse = zeros(of.layer.shape.q_heads() * of.grid.tokens());
                growing_workspace memory;
                REQUIRE(block_sparse_attention(of.inputs(), plan, {}, writable(out), lse, memory, ex).ok());
                out.elements.insert(out.elements.end(), lse.begin(), lse.end());
                return out.elements;
            };
            const std::vector<float> expected = run(c, serial_executor{});
            CHECK(run(c, thread_executor{3}) == expected);
            CHECK(run(c, shuffling_executor{5}) == expected);
            prompt_case other = c;
            const layer_shape& s = c.layer.shape;
            for (index_t g = 0; g < s.kv_heads; ++g) {
                for (index_t t = c.grid.end_token; t < s.tokens; ++t) {
                    std::fill_n(other.layer.key(g, t), s.head_dim, not_a_number);
                    std::fill_n(other.layer.value(g, t), s.value_dim, not_a_number);
                }
            }
            CHECK(run(other, serial_executor{}) == expected);
        });
    }
}

TEST_CASE("block_sparse_attention: blocks that are not planned are not read", "[prefill]") {
    support::random r(137);
    const segment_grid grid{.segment_tokens = 16, .block_tokens = 4, .first_token = 32, .end_token = 60};
    prompt_case c =
        make_case({.kv_heads = 2, .group = 2, .tokens = 60, .head_dim = 8, .value_dim = 8}, grid, 1);
    const oracle::plan_rows rows{{{0, 3, 7}, {2, 8}}, {{}, {1, 2, 11}}};
    for (const auto& [head, unplanned] : {std::pair{0, std::vector<index_t>{1, 4, 5, 6}},
                                          std::pair{1, std::vector<index_t>{0, 3, 4, 5, 6, 7}}}) {
        for (const index_t b : unplanned) {
            std::fill_n(c.layer.key(head, 4 * b), 32, not_a_number);
            std::fill_n(c.layer.value(head, 4 * b), 32, not_a_number);
        }
    }
    const prune_plan plan = plan_of(grid, rows);
    at_each_cpu_level([&] { CHECK(checked(c, c.inputs(), plan, {}, layout::head_major) == ""); });
}

TEST_CASE("block_sparse_attention: broken keys count for nothing, broken queries see nothing", "[prefill]") {
    const segment_grid grid{.segment_tokens = 8, .block_tokens = 4, .first_token = 8, .end_token = 30};
    for (const float odd : {not_a_number, infinity, -infinity, 3e38f}) {
        prompt_case c =
            make_case({.kv_heads = 1, .group = 2, .tokens = 30, .head_dim = 8, .value_dim = 8}, grid, 2);
        for (auto* values : {&c.layer.q, &c.layer.k}) {
            for (float& x : *values) {
                x = std::abs(x) + 0.01f;
            } // infinity times a positive number is no NaN
        }
        c.layer.key(0, 5)[2] = odd;
        c.layer.key(0, 20)[0] = odd;
        prune_plan plan;
        REQUIRE(plan_dense(grid, 1, plan).ok());
        CAPTURE(odd);
        at_each_cpu_level(
            [&] { CHECK(checked(c, c.inputs(), plan, {}, layout::head_major, odd < 0) == ""); });
        c.layer.q[8 * 12 + 3] = not_a_number;
        at_each_cpu_level(
            [&] { CHECK(checked(c, c.inputs(), plan, {}, layout::head_major, odd < 0) == ""); });
    }
}

TEST_CASE("block_sparse_attention: later keys and values change no bit of a query, whatever they are",
          "[prefill]") {
    support::random r(138);
    for (int n = 0; n < 12; ++n) {
        prompt_case c = random_case(r);
        const prune_plan plan = random_plan(c.grid, c.layer.shape.kv_heads, r);
        const attention_options options{.sliding_window = r.chance(0.3) ? r.between(1, 40) : 0};
        const layer_shape& s = c.layer.shape;
        at_each_cpu_level([&] {
            const auto run = [&](const prompt_case& of) {
                stored<float> out = output_for<float>(of.layer, of.grid.tokens(), layout::head_major);
                growing_workspace memory;
                REQUIRE(block_sparse_attention(of.inputs(), plan, options, writable(out), {}, memory).ok());
                return out.elements;
            };
            const std::vector<float> expected = run(c);
            const index_t odd_key = r.between(c.grid.first_token, c.grid.end_token - 1);
            prompt_case odd = c;
            const float poison = r.one_of({not_a_number, infinity, -infinity});
            for (index_t g = 0; g < s.kv_heads; ++g) {
                std::fill_n(odd.layer.key(g, odd_key), s.head_dim, poison);
                std::fill_n(odd.layer.value(g, odd_key), s.value_dim, poison);
            }
            const std::vector<float> got = run(odd);
            const auto row_floats = static_cast<std::ptrdiff_t>(c.grid.tokens() * s.value_dim);
            const auto earlier = static_cast<std::ptrdiff_t>((odd_key - c.grid.first_token) * s.value_dim);
            for (index_t h = 0; h < s.q_heads(); ++h) {
                const auto from = expected.begin() + h * row_floats;
                CAPTURE(n, h, odd_key, poison);
                CHECK(std::equal(from, from + earlier, got.begin() + h * row_floats));
            }
        });
    }
}

TEST_CASE("block_sparse_attention: an empty chunk writes nothing and needs nothing", "[prefill]") {
    const segment_grid grid{.segment_tokens = 8, .block_tokens = 4, .first_token = 16, .end_token = 16};
    const prompt_case c =
        make_case({.kv_heads = 2, .group = 1, .tokens = 16, .head_dim = 4, .value_dim = 4}, grid, 3);
    prune_plan plan;
    REQUIRE(plan_dense(grid, 2, plan).ok());
    workspace none({});
    CHECK(block_sparse_attention(c.inputs(), plan, {}, strided<float, 3>(nullptr, {2, 0, 4}), {}, none).ok());
}

TEST_CASE("block_sparse_attention: each refusal has its code and writes nothing", "[prefill]") {
    const segment_grid grid{.segment_tokens = 8, .block_tokens = 4, .first_token = 0, .end_token = 30};
    const prompt_case c =
        make_case({.kv_heads = 2, .group = 2, .tokens = 30, .head_dim = 4, .value_dim = 4}, grid, 4);
    prune_plan plan;
    REQUIRE(plan_dense(grid, 2, plan).ok());
    stored<float> out = output_for<float>(c.layer, 30, layout::head_major);
    std::vector<float> lse(120, unwritten);
    const auto answer_of = [&](const auto& in, const prune_plan& p, const attention_options& o) {
        growing_workspace memory;
        const status s = block_sparse_attention(in, p, o, writable(out), lse, memory);
        CHECK(marks(out) == static_cast<index_t>(out.elements.size()));
        CHECK(std::count(lse.begin(), lse.end(), unwritten) == 120);
        return s.code();
    };
    const auto invalid = [&](const attention_options& o) { return answer_of(c.inputs(), plan, o); };
    CHECK(invalid({.scale = -1}) == errc::invalid_parameter);
    CHECK(invalid({.scale = not_a_number}) == errc::invalid_parameter);
    CHECK(invalid({.soft_cap = -1}) == errc::invalid_parameter);
    CHECK(invalid({.soft_cap = infinity}) == errc::invalid_parameter);
    CHECK(invalid({.sliding_window = -1}) == errc::invalid_parameter);
    for (const float odd : {infinity, not_a_number}) {
        const std::vector<float> sinks{0, -infinity, 1, odd};
        CHECK(invalid({.sink_logits = sinks}) == errc::invalid_parameter);
    }

    prune_plan other;
    REQUIRE(plan_dense(grid, 1, other).ok());
    CHECK(answer_of(c.inputs(), other, {}) == errc::plan_mismatch);
    REQUIRE(plan_dense({8, 4, 0, 29}, 2, other).ok());
    CHECK(answer_of(c.inputs(), other, {}) == errc::plan_mismatch);
    REQUIRE(plan_dense({8, 4, 8, 38}, 2, other).ok()); // the cache ends before
    CHECK(answer_of(c.inputs(), other, {}) == errc::plan_mismatch);
    CHECK(answer_of(c.inputs(), prune_plan{}, {}) == errc::plan_mismatch);
    // Rows that an engine wrote itself: behind the cache, among the segment's own keys, before it, not ascending.
    for (const std::vector<std::size_t>& row :
         {std::vector<std::size_t>{0, 1000000}, {1, 2}, {0, 8}, {1, 1}, {1, 0}}) {
        CAPTURE(row);
        CHECK(answer_of(c.inputs(), plan_of(grid, {{{}, row, {}, {}}, {{}, {}, {}, {}}}), {}) ==
              errc::plan_mismatch);
    }
    prune_plan negative = plan_of(grid, {{{}, {0}, {}, {}}, {{}, {}, {}, {}}});
    negative.writable_row(0, 1)[0] = -1;
    CHECK(answer_of(c.inputs(), negative, {}) == errc::plan_mismatch);

    const ragged_cache keys(c.layer.keys(), {30, 29}), values(c.layer.values(), {30, 29});
    CHECK(answer_of(kvtrim::layer(keys.get(), values.get()).with_queries(c.queries()), plan, {}) ==
          errc::plan_mismatch);

    const layer_data three =
        random_prompt({.kv_heads = 3, .group = 1, .tokens = 30, .head_dim = 4, .value_dim = 4}, 5);
    const layer_data eight =
        random_prompt({.kv_heads = 8, .group = 1, .tokens = 30, .head_dim = 4, .value_dim = 4}, 6);
    for (const layer_data* cache : {&three, &eight}) { // 4 query heads over 3 and over 8 KV heads
        const auto in = kvtrim::layer(cache->keys(), cache->values()).with_queries(c.queries());
        CHECK(answer_of(in, plan, {}) == errc::heads_not_divisible);
        CHECK(block_sparse_attention_bytes(in, plan, {}, writable(out)) >= 0);
    }
}

TEST_CASE("block_sparse_attention: a workspace a byte too small writes nothing and says what is enough",
          "[prefill]") {
    const segment_grid grid{.segment_tokens = 8, .block_tokens = 4, .first_token = 0, .end_token = 30};
    const prompt_case c =
        make_case({.kv_heads = 2, .group = 3, .tokens = 30, .head_dim = 5, .value_dim = 7}, grid, 7);
    prune_plan plan;
    REQUIRE(plan_dense(grid, 2, plan).ok());
    at_each_cpu_level([&] {
        stored<float> out = output_for<float>(c.layer, 30, layout::head_major);
        const index_t needed = block_sparse_attention_bytes(c.inputs(), plan, {}, writable(out));
        std::vector<std::byte> memory(static_cast<std::size_t>(needed) + 64);
        const auto address = reinterpret_cast<std::uintptr_t>(memory.data());
        const auto run = [&](index_t bytes) {
            workspace scratch({memory.data() + (64 - address % 64) % 64, static_cast<std::size_t>(bytes)});
            return block_sparse_attention(c.inputs(), plan, {}, writable(out), {}, scratch);
        };
        for (const index_t bytes : {needed - 65, index_t{0}}) {
            const status s = run(bytes);
            CHECK(s.code() == errc::workspace_too_small);
            CHECK(s.needed() == needed);
            CHECK(marks(out) == static_cast<index_t>(out.elements.size()));
        }
        CHECK(run(needed - 64).ok());
    });
}

TEST_CASE("block_sparse_attention: shapes that disagree and views that are not valid are refused, with "
          "nothing written",
          "[prefill][errors]") {
    const segment_grid grid{.segment_tokens = 8, .block_tokens = 4, .first_token = 0, .end_token = 10};
    const prompt_case c =
        make_case({.kv_heads = 2, .group = 2, .tokens = 10, .head_dim = 4, .value_dim = 3}, grid, 8);
    prune_plan plan;
    REQUIRE(plan_dense(grid, 2, plan).ok());
    std::vector<float> memory(1000, unwritten), lse(1000, unwritten);
    const std::vector<float> sinks = zeros(3);
    using output = strided<float, 3>;
    const auto answer_of = [&](const auto& in, const output& out, std::size_t lse_size,
                               const attention_options& o = {}) {
        growing_workspace scratch;
        const status s = block_sparse_attention(in, plan, o, out, std::span(lse).first(lse_size), scratch);
        if (s.ok()) { return s; }
        CHECK(std::count(memory.begin(), memory.end(), unwritten) == 1000);
        CHECK(std::count(lse.begin(), lse.end(), unwritten) == 1000);
        CHECK(s.code() == errc::invalid_parameter);
        return s;
    };
    const auto refuses = [&](const output& out, std::size_t lse_size, const attention_options& o = {}) {
        return !answer_of(c.inputs(), out, lse_size, o).ok();
    };
    CHECK(refuses({memory.data(), {3, 10, 3}}, 0));
    CHECK(refuses({memory.data(), {4, 9, 3}}, 0));
    CHECK(refuses({memory.data(), {4, 10, 4}}, 0));
    CHECK(refuses({memory.data(), {-4, 10, 3}}, 0));
    CHECK(refuses({nullptr, {4, 10, 3}}, 0));
    CHECK(refuses({memory.data(), {4, 10, 3}}, 39));
    CHECK(answer_of(c.inputs(), {memory.data(), {4, 10, 3}}, 41).needed() == 40);
    CHECK(refuses({memory.data(), {4, 10, 3}}, 0, {.sink_logits = sinks}));
    const output good(memory.data(), {4, 10, 3});
    const layer_data other = random_prompt({.kv_heads = 2, .group = 2, .tokens = 10, .head_dim = 5}, 9);
    const view none(nullptr, {2, 10, 4});
    const view shorter(c.layer.v.data(), {2, 9, 3});
    const auto asked = [&](const view& k, const view& v, const view& q) {
        const auto in = kvtrim::layer(k, v).with_queries(q);
        CHECK(block_sparse_attention_bytes(in, plan, {}, good) == 0);
        return !answer_of(in, good, 40).ok();
    };
    CHECK(asked(c.layer.keys(), c.layer.values(), other.queries()));
    CHECK(asked(none, c.layer.values(), c.queries()));
    CHECK(asked(c.layer.keys(), view(nullptr, {2, 10, 3}), c.queries()));
    CHECK(asked(c.layer.keys(), shorter, c.queries()));
    CHECK(asked(c.layer.keys(), c.layer.values(), view(nullptr, {4, 10, 4})));
    CHECK(answer_of(c.inputs(), good, 40).ok());
}

TEST_CASE("block_sparse_attention: rows without memory, as long as numbers go, need no workspace",
          "[prefill][errors]") {
    constexpr index_t huge = index_t{1} << 50;
    const view keys(nullptr, {2, 0, huge}), queries(nullptr, {4, 0, huge});
    const auto in = kvtrim::layer(keys, keys).with_queries(queries);
    prune_plan plan;
    REQUIRE(plan_dense({.first_token = 0, .end_token = 0}, 2, plan).ok());
    const strided<float, 3> out(nullptr, {4, 0, huge});
    CHECK(block_sparse_attention_bytes(in, plan, {}, out) == 0);
    growing_workspace memory;
    CHECK(block_sparse_attention(in, plan, {}, out, {}, memory).ok());
}

TEST_CASE("block_sparse_attention: scratch does not grow with the tokens", "[prefill]") {
    struct unread {
        std::array<index_t, 3> extents;
        [[nodiscard]] index_t extent(std::size_t r) const { return extents[r]; }
        void load_rows(index_t, index_t, index_t, float*) const { FAIL("rows were read"); }
    };
    struct one_worker {
        static int workers() { return 1; }
    };
    const auto bytes = [&](index_t tokens) {
        const unread cache{{8, tokens, 128}};
        float nothing = 0;
        prune_plan plan;
        const std::vector<index_t> counts(static_cast<std::size_t>(8 * (tokens / 512)));
        REQUIRE(plan.reset({.end_token = tokens}, 8, counts).ok());
        return block_sparse_attention_bytes(
            kvtrim::layer(cache, cache).with_queries(unread{{32, tokens, 128}}), plan, {},
            strided<float, 3>(&nothing, {32, tokens, 128}), one_worker{});
    };
    at_each_cpu_level([&] {
        CHECK(bytes(131072) == bytes(1024));
        CHECK(bytes(131072) < index_t{2} << 20);
    });
}

#if KVTRIM_HAS_X86

namespace {

using emulated_tile = kernels::amx::basic_query_tile<kernels::amx::basic_query_products<emulated_tiles>>;

// As at level amx, on any machine with AVX-512.
template <class Inputs, class Output, class Executor>
status attend_emulated(const Inputs& in, const prune_plan& plan, const attention_options& o,
                       const Output& out, std::span<float> lse, Executor ex) {
    const index_t own = detail::segment_attention_bytes<emulated_tile>(in, o, out);
    std::vector<std::byte> memory(static_cast<std::size_t>(for_each_item_bytes(ex, plan.rows(), own)));
    workspace scratch(memory);
    return detail::attend_with<emulated_tile>(in, plan, o, out, lse, scratch, ex);
}

template <class T = float, class Inputs, class Executor = serial_executor>
std::string checked_emulated(const prompt_case& c, const Inputs& in, const prune_plan& plan,
                             const attention_options& o, layout order, Executor ex = {}) {
    return difference_of<T>(
        c, in, plan, o, order, true, amx_tolerance,
        [&](const auto& out, std::span<float> lse) { return attend_emulated(in, plan, o, out, lse, ex); });
}

} // namespace

TEST_CASE("block_sparse_attention: emulated AMX, random plans, shapes, options and orders equal the oracle",
          "[prefill]") {
    if (!runs_bf16_vectors()) { return; }
    support::random r(151);
    constexpr layout orders[]{layout::head_major, layout::token_major, layout::transposed, layout::reversed,
                              layout::gapped};
    for (int n = 0; n < 40; ++n) {
        const prompt_case c = random_case(r);
        const prune_plan plan = random_plan(c.grid, c.layer.shape.kv_heads, r);
        std::vector<float> sinks;
        const attention_options o = random_attention_options(r, c, sinks);
        const auto k = store<bf16>(c.layer.keys(), r.one_of(orders)),
                   v = store<bf16>(c.layer.values(), r.one_of(orders)),
                   q = store<bf16>(c.queries(), r.one_of(orders));
        const auto in = kvtrim::layer(k.get(), v.get()).with_queries(q.get());
        CAPTURE(n, c.grid.segment_tokens, c.grid.block_tokens, c.grid.first_token, c.grid.end_token,
                c.layer.shape.group, c.layer.shape.head_dim, c.layer.shape.value_dim, o.sliding_window,
                o.soft_cap);
        CHECK(checked_emulated(c, in, plan, o, layout::head_major) == "");
        CHECK(checked_emulated<bf16>(c, in, plan, o, r.one_of(orders)) == "");
    }
}

TEST_CASE("block_sparse_attention: emulated AMX, prompts of several key tiles and passes", "[prefill]") {
    if (!runs_bf16_vectors()) { return; }
    support::random r(152);
    const struct {
        index_t group, segment, block, tokens, head_dim;
    } shapes[]{{1, 1104, 8, 1150, 32}, {4, 128, 32, 900, 128}, {5, 304, 8, 350, 80}, {40, 40, 8, 75, 96}};
    for (const auto& s : shapes) {
        const segment_grid grid{.segment_tokens = s.segment, .block_tokens = s.block, .end_token = s.tokens};
        const prompt_case c = make_case(
            {.kv_heads = 1, .group = s.group, .tokens = s.tokens, .head_dim = s.head_dim, .value_dim = 64},
            grid, r.bits());
        const auto k = store<bf16>(c.layer.keys(), layout::head_major),
                   v = store<bf16>(c.layer.values(), layout::token_major),
                   q = store<bf16>(c.queries(), layout::token_major);
        const auto in = kvtrim::layer(k.get(), v.get()).with_queries(q.get());
        CAPTURE(s.group, s.tokens);
        prune_plan dense;
        REQUIRE(plan_dense(grid, 1, dense).ok());
        CHECK(checked_emulated(c, in, dense, {}, layout::token_major) == "");
        CHECK(checked_emulated(c, in, random_plan(grid, 1, r), {}, layout::token_major) == "");
    }
}

TEST_CASE("block_sparse_attention: emulated AMX, executors and what else the cache holds do not change a bit",
          "[prefill]") {
    if (!runs_bf16_vectors()) { return; }
    support::random r(153);
    for (int n = 0; n < 4; ++n) {
        const prompt_case c = random_case(r);
        const prune_plan plan = random_plan(c.grid, c.layer.shape.kv_heads, r);
        const auto run = [&](const prompt_case& of, auto ex) {
            const auto k = store<bf16>(of.layer.keys(), layout::head_major),
                       v = store<bf16>(of.layer.values(), layout::head_major),
                       q = store<bf16>(of.queries(), layout::head_major);
            const auto in = kvtrim::layer(k.get(), v.get()).with_queries(q.get());
            stored<float> out = output_for<float>(of.layer, of.grid.tokens(), layout::token_major);
            std::vector<float> lse = zeros(of.layer.shape.q_heads() * of.grid.tokens());
            REQUIRE(attend_emulated(in, plan, {}, writable(out), lse, ex).ok());
            out.elements.insert(out.elements.end(), lse.begin(), lse.end());
            return out.elements;
        };
        const std::vector<float> expected = run(c, serial_executor{});
        CHECK(run(c, thread_executor{3}) == expected);
        CHECK(run(c, shuffling_executor{5}) == expected);
        prompt_case other = c;
        const layer_shape& s = c.layer.shape;
        for (index_t g = 0; g < s.kv_heads; ++g) {
            for (index_t t = c.grid.end_token; t < s.tokens; ++t) {
                std::fill_n(other.layer.key(g, t), s.head_dim, not_a_number);
                std::fill_n(other.layer.value(g, t), s.value_dim, not_a_number);
            }
        }
        CHECK(run(other, serial_executor{}) == expected);
    }
}

TEST_CASE("block_sparse_attention: AMX is for bf16 in memory only, and only at its level", "[prefill]") {
    const prompt_case c = make_case({.kv_heads = 1, .group = 1, .tokens = 4, .head_dim = 4, .value_dim = 4},
                                    {.segment_tokens = 4, .block_tokens = 4, .end_token = 4}, 154);
    const auto k = store<bf16>(c.layer.keys(), layout::head_major),
               v = store<bf16>(c.layer.values(), layout::transposed),
               q = store<bf16>(c.queries(), layout::head_major);
    const auto half = store<f16>(c.queries(), layout::head_major);
    const auto tile_bytes = [](const auto& in) {
        return detail::with_query_tile<std::remove_cvref_t<decltype(in)>>(
            []<class Tile>() { return sizeof(typename Tile::element); });
    };
    at_each_cpu_level([&] {
        const std::size_t bf16_tile = active_cpu_level() == cpu_level::amx ? 2 : 4;
        CHECK(tile_bytes(kvtrim::layer(k.get(), v.get()).with_queries(q.get())) == bf16_tile);
        CHECK(tile_bytes(kvtrim::layer(k.get(), v.get()).with_queries(half.get())) == 4);
        CHECK(tile_bytes(kvtrim::layer(k.get(), v.get()).with_queries(c.queries())) == 4);
        CHECK(tile_bytes(kvtrim::layer(k.get(), c.layer.values()).with_queries(q.get())) == 4);
        CHECK(tile_bytes(kvtrim::layer(decoding_source(c.layer.keys()), v.get()).with_queries(q.get())) == 4);
        CHECK(tile_bytes(c.inputs()) == 4);
    });
}

#endif // KVTRIM_HAS_X86
