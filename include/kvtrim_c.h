/* Copyright (c) kvtrim authors
 * SPDX-License-Identifier: MIT
 *
 * kvtrim for C, and for what calls C (Rust, Go, Zig): policies by name, a plan per layer, compaction in place.
 *
 *     kvtrim_policy* policy; kvtrim_plan* plan; kvtrim_error error; int64_t bytes;
 *     kvtrim_policy_create("ada_snapkv", &policy, &error);
 *     kvtrim_plan_create(&plan, &error);
 *     kvtrim_workspace_bytes(policy, &layer, &request, &bytes, &error);
 *     kvtrim_plan_layer(policy, &layer, &request, plan, malloc(bytes), bytes, &error);
 *     kvtrim_compact_in_place(&layer.keys, &layer.values, plan, &error);
 *
 * Every call answers with a kvtrim_code, and says more in *error, which may be null. A call that fails has written
 * nothing but *error. No exception leaves the library; what an engine can get wrong is answered, not aborted. Trusted are
 * only pointers: that they are null or point to what extents, strides and counts say, and that handles came from this library.
 * Layers are independent: different plans may be made at the same time, with one policy or several, as long as
 * nobody sets options of it. Equal inputs give equal plans.
 */
#ifndef KVTRIM_C_H
#define KVTRIM_C_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define KVTRIM_API
#else
#define KVTRIM_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/** Changes when a program compiled against this header would no longer work with the library. */
#define KVTRIM_C_API_VERSION 1

/** What every call answers: one of these. "needed" is that of kvtrim_error. */
typedef int32_t kvtrim_code;
enum {
    KVTRIM_OK = 0,                      /**< done */
    KVTRIM_BUDGET_ZERO = 1,             /**< the budget must be at least one token */
    KVTRIM_BUDGET_BELOW_PROTECTION = 2, /**< needed: tokens in total */
    KVTRIM_WINDOW_EXCEEDS_TOKENS = 3,   /**< needed: tokens */
    KVTRIM_HEADS_NOT_DIVISIBLE = 4,     /**< q_heads must be a multiple of kv_heads */
    KVTRIM_RATIO_OUT_OF_RANGE = 5,      /**< an option that is a share */
    KVTRIM_INVALID_PARAMETER = 6,       /**< a number, a shape, a name or a null pointer that does not fit */
    KVTRIM_PLAN_MISMATCH = 7,           /**< a plan made for another cache */
    KVTRIM_INDEX_OVERFLOW = 8,          /**< more tokens than a 32-bit table can address */
    KVTRIM_WORKSPACE_TOO_SMALL = 9,     /**< needed: bytes */
    KVTRIM_OUT_OF_MEMORY = 10,          /**< an allocation failed */
    KVTRIM_FAILED = 11,                 /**< any other failure */
    KVTRIM_VIEWS_OVERLAP = 12           /**< keys and values share memory, but not the same rows */
};

/** The answer of a call in full. */
typedef struct kvtrim_error {
    kvtrim_code code; /**< as returned */
    int64_t needed;   /**< how much would have been enough; 0 where no number applies */
    const char* text; /**< a sentence for the log; never null, never freed */
} kvtrim_error;

/** Elements of a tensor. */
enum { KVTRIM_F32 = 0, KVTRIM_F16 = 1, KVTRIM_BF16 = 2 };

/** A view of the engine's memory: element (i, j, k) is data[i * strides[0] + j * strides[1] + k * strides[2]].
 * Strides count elements, in any order, also negative. data == null: not given. */
typedef struct kvtrim_tensor {
    void* data;         /**< element (0, 0, 0), or null */
    int64_t extents[3]; /**< none negative */
    int64_t strides[3]; /**< in elements */
    int32_t dtype;      /**< KVTRIM_F32, KVTRIM_F16 or KVTRIM_BF16 */
    int32_t reserved;   /**< 0 */
} kvtrim_tensor;

/** One attention layer, RoPE applied. */
typedef struct kvtrim_layer {
    kvtrim_tensor keys;              /**< [kv_heads, tokens, head_dim] */
    kvtrim_tensor values;            /**< [kv_heads, tokens, value_dim] */
    kvtrim_tensor queries;           /**< [q_heads, queries, head_dim], the newest ones */
    kvtrim_tensor output_projection; /**< [q_heads, value_dim, hidden] */
} kvtrim_layer;

/** What is asked of one layer. Start from kvtrim_request_init(). */
typedef struct kvtrim_request {
    size_t size;               /**< of this struct: a later one has more members at its end */
    int64_t budget_tokens;     /**< per KV head on average, protected tokens included */
    int64_t sink_tokens;       /**< first tokens, which always stay */
    int64_t pinned_tokens;     /**< a shared prefix */
    int64_t window_tokens;     /**< the newest tokens: as many as there are queries */
    int64_t rollback_tokens;   /**< speculative tokens behind the window */
    int64_t sliding_window;    /**< 0: all */
    const float* sink_logits;  /**< [q_heads], or null */
    int64_t sink_logits_count; /**< q_heads, or 0 */
    float scale;               /**< 0: 1 / sqrt(head_dim) */
    float soft_cap;            /**< 0: none */
} kvtrim_request;

/** A policy by name; made by kvtrim_policy_create(). */
typedef struct kvtrim_policy kvtrim_policy;
/** Which tokens stay; made by kvtrim_plan_create(). */
typedef struct kvtrim_plan kvtrim_plan;

/** KVTRIM_C_API_VERSION that the library was built with. */
KVTRIM_API int32_t kvtrim_api_version(void);
/** "major.minor.patch" of kvtrim; never null, never freed. */
KVTRIM_API const char* kvtrim_version(void);
/** "portable", "neon_bf16", "avx2", "avx512" or "amx": the kernels in use. */
KVTRIM_API const char* kvtrim_cpu_level(void);

/** Makes a policy with default options. Names: snapkv, ada_snapkv, criticalkv, ada_criticalkv, defensivekv, tova, key_norm,
 * streaming_llm. criticalkv, ada_criticalkv and defensivekv need values and W_O; key_norm and streaming_llm need keys alone;
 * the others queries. Error: KVTRIM_INVALID_PARAMETER for another name. */
KVTRIM_API kvtrim_code kvtrim_policy_create(const char* name, kvtrim_policy** policy, kvtrim_error* error);
/** Frees a policy; null: does nothing. */
KVTRIM_API void kvtrim_policy_destroy(kvtrim_policy* policy);
/** Sets an option: kernel_tokens (5, odd), pooling (0 none, 1 average, 2 maximum), safeguard_ratio (0.2; defensivekv 0),
 * first_ratio (0.5), attention_mass (0.9), floor_weight (1). One that a policy does not use changes nothing.
 * Error: KVTRIM_INVALID_PARAMETER for another key, or a value that is no such number; ranges are checked by the plan. */
KVTRIM_API kvtrim_code kvtrim_policy_set(kvtrim_policy* policy, const char* key, double value,
                                         kvtrim_error* error);

/** Sets all members to 0, and `size` to that of this struct. */
KVTRIM_API void kvtrim_request_init(kvtrim_request* request);

/** Bytes of workspace that kvtrim_plan_layer needs for these inputs. */
KVTRIM_API kvtrim_code kvtrim_workspace_bytes(const kvtrim_policy* policy, const kvtrim_layer* layer,
                                              const kvtrim_request* request, int64_t* bytes,
                                              kvtrim_error* error);
/** Decides which tokens of each KV head stay. `plan` may be used again. Error: KVTRIM_WORKSPACE_TOO_SMALL (needed: bytes), or
 * what the policy says of the inputs, with the plan unchanged. */
KVTRIM_API kvtrim_code kvtrim_plan_layer(const kvtrim_policy* policy, const kvtrim_layer* layer,
                                         const kvtrim_request* request, kvtrim_plan* plan, void* workspace,
                                         int64_t workspace_bytes, kvtrim_error* error);

/** Makes an empty plan. Error: KVTRIM_INVALID_PARAMETER (a null pointer), KVTRIM_OUT_OF_MEMORY. */
KVTRIM_API kvtrim_code kvtrim_plan_create(kvtrim_plan** plan, kvtrim_error* error);
/** Frees a plan; null: does nothing. */
KVTRIM_API void kvtrim_plan_destroy(kvtrim_plan* plan);
/** KV heads of the plan, 0 if it was never made. The plan as CSR: kept rows of KV head h are
 * kept[offsets[h] ... offsets[h + 1]), ascending. Both tables are valid until the plan is made again or destroyed. */
KVTRIM_API int64_t kvtrim_plan_rows(const kvtrim_plan* plan);
/** [kvtrim_plan_rows + 1] where each row starts in kvtrim_plan_kept; null for a plan that was never made. */
KVTRIM_API const int32_t* kvtrim_plan_offsets(const kvtrim_plan* plan);
/** Kept rows of all heads, ascending in each. */
KVTRIM_API const int32_t* kvtrim_plan_kept(const kvtrim_plan* plan);

/** Moves the survivors of each head to its first rows, in the engine's memory; rows behind them are stale.
 * `values` may be null. They may lie inside the rows of `keys` (MLA) or be the same tensor: then rows move once. Error:
 * KVTRIM_VIEWS_OVERLAP where they share memory in another way, or rows of one tensor overlap each other. */
KVTRIM_API kvtrim_code kvtrim_compact_in_place(const kvtrim_tensor* keys, const kvtrim_tensor* values,
                                               const kvtrim_plan* plan, kvtrim_error* error);

#ifdef __cplusplus
}
#endif

#endif
