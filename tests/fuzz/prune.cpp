// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Block pruning of a prefill, chunk by chunk and layer by layer, and attention over what is left; plans that an engine filled.
//
// Model: a plan's rows ascend, lie before their segment, have the budget's length and hold sink and local blocks; attention is a
// sum in double precision over just the keys that the plan and causality leave.

#include "input.hpp"

#include <kvtrim/policy/critiprefill.hpp>
#include <kvtrim/prefill/block_sparse_attention.hpp>

#include <algorithm>
#include <cmath>

using namespace kvtrim;

namespace {

using view = strided<const float, 3>;

struct prompt {
    index_t kv_heads, group, tokens, dim, value_dim;
    std::vector<float> k, v, q;

    explicit prompt(fuzz::input& in)
        : kv_heads(in.between(1, 2)), group(in.between(1, 3)), tokens(in.between(0, 90)),
          dim(in.between(1, 5)), value_dim(in.between(0, 4)) {
        k = fuzz::values(in, kv_heads * tokens * dim);
        v = fuzz::values(in, kv_heads * tokens * value_dim);
        q = fuzz::values(in, kv_heads * group * tokens * dim);
    }
    // The first `end` rows of the cache, and queries [begin, end).
    [[nodiscard]] view keys(index_t end) const {
        return {k.data(), {kv_heads, end, dim}, {tokens * dim, dim, index_t{1}}};
    }
    [[nodiscard]] view values(index_t end) const {
        return {v.data(), {kv_heads, end, value_dim}, {tokens * value_dim, value_dim, index_t{1}}};
    }
    [[nodiscard]] view queries(index_t begin, index_t end) const {
        return {
            q.data() + begin * dim, {kv_heads * group, end - begin, dim}, {tokens * dim, dim, index_t{1}}};
    }
};

void check_attention(const prompt& p, const prune_plan& plan, index_t begin, index_t end,
                     const attention_options& attention) {
    const index_t q_heads = p.kv_heads * p.group, queries = end - begin;
    std::vector<float> out(static_cast<std::size_t>(q_heads * queries * p.value_dim), -77);
    const strided<float, 3> to(out.data(), {q_heads, queries, p.value_dim});
    const auto in = layer(p.keys(end), p.values(end)).with_queries(p.queries(begin, end));
    growing_workspace memory;
    const status s = block_sparse_attention(in, plan, attention, to, {}, memory);
    const bool possible = plan.kv_heads() == p.kv_heads && plan.grid().tokens() == queries &&
                          end >= plan.grid().end_token && plan.check_invariants() &&
                          valid_attention(attention, q_heads).ok();
    FUZZ_CHECK(s.ok() == possible);
    if (!s.ok()) {
        FUZZ_CHECK(std::all_of(out.begin(), out.end(), [](float x) { return x == -77; }));
        return;
    }
    const auto is_tame = [](const std::vector<float>& all) {
        return std::all_of(all.begin(), all.end(), [](float x) { return std::abs(x) <= 8; });
    };
    if (!is_tame(p.k) || !is_tame(p.v) || !is_tame(p.q) || attention.scale > 2 || attention.soft_cap > 0) {
        return;
    }
    const double scale = attention.scale > 0 ? static_cast<double>(attention.scale)
                                             : 1 / std::sqrt(static_cast<double>(p.dim));
    for (index_t h = 0; h < q_heads; ++h) {
        for (index_t i = begin; i < end; ++i) {
            const index_t g = h / p.group,
                          segment = (i - plan.grid().first_token) / plan.grid().segment_tokens;
            std::vector<index_t> seen;
            for (const auto b : plan.row(g, segment)) {
                for (index_t t = b * plan.grid().block_tokens; t < (b + 1) * plan.grid().block_tokens; ++t) {
                    seen.push_back(t);
                }
            }
            for (index_t t = plan.grid().begin(segment); t <= i; ++t) { seen.push_back(t); }
            std::erase_if(seen, [&](index_t t) {
                return attention.sliding_window > 0 && t <= i - attention.sliding_window;
            });
            std::vector<double> logits, sums(static_cast<std::size_t>(p.value_dim));
            double most = -1e300, z = 0;
            for (const index_t t : seen) {
                double dot = 0;
                for (index_t d = 0; d < p.dim; ++d) {
                    dot += static_cast<double>(p.queries(0, p.tokens)(h, i, d)) *
                           static_cast<double>(p.keys(end)(g, t, d));
                }
                logits.push_back(scale * dot);
                most = std::max(most, logits.back());
            }
            for (std::size_t n = 0; n < seen.size(); ++n) {
                const double w = std::exp(logits[n] - most);
                z += w;
                for (index_t d = 0; d < p.value_dim; ++d) {
                    sums[static_cast<std::size_t>(d)] +=
                        w * static_cast<double>(p.values(end)(g, seen[n], d));
                }
            }
            for (index_t d = 0; d < p.value_dim; ++d) {
                const double expected = sums[static_cast<std::size_t>(d)] / z;
                FUZZ_CHECK(std::abs(static_cast<double>(to(h, i - begin, d)) - expected) < 1e-3);
            }
        }
    }
}

// A plan that an engine fills, right or wrong.
void filled_plan(fuzz::input& in, const prompt& p) {
    const segment_grid grid{in.hostile(in.between(1, 4) * 4, 8), in.hostile(in.between(1, 2) * 2, 8),
                            in.hostile(in.between(0, 2) * 4, 8), in.hostile(p.tokens, 8)};
    if (!grid.validate().ok() || grid.segments() > 200) { return; }
    const index_t heads = in.hostile(p.kv_heads, 8);
    std::vector<index_t> counts;
    for (index_t g = 0; g < std::min<index_t>(heads, 4); ++g) {
        for (index_t s = 0; s < grid.segments(); ++s) {
            counts.push_back(
                in.hostile(in.between(0, 255) % (std::min<index_t>(grid.allowed_blocks(s), 500) + 1), 2));
        }
    }
    prune_plan plan;
    if (!plan.reset(grid, heads, counts).ok()) {
        FUZZ_CHECK(plan == prune_plan{});
        return;
    }
    if (heads * grid.segments() > 1000 || heads > 1000) { return; }
    for (index_t g = 0; g < heads; ++g) {
        for (index_t s = 0; s < grid.segments(); ++s) {
            std::int32_t next = 0;
            for (auto& block : plan.writable_row(g, s)) { block = next++; }
            const auto row = plan.writable_row(g, s);
            if (!row.empty() && in.chance(8)) { row[0] = in.number<std::int32_t>(); }
        }
    }
    const index_t begin = std::min(grid.first_token, p.tokens);
    check_attention(p, plan, begin, p.tokens, {});
}

template <class Pruner>
void pruned(fuzz::input& in, const prompt& p, const Pruner& pruner) {
    const pruning_options& o = pruner.options;
    layer_fusion state;
    growing_workspace memory;
    const index_t chunk_tokens =
        o.segment_tokens > 0 && o.segment_tokens < 100 ? o.segment_tokens * in.between(1, 4) : 16;
    for (index_t begin = 0; begin < p.tokens; begin += chunk_tokens) {
        const index_t end = std::min(begin + chunk_tokens, p.tokens);
        const prefill_chunk chunk{in.hostile(in.between(0, 4), 4), in.hostile(begin, 4), end == p.tokens};
        prune_plan plan;
        const status s = pruner.plan(p.queries(begin, end), p.keys(end), chunk, state, plan, memory);
        FUZZ_CHECK(s.ok() == pruner.validate(p.queries(begin, end), p.keys(end), chunk).ok());
        if (!s.ok()) {
            FUZZ_CHECK(plan == prune_plan{});
            continue;
        }
        FUZZ_CHECK(plan.check_invariants() && plan.kv_heads() == p.kv_heads);
        const segment_grid& grid = plan.grid();
        const segment_range chosen = pruned_segments(o, chunk, grid);
        for (index_t seg = 0; seg < grid.segments(); ++seg) {
            index_t total = 0;
            for (index_t g = 0; g < p.kv_heads; ++g) {
                const auto row = plan.row(g, seg);
                const index_t allowed = grid.allowed_blocks(seg);
                total += std::ssize(row);
                if (seg < chosen.begin || seg >= chosen.end) {
                    FUZZ_CHECK(std::ssize(row) == allowed);
                    continue;
                }
                for (index_t b = 0; b < o.sink_blocks; ++b) {
                    FUZZ_CHECK(std::binary_search(row.begin(), row.end(), b));
                }
                for (index_t b = allowed - o.local_blocks; b < allowed; ++b) {
                    FUZZ_CHECK(std::binary_search(row.begin(), row.end(), b));
                }
            }
            if (seg >= chosen.begin && seg < chosen.end) {
                FUZZ_CHECK(total == p.kv_heads * o.budget_blocks());
            }
        }
        attention_options attention;
        if (in.chance(64)) {
            attention.sliding_window = in.hostile(in.between(0, 40), 8);
            attention.scale = std::abs(in.value());
        }
        check_attention(p, plan, grid.first_token, end, attention);
    }
}

} // namespace

void run(fuzz::input& in) {
    const prompt p(in);
    if (in.chance(64)) { return filled_plan(in, p); }
    const index_t block = in.hostile(in.between(1, 4), 4);
    const pruning_options options{
        .segment_tokens = in.hostile(saturated_product(std::max<index_t>(block, 1), in.between(1, 3)), 4),
        .block_tokens = block,
        .budget_tokens = in.hostile(in.between(1, 30), 8),
        .dense_below_tokens = in.hostile(in.between(0, 20), 8),
        .dense_layers = in.hostile(in.between(0, 1), 8),
        .dense_last_segment = in.chance(128),
        .sink_blocks = in.hostile(in.between(0, 1), 4),
        .local_blocks = in.hostile(in.between(0, 1), 4)};
    switch (in.between(0, 2)) {
    case 0:
        return pruned(in, p, critiprefill(options));
    case 1:
        return pruned(in, p, critiprefill_bound(options));
    default:
        return pruned(in, p, ada_critiprefill(options));
    }
}
