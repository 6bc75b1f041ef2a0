// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/score/add_pass.hpp>
#include <kvtrim/score/replay_scores.hpp>

#include <kvtrim/policy/replay.hpp>

#include "support/losses.hpp"

#include <cmath>
#include <limits>

using namespace kvtrim;
using namespace support;

namespace {

// A prompt of `rows` tokens and behind it a replay of as many tokens as the layer has queries.
struct replayed_layer {
    layer_data data;
    index_t rows;

    replayed_layer(const layer_shape& shape, std::uint64_t seed)
        : data(random_layer(shape, seed)), rows(shape.tokens - shape.queries) {}

    [[nodiscard]] static view part(const view& all, index_t first, index_t count) {
        return view(all.data_handle() + first * all.stride(1), {all.extent(0), count, all.extent(2)},
                    {all.stride(0), all.stride(1), all.stride(2)});
    }
    // The cache and the queries when `count` tokens of the replay from `first` on have come.
    [[nodiscard]] auto inputs(index_t first, index_t count, bool has_own_rows = true) const {
        const index_t cached = has_own_rows ? rows + first + count : rows;
        return kvtrim::layer(part(data.keys(), 0, cached), part(data.values(), 0, cached))
            .with_queries(part(data.queries(), first, count))
            .with_output_projection(data.projection());
    }
    [[nodiscard]] index_t queries() const { return data.shape.queries; }
};

std::vector<float> scores_of(const replay_scores& s, index_t head) {
    std::vector<float> row;
    for (index_t t = 0; t < s.tokens(head); ++t) { row.push_back(s.score(head, t)); }
    return row;
}

replay_scores fed(const replayed_layer& layer, token_loss loss, const std::vector<index_t>& chunks,
                  bool has_own_rows = true, const attention_options& attention = {},
                  const replay_part& part = {}) {
    replay_scores scores(layer.data.shape.kv_heads, layer.rows, loss);
    growing_workspace memory;
    index_t first = 0;
    for (const index_t count : chunks) {
        const status s = scores.add(layer.inputs(first, count, has_own_rows), attention, memory, part);
        if (!s.ok()) { throw std::runtime_error(s.what()); }
        first += count;
    }
    return scores;
}

bool same_scores(const replay_scores& a, const replay_scores& b) {
    bool same = a.kv_heads() == b.kv_heads();
    for (index_t g = 0; same && g < a.kv_heads(); ++g) { same = scores_of(a, g) == scores_of(b, g); }
    return same;
}

std::vector<index_t> random_chunks(support::random& r, index_t total) {
    std::vector<index_t> chunks;
    for (index_t left = total; left > 0; left -= chunks.back()) { chunks.push_back(r.between(1, left)); }
    return chunks;
}

} // namespace

TEST_CASE("replay_scores: scores equal the naive ones over cache and replay, for random shapes and options",
          "[score][oracle]") {
    support::random r(91);
    std::vector<float> sinks;
    for (std::uint64_t seed = 0; seed < 30; ++seed) {
        layer_shape shape = random_shape(r);
        shape.queries = std::min<index_t>(shape.queries, 40);
        shape.tokens = std::min<index_t>(shape.tokens, 90) + shape.queries;
        const replayed_layer layer(shape, 9100 + seed);
        eviction_request request = random_request(r, shape, sinks);
        request.protect = {};
        const layer_oracle slow(layer.data.inputs(), request);
        const auto rows = static_cast<std::size_t>(layer.rows);
        for (const token_loss loss : all_losses) {
            CAPTURE(seed, loss, shape.tokens, shape.queries, shape.group, shape.head_dim);
            const replay_scores got =
                fed(layer, loss, random_chunks(r, shape.queries), true, request.attention);
            for (std::size_t g = 0; g < slow.heads(); ++g) {
                oracle::row expected = losses_of(slow, loss, g, std::vector<std::size_t>(40, rows));
                expected.resize(rows);
                CHECK(loss_difference(scores_of(got, static_cast<index_t>(g)), expected) == "");
            }
        }
    }
}

TEST_CASE("replay_scores: queries without rows of their own see the whole cache, and nothing else",
          "[score][oracle]") {
    const replayed_layer layer({.kv_heads = 2, .group = 3, .tokens = 150, .queries = 50}, 92);
    // The oracle's own-row rule lets each query see every row if all of them come behind a rollback of none: rows of the
    // prompt alone, and of each query but the last no more than that.
    layer_oracle slow(layer.data.inputs(), {});
    const std::size_t rows = 100;
    for (auto& head : slow.keys) { head.resize(rows); }
    for (auto& head : slow.values) { head.resize(rows); }
    oracle::tensor all;
    for (std::size_t h = 0; h < slow.queries.size(); ++h) {
        oracle::matrix of_head;
        for (const oracle::row& q : slow.queries[h]) {
            of_head.push_back(oracle::attention({{q}}, {slow.keys[h / 3]}, {})[0][0]);
        }
        all.push_back(of_head);
    }
    slow.attention = all;
    for (const token_loss loss : all_losses) {
        const replay_scores got = fed(layer, loss, {7, 43}, false);
        for (std::size_t g = 0; g < slow.heads(); ++g) {
            const oracle::row expected = losses_of(slow, loss, g, std::vector<std::size_t>(50, rows));
            CHECK(loss_difference(scores_of(got, static_cast<index_t>(g)), expected) == "");
        }
    }
}

TEST_CASE("replay_scores: maxima are the same bit for bit however the replay is cut into chunks", "[score]") {
    support::random r(93);
    for (std::uint64_t seed = 0; seed < 12; ++seed) {
        // More rows than a block of queries and than a tile of keys.
        const index_t queries = r.one_of({5, 64, 150, 300});
        const replayed_layer layer({.kv_heads = 2,
                                    .group = r.one_of({1, 3}),
                                    .tokens = queries + r.one_of({40, 270, 530}),
                                    .head_dim = r.one_of({16, 64}),
                                    .queries = queries},
                                   9300 + seed);
        for (const bool own : {true, false}) {
            for (const token_loss loss : {token_loss::attention_maximum, token_loss::output_maximum}) {
                const replay_scores once = fed(layer, loss, {queries}, own);
                CHECK(same_scores(once, fed(layer, loss, random_chunks(r, queries), own)));
                CHECK(same_scores(
                    once, fed(layer, loss, std::vector<index_t>(static_cast<std::size_t>(queries), 1), own)));
            }
            const replay_scores sums = fed(layer, token_loss::output_square_sum, {queries}, own);
            const replay_scores cut =
                fed(layer, token_loss::output_square_sum, random_chunks(r, queries), own);
            for (index_t g = 0; g < 2; ++g) {
                const std::vector<float> expected = scores_of(sums, g);
                CHECK(difference(scores_of(cut, g), oracle::row(expected.begin(), expected.end()), 1e-5) ==
                      "");
            }
        }
    }
}

TEST_CASE("replay_scores: a part's softmax runs over its rows, the first ones and the replay",
          "[score][oracle]") {
    const replayed_layer layer({.kv_heads = 2, .group = 2, .tokens = 400, .head_dim = 16, .queries = 30}, 94);
    const replay_part part{{100, 290}, 3};
    // The same with the other rows really gone.
    std::vector<std::size_t> seen;
    for (std::size_t t = 0; t < 400; ++t) {
        if (t < 3 || (t >= 100 && t < 290) || t >= 370) { seen.push_back(t); }
    }
    layer_oracle slow(layer.data.inputs(), {});
    for (std::size_t g = 0; g < 2; ++g) {
        oracle::matrix keys, values;
        for (const std::size_t t : seen) {
            keys.push_back(slow.keys[g][t]);
            values.push_back(slow.values[g][t]);
        }
        slow.keys[g] = keys;
        slow.values[g] = values;
    }
    slow.attention = oracle::attention(slow.queries, slow.keys, {});
    for (const token_loss loss : all_losses) {
        const replay_scores got = fed(layer, loss, {11, 19}, true, {}, part);
        for (std::size_t g = 0; g < 2; ++g) {
            const oracle::row expected = losses_of(slow, loss, g, std::vector<std::size_t>(30, 1000));
            const std::vector<float> row = scores_of(got, static_cast<index_t>(g));
            CHECK(loss_difference(std::span(row).subspan(100, 190),
                                  oracle::row(expected.begin() + 3, expected.begin() + 193)) == "");
            CHECK(std::all_of(row.begin(), row.begin() + 100, [](float x) { return x == 0; }));
            CHECK(std::all_of(row.begin() + 290, row.end(), [](float x) { return x == 0; }));
        }
    }
}

TEST_CASE("replay_scores: a prompt's own pass scores what its queries want from afar, in any chunks",
          "[score][oracle]") {
    const layer_data layer =
        random_layer({.kv_heads = 2, .group = 2, .tokens = 310, .head_dim = 16, .queries = 310}, 95);
    const layer_oracle slow(layer.inputs(), {});
    support::random r(96);
    for (const index_t nearest : {0, 1, 40}) {
        std::vector<std::size_t> last_rows;
        for (index_t i = 0; i < 310; ++i) {
            last_rows.push_back(static_cast<std::size_t>(std::max<index_t>(0, i + 1 - nearest)));
        }
        for (const token_loss loss : all_losses) {
            replay_scores got(2, 0, loss), once(2, 310, loss);
            growing_workspace memory;
            index_t first = 0;
            for (const index_t count : random_chunks(r, 310)) {
                REQUIRE(got.append(count).ok());
                const auto in = kvtrim::layer(replayed_layer::part(layer.keys(), 0, first + count),
                                              replayed_layer::part(layer.values(), 0, first + count))
                                    .with_queries(replayed_layer::part(layer.queries(), first, count))
                                    .with_output_projection(layer.projection());
                REQUIRE(got.add_own(in, {}, nearest, memory).ok());
                first += count;
            }
            REQUIRE(once.add_own(layer.inputs(), {}, nearest, memory).ok());
            if (loss != token_loss::output_square_sum) { CHECK(same_scores(got, once)); }
            for (std::size_t g = 0; g < 2; ++g) {
                const oracle::row expected = losses_of(slow, loss, g, last_rows);
                CHECK(loss_difference(scores_of(got, static_cast<index_t>(g)), expected) == "");
            }
        }
    }
}

TEST_CASE("add_pass: an own pass counts as many queries as a replay, a replay as it is, maxima the larger",
          "[score]") {
    const layer_data layer = random_layer({.kv_heads = 2, .group = 2, .tokens = 80, .queries = 80}, 98);
    growing_workspace memory;
    for (const token_loss loss : all_losses) {
        replay_scores replayed(2, 80, loss), own(2, 80, loss);
        REQUIRE(replayed.add(layer.inputs(), {}, memory).ok());
        REQUIRE(own.add_own(layer.inputs(), {}, 10, memory).ok());
        for (const index_t nearest : {index_t{-1}, index_t{10}}) {
            replay_scores both = replayed;
            REQUIRE(add_pass(both, own, nearest, 3).ok());
            for (index_t g = 0; g < 2; ++g) {
                for (index_t t = 0; t < 80; ++t) {
                    const double one = replayed.score(g, t), other = own.score(g, t);
                    const double seen =
                        nearest < 0 ? 1 : 80 / static_cast<double>(std::max<index_t>(1, 70 - t));
                    const double expected = loss == token_loss::output_square_sum
                                                ? std::sqrt(one * one + 3 * seen * other * other)
                                                : std::max(one, other);
                    CHECK(both.score(g, t) == Approx(expected));
                }
            }
        }
        replay_scores same = replayed;
        REQUIRE(add_pass(same, replay_scores(2, 80, loss)).ok()); // which saw nothing
        CHECK(same_scores(same, replayed));
    }
}

TEST_CASE("add_pass: another cache, loss or weight is refused with nothing changed", "[score][errors]") {
    const replayed_layer layer({.kv_heads = 2, .group = 2, .tokens = 60, .queries = 20}, 99);
    replay_scores scores = fed(layer, token_loss::output_square_sum, {20});
    const replay_scores before = scores;
    for (const replay_scores& other :
         {replay_scores(2, 41, token_loss::output_square_sum), replay_scores(2, 40),
          replay_scores(1, 40, token_loss::output_square_sum)}) {
        CHECK(add_pass(scores, other).code() == errc::invalid_parameter);
    }
    for (const float weight :
         {-1.0f, std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
        CHECK(add_pass(scores, before, -1, weight).code() == errc::invalid_parameter);
    }
    replay_scores broken(-1, 3);
    CHECK(add_pass(scores, broken).code() == errc::invalid_parameter);
    CHECK(add_pass(broken, scores).code() == errc::invalid_parameter);
    CHECK(same_scores(scores, before));
    constexpr index_t huge = std::numeric_limits<index_t>::max();
    CHECK(add_pass(scores, before, huge, 0).ok());
    CHECK(same_scores(scores, before));
    replay_scores none(0, 0, token_loss::output_square_sum);
    CHECK(add_pass(none, replay_scores(0, 0, token_loss::output_square_sum)).ok());
}

TEST_CASE("replay_scores: heads of different lengths are scored each with its own rows", "[score]") {
    const replayed_layer layer({.kv_heads = 2, .group = 2, .tokens = 120, .queries = 20}, 97);
    const ragged_cache keys(layer.data.keys(), {50, 90});
    const ragged_cache values(layer.data.values(), {50, 90});
    const auto in = kvtrim::layer(keys.get(), values.get())
                        .with_queries(layer.data.queries())
                        .with_output_projection(layer.data.projection());
    replay_scores got(keys.get(), token_loss::output_maximum);
    growing_workspace memory;
    REQUIRE(got.add(in, {}, memory).ok());
    CHECK(got.tokens(0) == 50);
    CHECK(got.tokens(1) == 90);
    for (index_t g = 0; g < 2; ++g) {
        replay_scores alone(1, got.tokens(g), token_loss::output_maximum);
        const auto one_head = [&](const view& all, index_t first, index_t heads, index_t rows) {
            return view(all.data_handle() + first * all.stride(0), {heads, rows, all.extent(2)},
                        {all.stride(0), all.stride(1), all.stride(2)});
        };
        const auto w = layer.data.projection();
        REQUIRE(alone
                    .add(kvtrim::layer(one_head(layer.data.keys(), g, 1, got.tokens(g)),
                                       one_head(layer.data.values(), g, 1, got.tokens(g)))
                             .with_queries(one_head(layer.data.queries(), 2 * g, 2, 20))
                             .with_output_projection(one_head(w, 2 * g, 2, w.extent(1))),
                         {}, memory)
                    .ok());
        CHECK(scores_of(got, g) == scores_of(alone, 0));
    }
    CHECK(got.add(in, {}, memory, {{0, 40}, 0}).code() == errc::rows_differ);
    const ragged_cache shorter(layer.data.keys(), {49, 90}), values_of(layer.data.values(), {49, 90});
    const auto other = kvtrim::layer(shorter.get(), values_of.get())
                           .with_queries(layer.data.queries())
                           .with_output_projection(layer.data.projection());
    CHECK_FALSE(got.add(other, {}, memory).ok()); // a first head of another length

    REQUIRE(got.append(3).ok());
    CHECK(got.tokens(0) == 53);
    CHECK(got.tokens(1) == 93);
    CHECK(got.score(1, 92) == 0);
}

TEST_CASE("replay_scores: a replay of all layers keeps the best rows of all heads and layers",
          "[score][policy]") {
    std::vector<replay_scores> layers;
    std::vector<float> all;
    for (std::uint64_t l = 0; l < 3; ++l) {
        const replayed_layer layer({.kv_heads = 2, .group = 2, .tokens = 80, .queries = 20}, 970 + l);
        layers.push_back(fed(layer, token_loss::attention_maximum, {20}));
        for (index_t g = 0; g < 2; ++g) {
            for (const float x : scores_of(layers.back(), g)) { all.push_back(x); }
        }
    }
    std::vector<keep_plan> plans(3);
    growing_workspace memory;
    const eviction_request request{.budget = per_head(15)};
    REQUIRE(layer_replay()
                .plan(std::span<const replay_scores>(layers), request, std::span<keep_plan>(plans), memory)
                .ok());
    std::sort(all.begin(), all.end(), std::greater<>());
    index_t kept = 0;
    for (std::size_t l = 0; l < 3; ++l) {
        for (index_t g = 0; g < 2; ++g) {
            for (const auto t : plans[l].row(g)) {
                CHECK(layers[l].score(g, t) >= all[89]);
                ++kept;
            }
        }
    }
    CHECK(kept == 90);
    keep_plan even;
    REQUIRE(replay_uniform().plan(layers[0], request, even, memory).ok());
    CHECK(even.row(0).size() == 15);
    REQUIRE(replay().plan(layers[0], request, even, memory).ok());
    CHECK(even.total_tokens() == 30);
    // What was cut keeps its scores.
    replay_scores cut = layers[0];
    REQUIRE(cut.compact(even).ok());
    for (index_t g = 0; g < 2; ++g) {
        for (index_t i = 0; i < cut.tokens(g); ++i) {
            CHECK(cut.score(g, i) == layers[0].score(g, even.row(g)[static_cast<std::size_t>(i)]));
        }
    }
    CHECK(cut.compact(even).code() == errc::plan_mismatch);
}

TEST_CASE(
    "replay_scores: at 131072 tokens and 8 KV heads a serial call keeps 48 MiB of logits, a wide one no more",
    "[score][workspace]") {
    struct never_read {
        std::array<index_t, 3> extents;

        [[nodiscard]] index_t extent(std::size_t r) const { return extents[r]; }
        static void load_rows(index_t, index_t, index_t, float*) { FAIL("rows were read"); }
    };
    constexpr index_t tokens = 131072;
    const never_read cache{{8, tokens, 64}};
    const replay_scores scores(8, tokens);
    const auto in = kvtrim::layer(cache, cache).with_queries(never_read{{32, 32, 64}});
    for (const index_t bytes :
         {scores.workspace_bytes(in, {}), scores.workspace_bytes(in, {}, {}, counted_executor{8})}) {
        CHECK(bytes > index_t{48} << 20);
        CHECK(bytes < index_t{64} << 20);
    }
}

TEST_CASE("replay_scores: value norms multiply scores, once and for all", "[score]") {
    const replayed_layer layer({.kv_heads = 2, .group = 2, .tokens = 60, .queries = 20}, 98);
    for (const token_loss loss : {token_loss::attention_maximum, token_loss::output_maximum}) {
        const replay_scores before = fed(layer, loss, {20});
        replay_scores after = before;
        std::vector<float> norms(80);
        for (std::size_t i = 0; i < norms.size(); ++i) { norms[i] = static_cast<float>(i % 7); }
        norms[5] = NAN;
        norms[6] = -1;
        REQUIRE(after.weigh(strided<const float, 2>(norms.data(), {2, 40})).ok());
        CHECK(after.score(0, 5) == 0);
        CHECK(after.score(0, 6) == 0);
        CHECK(after.score(1, 2) == Approx(before.score(1, 2) * norms[42]));
        CHECK(after.weigh(strided<const float, 2>(norms.data(), {2, 39})).code() == errc::invalid_parameter);
    }
}

TEST_CASE("replay_scores: wrong numbers are answered, with nothing changed", "[score][errors]") {
    const replayed_layer layer({.kv_heads = 2, .group = 2, .tokens = 60, .queries = 20}, 99);
    growing_workspace memory;
    constexpr index_t huge = std::numeric_limits<index_t>::max();
    for (const auto& [heads, tokens] :
         {std::pair<index_t, index_t>{-1, 4}, {4, -1}, {huge, 2}, {2, huge}, {1, index_t{1} << 31}}) {
        replay_scores bad(heads, tokens);
        CHECK(!bad.validate().ok());
        CHECK(bad.kv_heads() == 0);
        CHECK(!bad.add(layer.inputs(0, 20), {}, memory).ok());
        CHECK(!bad.append(1).ok());
        keep_plan plan;
        CHECK(!replay().plan(bad, {.budget = per_head(3)}, plan, memory).ok());
    }
    // As many floats as memory can address at most are a length that no plan can have, more are no memory.
    CHECK(replay_scores(1, huge / 4).validate().code() == errc::index_overflow);
    CHECK(replay_scores(1, huge / 4 + 1).validate().code() == errc::invalid_parameter);
    replay_scores scores = fed(layer, token_loss::output_maximum, {20});
    const replay_scores before = scores;
    CHECK(scores.add(layer.inputs(0, 20, false), {.sliding_window = 5}, memory).code() ==
          errc::invalid_parameter);
    CHECK(scores.add(layer.inputs(0, 20), {.scale = -1}, memory).code() == errc::invalid_parameter);
    for (const replay_part part :
         {replay_part{{-1, 5}, 0}, replay_part{{7, 5}, 0}, replay_part{{0, 5}, -1}}) {
        CHECK(scores.add(layer.inputs(0, 20), {}, memory, part).code() == errc::invalid_parameter);
    }
    const auto keys = [&](index_t rows) { return replayed_layer::part(layer.data.keys(), 0, rows); };
    const auto other = [&](index_t rows) {
        return kvtrim::layer(keys(rows), keys(rows)).with_queries(layer.data.queries());
    };
    for (const index_t rows : {39, 41, 59}) { // fewer than the prompt, or than the queries behind it
        CHECK(scores.add(other(rows), {}, memory).code() == errc::invalid_parameter);
    }
    CHECK(scores.add(kvtrim::layer(keys(60)).with_queries(layer.data.queries()), {}, memory).code() ==
          errc::invalid_parameter);
    CHECK(scores.add_own(other(41), {}, 0, memory).code() == errc::invalid_parameter);
    CHECK(scores.add_own(other(40), {}, -1, memory).code() == errc::invalid_parameter);
    CHECK(!scores.append(-1).ok());
    CHECK(!scores.append(huge).ok());
    workspace none({});
    const status small = scores.add(layer.inputs(0, 20), {}, none);
    CHECK(small.code() == errc::workspace_too_small);
    CHECK(small.needed() == scores.workspace_bytes(layer.inputs(0, 20), {}));
    CHECK(same_scores(scores, before));
    // A part behind all rows, and a nearest beyond them, are about nothing.
    CHECK(scores.add(layer.inputs(0, 20), {}, memory, {{huge, huge}, huge}).ok());
    CHECK(scores.add_own(other(40), {}, huge, memory).ok());
    CHECK(same_scores(scores, before));
}

TEST_CASE("replay_scores: saved bytes are the state, and hostile ones are refused", "[score][state]") {
    const replayed_layer layer({.kv_heads = 2, .group = 2, .tokens = 60, .queries = 20}, 100);
    const replay_scores scores = fed(layer, token_loss::output_square_sum, {20});
    std::vector<std::byte> bytes(static_cast<std::size_t>(saved_bytes(scores)));
    REQUIRE(save(scores, bytes).ok());
    replay_scores other(1, 3);
    REQUIRE(restore(other, bytes).ok());
    CHECK(same_scores(other, scores));
    support::random r(5);
    for (std::size_t cut = 0; cut < bytes.size(); cut += 1 + cut / 8) {
        CHECK(!restore(other, std::span(bytes).first(cut)).ok());
    }
    for (int i = 0; i < 300; ++i) { // whatever is restored can be used
        std::vector<std::byte> spoilt = bytes;
        spoilt[r.bits() % 48] = static_cast<std::byte>(r.bits());
        replay_scores any(1, 3);
        if (!restore(any, spoilt).ok()) { continue; }
        keep_plan plan;
        growing_workspace memory;
        static_cast<void>(replay().plan(any, {.budget = per_head(3)}, plan, memory));
    }
}
