/* Copyright (c) kvtrim authors
 * SPDX-License-Identifier: MIT
 *
 * Every argument of every C function wrong in turn: each is answered with a code, and nothing but the error is written. What
 * pointers point to is as large as they say; all else may be anything.
 */
#include <kvtrim_c.h>

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { Q_HEADS = 4, KV_HEADS = 2, TOKENS = 64, DIM = 16, WINDOW = 8, HIDDEN = 8, KEPT = 24 };

static const int64_t huge = (int64_t)1 << 62;
static int failures = 0, asked = 0;

/* One buffer, so that keys and values can be made to overlap. */
static float cache[2 * KV_HEADS * TOKENS * DIM + DIM], cache_before[2 * KV_HEADS * TOKENS * DIM + DIM];
static float queries[Q_HEADS * WINDOW * DIM], projection[Q_HEADS * DIM * HIDDEN], sinks[Q_HEADS];
static char memory[1 << 20], memory_before[1 << 20];

static kvtrim_plan* plan = NULL;
static int32_t offsets_before[KV_HEADS + 1], kept_before[KV_HEADS * TOKENS];

static void check(int holds, const char* what, int64_t detail) {
    if (!holds) {
        printf("FAILED: %s (%lld)\n", what, (long long)detail);
        ++failures;
    }
}

static kvtrim_tensor tensor(float* data, int64_t a, int64_t b, int64_t c) {
    kvtrim_tensor t = {0};
    t.data = data;
    t.dtype = KVTRIM_F32;
    t.extents[0] = a;
    t.extents[1] = b;
    t.extents[2] = c;
    t.strides[0] = b * c;
    t.strides[1] = c;
    t.strides[2] = 1;
    return t;
}

static kvtrim_layer layer(void) {
    kvtrim_layer in;
    in.keys = tensor(cache, KV_HEADS, TOKENS, DIM);
    in.values = tensor(cache + KV_HEADS * TOKENS * DIM, KV_HEADS, TOKENS, DIM);
    in.queries = tensor(queries, Q_HEADS, WINDOW, DIM);
    in.output_projection = tensor(projection, Q_HEADS, DIM, HIDDEN);
    return in;
}

static kvtrim_request request(void) {
    kvtrim_request r;
    kvtrim_request_init(&r);
    r.budget_tokens = KEPT;
    r.sink_tokens = 2;
    r.window_tokens = WINDOW;
    return r;
}

static void fill(void) {
    size_t i;
    for (i = 0; i < sizeof cache / sizeof *cache; ++i) { cache[i] = (float)((i * 37) % 101) / 32 - 1; }
    for (i = 0; i < sizeof queries / sizeof *queries; ++i) { queries[i] = (float)((i * 53) % 97) / 32 - 1; }
    for (i = 0; i < sizeof projection / sizeof *projection; ++i) {
        projection[i] = (float)((i * 29) % 89) / 32 - 1;
    }
    for (i = 0; i < sizeof memory; ++i) { memory[i] = (char)(i * 7); }
    memcpy(cache_before, cache, sizeof cache);
    memcpy(memory_before, memory, sizeof memory);
}

/* Whether the call was answered with an error, said so in *error, and changed nothing. `expected` 0: any error. */
static void refused(kvtrim_code code, const kvtrim_error* error, kvtrim_code expected, const char* what,
                    int64_t detail) {
    ++asked;
    check(code != KVTRIM_OK && (expected == 0 || code == expected), what, detail);
    check(code >= KVTRIM_OK && code <= KVTRIM_VIEWS_OVERLAP && code != KVTRIM_FAILED, "a code that says what",
          code);
    if (error != NULL) {
        check(error->code == code && error->text != NULL && error->text[0] != 0, "the error says why",
              detail);
    }
    check(memcmp(cache, cache_before, sizeof cache) == 0, "the cache is as it was", detail);
    check(memcmp(memory, memory_before, sizeof memory) == 0, "the workspace is as it was", detail);
    check(kvtrim_plan_rows(plan) == KV_HEADS &&
              memcmp(kvtrim_plan_offsets(plan), offsets_before, sizeof offsets_before) == 0 &&
              memcmp(kvtrim_plan_kept(plan), kept_before,
                     (size_t)offsets_before[KV_HEADS] * sizeof *kept_before) == 0,
          "the plan is as it was", detail);
}

/* Both calls that take a layer refuse it. */
static void refuse_layer(const kvtrim_policy* policy, const kvtrim_layer* in, const kvtrim_request* r,
                         kvtrim_code expected, const char* what, int64_t detail) {
    kvtrim_error error = {-1, -1, NULL};
    int64_t bytes = -77;
    refused(kvtrim_workspace_bytes(policy, in, r, &bytes, &error), &error, expected, what, detail);
    check(bytes == -77, "bytes are not written", detail);
    refused(kvtrim_plan_layer(policy, in, r, plan, memory, sizeof memory, &error), &error, expected, what,
            detail);
    refused(kvtrim_plan_layer(policy, in, r, plan, memory, sizeof memory, NULL), NULL, expected, what,
            detail);
}

static void wrong_tensors(const kvtrim_policy* policy) {
    static const int32_t dtypes[] = {-1, 3, 7, INT32_MAX, INT32_MIN};
    const int64_t extents[] = {-1, INT64_MIN, INT64_MAX, huge, (int64_t)1 << 32, INT32_MAX};
    const int64_t strides[] = {huge, -huge, INT64_MAX, INT64_MIN};
    const kvtrim_request r = request();
    int which, axis;
    size_t i;
    for (which = 0; which < 4; ++which) {
        kvtrim_layer in = layer();
        kvtrim_tensor* const all[] = {&in.keys, &in.values, &in.queries, &in.output_projection};
        kvtrim_tensor* const t = all[which];
        t->data = NULL;
        refuse_layer(policy, &in, &r, KVTRIM_INVALID_PARAMETER, "no data", which);
        for (i = 0; i < sizeof dtypes / sizeof *dtypes; ++i) {
            in = layer();
            t->dtype = dtypes[i];
            refuse_layer(policy, &in, &r, KVTRIM_INVALID_PARAMETER, "a dtype", dtypes[i]);
        }
        for (axis = 0; axis < 3; ++axis) {
            for (i = 0; i < sizeof extents / sizeof *extents; ++i) {
                /* A length of W_O's rows has nothing to agree with: it is the memory's promise. */
                if (which == 3 && axis == 2 && extents[i] == INT32_MAX) { continue; }
                in = layer();
                t->extents[axis] = extents[i];
                refuse_layer(policy, &in, &r, 0, "an extent", extents[i]);
            }
            for (i = 0; i < sizeof strides / sizeof *strides; ++i) {
                in = layer();
                t->strides[axis] = strides[i];
                refuse_layer(policy, &in, &r, KVTRIM_INVALID_PARAMETER, "a stride", strides[i]);
            }
        }
    }
}

/* Policies that read keys alone have nothing for them to disagree with. */
static void wrong_keys(const char* name) {
    const int64_t extents[] = {-1, INT64_MIN, INT64_MAX, huge, (int64_t)1 << 32};
    const int64_t strides[] = {huge, -huge, INT64_MAX, INT64_MIN};
    const kvtrim_request r = request();
    kvtrim_policy* policy = NULL;
    kvtrim_layer in = layer();
    int axis;
    size_t i;
    check(kvtrim_policy_create(name, &policy, NULL) == KVTRIM_OK, name, 0);
    in.keys.data = NULL;
    refuse_layer(policy, &in, &r, KVTRIM_INVALID_PARAMETER, name, -1);
    in = layer();
    in.keys.dtype = 3;
    refuse_layer(policy, &in, &r, KVTRIM_INVALID_PARAMETER, name, -2);
    for (axis = 0; axis < 3; ++axis) {
        for (i = 0; i < sizeof extents / sizeof *extents; ++i) {
            in = layer();
            in.keys.extents[axis] = extents[i];
            refuse_layer(policy, &in, &r, KVTRIM_INVALID_PARAMETER, name, extents[i]);
        }
        for (i = 0; i < sizeof strides / sizeof *strides; ++i) {
            in = layer();
            in.keys.strides[axis] = strides[i];
            refuse_layer(policy, &in, &r, KVTRIM_INVALID_PARAMETER, name, strides[i]);
        }
    }
    kvtrim_policy_destroy(policy);
}

static void wrong_requests(const kvtrim_policy* policy) {
    const int64_t negative[] = {-1, INT64_MIN, -huge};
    const int64_t large[] = {huge, INT64_MAX, TOKENS + 1};
    const float floats[] = {-1.0f, (float)HUGE_VAL, -(float)HUGE_VAL, (float)NAN};
    const kvtrim_layer in = layer();
    kvtrim_request r = request();
    size_t i, f;
    for (i = 0; i < 3; ++i) {
        r = request();
        r.size = i == 0 ? 0 : i == 1 ? 8 : sizeof r - 1;
        refuse_layer(policy, &in, &r, KVTRIM_INVALID_PARAMETER, "a size", (int64_t)r.size);
    }
    for (i = 0; i < 3; ++i) {
        r = request();
        r.budget_tokens = i == 0 ? 0 : negative[i];
        refuse_layer(policy, &in, &r, KVTRIM_BUDGET_ZERO, "a budget", r.budget_tokens);
        for (f = 0; f < 5; ++f) {
            int64_t* const members[] = {&r.sink_tokens, &r.pinned_tokens, &r.window_tokens,
                                        &r.rollback_tokens, &r.sliding_window};
            r = request();
            *members[f] = negative[i];
            refuse_layer(policy, &in, &r, KVTRIM_INVALID_PARAMETER, "a negative count", (int64_t)f);
            if (f == 4) { continue; } /* a sliding window may be longer than the prompt */
            r = request();
            *members[f] = large[i];
            refuse_layer(policy, &in, &r, 0, "more protected than there is", (int64_t)f);
        }
    }
    for (i = 0; i < sizeof floats / sizeof *floats; ++i) {
        r = request();
        r.scale = floats[i];
        refuse_layer(policy, &in, &r, KVTRIM_INVALID_PARAMETER, "a scale", (int64_t)i);
        r = request();
        r.soft_cap = floats[i];
        refuse_layer(policy, &in, &r, KVTRIM_INVALID_PARAMETER, "a soft cap", (int64_t)i);
        if (i == 0 || i == 2) { continue; } /* logits may be negative, and -infinity is none */
        r = request();
        sinks[1] = floats[i];
        r.sink_logits = sinks;
        r.sink_logits_count = Q_HEADS;
        refuse_layer(policy, &in, &r, KVTRIM_INVALID_PARAMETER, "a sink logit", (int64_t)i);
        sinks[1] = 0;
    }
    {
        /* gpt-oss: the model has 64 sinks, this rank 4 of its heads */
        const int64_t counts[] = {64, Q_HEADS - 1, Q_HEADS + 1, -1, INT64_MIN, huge, INT64_MAX};
        for (i = 0; i < sizeof counts / sizeof *counts; ++i) {
            r = request();
            r.sink_logits = sinks;
            r.sink_logits_count = counts[i];
            refuse_layer(policy, &in, &r, KVTRIM_INVALID_PARAMETER, "a number of sinks", counts[i]);
            r.sink_logits = NULL;
            refuse_layer(policy, &in, &r, KVTRIM_INVALID_PARAMETER, "sinks without memory", counts[i]);
        }
    }
    {
        kvtrim_error error;
        int64_t bytes = 0;
        r = request();
        r.budget_tokens = WINDOW;
        refuse_layer(policy, &in, &r, KVTRIM_BUDGET_BELOW_PROTECTION, "a budget", r.budget_tokens);
        check(kvtrim_workspace_bytes(policy, &in, &r, &bytes, &error) != KVTRIM_OK &&
                  error.needed == KV_HEADS * (WINDOW + 2),
              "the budget that is needed", error.needed);
        r = request();
        r.sink_logits = sinks;
        r.sink_logits_count = 64;
        check(kvtrim_workspace_bytes(policy, &in, &r, &bytes, &error) != KVTRIM_OK && error.needed == Q_HEADS,
              "the sinks that are needed", error.needed);
    }
}

/* Options out of range are refused when they are set, or when a plan is asked for. */
static void wrong_options(const char* name) {
    static const char* const keys[] = {"kernel_tokens",  "pooling",      "safeguard_ratio", "first_ratio",
                                       "attention_mass", "floor_weight", "no such option",  ""};
    const double values[] = {NAN,    HUGE_VAL, -HUGE_VAL,    -1,   -0.5,   1e300,
                             -1e300, 2.5,      4294967296.0, 1e19, DBL_MAX};
    const kvtrim_layer in = layer();
    const kvtrim_request r = request();
    size_t k, v;
    for (k = 0; k < sizeof keys / sizeof *keys; ++k) {
        for (v = 0; v < sizeof values / sizeof *values; ++v) {
            kvtrim_policy* policy = NULL;
            kvtrim_error error = {0, 0, NULL};
            kvtrim_code code;
            int64_t bytes = -77, same = -77;
            check(kvtrim_policy_create(name, &policy, &error) == KVTRIM_OK, "created", 0);
            check(kvtrim_workspace_bytes(policy, &in, &r, &bytes, &error) == KVTRIM_OK, "planned", 0);
            code = kvtrim_policy_set(policy, keys[k], values[v], &error);
            if (code != KVTRIM_OK) {
                refused(code, &error, KVTRIM_INVALID_PARAMETER, keys[k], (int64_t)v);
                check(kvtrim_workspace_bytes(policy, &in, &r, &same, NULL) == KVTRIM_OK && same == bytes,
                      "a refused option changes nothing", (int64_t)v);
            } else {
                code = kvtrim_workspace_bytes(policy, &in, &r, &same, &error);
                if (code != KVTRIM_OK) { refuse_layer(policy, &in, &r, code, keys[k], (int64_t)v); }
                /* A weight of 2.5 is a weight; a policy that does not use an option plans as before. */
                check(code != KVTRIM_OK || same == bytes, keys[k], (int64_t)v);
            }
            kvtrim_policy_destroy(policy);
        }
    }
}

static void wrong_pointers(kvtrim_policy* policy) {
    const kvtrim_layer in = layer();
    const kvtrim_request r = request();
    kvtrim_error error;
    kvtrim_policy* made = NULL;
    int64_t bytes = -77, needed = 0;
    refused(kvtrim_policy_create(NULL, &made, &error), &error, KVTRIM_INVALID_PARAMETER, "no name", 0);
    refused(kvtrim_policy_create("", &made, &error), &error, KVTRIM_INVALID_PARAMETER, "an empty name", 0);
    refused(kvtrim_policy_create("SnapKV", &made, &error), &error, KVTRIM_INVALID_PARAMETER, "a name", 0);
    refused(kvtrim_policy_create("snapkv", NULL, &error), &error, KVTRIM_INVALID_PARAMETER, "no output", 0);
    check(made == NULL, "no policy is made", 0);
    refused(kvtrim_policy_set(NULL, "pooling", 1, &error), &error, KVTRIM_INVALID_PARAMETER, "no policy", 0);
    refused(kvtrim_policy_set(policy, NULL, 1, &error), &error, KVTRIM_INVALID_PARAMETER, "no key", 0);
    refused(kvtrim_workspace_bytes(NULL, &in, &r, &bytes, &error), &error, KVTRIM_INVALID_PARAMETER, "null",
            0);
    refused(kvtrim_workspace_bytes(policy, NULL, &r, &bytes, &error), &error, KVTRIM_INVALID_PARAMETER,
            "null", 1);
    refused(kvtrim_workspace_bytes(policy, &in, NULL, &bytes, &error), &error, KVTRIM_INVALID_PARAMETER,
            "null", 2);
    refused(kvtrim_workspace_bytes(policy, &in, &r, NULL, &error), &error, KVTRIM_INVALID_PARAMETER, "null",
            3);
    check(bytes == -77, "bytes are not written", bytes);
    refused(kvtrim_plan_layer(NULL, &in, &r, plan, memory, sizeof memory, &error), &error,
            KVTRIM_INVALID_PARAMETER, "null", 4);
    refused(kvtrim_plan_layer(policy, NULL, &r, plan, memory, sizeof memory, &error), &error,
            KVTRIM_INVALID_PARAMETER, "null", 5);
    refused(kvtrim_plan_layer(policy, &in, NULL, plan, memory, sizeof memory, &error), &error,
            KVTRIM_INVALID_PARAMETER, "null", 6);
    refused(kvtrim_plan_layer(policy, &in, &r, NULL, memory, sizeof memory, &error), &error,
            KVTRIM_INVALID_PARAMETER, "null", 7);
    refused(kvtrim_plan_layer(policy, &in, &r, plan, NULL, sizeof memory, &error), &error,
            KVTRIM_INVALID_PARAMETER, "null", 8);
    refused(kvtrim_plan_layer(policy, &in, &r, plan, memory, -1, &error), &error, KVTRIM_INVALID_PARAMETER,
            "negative bytes", -1);
    refused(kvtrim_plan_layer(policy, &in, &r, plan, memory, INT64_MIN, &error), &error,
            KVTRIM_INVALID_PARAMETER, "negative bytes", INT64_MIN);
    check(kvtrim_workspace_bytes(policy, &in, &r, &needed, NULL) == KVTRIM_OK, "bytes", needed);
    refused(kvtrim_plan_layer(policy, &in, &r, plan, NULL, 0, &error), &error, KVTRIM_WORKSPACE_TOO_SMALL,
            "no bytes", 0);
    check(error.needed == needed, "the bytes that are needed", error.needed);
    refused(kvtrim_plan_layer(policy, &in, &r, plan, memory, needed / 2, &error), &error,
            KVTRIM_WORKSPACE_TOO_SMALL, "few bytes", needed / 2);
    check(error.needed == needed, "the bytes that are needed", error.needed);
    refused(kvtrim_plan_create(NULL, &error), &error, KVTRIM_INVALID_PARAMETER, "no output", 1);
    kvtrim_request_init(NULL);
    kvtrim_policy_destroy(NULL);
    kvtrim_plan_destroy(NULL);
    check(kvtrim_plan_rows(NULL) == 0 && kvtrim_plan_offsets(NULL) == NULL && kvtrim_plan_kept(NULL) == NULL,
          "no plan has no rows", 0);
}

static void refuse_compaction(const kvtrim_tensor* keys, const kvtrim_tensor* values, kvtrim_code expected,
                              const char* what, int64_t detail) {
    kvtrim_error error = {-1, -1, NULL};
    refused(kvtrim_compact_in_place(keys, values, plan, &error), &error, expected, what, detail);
    refused(kvtrim_compact_in_place(keys, values, plan, NULL), NULL, expected, what, detail);
}

static void wrong_compactions(void) {
    const int64_t extents[] = {-1, INT64_MIN, INT64_MAX, huge, (int64_t)1 << 32};
    const int64_t strides[] = {huge, -huge, INT64_MAX, INT64_MIN};
    kvtrim_layer in = layer();
    kvtrim_plan* never = NULL;
    kvtrim_error error;
    int which, axis;
    size_t i;
    check(kvtrim_plan_create(&never, &error) == KVTRIM_OK, "created", 0);
    refuse_compaction(NULL, &in.values, KVTRIM_INVALID_PARAMETER, "no keys", 0);
    refused(kvtrim_compact_in_place(&in.keys, &in.values, NULL, &error), &error, KVTRIM_INVALID_PARAMETER,
            "no plan", 0);
    refused(kvtrim_compact_in_place(&in.keys, &in.values, never, &error), &error, KVTRIM_PLAN_MISMATCH,
            "a plan never made", 0);
    kvtrim_plan_destroy(never);
    for (which = 0; which < 2; ++which) {
        kvtrim_tensor* const t = which == 0 ? &in.keys : &in.values;
        in = layer();
        t->data = NULL;
        refuse_compaction(&in.keys, &in.values, KVTRIM_INVALID_PARAMETER, "no data", which);
        in = layer();
        t->dtype = 9;
        refuse_compaction(&in.keys, &in.values, KVTRIM_INVALID_PARAMETER, "a dtype", which);
        in = layer();
        t->extents[0] = 1;
        refuse_compaction(&in.keys, &in.values, KVTRIM_PLAN_MISMATCH, "heads of another cache", which);
        in = layer();
        t->extents[1] = TOKENS - 1;
        refuse_compaction(&in.keys, &in.values, KVTRIM_PLAN_MISMATCH, "tokens of another cache", which);
        for (axis = 0; axis < 3; ++axis) {
            for (i = 0; i < sizeof extents / sizeof *extents; ++i) {
                in = layer();
                t->extents[axis] = extents[i];
                refuse_compaction(&in.keys, &in.values, KVTRIM_INVALID_PARAMETER, "an extent", extents[i]);
            }
            for (i = 0; i < sizeof strides / sizeof *strides; ++i) {
                in = layer();
                t->strides[axis] = strides[i];
                refuse_compaction(&in.keys, &in.values, KVTRIM_INVALID_PARAMETER, "a stride", strides[i]);
            }
        }
        in = layer();
        t->strides[0] = 0;
        refuse_compaction(&in.keys, &in.values, KVTRIM_VIEWS_OVERLAP, "heads on each other", which);
        in = layer();
        t->strides[1] = DIM - 1;
        refuse_compaction(&in.keys, &in.values, KVTRIM_VIEWS_OVERLAP, "rows on each other", which);
    }
    in = layer();
    in.values.data = cache + DIM; /* the next token's row */
    refuse_compaction(&in.keys, &in.values, KVTRIM_VIEWS_OVERLAP, "keys and values overlap", 0);
    in.values.data = cache + 1;
    refuse_compaction(&in.keys, &in.values, KVTRIM_VIEWS_OVERLAP, "keys and values overlap", 1);
    in = layer();
    in.values.data = cache;
    in.values.dtype = KVTRIM_F16; /* rows of other strides in bytes */
    refuse_compaction(&in.keys, &in.values, KVTRIM_VIEWS_OVERLAP, "keys and values overlap", 2);
}

/* Values inside the rows of the keys, as MLA has them: each row moves once. Last, for it changes the cache. */
static void values_inside_keys(void) {
    kvtrim_layer in = layer();
    kvtrim_error error;
    int64_t head, i, d;
    in.values = in.keys;
    in.values.extents[2] = DIM - 4;
    check(kvtrim_compact_in_place(&in.keys, &in.values, plan, &error) == KVTRIM_OK, "values inside keys", 0);
    for (head = 0; head < KV_HEADS; ++head) {
        for (i = 0; i < offsets_before[head + 1] - offsets_before[head]; ++i) {
            const int64_t from = kept_before[offsets_before[head] + i];
            for (d = 0; d < DIM; ++d) {
                check(cache[(head * TOKENS + i) * DIM + d] == cache_before[(head * TOKENS + from) * DIM + d],
                      "each row is moved once", from);
            }
        }
    }
}

int main(void) {
    /* The first three read all of a layer. */
    static const char* const names[] = {"ada_criticalkv", "criticalkv", "defensivekv", "snapkv",
                                        "ada_snapkv",     "tova",       "key_norm",    "streaming_llm"};
    const kvtrim_request r = request();
    const kvtrim_layer in = layer();
    kvtrim_policy* policy = NULL;
    kvtrim_error error;
    size_t i;
    fill();
    check(kvtrim_plan_create(&plan, &error) == KVTRIM_OK, "created", 0);
    for (i = 0; i < 3; ++i) {
        check(kvtrim_policy_create(names[i], &policy, &error) == KVTRIM_OK, "created", 0);
        check(kvtrim_plan_layer(policy, &in, &r, plan, memory, sizeof memory, &error) == KVTRIM_OK,
              error.text, 0);
        memcpy(memory_before, memory, sizeof memory);
        memcpy(offsets_before, kvtrim_plan_offsets(plan), sizeof offsets_before);
        memcpy(kept_before, kvtrim_plan_kept(plan), (size_t)offsets_before[KV_HEADS] * sizeof *kept_before);
        wrong_tensors(policy);
        wrong_requests(policy);
        wrong_options(names[i]);
        wrong_pointers(policy);
        wrong_compactions();
        kvtrim_policy_destroy(policy);
    }
    for (i = 0; i < sizeof names / sizeof *names; ++i) { wrong_keys(names[i]); }
    values_inside_keys();
    kvtrim_plan_destroy(plan);
    if (failures == 0) { printf("kvtrim %s: %d wrong calls answered\n", kvtrim_version(), asked); }
    return failures != 0;
}
