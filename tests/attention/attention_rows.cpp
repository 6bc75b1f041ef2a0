// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/attention/attention_rows.hpp>

#include <kvtrim/cache/indexed_rows.hpp>
#include <kvtrim/cache/paged_rows.hpp>

#include "support/checks.hpp"
#include "support/cpu_levels.hpp"
#include "support/emulated_tiles.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

namespace {

using namespace kvtrim;
using support::inputs;

// Scratch of exactly the size that counting gives.
class rows_of_head {
  public:
    rows_of_head(const inputs& in, const eviction_request& request, index_t kv_head, index_t newest,
                 index_t halo)
        : scratch_(memory_.of_bytes(bytes(in, request, newest, halo))),
          rows_(in, request, kv_head, newest, halo, scratch_) {
        REQUIRE(scratch_.fits());
    }
    attention_rows<inputs>* operator->() { return &rows_; }

  private:
    static index_t bytes(const inputs& in, const eviction_request& request, index_t newest, index_t halo) {
        workspace counting = workspace::counting();
        static_cast<void>(attention_rows(in, request, 0, newest, halo, counting));
        return counting.needed_bytes();
    }

    growing_workspace memory_;
    workspace scratch_;
    attention_rows<inputs> rows_;
};

struct setup {
    support::layer_data layer;
    eviction_request request;
    std::vector<float> sinks;
    index_t newest = 0;
    index_t halo = 0;

    explicit setup(std::uint64_t seed) {
        support::random r(seed);
        layer = support::random_layer(support::random_shape(r), seed);
        request = support::random_request(r, layer.shape, sinks);
        newest = r.chance(0.5) ? 0 : r.between(1, layer.shape.queries);
        halo = r.between(0, 5);
    }
};

} // namespace

TEST_CASE("attention_rows: any group of rows and any run of tokens equal the whole softmax",
          "[attention][oracle]") {
    for (std::uint64_t seed = 0; seed < 60; ++seed) {
        const setup s(seed);
        const inputs in = s.layer.inputs();
        REQUIRE(validate_attention(in, s.request).ok());
        const support::layer_oracle slow(in, s.request);
        support::random r(seed + 1000);
        const index_t g = r.between(0, s.layer.shape.kv_heads - 1);
        rows_of_head rows(in, s.request, g, s.newest, s.halo);
        const index_t queries = s.newest > 0 ? s.newest : s.layer.shape.queries;
        REQUIRE(rows->rows() == queries * s.layer.shape.group);
        const index_t skipped = s.layer.shape.queries - queries;
        const index_t first = r.between(0, rows->rows() - 1);
        const index_t count = r.between(1, std::min<index_t>(128, rows->rows() - first));
        rows->begin_row_group(first, count);
        CAPTURE(seed, g, first, count, s.newest, s.halo);
        CHECK(rows->current_rows() == count);
        CHECK(rows->first_row() == first);
        CHECK(rows->candidate_range() == candidates(s.request.protect, s.layer.shape.tokens));

        const auto weight = [&](index_t row, index_t token) {
            const index_t flat = first + row;
            return slow.attention[static_cast<std::size_t>(g * s.layer.shape.group + flat / queries)]
                                 [static_cast<std::size_t>(skipped + flat % queries)]
                                 [static_cast<std::size_t>(token)];
        };
        bool right = true;
        for (int run = 0; run < 4; ++run) {
            const index_t begin = r.between(0, s.layer.shape.tokens - 1);
            const index_t length =
                r.between(1, std::min(s.layer.shape.tokens - begin, rows->tile_tokens() + 2 * s.halo));
            const float* tile = rows->attention(begin, length);
            for (index_t t = 0; t < length; ++t) {
                for (index_t row = 0; row < count; ++row) {
                    const double got = static_cast<double>(tile[t * count + row]);
                    const double expected = weight(row, begin + t);
                    right = right && std::abs(got - expected) <= 1e-4 * expected + 1e-30;
                    right = right && (begin + t < rows->visible_end() || expected == 0.0);
                }
            }
        }
        CHECK(right);

        // The mass of the candidates and that outside of them.
        const token_range range = rows->candidate_range();
        double protected_mass = 0;
        for (index_t row = 0; row < count; ++row) {
            double mass = 0;
            double all = 0;
            for (index_t t = 0; t < s.layer.shape.tokens; ++t) {
                const bool candidate = t >= range.begin && t < range.end;
                all += weight(row, t);
                protected_mass += candidate ? 0.0 : weight(row, t);
                mass += candidate ? weight(row, t) : 0.0;
            }
            const double sink = s.sinks.empty() ? 0.0 : 1.0 - all;
            CHECK(rows->sink_mass(row) == Approx(sink).epsilon(1e-4).margin(1e-7));
            CHECK(rows->candidate_mass(row) == Approx(mass).epsilon(1e-4).margin(1e-7));
        }
        CHECK(rows->protected_mass() == Approx(protected_mass).epsilon(1e-4).margin(1e-4));
    }
}

TEST_CASE("attention_rows: a row group can be taken again, in any order, with the same bits", "[attention]") {
    const support::layer_data layer = support::random_layer({.group = 4, .tokens = 300, .queries = 40}, 5);
    const inputs in = layer.inputs();
    rows_of_head rows(in, {}, 1, 0, 0);
    const auto tile = [&](index_t first) {
        rows->begin_row_group(first, 32);
        const float* attention = rows->attention(100, 50);
        return std::vector<float>(attention, attention + 50 * 32);
    };
    const std::vector<float> before = tile(0);
    CHECK(tile(128) != before);
    CHECK(tile(0) == before);
}

TEST_CASE("attention_rows: kept logits change nothing, however many tokens they are for", "[attention]") {
    for (std::uint64_t seed = 0; seed < 30; ++seed) {
        setup s(seed);
        const inputs in = s.layer.inputs();
        support::random r(seed + 2000);
        rows_of_head again(in, s.request, 0, s.newest, s.halo);
        rows_of_head kept(in, s.request, 0, s.newest, s.halo);
        const index_t count = std::min<index_t>(128, again->rows());
        std::vector<float> memory(static_cast<std::size_t>(r.between(0, s.layer.shape.tokens * count)));
        kept->keep_logits_in(memory);
        again->begin_row_group(0, count);
        kept->begin_row_group(0, count);
        CAPTURE(seed, count, memory.size(), s.halo);
        for (index_t t = 0; t < s.layer.shape.tokens; t += again->tile_tokens()) {
            const index_t first = std::max<index_t>(0, t - s.halo);
            const index_t end = std::min(t + again->tile_tokens() + s.halo, s.layer.shape.tokens);
            const float* expected = again->attention(first, end - first);
            const float* got = kept->attention(first, end - first);
            CHECK(std::equal(got, got + (end - first) * count, expected));
        }
    }
}

#if KVTRIM_HAS_X86
namespace {

// Keys and queries as bf16; the keys token by token, or channel by channel.
struct bf16_layer {
    support::layer_shape shape;
    std::vector<bf16> k, q;

    bf16_layer(const support::layer_data& from, bool channels_outside) : shape(from.shape) {
        for (const float x : from.q) { q.push_back(element_traits<bf16>::from_float(x)); }
        for (index_t g = 0; g < shape.kv_heads; ++g) {
            const index_t outer = channels_outside ? shape.head_dim : shape.tokens;
            const index_t inner = channels_outside ? shape.tokens : shape.head_dim;
            for (index_t i = 0; i < outer * inner; ++i) {
                const index_t t = channels_outside ? i % inner : i / inner;
                const index_t d = channels_outside ? i / inner : i % inner;
                const float x = from.k[static_cast<std::size_t>((g * shape.tokens + t) * shape.head_dim + d)];
                k.push_back(element_traits<bf16>::from_float(x));
            }
        }
        key_stride = channels_outside ? 1 : shape.head_dim;
        channel_stride = channels_outside ? shape.tokens : 1;
    }

    // Attention [tokens, count] of head 1's first rows.
    [[nodiscard]] std::vector<float> attention(const eviction_request& request, index_t count,
                                               const kernels::window_kernels& steps) const {
        const strided<const bf16, 3> keys(k.data(), {shape.kv_heads, shape.tokens, shape.head_dim},
                                          {shape.tokens * shape.head_dim, key_stride, channel_stride});
        return attention_over(keys, request, count, steps);
    }

    template <class Keys>
    [[nodiscard]] std::vector<float> attention_over(const Keys& keys, const eviction_request& request,
                                                    index_t count,
                                                    const kernels::window_kernels& steps) const {
        const strided<const bf16, 3> queries(q.data(), {shape.q_heads(), shape.queries, shape.head_dim});
        const auto in = kvtrim::layer(keys).with_queries(queries);
        growing_workspace memory;
        workspace counting = workspace::counting();
        static_cast<void>(attention_rows(in, request, 1, 0, 0, counting, steps));
        workspace scratch = memory.of_bytes(counting.needed_bytes());
        attention_rows rows(in, request, 1, 0, 0, scratch, steps);
        std::vector<float> lent(static_cast<std::size_t>(shape.tokens * count), -31337.0f);
        rows.keep_logits_in(lent);
        rows.begin_row_group(0, count);
        const bool in_tiles = steps.bf16_logits != nullptr;
        CHECK((lent.front() == -31337.0f) == in_tiles); // tiles keep nothing
        std::vector<float> all;
        for (index_t t = 0; t < shape.tokens; t += rows.tile_tokens()) {
            const index_t length = std::min(rows.tile_tokens(), shape.tokens - t);
            const float* const tile = rows.attention(t, length);
            all.insert(all.end(), tile, tile + length * count);
        }
        return all;
    }

    index_t key_stride = 0;
    index_t channel_stride = 0;
};

// The keys of a layer in pages of 16 tokens, the last page first; token t in slot of_token[t].
struct scattered_rows {
    static constexpr index_t page_tokens = 16;

    support::layer_shape shape;
    std::vector<std::int32_t> indptr{0}, pages, last_page_len, of_token;
    std::vector<bf16> pool; // [slots, kv_heads, head_dim]

    explicit scattered_rows(const bf16_layer& from) : shape(from.shape) {
        const index_t used = (shape.tokens + page_tokens - 1) / page_tokens;
        for (index_t i = used; i-- > 0;) { pages.push_back(static_cast<std::int32_t>(i)); }
        indptr.push_back(static_cast<std::int32_t>(used));
        last_page_len.push_back(static_cast<std::int32_t>(shape.tokens - (used - 1) * page_tokens));
        pool.resize(static_cast<std::size_t>(slots() * shape.kv_heads * shape.head_dim));
        for (index_t t = 0; t < shape.tokens; ++t) {
            const index_t page = pages[static_cast<std::size_t>(t / page_tokens)];
            of_token.push_back(static_cast<std::int32_t>(page * page_tokens + t % page_tokens));
            for (index_t g = 0; g < shape.kv_heads; ++g) {
                std::copy_n(from.k.begin() + (g * shape.tokens + t) * shape.head_dim, shape.head_dim,
                            pool.begin() + (of_token.back() * shape.kv_heads + g) * shape.head_dim);
            }
        }
    }
    [[nodiscard]] index_t slots() const { return std::ssize(pages) * page_tokens; }
    [[nodiscard]] paged_rows<bf16> paged() const {
        return {pool.data(),
                nhd_pages(page_tokens, shape.kv_heads, shape.head_dim),
                {indptr, pages, last_page_len},
                0,
                shape.kv_heads,
                shape.head_dim};
    }
    [[nodiscard]] auto indexed() const {
        return indexed_rows(strided<const bf16, 3>(pool.data(), {shape.kv_heads, slots(), shape.head_dim},
                                                   {shape.head_dim, shape.kv_heads * shape.head_dim, 1}),
                            of_token);
    }
};

} // namespace

TEST_CASE("attention_rows: keys and queries of bf16 in AMX tiles give what they give widened",
          "[attention]") {
    if (best_cpu_level() < cpu_level::avx512) {
        WARN("no AVX-512 on this machine: not tested");
        return;
    }
    const kernels::window_kernels& widened = kernels::window_kernels_of(cpu_level::avx512);
    kernels::window_kernels tiles = widened;
    tiles.pack_bf16_queries = kernels::pack_columns<kernels::amx::order>;
    tiles.bf16_logits = kernels::amx::logits<support::emulated_tiles>;
    support::random r(91);
    for (const index_t dim : {24, 64, 80}) {
        eviction_request request;
        request.attention.soft_cap = r.chance(0.5) ? 20.0f : 0.0f;
        request.attention.sliding_window = r.chance(0.5) ? 100 : 0;
        request.attention.scale = r.chance(0.5) ? 0.25f : 0.0f;
        const support::layer_data layer = support::random_layer(
            {.kv_heads = 2, .group = 3, .tokens = 300, .head_dim = dim, .queries = 13}, 92);
        const bf16_layer rows(layer, false), channels(layer, true);
        for (const index_t count : {16, 39}) {
            CAPTURE(dim, count, request.attention.soft_cap, request.attention.sliding_window);
            const std::vector<float> expected = rows.attention(request, count, widened);
            const std::vector<float> got = rows.attention(request, count, tiles);
            bool near = true;
            for (std::size_t i = 0; i < expected.size(); ++i) {
                near = near && std::abs(got[i] - expected[i]) <= 2e-5f * expected[i] + 1e-30f;
            }
            CHECK(near);
            CHECK(got != expected); // another order of summation: they were computed in tiles
            // Channels that are not neighbours, and rows in pages or slots, are copied first: the same floats.
            CHECK(channels.attention(request, count, tiles) == got);
            CHECK(channels.attention(request, count, widened) == expected);
            const scattered_rows moved(rows);
            CHECK(rows.attention_over(moved.paged(), request, count, tiles) == got);
            CHECK(rows.attention_over(moved.indexed(), request, count, tiles) == got);
            CHECK(rows.attention_over(moved.paged(), request, count, widened) == expected);
            CHECK(rows.attention_over(moved.indexed(), request, count, widened) == expected);
        }
    }
}
#endif

TEST_CASE("validate_attention: bad input is answered, in this order", "[attention]") {
    const support::layer_data layer = support::random_layer({.tokens = 10, .queries = 8}, 6);
    eviction_request request{};
    CHECK(validate_attention(layer.inputs(), request).ok());
    request.protect.rollback_tokens = 3;
    CHECK(validate_attention(layer.inputs(), request).code() == errc::window_exceeds_tokens);
    CHECK(validate_attention(layer.inputs(), request).needed() == 11);
    request.protect.rollback_tokens = 2;
    CHECK(validate_attention(layer.inputs(), request).ok());
    const auto three_heads = layer.inputs().with_queries(support::view(layer.q.data(), {3, 8, 16}));
    CHECK(validate_attention(three_heads, request).code() == errc::heads_not_divisible);
    const auto none = layer.inputs().with_queries(support::view(layer.q.data(), {4, 0, 16}));
    CHECK(validate_attention(none, request).code() == errc::invalid_parameter);
    for (const float bad :
         {-1.0f, std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
        CHECK(validate_attention(layer.inputs(), {.budget = {}, .attention = {.scale = bad}}).code() ==
              errc::invalid_parameter);
        CHECK(validate_attention(layer.inputs(), {.budget = {}, .attention = {.soft_cap = bad}}).code() ==
              errc::invalid_parameter);
    }
    CHECK(validate_attention(layer.inputs(), {.budget = {}, .attention = {.sliding_window = -1}}).code() ==
          errc::invalid_parameter);
}

TEST_CASE("validate_attention: a rollback tail of any length is answered, not added past 64 bits",
          "[attention][errors]") {
    const support::layer_data layer = support::random_layer({.tokens = 10, .queries = 8}, 6);
    constexpr index_t most = std::numeric_limits<index_t>::max();
    for (const index_t rollback : {most, most - 7, most - 8}) {
        const status s =
            validate_attention(layer.inputs(), {.budget = {}, .protect = {.rollback_tokens = rollback}});
        CHECK(s.code() == errc::window_exceeds_tokens);
        CHECK(s.needed() == most);
    }
    for (const index_t rollback : {index_t{-1}, std::numeric_limits<index_t>::min()}) {
        CHECK(validate_attention(layer.inputs(), {.budget = {}, .protect = {.rollback_tokens = rollback}})
                  .code() == errc::invalid_parameter);
    }
}

TEST_CASE("validate_attention: queries of another head_dim and missing sink logits are refused",
          "[attention][errors]") {
    const support::layer_data layer = support::random_layer({.tokens = 10, .queries = 8}, 6);
    const auto narrow = layer.inputs().with_queries(support::view(layer.q.data(), {4, 8, 12}));
    CHECK(std::string(validate_attention(narrow, {}).what()) ==
          "layer: queries and keys must agree in head_dim");
    const std::vector<float> sinks(3);
    const eviction_request request{.budget = {}, .attention = {.sink_logits = sinks}};
    const status s = validate_attention(layer.inputs(), request);
    CHECK(std::string(s.what()) == "attention.sink_logits must have one entry per query head");
    CHECK(s.needed() == 4);
}
