// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Where an allocation fails, plans and states are what they were (core/status.hpp), whichever allocation it is. Replaces operator
// new, in a program of its own.

#include "support/failing_new.hpp"

#include <kvtrim/kvtrim.hpp>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <numeric>
#include <vector>

namespace {

using namespace kvtrim;

int failures = 0;

void expect(bool holds, const char* what, long nth) {
    if (holds) { return; }
    ++failures;
    std::printf("%s: not what it was when allocation %ld failed\n", what, nth);
}

// change(state) with its first, second, ... allocation failing until none does; is_as_before(state) after each.
template <class State, class Change, class AsBefore>
void fail_each(const char* what, const State& state, Change&& change, AsBefore&& is_as_before) {
    for (long nth = 0;; ++nth) {
        State changed = state;
        allowed = nth;
        bool is_done = false;
        try {
            is_done = change(changed).ok();
            allowed = -1;
        } catch (const std::bad_alloc&) { allowed = -1; }
        if (is_done) {
            expect(nth > 0, what, nth); // there was an allocation
            return;
        }
        expect(is_as_before(changed), what, nth);
        expect(change(changed).ok(), what, nth); // and later it works
    }
}

template <class State>
std::vector<std::byte> bytes_of(const State& state) {
    std::vector<std::byte> bytes(static_cast<std::size_t>(saved_bytes(state)));
    if (!save(state, bytes).ok()) { std::abort(); }
    return bytes;
}

template <class State, class Change>
void fail_each(const char* what, const State& state, Change&& change) {
    const auto before = bytes_of(state);
    fail_each(what, state, change, [&](const State& changed) { return bytes_of(changed) == before; });
}

// Assigns a copy of `other` to a copy of `state` while the first, second, ... allocation fails; is_same(a, b) compares.
template <class State, class IsSame>
void copy_each(const char* what, const State& state, const State& other, IsSame&& is_same) {
    fail_each(
        what, state,
        [&](State& changed) {
            changed = other;
            allowed = -1;
            return is_same(changed, other) ? status{} : status{errc::plan_mismatch, "not a copy"};
        },
        [&](const State& changed) { return is_same(changed, state); });
}
template <class State>
void copy_each(const char* what, const State& state, const State& other) {
    copy_each(what, state, other, [](const State& a, const State& b) { return a == b; });
}

keep_plan plan_of(std::initializer_list<std::initializer_list<std::int32_t>> rows) {
    std::vector<index_t> counts;
    for (const auto& row : rows) { counts.push_back(static_cast<index_t>(row.size())); }
    keep_plan plan;
    if (!plan.reset(counts).ok()) { std::abort(); }
    index_t r = 0;
    for (const auto& row : rows) { std::copy(row.begin(), row.end(), plan.writable_row(r++).begin()); }
    return plan;
}

void must(const status& s) {
    if (!s.ok()) { std::abort(); }
}

} // namespace

int main() {
    cache_positions positions(2);
    must(positions.append(5));
    must(positions.compact(plan_of({{0, 3, 4}, {1, 2, 4}})));
    must(positions.close_up());
    fail_each("cache_positions::append", positions, [](cache_positions& p) { return p.append(40); });
    running_scores scores(2, 2);
    must(scores.append(3));
    fail_each("running_scores::append", scores, [](running_scores& s) { return s.append(40); });
    const auto saved = bytes_of(scores);
    fail_each("restore", running_scores(1), [&](running_scores& s) { return restore(s, saved); });

    const keep_plan kept = plan_of({{0, 2}, {1}});
    const std::vector<index_t> counts(50, 7);
    fail_each(
        "keep_plan::reset", kept, [&](keep_plan& p) { return p.reset(counts); },
        [&](const keep_plan& p) { return p == kept; });
    const segment_grid grid{.segment_tokens = 8, .block_tokens = 4, .first_token = 0, .end_token = 64};
    prune_plan pruned;
    must(plan_dense({.segment_tokens = 8, .block_tokens = 4, .first_token = 0, .end_token = 16}, 1, pruned));
    fail_each(
        "plan_dense", pruned, [&](prune_plan& p) { return plan_dense(grid, 2, p); },
        [&](const prune_plan& p) { return p == pruned; });
    std::vector<float> estimate(2);
    layer_fusion fusion;
    must(fusion.begin_layer(0, pruned.grid(), 1, {}));
    fail_each(
        "layer_fusion::begin_layer", fusion, [&](layer_fusion& f) { return f.begin_layer(1, grid, 2, {}); },
        [&](layer_fusion f) { return f.fuse(0, 1, estimate).ok() && !f.fuse(1, 1, estimate).ok(); });

    const std::vector<std::int32_t> indptr{0, 3}, pages{2, 0, 1}, last{4};
    const page_table table{indptr, pages, last};
    const page_pool pool{.pages = 3, .page_tokens = 4};
    growing_workspace memory;
    workspace scratch = memory.of_bytes(plan_page_moves_bytes(table, pool));
    const keep_plan some = plan_of({{0, 3, 5, 9, 11}});
    fail_each(
        "plan_page_moves", move_plan{},
        [&](move_plan& p) { return plan_page_moves(some, table, pool, {}, p, scratch); },
        [](const move_plan& p) { return p.rows() == 0 && p.pages_touched() == 0; });
    const std::vector<std::int32_t> owners{2, 1, 1, 0}, free{3};
    const page_pool shared{.pages = 4, .page_tokens = 4, .ref_counts = owners, .free_pages = free};
    workspace more = memory.of_bytes(plan_page_moves_bytes(table, shared));
    const page_move_options copies{.order = move_order::in_order, .shared = shared_pages::copied};
    move_plan taken;
    must(plan_page_moves(some, table, shared, copies, taken, more));
    // A plan that is used again keeps no number of the one before.
    const std::vector<std::int32_t> two{0, 3, 6}, six{2, 0, 1, 3, 4, 5}, lasts{4, 4};
    const page_table longer{two, six, lasts};
    const page_pool large{.pages = 6, .page_tokens = 4};
    workspace most = memory.of_bytes(plan_page_moves_bytes(longer, large));
    const keep_plan both = plan_of({{0, 3, 5, 9, 11}, {0, 1, 2, 3, 4, 5, 6}});
    fail_each(
        "plan_page_moves again", taken,
        [&](move_plan& p) { return plan_page_moves(both, longer, large, {}, p, most); },
        [&](const move_plan& p) { return p == move_plan{}; });
    // A copy that is assigned leaves what it was assigned to.
    copy_each("keep_plan", kept, plan_of({{0, 1, 2, 3}, {0, 1, 2, 3, 4}, {5}}));
    copy_each("prune_plan", prune_plan{}, pruned);
    move_plan moved;
    must(plan_page_moves(some, table, pool, {.order = move_order::in_order}, moved, scratch));
    copy_each("move_plan", move_plan{}, moved);
    cell_mirror cells(5);
    copy_each("cell_mirror", cell_mirror(2), cells);
    const std::vector<index_t> short_offsets{0, 2}, long_offsets{0, 50, 90};
    std::vector<float> numbers(90, 2.0f);
    score_table filled, more_filled;
    filled.assign({short_offsets, std::span(numbers).first(2), {}, {}});
    more_filled.assign({long_offsets, numbers, numbers, std::span(numbers).first(2)});
    copy_each("score_table", filled, more_filled);
    fail_each(
        "score_table::assign", filled,
        [&](score_table& t) {
            t.assign(more_filled.scores());
            return status{};
        },
        [&](const score_table& t) { return t == filled; });
    const auto same_bytes = [](const auto& a, const auto& b) { return bytes_of(a) == bytes_of(b); };
    copy_each("cache_positions", cache_positions(1), positions, same_bytes);
    copy_each("running_scores", running_scores(1), scores, same_bytes);
    copy_each("recent_queries", recent_queries<float>(1, 1, 2), recent_queries<float>(2, 8, 16), same_bytes);
    copy_each("recent_queries of bf16", recent_queries<bf16>(1, 1, 2), recent_queries<bf16>(2, 8, 16),
              same_bytes);
    copy_each("replay_scores", replay_scores(1, 1), replay_scores(2, 30), same_bytes);
    copy_each("flat_cache", flat_cache(1), flat_cache(kept), [](const flat_cache& a, const flat_cache& b) {
        return std::ranges::equal(a.begins(), b.begins()) && std::ranges::equal(a.lengths(), b.lengths());
    });
    copy_each("query_statistics", query_statistics(1, 2), query_statistics(2, 4),
              [](const query_statistics& a, const query_statistics& b) {
                  return a.validate().ok() && a.counts.size() == b.counts.size() && a.means == b.means;
              });
    copy_each("query_pair_means", query_pair_means(1, 2, {}), query_pair_means(2, 4, {}),
              [](const query_pair_means& a, const query_pair_means& b) {
                  return a.validate().ok() && a.counts.size() == b.counts.size() && a.sums == b.sums;
              });
    layer_fusion small_fusion;
    must(small_fusion.begin_layer(0, pruned.grid(), 1, {}));
    copy_each("layer_fusion", layer_fusion{}, small_fusion, [&](layer_fusion a, layer_fusion b) {
        return a.bytes() == b.bytes() && a.fuse(0, 1, estimate).ok() == b.fuse(0, 1, estimate).ok();
    });
    std::vector<float> w_o(2 * 4 * 8, 0.5f);
    const strided<float, 3> small_w_o(w_o.data(), {1, 2, 3}), large_w_o(w_o.data(), {2, 4, 8});
    copy_each("gram_projection", gram_projection(small_w_o), gram_projection(large_w_o),
              [](const gram_projection& a, const gram_projection& b) {
                  const gram_view x = a.view(), y = b.view();
                  return x.q_heads == y.q_heads && x.head_dim == y.head_dim &&
                         (x.data == nullptr) == (y.data == nullptr);
              });
    layer_cascade few(4, 0), many(20, 2);
    std::vector<float> of_layer(60, 1.0f);
    const std::vector<index_t> three_rows{0, 20, 40, 60};
    must(many.push({three_rows, of_layer}));
    copy_each("layer_cascade", few, many, [](const layer_cascade& a, const layer_cascade& b) {
        bool same = a.layers() == b.layers() && a.held_tokens() == b.held_tokens();
        for (index_t r = 0; same && a.layers() > 0 && r < a.rows(0); ++r) {
            same = std::ranges::equal(a.kept(0, r), b.kept(0, r));
        }
        return same;
    });

    // Keys are rotated, and rows moved, once the positions have the memory to say so.
    const std::vector<float> frequencies{1.0f, 0.5f};
    const rope turned{frequencies};
    cache_positions cut(2);
    must(cut.append(6));
    const keep_plan two_heads = plan_of({{0, 3, 5}, {1, 2, 4}});
    std::vector<float> rows(2 * 2 * 6 * 8);
    std::iota(rows.begin(), rows.end(), 1.0f);
    const auto rows_before = rows;
    const strided<float, 3> keys_of(rows.data(), {2, 6, 8}), values_of(rows.data() + 2 * 6 * 8, {2, 6, 8});
    workspace turns = memory.of_bytes(rerotate_keys_bytes(keys_of, turned));
    const auto as_before = [&, at_first = bytes_of(cut)](const cache_positions& p) {
        return rows == rows_before && bytes_of(p) == at_first;
    };
    fail_each(
        "cut_and_close", cut,
        [&](cache_positions& p) {
            rows = rows_before;
            return cut_and_close(keys_of, values_of, p, two_heads, turned, {}, turns);
        },
        as_before);
    rows = rows_before;
    must(cut.compact(two_heads));
    fail_each(
        "close_up", cut,
        [&](cache_positions& p) {
            rows = rows_before;
            return close_up(keys_of, p, turned, {}, turns);
        },
        [&, after_cut = bytes_of(cut)](const cache_positions& p) {
            return rows == rows_before && bytes_of(p) == after_cut;
        });
    // A cascade whose push ran out of memory answers that, whatever is asked of it.
    std::vector<float> scores_of_layer(60);
    for (std::size_t i = 0; i < scores_of_layer.size(); ++i) {
        scores_of_layer[i] = static_cast<float>(i % 23);
    }
    const std::vector<index_t> rows_of_layer{0, 30, 60};
    for (long nth = 0;; ++nth) {
        layer_cascade cascade(20, 2);
        must(cascade.push({rows_of_layer, scores_of_layer}));
        allowed = nth;
        try {
            must(cascade.push({rows_of_layer, scores_of_layer}));
            allowed = -1;
            expect(nth > 0, "layer_cascade::push", nth);
            break;
        } catch (const std::bad_alloc&) { allowed = -1; }
        keep_plan out;
        expect(!cascade.push({rows_of_layer, scores_of_layer}).ok() && !cascade.plan(0, 0, 0, out).ok() &&
                   !cascade.validate().ok(),
               "layer_cascade::push", nth);
    }
    std::printf(failures == 0 ? "ok\n" : "%d failures\n", failures);
    return failures == 0 ? 0 : 1;
}
