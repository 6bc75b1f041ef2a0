// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/decode/recent_queries.hpp>

#include <kvtrim/cache/ragged.hpp>
#include <kvtrim/policy/baselines.hpp>
#include <kvtrim/policy/criticalkv.hpp>
#include <kvtrim/policy/defensivekv.hpp>

#include "support/states.hpp"

using namespace kvtrim;
using namespace support;

static_assert(cache_view<query_ring_view<float>> && row_source<query_ring_view<bf16>>);

namespace {

// All floats of a view, head by head, query by query.
template <class View>
std::vector<float> floats_of(const View& queries) {
    std::vector<float> all;
    for (index_t h = 0; h < extent(queries, 0); ++h) {
        std::vector<float> rows(static_cast<std::size_t>(extent(queries, 1) * extent(queries, 2)));
        load_rows(queries, h, 0, extent(queries, 1), rows.data());
        all.insert(all.end(), rows.begin(), rows.end());
    }
    return all;
}

// Gives the first `count` queries of a layer to the ring in random chunks.
template <class T>
void append_in_chunks(support::random& r, const layer_data& layer, index_t count, recent_queries<T>& ring) {
    for (index_t done = 0; done < count;) {
        const index_t chunk = r.chance(0.5) ? r.between(0, 2) : r.between(1, count);
        const index_t taken = std::min(chunk, count - done);
        REQUIRE(ring.append(query_slice(layer, done, taken)).ok());
        done += taken;
    }
}

layer_data all_queries(index_t tokens, std::uint64_t seed) {
    return random_layer({.kv_heads = 2, .group = 2, .tokens = tokens, .head_dim = 8, .queries = tokens},
                        seed);
}

} // namespace

TEST_CASE("recent queries: a ring shows the newest queries, oldest first, in whatever chunks they came",
          "[decode]") {
    support::random r(61);
    for (std::uint64_t seed = 0; seed < 60; ++seed) {
        const index_t tokens = r.between(1, 40);
        const layer_data layer = all_queries(tokens, seed);
        const index_t window = r.between(1, 12);
        recent_queries<> ring(4, window, 8, r.between(0, 4));
        append_in_chunks(r, layer, tokens, ring);
        const index_t shown = std::min(window, tokens);
        CAPTURE(seed, tokens, window);
        CHECK(ring.view().extent(1) == shown);
        CHECK(floats_of(ring.view()) == floats_of(query_slice(layer, tokens - shown, shown)));
        const index_t hidden = r.between(0, std::min<index_t>(ring.held(), 3));
        const index_t before = std::min(window, ring.held() - hidden);
        CHECK(floats_of(ring.view(hidden)) ==
              floats_of(query_slice(layer, tokens - hidden - before, before)));
    }
}

TEST_CASE("recent queries: a prompt in chunks is scored bit for bit as in one piece, by every window policy",
          "[decode]") {
    support::random r(62);
    for (std::uint64_t seed = 0; seed < 25; ++seed) {
        const index_t tokens = r.between(20, 90);
        const layer_data layer = all_queries(tokens, 100 + seed);
        const index_t window = r.between(1, 20); // the last chunk is often shorter
        recent_queries<> ring(4, window, 8);
        append_in_chunks(r, layer, tokens, ring);
        const auto in = prefix_inputs(layer, tokens);
        const auto whole = in.with_queries(query_slice(layer, tokens - window, window));
        const auto chunked = in.with_queries(ring.view());
        const eviction_request request{.budget = per_head(window + r.between(1, tokens - window)),
                                       .protect = {.sink_tokens = 1, .window_tokens = window - 1},
                                       .attention = {.soft_cap = r.chance(0.5) ? 10.0f : 0.0f}};
        const auto same = [&](const char* name, const auto& policy) {
            trace a = run(policy, whole, request);
            trace b = run(policy, chunked, request);
            CAPTURE(seed, name, tokens, window);
            REQUIRE(a.answer.ok());
            CHECK(a.importance == b.importance);
            CHECK(a.attention == b.attention);
            CHECK(a.protected_mass == b.protected_mass);
            CHECK(a.plan == b.plan);
        };
        same("snapkv", snapkv());
        same("ada_snapkv", ada_snapkv());
        same("criticalkv", criticalkv());
        same("ada_criticalkv", ada_criticalkv());
        same("defensivekv", defensivekv());
        same("tova", tova());
    }
}

TEST_CASE("recent queries: undone drafts leave what was there before them", "[decode]") {
    support::random r(63);
    for (std::uint64_t seed = 0; seed < 40; ++seed) {
        const layer_data layer = all_queries(60, 200 + seed);
        const index_t window = r.between(1, 9);
        const index_t drafts = r.between(1, 6);
        recent_queries<> ring(4, window, 8, drafts), sure(4, window, 8, drafts);
        index_t accepted = 0;
        while (accepted + drafts <= 60) {
            const index_t drafted = r.between(0, drafts);
            REQUIRE(ring.append(query_slice(layer, accepted, drafted)).ok());
            const index_t rejected = r.between(0, drafted);
            REQUIRE(ring.rollback(rejected).ok());
            REQUIRE(sure.append(query_slice(layer, accepted, drafted - rejected)).ok());
            accepted += drafted - rejected;
            CAPTURE(seed, accepted, window, drafts);
            CHECK(floats_of(ring.view()) == floats_of(sure.view()));
            CHECK(ring.view().extent(1) == std::min(window, accepted));
            if (drafted == rejected) {
                ++accepted;
                for (auto* state : {&ring, &sure}) {
                    REQUIRE(state->append(query_slice(layer, accepted - 1, 1)).ok());
                }
            }
        }
    }
}

TEST_CASE("recent queries: 16-bit queries stay what they are", "[decode]") {
    const layer_data layer = all_queries(7, 5);
    const auto half = store<bf16>(layer.queries(), layout::token_major);
    recent_queries<bf16> ring(4, 5, 8);
    REQUIRE(ring.append(half.get()).ok());
    const auto all = floats_of(half.get());
    const auto shown = floats_of(ring.view());
    REQUIRE(shown.size() == 4 * 5 * 8);
    for (std::size_t h = 0; h < 4; ++h) {
        for (std::size_t i = 0; i < 5 * 8; ++i) { CHECK(shown[h * 5 * 8 + i] == all[(h * 7 + 2) * 8 + i]); }
    }
}

TEST_CASE("recent queries: other elements are rounded to the nearest of the ring's, from any view",
          "[decode]") {
    const layer_data layer = all_queries(7, 5);
    const auto check = [&](auto ring, const auto& queries) {
        using T = stored_element<decltype(ring.view())>;
        std::vector<float> expected = floats_of(queries);
        for (float& x : expected) { x = element_traits<T>::to_float(element_traits<T>::from_float(x)); }
        REQUIRE(ring.append(queries).ok());
        CHECK(floats_of(ring.view()) == expected);
    };
    for (const layout order : {layout::head_major, layout::token_major, layout::transposed, layout::gapped}) {
        const auto floats = store<float>(layer.queries(), order);
        const auto halves = store<f16>(layer.queries(), order);
        check(recent_queries<f16>(4, 7, 8), floats.get());
        check(recent_queries<bf16>(4, 7, 8), floats.get());
        check(recent_queries<bf16>(4, 7, 8), halves.get());
    }
    check(recent_queries<bf16>(4, 7, 8), decoding_source(layer.queries()));
    const std::vector<std::int32_t> offsets{0, 7, 14, 21, 28};
    check(recent_queries<f16>(4, 7, 8), ragged<const float>(layer.q.data(), offsets, 8));
}

TEST_CASE("recent queries: queries that must be decoded are taken as floats", "[decode]") {
    const layer_data layer = all_queries(7, 5);
    recent_queries<> ring(4, 7, 8);
    REQUIRE(ring.append(decoding_source(layer.queries())).ok());
    CHECK(floats_of(ring.view()) == layer.q);
}

TEST_CASE("recent queries: a copy is a fork, saved bytes restore it, damaged ones do no harm", "[decode]") {
    const layer_data layer = all_queries(9, 6);
    recent_queries<> ring(4, 4, 8, 1);
    REQUIRE(ring.append(query_slice(layer, 0, 7)).ok());
    recent_queries<> fork = ring;
    recent_queries<> restored(1, 1, 1);
    REQUIRE(restore(restored, bytes_of(ring)).ok());
    for (auto* state : {&fork, &restored}) {
        REQUIRE(state->append(query_slice(layer, 7, 2)).ok());
        CHECK(floats_of(state->view()) == floats_of(query_slice(layer, 5, 4)));
    }
    CHECK(floats_of(ring.view()) == floats_of(query_slice(layer, 3, 4)));
    check_damaged_bytes(ring, restored, 60, true, [](recent_queries<>& state) {
        const index_t shown = state.view().extent(1);
        CHECK(shown <= state.window());
        if (state.q_heads() > 100 || state.head_dim() > 100) { return; } // with 0 of the other: no memory
        CHECK(floats_of(state.view()).size() ==
              static_cast<std::size_t>(state.q_heads() * shown * state.head_dim()));
        const std::vector<float> one(static_cast<std::size_t>(state.q_heads() * state.head_dim()));
        CHECK(state.append(view(one.data(), {state.q_heads(), 1, state.head_dim()})).ok());
        CHECK(state.rollback(state.held()).ok());
    });
    recent_queries<bf16> other(1, 1, 1);
    CHECK(restore(other, bytes_of(ring)).code() == errc::invalid_parameter);
}

TEST_CASE("recent queries: bytes of bf16 queries are not read back as f16, nor the other way", "[decode]") {
    const recent_queries<f16> halves(2, 3, 4);
    recent_queries<bf16> other(2, 3, 4);
    std::vector<std::byte> bytes(static_cast<std::size_t>(saved_bytes(halves)));
    REQUIRE(save(halves, bytes).ok());
    CHECK(restore(other, bytes).code() == errc::invalid_parameter);
    REQUIRE(save(other, bytes).ok());
    recent_queries<f16> same(1, 1, 1);
    CHECK(restore(same, bytes).code() == errc::invalid_parameter);
    recent_queries<bf16> copy(1, 1, 1);
    CHECK(restore(copy, bytes).ok());
}

TEST_CASE("recent queries: an empty ring, no heads and no channels are answered", "[decode]") {
    const recent_queries<> empty(2, 3, 4);
    CHECK(empty.view().extent(1) == 0);
    recent_queries<> no_heads(0, 3, 4);
    REQUIRE(no_heads.append(view(nullptr, {0, 5, 4})).ok());
    CHECK(no_heads.held() == 3);
    recent_queries<> no_channels(2, 3, 0);
    REQUIRE(no_channels.append(view(nullptr, {2, 5, 0})).ok());
    CHECK(floats_of(no_channels.view()).empty());
    // Scoring without a query yet is bad input, as everywhere.
    const layer_data layer = all_queries(5, 1);
    const recent_queries<> none_yet(4, 3, 8);
    const auto in = prefix_inputs(layer, 5).with_queries(none_yet.view());
    CHECK(run(snapkv(), in, {.budget = per_head(2)}).answer.code() == errc::invalid_parameter);
}

TEST_CASE("recent queries: made with sizes that cannot be a ring is empty, and says why to every call",
          "[decode]") {
    constexpr index_t most = std::numeric_limits<index_t>::max();
    const std::vector<std::array<index_t, 4>> sizes{{1, 0, 1, 0},       {1, -1, 1, 0},
                                                    {-1, 1, 1, 0},      {1, 1, -1, 0},
                                                    {1, 1, 1, -1},      {1, 1, 1, most},
                                                    {1, most, 0, most}, {most, 1, 0, 0},
                                                    {most, most, 1, 0}, {1 << 20, 1 << 20, 1 << 24, 0},
                                                    {1, 1, most, 0},    {4, 1, most, 0},
                                                    {most, 1, most, 0}, {(1 << 20) + 1, 1, 0, 0}};
    for (const auto& [heads, window, dim, rollback] : sizes) {
        recent_queries<> ring(heads, window, dim, rollback);
        CAPTURE(heads, window, dim, rollback);
        const status s = ring.validate();
        CHECK(s.code() == errc::invalid_parameter);
        CHECK(ring.q_heads() == 0);
        CHECK(ring.held() == 0);
        const std::vector<float> row(8);
        CHECK(ring.append(view(row.data(), {1, 1, 8})) == s);
        CHECK(ring.append(view(nullptr, {0, 1, 0})) == s);
        CHECK(ring.rollback(0) == s);
        CHECK(ring.view().validate() == s);
        CHECK(ring.view().extent(1) == 0);
    }
}

TEST_CASE("recent queries: other queries and too long a rollback are refused, the ring stays as it was",
          "[decode]") {
    recent_queries<> ring(4, 3, 8, 1);
    const layer_data layer = all_queries(5, 1);
    REQUIRE(ring.append(query_slice(layer, 0, 2)).ok());
    const auto before = bytes_of(ring);
    CHECK(ring.append(view(layer.q.data(), {2, 5, 8})).code() == errc::invalid_parameter);
    CHECK(ring.append(view(layer.q.data(), {4, 5, 4})).code() == errc::invalid_parameter);
    CHECK(ring.append(view(layer.q.data(), {4, -5, 8})).code() == errc::invalid_parameter);
    CHECK(ring.append(view(nullptr, {4, 5, 8})).code() == errc::invalid_parameter);
    const std::vector<std::int32_t> offsets{0, 5, 10, 15, 19}; // the last head has a query less
    CHECK(ring.append(ragged<const float>(layer.q.data(), offsets, 8)).code() == errc::rows_differ);
    constexpr index_t most = std::numeric_limits<index_t>::max();
    for (const index_t count : {index_t{3}, index_t{-1}, most, -most - 1}) {
        CHECK(ring.rollback(count).code() == errc::invalid_parameter);
        const auto shown = ring.view(count);
        CHECK(shown.validate().code() == errc::invalid_parameter);
        CHECK((shown.extent(0) == 0 && shown.extent(1) == 0 && shown.extent(2) == 0));
        // A policy that is given such a view answers what the view does.
        const auto in = prefix_inputs(layer, 5).with_queries(shown);
        require_refusal(snapkv(), in, {.budget = per_head(2)}, errc::invalid_parameter);
    }
    CHECK(bytes_of(ring) == before);
}

TEST_CASE("recent queries: a saved ring whose next slot lies behind its end is refused", "[decode]") {
    const recent_queries<float> ring(1, 2, 1, 1);
    recent_queries<float> restored(1, 2, 1, 1);
    auto bytes = bytes_of(ring);
    const std::size_t next = sizeof(std::uint32_t) + 4 * sizeof(index_t);
    bytes[next] = std::byte{2};
    CHECK(restore(restored, bytes).ok());
    bytes[next] = std::byte{3}; // of three slots
    CHECK(restore(restored, bytes).code() == errc::invalid_parameter);
}
