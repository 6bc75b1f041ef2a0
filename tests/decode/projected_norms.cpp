// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/decode/projected_norms.hpp>

#include <kvtrim/cache/filled.hpp>
#include <kvtrim/policy/criticalkv.hpp>
#include <kvtrim/policy/defensivekv.hpp>

#include "support/cpu_levels.hpp"
#include "support/states.hpp"

using namespace kvtrim;
using namespace support;

namespace {

layer_data layer_of(index_t tokens, std::uint64_t seed) {
    return random_layer({.kv_heads = 2,
                         .group = 2,
                         .tokens = tokens,
                         .head_dim = 16,
                         .value_dim = 40,
                         .hidden = 70,
                         .queries = 4},
                        seed);
}

// Of the whole layer, in one pass: [kv_heads, tokens].
template <class Inputs>
std::vector<float> one_pass(const Inputs& in) {
    std::vector<float> norms = zeros(in.kv_heads() * in.longest_row());
    growing_workspace memory;
    workspace scratch = memory.of_bytes(projected_value_norms_bytes(in));
    serial_executor ex;
    const strided<float, 2> rows(norms.data(), {in.kv_heads(), in.longest_row()});
    REQUIRE(newest_projected_value_norms(in, in.longest_row(), rows, scratch, ex).ok());
    return norms;
}

std::vector<float> held(const projected_norms& norms) {
    std::vector<float> all;
    for (index_t g = 0; g < norms.kv_heads(); ++g) {
        all.insert(all.end(), norms.row(g).begin(), norms.row(g).end());
    }
    return all;
}

} // namespace

TEST_CASE("projected_norms: norms taken token by token or in chunks are those of a single pass", "[decode]") {
    support::random r(61);
    for (int n = 0; n < 6; ++n) {
        const layer_data layer = layer_of(r.between(1, 400), r.bits());
        const gram_projection gram(layer.projection());
        at_each_cpu_level([&] {
            const packed_projection packed(layer.projection());
            projected_norms norms(2), by_packed(2), by_gram(2);
            growing_workspace memory;
            for (index_t t = 0; t < layer.shape.tokens;) {
                const index_t count =
                    std::min(r.chance(0.5) ? r.between(0, 3) : r.between(1, 200), layer.shape.tokens - t);
                t += count;
                const auto in = prefix_inputs(layer, t);
                REQUIRE(norms.append(in, count, memory).ok());
                REQUIRE(by_packed.append(in.with_output_projection(packed.view()), count, memory).ok());
                REQUIRE(
                    by_gram.append(in.with_output_projection(gram.view()), count, memory, thread_executor{2})
                        .ok());
            }
            CAPTURE(n, layer.shape.tokens);
            CHECK(held(norms) == one_pass(layer.inputs()));
            CHECK(held(by_packed) == held(norms));
            CHECK(held(by_gram) == one_pass(layer.inputs().with_output_projection(gram.view())));
        });
    }
}

TEST_CASE("projected_norms: the policies keep what they keep when they compute the norms themselves",
          "[decode]") {
    const layer_data layer = layer_of(300, 62);
    const auto in = layer.inputs();
    const eviction_request request{.budget = per_head(60), .protect = {.sink_tokens = 3, .window_tokens = 4}};
    at_each_cpu_level([&] {
        growing_workspace memory;
        projected_norms norms(2, 300);
        REQUIRE(norms.append(in, 300, memory).ok());
        const auto known = in.with_output_projection(norms.view());
        const auto check = [&](const auto& policy) {
            keep_plan expected, got;
            REQUIRE(policy.plan(in, request, expected, memory).ok());
            REQUIRE(policy.plan(known, request, got, memory).ok());
            CHECK(got == expected);
            CHECK(policy.workspace_bytes(known, request) <= policy.workspace_bytes(in, request));
        };
        check(criticalkv());
        check(ada_criticalkv());
        check(defensivekv());
    });
}

TEST_CASE("projected_norms: they are cut with the cache, grow again, are undone and restored", "[decode]") {
    layer_data layer = layer_of(120, 63);
    growing_workspace memory;
    projected_norms norms(2);
    REQUIRE(norms.append(prefix_inputs(layer, 100), 100, memory).ok());
    const std::vector<float> all = one_pass(layer.inputs());
    const keep_plan plan = plan_of({{0, 5, 7, 99}, {1, 98, 99}});
    REQUIRE(norms.compact(plan).ok());
    CHECK(held(norms) == std::vector<float>{all[0], all[5], all[7], all[99], all[121], all[218], all[219]});
    CHECK(norms.compact(plan).code() == errc::plan_mismatch);

    // The cut cache gets two tokens; the second is a draft that is rejected.
    std::vector<index_t> lengths{6, 5};
    for (index_t g = 0; g < 2; ++g) {
        for (index_t i = 0; i < 2; ++i) {
            std::copy_n(layer.value(g, 110 + i), 40,
                        layer.value(g, lengths[static_cast<std::size_t>(g)] - 2 + i));
        }
    }
    const filled<const float> keys(layer.keys(), lengths), values(layer.values(), lengths);
    const auto grown = kvtrim::layer(keys, values).with_output_projection(layer.projection());
    const auto before = bytes_of(norms);
    workspace small({});
    CHECK(norms.append(grown, 2, small).code() == errc::workspace_too_small);
    CHECK(norms.append(grown.with_output_projection(view(layer.w.data(), {3, 40, 70})), 2, memory).code() ==
          errc::heads_not_divisible);
    CHECK(bytes_of(norms) == before);
    REQUIRE(norms.append(grown, 2, memory).ok());
    CHECK(norms.row(1)[3] == Approx(all[230]).epsilon(1e-5));
    REQUIRE(norms.rollback(1).ok());
    CHECK(norms.tokens(0) == 5);
    CHECK(norms.row(0)[4] == Approx(all[110]).epsilon(1e-5));

    projected_norms restored(2);
    REQUIRE(restore(restored, bytes_of(norms)).ok());
    CHECK(held(restored) == held(norms));
    check_damaged_bytes(norms, projected_norms(2), 60, true, [](projected_norms& state) {
        CHECK(held(state).size() <= 1000);
        CHECK(state.rollback(0).ok());
    });
}

TEST_CASE("projected_norms: caches of other heads or tokens are refused, nothing changes", "[decode]") {
    const layer_data layer = layer_of(20, 64);
    growing_workspace memory;
    projected_norms norms(2);
    REQUIRE(norms.append(prefix_inputs(layer, 10), 10, memory).ok());
    const auto before = bytes_of(norms);
    constexpr index_t most = std::numeric_limits<index_t>::max();
    const auto grown = prefix_inputs(layer, 12);
    for (const index_t count : {index_t{3}, index_t{1}, index_t{0}, index_t{-1}, -most - 1}) {
        CHECK(norms.append(grown, count, memory).code() == errc::invalid_parameter);
    }
    CHECK(norms.append(grown, 1, memory).needed() == 11);
    CHECK(norms.append(grown, most, memory).code() == errc::index_overflow);
    const view one_head(layer.v.data(), {1, 12, 40});
    const auto other = kvtrim::layer(one_head, one_head).with_output_projection(layer.projection());
    CHECK(norms.append(other, 2, memory).code() == errc::invalid_parameter);
    const view no_memory(nullptr, {2, 12, 40});
    CHECK(norms
              .append(kvtrim::layer(grown.keys, no_memory).with_output_projection(layer.projection()), 2,
                      memory)
              .code() == errc::invalid_parameter);
    for (const index_t count : {index_t{11}, index_t{-1}, most}) {
        CHECK(norms.rollback(count).code() == errc::invalid_parameter);
    }
    CHECK(bytes_of(norms) == before);
    REQUIRE(norms.append(grown, 2, memory).ok());

    projected_norms empty(-1);
    CHECK(empty.validate().code() == errc::invalid_parameter);
    CHECK(empty.append(grown, 12, memory) == empty.validate());
    CHECK(empty.rollback(0) == empty.validate());
    CHECK(empty.compact(keep_plan{}) == empty.validate());
    CHECK(empty.view().rows.extent(0) == 0);
}
