/* Copyright (c) kvtrim authors
 * SPDX-License-Identifier: MIT
 *
 * As hostile.c, of the functions for states, tables, cells and pages: each wrong argument is answered, and outputs and objects are as
 * they were. Codes and blocks in pages and ragged rows too.
 */
#include "support.h"

#include <math.h>

static const int64_t numbers[] = {-1, INT64_MIN, INT64_MAX, (int64_t)1 << 62};
static kvtrim_context* context;
static kvtrim_plan *plan, *plan_before;
static layer_of_test good;
static kvtrim_request request;
static int64_t asked = 0;

static void no(kvtrim_status s, const char* what) {
    ++asked;
    if (s.code == KVTRIM_OK || s.code == KVTRIM_FAILED || s.text == NULL || s.text[0] == 0) {
        printf("FAILED: %s was answered %d\n", what, (int)s.code);
        ++failures;
    }
    check(same_plan(plan, plan_before), "the plan is as it was", what);
}

/* Saved bytes and numbers that a state does not take. */
#define NO_STATE(kind, object)                                                                               \
    do {                                                                                                     \
        char bytes[64] = {0};                                                                                \
        int64_t needed = -7;                                                                                 \
        no(kvtrim_##kind##_save(NULL, bytes, 64, &needed), #kind ": null");                                  \
        no(kvtrim_##kind##_save(object, bytes, 64, NULL), #kind ": null");                                   \
        no(kvtrim_##kind##_save(object, NULL, 64, &needed), #kind ": null");                                 \
        no(kvtrim_##kind##_save(object, bytes, -1, &needed), #kind ": bytes");                               \
        check(needed == -7, "needed is as it was", #kind);                                                   \
        no(kvtrim_##kind##_restore(NULL, bytes, 64), #kind ": null");                                        \
        no(kvtrim_##kind##_restore(object, NULL, 64), #kind ": null");                                       \
        no(kvtrim_##kind##_restore(object, bytes, -1), #kind ": bytes");                                     \
        no(kvtrim_##kind##_restore(object, bytes, 0), #kind ": nothing");                                    \
        no(kvtrim_##kind##_restore(object, bytes, 64), #kind ": zeros");                                     \
        no(kvtrim_##kind##_create_with_nothing(), #kind ": null");                                           \
        kvtrim_##kind##_destroy(NULL);                                                                       \
    } while (0)
#define kvtrim_queries_create_with_nothing() kvtrim_queries_create(1, 1, 1, 0, KVTRIM_F32, NULL)
#define kvtrim_norms_create_with_nothing() kvtrim_norms_create(1, NULL)
#define kvtrim_replay_create_with_nothing() kvtrim_replay_create(1, 1, 0, NULL)
#define kvtrim_statistics_create_with_nothing() kvtrim_statistics_create(1, 1, 0, NULL)
#define kvtrim_means_create_with_nothing() kvtrim_means_create(1, 2, &rope, NULL)
#define kvtrim_profile_create_with_nothing() kvtrim_profile_create(NULL)

static void wrong_states(void) {
    static const float frequency[] = {0.5f}, none[] = {(float)NAN};
    kvtrim_rope rope = {sizeof rope, NULL, 1, 0, 0};
    kvtrim_queries* queries_of = NULL;
    kvtrim_norms* norms = NULL;
    kvtrim_replay* replay = NULL;
    kvtrim_statistics* statistics = NULL;
    kvtrim_means* means = NULL;
    kvtrim_profile* profile = NULL;
    kvtrim_projection* projection_of = NULL;
    kvtrim_policy *layered = make_policy("layer_replay", NULL), *given = make_policy("layer_given", NULL);
    kvtrim_view view = good.queries;
    kvtrim_layer layer = good.layer;
    double preference = -7;
    int64_t n;
    size_t i;
    rope.inverse_frequencies = frequency;
    for (i = 0; i < 4; ++i) {
        no(kvtrim_queries_create(numbers[i], 1, 1, 0, 0, &queries_of), "heads");
        no(kvtrim_queries_create(1, numbers[i], 1, 0, 0, &queries_of), "a window");
        no(kvtrim_queries_create(1, 1, numbers[i], 0, 0, &queries_of), "channels");
        no(kvtrim_queries_create(1, 1, 1, numbers[i], 0, &queries_of), "rollback");
        no(kvtrim_norms_create(numbers[i], &norms), "heads");
        no(kvtrim_means_create(numbers[i], 2, &rope, &means), "heads");
        no(kvtrim_means_create(1, numbers[i], &rope, &means), "channels");
    }
    no(kvtrim_queries_create(1, 0, 1, 0, 0, &queries_of), "no window");
    no(kvtrim_queries_create(1, 1, 1, 0, KVTRIM_Q8_0, &queries_of), "blocks");
    no(kvtrim_queries_create(1, 1, 1, 0, -1, &queries_of), "an element");
    no(kvtrim_means_create(1, 2, NULL, &means), "no rope");
    no(kvtrim_projection_create(NULL, KVTRIM_PACKED, &projection_of), "no W_O");
    no(kvtrim_projection_create(&good.projection, 2, &projection_of), "a form");
    no(kvtrim_projection_create(&good.projection, -1, &projection_of), "a form");
    no(kvtrim_projection_create(&good.projection, KVTRIM_GRAM, NULL), "null");
    check(queries_of == NULL && norms == NULL && means == NULL && projection_of == NULL, "nothing was made",
          "create");
    ok(kvtrim_queries_create(Q_HEADS, WINDOW, DIM, 0, KVTRIM_F32, &queries_of), "queries");
    ok(kvtrim_norms_create(KV_HEADS, &norms), "norms");
    ok(kvtrim_replay_create(KV_HEADS, TOKENS, 0, &replay), "a replay");
    ok(kvtrim_statistics_create(Q_HEADS, DIM, 0, &statistics), "statistics");
    ok(kvtrim_means_create(Q_HEADS, DIM, &rope, &means), "means");
    ok(kvtrim_profile_create(&profile), "a profile");
    NO_STATE(queries, queries_of);
    NO_STATE(norms, norms);
    NO_STATE(replay, replay);
    NO_STATE(statistics, statistics);
    NO_STATE(means, means);
    NO_STATE(profile, profile);
    for (i = 0; i < 4; ++i) {
        no(kvtrim_queries_rollback(queries_of, numbers[i]), "queries");
        no(kvtrim_queries_view(queries_of, numbers[i], &view), "queries");
        no(kvtrim_norms_append(norms, &good.layer, numbers[i], context), "tokens");
        no(kvtrim_norms_rollback(norms, numbers[i]), "tokens");
        no(kvtrim_profile_add(profile, layered, &layer, numbers[i], &request, context), "layers");
        check(kvtrim_norms_of_head(norms, numbers[i], &n) == NULL && n == 0, "no such head", "norms");
    }
    check(memcmp(&view, &good.queries, sizeof view) == 0, "the view is as it was", "queries");
    no(kvtrim_queries_append(NULL, &good.queries), "null"),
        no(kvtrim_queries_append(queries_of, NULL), "null");
    no(kvtrim_queries_append(queries_of, &good.keys), "other heads");
    no(kvtrim_queries_rollback(NULL, 0), "null"), no(kvtrim_queries_view(NULL, 0, &view), "null");
    no(kvtrim_queries_view(queries_of, 0, NULL), "null");
    no(kvtrim_norms_append(NULL, &good.layer, TOKENS, context), "null");
    no(kvtrim_norms_append(norms, NULL, TOKENS, context), "null");
    no(kvtrim_norms_append(norms, &good.layer, TOKENS, NULL), "null");
    no(kvtrim_norms_append(norms, &good.layer, TOKENS - 1, context), "fewer tokens than came");
    layer.output_projection = NULL;
    no(kvtrim_norms_append(norms, &layer, TOKENS, context), "no W_O");
    no(kvtrim_norms_compact(norms, NULL), "null"), no(kvtrim_norms_compact(NULL, plan), "null");
    no(kvtrim_norms_compact(norms, plan), "another cache");
    no(kvtrim_replay_weigh(NULL, norms), "null"), no(kvtrim_replay_weigh(replay, NULL), "null");
    no(kvtrim_replay_add_part(NULL, &good.layer, &request, 0, 9, 0, context), "null");
    no(kvtrim_replay_add_part(replay, NULL, &request, 0, 9, 0, context), "null");
    no(kvtrim_replay_add_part(replay, &good.layer, NULL, 0, 9, 0, context), "null");
    no(kvtrim_replay_add_part(replay, &good.layer, &request, 0, 9, 0, NULL), "null");
    no(kvtrim_replay_add_part(replay, &good.layer, &request, -1, 9, 0, context), "a row");
    no(kvtrim_replay_add_part(replay, &good.layer, &request, 9, INT64_MIN, 0, context), "a row");
    no(kvtrim_replay_add_part(replay, &good.layer, &request, 0, 9, INT64_MIN, context), "sinks");
    no(kvtrim_means_add(NULL, &good.queries, context), "null"),
        no(kvtrim_means_add(means, NULL, context), "null");
    no(kvtrim_means_add(means, &good.queries, NULL), "null"),
        no(kvtrim_means_add(means, &good.keys, context), "other heads");
    no(kvtrim_profile_add(NULL, layered, &layer, 1, &request, context), "null");
    no(kvtrim_profile_add(profile, NULL, &layer, 1, &request, context), "null");
    no(kvtrim_profile_add(profile, layered, NULL, 1, &request, context), "null");
    no(kvtrim_profile_add(profile, layered, &layer, 1, &request, context), "no replay");
    no(kvtrim_profile_add(profile, given, &layer, 1, &request, context), "no scores");
    no(kvtrim_profile_add(profile, layered, &layer, 1, NULL, context), "null");
    check(kvtrim_profile_prompts(profile) == 0 && kvtrim_profile_rows(profile) == 0 &&
              kvtrim_profile_prompts(NULL) == 0 && kvtrim_profile_rows(NULL) == 0 &&
              kvtrim_queries_held(NULL) == 0,
          "nothing was added", "profile");
    no(kvtrim_layer_preference(NULL, &request, 0, 0, &preference, context), "null");
    no(kvtrim_layer_preference(&good.layer, NULL, 0, 0, &preference, context), "null");
    no(kvtrim_layer_preference(&good.layer, &request, 0, 0, NULL, context), "null");
    no(kvtrim_layer_preference(&good.layer, &request, 0, 0, &preference, NULL), "null");
    no(kvtrim_layer_preference(&good.layer, &request, (double)none[0], 0, &preference, context), "a tau");
    no(kvtrim_layer_preference(&good.layer, &request, 0, -HUGE_VAL, &preference, context), "a tau");
    check(preference == -7, "it is as it was", "preference");
    rope.inverse_frequencies = none, no(kvtrim_means_create(1, 2, &rope, &means), "a frequency");
    kvtrim_queries_destroy(queries_of), kvtrim_norms_destroy(norms), kvtrim_replay_destroy(replay);
    kvtrim_statistics_destroy(statistics), kvtrim_means_destroy(means), kvtrim_profile_destroy(profile);
    kvtrim_policy_destroy(layered), kvtrim_policy_destroy(given), kvtrim_projection_destroy(NULL);
}

/* A policy of scores, means or norms without them, or with those of another layer. */
static void wrong_parts_of_layers(void) {
    static const char* const names[] = {
        "given",        "ada_given",  "layer_given", "above_threshold", "layer_above_threshold",
        "triattention", "criticalkv", "defensivekv", "profiled"};
    static const float frequency[] = {0.5f, 0.25f};
    static float scores[KV_HEADS * TOKENS];
    kvtrim_rope rope = {sizeof rope, NULL, 2, 0, 0};
    kvtrim_means* means = NULL;
    kvtrim_norms* norms = NULL;
    kvtrim_view view;
    kvtrim_layer layer;
    size_t i;
    rope.inverse_frequencies = frequency;
    kvtrim_view_init(&view, KVTRIM_F32, scores, KV_HEADS, TOKENS, 1);
    ok(kvtrim_means_create(Q_HEADS, DIM, &rope, &means), "means");
    ok(kvtrim_norms_create(KV_HEADS, &norms), "norms of no token");
    for (i = 0; i < sizeof names / sizeof *names; ++i) {
        kvtrim_policy* policy = make_policy(names[i], NULL);
        memset(&layer, 0, sizeof layer);
        layer.size = sizeof layer;
        no(kvtrim_plan_layers(policy, &layer, 1, &request, &plan, 1, context), "an empty layer");
        layer = good.layer;
        if (i != 6 && i != 7) { /* which have W_O */
            no(kvtrim_plan_layers(policy, &layer, 1, &request, &plan, 1, context), "a layer without it");
        }
        layer.rope = i == 5 ? NULL : &rope;
        layer.means = i == 5 ? means : NULL;
        layer.norms = norms;
        view.extents[2] = 2, view.strides[1] = 4;
        layer.scores = &view;
        no(kvtrim_plan_layers(policy, &layer, 1, &request, &plan, 1, context), "one that does not fit");
        view.extents[2] = 1, view.extents[1] = INT64_MAX;
        no(kvtrim_plan_layers(policy, &layer, 1, &request, &plan, 1, context), "scores without end");
        view.extents[1] = TOKENS;
        kvtrim_policy_destroy(policy);
    }
    kvtrim_means_destroy(means), kvtrim_norms_destroy(norms);
}

static void wrong_cells_and_pages(void) {
    static const int32_t positions[] = {0, 1, 2, 3}, falling[] = {0, 2, 1, 3}, below[] = {-1, 0, 1, 2};
    static const int32_t offsets[] = {0, 2}, kept[] = {0, 9}, of_pages[] = {0, 1};
    static const int64_t first[] = {0};
    kvtrim_policy* snapkv = make_policy("snapkv", NULL);
    kvtrim_plan *one = make_plan(), *out = make_plan();
    kvtrim_cells* cells = NULL;
    kvtrim_cell_edit edit = {sizeof edit, NULL, 4, -1, 0, 0, -7, -7};
    kvtrim_request r = request;
    const kvtrim_plan* none[] = {NULL};
    const kvtrim_plan* some[1];
    int32_t table[8] = {-7, -7, -7, -7, -7, -7, -7, -7}, begins[2] = {-7, -7};
    int64_t list[8], needed = -7;
    float pages[4] = {-7, -7, -7, -7};
    size_t i;
    ok(kvtrim_plan_assign(one, offsets, 1, of_pages), "a plan of one row");
    no(kvtrim_cells_create(NULL, TOKENS, 0, &cells), "null"),
        no(kvtrim_cells_create(&r, TOKENS, 0, NULL), "null");
    no(kvtrim_cells_create(&r, TOKENS, 4, &cells), "a fold"),
        no(kvtrim_cells_create(&r, TOKENS, -1, &cells), "a fold");
    no(kvtrim_cells_create(&r, 1 << 20, 0, NULL), "null");
    for (i = 0; i < 4; ++i) { no(kvtrim_cells_create(&r, numbers[i], 0, &cells), "tokens"); }
    r.budget_tokens = 0, no(kvtrim_cells_create(&r, TOKENS, 0, &cells), "no budget");
    r.budget_tokens = 1, no(kvtrim_cells_create(&r, TOKENS, 0, &cells), "a budget below protection");
    r = request, r.sink_tokens = INT64_MIN, no(kvtrim_cells_create(&r, TOKENS, 0, &cells), "sinks");
    check(cells == NULL, "nothing was made", "cells");
    ok(kvtrim_cells_create(&request, TOKENS + 1, 0, &cells), "cells");
    no(kvtrim_cells_add(NULL, snapkv, &good.layer, context), "null"),
        no(kvtrim_cells_add(cells, NULL, &good.layer, context), "null");
    no(kvtrim_cells_add(cells, snapkv, NULL, context), "null"),
        no(kvtrim_cells_add(cells, snapkv, &good.layer, NULL), "null");
    no(kvtrim_cells_add(cells, snapkv, &good.layer, context), "a shorter cache");
    no(kvtrim_cells_plan(NULL, plan), "null"), no(kvtrim_cells_plan(cells, NULL), "null");
    kvtrim_cells_destroy(cells), kvtrim_cells_destroy(NULL);

    no(kvtrim_edit_cells(one, NULL, list, 8, &needed), "null"),
        no(kvtrim_edit_cells(NULL, &edit, list, 8, &needed), "null");
    no(kvtrim_edit_cells(one, &edit, list, 8, &needed), "no positions");
    edit.positions = falling, no(kvtrim_edit_cells(one, &edit, list, 8, &needed), "positions that fall");
    edit.positions = below, no(kvtrim_edit_cells(one, &edit, list, 8, &needed), "a position below 0");
    edit.positions = positions, edit.position_count = -1,
    no(kvtrim_edit_cells(one, &edit, list, 8, &needed), "a count");
    edit.position_count = 1, no(kvtrim_edit_cells(one, &edit, list, 8, &needed), "a cell that is not there");
    edit.position_count = 4, edit.close = 3, no(kvtrim_edit_cells(one, &edit, list, 8, &needed), "a closing");
    edit.close = -1, no(kvtrim_edit_cells(one, &edit, list, 8, &needed), "a closing");
    edit.close = 0, no(kvtrim_edit_cells(plan, &edit, list, 8, &needed), "a plan of two rows");
    edit.horizon = 2, no(kvtrim_edit_cells(one, &edit, list, 8, &needed), "a draft that goes");
    edit.horizon = -1, edit.size = 8, no(kvtrim_edit_cells(one, &edit, list, 8, &needed), "a size");
    edit.size = sizeof edit, no(kvtrim_edit_cells(one, &edit, list, 8, NULL), "null");
    no(kvtrim_edit_cells(one, &edit, NULL, 8, &needed), "null"),
        no(kvtrim_edit_cells(one, &edit, list, -1, &needed), "room");
    check(edit.kept_cells == -7 && edit.shared_cells == -7 && needed == -7, "it is as it was", "edit");
    no(kvtrim_plan_whole_positions(NULL, positions, 4, out), "null"),
        no(kvtrim_plan_whole_positions(one, NULL, 4, out), "null");
    no(kvtrim_plan_whole_positions(one, positions, -1, out), "a count"),
        no(kvtrim_plan_whole_positions(one, positions, 4, NULL), "null");
    no(kvtrim_plan_whole_positions(plan, positions, 4, out), "two rows"),
        no(kvtrim_plan_whole_positions(one, falling, 4, out), "positions");

    for (i = 0; i < 4; ++i) {
        no(kvtrim_plan_removed(one, numbers[i], 4, list, 8, &needed), "a row");
        if (i != 2 && i != 3) { no(kvtrim_plan_removed(one, 0, numbers[i], list, 8, &needed), "tokens"); }
        no(kvtrim_score_pages(keys, 8, numbers[i], 0, pages, 4), "page_tokens");
        no(kvtrim_score_pages(keys, i < 2 ? numbers[i] : 8, 2, 0, pages, i < 2 ? 4 : numbers[i]), "a count");
        no(kvtrim_expand_pages(one, numbers[i], 4, out, context), "page_tokens");
        no(kvtrim_expand_pages(one, 4, numbers[i], out, context), "tokens");
        no(kvtrim_page_table(positions, numbers[i], 2, positions, 4, table, table + 3, 2, table + 6, &needed),
           "requests");
        no(kvtrim_page_table(positions, 1, numbers[i], positions, 4, table, table + 3, 2, table + 6, &needed),
           "pages");
        no(kvtrim_page_table(positions, 1, 2, positions + 1, numbers[i], table, table + 3, 2, table + 6,
                             &needed),
           "page_tokens");
    }
    no(kvtrim_plan_removed(NULL, 0, 4, list, 8, &needed), "null"),
        no(kvtrim_plan_removed(one, 0, 4, list, 8, NULL), "null");
    no(kvtrim_plan_removed(one, 0, 4, NULL, 8, &needed), "null"),
        no(kvtrim_plan_removed(one, 0, 4, list, INT64_MIN, &needed), "room");
    no(kvtrim_score_pages(NULL, 8, 2, 0, pages, 4), "null"),
        no(kvtrim_score_pages(keys, 8, 2, 0, NULL, 4), "null");
    no(kvtrim_score_pages(keys, 8, 2, 3, pages, 4), "a reduction"),
        no(kvtrim_score_pages(keys, 8, 2, -1, pages, 4), "a reduction");
    no(kvtrim_score_pages(pages, 4, 1, 0, pages, 4), "pages among the tokens");
    no(kvtrim_expand_pages(NULL, 4, 8, out, context), "null"),
        no(kvtrim_expand_pages(one, 4, 8, NULL, context), "null");
    no(kvtrim_expand_pages(one, 4, 8, out, NULL), "null");
    check(pages[0] == -7 && pages[3] == -7, "nothing was written", "pages");
    no(kvtrim_page_table(NULL, 1, 2, positions, 4, table, table + 3, 2, table + 6, &needed), "null");
    no(kvtrim_page_table(positions, 1, 2, NULL, 4, table, table + 3, 2, table + 6, &needed), "null");
    no(kvtrim_page_table(positions, 1, 2, positions, 4, NULL, table + 3, 2, table + 6, &needed), "null");
    no(kvtrim_page_table(positions, 1, 2, positions, 4, table, NULL, 2, table + 6, &needed), "null");
    no(kvtrim_page_table(positions, 1, 2, positions, 4, table, table + 3, 2, NULL, &needed), "null");
    no(kvtrim_page_table(positions, 1, 2, positions, 4, table, table + 3, 2, table + 6, NULL), "null");
    no(kvtrim_page_table(positions, 1, 2, positions, 4, table, table + 3, -2, table + 6, &needed), "room");
    no(kvtrim_page_table(positions, 1, 1, positions + 3, 2, table, table + 3, 2, table + 6, &needed),
       "a length beyond its pages");
    ok(kvtrim_plan_assign(one, offsets, 1, kept), "a plan");
    some[0] = one;
    no(kvtrim_move_sources(NULL, 1, first, begins, table, 8, &needed), "null"),
        no(kvtrim_move_sources(none, 1, first, begins, table, 8, &needed), "null");
    no(kvtrim_move_sources(some, 1, NULL, begins, table, 8, &needed), "null"),
        no(kvtrim_move_sources(some, 1, first, NULL, table, 8, &needed), "null");
    no(kvtrim_move_sources(some, 1, first, begins, NULL, 8, &needed), "null"),
        no(kvtrim_move_sources(some, 1, first, begins, table, 8, NULL), "null");
    for (i = 0; i < 4; ++i) {
        no(kvtrim_move_sources(some, numbers[i], first, begins, table, 8, &needed), "plans");
        no(kvtrim_move_sources(some, 1, &numbers[i], begins, table, 8, &needed), "a first destination");
    }
    no(kvtrim_move_sources(some, 1, first, begins, table, INT64_MIN, &needed), "room");
    no(kvtrim_move_sources(some, 1, first, begins, begins, 2, &list[0]), "one table as both");
    for (i = 0; i < 8; ++i) { check(table[i] == -7, "nothing was written", "tables"); }
    check(begins[0] == -7 && begins[1] == -7 && needed == -7, "nothing was written", "tables");
    check(kvtrim_plan_rows(out) == 0, "no plan was made", "out");
    kvtrim_plan_destroy(one), kvtrim_plan_destroy(out);
    kvtrim_policy_destroy(snapkv);
}

static void wrong_flat_caches_and_mirrors(void) {
    static const int64_t at[] = {0, 9};
    static const int32_t positions[] = {0, -1};
    kvtrim_flat* flat = NULL;
    kvtrim_mirror* mirror = NULL;
    kvtrim_view view = good.keys, before;
    int64_t list[6], needed = -7, listed = -7;
    int32_t cells[4] = {-7, -7, -7, -7};
    size_t i;
    for (i = 0; i < 4; ++i) {
        no(kvtrim_flat_create(numbers[i], 0, &flat), "heads");
        no(kvtrim_mirror_create(numbers[i], &mirror), "cells");
    }
    no(kvtrim_flat_create(1, -1, &flat), "a growth"), no(kvtrim_flat_create(1, NAN, &flat), "a growth");
    no(kvtrim_flat_create(1, HUGE_VAL, &flat), "a growth"), no(kvtrim_flat_create(1, 0, NULL), "null");
    no(kvtrim_mirror_create(1, NULL), "null");
    check(flat == NULL && mirror == NULL, "nothing was made", "create");
    ok(kvtrim_flat_create(KV_HEADS, 0, &flat), "a flat cache"),
        ok(kvtrim_flat_assign(flat, plan), "a plan's");
    ok(kvtrim_mirror_create(4, &mirror), "a mirror");
    for (i = 0; i < 4; ++i) {
        no(kvtrim_flat_append(flat, numbers[i]), "tokens");
        no(kvtrim_flat_spread(flat, numbers[i], list, 6, &needed), "rows");
        if (i < 2) {
            no(kvtrim_mirror_fill(mirror, 0, at, positions, numbers[i]), "a count");
            no(kvtrim_mirror_list(mirror, 0, 0, cells, numbers[i], &listed, NULL), "room");
        }
    }
    no(kvtrim_mirror_list(mirror, -1, 0, cells, 4, &listed, NULL), "a sequence"),
        no(kvtrim_mirror_list(mirror, 64, 0, cells, 4, &listed, NULL), "a sequence");
    no(kvtrim_mirror_list(mirror, 0, 0, cells, 4, NULL, NULL), "null");
    no(kvtrim_flat_append(NULL, 1), "null"), no(kvtrim_flat_assign(NULL, plan), "null"),
        no(kvtrim_flat_assign(flat, NULL), "null");
    no(kvtrim_flat_compact(NULL, plan), "null"), no(kvtrim_flat_compact(flat, NULL), "null");
    no(kvtrim_flat_spread(NULL, 999, list, 6, &needed), "null"),
        no(kvtrim_flat_spread(flat, 999, NULL, 6, &needed), "null");
    no(kvtrim_flat_spread(flat, 999, list, 6, NULL), "null"),
        no(kvtrim_flat_spread(flat, 1, list, 6, &needed), "fewer rows than there are");
    check(kvtrim_flat_begins(flat).data[KV_HEADS] == kvtrim_plan_offsets(plan)[KV_HEADS] &&
              kvtrim_flat_begins(NULL).count == 0 && kvtrim_flat_lengths(NULL).count == 0,
          "the table is as it was", "flat");
    before = view;
    no(kvtrim_flat_view(NULL, &view), "null"), no(kvtrim_flat_view(flat, NULL), "null");
    check(memcmp(&view, &before, sizeof view) == 0, "the view is as it was", "flat");
    view.size = 5, no(kvtrim_flat_view(flat, &view), "a size");
    no(kvtrim_mirror_fill(NULL, 0, at, positions, 1), "null"),
        no(kvtrim_mirror_fill(mirror, 0, NULL, positions, 1), "null");
    no(kvtrim_mirror_fill(mirror, 0, at, NULL, 1), "null"),
        no(kvtrim_mirror_fill(mirror, -1, at, positions, 1), "a sequence");
    no(kvtrim_mirror_fill(mirror, 0, at, positions, 2), "a cell outside"),
        no(kvtrim_mirror_fill(mirror, 0, at, positions + 1, 1), "a position");
    no(kvtrim_mirror_remove(NULL, 0, 0, 1), "null"), no(kvtrim_mirror_remove(mirror, 64, 0, 1), "a sequence");
    no(kvtrim_mirror_shift(NULL, 0, 0, 1, 1), "null"),
        no(kvtrim_mirror_shift(mirror, INT32_MIN, 0, 1, 1), "a sequence");
    no(kvtrim_mirror_copy(NULL, 0, 1), "null"), no(kvtrim_mirror_copy(mirror, 0, 64), "a sequence"),
        no(kvtrim_mirror_copy(mirror, -1, 0), "a sequence");
    no(kvtrim_mirror_restore(NULL, 0), "null"), no(kvtrim_mirror_restore(mirror, 64), "a sequence");
    ok(kvtrim_mirror_fill(mirror, 0, at, positions, 1), "a token");
    no(kvtrim_mirror_shift(mirror, 0, 0, -1, INT64_MAX), "far"),
        no(kvtrim_mirror_shift(mirror, 0, 0, -1, INT64_MIN), "far");
    no(kvtrim_mirror_list(NULL, 0, 0, cells, 4, &listed, NULL), "null"),
        no(kvtrim_mirror_list(mirror, 0, 0, NULL, 4, &listed, NULL), "null");
    check(kvtrim_mirror_positions(mirror).data[0] == 0 && kvtrim_mirror_used(mirror, 0) == 1 &&
              kvtrim_mirror_used(mirror, 64) == 0 && kvtrim_mirror_used(NULL, 0) == 0 &&
              kvtrim_mirror_end_of_use(NULL) == 0 && kvtrim_mirror_positions(NULL).count == 0,
          "the mirror is as it was", "mirror");
    check(listed == -7 && needed == -7 && cells[0] == -7, "outputs are as they were", "out");
    kvtrim_flat_destroy(flat), kvtrim_flat_destroy(NULL), kvtrim_mirror_destroy(mirror),
        kvtrim_mirror_destroy(NULL);
}

/* Rows of blocks and codes that a table finds. */
static void wrong_pools(void) {
    static unsigned char pool[6 * 16 * 64];
    static float scales[6 * 16 * KV_HEADS], out[DIM];
    static const int32_t indptr[] = {0, 6}, from_one[] = {1, 6}, last[] = {16}, too_many[] = {17},
                         fall[] = {0, 4, 2}, rows[] = {0, 4, 8};
    static int32_t pages[6] = {0, 1, 2, 3, 4, 5};
    int element, layout, i;
#define BAD(member, value, what)                                                                             \
    do {                                                                                                     \
        kvtrim_view v = base;                                                                                \
        v.member = value;                                                                                    \
        no(kvtrim_view_validate(&v), what);                                                                  \
        no(kvtrim_view_read(&v, 0, 0, 1, out, DIM), what);                                                   \
    } while (0)
    for (element = KVTRIM_Q8_0; element <= KVTRIM_F8_E5M2; ++element) {
        for (layout = KVTRIM_PAGED; layout <= KVTRIM_RAGGED; ++layout) {
            kvtrim_view base;
            const int own = layout == KVTRIM_PAGED_PER_HEAD;
            kvtrim_view_init(&base, element, pool, own ? 1 : KV_HEADS, 0, DIM);
            base.layout = layout;
            base.strides[0] = base.strides[1] = base.strides[2] * (element < KVTRIM_I8 ? 1 : DIM);
            base.strides[1] *= base.extents[0];
            base.page_tokens = 16, base.pages = 6, base.page_stride = 16 * base.strides[1];
            base.indices = pages, base.index_count = 6, base.last_page = last, base.table_rows = 1;
            base.indptr = layout == KVTRIM_RAGGED ? rows : indptr;
            if (element >= KVTRIM_I8) {
                base.scales = scales;
                base.scale_strides[0] = layout == KVTRIM_RAGGED ? 0 : 4;
                base.scale_strides[1] = layout == KVTRIM_RAGGED ? 4 : 4 * base.extents[0];
                base.scale_page_stride = 16 * base.scale_strides[1];
            }
            ok(kvtrim_view_validate(&base), "a pool");
            ok(kvtrim_view_read(&base, 0, 3, 1, out, DIM), "a row");
            BAD(data, NULL, "no data");
            BAD(extents[0], -1, "heads");
            BAD(extents[2], -32, "channels");
            BAD(extents[2], INT64_MAX / 32 * 32, "many channels");
            if (element < KVTRIM_I8) { BAD(extents[2], 33, "part of a block"); }
            BAD(indptr, NULL, "no indptr");
            if (layout == KVTRIM_RAGGED) {
                static const int64_t too_long[] = {4, 5}, below[] = {0, -1};
                BAD(lengths, too_long, "a length");
                BAD(lengths, below, "a length");
                BAD(indptr, fall, "offsets that fall");
                BAD(indptr, from_one, "offsets from 1 on");
            } else {
                BAD(indptr, from_one + 1, "offsets");
                BAD(indices, NULL, "no pages");
                BAD(last_page, NULL, "no last page");
                BAD(last_page, too_many, "a last page");
                BAD(pages, 5, "a page outside");
                BAD(pages, INT64_MIN, "a pool");
                BAD(row, 1, "a row");
                BAD(row, INT64_MAX, "a row");
                BAD(table_rows, -1, "rows");
                BAD(index_count, -1, "pages");
                BAD(page_tokens, 0, "no slots");
                BAD(page_tokens, INT64_MIN, "slots");
                BAD(page_tokens, (int64_t)1 << 40, "slots");
                BAD(page_stride, INT64_MAX, "a stride");
                BAD(page_stride, INT64_MIN, "a stride");
                BAD(strides[1], INT64_MAX, "a stride");
                BAD(strides[2], 3, "channels apart");
                if (!own) { BAD(strides[0], INT64_MIN, "a stride"); }
            }
            if (element < KVTRIM_I8) { continue; }
            BAD(scales, NULL, "no scales");
            BAD(scales, (float*)(void*)((char*)scales + 1), "misaligned scales");
            BAD(zeros, (float*)(void*)((char*)scales + 2), "misaligned zeros");
            for (i = layout == KVTRIM_PAGED ? 0 : 1; i < 3; ++i) {
                BAD(scale_strides[i], INT64_MAX - 3, "a stride of scales");
                BAD(scale_strides[i], 2, "half a scale");
            }
            BAD(scale_strides[2], 8, "scales of every other channel");
            if (layout == KVTRIM_RAGGED) { continue; }
            BAD(scale_page_stride, INT64_MIN, "a stride of scales");
            BAD(scale_page_stride, 6, "half a scale");
            BAD(scale_page_stride, 0, "a scale of one token in all pages");
            if (layout == KVTRIM_PAGED) { BAD(scale_strides[0], 0, "a scale of one token for two heads"); }
        }
    }
#undef BAD
}

int main(void) {
    use_all();
    fill();
    context = make_context();
    plan = make_plan(), plan_before = make_plan();
    make_layer(&good);
    request = make_request();
    {
        kvtrim_policy* policy = make_policy("snapkv", NULL);
        ok(kvtrim_plan_layers(policy, &good.layer, 1, &request, &plan, 1, context), "a plan");
        ok(kvtrim_plan_layers(policy, &good.layer, 1, &request, &plan_before, 1, context), "the same");
        kvtrim_policy_destroy(policy);
    }
    wrong_states();
    wrong_parts_of_layers();
    wrong_cells_and_pages();
    wrong_flat_caches_and_mirrors();
    wrong_pools();
    printf("%lld wrong calls\n", (long long)asked);
    kvtrim_plan_destroy(plan), kvtrim_plan_destroy(plan_before);
    kvtrim_context_destroy(context);
    return done();
}
