// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// A third party's stages over one cache in the memory of many engines: the same tokens stay, whatever keeps the rows.
#include "custom_policy.hpp"

#include <kvtrim/cache/filled.hpp>
#include <kvtrim/cache/ggml_rows.hpp>
#include <kvtrim/cache/indexed_rows.hpp>
#include <kvtrim/cache/paged_rows.hpp>
#include <kvtrim/cache/ragged.hpp>
#include <kvtrim/cache/row_range.hpp>
#include <kvtrim/cache/scaled_rows.hpp>

#include <cstdio>
#include <vector>

namespace {

using namespace kvtrim;

constexpr index_t heads = 2, tokens = 200, dim = 64, group = 2, window = 8, unit_tokens = 16;
constexpr float unit = 0.25f; // an element is a small multiple of it: exact in every format below

// Element d of token t of a head, in units.
std::int8_t number(index_t head, index_t t, index_t d) {
    const auto mixed = static_cast<std::uint32_t>((head * tokens + t) * dim + d + 1) * 2654435761u;
    return static_cast<std::int8_t>(static_cast<int>(mixed >> 27) % 16 * ((mixed & 1024u) != 0 ? 1 : -1));
}

// Room for `slots` rows of every head, with the cache's row (head, t) at element place(head, t).
template <class T, class Place>
std::vector<T> stored(index_t elements, Place&& place, index_t step = 1) {
    std::vector<T> memory(static_cast<std::size_t>(elements));
    for (index_t h = 0; h < heads; ++h) {
        for (index_t t = 0; t < tokens; ++t) {
            for (index_t d = 0; d < dim; ++d) {
                memory[static_cast<std::size_t>(place(h, t) + d * step)] =
                    element_traits<T>::from_float(unit * static_cast<float>(number(h, t, d)));
            }
        }
    }
    return memory;
}

// The tokens that both stages keep of a cache whose keys and values are these rows.
template <class Rows>
std::vector<std::int32_t> kept_of(const Rows& rows) {
    static const auto queries = [] {
        std::vector<float> q(static_cast<std::size_t>(heads * group * window * dim));
        for (std::size_t i = 0; i < q.size(); ++i) { q[i] = static_cast<float>(i * 7919 % 13) / 16 - 0.4f; }
        return q;
    }();
    const auto inputs = layer(rows, rows).with_queries(strided(queries.data(), {heads * group, window, dim}));
    std::vector<std::int32_t> kept;
    const auto add = [&](const auto& scorer) {
        keep_plan plan;
        growing_workspace memory;
        const eviction_policy policy{scorer, adaptive{}, by_importance{}};
        const status s = policy.plan(inputs, {.budget = per_head(20)}, plan, memory);
        if (!s.ok()) { std::puts(s.what()); }
        for (index_t h = 0; h < plan.rows(); ++h) {
            kept.insert(kept.end(), plan.row(h).begin(), plan.row(h).end());
        }
    };
    add(value_size{});
    add(window_attention{plain_mean{}});
    return kept;
}

int differing = 0; // of all that was compared

template <class Rows>
void compare(const char* name, const Rows& rows) {
    static const auto plain =
        stored<float>(heads * tokens * dim, [](index_t h, index_t t) { return (h * tokens + t) * dim; });
    static const auto expected = kept_of(strided(plain.data(), {heads, tokens, dim}));
    const auto kept = kept_of(rows);
    const bool same = kept == expected && kept.size() >= 80;
    std::printf("%-34s %zu rows kept, %s\n", name, kept.size(), same ? "the same" : "OTHERS");
    differing += same ? 0 : 1;
}

// Pages and slots in an order of their own.
std::vector<std::int32_t> shuffled(index_t count) {
    std::vector<std::int32_t> order(static_cast<std::size_t>(count));
    for (std::size_t i = 0; i < order.size(); ++i) {
        order[i] = static_cast<std::int32_t>(i * 3 % order.size()); // counts are no multiples of 3
    }
    return order;
}

void strided_and_ragged_rows() {
    const auto in_order = [](index_t h, index_t t) { return (h * tokens + t) * dim; };
    const auto halves = stored<f16>(heads * tokens * dim, in_order);
    const auto bytes = stored<f8_e4m3>(heads * tokens * dim, in_order);
    const auto transposed = stored<bf16>(
        heads * tokens * dim, [](index_t h, index_t t) { return h * dim * tokens + t; }, tokens);
    const std::vector<std::int32_t> offsets{0, tokens, 2 * tokens};
    const std::vector<index_t> lengths(heads, tokens);
    const auto roomy = stored<bf16>(heads * 2 * tokens * dim,
                                    [](index_t h, index_t t) { return (h * 2 * tokens + t + 5) * dim; });
    const strided room(roomy.data(), {heads, 2 * tokens, dim});
    compare("strided f16", strided(halves.data(), {heads, tokens, dim}));
    compare("strided fp8", strided(bytes.data(), {heads, tokens, dim}));
    compare("transposed bf16", strided(transposed.data(), {heads, tokens, dim}, {dim * tokens, 1, tokens}));
    compare("ragged f16", ragged(halves.data(), offsets, dim));
    compare("filled f16", filled(strided(halves.data(), {heads, tokens, dim}), lengths));
    compare("a range of rows, bf16", row_range(room, 5, tokens));
}

void paged_and_indexed_rows() {
    constexpr index_t pages = (tokens + unit_tokens - 1) / unit_tokens;
    const auto order = shuffled(pages);
    const std::vector<std::int32_t> indptr{0, pages}, last{tokens - (pages - 1) * unit_tokens};
    const page_table table{indptr, order, last};
    const auto page = [&](index_t t) {
        return order[static_cast<std::size_t>(t / unit_tokens)] * unit_tokens;
    };
    const auto pool = stored<bf16>(pages * unit_tokens * heads * dim, [&](index_t h, index_t t) {
        return ((page(t) + t % unit_tokens) * heads + h) * dim;
    });

    const auto both = shuffled(2 * pages);
    const std::vector<std::int32_t> both_indptr{0, pages, 2 * pages}, both_last{last[0], last[0]};
    const page_table both_table{both_indptr, both, both_last};
    const auto head_pool = stored<float>(2 * pages * unit_tokens * dim, [&](index_t h, index_t t) {
        const auto at = static_cast<std::size_t>(h * pages + t / unit_tokens);
        return (both[at] * unit_tokens + t % unit_tokens) * dim;
    });

    const auto slots = shuffled(tokens);
    const auto cells = stored<f16>(tokens * heads * dim, [&](index_t h, index_t t) {
        return (slots[static_cast<std::size_t>(t)] * heads + h) * dim;
    });
    compare("pages, bf16",
            paged_rows(pool.data(), nhd_pages(unit_tokens, heads, dim, pages), table, 0, heads, dim));
    compare("pages of each head, f32",
            paged_head_rows(head_pool.data(), {unit_tokens, unit_tokens * dim, dim, 0, 2 * pages}, both_table,
                            0, heads, dim));
    compare("cells by their index, f16",
            indexed_rows(strided(cells.data(), {heads, tokens, dim}, {dim, heads * dim, 1}), slots));
}

void quantised_rows() {
    std::vector<block_q8_0> blocks(heads * tokens * dim / 32), in_row(blocks.size());
    std::vector<std::int8_t> codes(heads * tokens * dim);
    for (index_t h = 0; h < heads; ++h) {
        for (index_t t = 0; t < tokens; ++t) {
            for (index_t d = 0; d < dim; ++d) {
                const auto e = static_cast<std::size_t>(d % 32);
                const index_t own = (h * tokens + t) * dim + d, shared = (t * heads + h) * dim + d;
                for (auto [all, at] : {std::pair{&blocks, own}, {&in_row, shared}}) {
                    block_q8_0& block = (*all)[static_cast<std::size_t>(at / 32)];
                    block.scale = element_traits<f16>::from_float(unit);
                    block.codes[e] = number(h, t, d);
                }
                codes[static_cast<std::size_t>(own)] = number(h, t, d);
            }
        }
    }
    constexpr index_t row_bytes = dim / 32 * index_t{sizeof(block_q8_0)};
    const std::vector<float> scales(heads * tokens, unit);
    const auto eighths =
        stored<f8_e4m3>(heads * tokens * dim, [](index_t h, index_t t) { return (h * tokens + t) * dim; });
    const float one = 1.0f;
    compare("ggml's q8_0", ggml_rows<const block_q8_0>(blocks.data(), {heads, tokens, dim},
                                                       {tokens * row_bytes, row_bytes}));
    compare("ggml's q8_0, heads in one row", ggml_rows<const block_q8_0>::heads_in_row(
                                                 in_row.data(), {heads, tokens, dim}, heads * row_bytes));
    compare("int8, a scale per token",
            scaled_rows<const std::int8_t>(codes.data(), {heads, tokens, dim}, {tokens * dim, dim},
                                           {scales.data(), {tokens, 1, 0}}));
    compare("fp8, one scale", scaled_rows<const f8_e4m3>(eighths.data(), {heads, tokens, dim},
                                                         {tokens * dim, dim}, {&one, {0, 0, 0}}));
}

} // namespace

int main() {
    strided_and_ragged_rows();
    paged_and_indexed_rows();
    quantised_rows();
    return differing == 0 ? 0 : 1;
}
