// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/decode/close_up.hpp>

#include <kvtrim/cache/filled.hpp>

#include "compact/random_cache.hpp"
#include "oracle/expected_attention.hpp"
#include "support/states.hpp"

#include <cmath>
#include <numeric>

using namespace kvtrim;
using namespace support;

namespace {

constexpr index_t slots = 90;

// A layer that lives, and beside it what it should be: for each cached token the key before RoPE, and where it stood in
// the text.
struct life {
    struct token {
        oracle::row key;
        int position;
    };

    index_t heads, head_dim;
    std::vector<float> table;
    rope_pairing pairing;
    std::vector<float> k, v;
    cache_positions positions;
    std::vector<std::vector<token>> right; // [heads][tokens]
    index_t seen = 0;
    growing_workspace memory;

    explicit life(support::random& r)
        : heads(r.between(1, 3)), head_dim(r.one_of({4, 16, 20})),
          pairing(r.chance(0.5) ? rope_pairing::half_split : rope_pairing::interleaved),
          k(static_cast<std::size_t>(heads * slots * head_dim)), v(static_cast<std::size_t>(heads * slots)),
          positions(heads), right(static_cast<std::size_t>(heads)) {
        const index_t pairs = r.between(1, head_dim / 2);
        for (index_t i = 0; i < pairs; ++i) {
            table.push_back(static_cast<float>(std::exp(-0.7 * static_cast<double>(i))));
        }
    }

    [[nodiscard]] rope get_rope() const { return {.inverse_frequencies = table, .pairing = pairing}; }
    [[nodiscard]] filled<float> keys() {
        return {strided(k.data(), {heads, slots, head_dim}), positions.lengths()};
    }
    [[nodiscard]] filled<float> values() {
        return {strided(v.data(), {heads, slots, 1}), positions.lengths()};
    }
    [[nodiscard]] oracle::row rotated(const oracle::row& key, double position) const {
        const oracle::rotation by{{table.begin(), table.end()}, pairing == rope_pairing::interleaved, 1.0};
        return by.rotated(key, position);
    }

    // What an engine does: rotates new keys to next_position() and caches them. A value is its token's place in the text.
    void push(support::random& r, index_t count) {
        for (index_t g = 0; g < heads; ++g) {
            for (index_t i = 0; i < count; ++i) {
                oracle::row key(static_cast<std::size_t>(head_dim));
                for (double& x : key) { x = r.normal(); }
                const oracle::row turned = rotated(key, static_cast<double>(positions.next_position() + i));
                const index_t row = g * slots + positions.tokens(g) + i;
                for (index_t d = 0; d < head_dim; ++d) {
                    k[static_cast<std::size_t>(row * head_dim + d)] =
                        static_cast<float>(turned[static_cast<std::size_t>(d)]);
                }
                v[static_cast<std::size_t>(row)] = static_cast<float>(seen + i);
                right[static_cast<std::size_t>(g)].push_back({key, static_cast<int>(seen + i)});
            }
        }
        REQUIRE(positions.append(count).ok());
        seen += count;
    }
    void undo(index_t count) {
        REQUIRE(positions.rollback(count).ok());
        for (auto& row : right) { row.resize(row.size() - static_cast<std::size_t>(count)); }
        seen -= count;
    }
    // Keeps all of the first `pinned` rows; the same number of rows in every head unless ragged.
    [[nodiscard]] keep_plan any_cut(support::random& r, index_t pinned, bool is_ragged) {
        std::vector<oracle::token_set> sets;
        index_t shortest = slots;
        for (index_t g = 0; g < heads; ++g) {
            oracle::token_set kept;
            const double share = 0.3 + 0.6 * r.uniform();
            for (index_t t = 0; t < positions.tokens(g); ++t) {
                if (t < pinned || r.chance(share)) { kept.push_back(static_cast<std::size_t>(t)); }
            }
            shortest = std::min(shortest, std::ssize(kept));
            sets.push_back(kept);
        }
        if (!is_ragged) {
            for (auto& kept : sets) { kept.resize(static_cast<std::size_t>(shortest)); }
        }
        return plan_of(sets);
    }
    void forget(const keep_plan& plan) {
        for (index_t g = 0; g < heads; ++g) {
            std::vector<token> left;
            for (const auto t : plan.row(g)) {
                left.push_back(right[static_cast<std::size_t>(g)][static_cast<std::size_t>(t)]);
            }
            right[static_cast<std::size_t>(g)] = left;
        }
    }
    status cut_and_close(const keep_plan& plan, index_t pinned) {
        workspace scratch = memory.of_bytes(rerotate_keys_bytes(keys(), get_rope()));
        return kvtrim::cut_and_close(keys(), values(), positions, plan, get_rope(), {.pinned_tokens = pinned},
                                     scratch);
    }
    status close_up(index_t pinned) {
        workspace scratch = memory.of_bytes(rerotate_keys_bytes(keys(), get_rope()));
        return kvtrim::close_up(keys(), positions, get_rope(), {.pinned_tokens = pinned}, scratch);
    }

    void check() {
        CHECK(positions.seen_tokens() == seen);
        double worst = 0;
        for (index_t g = 0; g < heads; ++g) {
            const auto& row = right[static_cast<std::size_t>(g)];
            REQUIRE(positions.tokens(g) == std::ssize(row));
            for (index_t t = 0; t < positions.tokens(g); ++t) {
                const auto i = static_cast<std::size_t>(t);
                REQUIRE(positions.positions(g)[i] == row[i].position);
                REQUIRE(values()(g, t, 0) == static_cast<float>(row[i].position));
                const oracle::row key = rotated(row[i].key, positions.rotary_positions(g)[i]);
                for (index_t d = 0; d < head_dim; ++d) {
                    worst = std::max(worst, std::abs(static_cast<double>(keys()(g, t, d)) -
                                                     key[static_cast<std::size_t>(d)]));
                }
            }
        }
        CHECK(worst < 1e-5);
    }
    // Positions are those of a prompt as long as the longest head, whose newest tokens are the newest in every head.
    void check_closed_up(index_t pinned) {
        CHECK(positions.next_position() == positions.longest_row());
        CHECK(positions.reclaimable_positions({.pinned_tokens = pinned}) == 0);
        for (index_t g = 0; g < heads; ++g) {
            for (index_t t = 0; t < positions.tokens(g); ++t) {
                const index_t wanted = t < pinned ? t : positions.next_position() - positions.tokens(g) + t;
                REQUIRE(positions.rotary_positions(g)[static_cast<std::size_t>(t)] == wanted);
            }
        }
    }
};

} // namespace

TEST_CASE("cut_and_close: three cuts with tokens between them leave the keys that rotating from scratch to "
          "the final positions "
          "gives",
          "[decode][close_up]") {
    support::random r(1);
    for (int round = 0; round < 30; ++round) {
        life one(r);
        const index_t pinned = r.between(0, 3);
        const bool is_ragged = round % 2 == 1;
        one.push(r, 60);
        for (int cut = 0; cut < 3; ++cut) {
            const keep_plan plan = one.any_cut(r, pinned, is_ragged);
            const index_t before = one.positions.next_position();
            REQUIRE(one.cut_and_close(plan, pinned).ok());
            one.forget(plan);
            one.check();
            one.check_closed_up(pinned);
            CHECK(one.positions.next_position() <= before);
            one.push(r, r.between(1, 9)); // the next token follows the last one, whatever was cut
            one.check();
            one.check_closed_up(pinned);
        }
        CHECK(one.positions.seen_tokens() > one.positions.next_position());
    }
}

TEST_CASE(
    "close_up: any life of cuts, closings, undone drafts and restores keeps keys and positions together",
    "[decode][close_up][properties]") {
    support::random r(2);
    for (int round = 0; round < 40; ++round) {
        life one(r);
        const index_t pinned = r.between(0, 2);
        one.push(r, pinned + 10);
        for (int step = 0; step < 30; ++step) {
            const index_t room = slots - one.positions.longest_row();
            const double what = r.uniform();
            if (what < 0.4 && room > 4) {
                const index_t drafts = r.between(1, 4);
                one.push(r, drafts);
                if (r.chance(0.3)) { // drafts survive a closing, and are undone after it
                    REQUIRE(one.close_up(pinned).ok());
                    one.check_closed_up(pinned);
                }
                one.undo(r.between(0, drafts));
            } else if (what < 0.6) {
                const keep_plan plan = one.any_cut(r, pinned, r.chance(0.5));
                REQUIRE(compact_in_place(one.keys(), one.values(), plan).ok());
                REQUIRE(one.positions.compact(plan).ok());
                one.forget(plan);
            } else if (what < 0.8) {
                const index_t won = one.positions.reclaimable_positions({.pinned_tokens = pinned});
                const index_t before = one.positions.next_position();
                REQUIRE(one.close_up(pinned).ok());
                CHECK(one.positions.next_position() == before - won);
                one.check_closed_up(pinned);
            } else {
                cache_positions restored(1, 3);
                REQUIRE(restore(restored, bytes_of(one.positions)).ok());
                CHECK(bytes_of(restored) == bytes_of(one.positions));
                one.positions = restored;
            }
            one.check();
        }
    }
}

TEST_CASE("close_up: pinned rows are never written, and cuts alone move no position", "[decode][close_up]") {
    support::random r(3);
    for (int round = 0; round < 20; ++round) {
        life one(r);
        one.push(r, 40);
        const std::vector<float> prompt = one.k;
        const keep_plan plan = one.any_cut(r, 5, true);
        REQUIRE(compact_in_place(one.keys(), one.values(), plan).ok());
        REQUIRE(one.positions.compact(plan).ok());
        CHECK(one.positions.next_position() == 40);
        REQUIRE(one.close_up(5).ok());
        for (index_t g = 0; g < one.heads; ++g) {
            const auto first = g * slots * one.head_dim, last = first + 5 * one.head_dim;
            CHECK(std::equal(one.k.begin() + first, one.k.begin() + last, prompt.begin() + first));
        }
        const std::vector<float> closed = one.k;
        REQUIRE(one.close_up(5).ok()); // nothing is left to close
        CHECK(one.k == closed);
    }
}

TEST_CASE("close_up: layers that were cut to different lengths can go on at one position",
          "[decode][close_up]") {
    support::random r(6);
    life a(r), b(r);
    a.push(r, 50);
    b.push(r, 50);
    for (life* one : {&a, &b}) {
        const keep_plan plan = one->any_cut(r, 1, true);
        REQUIRE(compact_in_place(one->keys(), one->values(), plan).ok());
        REQUIRE(one->positions.compact(plan).ok());
        one->forget(plan);
    }
    const index_t next = std::max(a.positions.closed_next_position(), b.positions.closed_next_position());
    for (life* one : {&a, &b}) {
        const close_up_options options{.pinned_tokens = 1, .least_next_position = next};
        workspace scratch = one->memory.of_bytes(rerotate_keys_bytes(one->keys(), one->get_rope()));
        const auto before = one->k;
        CHECK(close_up(one->keys(), one->positions, one->get_rope(), {.least_next_position = 51}, scratch)
                  .code() == errc::invalid_parameter);
        CHECK(one->k == before);
        REQUIRE(close_up(one->keys(), one->positions, one->get_rope(), options, scratch).ok());
        CHECK(one->positions.next_position() == next);
        for (index_t g = 0; g < one->heads; ++g) {
            const auto row = one->positions.rotary_positions(g);
            CHECK(row.front() == 0);
            if (row.size() > 1) { CHECK(row.back() == next - 1); }
        }
        one->push(r, 3);
        one->check();
    }
    CHECK(a.positions.next_position() == b.positions.next_position());
}

TEST_CASE("close_up: positions without heads or tokens have nothing to close", "[decode][close_up][odd]") {
    const std::vector<float> table{1.0f};
    std::vector<float> k(2 * 4 * 2);
    workspace none({});
    cache_positions no_heads(0), no_tokens(2);
    REQUIRE(no_heads.append(3).ok());
    CHECK(close_up(strided<float, 3>(nullptr, {0, 4, 2}), no_heads, {table}, {}, none).ok());
    CHECK(no_heads.next_position() == 3);
    growing_workspace memory;
    const strided<float, 3> keys(k.data(), {2, 4, 2});
    workspace scratch = memory.of_bytes(rerotate_keys_bytes(keys, rope{table}));
    CHECK(close_up(keys, no_tokens, {table}, {}, scratch).ok());
    REQUIRE(no_tokens.append(3).ok());
    REQUIRE(no_tokens.compact(plan_of({{}, {}})).ok()); // every token was evicted: the next one is the first
    CHECK(close_up(keys, no_tokens, {table}, {}, scratch).ok());
    CHECK(no_tokens.next_position() == 0);
    CHECK(no_tokens.seen_tokens() == 3);
}

TEST_CASE("cut_and_close: a plan may keep the pinned tokens alone", "[decode][close_up]") {
    support::random r(5);
    life one(r);
    one.push(r, 20);
    const keep_plan plan =
        plan_of(std::vector<oracle::token_set>(static_cast<std::size_t>(one.heads), {0, 1}));
    REQUIRE(one.cut_and_close(plan, 2).ok());
    one.forget(plan);
    one.check();
    CHECK(one.positions.next_position() == 2);
}

TEST_CASE("cut_and_close: bad input is named with keys, values and positions unchanged",
          "[decode][close_up][errors]") {
    support::random r(4);
    life one(r);
    while (one.heads < 2) { one = life(r); }
    one.push(r, 30);
    const keep_plan good = one.any_cut(r, 2, true);
    REQUIRE(one.cut_and_close(good, 2).ok());
    one.push(r, 5);
    const auto k = one.k, v = one.v;
    const auto saved = bytes_of(one.positions);
    const auto unchanged = [&](const status& s) {
        CHECK((one.k == k && one.v == v));
        CHECK(bytes_of(one.positions) == saved);
        return s.code();
    };
    const keep_plan plan = one.any_cut(r, 2, true);
    for (const keep_plan& wrong : wrong_plans(lengths_of(one.keys()))) {
        CHECK(unchanged(one.cut_and_close(wrong, 0)) == errc::plan_mismatch);
    }
    CHECK(unchanged(one.cut_and_close(plan, -1)) == errc::invalid_parameter);
    CHECK(unchanged(one.cut_and_close(plan, 1000)) == errc::invalid_parameter);
    std::vector<oracle::token_set> unpinned(static_cast<std::size_t>(one.heads), oracle::token_set{0, 2, 3});
    CHECK(unchanged(one.cut_and_close(plan_of(unpinned), 2)) == errc::invalid_parameter);
    unpinned[0] = {0, 1, 3}; // not of head 1
    CHECK(unchanged(one.cut_and_close(plan_of(unpinned), 2)) == errc::invalid_parameter);
    std::swap(unpinned[0], unpinned[1]);
    for (std::size_t g = 2; g < unpinned.size(); ++g) { unpinned[g] = unpinned[1]; }
    CHECK(unchanged(one.cut_and_close(plan_of(unpinned), 2)) == errc::invalid_parameter);

    const index_t needed = rerotate_keys_bytes(one.keys(), one.get_rope());
    std::vector<std::byte> few(static_cast<std::size_t>(needed) - 65);
    workspace small(few);
    CHECK(unchanged(cut_and_close(one.keys(), one.values(), one.positions, plan, one.get_rope(), {},
                                  small)) == errc::workspace_too_small);
    CHECK(unchanged(close_up(one.keys(), one.positions, one.get_rope(), {}, small)) ==
          errc::workspace_too_small);

    const std::vector<float> wide(static_cast<std::size_t>(one.head_dim), 1.0f);
    const std::vector<float> odd{std::nanf("")};
    workspace scratch = one.memory.of_bytes(1 << 20);
    for (const rope& wrong : {rope{wide}, rope{odd}}) {
        CHECK(unchanged(cut_and_close(one.keys(), one.values(), one.positions, plan, wrong, {}, scratch)) ==
              errc::invalid_parameter);
        CHECK(unchanged(close_up(one.keys(), one.positions, wrong, {}, scratch)) == errc::invalid_parameter);
    }
    // A cache with fewer rows, or other heads, than the positions say.
    const strided<float, 3> short_keys(one.k.data(), {one.heads, 2, one.head_dim}),
        one_head(one.k.data(), {1, slots, one.head_dim});
    CHECK(unchanged(close_up(short_keys, one.positions, one.get_rope(), {}, scratch)) == errc::plan_mismatch);
    CHECK(unchanged(close_up(one_head, one.positions, one.get_rope(), {}, scratch)) == errc::plan_mismatch);
    const strided<float, 3> short_values(one.v.data(), {one.heads, 2, 1});
    CHECK(unchanged(cut_and_close(one.keys(), short_values, one.positions, plan, one.get_rope(), {},
                                  scratch)) == errc::plan_mismatch);
    CHECK(unchanged(cut_and_close(strided<float, 3>(one.k.data(), {one.heads, -1, one.head_dim}),
                                  one.values(), one.positions, plan, one.get_rope(), {}, scratch)) ==
          errc::invalid_parameter);

    // Pinned rows at different positions in two heads are pinned in neither.
    cache_positions apart(2);
    REQUIRE(apart.append(9).ok());
    REQUIRE(apart.compact(plan_of({{0, 1, 2}, {0, 5, 6}})).ok());
    CHECK(apart.close_up({.pinned_tokens = 1}).ok());
    CHECK(apart.close_up().ok());
    cache_positions other(2);
    REQUIRE(other.append(9).ok());
    REQUIRE(other.compact(plan_of({{0, 1, 2}, {0, 5, 6}})).ok());
    CHECK(other.close_up({.pinned_tokens = 2}).code() == errc::invalid_parameter);
    CHECK(other.reclaimable_positions({.pinned_tokens = 2}) == 0);
    CHECK(other.next_position() == 9);
}

TEST_CASE(
    "cut_and_close: values over the rotated channels are refused, values in the others move with the keys",
    "[decode][close_up][regression]") {
    constexpr index_t tokens = 6, row = 8;
    const std::vector<float> frequencies{1.0f, 0.5f}; // of the first four channels
    const rope turned{frequencies};
    const keep_plan plan = plan_of({{0, 3, 5}});
    growing_workspace memory;
    for (const index_t first : {0, 3, 4}) {
        std::vector<float> rows(tokens * row);
        std::iota(rows.begin(), rows.end(), 1.0f);
        const auto before = rows;
        const strided<float, 3> keys(rows.data(), {1, tokens, row});
        const strided<float, 3> values(rows.data() + first, {1, tokens, row - first}, {tokens * row, row, 1});
        cache_positions positions(1);
        REQUIRE(positions.append(tokens).ok());
        workspace scratch = memory.of_bytes(rerotate_keys_bytes(keys, turned));
        const status s = cut_and_close(keys, values, positions, plan, turned, {}, scratch);
        if (first < 4) {
            CHECK(s.code() == errc::views_overlap);
            CHECK(rows == before);
            CHECK(positions.tokens(0) == tokens);
            continue;
        }
        REQUIRE(s.ok());
        for (index_t i = 0; i < plan.kept_tokens(0); ++i) {
            const index_t from = plan.row(0)[static_cast<std::size_t>(i)];
            for (index_t d = 4; d < row; ++d) {
                CHECK(rows[static_cast<std::size_t>(i * row + d)] ==
                      before[static_cast<std::size_t>(from * row + d)]);
            }
        }
    }
}

TEST_CASE(
    "cache positions: damaged bytes are refused, or restored to positions that can be used, closed up or not",
    "[decode][close_up]") {
    support::random r(5);
    life one(r);
    one.push(r, 12);
    for (const bool closed : {false, true}) {
        if (closed) { REQUIRE(one.cut_and_close(one.any_cut(r, 0, true), 0).ok()); }
        one.push(r, 3);
        const auto bytes = bytes_of(one.positions);
        for (std::size_t i = 0; i < bytes.size(); ++i) {
            for (const std::byte damage : {std::byte{0x01}, std::byte{0x80}, std::byte{0xff}}) {
                auto damaged = bytes;
                damaged[i] ^= damage;
                cache_positions other(1);
                if (!restore(other, damaged).ok()) { continue; }
                for (index_t g = 0; g < other.kv_heads(); ++g) {
                    index_t last = -1;
                    for (const auto p : other.rotary_positions(g)) {
                        REQUIRE(last < p);
                        last = p;
                    }
                    REQUIRE(last < other.next_position());
                }
                REQUIRE(other.append(1).ok());
                REQUIRE(other.close_up().ok());
                REQUIRE(other.rollback(1).ok());
            }
        }
        for (std::size_t cut = 0; cut < bytes.size(); ++cut) {
            cache_positions other(1);
            CHECK(restore(other, std::span(bytes).first(cut)).code() == errc::invalid_parameter);
        }
    }
}
