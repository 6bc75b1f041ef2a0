/* Copyright (c) kvtrim authors
 * SPDX-License-Identifier: MIT
 *
 * Plans carried out: in place in any memory order, flat, gathered, in pages, and keys rotated to other positions.
 */
#include "support.h"

#include <math.h>

static kvtrim_context* context;
static float before[NUMBERS], cache[NUMBERS];

static kvtrim_plan* some_plan(void) {
    static int32_t kept[100], offsets[3];
    kvtrim_plan* plan = make_plan();
    int i;
    for (i = 0; i < 40; ++i) { kept[i] = 2 * i + 1; }
    for (i = 0; i < 20; ++i) { kept[40 + i] = 3 * i; }
    offsets[1] = 40;
    offsets[2] = 60;
    ok(kvtrim_plan_assign(plan, offsets, KV_HEADS, kept), "a plan of the engine's own");
    return plan;
}

static void survivors_are_first(const kvtrim_view* view, const kvtrim_view* old, const kvtrim_plan* plan,
                                const char* what) {
    float now[DIM], then[DIM];
    int64_t h, i;
    for (h = 0; h < KV_HEADS; ++h) {
        for (i = 0; i < kept_of(plan, h); ++i) {
            ok(kvtrim_view_read(view, h, i, 1, now, DIM), what);
            ok(kvtrim_view_read(old, h, row_of(plan, h)[i], 1, then, DIM), what);
            check(memcmp(now, then, sizeof now) == 0, "survivor i is row i", what);
        }
    }
}

static void in_place(const kvtrim_plan* plan) {
    static unsigned char blocks[KV_HEADS * TOKENS * 34], old_blocks[sizeof blocks];
    kvtrim_view k, old, v;
    int order;
    size_t i;
    for (order = 0; order < 3; ++order) { /* head-major, token-major, channels apart (transposed V) */
        static const int64_t strides[3][3] = {
            {TOKENS * DIM, DIM, 1}, {DIM, KV_HEADS * DIM, 1}, {TOKENS * DIM, 1, TOKENS}};
        int a;
        memcpy(cache, keys, sizeof cache);
        memcpy(before, keys, sizeof before);
        kvtrim_view_init(&k, KVTRIM_F32, cache, KV_HEADS, TOKENS, DIM);
        for (a = 0; a < 3; ++a) { k.strides[a] = 4 * strides[order][a]; }
        old = k;
        old.data = before;
        ok(kvtrim_compact_in_place(&k, NULL, plan), "in place");
        survivors_are_first(&k, &old, plan, "in place");
    }
    for (i = 0; i < sizeof blocks; ++i) {
        blocks[i] = i % 34 < 2 ? (unsigned char)(i % 34 == 1 ? 0x34 : 0) : (unsigned char)(i * 37);
    }
    memcpy(old_blocks, blocks, sizeof blocks);
    kvtrim_view_init(&k, KVTRIM_Q8_0, blocks, KV_HEADS, TOKENS, DIM);
    old = k;
    old.data = old_blocks;
    memcpy(cache, values, sizeof cache);
    kvtrim_view_init(&v, KVTRIM_F32, cache, KV_HEADS, TOKENS, DIM);
    ok(kvtrim_compact_in_place(&k, &v, plan), "keys in blocks, values in floats");
    survivors_are_first(&k, &old, plan, "blocks");
    /* Values inside the rows of the keys (MLA) move once; values that overlap in another way are refused. */
    memcpy(cache, keys, sizeof cache);
    kvtrim_view_init(&k, KVTRIM_F32, cache, KV_HEADS, TOKENS, DIM);
    v = k;
    v.extents[2] = DIM / 2;
    ok(kvtrim_compact_in_place(&k, &v, plan), "values inside the keys");
    old = k;
    old.data = before;
    memcpy(before, keys, sizeof before);
    survivors_are_first(&k, &old, plan, "values inside the keys");
    v.data = cache + DIM / 2 + 1;
    v.extents[1] = TOKENS - 1;
    memcpy(before, cache, sizeof before);
    refused(kvtrim_compact_in_place(&k, &v, plan), KVTRIM_VIEWS_OVERLAP, "rows across rows");
    check(memcmp(before, cache, sizeof before) == 0, "nothing moved", "overlap");
}

static void flat_and_gathered(const kvtrim_plan* plan) {
    static float out[NUMBERS];
    static uint16_t halves[NUMBERS];
    kvtrim_view k, flat;
    kvtrim_plan* again = make_plan();
    static const int32_t offsets[] = {0, 1, 2}, kept[] = {39, 0};
    int64_t h, i, n = 0;
    memcpy(cache, keys, sizeof cache);
    kvtrim_view_init(&k, KVTRIM_F32, cache, KV_HEADS, TOKENS, DIM);
    ok(kvtrim_gather(&k, plan, KVTRIM_F32, out, sizeof out), "gather");
    ok(kvtrim_gather(&k, plan, KVTRIM_BF16, halves, sizeof halves), "gather as bf16");
    ok(kvtrim_compact_to_flat(&k, NULL, plan), "flat");
    for (h = 0; h < KV_HEADS; ++h) {
        for (i = 0; i < kept_of(plan, h); ++i, ++n) {
            const float* row = keys + (h * TOKENS + row_of(plan, h)[i]) * DIM;
            uint32_t bits = (uint32_t)halves[n * DIM + 5] << 16;
            check(memcmp(out + n * DIM, row, DIM * sizeof(float)) == 0, "survivors follow each other",
                  "gather");
            check(memcmp(cache + n * DIM, row, DIM * sizeof(float)) == 0, "survivors follow each other",
                  "flat");
            check(memcmp(&bits, row + 5, 4) == 0, "quarters are exact in bf16", "gather");
        }
    }
    kvtrim_view_init(&flat, KVTRIM_F32, cache, KV_HEADS, 0, DIM);
    flat.layout = KVTRIM_RAGGED;
    flat.indptr = kvtrim_plan_offsets(plan);
    ok(kvtrim_view_validate(&flat), "the flat view");
    ok(kvtrim_plan_assign(again, offsets, 2, kept), "a second cut");
    ok(kvtrim_compact_to_flat(&flat, NULL, again), "a flat cache is cut again");
    check(memcmp(cache, keys + 79 * DIM, DIM * sizeof(float)) == 0 &&
              memcmp(cache + DIM, keys + TOKENS * DIM, DIM * sizeof(float)) == 0,
          "its survivors are first", "flat again");
    refused(kvtrim_gather(&k, plan, KVTRIM_F32, out, 59 * DIM * 4), KVTRIM_NO_ROOM, "room for 59 rows of 60");
    refused(kvtrim_gather(&k, plan, KVTRIM_F32, cache + 8, 60 * DIM * 4), KVTRIM_VIEWS_OVERLAP,
            "an output inside the cache");
    refused(kvtrim_gather(&k, plan, KVTRIM_Q8_0, out, sizeof out), KVTRIM_INVALID_PARAMETER,
            "an output of blocks");
    kvtrim_view_init(&k, KVTRIM_I8, cache, KV_HEADS, TOKENS, DIM);
    k.scales = cache + 4; /* one for all, in a row that moves */
    memcpy(out, cache, sizeof cache);
    refused(kvtrim_compact_to_flat(&k, NULL, plan), KVTRIM_VIEWS_OVERLAP, "scales among the rows, flat");
    refused(kvtrim_compact_in_place(&k, NULL, plan), KVTRIM_VIEWS_OVERLAP, "scales among the rows, in place");
    check(memcmp(out, cache, sizeof cache) == 0, "nothing moved", "scales among the rows");
    kvtrim_plan_destroy(again);
}

/* Blocks, and codes with scales of their rows or of their heads, become flat as floats do, and stay what they were. */
static void flat_of_any_element(const kvtrim_plan* plan) {
    static unsigned char codes[KV_HEADS * TOKENS * DIM * 2], old_codes[sizeof codes];
    static float scales[2][KV_HEADS * TOKENS], old_scales[2][KV_HEADS * TOKENS];
    static const int32_t elements[] = {KVTRIM_Q8_0, KVTRIM_Q4_0, KVTRIM_I8, KVTRIM_F8_E4M3, KVTRIM_BF16};
    kvtrim_view k, old, flat;
    size_t i;
    int e;
    for (e = 0; e < 5; ++e) {
        const int with_scales = elements[e] == KVTRIM_I8 || elements[e] == KVTRIM_F8_E4M3;
        const int per_row = elements[e] == KVTRIM_I8;
        for (i = 0; i < sizeof codes; ++i) { codes[i] = (unsigned char)(i * 37 % 101 + i / 101 % 20); }
        for (i = 0; i < KV_HEADS * TOKENS; ++i) {
            scales[0][i] = 0.5f + (float)(i % 17);
            scales[1][i] = (float)(i % 13);
        }
        memcpy(old_codes, codes, sizeof codes);
        memcpy(old_scales, scales, sizeof scales);
        kvtrim_view_init(&k, elements[e], codes, KV_HEADS, TOKENS, DIM);
        if (with_scales) {
            k.scales = scales[0];
            k.zeros = scales[1];
            k.scale_strides[0] = per_row ? TOKENS * 4 : 4;
            k.scale_strides[1] = per_row ? 4 : 0;
        }
        old = flat = k;
        old.data = old_codes;
        if (with_scales) { old.scales = old_scales[0], old.zeros = old_scales[1]; }
        if (per_row) {
            k.scale_strides[1] = 8;
            k.scale_strides[0] = KV_HEADS * TOKENS;
            refused(kvtrim_compact_to_flat(&k, NULL, plan), KVTRIM_INVALID_PARAMETER, "scales with gaps");
            k = flat;
            k.zeros = scales[0] + 1;
            refused(kvtrim_compact_to_flat(&k, NULL, plan), KVTRIM_VIEWS_OVERLAP, "zeros among scales");
            k = flat;
            check(memcmp(codes, old_codes, sizeof codes) == 0 &&
                      memcmp(scales, old_scales, sizeof scales) == 0,
                  "nothing moved", "flat");
        }
        ok(kvtrim_compact_to_flat(&k, e % 2 == 0 ? NULL : &k, plan), "flat, and one array as both once");
        flat.layout = KVTRIM_RAGGED;
        flat.indptr = kvtrim_plan_offsets(plan);
        if (per_row) { flat.scale_strides[0] = 0; }
        survivors_are_first(&flat, &old, plan, "flat of any element");
    }
    kvtrim_view_init(&k, KVTRIM_F32, cache, KV_HEADS, TOKENS, DIM);
    k.strides[1] = 4;
    k.strides[2] = TOKENS * 4;
    refused(kvtrim_compact_to_flat(&k, NULL, plan), KVTRIM_INVALID_PARAMETER, "channels apart");
}

/* Moves rows of an array of floats as _spread says. */
static void carry_out(float* array, const int64_t* moves, int64_t count) {
    for (; count >= 3; moves += 3, count -= 3) {
        memmove(array + moves[1] * DIM, array + moves[0] * DIM, (size_t)(moves[2] * DIM) * sizeof(float));
    }
}

/* A flat cache is cut in its place, grows into the room, and is spread over more memory when there is none. */
static void flat_caches_grow(const kvtrim_plan* plan) {
    enum { ROWS = 2 * KV_HEADS * TOKENS };
    static float memory[ROWS * DIM];
    static const int32_t offsets[] = {0, 2, 3}, kept[] = {0, 39, 7};
    kvtrim_plan* second = make_plan();
    kvtrim_flat* flat = NULL;
    kvtrim_view view;
    kvtrim_status s;
    kvtrim_ints begins, lengths;
    int64_t moves[3 * KV_HEADS], count = -1, rows, h, i;
    float row[DIM];
    ok(kvtrim_flat_create(1, 0, &flat), "a flat cache");
    memcpy(memory, keys, sizeof keys);
    kvtrim_view_init(&view, KVTRIM_F32, memory, KV_HEADS, TOKENS, DIM);
    ok(kvtrim_compact_to_flat(&view, NULL, plan), "flat");
    ok(kvtrim_flat_assign(flat, plan), "its table");
    begins = kvtrim_flat_begins(flat), lengths = kvtrim_flat_lengths(flat);
    check(begins.count == 3 && begins.data[1] == 40 && begins.data[2] == 60 && lengths.data[0] == 40 &&
              lengths.data[1] == 20,
          "the plan's offsets", "flat");
    s = kvtrim_flat_append(flat, 1);
    refused(s, KVTRIM_NO_ROOM, "a token");
    rows = s.needed;
    check(rows == 60 + 2 * 8, "a quarter of the mean is reserved",
          "flat"); /* ceil(60 / 2 / 4) for each head */
    refused(kvtrim_flat_spread(flat, rows, NULL, 0, &count), KVTRIM_NO_ROOM, "how many moves");
    check(count == 3 && kvtrim_flat_begins(flat).data[1] == 40, "one head moves", "flat");
    ok(kvtrim_flat_spread(flat, rows, moves, 6, &count), "spread");
    carry_out(memory, moves, count);
    ok(kvtrim_flat_append(flat, 1), "a token");
    begins = kvtrim_flat_begins(flat);
    check(begins.data[1] == 48 && begins.data[2] == rows && kvtrim_flat_lengths(flat).data[1] == 21,
          "room behind each head", "flat");
    for (h = 0; h < KV_HEADS; ++h) { /* the new token, a row of threes */
        for (i = 0; i < DIM; ++i) {
            memory[(begins.data[h] + kvtrim_flat_lengths(flat).data[h] - 1) * DIM + i] = 3;
        }
    }
    kvtrim_view_init(&view, KVTRIM_F32, memory, 0, 0, DIM);
    ok(kvtrim_flat_view(flat, &view), "a view");
    for (h = 0; h < KV_HEADS; ++h) {
        for (i = 0; i < kept_of(plan, h); ++i) {
            ok(kvtrim_view_read(&view, h, i, 1, row, DIM), "a survivor");
            check(memcmp(row, keys + (h * TOKENS + row_of(plan, h)[i]) * DIM, sizeof row) == 0,
                  "is where the table says", "flat");
        }
        ok(kvtrim_view_read(&view, h, i, 1, row, DIM), "the new token");
        check(row[5] == 3, "is behind them", "flat");
        refused(kvtrim_view_read(&view, h, i + 1, 1, row, DIM), KVTRIM_INVALID_PARAMETER, "room is no row");
    }
    ok(kvtrim_plan_assign(second, offsets, KV_HEADS, kept), "a second cut");
    ok(kvtrim_compact_in_place(&view, NULL, second), "in its place");
    ok(kvtrim_flat_compact(flat, second), "its table");
    ok(kvtrim_flat_view(flat, &view), "a view");
    check(kvtrim_flat_begins(flat).data[1] == 48 && kvtrim_flat_lengths(flat).data[0] == 2,
          "heads keep their places", "flat");
    ok(kvtrim_view_read(&view, 0, 1, 1, row, DIM), "a survivor");
    check(memcmp(row, keys + 79 * DIM, sizeof row) == 0, "is the second row", "flat");
    ok(kvtrim_view_read(&view, 1, 0, 1, row, DIM), "a survivor");
    check(memcmp(row, keys + (TOKENS + 21) * DIM, sizeof row) == 0, "is the first row of its head", "flat");
    ok(kvtrim_flat_append(flat, 27), "what went is room"); /* 28 rows of head 1, of which it has one */
    refused(kvtrim_flat_append(flat, 1), KVTRIM_NO_ROOM, "and no more");
    refused(kvtrim_flat_compact(flat, plan), KVTRIM_PLAN_MISMATCH, "a plan of another cache");
    kvtrim_flat_destroy(flat);
    kvtrim_plan_destroy(second);
}

/* Ragged rows of blocks and of codes with a scale each move with what belongs to them. */
static void ragged_rows_in_place(void) {
    static const int32_t indptr[] = {0, 3, 6}, offsets[] = {0, 2, 3}, kept[] = {0, 2, 1};
    static signed char codes[6 * DIM];
    static float scales[6];
    float row[DIM];
    kvtrim_plan* plan = make_plan();
    kvtrim_view v;
    int i;
    for (i = 0; i < 6 * DIM; ++i) { codes[i] = (signed char)(i / DIM + 1); }
    for (i = 0; i < 6; ++i) { scales[i] = (float)(i + 1); }
    kvtrim_view_init(&v, KVTRIM_I8, codes, KV_HEADS, 0, DIM);
    v.layout = KVTRIM_RAGGED, v.indptr = indptr, v.scales = scales, v.scale_strides[1] = 4;
    ok(kvtrim_plan_assign(plan, offsets, KV_HEADS, kept), "a plan");
    ok(kvtrim_compact_in_place(&v, NULL, plan), "codes");
    ok(kvtrim_view_read(&v, 0, 1, 1, row, DIM), "a survivor");
    check(row[0] == 9, "row 2 of head 0, 3 * 3", "ragged");
    ok(kvtrim_view_read(&v, 1, 0, 1, row, DIM), "a survivor");
    check(row[DIM - 1] == 25, "row 1 of head 1, 5 * 5", "ragged");
    kvtrim_plan_destroy(plan);
}

static void shared_sets(const kvtrim_plan* plan) {
    kvtrim_plan* shared = make_plan();
    ok(kvtrim_plan_share(plan, TOKENS, 0, shared, context), "the union");
    check(kept_of(shared, 0) == 50 && kept_of(shared, 1) == 50, "what some head keeps",
          "share"); /* 40 + 20 - 10 common */
    ok(kvtrim_plan_share(plan, TOKENS, 10, shared, context), "the most wanted");
    check(kept_of(shared, 0) == 10 && row_of(shared, 0)[0] == 3 && row_of(shared, 0)[9] == 57,
          "what both heads keep", "share");
    refused(kvtrim_plan_share(plan, 50, 0, shared, context), KVTRIM_PLAN_MISMATCH, "a shorter cache");
    kvtrim_plan_destroy(shared);
}

/* Codes move with the scales and zeros that tokens have of their own: slot 10 to slot 22, with one channel's scales beside. */
static void codes_in_pages(const kvtrim_moves* moves) {
    static signed char codes[8 * 4 * 2];
    static float scales[8 * 4 * 2], zeros[8 * 4 * 2];
    kvtrim_view k, v;
    int i;
    for (i = 0; i < 64; ++i) {
        codes[i] = (signed char)i, scales[i] = (float)(100 + i), zeros[i] = (float)(200 + i);
    }
    kvtrim_view_init(&k, KVTRIM_I8, codes, 1, 0, 2);
    k.layout = KVTRIM_PAGED;
    k.page_tokens = 4, k.pages = 8, k.page_stride = 8, k.strides[0] = 2, k.strides[1] = 2, k.strides[2] = 1;
    k.scales = scales, k.zeros = zeros;
    k.scale_page_stride = 32, k.scale_strides[0] = 8, k.scale_strides[1] = 8, k.scale_strides[2] = 4;
    v = k; /* the same rows: they move once */
    ok(kvtrim_moves_run(moves, &k, &v, context), "codes");
    check(codes[44] == 20 && codes[45] == 21 && codes[46] == 46, "the codes moved", "codes in pages");
    check(scales[44] == 120 && scales[45] == 121 && scales[43] == 143 && zeros[44] == 220 && zeros[46] == 246,
          "and what decodes them", "codes in pages");
    k.scale_strides[2] = 0; /* one for all channels */
    k.scales[20] = 7;
    ok(kvtrim_moves_run(moves, &k, NULL, context), "a scale a token");
    check(scales[44] == 7 && scales[45] == 121, "one number moved", "codes in pages");
    codes[20] = 99, k.scale_strides[1] = 0;
    refused(kvtrim_moves_run(moves, &k, NULL, context), KVTRIM_INVALID_PARAMETER, "a scale a page");
    k.scale_strides[1] = 8, k.scale_strides[2] = 8;
    refused(kvtrim_moves_run(moves, &k, NULL, context), KVTRIM_INVALID_PARAMETER, "scales that are apart");
    k.scale_strides[2] = 4, k.zeros = scales + 1;
    refused(kvtrim_moves_run(moves, &k, NULL, context), KVTRIM_VIEWS_OVERLAP, "zeros over scales");
    check(codes[44] == 20, "nothing moved", "codes in pages");
    k.zeros = NULL, k.scale_page_stride = 0, k.scale_strides[1] = 0;
    ok(kvtrim_moves_run(moves, &k, NULL, context), "scales that all tokens share");
    check(codes[44] == 99 && scales[44] == 7, "codes alone", "codes in pages");
}

/* The example of compact/plan_page_moves.hpp: one survivor fills the only hole. */
static void pages(void) {
    static const int32_t indptr[] = {0, 3}, indices[] = {5, 2, 7}, last[] = {3};
    static const int32_t offsets[] = {0, 7}, kept[] = {0, 1, 3, 6, 8, 9, 10},
                         origins[] = {0, 1, 6, 3, 8, 9, 10};
    static float pool[8 * 4 * 2], values_pool[8 * 4];
    kvtrim_page_pool p;
    kvtrim_plan* plan = make_plan();
    kvtrim_moves* moves = NULL;
    kvtrim_view k, v;
    kvtrim_ints list;
    int i;
    for (i = 0; i < 64; ++i) { pool[i] = (float)i; }
    for (i = 0; i < 32; ++i) { values_pool[i] = (float)(100 + i); }
    memset(&p, 0, sizeof p);
    p.size = sizeof p;
    p.indptr = indptr, p.indices = indices, p.index_count = 3, p.last_page = last, p.table_rows = 1;
    p.pages = 8, p.page_tokens = 4, p.heads = 1;
    ok(kvtrim_plan_assign(plan, offsets, 1, kept), "a plan");
    ok(kvtrim_moves_create(&moves), "moves");
    ok(kvtrim_moves_plan(moves, plan, &p, context), "moves");
    list = kvtrim_moves_of_row(moves, 0);
    check(list.count == 2 && list.data[0] == 10 && list.data[1] == 22, "one move", "moves");
    list = kvtrim_moves_origins(moves, 0);
    check(list.count == 7 && memcmp(list.data, origins, sizeof origins) == 0, "what each slot holds",
          "origins");
    list = kvtrim_moves_freed(moves);
    check(list.count == 1 && list.data[0] == 2 && kvtrim_moves_released(moves).count == 0, "a page is free",
          "freed");
    list = kvtrim_moves_indices(moves);
    check(list.count == 2 && list.data[0] == 5 && list.data[1] == 7 &&
              kvtrim_moves_indptr(moves).data[1] == 2 && kvtrim_moves_last_page(moves).data[0] == 3 &&
              kvtrim_moves_taken(moves) == 0,
          "the new table", "table");
    kvtrim_view_init(&k, KVTRIM_F32, pool, 1, 0, 2);
    k.layout = KVTRIM_PAGED;
    k.page_tokens = 4, k.pages = 8, k.page_stride = 32, k.strides[0] = 8, k.strides[1] = 8;
    kvtrim_view_init(&v, KVTRIM_F32, values_pool, 1, 0, 1);
    v.layout = KVTRIM_PAGED;
    v.page_tokens = 4, v.pages = 8, v.page_stride = 16, v.strides[0] = 4, v.strides[1] = 4;
    ok(kvtrim_moves_run(moves, &k, &v, context), "run");
    check(pool[44] == 20 && pool[45] == 21 && values_pool[22] == 110 && pool[46] == 46, "the row was copied",
          "run");
    k.pages = 7; /* slot 22 is there, page 7 of the table is not */
    refused(kvtrim_moves_run(moves, &k, NULL, context), KVTRIM_PLAN_MISMATCH, "a smaller pool");
    codes_in_pages(moves);
    p.order = KVTRIM_IN_ORDER;
    ok(kvtrim_moves_plan(moves, plan, &p, context), "in order");
    check(kvtrim_moves_of_row(moves, 0).count == 10, "five moves", "in order");
    kvtrim_moves_destroy(moves);
    kvtrim_plan_destroy(plan);
}

static void rotated_keys(void) {
    static const float frequency[] = {0.5f, 0.25f};
    static const int32_t offsets[] = {0, 2}, from[] = {0, 7}, to[] = {0, 3};
    kvtrim_rope rope = {sizeof rope, NULL, 2, 0, 0};
    float rows[] = {1, 2, 3, 4, 5, 1, 2, 3, 4, 5};
    double turn = -6 * 0.5;
    kvtrim_view k;
    rope.inverse_frequencies = frequency;
    kvtrim_view_init(&k, KVTRIM_F32, rows, 1, 2, 5);
    ok(kvtrim_rerotate_keys(&k, &rope, offsets, from, NULL, context), "closed up: 7 becomes 1");
    check(rows[0] == 1 && rows[3] == 4 && rows[4] == 5, "a row that stays", "rerotate");
    check(fabs((double)rows[5] - (1 * cos(turn) - 3 * sin(turn))) < 1e-5 &&
              fabs((double)rows[7] - (3 * cos(turn) + 1 * sin(turn))) < 1e-5 && rows[9] == 5,
          "half-split pairs turn", "rerotate");
    rope.interleaved = 1;
    turn = -4 * 0.5;
    rows[5] = 1, rows[6] = 2;
    ok(kvtrim_rerotate_keys(&k, &rope, offsets, from, to, context), "7 becomes 3");
    check(fabs((double)rows[5] - (1 * cos(turn) - 2 * sin(turn))) < 1e-5, "interleaved pairs turn",
          "rerotate");
    k.element = KVTRIM_IQ4_NL; /* 18 bytes of the 40 */
    k.extents[1] = 1, k.extents[2] = 32, k.strides[2] = 18;
    {
        static const int32_t one[] = {0, 1};
        refused(kvtrim_rerotate_keys(&k, &rope, one, from, NULL, context), KVTRIM_INVALID_PARAMETER,
                "blocks that are only read");
    }
}

int main(void) {
    kvtrim_plan* plan;
    use_all();
    fill();
    context = make_context();
    plan = some_plan();
    in_place(plan);
    flat_and_gathered(plan);
    flat_of_any_element(plan);
    flat_caches_grow(plan);
    ragged_rows_in_place();
    shared_sets(plan);
    pages();
    rotated_keys();
    kvtrim_plan_destroy(plan);
    kvtrim_context_destroy(context);
    return done();
}
