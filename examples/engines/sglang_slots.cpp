// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// One slot per token, found through a row of slot ids (SGLang): the kept ids overwrite the row, the others go to the free
// list, and nothing moves. A locked prefix stays. Attention over the shorter row is attention over the survivors.
#include "numbers.hpp"

#include <kvtrim/cache/indexed_rows.hpp>
#include <kvtrim/compact/project_to_shared.hpp>
#include <kvtrim/decode/ragged_attention.hpp>
#include <kvtrim/policy/snapkv.hpp>
#include <kvtrim/rerank/shared.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

namespace {

using namespace kvtrim;

constexpr index_t q_heads = 4, kv_heads = 2, head_dim = 16, slots = 500, tokens = 200, window = 8;
constexpr index_t kept = 50, locked_prefix = 20;

// Attention of query head h over slots, in double: the definition.
std::vector<double> attend(const auto& q, const auto& keys, const auto& values, index_t h,
                           const std::vector<std::int32_t>& row) {
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

} // namespace

int main() {
    const auto k = numbers(slots * kv_heads * head_dim, 1), v = numbers(slots * kv_heads * head_dim, 2);
    const auto q = numbers(q_heads * window * head_dim, 3), next_q = numbers(q_heads * head_dim, 4);
    // Pools [slots, heads, head_dim].
    const strided keys(k.data(), {kv_heads, slots, head_dim}, {head_dim, kv_heads * head_dim, 1});
    const strided values(v.data(), {kv_heads, slots, head_dim}, {head_dim, kv_heads * head_dim, 1});
    const strided query(next_q.data(), {q_heads, 1, head_dim});
    std::vector<std::int32_t> row(tokens), free_slots; // the request's row of req_to_token
    for (std::size_t t = 0; t < row.size(); ++t) {
        row[t] = static_cast<std::int32_t>(1 + t * 7 % (slots - 1));
    }

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
    if (!s.ok()) { return std::puts(s.what()), 1; }

    const std::vector<std::int32_t> before = row;
    row.clear();
    for (const auto t : plan.row(0)) { row.push_back(before[static_cast<std::size_t>(t)]); }
    s = removed_ranges(plan.row(0), tokens, [&](token_range gone) {
        free_slots.insert(free_slots.end(), before.begin() + gone.begin, before.begin() + gone.end);
    });
    if (!s.ok()) { return std::puts(s.what()), 1; }

    std::vector<float> out(static_cast<std::size_t>(q_heads * head_dim));
    s = ragged_attention(layer(indexed_rows(keys, row), indexed_rows(values, row)).with_queries(query), {},
                         strided(out.data(), {q_heads, 1, head_dim}), {}, memory);
    if (!s.ok()) { return std::puts(s.what()), 1; }
    double worst = 0;
    for (index_t h = 0; h < q_heads; ++h) {
        const auto expected = attend(query, keys, values, h, row);
        for (index_t d = 0; d < head_dim; ++d) {
            worst = std::max(worst,
                             std::abs(static_cast<double>(out[static_cast<std::size_t>(h * head_dim + d)]) -
                                      expected[static_cast<std::size_t>(d)]));
        }
    }
    const bool is_right = std::ssize(row) == kept && std::ssize(free_slots) == tokens - kept &&
                          worst < 1e-5 &&
                          std::equal(before.begin(), before.begin() + locked_prefix, row.begin());
    std::printf("%zu slots stay, %zu are free, attention within %.1g: %s\n", row.size(), free_slots.size(),
                worst, is_right ? "right" : "WRONG");
    return is_right ? 0 : 1;
}
