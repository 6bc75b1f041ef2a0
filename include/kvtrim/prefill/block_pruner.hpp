// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// From queries and keys of a prefill chunk to the cache blocks that each query segment attends.
//
//   bounds -> criticality of each allowed block -> (layer fusion) -> budgets per KV head -> the best blocks of each row
//
//   queries [q_heads, chunk tokens, head_dim], keys [kv_heads, cached tokens, head_dim], both rotated; any cache view.
//   The chunk's own keys are in the cache already: it holds first_token + chunk tokens rows.
//
// Segments that pruned_segments() names get budget_blocks() blocks per KV head, dealt out by the allocator (uniform: the
// same for each; adaptive: Ada-KV over the heads' estimates); all others attend every block before them.
//
// A row depends on its own segment, the keys before it, and (fusion) the same row one layer earlier: a prompt in chunks
// of whole segments gets the rows that it gets in one piece.
//
// Source: CritiPrefill, arXiv:2409.12490; 66RING/CritiPrefill@3067f1e criti_prefill/ops.py.
// Departures: blocks are chosen among the allowed ones only (the authors pick masked blocks where fewer are allowed and
// fail below the budget); rows are ranked by logits where nothing is mixed; sink and local blocks are an addition (0
// and 0: the authors' rule); a last segment that is whole counts as last, as in the authors' code.
// Memory: workspace_bytes(); grows with tokens, not with their square: estimates live per worker, eight segments at
// a time. Cost: K and Q read once, then the estimator's products; selection is linear in the estimates.

#include <kvtrim/allocate/uniform.hpp>
#include <kvtrim/plan/concepts.hpp>
#include <kvtrim/plan/find_top_k.hpp>
#include <kvtrim/prefill/block_estimator.hpp>
#include <kvtrim/prefill/layer_fusion.hpp>
#include <kvtrim/prefill/pruning_options.hpp>

#include <mutex>
#include <numeric>

namespace KVTRIM_NAMESPACE {

/// Plans which cache blocks each query segment of a prefill chunk attends, layer by layer.
template <class Estimator = mid_query, class Allocator = uniform>
class block_pruner {
    static_assert(
        block_estimator<Estimator>,
        "kvtrim: the estimator needs estimate(segments, blocks, out, spare) and spare_floats(segments, "
        "blocks, head_dim); see prefill/block_estimator.hpp");
    static_assert(
        budget_allocator<Allocator>,
        "kvtrim: the allocator needs is_uniform and allocate(score_rows, total, budgets, workspace) -> "
        "status; see plan/concepts.hpp");

  public:
    pruning_options options = {};                   ///< segments, blocks, budget
    criticality_options criticality = {};           ///< scale, reduction over query heads
    fusion_options fusion = {};                     ///< mixing with the layer before
    [[no_unique_address]] Estimator estimator = {}; ///< see prefill/block_estimator.hpp
    [[no_unique_address]] Allocator allocator = {}; ///< deals blocks out over KV heads

    /// Everything that plan() checks before it computes. Returns what the views or the stages say, or valid_pruning():
    /// invalid_parameter, heads_not_divisible, budget_zero, budget_below_protection or index_overflow.
    template <class Queries, class Keys>
    [[nodiscard]] status validate(const Queries& queries, const Keys& keys,
                                  const prefill_chunk& chunk) const {
        if (const status s = layer(keys).with_queries(queries).validate(); !s.ok()) { return s; }
        if constexpr (requires { allocator.validate(); }) {
            if (const status s = allocator.validate(); !s.ok()) { return s; }
        }
        for (const status s : {criticality.validate(), fusion.validate()}) {
            if (!s.ok()) { return s; }
        }
        return valid_pruning(options, chunk, extent(queries, 0), extent(queries, 1), extent(keys, 0),
                             layer(keys).shortest_row());
    }

    /// Bytes of workspace for plan(), at the full width of this executor; those for one worker are enough. 0 for inputs it
    /// refuses.
    template <class Queries, class Keys, class Executor = serial_executor>
    [[nodiscard]] index_t workspace_bytes(const Queries& queries, const Keys& keys,
                                          const prefill_chunk& chunk, const Executor& ex = {}) const {
        if (!validate(queries, keys, chunk).ok()) { return 0; }
        const layout l = layout_of(queries, keys, chunk);
        workspace counting = workspace::counting();
        static_cast<void>(take(l, counting));
        const index_t bounds = block_bounds_bytes(ex, l.q_heads, l.head_dim);
        const index_t estimates = for_each_item_bytes(ex, l.runs(), worker_bytes(l));
        static_cast<void>(counting.take<std::byte>(std::max(bounds, estimates)));
        return counting.needed_bytes();
    }

    /// Plans one layer of a chunk. `state` is the request's own. Returns what validate() says, workspace_too_small (needed:
    /// workspace_bytes), what the allocator answers, or invalid_parameter for impossible budgets of an allocator. The plan is then
    /// as it was, and so is the state, unless an allocator is the reason: then it is reset (layer_fusion::reset).
    template <class Queries, class Keys, class Executor = serial_executor>
    [[nodiscard]] status plan(const Queries& queries, const Keys& keys, const prefill_chunk& chunk,
                              layer_fusion& state, prune_plan& out, workspace& scratch,
                              Executor&& ex = {}) const {
        static_assert(
            cache_view<Queries> && cache_view<Keys>,
            "kvtrim: queries and keys must be views [heads, tokens, head_dim]; see cache/row_source.hpp");
        if (const status s = validate(queries, keys, chunk); !s.ok()) { return s; }
        const index_t bytes = workspace_bytes(queries, keys, chunk);
        if (!scratch.holds(bytes)) { return scratch.too_small(bytes); }
        const layout l = layout_of(queries, keys, chunk);
        const workspace::frame frame(scratch);
        const tables t = take(l, scratch);
        count_dense_rows(l, t);
        if (l.pruned_segments() > 0) {
            if (const status s = select_blocks(queries, keys, l, t, state, chunk.layer, scratch, ex);
                !s.ok()) {
                return s;
            }
        }
        return write_plan(l, t, out);
    }

    /// The same with a workspace that grows on first use and then stays.
    template <class Queries, class Keys, class Executor = serial_executor>
    [[nodiscard]] status plan(const Queries& queries, const Keys& keys, const prefill_chunk& chunk,
                              layer_fusion& state, prune_plan& out, growing_workspace& memory,
                              Executor&& ex = {}) const {
        workspace scratch = memory.of_bytes(workspace_bytes(queries, keys, chunk, ex));
        return plan(queries, keys, chunk, state, out, scratch, ex);
    }

  private:
    static constexpr index_t run_segments = 8; // segments whose estimates are one product

    struct layout {
        segment_grid grid;
        index_t q_heads, kv_heads, head_dim;
        index_t first_pruned, end_pruned; // segments
        index_t budget_blocks;

        [[nodiscard]] index_t pruned_segments() const { return end_pruned - first_pruned; }
        [[nodiscard]] index_t runs() const { return block_count(pruned_segments(), run_segments); }
        // Blocks that any pruned segment may attend.
        [[nodiscard]] index_t blocks() const {
            return pruned_segments() == 0 ? 0 : grid.allowed_blocks(end_pruned - 1);
        }
        [[nodiscard]] index_t rows() const { return kv_heads * grid.segments(); }
    };

    struct tables {
        std::span<index_t> counts;                   // [kv_heads, segments]
        std::span<prune_plan::table_index> selected; // [pruned segments, kv_heads * budget], heads packed
        block_bounds queries;                        // of the pruned segments' query heads
        block_bounds keys;                           // of the blocks they may attend
    };

    [[nodiscard]] layout layout_of(const auto& queries, const auto& keys, const prefill_chunk& chunk) const {
        const segment_grid grid = grid_of(options, chunk, extent(queries, 1));
        const segment_range pruned = pruned_segments(options, chunk, grid);
        return {grid,         extent(queries, 0), extent(keys, 0),        extent(keys, 2),
                pruned.begin, pruned.end,         options.budget_blocks()};
    }

    [[nodiscard]] static tables take(const layout& l, workspace& scratch) {
        tables t;
        t.counts = scratch.take<index_t>(l.rows());
        t.selected =
            scratch.take<prune_plan::table_index>(l.pruned_segments() * l.kv_heads * l.budget_blocks);
        t.queries = block_bounds::take(l.q_heads, l.pruned_segments() == 0 ? 0 : l.grid.segments(),
                                       l.head_dim, scratch);
        t.keys = block_bounds::take(l.kv_heads, l.blocks(), l.head_dim, scratch);
        return t;
    }

    // The allocator's answer for the first segment that it refuses, independent of the order in which workers run.
    struct first_refusal {
        status answer;
        index_t segment = std::numeric_limits<index_t>::max();
        std::mutex workers;

        void note(index_t at, const status& s) {
            if (s.ok()) { return; }
            const std::lock_guard lock(workers);
            if (at < segment) {
                segment = at;
                answer = s;
            }
        }
    };

    [[nodiscard]] bool needs_probabilities() const { return fusion.is_on() || !Allocator::is_uniform; }

    [[nodiscard]] index_t allocator_bytes(const layout& l) const {
        if constexpr (requires { allocator.workspace_bytes(index_t{}, index_t{}); }) {
            return allocator.workspace_bytes(l.kv_heads, l.kv_heads * l.blocks());
        }
        return 0;
    }

    // Scratch of one worker for a segment run; its size is that of take_run() over a counting workspace.
    struct run_tables {
        std::span<float> rows;   // [segments, kv_heads, allowed blocks]
        std::span<float> logits; // [segments, blocks] of one KV head
        std::span<float> spare;
        std::span<index_t> offsets; // [kv_heads + 1]
        std::span<index_t> budgets; // [kv_heads]
    };
    [[nodiscard]] run_tables take_run(const layout& l, workspace& own) const {
        const index_t segments = std::min(run_segments, l.pruned_segments());
        run_tables p;
        p.rows = own.take<float>(segments * l.kv_heads * l.blocks());
        p.logits = own.take<float>(segments * l.blocks());
        p.spare = own.take<float>(block_logits_floats(estimator, segments, l.blocks(), l.head_dim));
        p.offsets = own.take<index_t>(l.kv_heads + 1);
        p.budgets = own.take<index_t>(l.kv_heads);
        return p;
    }
    [[nodiscard]] index_t worker_bytes(const layout& l) const {
        workspace counting = workspace::counting();
        static_cast<void>(take_run(l, counting));
        static_cast<void>(counting.take<std::byte>(allocator_bytes(l)));
        return counting.needed_bytes();
    }

    static void count_dense_rows(const layout& l, const tables& t) {
        for (index_t r = 0; r < l.rows(); ++r) {
            t.counts[static_cast<std::size_t>(r)] = l.grid.allowed_blocks(r % l.grid.segments());
        }
    }

    template <class Queries, class Keys, class Executor>
    [[nodiscard]] status select_blocks(const Queries& queries, const Keys& keys, const layout& l,
                                       const tables& t, layer_fusion& state, index_t layer,
                                       workspace& scratch, Executor& ex) const {
        const index_t block = l.grid.block_tokens;
        if (const status s = compute_block_bounds(keys, l.blocks() * block, block, 0, t.keys, scratch, ex);
            !s.ok()) {
            return s;
        }
        if (const status s = compute_block_bounds(queries, l.grid.tokens(), l.grid.segment_tokens,
                                                  l.first_pruned, t.queries, scratch, ex);
            !s.ok()) {
            return s;
        }
        if (fusion.is_on()) {
            const status s = state.begin_layer(layer, l.grid, l.kv_heads, fusion);
            if (!s.ok()) { return s; }
        }
        first_refusal refused;
        const status done =
            for_each_item(l.runs(), worker_bytes(l), scratch, ex, [&](index_t run, workspace& own) {
                const index_t first = l.first_pruned + run * run_segments;
                const index_t end = std::min(first + run_segments, l.end_pruned);
                const run_tables p = take_run(l, own);
                for (index_t g = 0; g < l.kv_heads; ++g) { estimate_rows(l, t, p, state, g, first, end); }
                for (index_t s = first; s < end; ++s) {
                    refused.note(s, select_segment(l, t, p, s, first, own));
                }
            });
        if (!refused.answer.ok() && fusion.is_on()) { state.reset(); }
        return done.ok() ? refused.answer : done;
    }

    // Estimates of one KV head for segments [first, end), into p.rows.
    void estimate_rows(const layout& l, const tables& t, const run_tables& p, layer_fusion& state,
                       index_t kv_head, index_t first, index_t end) const {
        const index_t blocks = l.grid.allowed_blocks(end - 1);
        block_logits(estimator, criticality, t.queries, t.keys, l.q_heads / l.kv_heads, kv_head, first,
                     end - first, blocks, p.logits.data(), p.spare.data());
        for (index_t s = first; s < end; ++s) {
            const auto allowed = static_cast<std::size_t>(l.grid.allowed_blocks(s));
            const std::span<float> row =
                segment_rows(l, p, s, first).subspan(static_cast<std::size_t>(kv_head) * allowed, allowed);
            std::copy_n(p.logits.data() + (s - first) * blocks, allowed, row.begin());
            if (!needs_probabilities()) { continue; }
            kernels::softmax(row.data(), static_cast<index_t>(allowed));
            if (!fusion.is_on()) { continue; }
            static_cast<void>(state.fuse(kv_head, s, row));    // cannot fail: a row of the open layer
            if (Allocator::is_uniform && !state.is_mixing()) { // logits rank where the softmax is 0
                std::copy_n(p.logits.data() + (s - first) * blocks, allowed, row.begin());
            }
        }
    }

    // [kv_heads, allowed blocks of the segment]
    [[nodiscard]] static std::span<float> segment_rows(const layout& l, const run_tables& p, index_t segment,
                                                       index_t first) {
        return p.rows.subspan(static_cast<std::size_t>((segment - first) * l.kv_heads * l.blocks()),
                              static_cast<std::size_t>(l.kv_heads * l.grid.allowed_blocks(segment)));
    }

    [[nodiscard]] status select_segment(const layout& l, const tables& t, const run_tables& p,
                                        index_t segment, index_t first, workspace& own) const {
        const workspace::frame frame(own);
        const index_t allowed = l.grid.allowed_blocks(segment);
        for (index_t g = 0; g <= l.kv_heads; ++g) { p.offsets[static_cast<std::size_t>(g)] = g * allowed; }
        const score_rows rows{p.offsets, segment_rows(l, p, segment, first)};
        for (index_t g = 0; g < l.kv_heads; ++g) {
            const std::span<float> row = rows.row(g);
            constexpr float always = std::numeric_limits<float>::infinity();
            std::fill_n(row.begin(), std::min(options.sink_blocks, allowed), always);
            std::fill_n(row.rbegin(), std::min(options.local_blocks, allowed), always);
        }
        const index_t total = l.kv_heads * l.budget_blocks; // below all allowed: the segment is pruned
        // A budget that the allocator does not write stays -1, which is refused.
        std::fill(p.budgets.begin(), p.budgets.end(), index_t{-1});
        if (const status s = allocator.allocate(rows, total, p.budgets, own); !s.ok()) { return s; }
        if (const status s = validate_budgets(rows, p.budgets); !s.ok()) { return s; }
        if (std::accumulate(p.budgets.begin(), p.budgets.end(), index_t{0}) > total) {
            return {errc::invalid_parameter, "prefill: the allocator deals out more blocks than there are",
                    total};
        }
        std::int32_t* next = t.selected.data() + (segment - l.first_pruned) * total;
        for (index_t g = 0; g < l.kv_heads; ++g) {
            const index_t budget = p.budgets[static_cast<std::size_t>(g)];
            t.counts[static_cast<std::size_t>(g * l.grid.segments() + segment)] = budget;
            top_k_cut cut = find_top_k(rows.row(g), budget);
            next = kernels::write_above(rows.row(g), cut, 0, next);
        }
        return {};
    }

    [[nodiscard]] static status write_plan(const layout& l, const tables& t, prune_plan& out) {
        if (const status s = out.reset(l.grid, l.kv_heads, t.counts); !s.ok()) { return s; }
        for (index_t s = 0; s < l.grid.segments(); ++s) {
            const bool pruned = l.first_pruned <= s && s < l.end_pruned;
            auto from =
                t.selected.begin() + (pruned ? (s - l.first_pruned) * l.kv_heads * l.budget_blocks : 0);
            for (index_t g = 0; g < l.kv_heads; ++g) {
                const auto row = out.writable_row(g, s);
                if (pruned) {
                    std::copy_n(from, row.size(), row.begin());
                    from += static_cast<std::ptrdiff_t>(row.size());
                } else {
                    prune_plan::table_index block = 0;
                    for (auto& b : row) { b = block++; }
                }
            }
        }
        return {};
    }
};

} // namespace KVTRIM_NAMESPACE
