// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// SGLang: a request finds its slots through a row of slot ids. With page_size 1 the kept ids overwrite the row, the others go to
// the free list, and nothing moves. With larger pages the allocator frees whole pages only: the ids of evicted slots would free
// their survivors' pages too. So survivors move together, and what is freed is pages that hold none. A locked prefix stays, and
// attention over the shorter row is attention over the survivors.
#include "numbers.hpp"

#include <kvtrim/cache/indexed_rows.hpp>
#include <kvtrim/compact/move_rows.hpp>
#include <kvtrim/compact/plan_page_moves.hpp>
#include <kvtrim/compact/project_to_shared.hpp>
#include <kvtrim/decode/ragged_attention.hpp>
#include <kvtrim/policy/snapkv.hpp>
#include <kvtrim/rerank/shared.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <set>
#include <vector>

namespace {

using namespace kvtrim;

constexpr index_t q_heads = 4, kv_heads = 2, head_dim = 16, slots = 512, tokens = 200, window = 8;
constexpr index_t kept = 50, locked_prefix = 32;
using slot_ids = std::vector<std::int32_t>;

// Attention of query head h over slots, in double: the definition.
std::vector<double> attend(const auto& q, const auto& keys, const auto& values, index_t h,
                           const slot_ids& row) {
    const index_t g = h / (q_heads / kv_heads);
    std::vector<double> out(head_dim);
    double sum = 0;
    for (const auto slot : row) {
        double logit = 0;
        for (index_t d = 0; d < head_dim; ++d) {
            logit += static_cast<double>(q(h, 0, d)) * static_cast<double>(keys(g, slot, d));
        }
        const double weight = std::exp(logit / std::sqrt(static_cast<double>(head_dim)));
        sum += weight;
        for (index_t d = 0; d < head_dim; ++d) {
            out[static_cast<std::size_t>(d)] += weight * static_cast<double>(values(g, slot, d));
        }
    }
    for (double& x : out) { x /= sum; }
    return out;
}

// As the allocator gives them: pages in any order, page 0 is not used.
slot_ids row_of(index_t page_size) {
    slot_ids row;
    const index_t pages = slots / page_size;
    for (index_t t = 0; t < tokens; ++t) {
        const index_t page = 1 + t / page_size * 5 % (pages - 1);
        row.push_back(static_cast<std::int32_t>(page * page_size + t % page_size));
    }
    return row;
}

std::set<std::int32_t> pages_of(const slot_ids& ids, index_t page_size) {
    std::set<std::int32_t> pages;
    for (const auto id : ids) { pages.insert(id / static_cast<std::int32_t>(page_size)); }
    return pages;
}

// Slots whose token no one reads, with page_size 1.
status overwrite_row(const keep_plan& plan, slot_ids& row, slot_ids& freed) {
    const slot_ids before = row;
    row.clear();
    for (const auto t : plan.row(0)) { row.push_back(before[static_cast<std::size_t>(t)]); }
    return removed_ranges(plan.row(0), tokens, [&](token_range gone) {
        freed.insert(freed.end(), before.begin() + gone.begin, before.begin() + gone.end);
    });
}

// Moves survivors in a layer's pools (every layer's by the same plan), and writes the row of the new pages, and one slot of each
// page that is free, as the allocator's free() takes them.
status move_in_pages(const keep_plan& plan, index_t page_size, float* keys, float* values, slot_ids& row,
                     slot_ids& freed) {
    slot_ids pages;
    for (std::size_t t = 0; t < row.size(); t += static_cast<std::size_t>(page_size)) {
        pages.push_back(row[t] / static_cast<std::int32_t>(page_size));
    }
    const std::int32_t indptr[] = {0, static_cast<std::int32_t>(pages.size())};
    const std::int32_t last_page_len[] = {static_cast<std::int32_t>((tokens - 1) % page_size + 1)};
    std::vector<std::int32_t> readers(static_cast<std::size_t>(slots / page_size), 1);
    for (index_t t = 0; t < locked_prefix; t += page_size) { // the radix tree's, which others read
        readers[static_cast<std::size_t>(pages[static_cast<std::size_t>(t / page_size)])] = 2;
    }
    const page_pool pool{.pages = slots / page_size, .page_tokens = page_size, .ref_counts = readers};
    const page_table table{indptr, pages, last_page_len};
    keep_plan one_set; // a slot has a token for all heads
    const index_t count = plan.kept_tokens(0);
    if (const status s = one_set.reset(std::span(&count, 1)); !s.ok()) { return s; }
    std::copy(plan.row(0).begin(), plan.row(0).end(), one_set.writable_row(0).begin());

    move_plan moves;
    growing_workspace memory;
    workspace scratch = memory.of_bytes(plan_page_moves_bytes(table, pool));
    if (const status s = plan_page_moves(one_set, table, pool, {}, moves, scratch); !s.ok()) { return s; }
    page_layout layout = nhd_pages(page_size, kv_heads, head_dim);
    layout.pages = pool.pages;
    const paged_memory<float> k{keys, layout, kv_heads, head_dim}, v{values, layout, kv_heads, head_dim};
    if (const status s = move_rows(k, v, moves); !s.ok()) { return s; }

    row.clear();
    const page_table after = moves.table();
    for (index_t t = 0; t < after.tokens(0, page_size); ++t) {
        const auto page = after.row(0)[static_cast<std::size_t>(t / page_size)];
        row.push_back(static_cast<std::int32_t>(page * page_size + t % page_size));
    }
    for (const auto page : moves.freed_pages()) {
        freed.push_back(static_cast<std::int32_t>(page * page_size));
    }
    return {};
}

// Evicts with pages of this size, and says whether all is as it should be.
bool evict(index_t page_size) {
    auto k = numbers(slots * kv_heads * head_dim, 1), v = numbers(slots * kv_heads * head_dim, 2);
    const auto q = numbers(q_heads * window * head_dim, 3), next_q = numbers(q_heads * head_dim, 4);
    // Pools [slots, heads, head_dim].
    const strided<const float, 3> keys(k.data(), {kv_heads, slots, head_dim},
                                       {head_dim, kv_heads * head_dim, 1});
    const strided<const float, 3> values(v.data(), {kv_heads, slots, head_dim},
                                         {head_dim, kv_heads * head_dim, 1});
    const strided query(next_q.data(), {q_heads, 1, head_dim});
    slot_ids row = row_of(page_size), freed; // the request's row of req_to_token

    status s = validate_indices(row, slots);
    keep_plan plan;
    growing_workspace memory;
    if (s.ok()) {
        const eviction_policy policy{window_attention<mean_attention>{}, uniform{}, shared{}};
        const auto in =
            layer(indexed_rows(keys, row)).with_queries(strided(q.data(), {q_heads, window, head_dim}));
        s = policy.plan(
            in,
            {.budget = per_head(kept), .protect = {.pinned_tokens = locked_prefix, .window_tokens = window}},
            plan, memory);
    }
    if (!s.ok()) { return std::puts(s.what()), false; }

    const slot_ids before = row;
    slot_ids survivors;
    for (const auto t : plan.row(0)) { survivors.push_back(before[static_cast<std::size_t>(t)]); }
    std::vector<std::vector<double>> expected; // attention over the survivors where they lay
    for (index_t h = 0; h < q_heads; ++h) { expected.push_back(attend(query, keys, values, h, survivors)); }
    s = page_size == 1 ? overwrite_row(plan, row, freed)
                       : move_in_pages(plan, page_size, k.data(), v.data(), row, freed);
    if (!s.ok()) { return std::puts(s.what()), false; }

    std::vector<float> out(static_cast<std::size_t>(q_heads * head_dim));
    s = ragged_attention(layer(indexed_rows(keys, row), indexed_rows(values, row)).with_queries(query), {},
                         strided(out.data(), {q_heads, 1, head_dim}), {}, memory);
    if (!s.ok()) { return std::puts(s.what()), false; }
    double worst = 0;
    for (index_t h = 0; h < q_heads; ++h) {
        for (index_t d = 0; d < head_dim; ++d) {
            const double got = static_cast<double>(out[static_cast<std::size_t>(h * head_dim + d)]);
            worst = std::max(
                worst, std::abs(got - expected[static_cast<std::size_t>(h)][static_cast<std::size_t>(d)]));
        }
    }
    // Pages of the row and of what is free are those that the request had, once each.
    const auto had = pages_of(before, page_size), has = pages_of(row, page_size),
               free_pages = pages_of(freed, page_size);
    std::set<std::int32_t> all = has;
    all.insert(free_pages.begin(), free_pages.end());
    const index_t needed = (kept + page_size - 1) / page_size;
    const bool is_right = std::ssize(row) == kept && std::ssize(has) == needed && all == had &&
                          has.size() + free_pages.size() == had.size() && worst < 1e-5 &&
                          std::equal(before.begin(), before.begin() + locked_prefix, row.begin());
    std::printf("page_size %d: %zu slots stay, %zu of %zu pages are free, attention within %.1g: %s\n",
                static_cast<int>(page_size), row.size(), free_pages.size(), had.size(), worst,
                is_right ? "right" : "WRONG");
    return is_right;
}

} // namespace

int main() {
    const bool single = evict(1), paged = evict(16);
    return single && paged ? 0 : 1;
}
