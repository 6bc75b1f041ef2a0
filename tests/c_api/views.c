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

/* Bytes of a row of DIM channels. */
static size_t row_bytes(int element) {
    static const size_t sizes[] = {128, 64, 64, 34, 18, 20, 22, 24, 18, 32, 32, 32};
    return sizes[element];
}
static void write_row(int element, const float* row, unsigned char* to) {
    static const unsigned char quarter[2] = {0x00, 0x34}; /* as f16 */
    static const unsigned char minus_two[2] = {0x00, 0xc0};
    int d;
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

/* Rows head by head. */
static kvtrim_view strided(int element) {
    kvtrim_view v;
    int64_t h, t;
    for (h = 0; h < KV_HEADS; ++h) {
        for (t = 0; t < TOKENS; ++t) {
            write_row(element, key(h, t), bytes + (size_t)(h * TOKENS + t) * row_bytes(element));
        }
    }
    kvtrim_view_init(&v, element, bytes, KV_HEADS, TOKENS, DIM);
    if (element >= KVTRIM_I8) {
        for (t = 0; t < KV_HEADS * TOKENS; ++t) { scales[t] = element == KVTRIM_I8 ? 0.25f : 1.0f; }
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
            write_row(element, key(h, t), bytes + (size_t)((indices[t] * KV_HEADS + h) * row));
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
    const int64_t row = (int64_t)row_bytes(element), of_row = TOKENS / 16;
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
            write_row(
                element, key(h, t),
                bytes + (size_t)(page * v.page_stride + (t % 16) * v.strides[1] + (per_head ? 0 : h * row)));
        }
    }
    v.indices = indices;
    v.index_count = v.pages;
    v.indptr = indptr;
    v.last_page = last_page;
    v.table_rows = per_head ? KV_HEADS : 1;
    return v;
}

static kvtrim_view ragged(int element) {
    kvtrim_view v = strided(element);
    indptr[0] = 0;
    indptr[1] = TOKENS;
    indptr[2] = 2 * TOKENS;
    v.layout = KVTRIM_RAGGED;
    v.indptr = indptr;
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

int main(void) {
    kvtrim_context* context = make_context();
    kvtrim_policy* policy = make_policy("ada_snapkv", NULL);
    kvtrim_plan* expected = make_plan();
    const kvtrim_request r = make_request();
    layer_of_test t;
    int element;
    use_all();
    fill();
    make_layer(&t);
    ok(kvtrim_plan_layers(policy, &t.layer, 1, &r, &expected, 1, context), "floats");
    for (element = KVTRIM_F32; element <= KVTRIM_F8_E5M2; ++element) {
        if (element == KVTRIM_IQ4_NL) {
            continue;
        } /* its codes hold no quarters; read in tests/cache/ggml_rows.cpp */
        same_as_floats(strided(element), expected, context, "strided");
        same_as_floats(indexed(element), expected, context, "indexed");
        if (element > KVTRIM_BF16) { continue; }
        same_as_floats(paged(element, 0), expected, context, "paged");
        same_as_floats(paged(element, 1), expected, context, "paged per head");
        same_as_floats(ragged(element), expected, context, "ragged");
    }
    heads_of_different_lengths(context);
    cells_of_a_sequence();
    kvtrim_plan_destroy(expected);
    kvtrim_policy_destroy(policy);
    kvtrim_context_destroy(context);
    return done();
}
