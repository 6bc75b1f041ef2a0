/* Copyright (c) kvtrim authors
 * SPDX-License-Identifier: MIT
 *
 * Every layout and element: the rows that are read, and the plan that is made, are those of the same numbers in strided floats.
 */
#include "support.h"

static unsigned char bytes[4 * NUMBERS + 64];
static float scales[KV_HEADS * TOKENS];
static int32_t indices[TOKENS], indptr[KV_HEADS + 1], last_page[KV_HEADS];

static uint16_t bf16_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (uint16_t)(bits >> 16);
}
static uint16_t f16_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffffu) == 0) { return (uint16_t)(bits >> 16); }
    return (uint16_t)(((bits >> 16) & 0x8000u) | (((bits & 0x7fffffffu) - 0x38000000u) >> 13));
}
static unsigned char e4m3_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffffu) == 0) { return 0; }
    return (unsigned char)(((bits >> 24) & 0x80u) | (((bits & 0x7fffffffu) - (120u << 23)) >> 20));
}
static int code_of(float x) {
    return (int)(x * 4);
}

/* 8-bit codes of a row are those of its numbers times this, of which the scale takes it away. */
static float code_times = 1;

/* Bytes of a row of DIM channels. */
static size_t row_bytes(int element) {
    static const size_t sizes[] = {128, 64, 64, 34, 18, 20, 22, 24, 18, 32, 32, 32};
    return sizes[element];
}
static void write_row(int element, const float* row, unsigned char* to) {
    static const unsigned char quarter[2] = {0x00, 0x34}; /* as f16 */
    static const unsigned char minus_two[2] = {0x00, 0xc0};
    float scaled[DIM];
    int d;
    for (d = 0; d < DIM; ++d) { scaled[d] = row[d] * code_times; }
    if (element >= KVTRIM_I8) { row = scaled; }
    if (element >= KVTRIM_Q8_0 && element <= KVTRIM_Q5_1) {
        memset(to, 0, row_bytes(element));
        memcpy(to, quarter, 2);
        to += 2;
    }
    if (element == KVTRIM_Q4_1 || element == KVTRIM_Q5_1) {
        memcpy(to, minus_two, 2);
        to += 2;
    }
    for (d = 0; d < DIM; ++d) {
        const int code = code_of(row[d]);
        uint16_t half = 0;
        switch (element) {
        case KVTRIM_F32:
            memcpy(to + 4 * d, row + d, 4);
            break;
        case KVTRIM_F16:
            half = f16_of(row[d]);
            memcpy(to + 2 * d, &half, 2);
            break;
        case KVTRIM_BF16:
            half = bf16_of(row[d]);
            memcpy(to + 2 * d, &half, 2);
            break;
        case KVTRIM_Q8_0:
        case KVTRIM_I8:
            to[d] = (unsigned char)(signed char)code;
            break;
        case KVTRIM_F8_E4M3:
            to[d] = e4m3_of(row[d]);
            break;
        case KVTRIM_F8_E5M2:
            to[d] = (unsigned char)(f16_of(row[d]) >> 8);
            break;
        case KVTRIM_Q4_0:
        case KVTRIM_Q4_1:
            to[d % 16] = (unsigned char)(to[d % 16] | ((code + 8) << (d < 16 ? 0 : 4)));
            break;
        default: { /* Q5_0: code + 16 of 5 bits; Q5_1: code + 8, its fifth bit is 0 */
            const int five = element == KVTRIM_Q5_0 ? code + 16 : code + 8;
            to[4 + d % 16] = (unsigned char)(to[4 + d % 16] | ((five & 15) << (d < 16 ? 0 : 4)));
            to[d / 8] = (unsigned char)(to[d / 8] | ((five >> 4) << (d % 8)));
        }
        }
    }
}

static const float* key(int64_t head, int64_t token) {
    return keys + (head * TOKENS + token) * DIM;
}

/* A key, and its scale: each row has another than its neighbours. */
static void write_key(int element, int64_t head, int64_t token, int64_t byte, int64_t scale) {
    code_times = (float)(1 << (head + token) % 3);
    write_row(element, key(head, token), bytes + byte);
    scales[scale] = (element == KVTRIM_I8 ? 0.25f : 1.0f) / code_times;
}

/* Rows head by head. */
static kvtrim_view strided(int element) {
    kvtrim_view v;
    int64_t h, t;
    for (h = 0; h < KV_HEADS; ++h) {
        for (t = 0; t < TOKENS; ++t) {
            write_key(element, h, t, (h * TOKENS + t) * (int64_t)row_bytes(element), h * TOKENS + t);
        }
    }
    kvtrim_view_init(&v, element, bytes, KV_HEADS, TOKENS, DIM);
    if (element >= KVTRIM_I8) {
        v.scales = scales;
        v.scale_strides[0] = TOKENS * (int64_t)sizeof(float);
        v.scale_strides[1] = (int64_t)sizeof(float);
    }
    return v;
}

/* Token t in cell (7 t) mod TOKENS, heads of a token side by side. */
static kvtrim_view indexed(int element) {
    kvtrim_view v = strided(element);
    const int64_t row = (int64_t)row_bytes(element);
    int64_t h, t;
    for (t = 0; t < TOKENS; ++t) {
        indices[t] = (int32_t)((7 * t) % TOKENS);
        for (h = 0; h < KV_HEADS; ++h) {
            write_key(element, h, t, (indices[t] * KV_HEADS + h) * row, h * TOKENS + indices[t]);
        }
    }
    v.layout = KVTRIM_INDEXED;
    v.strides[0] = row;
    v.strides[1] = row * KV_HEADS;
    v.indices = indices;
    v.index_count = TOKENS;
    return v;
}

/* Pages of 16 tokens in reverse order. */
static kvtrim_view paged(int element, int per_head) {
    kvtrim_view v;
    const int64_t row = (int64_t)row_bytes(element), of_row = TOKENS / 16, heads = per_head ? 1 : KV_HEADS;
    int64_t h, t;
    kvtrim_view_init(&v, element, bytes, KV_HEADS, 0, DIM);
    v.layout = per_head ? KVTRIM_PAGED_PER_HEAD : KVTRIM_PAGED;
    v.page_tokens = 16;
    v.pages = per_head ? KV_HEADS * of_row : of_row;
    v.strides[0] = row;
    v.strides[1] = per_head ? row : row * KV_HEADS;
    v.page_stride = 16 * v.strides[1];
    for (h = 0; h < (per_head ? KV_HEADS : 1); ++h) {
        indptr[h] = (int32_t)(h * of_row);
        last_page[h] = 16;
        for (t = 0; t < of_row; ++t) { indices[h * of_row + t] = (int32_t)(v.pages - 1 - h * of_row - t); }
    }
    indptr[h] = (int32_t)(h * of_row);
    for (h = 0; h < KV_HEADS; ++h) {
        for (t = 0; t < TOKENS; ++t) {
            const int64_t page = indices[(per_head ? h * of_row : 0) + t / 16];
            const int64_t slot = page * 16 + t % 16, of_slot = per_head ? 0 : h;
            write_key(element, h, t, slot * v.strides[1] + of_slot * row, slot * heads + of_slot);
        }
    }
    v.indices = indices;
    v.index_count = v.pages;
    v.indptr = indptr;
    v.last_page = last_page;
    v.table_rows = per_head ? KV_HEADS : 1;
    if (element >= KVTRIM_I8) {
        v.scales = scales;
        v.scale_strides[0] = (int64_t)sizeof(float);
        v.scale_strides[1] = heads * (int64_t)sizeof(float);
        v.scale_page_stride = 16 * v.scale_strides[1];
    }
    return v;
}

static kvtrim_view ragged(int element) {
    kvtrim_view v = strided(element);
    indptr[0] = 0;
    indptr[1] = TOKENS;
    indptr[2] = 2 * TOKENS;
    v.layout = KVTRIM_RAGGED;
    v.indptr = indptr;
    v.scale_strides[0] = 0; /* a scale for each row of all heads */
    return v;
}

static void same_as_floats(kvtrim_view view, const kvtrim_plan* expected, kvtrim_context* context,
                           const char* what) {
    static float rows[TOKENS * DIM];
    layer_of_test t;
    const kvtrim_request r = make_request();
    kvtrim_policy* policy = make_policy("ada_snapkv", NULL);
    kvtrim_plan* plan = make_plan();
    int64_t h;
    ok(kvtrim_view_validate(&view), what);
    for (h = 0; h < KV_HEADS; ++h) {
        ok(kvtrim_view_read(&view, h, 3, TOKENS - 3, rows, TOKENS * DIM), what);
        check(memcmp(rows, key(h, 3), (TOKENS - 3) * DIM * sizeof(float)) == 0,
              "rows are those of the floats", what);
    }
    make_layer(&t);
    t.keys = view;
    ok(kvtrim_plan_layers(policy, &t.layer, 1, &r, &plan, 1, context), what);
    check(same_plan(plan, expected), "the plan is that of the floats", what);
    kvtrim_plan_destroy(plan);
    kvtrim_policy_destroy(policy);
}

/* Keys of pages and of ragged rows are rotated, and gathered, as those of strided rows. */
static void written_as_strided_rows(int element, kvtrim_context* context) {
    static float expected[NUMBERS], rows[NUMBERS], gathered[NUMBERS];
    static int32_t offsets[KV_HEADS + 1], from[KV_HEADS * TOKENS], kept[KV_HEADS * TOKENS];
    static const float frequencies[DIM / 4] = {0.5f, 0.25f, 0.125f, 0.0625f, 0.03125f, 0.01f, 0.003f, 0.001f};
    kvtrim_rope rope = {sizeof rope, frequencies, DIM / 4, 0, 0};
    const int is_read_only = KVTRIM_Q4_1 <= element && element <= KVTRIM_Q5_1; /* no encoder */
    kvtrim_plan* plan = make_plan();
    int layout;
    int64_t i;
    for (i = 0; i < KV_HEADS * TOKENS; ++i) {
        kept[i] = (int32_t)(i % TOKENS);
        from[i] = 2 * kept[i];
    }
    offsets[1] = TOKENS, offsets[2] = 2 * TOKENS;
    ok(kvtrim_plan_assign(plan, offsets, KV_HEADS, kept), "all rows");
    for (layout = 0; layout < 4; ++layout) {
        kvtrim_view v = layout == 0   ? strided(element)
                        : layout == 1 ? paged(element, 0)
                        : layout == 2 ? paged(element, 1)
                                      : ragged(element);
        float* const to = layout == 0 ? expected : rows;
        offsets[1] = TOKENS, offsets[2] = 2 * TOKENS; /* that of ragged() is another table */
        if (is_read_only) {
            refused(kvtrim_rerotate_keys(&v, &rope, offsets, from, NULL, context), KVTRIM_INVALID_PARAMETER,
                    "blocks that are only read");
            memcpy(expected, keys, sizeof rows);
        } else {
            ok(kvtrim_rerotate_keys(&v, &rope, offsets, from, NULL, context), "rotation");
            memset(to, 0, sizeof rows);
        }
        for (i = 0; i < KV_HEADS; ++i) {
            ok(kvtrim_view_read(&v, i, 0, TOKENS, to + i * TOKENS * DIM, TOKENS * DIM), "rows");
        }
        check(memcmp(to, expected, sizeof rows) == 0, "rotated rows are those of strided rows", "written");
        check((memcmp(to, keys, sizeof rows) == 0) == is_read_only, "they were rotated", "written");
        ok(kvtrim_gather(&v, plan, KVTRIM_F32, gathered, sizeof gathered), "gather");
        check(memcmp(gathered, expected, sizeof rows) == 0, "gathered rows too", "written");
    }
    kvtrim_plan_destroy(plan);
}

/* What a caller that was compiled before a member came passes on. */
static void structs_of_the_first_version(kvtrim_plan* expected, kvtrim_context* context) {
    struct { /* as kvtrim_layer was: no scores, means, norms */
        size_t size;
        const void* members[8];
    } old[2];
    layer_of_test t;
    kvtrim_request r = make_request();
    kvtrim_policy *policy = make_policy("ada_snapkv", NULL), *layered = make_policy("layer_ada_snapkv", NULL);
    kvtrim_plan* plans[2] = {make_plan(), make_plan()};
    kvtrim_layer both[2];
    kvtrim_plan* again[2] = {make_plan(), make_plan()};
    make_layer(&t);
    memcpy(&old[0], &t.layer, sizeof old[0]);
    old[0].size = sizeof old[0];
    old[1] = old[0];
    t.keys.size = offsetof(kvtrim_view, scale_page_stride);
    r.size = offsetof(kvtrim_request, profile);
    ok(kvtrim_plan_layers(policy, (const kvtrim_layer*)(const void*)old, 1, &r, plans, 1, context),
       "old structs");
    check(same_plan(plans[0], expected), "they say the same", "versions");
    ok(kvtrim_plan_layers(layered, (const kvtrim_layer*)(const void*)old, 2, &r, plans, 2, context),
       "an array of them");
    both[0] = both[1] = t.layer;
    ok(kvtrim_plan_layers(layered, both, 2, &r, again, 2, context), "an array of today's");
    check(same_plan(plans[0], again[0]) && same_plan(plans[1], again[1]), "they lie at their own distance",
          "versions");
    both[1].size = sizeof old[0];
    refused(kvtrim_plan_layers(layered, both, 2, &r, again, 2, context), KVTRIM_INVALID_PARAMETER,
            "an array of both");
    t.keys.size -= 4;
    refused(kvtrim_view_validate(&t.keys), KVTRIM_INVALID_PARAMETER, "a struct of no version");
    kvtrim_plan_destroy(plans[0]), kvtrim_plan_destroy(plans[1]);
    kvtrim_plan_destroy(again[0]), kvtrim_plan_destroy(again[1]);
    kvtrim_policy_destroy(policy), kvtrim_policy_destroy(layered);
}

static void heads_of_different_lengths(kvtrim_context* context) {
    static const int64_t lengths[KV_HEADS] = {TOKENS, 50};
    static const int64_t too_long[KV_HEADS] = {TOKENS, TOKENS + 1};
    layer_of_test t;
    kvtrim_request r = make_request();
    kvtrim_policy* policy = make_policy("streaming_llm", NULL);
    kvtrim_plan* plan = make_plan();
    make_layer(&t);
    t.keys.lengths = lengths;
    r.budget_tokens = 45;
    ok(kvtrim_plan_layers(policy, &t.layer, 1, &r, &plan, 1, context), "lengths");
    check(row_of(plan, 0)[kept_of(plan, 0) - 1] == TOKENS - 1 && row_of(plan, 1)[kept_of(plan, 1) - 1] == 49,
          "each head keeps its own newest row", "lengths");
    t.keys.lengths = too_long;
    refused(kvtrim_view_validate(&t.keys), KVTRIM_INVALID_PARAMETER, "a length beyond the rows");
    kvtrim_plan_destroy(plan);
    kvtrim_policy_destroy(policy);
}

static void cells_of_a_sequence(void) {
    static const int32_t positions[] = {4, -1, 0, 1, 9, 2}, uses[] = {1, 0, 2, 2, 0, 1};
    int32_t cells[6] = {0};
    int64_t listed = 0, shared = 0;
    ok(kvtrim_list_cells(positions, uses, 6, 0, cells, 6, &listed, &shared), "cells");
    check(listed == 4 && shared == 2 && cells[0] == 2 && cells[1] == 3 && cells[2] == 5 && cells[3] == 0,
          "cells ascend in position", "cells");
    ok(kvtrim_list_cells(positions, uses, 6, 1, cells, 6, &listed, NULL), "own cells");
    check(listed == 2 && cells[0] == 5 && cells[1] == 0, "shared cells are left out", "cells");
    refused(kvtrim_list_cells(positions, uses, 6, 0, cells, 5, &listed, &shared), KVTRIM_NO_ROOM,
            "room for 5");
}

static void library_says_what_it_is(void) {
    const char* const level = kvtrim_cpu_level();
    const size_t length = strspn(level, "abcdefghijklmnopqrstuvwxyz0123456789_");
    check(length > 0 && level[length] == '\0' && strcmp(level, "unknown") != 0,
          "a name that KVTRIM_CPU_LEVEL takes", level);
    check(strcmp(kvtrim_cpu_level(), level) == 0, "the same when it is asked again", level);
    check(strcmp(kvtrim_version(), KVTRIM_EXPECTED_VERSION) == 0, "the version of the sources",
          kvtrim_version());
    check(kvtrim_api_version() == KVTRIM_C_API_VERSION, "the interface of the header", "version");
}

int main(void) {
    kvtrim_context* context = make_context();
    kvtrim_policy* policy = make_policy("ada_snapkv", NULL);
    kvtrim_plan* expected = make_plan();
    const kvtrim_request r = make_request();
    layer_of_test t;
    int element;
    use_all();
    library_says_what_it_is();
    fill();
    make_layer(&t);
    ok(kvtrim_plan_layers(policy, &t.layer, 1, &r, &expected, 1, context), "floats");
    for (element = KVTRIM_F32; element <= KVTRIM_F8_E5M2; ++element) {
        if (element == KVTRIM_IQ4_NL) {
            continue;
        } /* its codes hold no quarters; read in tests/cache/ggml_rows.cpp */
        same_as_floats(strided(element), expected, context, "strided");
        same_as_floats(indexed(element), expected, context, "indexed");
        same_as_floats(paged(element, 0), expected, context, "paged");
        same_as_floats(paged(element, 1), expected, context, "paged per head");
        same_as_floats(ragged(element), expected, context, "ragged");
        written_as_strided_rows(element, context);
    }
    structs_of_the_first_version(expected, context);
    heads_of_different_lengths(context);
    cells_of_a_sequence();
    kvtrim_plan_destroy(expected);
    kvtrim_policy_destroy(policy);
    kvtrim_context_destroy(context);
    return done();
}
