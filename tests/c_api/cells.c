/* Copyright (c) kvtrim authors
 * SPDX-License-Identifier: MIT
 *
 * One token set for all heads and layers, the edits by which an engine cuts such a cache, eviction in whole pages, and plans and pages
 * in the tables of engines.
 */
#include "support.h"

static kvtrim_context* context;

static kvtrim_view scores_view(float* data, int64_t heads, int64_t tokens) {
    kvtrim_view v;
    kvtrim_view_init(&v, KVTRIM_F32, data, heads, tokens, 1);
    return v;
}

static void plan_of_one_row(kvtrim_plan* plan, const int32_t* kept, int32_t count) {
    int32_t offsets[2] = {0, 0};
    offsets[1] = count;
    ok(kvtrim_plan_assign(plan, offsets, 1, kept), "a plan of one row");
}

/* Two layers of scores are folded: what stays has the best sums, maxima or votes, computed here. */
static void layers_fold_into_one_set(void) {
    enum { CELLS = 24, STAY = 10, SINKS = 2, NEWEST = 3, BEST = STAY - SINKS - NEWEST };
    static float scores[2][KV_HEADS * CELLS];
    kvtrim_policy* given = make_policy("given", NULL);
    kvtrim_plan* plan = make_plan();
    kvtrim_request r;
    kvtrim_view views[2];
    kvtrim_layer layer;
    int fold, l, h, t, u;
    for (l = 0; l < 2; ++l) {
        for (t = 0; t < KV_HEADS * CELLS; ++t) { scores[l][t] = number((size_t)(t * 7 + 1000 * l)) + 2; }
        views[l] = scores_view(scores[l], KV_HEADS, CELLS);
    }
    kvtrim_request_init(&r);
    r.budget_tokens = STAY, r.sink_tokens = SINKS, r.window_tokens = NEWEST;
    memset(&layer, 0, sizeof layer);
    layer.size = sizeof layer;
    for (fold = KVTRIM_FOLD_SUM; fold <= KVTRIM_FOLD_SQUARES; ++fold) {
        double folded[CELLS] = {0}, worst_kept = 1e30, best_gone = -1e30;
        kvtrim_cells* cells = NULL;
        int next = 0;
        ok(kvtrim_cells_create(&r, CELLS, fold, &cells), "cells");
        for (l = 0; l < 2; ++l) {
            layer.scores = &views[l];
            ok(kvtrim_cells_add(cells, given, &layer, context), "a layer");
            for (h = 0; h < KV_HEADS; ++h) {
                const float* row = scores[l] + h * CELLS;
                for (t = SINKS; t < CELLS - NEWEST; ++t) {
                    int better = 0; /* votes: a row's own best, ties to the lower index */
                    for (u = SINKS; u < CELLS - NEWEST; ++u) {
                        better += row[u] > row[t] || (row[u] == row[t] && u < t);
                    }
                    const double score = (double)row[t];
                    folded[t] = fold == KVTRIM_FOLD_SUM       ? folded[t] + score
                                : fold == KVTRIM_FOLD_MAXIMUM ? (score > folded[t] ? score : folded[t])
                                : fold == KVTRIM_FOLD_VOTES
                                    ? folded[t] + (better < BEST) * 1000 + score
                                    : folded[t] + score * score; /* none is negative */
                }
            }
        }
        ok(kvtrim_cells_plan(cells, plan), "a plan");
        check(kvtrim_plan_rows(plan) == 1 && kept_of(plan, 0) == STAY, "one row of the budget", "cells");
        for (t = 0; t < CELLS; ++t) {
            const int stays = next < STAY && row_of(plan, 0)[next] == t;
            next += stays;
            if (t < SINKS || t >= CELLS - NEWEST) {
                check(stays, "what is protected stays", "cells");
            } else if (stays) {
                worst_kept = folded[t] < worst_kept ? folded[t] : worst_kept;
            } else {
                best_gone = folded[t] > best_gone ? folded[t] : best_gone;
            }
        }
        check(next == STAY && worst_kept >= best_gone, "what stays is folded best", "cells");
        scores[1][5] = 2e38f * 10; /* +infinity marks a selected token: it would outweigh all others */
        if (fold != KVTRIM_FOLD_VOTES) {
            refused(kvtrim_cells_add(cells, given, &layer, context), KVTRIM_INVALID_PARAMETER, "infinity");
        }
        scores[1][5] = 1;
        views[1].extents[1] = CELLS - 1, views[1].strides[0] = 4 * CELLS;
        refused(kvtrim_cells_add(cells, given, &layer, context), KVTRIM_ROWS_DIFFER, "a shorter sequence");
        views[1].extents[1] = CELLS;
        kvtrim_cells_destroy(cells);
    }
    kvtrim_plan_destroy(plan);
    kvtrim_policy_destroy(given);
}

/* The same with a policy that computes its scores, by the options of the request that the cells were made with. */
static void policies_score_cells(void) {
    kvtrim_policy *snapkv = make_policy("snapkv", NULL), *given = make_policy("given", NULL);
    kvtrim_request r = make_request();
    kvtrim_cells *by_policy = NULL, *by_scores = NULL;
    kvtrim_plan *plan = make_plan(), *same = make_plan();
    kvtrim_scores* scores = NULL;
    static float sinks[Q_HEADS] = {1, 2, 0, 3}, padded[KV_HEADS * TOKENS];
    kvtrim_view view = scores_view(padded, KV_HEADS, TOKENS);
    layer_of_test t;
    int64_t h, i;
    make_layer(&t);
    r.soft_cap = 3;
    r.sink_logits = sinks, r.sink_logits_count = Q_HEADS;
    ok(kvtrim_scores_create(&scores), "scores");
    ok(kvtrim_score_layer(snapkv, &t.layer, &r, scores, context), "scores of SnapKV");
    for (h = 0; h < KV_HEADS; ++h) {
        const int64_t begin = kvtrim_scores_offsets(scores)[h], count = TOKENS - r.sink_tokens - WINDOW;
        for (i = 0; i < count; ++i) {
            padded[h * TOKENS + r.sink_tokens + i] = kvtrim_scores_importance(scores)[begin + i];
        }
    }
    ok(kvtrim_cells_create(&r, TOKENS, KVTRIM_FOLD_SUM, &by_policy), "cells");
    ok(kvtrim_cells_create(&r, TOKENS, KVTRIM_FOLD_SUM, &by_scores), "cells");
    sinks[0] = sinks[1] = sinks[2] = sinks[3] = 9; /* the request's were copied */
    ok(kvtrim_cells_add(by_policy, snapkv, &t.layer, context), "a policy");
    t.layer.scores = &view;
    ok(kvtrim_cells_add(by_scores, given, &t.layer, context), "its scores");
    ok(kvtrim_cells_plan(by_policy, plan), "a plan");
    ok(kvtrim_cells_plan(by_scores, same), "a plan");
    check(same_plan(plan, same), "a policy adds its scores", "cells");
    kvtrim_cells_destroy(by_policy), kvtrim_cells_destroy(by_scores);
    kvtrim_scores_destroy(scores);
    kvtrim_plan_destroy(plan), kvtrim_plan_destroy(same);
    kvtrim_policy_destroy(snapkv), kvtrim_policy_destroy(given);
}

static void edits(void) {
    static const int32_t positions[] = {0, 1, 2, 3, 4, 5, 6, 7}, kept[] = {0, 1, 4, 5, 7};
    static const int32_t image[] = {0, 1, 1, 1, 4}, of_image[] = {0, 2, 4}, whole[] = {0, 1, 2, 3, 4};
    static const int64_t removed[] = {2, 4, 0, 6, 7, 0}, closed[] = {2, 4, 0, 6, 7, 0, 4, 6, -2, 7, 8, -3},
                         up[] = {2, 4, 0, 6, 7, 0, 4, 6, 1, 0, 2, 3};
    kvtrim_plan *plan = make_plan(), *all = make_plan();
    kvtrim_cell_edit edit = {sizeof edit, NULL, 8, -1, KVTRIM_KEEP_POSITIONS, 0, 0, 0};
    int64_t calls[12], needed = 0;
    edit.positions = positions;
    plan_of_one_row(plan, kept, 5);
    refused(kvtrim_edit_cells(plan, &edit, NULL, 0, &needed), KVTRIM_NO_ROOM, "how many");
    check(needed == 6 && edit.kept_cells == 0, "two calls", "edits");
    ok(kvtrim_edit_cells(plan, &edit, calls, 12, &needed), "calls");
    check(needed == 6 && memcmp(calls, removed, sizeof removed) == 0 && edit.kept_cells == 5 &&
              edit.shared_cells == 0,
          "ranges that go", "edits");
    edit.close = KVTRIM_TOWARDS_FIRST;
    ok(kvtrim_edit_cells(plan, &edit, calls, 12, &needed), "closed up");
    check(needed == 12 && memcmp(calls, closed, sizeof closed) == 0, "survivors follow the first", "edits");
    edit.close = KVTRIM_TOWARDS_HORIZON, edit.horizon = 7;
    ok(kvtrim_edit_cells(plan, &edit, calls, 12, &needed), "closed up");
    check(needed == 12 && memcmp(calls, up, sizeof up) == 0, "survivors close up to the newest", "edits");
    edit.horizon = 6;
    refused(kvtrim_edit_cells(plan, &edit, calls, 12, &needed), KVTRIM_INVALID_PARAMETER,
            "a token behind the horizon goes");
    plan_of_one_row(plan, of_image, 3);
    edit.positions = image, edit.position_count = 5, edit.horizon = -1, edit.close = KVTRIM_KEEP_POSITIONS;
    ok(kvtrim_edit_cells(plan, &edit, calls, 12, &needed), "an image at one position");
    check(needed == 0 && edit.kept_cells == 5 && edit.shared_cells == 2, "stays whole", "edits");
    ok(kvtrim_plan_whole_positions(plan, image, 5, all), "the cells that stay");
    check(kept_of(all, 0) == 5 && memcmp(row_of(all, 0), whole, sizeof whole) == 0, "all of the image",
          "edits");
    refused(kvtrim_plan_whole_positions(plan, image, 4, all), KVTRIM_PLAN_MISMATCH, "a shorter sequence");
    refused(kvtrim_plan_whole_positions(plan, image, 5, plan), KVTRIM_INVALID_PARAMETER, "the plan itself");
    kvtrim_plan_destroy(plan), kvtrim_plan_destroy(all);
}

/* 10 tokens in pages of 4, the last with 2. */
static void whole_pages(void) {
    static const float tokens[] = {1, 2, 3, 4, 5, 0, 0, 1, 7, 2};
    static const int32_t of_page_0_and_2[] = {0, 1, 2, 3, 8, 9};
    float pages[3] = {0, 0, 0}, many[12];
    kvtrim_policy* given = make_policy("given", NULL);
    kvtrim_plan *plan = make_plan(), *rows = make_plan();
    kvtrim_request r;
    kvtrim_view view = scores_view(many, 1, 3);
    kvtrim_layer layer;
    int64_t ranges[4] = {0, 0, 0, 0}, needed = 0;
    ok(kvtrim_score_pages(tokens, 10, 4, KVTRIM_PAGE_SUM, pages, 3), "sums");
    check(pages[0] == 10 && pages[1] == 6 && pages[2] == 9, "of each page", "pages");
    ok(kvtrim_score_pages(tokens, 10, 4, KVTRIM_PAGE_MAXIMUM, pages, 3), "maxima");
    check(pages[0] == 4 && pages[1] == 5 && pages[2] == 7, "of each page", "pages");
    ok(kvtrim_score_pages(tokens, 10, 4, KVTRIM_PAGE_MEAN, many, 3), "means");
    check(many[0] == 2.5f && many[1] == 1.5f && many[2] == 4.5f, "of what a page has", "pages");
    refused(kvtrim_score_pages(tokens, 10, 4, KVTRIM_PAGE_SUM, pages, 2), KVTRIM_INVALID_PARAMETER,
            "two pages");
    kvtrim_request_init(&r);
    r.budget_tokens = 2, r.window_tokens = 1; /* pages */
    memset(&layer, 0, sizeof layer);
    layer.size = sizeof layer, layer.scores = &view;
    ok(kvtrim_plan_layers(given, &layer, 1, &r, &plan, 1, context), "pages that stay");
    ok(kvtrim_plan_removed(plan, 0, 3, ranges, 4, &needed), "pages that go");
    check(needed == 2 && ranges[0] == 1 && ranges[1] == 2, "the worst page", "pages");
    refused(kvtrim_plan_removed(plan, 0, 3, NULL, 0, &needed), KVTRIM_NO_ROOM, "how many");
    check(needed == 2, "one range", "pages");
    refused(kvtrim_plan_removed(plan, 1, 3, ranges, 4, &needed), KVTRIM_PLAN_MISMATCH, "a row");
    refused(kvtrim_plan_removed(plan, 0, 2, ranges, 4, &needed), KVTRIM_PLAN_MISMATCH, "fewer pages");
    ok(kvtrim_expand_pages(plan, 4, 10, rows, context), "tokens that stay");
    check(kept_of(rows, 0) == 6 && memcmp(row_of(rows, 0), of_page_0_and_2, sizeof of_page_0_and_2) == 0,
          "tokens of pages 0 and 2", "pages");
    refused(kvtrim_expand_pages(plan, 4, 10, plan, context), KVTRIM_INVALID_PARAMETER, "the plan itself");
    refused(kvtrim_expand_pages(plan, 4, 8, rows, context), KVTRIM_PLAN_MISMATCH, "two pages");
    kvtrim_plan_destroy(plan), kvtrim_plan_destroy(rows);
    kvtrim_policy_destroy(given);
}

static void block_tables(void) {
    static const int32_t blocks[] = {9, 4, -1, 7, 0, 0, 3, 2, 1}, tokens[] = {6, 0, 12};
    static const int32_t expected_indptr[] = {0, 2, 2, 5}, expected_pages[] = {9, 4, 3, 2, 1},
                         expected_last[] = {2, 0, 4};
    int32_t indptr[4] = {7, 7, 7, 7}, pages[9], last[3];
    int64_t needed = 0;
    refused(kvtrim_page_table(blocks, 3, 3, tokens, 4, indptr, NULL, 0, last, &needed), KVTRIM_NO_ROOM,
            "pages");
    check(needed == 5 && indptr[0] == 7, "five pages", "block table");
    ok(kvtrim_page_table(blocks, 3, 3, tokens, 4, indptr, pages, 9, last, &needed), "a table");
    check(needed == 5 && memcmp(indptr, expected_indptr, sizeof indptr) == 0 &&
              memcmp(pages, expected_pages, sizeof expected_pages) == 0 &&
              memcmp(last, expected_last, sizeof last) == 0,
          "the pages in use", "block table");
    refused(kvtrim_page_table(blocks, 3, 3, tokens, 3, indptr, pages, 9, last, &needed), KVTRIM_INVALID_TABLE,
            "a page in use of no number");
    refused(kvtrim_page_table(blocks, 3, 3, tokens, 4, indptr, pages, 9, indptr, &needed),
            KVTRIM_VIEWS_OVERLAP, "two tables in one");
}

/* The example of tests/compact/write_move_sources.cpp. */
static void sources_of_moves(void) {
    static const int32_t offsets[3][3] = {{0, 4, 8}, {0, 1, 2}, {0, 3, 6}};
    static const int32_t kept[3][8] = {{0, 1, 5, 9, 0, 1, 2, 3}, {4, 7}, {0, 1, 2, 0, 1, 2}};
    static const int32_t expected_offsets[] = {0, 2, 3, 3}, expected[] = {5, 9, 4, -1, -1, 2, 3, 7, -1, -1};
    static const int64_t first[] = {2, 0, 3}, too_far[] = {3, 0, 3};
    kvtrim_plan* plans[3];
    int32_t begins[4], sources[10];
    int64_t columns = 0;
    int p, i;
    for (p = 0; p < 3; ++p) {
        plans[p] = make_plan();
        ok(kvtrim_plan_assign(plans[p], offsets[p], 2, kept[p]), "a plan");
    }
    for (i = 0; i < 10; ++i) { sources[i] = -1; }
    refused(kvtrim_move_sources((const kvtrim_plan* const*)plans, 3, first, begins, NULL, 0, &columns),
            KVTRIM_NO_ROOM, "columns");
    check(columns == 3, "three columns", "sources");
    ok(kvtrim_move_sources((const kvtrim_plan* const*)plans, 3, first, begins, sources, 10, &columns),
       "sources");
    check(memcmp(begins, expected_offsets, sizeof begins) == 0 &&
              memcmp(sources, expected, sizeof sources) == 0,
          "tokens behind the prefix, request after request", "sources");
    refused(kvtrim_move_sources((const kvtrim_plan* const*)plans, 3, too_far, begins, sources, 10, &columns),
            KVTRIM_PLAN_MISMATCH, "a prefix that is not whole");
    check(memcmp(sources, expected, sizeof sources) == 0, "nothing is written", "sources");
    ok(kvtrim_plan_assign(plans[0], offsets[0], 1, kept[0]), "a plan of one head");
    refused(kvtrim_move_sources((const kvtrim_plan* const*)plans, 3, first, begins, sources, 10, &columns),
            KVTRIM_ROWS_DIFFER, "other heads");
    for (p = 0; p < 3; ++p) { kvtrim_plan_destroy(plans[p]); }
}

/* What llama.cpp does to its cells, repeated. */
static void mirrored_cells(void) {
    static const int64_t at[] = {5, 6, 1}, more[] = {0, 2}, last = 7;
    static const int32_t first[] = {0, 1, 2}, next[] = {3, 4}, end = 4;
    kvtrim_mirror* mirror = NULL;
    int32_t cells[8];
    int64_t listed = 0, shared = 0;
    ok(kvtrim_mirror_create(8, &mirror), "a mirror");
    ok(kvtrim_mirror_fill(mirror, 0, at, first, 3), "a prompt");
    ok(kvtrim_mirror_copy(mirror, 0, 1), "a fork");
    ok(kvtrim_mirror_fill(mirror, 1, more, next, 2), "its own tokens");
    check(kvtrim_mirror_used(mirror, 0) == 3 && kvtrim_mirror_used(mirror, 1) == 5 &&
              kvtrim_mirror_end_of_use(mirror) == 7,
          "cells in use", "mirror");
    ok(kvtrim_mirror_list(mirror, 1, 0, cells, 8, &listed, &shared), "cells of the fork");
    check(listed == 5 && shared == 3 && cells[0] == 5 && cells[2] == 1 && cells[3] == 0 && cells[4] == 2,
          "in the order of the text", "mirror");
    ok(kvtrim_mirror_list(mirror, 1, 1, cells, 8, &listed, NULL), "its own");
    check(listed == 2 && cells[0] == 0, "without those of others", "mirror");
    ok(kvtrim_mirror_remove(mirror, 1, 1, 2), "a position goes");
    ok(kvtrim_mirror_shift(mirror, 1, 3, -1, -1), "the rest closes up");
    check(kvtrim_mirror_positions(mirror).count == 8 && kvtrim_mirror_positions(mirror).data[0] == 2 &&
              kvtrim_mirror_positions(mirror).data[6] == 1 && kvtrim_mirror_positions(mirror).data[7] == -1,
          "the other sequence has it still", "mirror");
    ok(kvtrim_mirror_remove(mirror, 0, 0, -1), "a sequence goes");
    check(kvtrim_mirror_positions(mirror).data[6] == -1 && kvtrim_mirror_used(mirror, 0) == 0,
          "its cell is free", "mirror");
    refused(kvtrim_mirror_restore(mirror, 1), KVTRIM_INVALID_PARAMETER,
            "keys that a decode has still to turn");
    ok(kvtrim_mirror_fill(mirror, 1, &last, &end, 1), "a decode");
    ok(kvtrim_mirror_restore(mirror, 1), "saved, removed, set again");
    ok(kvtrim_mirror_list(mirror, 1, 0, cells, 8, &listed, &shared), "cells");
    check(listed == 5 && shared == 0 && kvtrim_mirror_end_of_use(mirror) == 5, "the first cells", "mirror");
    refused(kvtrim_mirror_list(mirror, 1, 0, cells, 3, &listed, &shared), KVTRIM_NO_ROOM, "room for 3");
    refused(kvtrim_mirror_fill(mirror, 64, at, first, 3), KVTRIM_INVALID_PARAMETER, "a sequence");
    refused(kvtrim_mirror_shift(mirror, 1, 0, -1, -9), KVTRIM_INVALID_TABLE, "positions below 0");
    kvtrim_mirror_destroy(mirror);
}

int main(void) {
    use_all();
    fill();
    context = make_context();
    layers_fold_into_one_set();
    policies_score_cells();
    mirrored_cells();
    edits();
    whole_pages();
    block_tables();
    sources_of_moves();
    kvtrim_context_destroy(context);
    return done();
}
