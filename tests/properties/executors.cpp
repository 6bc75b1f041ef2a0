// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include "support/named_policies.hpp"
#include "support/policy_oracle.hpp"

#include <kvtrim/compact/cell_scores.hpp>
#include <kvtrim/decode/close_up.hpp>
#include <kvtrim/decode/interval_policy.hpp>
#include <kvtrim/policy/defensivekv.hpp>
#include <kvtrim/policy/layers.hpp>
#include <kvtrim/policy/snapkv.hpp>
#include <kvtrim/score/layer_preference.hpp>
#include <kvtrim/score/padded.hpp>
#include <kvtrim/score/query_pair_means.hpp>
#include <kvtrim/score/replay_scores.hpp>

using namespace kvtrim;
using namespace support;

namespace {

void check_same(const trace& serial, const trace& other) {
    CHECK(other.answer.ok());
    CHECK(other.plan == serial.plan);
    CHECK(other.importance == serial.importance);
    CHECK(other.attention == serial.attention);
    CHECK(other.protected_mass == serial.protected_mass);
    CHECK(other.budgets == serial.budgets);
}

// What call(executor) answers is the same on one thread, on several, and in another order.
template <class Call>
void check_executors(Call&& call) {
    const auto serial = call(serial_executor{});
    CHECK(call(thread_executor{3}) == serial);
    CHECK(call(counted_executor{2}) == serial);
    CHECK(call(shuffling_executor{7}) == serial);
}

struct two_layers {
    layer_data data[2] = {random_layer(shape(), 433), random_layer(shape(), 434)};
    std::vector<inputs> all{data[0].inputs(), data[1].inputs()};
    eviction_request request{.budget = per_head(40), .protect = {.sink_tokens = 2, .window_tokens = 9}};

    static layer_shape shape() { return {.kv_heads = 4, .group = 2, .tokens = 300, .queries = 9}; }
};

} // namespace

TEST_CASE("neither the number of threads nor the order of the heads changes a bit", "[properties][threads]") {
    for_random_layers(
        431, 10, [](const layer_data& layer, const eviction_request& request, support::random& r) {
            for (const named_policy& policy : named_policies()) {
                const trace serial = policy(layer.inputs(), request);
                CAPTURE(policy.name);
                check_same(serial, policy.run(layer.inputs(), request, thread_executor{2}));
                check_same(serial, policy.run(layer.inputs(), request, thread_executor{5}));
                check_same(serial, policy.run(layer.inputs(), request, shuffling_executor{r.bits()}));
            }
        });
}

TEST_CASE("executors decide nothing about scores that are padded as kvpress pads them",
          "[properties][threads]") {
    const two_layers m;
    const eviction_policy policy{padded<window_attention<mean_attention>>{{}, 9}, uniform{}, by_importance{}};
    check_executors([&](const auto& ex) {
        growing_workspace memory;
        keep_plan plan;
        REQUIRE(policy.plan(m.all[0], {.budget = per_head(40)}, plan, memory, ex).ok());
        return plan;
    });
}

TEST_CASE("executors decide nothing about plans over layers, in one call or as layers come",
          "[properties][threads]") {
    const two_layers m;
    const auto policy = layer_defensivekv();
    check_executors([&](const auto& ex) {
        std::vector<keep_plan> plans(2);
        growing_workspace memory;
        REQUIRE(policy.plan(std::span<const inputs>(m.all), m.request, plans, memory, ex).ok());
        return plans;
    });
    check_executors([&](const auto& ex) {
        growing_workspace memory;
        auto cascade = policy.begin(m.all[0], m.request, 2);
        std::vector<std::vector<layer_cascade::column_index>> kept;
        for (const auto& in : m.all) { REQUIRE(policy.push(in, m.request, 2, cascade, memory, ex).ok()); }
        for (const index_t row : {0, 1, 2, 3}) {
            for (const index_t layer : {0, 1}) {
                const auto columns = cascade.kept(layer, row);
                kept.emplace_back(columns.begin(), columns.end());
            }
        }
        return kept;
    });
    check_executors([&](const auto& ex) {
        double preference = -1;
        growing_workspace memory;
        REQUIRE(layer_preference{}.measure(m.all[0], m.request, preference, memory, ex).ok());
        return preference;
    });
}

TEST_CASE("executors decide nothing about what a replay and a prompt's own pass score",
          "[properties][threads]") {
    const two_layers m;
    for (const token_loss loss :
         {token_loss::attention_maximum, token_loss::output_maximum, token_loss::output_square_sum}) {
        for (const bool is_own : {false, true}) {
            check_executors([&](const auto& ex) {
                replay_scores scores(4, 300, loss);
                growing_workspace memory;
                REQUIRE((is_own ? scores.add_own(m.all[0], {}, 3, memory, ex)
                                : scores.add(m.all[0], {}, memory, {}, ex))
                            .ok());
                std::vector<float> all;
                for (index_t h = 0; h < 4; ++h) {
                    for (index_t t = 0; t < 300; ++t) { all.push_back(scores.score(h, t)); }
                }
                return all;
            });
        }
    }
}

TEST_CASE("executors decide nothing about a W_O that is prepared, and means of queries",
          "[properties][threads]") {
    const two_layers m;
    const view w_o = m.data[0].projection();
    const auto stored = store<bf16>(w_o, layout::gapped);
    check_executors([&](const auto& ex) {
        const gram_projection gram(w_o, ex);
        REQUIRE(gram.validate().ok());
        const gram_view made = gram.view();
        return std::vector<float>(made.data, made.data + made.q_heads * made.head_dim * made.head_dim);
    });
    check_executors([&](const auto& ex) {
        const kernels::projection_kernels& steps = kernels::active_projection_kernels();
        const packed_projection packed(w_o, steps, ex), of_stored(stored.get(), steps, ex);
        REQUIRE((packed.validate().ok() && of_stored.validate().ok()));
        std::vector<float> all;
        const auto add = [&](const packed_view& made) {
            const index_t floats = made.q_heads * kernels::panel_floats(made.head_dim, made.hidden);
            const index_t elements = made.q_heads * kernels::panel_bf16(made.head_dim, made.hidden);
            if (made.packed_bf16 == nullptr) { all.insert(all.end(), made.data, made.data + floats); }
            for (index_t i = 0; made.packed_bf16 != nullptr && i < elements; ++i) {
                all.push_back(to_float(made.packed_bf16[i]));
            }
        };
        add(packed.view());
        add(of_stored.view());
        return all;
    });
    check_executors([&](const auto& ex) {
        const std::vector<float> table = rope_frequencies(8);
        query_pair_means means(8, 16, {table});
        growing_workspace memory;
        workspace scratch = memory.of_bytes(means.workspace_bytes(ex));
        REQUIRE(means.add(m.data[0].queries(), scratch, ex).ok());
        return std::tuple(means.counts, means.sums, means.length_sums);
    });
}

TEST_CASE("executors decide nothing about one set of cells, an interval's cut, and keys that close up",
          "[properties][threads]") {
    const two_layers m;
    check_executors([&](const auto& ex) {
        const cell_scores::request asked{300, 40, m.request.protect, head_reduction::maximum};
        growing_workspace memory, scoring;
        workspace scratch = memory.of_bytes(asked.workspace_bytes());
        cell_scores cells(asked, scratch);
        for (const auto& in : m.all) { REQUIRE(cells.add(snapkv(), in, {}, scoring, ex).ok()); }
        keep_plan plan;
        REQUIRE(cells.plan(plan).ok());
        return plan;
    });
    check_executors([&](const auto& ex) {
        const interval_policy cut{ada_snapkv(), m.request, 32};
        growing_workspace memory;
        keep_plan plan;
        REQUIRE(cut.plan(m.all[0], plan, memory, ex).ok());
        return plan;
    });
    check_executors([&](const auto& ex) {
        const trace t = run(ada_snapkv(), m.all[0], m.request);
        const std::vector<float> table = rope_frequencies(8);
        std::vector<float> k = m.data[0].k, v = m.data[0].v;
        const strided keys(k.data(), {4, 300, 16}), values(v.data(), {4, 300, 16});
        cache_positions positions(4);
        REQUIRE(positions.append(300).ok());
        growing_workspace memory;
        workspace scratch = memory.of_bytes(rerotate_keys_bytes(keys, {table}, ex));
        REQUIRE(
            cut_and_close(keys, values, positions, t.plan, {table}, {.pinned_tokens = 2}, scratch, ex).ok());
        return k;
    });
}
