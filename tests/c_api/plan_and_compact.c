/* Copyright (c) kvtrim authors
 * SPDX-License-Identifier: MIT
 *
 * The C API from a C99 program: every policy plans and compacts a layer, in each element type; bad input is answered.
 */
#include <kvtrim_c.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { Q_HEADS = 4, KV_HEADS = 2, TOKENS = 200, DIM = 32, WINDOW = 8, HIDDEN = 16, KEPT = 50 };

static int failures = 0;

static void check(int holds, const char* what, const char* policy) {
    if (!holds) {
        printf("FAILED: %s (%s)\n", what, policy);
        ++failures;
    }
}

static float keys[KV_HEADS * TOKENS * DIM], values[KV_HEADS * TOKENS * DIM];
static uint16_t short_keys[KV_HEADS * TOKENS * DIM], short_values[KV_HEADS * TOKENS * DIM];
static float queries[Q_HEADS * WINDOW * DIM], projection[Q_HEADS * DIM * HIDDEN];

/* Quarters in [-2, 2): the same numbers in all three element types. */
static float number(size_t i) {
    const uint32_t mixed = (uint32_t)(i + 1) * 2654435761u;
    return (float)((mixed >> 20) % 16) / 4.0f - 2.0f;
}

static uint16_t to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (uint16_t)(bits >> 16);
}

/* For a number() only: normal or zero, and its low bits are zero. */
static uint16_t to_f16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffffu) == 0) { return (uint16_t)(bits >> 16); }
    return (uint16_t)(((bits >> 16) & 0x8000u) | (((bits & 0x7fffffffu) - 0x38000000u) >> 13));
}

static void fill(int dtype) {
    size_t i;
    for (i = 0; i < sizeof keys / sizeof *keys; ++i) {
        keys[i] = number(i);
        values[i] = number(i + 100000);
        short_keys[i] = dtype == KVTRIM_F16 ? to_f16(keys[i]) : to_bf16(keys[i]);
        short_values[i] = dtype == KVTRIM_F16 ? to_f16(values[i]) : to_bf16(values[i]);
    }
    for (i = 0; i < sizeof queries / sizeof *queries; ++i) { queries[i] = number(i + 200000); }
    for (i = 0; i < sizeof projection / sizeof *projection; ++i) { projection[i] = number(i + 300000); }
}

static kvtrim_tensor tensor(void* data, int32_t dtype, int64_t a, int64_t b, int64_t c) {
    kvtrim_tensor t = {0};
    t.data = data;
    t.dtype = dtype;
    t.extents[0] = a;
    t.extents[1] = b;
    t.extents[2] = c;
    t.strides[0] = b * c;
    t.strides[1] = c;
    t.strides[2] = 1;
    return t;
}

static kvtrim_layer layer(int32_t dtype) {
    kvtrim_layer in;
    const int is_f32 = dtype == KVTRIM_F32;
    in.keys = tensor(is_f32 ? (void*)keys : (void*)short_keys, dtype, KV_HEADS, TOKENS, DIM);
    in.values = tensor(is_f32 ? (void*)values : (void*)short_values, dtype, KV_HEADS, TOKENS, DIM);
    in.queries = tensor(queries, KVTRIM_F32, Q_HEADS, WINDOW, DIM);
    in.output_projection = tensor(projection, KVTRIM_F32, Q_HEADS, DIM, HIDDEN);
    return in;
}

static kvtrim_request request(void) {
    kvtrim_request r;
    kvtrim_request_init(&r);
    r.budget_tokens = KEPT;
    r.sink_tokens = 4;
    r.window_tokens = WINDOW;
    return r;
}

/* The plan is CSR, ascending, within the cache, keeps what is protected, and spends the budget exactly. */
static void check_plan(const kvtrim_plan* plan, const char* name) {
    const int32_t* offsets = kvtrim_plan_offsets(plan);
    const int32_t* kept = kvtrim_plan_kept(plan);
    int64_t head;
    check(kvtrim_plan_rows(plan) == KV_HEADS, "a row per KV head", name);
    check(offsets[0] == 0 && offsets[KV_HEADS] == KV_HEADS * KEPT, "the budget is spent", name);
    for (head = 0; head < KV_HEADS; ++head) {
        int32_t i, last = -1;
        for (i = offsets[head]; i < offsets[head + 1]; ++i) {
            check(kept[i] > last && kept[i] < TOKENS, "rows ascend within the cache", name);
            last = kept[i];
        }
        check(last == TOKENS - 1 && kept[offsets[head]] == 0 && kept[offsets[head] + 3] == 3,
              "protected tokens stay", name);
    }
}

/* Survivors lie at the front of each head, bit for bit. */
static void check_cache(const kvtrim_plan* plan, int32_t dtype, const char* name) {
    const int32_t* offsets = kvtrim_plan_offsets(plan);
    const int32_t* kept = kvtrim_plan_kept(plan);
    int64_t head, i, d;
    for (head = 0; head < KV_HEADS; ++head) {
        for (i = 0; i < offsets[head + 1] - offsets[head]; ++i) {
            for (d = 0; d < DIM; ++d) {
                const size_t at = (size_t)((head * TOKENS + i) * DIM + d);
                const size_t from = (size_t)((head * TOKENS + kept[offsets[head] + i]) * DIM + d);
                const float k = number(from), v = number(from + 100000);
                if (dtype == KVTRIM_F32) {
                    check(keys[at] == k && values[at] == v, "the cache is compacted", name);
                } else if (dtype == KVTRIM_F16) {
                    check(short_keys[at] == to_f16(k) && short_values[at] == to_f16(v),
                          "the cache is compacted", name);
                } else {
                    check(short_keys[at] == to_bf16(k) && short_values[at] == to_bf16(v),
                          "the cache is compacted", name);
                }
            }
        }
    }
}

/* The kept rows in f32 are the ones in the other types, whose numbers are the same. */
static void plan_and_compact(const char* name, int32_t dtype, int32_t* reference) {
    const size_t entries = (size_t)KV_HEADS * KEPT;
    const kvtrim_request r = request();
    kvtrim_layer in;
    kvtrim_policy* policy = NULL;
    kvtrim_plan* plan = NULL;
    kvtrim_error error;
    int64_t bytes = -1;
    void* memory;
    fill(dtype);
    in = layer(dtype);
    check(kvtrim_policy_create(name, &policy, &error) == KVTRIM_OK, "created", name);
    check(kvtrim_plan_create(&plan, &error) == KVTRIM_OK, "created", name);
    check(kvtrim_workspace_bytes(policy, &in, &r, &bytes, &error) == KVTRIM_OK && bytes > 0, "bytes", name);
    memory = malloc((size_t)bytes);
    check(kvtrim_plan_layer(policy, &in, &r, plan, memory, bytes - 65, &error) ==
                  KVTRIM_WORKSPACE_TOO_SMALL &&
              error.needed == bytes && kvtrim_plan_rows(plan) == 0,
          "too little memory (64 bytes are for alignment)", name);
    check(kvtrim_plan_layer(policy, &in, &r, plan, memory, bytes, &error) == KVTRIM_OK, "planned", name);
    check_plan(plan, name);
    check(kvtrim_compact_in_place(&in.keys, &in.values, plan, &error) == KVTRIM_OK, "compacted", name);
    check_cache(plan, dtype, name);
    if (dtype == KVTRIM_F32) {
        memcpy(reference, kvtrim_plan_kept(plan), entries * sizeof *reference);
    } else {
        check(memcmp(reference, kvtrim_plan_kept(plan), entries * sizeof *reference) == 0, "the plan of f32",
              name);
    }
    free(memory);
    kvtrim_plan_destroy(plan);
    kvtrim_policy_destroy(policy);
}

static void refuse_bad_input(void) {
    static char memory[1 << 20];
    kvtrim_policy* policy = NULL;
    kvtrim_plan* plan = NULL;
    kvtrim_error error;
    kvtrim_layer in = layer(KVTRIM_F32);
    kvtrim_request r = request();
    int64_t bytes = -1;
    fill(KVTRIM_F32);
    check(kvtrim_policy_create("no such", &policy, &error) == KVTRIM_INVALID_PARAMETER && policy == NULL &&
              error.text[0] != 0,
          "unknown name", "");
    check(kvtrim_policy_create(NULL, &policy, NULL) == KVTRIM_INVALID_PARAMETER, "no name", "");
    check(kvtrim_policy_create("criticalkv", &policy, &error) == KVTRIM_OK, "created", "");
    check(kvtrim_plan_create(&plan, &error) == KVTRIM_OK, "created", "");

    check(kvtrim_policy_set(policy, "no such", 1, &error) == KVTRIM_INVALID_PARAMETER, "unknown key", "");
    check(kvtrim_policy_set(policy, "pooling", 2.5, &error) == KVTRIM_INVALID_PARAMETER, "no pooling", "");
    check(kvtrim_policy_set(policy, "kernel_tokens", 4, &error) == KVTRIM_OK, "set", "");
    check(kvtrim_workspace_bytes(policy, &in, &r, &bytes, &error) == KVTRIM_INVALID_PARAMETER && bytes == -1,
          "even kernel", "");
    check(kvtrim_policy_set(policy, "kernel_tokens", 7, &error) == KVTRIM_OK, "set", "");

    in.output_projection.extents[1] = DIM - 1;
    check(kvtrim_workspace_bytes(policy, &in, &r, &bytes, &error) == KVTRIM_INVALID_PARAMETER,
          "W_O of another shape", "");
    in = layer(KVTRIM_F32);
    in.values.data = NULL;
    check(kvtrim_workspace_bytes(policy, &in, &r, &bytes, &error) == KVTRIM_INVALID_PARAMETER, "no values",
          "");
    in = layer(7);
    check(kvtrim_workspace_bytes(policy, &in, &r, &bytes, &error) == KVTRIM_INVALID_PARAMETER, "no dtype",
          "");
    in = layer(KVTRIM_F32);
    in.keys.extents[1] = -1;
    check(kvtrim_workspace_bytes(policy, &in, &r, &bytes, &error) == KVTRIM_INVALID_PARAMETER, "negative",
          "");
    in = layer(KVTRIM_F32);
    in.queries.extents[0] = 3;
    in.output_projection.extents[0] = 3;
    check(kvtrim_workspace_bytes(policy, &in, &r, &bytes, &error) == KVTRIM_HEADS_NOT_DIVISIBLE, "heads", "");
    in = layer(KVTRIM_F32);
    r.budget_tokens = 0;
    check(kvtrim_workspace_bytes(policy, &in, &r, &bytes, &error) == KVTRIM_BUDGET_ZERO, "no budget", "");
    r.budget_tokens = 5;
    check(kvtrim_workspace_bytes(policy, &in, &r, &bytes, &error) == KVTRIM_BUDGET_BELOW_PROTECTION &&
              error.needed == KV_HEADS * (4 + WINDOW),
          "budget below protection", "");
    r = request();
    r.size = 8;
    check(kvtrim_workspace_bytes(policy, &in, &r, &bytes, NULL) == KVTRIM_INVALID_PARAMETER, "a size", "");

    r = request();
    check(kvtrim_plan_layer(policy, &in, &r, plan, memory, sizeof memory, &error) == KVTRIM_OK, "planned",
          "");
    in.values.extents[1] = KEPT;
    check(kvtrim_compact_in_place(&in.keys, &in.values, plan, &error) == KVTRIM_PLAN_MISMATCH &&
              keys[(TOKENS / 2) * DIM] == number((TOKENS / 2) * DIM) && keys[4 * DIM] == number(4 * DIM),
          "values of another cache: keys are not touched either", "");
    kvtrim_plan_destroy(plan);
    kvtrim_policy_destroy(policy);
    kvtrim_plan_destroy(NULL);
    kvtrim_policy_destroy(NULL);
}

int main(void) {
    static const char* const names[] = {"snapkv",      "ada_snapkv", "criticalkv", "ada_criticalkv",
                                        "defensivekv", "tova",       "key_norm",   "streaming_llm"};
    size_t i;
    int32_t reference[KV_HEADS * KEPT], dtype;
    check(kvtrim_api_version() == KVTRIM_C_API_VERSION, "version", "");
    for (i = 0; i < sizeof names / sizeof *names; ++i) {
        for (dtype = KVTRIM_F32; dtype <= KVTRIM_BF16; ++dtype) {
            plan_and_compact(names[i], dtype, reference);
        }
    }
    refuse_bad_input();
    if (failures == 0) {
        printf("kvtrim %s (%s): %d policies from C\n", kvtrim_version(), kvtrim_cpu_level(),
               (int)(sizeof names / sizeof *names));
    }
    return failures != 0;
}
