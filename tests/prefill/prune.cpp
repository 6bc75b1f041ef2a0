// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/prefill/prune.hpp>

#include <kvtrim/allocate/adaptive.hpp>
#include <kvtrim/policy/critiprefill.hpp>

#include "support/random_prompt.hpp"

using namespace kvtrim;
using namespace support;

namespace {

template <class Policy, class Queries, class Keys, class Executor = serial_executor>
prune_plan plan_of(const Policy& policy, const Queries& queries, const Keys& keys, const prefill_chunk& chunk,
                   layer_fusion& state, Executor ex = {}) {
    prune_plan plan;
    growing_workspace memory;
    const status s = policy.plan(queries, keys, chunk, state, plan, memory, ex);
    INFO(s.what());
    REQUIRE(s.ok());
    CHECK(plan.check_invariants());
    return plan;
}

// The estimate of one row in double, its softmax, and the best blocks: the paper read literally.
oracle::row block_estimates(const chunk_data& data, const segment_grid& grid, std::size_t kv_head,
                            index_t segment, bool corners, double scale) {
    const oracle::tensor keys = to_oracle(data.layer.keys()), queries = to_oracle(data.layer.queries());
    const auto group = static_cast<std::size_t>(data.layer.shape.group);
    const auto dim = static_cast<std::size_t>(data.layer.shape.head_dim);
    oracle::row estimates;
    for (index_t b = 0; b < grid.allowed_blocks(segment); ++b) {
        double sum = 0;
        for (std::size_t h = kv_head * group; h < (kv_head + 1) * group; ++h) {
            double with_high = 0, with_low = 0, corner = 0;
            for (std::size_t d = 0; d < dim; ++d) {
                double q_high = -1e300, q_low = 1e300, k_high = -1e300, k_low = 1e300;
                for (index_t i = grid.begin(segment); i < grid.end(segment); ++i) {
                    const double x = queries[h][static_cast<std::size_t>(i - grid.first_token)][d];
                    q_high = std::max(q_high, x);
                    q_low = std::min(q_low, x);
                }
                for (index_t t = b * grid.block_tokens; t < (b + 1) * grid.block_tokens; ++t) {
                    const double x = keys[kv_head][static_cast<std::size_t>(t)][d];
                    k_high = std::max(k_high, x);
                    k_low = std::min(k_low, x);
                }
                with_high += (q_high + q_low) / 2 * k_high;
                with_low += (q_high + q_low) / 2 * k_low;
                corner += std::max({q_high * k_high, q_high * k_low, q_low * k_high, q_low * k_low});
            }
            sum += corners ? corner : std::max(with_high, with_low);
        }
        estimates.push_back(scale * sum / static_cast<double>(group));
    }
    return estimates;
}

oracle::row softmax(const oracle::row& logits) {
    const double highest = *std::max_element(logits.begin(), logits.end());
    oracle::row p;
    for (const double x : logits) { p.push_back(std::exp(x - highest)); }
    const double total = oracle::sum(p);
    for (double& x : p) { x /= total; }
    return p;
}

std::vector<std::size_t> as_set(std::span<const std::int32_t> row) {
    return {row.begin(), row.end()};
}

// Whether the worst block inside and the best outside are too close for floats to tell.
bool is_near_tie(const oracle::row& ranked, std::size_t count) {
    oracle::row sorted = ranked;
    std::sort(sorted.rbegin(), sorted.rend());
    return count > 0 && count < sorted.size() &&
           std::abs(sorted[count - 1] - sorted[count]) <= 1e-4 * std::abs(sorted[count]) + 1e-9;
}

} // namespace

TEST_CASE("block_pruner: its rows are the best blocks of the estimate, over layers and with fusion",
          "[prefill][oracle]") {
    support::random r(821);
    for (int i = 0; i < 25; ++i) {
        const index_t block = r.one_of({4, 8, 16});
        const index_t segment = block * r.between(1, 4);
        const layer_shape shape{.kv_heads = r.between(1, 3),
                                .group = r.between(1, 3),
                                .tokens = segment * r.between(2, 14) + r.between(0, segment - 1),
                                .head_dim = r.one_of({4, 16, 33})};
        const bool corners = r.chance(0.5);
        const bool fused = r.chance(0.5);
        const pruning_options options{.segment_tokens = segment,
                                      .block_tokens = block,
                                      .budget_tokens = block * r.between(2, 6) + r.between(0, block - 1),
                                      .dense_below_tokens = 0,
                                      .dense_layers = 0,
                                      .sink_blocks = r.between(0, 1),
                                      .local_blocks = r.between(0, 1)};
        const criticality_options criticality{.scale = r.one_of({0.0f, 0.05f})};
        const fusion_options fusion{.previous_weight = fused ? 0.25 : 0.0};
        layer_fusion state;
        std::vector<oracle::row> previous;
        for (index_t l = 0; l < 4; ++l) {
            const chunk_data data = random_chunk(shape, 0, 8210 + static_cast<std::uint64_t>(10 * i + l));
            const auto plan = [&](const auto& policy) {
                return plan_of(policy, data.layer.queries(), data.layer.keys(), {.layer = l}, state);
            };
            const prune_plan got = corners ? plan(critiprefill_bound{options, criticality, fusion, {}, {}})
                                           : plan(critiprefill{options, criticality, fusion, {}, {}});
            const segment_grid& grid = got.grid();
            std::vector<oracle::row> now;
            for (index_t g = 0; g < shape.kv_heads; ++g) {
                for (index_t s = 0; s < grid.segments(); ++s) {
                    const auto allowed = static_cast<std::size_t>(grid.allowed_blocks(s));
                    const auto count = std::min(allowed, static_cast<std::size_t>(options.budget_blocks()));
                    CAPTURE(i, l, g, s, segment, block, corners, fused);
                    oracle::row& ranked = now.emplace_back();
                    if (allowed == 0) { continue; }
                    const double scale = criticality.scale > 0
                                             ? static_cast<double>(criticality.scale)
                                             : 1 / std::sqrt(static_cast<double>(shape.head_dim));
                    ranked = block_estimates(data, grid, static_cast<std::size_t>(g), s, corners, scale);
                    if (fused) {
                        ranked = softmax(ranked);
                        const oracle::row& before = previous.empty() ? ranked : previous[now.size() - 1];
                        if (l >= 2) {
                            for (std::size_t b = 0; b < allowed; ++b) {
                                ranked[b] = 0.25 * before[b] + 0.75 * ranked[b];
                            }
                        }
                    }
                    if (s + 1 == grid.segments() || allowed <= count) {
                        CHECK(as_set(got.row(g, s)).size() == allowed);
                        continue;
                    }
                    oracle::row marked = ranked;
                    for (index_t b = 0; b < options.sink_blocks; ++b) {
                        marked[static_cast<std::size_t>(b)] = 1e300;
                    }
                    for (index_t b = 0; b < options.local_blocks; ++b) {
                        marked[allowed - 1 - static_cast<std::size_t>(b)] = 1e300;
                    }
                    if (is_near_tie(marked, count)) { continue; }
                    CHECK(as_set(got.row(g, s)) == oracle::top_k(marked, count));
                }
            }
            previous = now;
        }
    }
}

TEST_CASE("block_pruner: a prompt in chunks gets the rows that it gets in one piece", "[prefill]") {
    const layer_shape shape{.kv_heads = 2, .group = 2, .tokens = 16 * 37 + 5, .head_dim = 16};
    const pruning_options options{
        .segment_tokens = 16, .block_tokens = 4, .budget_tokens = 24, .dense_below_tokens = 32};
    const auto check = [&](const auto& policy) {
        constexpr index_t chunk_tokens = 16 * 11;
        std::vector<layer_fusion> chunk_states(4);
        layer_fusion state;
        for (index_t l = 0; l < 4; ++l) {
            const chunk_data data = random_chunk(shape, 0, 8220 + static_cast<std::uint64_t>(l));
            const view q = data.layer.queries();
            const prune_plan whole = plan_of(policy, q, data.layer.keys(), {.layer = l}, state);
            for (index_t first = 0, c = 0; first < shape.tokens; first += chunk_tokens, ++c) {
                const index_t end = std::min(first + chunk_tokens, shape.tokens);
                // Later keys are not there yet.
                const view keys(data.layer.k.data(), {2, end, 16}, {shape.tokens * 16, 16, 1});
                const view queries(q.data_handle() + first * 16, {4, end - first, 16},
                                   {shape.tokens * 16, 16, 1});
                const prefill_chunk chunk{
                    .layer = l, .first_token = first, .ends_prompt = end == shape.tokens};
                const prune_plan part =
                    plan_of(policy, queries, keys, chunk, chunk_states[static_cast<std::size_t>(c)]);
                for (index_t g = 0; g < 2; ++g) {
                    for (index_t s = 0; s < part.grid().segments(); ++s) {
                        CAPTURE(l, first, g, s);
                        CHECK(as_set(part.row(g, s)) == as_set(whole.row(g, first / 16 + s)));
                    }
                }
            }
        }
    };
    check(critiprefill{.options = options});
    check(critiprefill_bound{.options = options});
    check(ada_critiprefill{.options = options});
}

TEST_CASE("block_pruner: head-wise budgets sum exactly, keep sinks and neighbours, and differ", "[prefill]") {
    const chunk_data data = random_chunk({.kv_heads = 4, .group = 2, .tokens = 1024, .head_dim = 16}, 0, 823);
    const ada_critiprefill policy{.options = {.segment_tokens = 64,
                                              .block_tokens = 8,
                                              .budget_tokens = 80,
                                              .dense_below_tokens = 0,
                                              .sink_blocks = 2,
                                              .local_blocks = 3}};
    layer_fusion state;
    const prune_plan plan = plan_of(policy, data.layer.queries(), data.layer.keys(), {.layer = 1}, state);
    bool differs = false;
    for (index_t s = 0; s + 1 < plan.grid().segments(); ++s) {
        const index_t allowed = plan.grid().allowed_blocks(s);
        index_t total = 0;
        for (index_t g = 0; g < 4; ++g) {
            const auto row = plan.row(g, s);
            total += std::ssize(row);
            differs = differs || std::ssize(row) != std::min<index_t>(10, allowed);
            for (const index_t b : {index_t{0}, index_t{1}, allowed - 1, allowed - 2, allowed - 3}) {
                if (b >= 0 && b < allowed) { CHECK(std::binary_search(row.begin(), row.end(), b)); }
            }
        }
        CHECK(total == 4 * std::min<index_t>(10, allowed));
    }
    CHECK(differs);
}

TEST_CASE("block_pruner: which rows are dense", "[prefill]") {
    const chunk_data data = random_chunk({.kv_heads = 1, .group = 1, .tokens = 260, .head_dim = 8}, 0, 824);
    const auto dense_rows = [&](const pruning_options& options, const prefill_chunk& chunk) {
        layer_fusion state;
        const prune_plan plan =
            plan_of(critiprefill{.options = options}, data.layer.queries(), data.layer.keys(), chunk, state);
        std::vector<index_t> rows;
        for (index_t s = 0; s < plan.grid().segments(); ++s) {
            if (std::ssize(plan.row(0, s)) == plan.grid().allowed_blocks(s)) { rows.push_back(s); }
        }
        return rows;
    };
    const pruning_options base{.segment_tokens = 32,
                               .block_tokens = 8,
                               .budget_tokens = 40,
                               .dense_below_tokens = 0,
                               .dense_layers = 0};
    using rows = std::vector<index_t>;
    CHECK(dense_rows(base, {}) ==
          rows{0, 1, 8}); // 0 and 4 blocks are within the budget of 5; the last is the last
    CHECK(dense_rows(base, {.ends_prompt = false}) == rows{0, 1});
    pruning_options changed = base;
    changed.dense_last_segment = false;
    CHECK(dense_rows(changed, {}) == rows{0, 1});
    changed = base;
    changed.dense_below_tokens = 100;
    CHECK(dense_rows(changed, {}) == rows{0, 1, 2, 3, 8});
    changed.dense_layers = 3;
    CHECK(dense_rows(changed, {.layer = 2}).size() == 9);
    CHECK(dense_rows(changed, {.layer = 3}).size() == 5);
}

TEST_CASE("block_pruner: short prompts are dense, empty ones empty", "[prefill][odd]") {
    const auto blocks = [](index_t tokens, const pruning_options& options) {
        const chunk_data data =
            random_chunk({.kv_heads = 2, .group = 1, .tokens = tokens, .head_dim = 8}, 0, 825);
        layer_fusion state;
        const prune_plan plan = plan_of(critiprefill{.options = options}, data.layer.queries(),
                                        data.layer.keys(), {.layer = 1}, state);
        CHECK(plan.planned_pairs() == plan.dense_pairs());
        return std::ssize(plan.blocks());
    };
    CHECK(blocks(0, {}) == 0);
    CHECK(blocks(1, {}) == 0);
    CHECK(blocks(31, {}) == 0);
    CHECK(blocks(512, {}) == 0);
    CHECK(blocks(1500, {}) == 2 * (16 + 32)); // below the budget, where the authors' code fails
    CHECK(blocks(1500, {.budget_tokens = 4096, .dense_below_tokens = 0}) ==
          2 * (16 + 32)); // threshold below the budget
}

TEST_CASE("block_pruner: threads do not change a plan", "[prefill]") {
    const chunk_data data = random_chunk({.kv_heads = 2, .group = 2, .tokens = 1600, .head_dim = 16}, 0, 826);
    const ada_critiprefill policy{
        .options = {.segment_tokens = 32, .block_tokens = 8, .budget_tokens = 64, .dense_below_tokens = 0}};
    layer_fusion serial, threaded, shuffled;
    for (index_t l = 1; l < 4; ++l) {
        const auto plan = [&](layer_fusion& state, auto ex) {
            return plan_of(policy, data.layer.queries(), data.layer.keys(), {.layer = l}, state, ex);
        };
        const prune_plan expected = plan(serial, serial_executor{});
        CHECK(plan(threaded, thread_executor{4}) == expected);
        CHECK(plan(shuffled, shuffling_executor{3}) == expected);
    }
}

TEST_CASE("block_pruner: any layout of the same numbers gives the same plan", "[prefill]") {
    const chunk_data data = random_chunk({.kv_heads = 2, .group = 2, .tokens = 500, .head_dim = 16}, 0, 827);
    const critiprefill policy{
        .options = {.segment_tokens = 32, .block_tokens = 8, .budget_tokens = 64, .dense_below_tokens = 0}};
    layer_fusion state;
    const view q = data.layer.queries(), k = data.layer.keys();
    const prune_plan expected = plan_of(policy, q, k, {.layer = 1}, state);
    for (const auto order : {layout::token_major, layout::transposed, layout::reversed, layout::gapped}) {
        const auto sq = store(q, order), sk = store(k, order);
        CHECK(plan_of(policy, sq.get(), sk.get(), {.layer = 1}, state) == expected);
    }
    CHECK(plan_of(policy, generic_view{q}, decoding_source(k), {.layer = 1}, state) == expected);
}

TEST_CASE("block_pruner: odd numbers give a defined plan, and a broken block ranks last", "[prefill][odd]") {
    chunk_data data = random_chunk({.kv_heads = 1, .group = 1, .tokens = 400, .head_dim = 8}, 0, 828);
    const critiprefill policy{.options = {.segment_tokens = 32,
                                          .block_tokens = 8,
                                          .budget_tokens = 40,
                                          .dense_below_tokens = 0,
                                          .sink_blocks = 0,
                                          .local_blocks = 0},
                              .fusion = {.previous_weight = 0}};
    layer_fusion state;
    for (index_t t = 8; t < 16; ++t) {
        std::fill_n(data.layer.key(0, t), 8, std::numeric_limits<float>::quiet_NaN());
    }
    const prune_plan plan = plan_of(policy, data.layer.queries(), data.layer.keys(), {.layer = 1}, state);
    for (index_t s = 2; s + 1 < plan.grid().segments(); ++s) {
        CHECK(!std::binary_search(plan.row(0, s).begin(), plan.row(0, s).end(), 1));
        CHECK(plan.row(0, s).size() == 5);
    }
    for (const float extreme :
         {65504.0f, std::numeric_limits<float>::infinity(), std::numeric_limits<float>::max(), 1e-40f}) {
        for (float& x : data.layer.k) { x = x > 0 ? extreme : -extreme; }
        for (float& x : data.layer.q) { x = x > 0 ? extreme : -extreme; }
        for (const double weight : {0.0, 0.25}) {
            critiprefill odd = policy;
            odd.fusion.previous_weight = weight;
            layer_fusion fresh;
            for (index_t l = 1; l < 4; ++l) {
                const prune_plan p =
                    plan_of(odd, data.layer.queries(), data.layer.keys(), {.layer = l}, fresh);
                for (index_t s = 2; s + 1 < p.grid().segments(); ++s) { CHECK(p.row(0, s).size() == 5); }
            }
        }
    }
}

TEST_CASE("block_pruner: bad input is answered, with plan and fusion as they were", "[prefill][errors]") {
    const chunk_data data = random_chunk({.kv_heads = 2, .group = 2, .tokens = 320, .head_dim = 8}, 0, 829);
    const view q = data.layer.queries(), k = data.layer.keys();
    const critiprefill good{
        .options = {.segment_tokens = 32, .block_tokens = 8, .budget_tokens = 40, .dense_below_tokens = 0}};
    layer_fusion state;
    const prune_plan before = plan_of(good, q, k, {.layer = 1}, state);
    prune_plan plan = before;
    growing_workspace memory;
    const auto answer = [&](const auto& policy, const view& queries, const view& keys,
                            const prefill_chunk& chunk) {
        const status s = policy.plan(queries, keys, chunk, state, plan, memory);
        CHECK(policy.workspace_bytes(queries, keys, chunk) == 0);
        CHECK(plan == before);
        return s;
    };
    const auto with = [&](auto change) {
        critiprefill policy = good;
        change(policy);
        return answer(policy, q, k, {.layer = 2});
    };
    CHECK(with([](auto& p) { p.options.block_tokens = 12; }).code() == errc::invalid_parameter);
    CHECK(with([](auto& p) { p.options.block_tokens = 0; }).code() == errc::invalid_parameter);
    CHECK(with([](auto& p) { p.options.segment_tokens = 0; }).code() == errc::invalid_parameter);
    CHECK(with([](auto& p) { p.options.dense_layers = -1; }).code() == errc::invalid_parameter);
    CHECK(with([](auto& p) { p.options.dense_below_tokens = -1; }).code() == errc::invalid_parameter);
    CHECK(with([](auto& p) { p.options.sink_blocks = -1; }).code() == errc::invalid_parameter);
    CHECK(with([](auto& p) { p.criticality.scale = -1; }).code() == errc::invalid_parameter);
    CHECK(with([](auto& p) { p.criticality.scale = std::numeric_limits<float>::infinity(); }).code() ==
          errc::invalid_parameter);
    CHECK(with([](auto& p) { p.fusion.previous_weight = 1; }).code() == errc::ratio_out_of_range);
    const status small = with([](auto& p) { p.options.budget_tokens = 7; });
    CHECK(small.code() == errc::budget_zero);
    CHECK(small.needed() == 8);
    const status crowded = with([](auto& p) { p.options.sink_blocks = 4, p.options.local_blocks = 2; });
    CHECK(crowded.code() == errc::budget_below_protection);
    CHECK(crowded.needed() == 48);
    CHECK(answer(good, q, k, {.layer = -1}).code() == errc::invalid_parameter);
    CHECK(answer(good, q, k, {.first_token = 32}).code() == errc::invalid_parameter); // keys are missing
    CHECK(answer(good, view(data.layer.q.data(), {4, 16, 8}), k, {.first_token = 40}).code() ==
          errc::invalid_parameter);
    CHECK(answer(good, view(data.layer.q.data(), {4, 16, 8}), k,
                 {.first_token = std::numeric_limits<index_t>::max() / 32 * 32})
              .code() == errc::invalid_parameter);
    CHECK(answer(good, view(data.layer.q.data(), {3, 320, 8}), k, {}).code() == errc::heads_not_divisible);
    CHECK(
        violation_of([&] {
            static_cast<void>(good.plan(view(data.layer.q.data(), {4, 160, 4}), k, {}, state, plan, memory));
        }) == "prefill: queries and keys must agree in head_dim");

    // The state still holds layer 1: layer 2 is mixed with it.
    layer_fusion fresh;
    static_cast<void>(plan_of(good, q, k, {.layer = 1}, fresh));
    CHECK(plan_of(good, q, k, {.layer = 2}, state) == plan_of(good, q, k, {.layer = 2}, fresh));

    const index_t bytes = good.workspace_bytes(q, k, {.layer = 3});
    std::vector<std::byte> exact(static_cast<std::size_t>(bytes));
    for (const std::size_t missing : {exact.size(), std::size_t{200}}) {
        workspace too_short(std::span<std::byte>(exact).first(exact.size() - missing));
        const status s = good.plan(q, k, {.layer = 3}, state, plan, too_short);
        CHECK(s.code() == errc::workspace_too_small);
        CHECK(s.needed() == bytes);
        CHECK(plan == before);
    }
    workspace enough(exact);
    CHECK(good.plan(q, k, {.layer = 3}, state, plan, enough).ok());
}

TEST_CASE("layer_fusion: interleaved requests do not touch each other", "[prefill][regression]") {
    const critiprefill policy{
        .options = {.segment_tokens = 32, .block_tokens = 8, .budget_tokens = 40, .dense_below_tokens = 0}};
    layer_fusion alone, first, second;
    for (index_t l = 0; l < 5; ++l) {
        const auto mine = random_chunk({.kv_heads = 2, .group = 2, .tokens = 400, .head_dim = 8}, 0,
                                       8300 + static_cast<std::uint64_t>(l));
        const auto other = random_chunk({.kv_heads = 2, .group = 2, .tokens = 400, .head_dim = 8}, 0,
                                        8400 + static_cast<std::uint64_t>(l));
        const prune_plan expected =
            plan_of(policy, mine.layer.queries(), mine.layer.keys(), {.layer = l}, alone);
        CHECK(plan_of(policy, mine.layer.queries(), mine.layer.keys(), {.layer = l}, first) == expected);
        static_cast<void>(plan_of(policy, other.layer.queries(), other.layer.keys(), {.layer = l}, second));
    }
}

TEST_CASE("layer_fusion: only a layer that follows the one before is mixed", "[prefill]") {
    const segment_grid grid{.segment_tokens = 4, .block_tokens = 4, .end_token = 8};
    const fusion_options options{};
    layer_fusion state;
    const auto fused = [&](index_t layer, const segment_grid& g, index_t kv_heads, float estimate) {
        state.begin_layer(layer, g, kv_heads, options);
        std::vector<float> row{estimate};
        state.fuse(0, 1, row);
        return row[0];
    };
    CHECK(fused(0, grid, 1, 1.0f) == 1.0f);
    CHECK(fused(1, grid, 1, 0.5f) == 0.5f);                   // from layer 2 on
    CHECK(fused(2, grid, 1, 1.0f) == 0.875f);                 // 0.25 * 0.5 + 0.75
    CHECK(fused(3, grid, 1, 1.0f) == 0.25f * 0.875f + 0.75f); // recursive
    CHECK(fused(5, grid, 1, 1.0f) == 1.0f);                   // layer 4 was skipped
    CHECK(fused(6, grid, 2, 0.5f) == 0.5f);                   // another model
    CHECK(fused(7, {4, 4, 8, 16}, 2, 0.25f) == 0.25f);        // another chunk
    CHECK(fused(8, {4, 4, 8, 16}, 2, 0.25f) == 0.25f);
    state.reset();
    CHECK(fused(9, {4, 4, 8, 16}, 2, 1.0f) == 1.0f);
}
