/* Copyright (c) kvtrim authors
 * SPDX-License-Identifier: MIT
 *
 * What the C tests share: checks that go on, a layer of numbers that every element type holds exactly, and its views.
 */
#ifndef KVTRIM_TESTS_C_API_SUPPORT_H
#define KVTRIM_TESTS_C_API_SUPPORT_H

#include <kvtrim_c.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { Q_HEADS = 4, KV_HEADS = 2, TOKENS = 96, DIM = 32, WINDOW = 8, HIDDEN = 16, KEPT = 40 };
enum { NUMBERS = KV_HEADS * TOKENS * DIM };

static int failures = 0;

static void check(int holds, const char* what, const char* of) {
    if (!holds) {
        printf("FAILED: %s (%s)\n", what, of);
        ++failures;
    }
}
static void ok(kvtrim_status s, const char* what) {
    if (s.code != KVTRIM_OK) {
        printf("FAILED: %s: %d %s (needed %lld)\n", what, (int)s.code, s.text, (long long)s.needed);
        ++failures;
    }
}
static void refused(kvtrim_status s, int32_t code, const char* what) {
    if (s.code != code || s.text == NULL || s.text[0] == 0) {
        printf("FAILED: %s: answered %d instead of %d: %s\n", what, (int)s.code, (int)code, s.text);
        ++failures;
    }
}
static int done(void) {
    if (failures == 0) { printf("ok\n"); }
    return failures == 0 ? 0 : 1;
}

static float keys[NUMBERS], values[NUMBERS], queries[Q_HEADS * WINDOW * DIM],
    projection[Q_HEADS * DIM * HIDDEN];

/* Quarters in [-2, 2): the same number in every element type, in blocks with a scale of 1 / 4 too. */
static float number(size_t i) {
    const uint32_t mixed = (uint32_t)(i + 1) * 2654435761u;
    return (float)((mixed >> 20) % 16) / 4.0f - 2.0f;
}
static void fill(void) {
    size_t i;
    for (i = 0; i < NUMBERS; ++i) {
        keys[i] = number(i);
        values[i] = number(i + 100000);
    }
    for (i = 0; i < sizeof queries / sizeof *queries; ++i) { queries[i] = number(i + 200000); }
    for (i = 0; i < sizeof projection / sizeof *projection; ++i) { projection[i] = number(i + 300000); }
}

/* One layer, with all views that a policy may ask for. */
typedef struct layer_of_test {
    kvtrim_view keys, values, queries, projection;
    kvtrim_layer layer;
} layer_of_test;

static void point_layer(layer_of_test* t) {
    memset(&t->layer, 0, sizeof t->layer);
    t->layer.size = sizeof t->layer;
    t->layer.keys = &t->keys;
    t->layer.values = &t->values;
    t->layer.queries = &t->queries;
    t->layer.output_projection = &t->projection;
}
static void make_layer(layer_of_test* t) {
    kvtrim_view_init(&t->keys, KVTRIM_F32, keys, KV_HEADS, TOKENS, DIM);
    kvtrim_view_init(&t->values, KVTRIM_F32, values, KV_HEADS, TOKENS, DIM);
    kvtrim_view_init(&t->queries, KVTRIM_F32, queries, Q_HEADS, WINDOW, DIM);
    kvtrim_view_init(&t->projection, KVTRIM_F32, projection, Q_HEADS, DIM, HIDDEN);
    point_layer(t);
}
static kvtrim_request make_request(void) {
    kvtrim_request r;
    kvtrim_request_init(&r);
    r.budget_tokens = KEPT;
    r.sink_tokens = 2;
    r.window_tokens = WINDOW;
    return r;
}
static kvtrim_policy* make_policy(const char* name, const char* options) {
    kvtrim_policy* policy = NULL;
    ok(kvtrim_policy_create(name, options, &policy), name);
    return policy;
}
static kvtrim_context* make_context(void) {
    kvtrim_context* context = NULL;
    ok(kvtrim_context_create(NULL, &context), "a context");
    return context;
}
static kvtrim_plan* make_plan(void) {
    kvtrim_plan* plan = NULL;
    ok(kvtrim_plan_create(&plan), "a plan");
    return plan;
}
static int64_t kept_of(const kvtrim_plan* p, int64_t head) {
    return kvtrim_plan_offsets(p)[head + 1] - kvtrim_plan_offsets(p)[head];
}
static const int32_t* row_of(const kvtrim_plan* p, int64_t head) {
    return kvtrim_plan_kept(p) + kvtrim_plan_offsets(p)[head];
}
static int same_plan(const kvtrim_plan* a, const kvtrim_plan* b) {
    const int64_t rows = kvtrim_plan_rows(a);
    if (rows != kvtrim_plan_rows(b)) { return 0; }
    if (rows == 0) { return 1; }
    if (memcmp(kvtrim_plan_offsets(a), kvtrim_plan_offsets(b), (size_t)(rows + 1) * sizeof(int32_t)) != 0) {
        return 0;
    }
    return memcmp(kvtrim_plan_kept(a), kvtrim_plan_kept(b),
                  (size_t)kvtrim_plan_offsets(a)[rows] * sizeof(int32_t)) == 0;
}

/* Uses what a test does not call, so that no compiler warns. */
static void use_all(void) {
    (void)refused;
    (void)make_request;
    (void)make_policy;
    (void)make_context;
    (void)make_plan;
    (void)kept_of;
    (void)row_of;
    (void)same_plan;
    (void)make_layer;
    (void)fill;
}

#endif
