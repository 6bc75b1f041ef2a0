/* Copyright (c) kvtrim authors
 * SPDX-License-Identifier: MIT
 *
 * kvtrim for C, and for what calls C (Rust, Go, Zig, Python): all of the library behind a few kinds of things.
 *
 *   kvtrim_view       rows of keys, values or queries in the engine's memory: strided, ragged, paged, indexed; f32 to 4-bit blocks
 *   kvtrim_layer      the views of one attention layer        kvtrim_request   budget, protected tokens, attention
 *   kvtrim_context    scratch memory that grows and stays, and the engine's threads: one per calling thread
 *   kvtrim_policy     a method by name, with options          kvtrim_plan      which rows of each KV head stay
 *   kvtrim_scores, kvtrim_replay, kvtrim_positions, ...       state that a caller keeps, one per layer and sequence, saved as bytes
 *
 *     kvtrim_context* context; kvtrim_policy* policy; kvtrim_plan* plan; kvtrim_view keys, queries; ...
 *     kvtrim_context_create(NULL, &context);
 *     kvtrim_policy_create("ada_snapkv", "kernel_tokens=7 pooling=maximum", &policy);
 *     kvtrim_plan_create(&plan);
 *     kvtrim_status s = kvtrim_plan_layers(policy, &layer, 1, &request, &plan, 1, context);
 *     if (s.code == KVTRIM_OK) { s = kvtrim_compact_in_place(&keys, &values, plan); }
 *
 * Answers: every call that can fail returns a kvtrim_status. One that fails has written nothing: outputs, caches and state are as
 * they were. Where memory runs out the first of several plans may be written, a kvtrim_moves is as never planned, and a
 * kvtrim_cascade answers that it has to begin again. No exception leaves the library, and nothing that an engine passes ends the
 * program. Trusted are pointers alone: they are null, or they point, aligned as their type, to what extents, strides, tables and
 * counts say; handles came from this library, or are null, which is answered too.
 * Structs begin with `size`: set it to sizeof the struct, or start from its _init(). Later versions add members at the end, and
 * take a struct as it was before as one whose missing members are 0; in an array all have one size. An _init(), and
 * kvtrim_queries_view, write the struct of the library's own version: a program that may meet a later one sets members itself.
 * Structs without `size`, kvtrim_status and kvtrim_ints, are returned by value, and keep their members in all versions.
 * Objects: made by _create, freed by _destroy (null: does nothing). Pointers that an object hands out are valid until it changes.
 * Calls that share no object they change may run at the same time; policies never change. Equal inputs give equal plans.
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

/** Changes when a program compiled against this header would no longer work with the library; the SOVERSION. */
#define KVTRIM_C_API_VERSION 2

/* ---- Answers ---- */

enum {
    KVTRIM_OK = 0,                      /**< done */
    KVTRIM_BUDGET_ZERO = 1,             /**< the budget must be at least one token */
    KVTRIM_BUDGET_BELOW_PROTECTION = 2, /**< needed: tokens in total */
    KVTRIM_WINDOW_EXCEEDS_TOKENS = 3,   /**< needed: tokens */
    KVTRIM_HEADS_NOT_DIVISIBLE = 4,     /**< q_heads must be a multiple of kv_heads */
    KVTRIM_RATIO_OUT_OF_RANGE = 5,      /**< an option that is a share */
    KVTRIM_INVALID_PARAMETER = 6,       /**< a number, a shape, a name or a null pointer that does not fit */
    KVTRIM_ROWS_DIFFER = 7,             /**< heads of different lengths where they must agree */
    KVTRIM_PLAN_MISMATCH = 8,           /**< a plan made for another cache */
    KVTRIM_INDEX_OVERFLOW = 9,          /**< more tokens than a 32-bit table can address */
    KVTRIM_INVALID_TABLE = 10,          /**< pages, indices or offsets that cannot be */
    KVTRIM_PAGE_SHARED = 11,            /**< a page that others read would have to change */
    KVTRIM_PAGES_TOO_FEW = 12,          /**< needed: free pages */
    KVTRIM_NO_ROOM = 13,                /**< needed: rows, tokens or entries */
    KVTRIM_WORKSPACE_TOO_SMALL = 14,    /**< needed: bytes */
    KVTRIM_VIEWS_OVERLAP = 15,          /**< rows that are moved share memory with others */
    KVTRIM_OUT_OF_MEMORY = 100,         /**< an allocation failed */
    KVTRIM_FAILED = 101                 /**< any other failure */
};

/** What a call answers. */
typedef struct kvtrim_status {
    int32_t code;     /**< KVTRIM_OK or why nothing was done */
    int32_t reserved; /**< 0 */
    int64_t needed;   /**< how much would have been enough; 0 where no number applies */
    const char* text; /**< a sentence for the log; never null, never freed */
} kvtrim_status;

/** KVTRIM_C_API_VERSION that the library was built with. */
KVTRIM_API int32_t kvtrim_api_version(void);
/** "major.minor.patch" of kvtrim. */
KVTRIM_API const char* kvtrim_version(void);
/** "portable", "neon_bf16", "avx2", "avx512" or "amx": the kernels in use. */
KVTRIM_API const char* kvtrim_cpu_level(void);

/** Tables of ints that an object holds. */
typedef struct kvtrim_ints {
    const int32_t* data; /**< [count], memory of the object */
    int64_t count;       /**< entries */
} kvtrim_ints;

/* ---- Views ---- */

/** What rows consist of. Blocks are ggml's, 32 channels each. */
enum {
    KVTRIM_F32 = 0,
    KVTRIM_F16 = 1,
    KVTRIM_BF16 = 2,
    KVTRIM_Q8_0 = 3,
    KVTRIM_Q4_0 = 4,
    KVTRIM_Q4_1 = 5,
    KVTRIM_Q5_0 = 6,
    KVTRIM_Q5_1 = 7,
    KVTRIM_IQ4_NL = 8, /**< read only */
    KVTRIM_I8 = 9,     /**< 8-bit codes with `scales` */
    KVTRIM_F8_E4M3 = 10,
    KVTRIM_F8_E5M2 = 11
};

/** Where row t of head h lies; strides count bytes, of any sign.
 *
 *   STRIDED         data + h * strides[0] + t * strides[1]
 *   INDEXED         the same with indices[t] for t: slots of a pool, cells of a sequence
 *   PAGED           data + page * page_stride + slot * strides[1] + h * strides[0]: slot t % page_tokens of the page
 *                   indices[indptr[row] + t / page_tokens]
 *   PAGED_PER_HEAD  the same with a row of the table, and so a length, for each head: row * heads + h
 *   RAGGED          heads one after the other: row indptr[h] + t of all; with lengths there is room behind the rows of each
 *
 * Channel d is strides[2] bytes behind channel d - 1; blocks follow each other, and strides[2] is the size of one. In PAGED and
 * RAGGED rows channels follow each other. Scales of codes lie as the codes do, at strides of their own; those of RAGGED rows at
 * h * scale_strides[0] + (indptr[h] + t) * scale_strides[1]. */
enum {
    KVTRIM_STRIDED = 0,
    KVTRIM_INDEXED = 1,
    KVTRIM_PAGED = 2,
    KVTRIM_PAGED_PER_HEAD = 3,
    KVTRIM_RAGGED = 4
};

/** Rows in the engine's memory. Members that a layout does not name are not read. */
typedef struct kvtrim_view {
    size_t size;        /**< sizeof(kvtrim_view) */
    int32_t element;    /**< KVTRIM_F32, ... */
    int32_t layout;     /**< KVTRIM_STRIDED, ... */
    void* data;         /**< row 0 of head 0, of page 0, of slot 0 */
    int64_t extents[3]; /**< heads, rows, channels; PAGED and RAGGED: rows are not read, tables say them */
    int64_t strides[3]; /**< bytes from head to head, row to row, channel to channel; RAGGED: not read */
    const int64_t* lengths;   /**< STRIDED, RAGGED: [heads] rows that are filled, or null: all */
    const int32_t* indices;   /**< INDEXED: [index_count] slots; PAGED: [index_count] pages */
    int64_t index_count;      /**< entries of indices */
    const int32_t* indptr;    /**< PAGED: [table_rows + 1]; RAGGED: [heads + 1] */
    const int32_t* last_page; /**< PAGED: [table_rows] tokens in the last page of each row */
    int64_t table_rows;       /**< PAGED: rows of the table: sequences, or sequences * heads */
    int64_t row;              /**< PAGED: which row; PER_HEAD: which sequence */
    int64_t page_tokens;      /**< PAGED: slots of a page */
    int64_t page_stride;      /**< PAGED: bytes from page to page */
    int64_t pages; /**< PAGED: of the pool; -1: not known, page numbers are then not checked against it */
    float* scales; /**< 8-bit codes: x = scale * (code - zero) */
    float* zeros;  /**< 8-bit codes: with the strides of scales, or null */
    int64_t scale_strides[3];  /**< 8-bit codes: bytes; 0: one scale for all heads, rows or channels */
    int64_t scale_page_stride; /**< PAGED 8-bit codes: from page to page of scales, bytes; 0: shared */
} kvtrim_view;

/** A contiguous STRIDED view [heads, rows, channels], head by head, to be changed as needed. Numbers are checked where it is used. */
KVTRIM_API void kvtrim_view_init(kvtrim_view* view, int32_t element, void* data, int64_t heads, int64_t rows,
                                 int64_t channels);
/** Whether a view may be read, as every call that takes it asks. */
KVTRIM_API kvtrim_status kvtrim_view_validate(const kvtrim_view* view);
/** Decodes `count` rows of a head from row `first` on to out [count, channels]: what the library reads. */
KVTRIM_API kvtrim_status kvtrim_view_read(const kvtrim_view* view, int64_t head, int64_t first, int64_t count,
                                          float* out, int64_t out_count);

/** Lists the cells of a sequence in a cache whose cells belong to several (llama.cpp), for INDEXED: ascending in position, then in
 * cell. uses[cell]: 0 not of this sequence, 1 of this one alone, 2 shared. *listed cells are written to `cells`, and of them
 * *shared_prefix are shared ones before the first of its own, to be pinned. Error: KVTRIM_NO_ROOM, KVTRIM_INVALID_TABLE. */
KVTRIM_API kvtrim_status kvtrim_list_cells(const int32_t* positions, const int32_t* uses, int64_t cell_count,
                                           int32_t skip_shared, int32_t* cells, int64_t room, int64_t* listed,
                                           int64_t* shared_prefix);

/** What each cell holds, beside an engine that does not tell (llama.cpp). Every call is one that the program makes of the engine, and
 * repeats here. Sequences are numbered 0 ... 63. */
typedef struct kvtrim_mirror kvtrim_mirror;
KVTRIM_API kvtrim_status kvtrim_mirror_create(int64_t cells, kvtrim_mirror** mirror);
KVTRIM_API void kvtrim_mirror_destroy(kvtrim_mirror* mirror);
/** Token i of a sequence was written to cells[i], at positions[i]. */
KVTRIM_API kvtrim_status kvtrim_mirror_fill(kvtrim_mirror* mirror, int32_t sequence, const int64_t* cells,
                                            const int32_t* positions, int64_t count);
/** llama_memory_seq_rm: positions [begin, end) of a sequence; an end below 0: all behind. */
KVTRIM_API kvtrim_status kvtrim_mirror_remove(kvtrim_mirror* mirror, int32_t sequence, int64_t begin,
                                              int64_t end);
/** llama_memory_seq_add. */
KVTRIM_API kvtrim_status kvtrim_mirror_shift(kvtrim_mirror* mirror, int32_t sequence, int64_t begin,
                                             int64_t end, int64_t delta);
/** llama_memory_seq_cp of a whole sequence in a unified cache. */
KVTRIM_API kvtrim_status kvtrim_mirror_copy(kvtrim_mirror* mirror, int32_t from, int32_t to);
/** State of a sequence saved, removed and set again: its cells are the first free ones then. Refused between a shift and the next
 *  fill: llama.cpp turns shifted keys when it decodes, and would save them unturned. */
KVTRIM_API kvtrim_status kvtrim_mirror_restore(kvtrim_mirror* mirror, int32_t sequence);
/** The cells of a sequence; the other arguments are those of kvtrim_list_cells. */
KVTRIM_API kvtrim_status kvtrim_mirror_list(const kvtrim_mirror* mirror, int32_t sequence,
                                            int32_t skip_shared, int32_t* cells, int64_t room,
                                            int64_t* listed, int64_t* shared_prefix);
/** [cells] positions, -1 where a cell is free. */
KVTRIM_API kvtrim_ints kvtrim_mirror_positions(const kvtrim_mirror* mirror);
/** Cells of a sequence. */
KVTRIM_API int64_t kvtrim_mirror_used(const kvtrim_mirror* mirror, int32_t sequence);
/** One past the highest cell in use by any sequence. */
KVTRIM_API int64_t kvtrim_mirror_end_of_use(const kvtrim_mirror* mirror);

/* ---- Contexts ---- */

/** The engine's threads: calls task(argument, i) once for each i in [0, count), any of them at the same time, and returns after
 * the last has ended. */
typedef struct kvtrim_executor {
    size_t size;     /**< sizeof(kvtrim_executor) */
    int64_t workers; /**< that may run at the same time, 1 ... 4096 */
    void* user;      /**< passed on */
    /** Calls task(argument, i) for each i in [0, count). */
    void (*run)(void* user, int64_t count, void (*task)(void* argument, int64_t index), void* argument);
} kvtrim_executor;

/** Scratch memory and threads. */
typedef struct kvtrim_context kvtrim_context;
/** `executor` is copied; null: the calling thread. */
KVTRIM_API kvtrim_status kvtrim_context_create(const kvtrim_executor* executor, kvtrim_context** context);
KVTRIM_API void kvtrim_context_destroy(kvtrim_context* context);
/** Bytes that it holds: they grow with the largest call and stay. */
KVTRIM_API int64_t kvtrim_context_bytes(const kvtrim_context* context);

/* ---- Policies ---- */

/** What a policy reads of a layer; keys always, but for REPLAY and SCORES. */
enum {
    KVTRIM_NEEDS_VALUES = 1,
    KVTRIM_NEEDS_QUERIES = 2,
    KVTRIM_NEEDS_OUTPUT_PROJECTION = 4,
    KVTRIM_NEEDS_REPLAY = 8,        /**< kvtrim_layer.replay, and no view */
    KVTRIM_NEEDS_STATISTICS = 16,   /**< kvtrim_layer.statistics and .rope */
    KVTRIM_NEEDS_RUNNING = 32,      /**< kvtrim_layer.running */
    KVTRIM_NEEDS_LAYER_SHARES = 64, /**< kvtrim_request.layer_shares */
    KVTRIM_TAKES_LAYERS = 128,      /**< one budget for all layers of a call */
    KVTRIM_TAKES_CASCADE = 256,     /**< kvtrim_cascade_* too */
    KVTRIM_NEEDS_SCORES = 512,      /**< kvtrim_layer.scores, and no other view */
    KVTRIM_NEEDS_MEANS = 1024,      /**< kvtrim_layer.means and .rope */
    KVTRIM_NEEDS_PROFILE = 2048,    /**< kvtrim_request.profile */
    KVTRIM_TAKES_NORMS = 4096,      /**< kvtrim_layer.norms in place of the output projection */
    KVTRIM_NEEDS_ROPE = 8192        /**< kvtrim_layer.rope, of a cache that was never cut */
};

/** A policy of the table. Strings are never freed. */
typedef struct kvtrim_policy_info {
    size_t size;          /**< sizeof(kvtrim_policy_info), set by the caller */
    const char* name;     /**< what kvtrim_policy_create takes */
    const char* text;     /**< what it is, and where it is from */
    int32_t needs;        /**< KVTRIM_NEEDS_..., KVTRIM_TAKES_... */
    int32_t option_count; /**< options that it has */
} kvtrim_policy_info;

enum { KVTRIM_INTEGER = 0, KVTRIM_REAL = 1, KVTRIM_CHOICE = 2 };

/** An option of a policy. */
typedef struct kvtrim_option_info {
    size_t size;         /**< sizeof(kvtrim_option_info), set by the caller */
    const char* name;    /**< by which it is set */
    const char* text;    /**< what it does */
    const char* choices; /**< CHOICE: "none|average|maximum"; else null */
    int32_t type;        /**< KVTRIM_INTEGER, KVTRIM_REAL or KVTRIM_CHOICE */
    int32_t reserved;    /**< 0 */
    double by_default;   /**< CHOICE: the number of the choice, from 0 */
    double lowest;       /**< number that it takes */
    double highest;      /**< number that it takes */
} kvtrim_option_info;

/** Policies of the table. */
KVTRIM_API int64_t kvtrim_policy_count(void);
/** Describes policy `index`. */
KVTRIM_API kvtrim_status kvtrim_policy_describe(int64_t index, kvtrim_policy_info* info);
/** Describes option `option` of policy `index`. */
KVTRIM_API kvtrim_status kvtrim_policy_describe_option(int64_t index, int64_t option,
                                                       kvtrim_option_info* info);

/** A method with its options; never changes. */
typedef struct kvtrim_policy kvtrim_policy;
/** `options`: "name=value name=value", separated by spaces or commas, choices by name; null or "": all by default. Error:
 * KVTRIM_INVALID_PARAMETER for a name, an option or a value that the table does not have (needed: where in `options`, from 1). */
KVTRIM_API kvtrim_status kvtrim_policy_create(const char* name, const char* options, kvtrim_policy** policy);
KVTRIM_API void kvtrim_policy_destroy(kvtrim_policy* policy);

/* ---- Layers, requests, plans ---- */

/** What a second pass over the prompt wants of each cached token (kvtrim_replay_create). */
typedef struct kvtrim_replay kvtrim_replay;
/** Attention that each cached token received so far (kvtrim_running_create). */
typedef struct kvtrim_running kvtrim_running;
/** Mean and covariance of queries (kvtrim_statistics_create). */
typedef struct kvtrim_statistics kvtrim_statistics;
typedef struct kvtrim_means kvtrim_means;
typedef struct kvtrim_norms kvtrim_norms;
typedef struct kvtrim_projection kvtrim_projection;
typedef struct kvtrim_profile kvtrim_profile;

/** A model's rotary embedding. */
typedef struct kvtrim_rope {
    size_t size;                      /**< sizeof(kvtrim_rope) */
    const float* inverse_frequencies; /**< [pairs], radians per position */
    int64_t pairs;                    /**< of channels that are rotated */
    float attention_factor;           /**< YaRN's; 0: 1 */
    int32_t interleaved;              /**< 0: channels i and i + pairs; 1: channels 2 i and 2 i + 1 */
} kvtrim_rope;

/** One attention layer, RoPE applied. What a policy does not need may be null, and is not read. */
typedef struct kvtrim_layer {
    size_t size;                          /**< sizeof(kvtrim_layer) */
    const kvtrim_view* keys;              /**< [kv_heads, tokens, head_dim] */
    const kvtrim_view* values;            /**< [kv_heads, tokens, value_dim] */
    const kvtrim_view* queries;           /**< [q_heads, queries, head_dim], the newest ones */
    const kvtrim_view* output_projection; /**< [q_heads, value_dim, hidden] */
    const kvtrim_replay* replay;          /**< for KVTRIM_NEEDS_REPLAY, else null */
    const kvtrim_running* running;        /**< for policies that read running scores, else null */
    const kvtrim_statistics* statistics;  /**< for policies that read query statistics, else null */
    const kvtrim_rope* rope;              /**< for policies that rotate, else null */
    const kvtrim_view* scores; /**< [kv_heads, tokens, 1] of the engine's own, for KVTRIM_NEEDS_SCORES */
    const kvtrim_means* means; /**< for KVTRIM_NEEDS_MEANS, else null */
    const kvtrim_norms* norms; /**< of all values, for KVTRIM_TAKES_NORMS; null: by output_projection */
    const kvtrim_projection* projection; /**< W_O prepared, for norms and replays; null: as it is */
} kvtrim_layer;

enum { KVTRIM_PER_HEAD = 0, KVTRIM_PER_LAYER = 1, KVTRIM_PER_MODEL = 2 };

/** What is asked. All 0 but size and budget_tokens: nothing is protected, attention is plain. */
typedef struct kvtrim_request {
    size_t size;                   /**< sizeof(kvtrim_request) */
    int64_t budget_tokens;         /**< protected tokens included */
    int32_t budget_scope;          /**< KVTRIM_PER_HEAD (on average), KVTRIM_PER_LAYER, KVTRIM_PER_MODEL */
    float scale;                   /**< of the logits; 0: 1 / sqrt(head_dim) */
    float soft_cap;                /**< 0: none */
    int32_t reserved;              /**< 0 */
    int64_t sink_tokens;           /**< first tokens, which always stay */
    int64_t pinned_tokens;         /**< a shared prefix */
    int64_t window_tokens;         /**< the newest tokens: as many as there are queries */
    int64_t rollback_tokens;       /**< speculative tokens behind the window */
    int64_t sliding_window;        /**< 0: all */
    const float* sink_logits;      /**< [q_heads], or null */
    int64_t sink_logits_count;     /**< entries of sink_logits */
    const double* layer_shares;    /**< [layers] or [layers * kv_heads], for KVTRIM_NEEDS_LAYER_SHARES */
    int64_t layer_shares_count;    /**< entries of layer_shares */
    const kvtrim_profile* profile; /**< for KVTRIM_NEEDS_PROFILE, else null */
} kvtrim_request;

/** Sets all members to 0, and `size`. */
KVTRIM_API void kvtrim_request_init(kvtrim_request* request);

/** Which rows of each KV head stay. */
typedef struct kvtrim_plan kvtrim_plan;
KVTRIM_API kvtrim_status kvtrim_plan_create(kvtrim_plan** plan);
KVTRIM_API void kvtrim_plan_destroy(kvtrim_plan* plan);
/** KV heads of the plan, 0 if it was never made. Kept rows of head h are kept[offsets[h] ... offsets[h + 1]), ascending. */
KVTRIM_API int64_t kvtrim_plan_rows(const kvtrim_plan* plan);
/** [rows + 1], the cumulative lengths of the cut cache; null for a plan that was never made. */
KVTRIM_API const int32_t* kvtrim_plan_offsets(const kvtrim_plan* plan);
/** Kept rows of all heads. */
KVTRIM_API const int32_t* kvtrim_plan_kept(const kvtrim_plan* plan);
/** Fills a plan from tables that the engine has: offsets [rows + 1], ascending kept rows. KVTRIM_INVALID_TABLE for others. */
KVTRIM_API kvtrim_status kvtrim_plan_assign(kvtrim_plan* plan, const int32_t* offsets, int64_t rows,
                                            const int32_t* kept);
/** One token set for all heads of caches of `tokens` rows: the kept_tokens that most heads keep; 0: all that some head keeps.
 * `out` may be `plan`. */
KVTRIM_API kvtrim_status kvtrim_plan_share(const kvtrim_plan* plan, int64_t tokens, int64_t kept_tokens,
                                           kvtrim_plan* out, kvtrim_context* context);

/** Decides which rows stay, in plans[l] for layers[l]: one layer for most policies, all layers under one budget for those that
 * take layers. Plans must differ. */
KVTRIM_API kvtrim_status kvtrim_plan_layers(const kvtrim_policy* policy, const kvtrim_layer* layers,
                                            int64_t layer_count, const kvtrim_request* request,
                                            kvtrim_plan* const* plans, int64_t plan_count,
                                            kvtrim_context* context);

/** A sequence of a batch: the arguments of kvtrim_plan_layers, and its answer. */
typedef struct kvtrim_batch_item {
    size_t size;                   /**< sizeof(kvtrim_batch_item) */
    const kvtrim_policy* policy;   /**< as kvtrim_plan_layers takes it */
    const kvtrim_layer* layers;    /**< [layer_count] */
    int64_t layer_count;           /**< layers of the sequence */
    const kvtrim_request* request; /**< of this sequence */
    kvtrim_plan* const* plans;     /**< [plan_count], one for each layer */
    int64_t plan_count;            /**< plans that are written */
    kvtrim_status answer;          /**< out: what kvtrim_plan_layers would say */
} kvtrim_batch_item;

/** Plans every sequence, spread over the context's threads. One that is refused keeps its plans and does not stop the others.
 * Returns the first refusal. */
KVTRIM_API kvtrim_status kvtrim_plan_batch(kvtrim_batch_item* items, int64_t count, kvtrim_context* context);

/** Scores of one layer's candidates. */
typedef struct kvtrim_scores kvtrim_scores;
KVTRIM_API kvtrim_status kvtrim_scores_create(kvtrim_scores** scores);
KVTRIM_API void kvtrim_scores_destroy(kvtrim_scores* scores);
/** KV heads; candidate c of head h is cache row max(sink, pinned) + c, importance[offsets[h] + c]. */
KVTRIM_API int64_t kvtrim_scores_rows(const kvtrim_scores* scores);
/** [rows + 1]; null before the first scores. */
KVTRIM_API const int64_t* kvtrim_scores_offsets(const kvtrim_scores* scores);
/** [offsets[rows]]; higher stays. */
KVTRIM_API const float* kvtrim_scores_importance(const kvtrim_scores* scores);
/** The scores alone, of one layer; the budget is not read. */
KVTRIM_API kvtrim_status kvtrim_score_layer(const kvtrim_policy* policy, const kvtrim_layer* layer,
                                            const kvtrim_request* request, kvtrim_scores* scores,
                                            kvtrim_context* context);
/** How much of the cache a layer should get by the spread of its attention, for request.layer_shares of policy "cake":
 * H^(1 / tau1) * V^(1 / tau2); a tau of 0: the authors' 1.6 and 0.6. */
KVTRIM_API kvtrim_status kvtrim_layer_preference(const kvtrim_layer* layer, const kvtrim_request* request,
                                                 double tau1, double tau2, double* preference,
                                                 kvtrim_context* context);

/** One token set for all heads and layers, for caches whose cell holds a token of all of them (llama.cpp). */
typedef struct kvtrim_cells kvtrim_cells;
enum { KVTRIM_FOLD_SUM = 0, KVTRIM_FOLD_MAXIMUM = 1, KVTRIM_FOLD_VOTES = 2, KVTRIM_FOLD_SQUARES = 3 };
/** For sequences of `tokens` cells, of which request.budget_tokens stay; budget_scope is not read. */
KVTRIM_API kvtrim_status kvtrim_cells_create(const kvtrim_request* request, int64_t tokens, int32_t fold,
                                             kvtrim_cells** cells);
KVTRIM_API void kvtrim_cells_destroy(kvtrim_cells* cells);
/** Adds what the policy scores in one layer ("given": the engine's own scores). Error: KVTRIM_ROWS_DIFFER for heads that are not
 * as long as the sequence, KVTRIM_INVALID_PARAMETER for scores of +infinity, which would outweigh all others. */
KVTRIM_API kvtrim_status kvtrim_cells_add(kvtrim_cells* cells, const kvtrim_policy* policy,
                                          const kvtrim_layer* layer, kvtrim_context* context);
/** Writes a plan of one row. */
KVTRIM_API kvtrim_status kvtrim_cells_plan(const kvtrim_cells* cells, kvtrim_plan* plan);

/** One budget over all layers while they arrive: after each push no layer holds more than the whole plan would. */
typedef struct kvtrim_cascade kvtrim_cascade;
/** For `layers` layers like this one. */
KVTRIM_API kvtrim_status kvtrim_cascade_create(const kvtrim_policy* policy, const kvtrim_layer* layer,
                                               const kvtrim_request* request, int64_t layers,
                                               kvtrim_cascade** cascade);
KVTRIM_API void kvtrim_cascade_destroy(kvtrim_cascade* cascade);
/** Scores the next layer; kvtrim_cascade_plan then says what goes, in it and in those before. */
KVTRIM_API kvtrim_status kvtrim_cascade_push(kvtrim_cascade* cascade, const kvtrim_layer* layer,
                                             kvtrim_context* context);
/** Layers pushed so far. */
KVTRIM_API int64_t kvtrim_cascade_layers(const kvtrim_cascade* cascade);
/** What stays of a layer's cache as it was before the last push; *changed: whether anything goes. */
KVTRIM_API kvtrim_status kvtrim_cascade_plan(const kvtrim_cascade* cascade, int64_t layer, kvtrim_plan* plan,
                                             int32_t* changed);

/* ---- Plans carried out ---- */

/** Rows that a row of the plan does not keep of `tokens`, as *needed / 2 ascending pairs begin, end. out [out_count], or null and 0
 * to ask; KVTRIM_NO_ROOM. */
KVTRIM_API kvtrim_status kvtrim_plan_removed(const kvtrim_plan* plan, int64_t row, int64_t tokens,
                                             int64_t* out, int64_t out_count, int64_t* needed);

enum { KVTRIM_KEEP_POSITIONS = 0, KVTRIM_TOWARDS_FIRST = 1, KVTRIM_TOWARDS_HORIZON = 2 };

/** How the cells of a sequence are cut by an engine that edits positions (llama.cpp). */
typedef struct kvtrim_cell_edit {
    size_t size;              /**< sizeof(kvtrim_cell_edit) */
    const int32_t* positions; /**< [position_count] of the cells that the plan counts, not descending */
    int64_t position_count;   /**< entries of positions */
    int64_t horizon;          /**< tokens at this position or behind stay as they are; below 0: none do */
    int32_t close;            /**< KVTRIM_KEEP_POSITIONS, ...: what happens to gaps */
    int32_t reserved;         /**< 0 */
    int64_t kept_cells;       /**< out: all that stay */
    int64_t shared_cells;     /**< out: of these, evicted ones at the position of one that is kept */
} kvtrim_cell_edit;

/** Writes the calls of the engine in their order, *needed / 3 triples begin, end, delta: delta 0 removes the positions
 * (llama_memory_seq_rm), another shifts them (llama_memory_seq_add). Arguments as kvtrim_plan_removed; a plan of one row. */
KVTRIM_API kvtrim_status kvtrim_edit_cells(const kvtrim_plan* plan, kvtrim_cell_edit* edit, int64_t* out,
                                           int64_t out_count, int64_t* needed);
/** What that leaves: the cells of the plan's one row, and all that share a position with one of them. `out` is another plan. */
KVTRIM_API kvtrim_status kvtrim_plan_whole_positions(const kvtrim_plan* plan, const int32_t* positions,
                                                     int64_t position_count, kvtrim_plan* out);

/** Moves the survivors of each head to its first rows. STRIDED views, and RAGGED ones, of which `lengths` are the plan's then;
 * `values` may be null. Rows of values that lie inside those of keys (MLA, one tensor) move once. Error: KVTRIM_VIEWS_OVERLAP,
 * KVTRIM_PLAN_MISMATCH. */
KVTRIM_API kvtrim_status kvtrim_compact_in_place(const kvtrim_view* keys, const kvtrim_view* values,
                                                 const kvtrim_plan* plan);
/** Moves all survivors to the front of the buffer, head by head: a RAGGED view with the plan's offsets then. Contiguous STRIDED
 * views, or RAGGED ones, of any element; `values` may be null. Scales that codes have for each row move too, and lie as the rows do,
 * in a view [heads, rows, 1 or channels]: with scale_strides {0, bytes of a row, ...} then. */
KVTRIM_API kvtrim_status kvtrim_compact_to_flat(const kvtrim_view* keys, const kvtrim_view* values,
                                                const kvtrim_plan* plan);
/** The table of a flat cache that grows: behind the rows of each head there is room, so that a new token moves no other row. The
 * memory is the engine's: RAGGED views of kvtrim_flat_view. */
typedef struct kvtrim_flat kvtrim_flat;
/** growth: share of the mean row count that is reserved; 0: 0.25. */
KVTRIM_API kvtrim_status kvtrim_flat_create(int64_t kv_heads, double growth, kvtrim_flat** flat);
KVTRIM_API void kvtrim_flat_destroy(kvtrim_flat* flat);
/** Becomes the cache that kvtrim_compact_to_flat or kvtrim_gather left: rows without room. */
KVTRIM_API kvtrim_status kvtrim_flat_assign(kvtrim_flat* flat, const kvtrim_plan* plan);
/** Room for `count` new tokens in every head: the last rows of each. KVTRIM_NO_ROOM (needed: rows of memory, for _spread). */
KVTRIM_API kvtrim_status kvtrim_flat_append(kvtrim_flat* flat, int64_t count);
/** The rows were cut by kvtrim_compact_in_place: each head keeps its place, and what it lost as room. */
KVTRIM_API kvtrim_status kvtrim_flat_compact(kvtrim_flat* flat, const kvtrim_plan* plan);
/** Divides memory of `rows` rows anew: *needed / 3 triples from, to, count of rows to be moved in this order, with memmove, in all
 * arrays. Arguments as kvtrim_plan_removed; only with room for the list is anything changed. */
KVTRIM_API kvtrim_status kvtrim_flat_spread(kvtrim_flat* flat, int64_t rows, int64_t* out, int64_t out_count,
                                            int64_t* needed);
/** [kv_heads + 1] where heads begin, the last is the capacity. */
KVTRIM_API kvtrim_ints kvtrim_flat_begins(const kvtrim_flat* flat);
/** [kv_heads] rows of each head. */
KVTRIM_API kvtrim_ints kvtrim_flat_lengths(const kvtrim_flat* flat);
/** Makes a view of an array, from kvtrim_view_init, RAGGED by these tables: valid until the object changes. */
KVTRIM_API kvtrim_status kvtrim_flat_view(const kvtrim_flat* flat, kvtrim_view* view);

/** Copies all survivors of any view to out [total, channels] of `element` (f32, f16, bf16), head by head; bits are copied where
 * the rows of the view are such elements. out_bytes: of `out`; KVTRIM_NO_ROOM (needed: bytes). */
KVTRIM_API kvtrim_status kvtrim_gather(const kvtrim_view* cache, const kvtrim_plan* plan, int32_t element,
                                       void* out, int64_t out_bytes);

/** Rotates the first from_offsets[h + 1] - from_offsets[h] keys of each head from positions `from` to `to`; null `to`: to
 * 0, 1, 2, ... Any view that is written (not iq4_nl). */
KVTRIM_API kvtrim_status kvtrim_rerotate_keys(const kvtrim_view* keys, const kvtrim_rope* rope,
                                              const int32_t* from_offsets, const int32_t* from,
                                              const int32_t* to, kvtrim_context* context);

enum { KVTRIM_FEWEST = 0, KVTRIM_FROM_TAIL = 1, KVTRIM_IN_ORDER = 2 };

/** A page table and its pool, for the moves of a plan. */
typedef struct kvtrim_page_pool {
    size_t size;              /**< sizeof(kvtrim_page_pool) */
    const int32_t* indptr;    /**< [table_rows + 1] */
    const int32_t* indices;   /**< [index_count] */
    int64_t index_count;      /**< entries of indices */
    const int32_t* last_page; /**< [table_rows] */
    int64_t table_rows;       /**< sequences, or sequences * heads */
    int64_t pages;            /**< of the pool */
    int64_t page_tokens;      /**< slots of a page */
    int64_t
        heads; /**< that share pages, with token sets of their own; 1: a slot moves with all that it holds */
    const int32_t* ref_counts; /**< [pages], or null: no page is shared */
    const int32_t* free_pages; /**< [free_count] for copies of shared pages, or null */
    int64_t free_count;        /**< entries of free_pages */
    int32_t order;             /**< KVTRIM_FEWEST, KVTRIM_FROM_TAIL, KVTRIM_IN_ORDER */
    int32_t copy_shared;       /**< shared pages that are kept in part: 0 stay whole, 1 are copied */
} kvtrim_page_pool;

enum { KVTRIM_PAGE_SUM = 0, KVTRIM_PAGE_MEAN = 1, KVTRIM_PAGE_MAXIMUM = 2 };

/** Eviction in whole pages: scores of one row's pages from those of its tokens. Policy "given" then plans over [rows, pages, 1], where
 * budget and protection count pages, and kvtrim_plan_removed lists the pages that go. */
KVTRIM_API kvtrim_status kvtrim_score_pages(const float* tokens, int64_t token_count, int64_t page_tokens,
                                            int32_t reduction, float* pages, int64_t page_count);
/** The tokens of the pages that a plan keeps, of rows with `tokens` tokens. `out` is another plan. */
KVTRIM_API kvtrim_status kvtrim_expand_pages(const kvtrim_plan* plan, int64_t page_tokens, int64_t tokens,
                                             kvtrim_plan* out, kvtrim_context* context);
/** A block table (vLLM): pages [requests, most_pages] and lengths in tokens [requests], as the tables of a PAGED view or a
 * kvtrim_page_pool: indptr [requests + 1], indices [index_count], last_page [requests]. *needed: pages in use, also when
 * index_count is less (KVTRIM_NO_ROOM). */
KVTRIM_API kvtrim_status kvtrim_page_table(const int32_t* pages, int64_t requests, int64_t most_pages,
                                           const int32_t* tokens, int64_t page_tokens, int32_t* indptr,
                                           int32_t* indices, int64_t index_count, int32_t* last_page,
                                           int64_t* needed);
/** Plans of several requests as the table of an engine's own kernel (TensorRT-LLM): sources [kv_heads, source_count / kv_heads], of
 * which request r has columns offsets[r] ... offsets[r + 1] (offsets [plan_count + 1]). Token sources[h, offsets[r] + i] of head h
 * moves to first_destinations[r] + i, never forwards; tokens before first_destinations[r] stay. *columns: of all requests, also
 * when there is no room for them (KVTRIM_NO_ROOM). Heads of a request keep equally many tokens. */
KVTRIM_API kvtrim_status kvtrim_move_sources(const kvtrim_plan* const* plans, int64_t plan_count,
                                             const int64_t* first_destinations, int32_t* offsets,
                                             int32_t* sources, int64_t source_count, int64_t* columns);

/** Copies between slots, the table afterwards, and pages that become free. */
typedef struct kvtrim_moves kvtrim_moves;
KVTRIM_API kvtrim_status kvtrim_moves_create(kvtrim_moves** moves);
KVTRIM_API void kvtrim_moves_destroy(kvtrim_moves* moves);
/** Plans the moves; `pool` may not point into `moves`. */
KVTRIM_API kvtrim_status kvtrim_moves_plan(kvtrim_moves* moves, const kvtrim_plan* plan,
                                           const kvtrim_page_pool* pool, kvtrim_context* context);
/** Rows of the keep plan; 0 if never planned. */
KVTRIM_API int64_t kvtrim_moves_rows(const kvtrim_moves* moves);
/** The moves of a row in order, as pairs from, to of slots: page * page_tokens + slot of the page. Empty for no such row. */
KVTRIM_API kvtrim_ints kvtrim_moves_of_row(const kvtrim_moves* moves, int64_t row);
/** The cache row that each slot of a row holds afterwards. */
KVTRIM_API kvtrim_ints kvtrim_moves_origins(const kvtrim_moves* moves, int64_t row);
/** Of the new table: [rows + 1] into its pages. */
KVTRIM_API kvtrim_ints kvtrim_moves_indptr(const kvtrim_moves* moves);
/** Pages of the new table, row after row. */
KVTRIM_API kvtrim_ints kvtrim_moves_indices(const kvtrim_moves* moves);
/** Tokens in the last page of each row of the new table. */
KVTRIM_API kvtrim_ints kvtrim_moves_last_page(const kvtrim_moves* moves);
/** Pages that the table owned and no longer names. */
KVTRIM_API kvtrim_ints kvtrim_moves_freed(const kvtrim_moves* moves);
/** Shared pages that it no longer names: one reference less each. */
KVTRIM_API kvtrim_ints kvtrim_moves_released(const kvtrim_moves* moves);
/** Free pages that the table took, from the first on. */
KVTRIM_API int64_t kvtrim_moves_taken(const kvtrim_moves* moves);
/** Carries the moves out in PAGED or PAGED_PER_HEAD memory, of which the table is not read; `values` may be null. Rows of any
 * element: only bytes move, with the scales and zeros that tokens of 8-bit codes have of their own. Refused, with nothing moved:
 * tokens that share a scale with their page alone. */
KVTRIM_API kvtrim_status kvtrim_moves_run(const kvtrim_moves* moves, const kvtrim_view* keys,
                                          const kvtrim_view* values, kvtrim_context* context);

/* ---- State of a living cache ---- */

/* States save themselves to bytes: *needed is set, and the bytes are written if they fit, else KVTRIM_NO_ROOM; out null and
 * out_bytes 0 asks. */

/** Positions of the cached tokens, in the text and of their keys' rotation. */
typedef struct kvtrim_positions kvtrim_positions;
KVTRIM_API kvtrim_status kvtrim_positions_create(int64_t kv_heads, kvtrim_positions** positions);
KVTRIM_API void kvtrim_positions_destroy(kvtrim_positions* positions);
/** The cache got `count` new tokens at its end, in every head. */
KVTRIM_API kvtrim_status kvtrim_positions_append(kvtrim_positions* positions, int64_t count);
/** The newest `count` tokens were undone (rejected drafts). */
KVTRIM_API kvtrim_status kvtrim_positions_rollback(kvtrim_positions* positions, int64_t count);
/** Keeps the rows of the plan, which compaction moved in the cache. */
KVTRIM_API kvtrim_status kvtrim_positions_compact(kvtrim_positions* positions, const kvtrim_plan* plan);
/** Positions in the text of a head. Empty for no such head. */
KVTRIM_API kvtrim_ints kvtrim_positions_text(const kvtrim_positions* positions, int64_t head);
/** What keys of a head are rotated to. Empty for no such head. */
KVTRIM_API kvtrim_ints kvtrim_positions_rotary(const kvtrim_positions* positions, int64_t head);
/** What the next token is rotated to. */
KVTRIM_API int64_t kvtrim_positions_next(const kvtrim_positions* positions);
/** Tokens that the sequence has had. */
KVTRIM_API int64_t kvtrim_positions_seen(const kvtrim_positions* positions);
/** Rotates the keys so that gaps between rotary positions close behind the first pinned rows, and records it. */
KVTRIM_API kvtrim_status kvtrim_positions_close_up(kvtrim_positions* positions, const kvtrim_view* keys,
                                                   const kvtrim_rope* rope, int64_t pinned_tokens,
                                                   kvtrim_context* context);
/** *needed bytes to `out`, or KVTRIM_NO_ROOM; out null and out_bytes 0 asks. */
KVTRIM_API kvtrim_status kvtrim_positions_save(const kvtrim_positions* positions, void* out,
                                               int64_t out_bytes, int64_t* needed);
/** What save wrote. */
KVTRIM_API kvtrim_status kvtrim_positions_restore(kvtrim_positions* positions, const void* bytes,
                                                  int64_t byte_count);

/** Interval eviction: a cache grows to budget + buffer tokens per KV head, is cut to the budget, and so on. */
typedef struct kvtrim_interval {
    size_t size;                   /**< sizeof(kvtrim_interval) */
    const kvtrim_policy* policy;   /**< one for a single layer */
    const kvtrim_request* request; /**< its budget is what a cut leaves */
    int64_t buffer_tokens;         /**< tokens of each KV head beyond the budget, on average */
    int64_t pending_drafts;        /**< newest tokens that may be undone: they stay beside the budget */
} kvtrim_interval;

/** *due: whether `incoming` more tokens need a cut first. KVTRIM_NO_ROOM where no cut makes room for them (needed: tokens). */
KVTRIM_API kvtrim_status kvtrim_interval_admits(const kvtrim_interval* interval,
                                                const kvtrim_positions* positions, int64_t incoming,
                                                int32_t* due);
/** Plans the cut. */
KVTRIM_API kvtrim_status kvtrim_interval_plan(const kvtrim_interval* interval, const kvtrim_layer* layer,
                                              kvtrim_plan* plan, kvtrim_context* context);

/** Attention that each cached token received so far (H2O); policy "running". */
KVTRIM_API kvtrim_status kvtrim_running_create(int64_t kv_heads, int64_t rollback_tokens,
                                               kvtrim_running** running);
KVTRIM_API void kvtrim_running_destroy(kvtrim_running* running);
/** Appends `count` new tokens to every head. */
KVTRIM_API kvtrim_status kvtrim_running_append(kvtrim_running* running, int64_t count);
/** Adds attention [rows, columns] that the engine has, row-major; rows: kv_heads or q_heads; of the newest `queries` tokens. */
KVTRIM_API kvtrim_status kvtrim_running_add(kvtrim_running* running, const float* attention, int64_t rows,
                                            int64_t columns, int64_t queries);
/** The same from keys and the newest queries of a layer. Attention options are those of the request. */
KVTRIM_API kvtrim_status kvtrim_running_update(kvtrim_running* running, const kvtrim_layer* layer,
                                               const kvtrim_request* request, kvtrim_context* context);
/** Undoes the newest `count` tokens and their queries, bit for bit. */
KVTRIM_API kvtrim_status kvtrim_running_rollback(kvtrim_running* running, int64_t count);
/** Keeps the rows of the plan. */
KVTRIM_API kvtrim_status kvtrim_running_compact(kvtrim_running* running, const kvtrim_plan* plan);
/** Sums of a head, *count of them; null for no such head. */
KVTRIM_API const float* kvtrim_running_sums(const kvtrim_running* running, int64_t head, int64_t* count);
/** *needed bytes to `out`, or KVTRIM_NO_ROOM; out null and out_bytes 0 asks. */
KVTRIM_API kvtrim_status kvtrim_running_save(const kvtrim_running* running, void* out, int64_t out_bytes,
                                             int64_t* needed);
/** What save wrote. */
KVTRIM_API kvtrim_status kvtrim_running_restore(kvtrim_running* running, const void* bytes,
                                                int64_t byte_count);

/** The newest queries, across chunks and steps: what policies with a window read while a sequence grows. */
typedef struct kvtrim_queries kvtrim_queries;
/** `window` queries are seen, and up to rollback_tokens newer ones may be undone. element: f32, f16 or bf16. */
KVTRIM_API kvtrim_status kvtrim_queries_create(int64_t q_heads, int64_t window, int64_t head_dim,
                                               int64_t rollback_tokens, int32_t element,
                                               kvtrim_queries** queries);
KVTRIM_API void kvtrim_queries_destroy(kvtrim_queries* queries);
/** Takes the newest queries [q_heads, any number, head_dim]. */
KVTRIM_API kvtrim_status kvtrim_queries_append(kvtrim_queries* queries, const kvtrim_view* newest);
KVTRIM_API kvtrim_status kvtrim_queries_rollback(kvtrim_queries* queries, int64_t count);
/** Queries held. */
KVTRIM_API int64_t kvtrim_queries_held(const kvtrim_queries* queries);
/** For kvtrim_layer.queries: the newest `window` before the newest rollback_tokens, as a view of the object's
 * own memory: valid until the object changes, or is asked again. */
KVTRIM_API kvtrim_status kvtrim_queries_view(kvtrim_queries* queries, int64_t rollback_tokens,
                                             kvtrim_view* view);
KVTRIM_API kvtrim_status kvtrim_queries_save(const kvtrim_queries* queries, void* out, int64_t out_bytes,
                                             int64_t* needed);
KVTRIM_API kvtrim_status kvtrim_queries_restore(kvtrim_queries* queries, const void* bytes,
                                                int64_t byte_count);

/** W_O prepared once per model layer: kvtrim_layer.projection. */
enum { KVTRIM_PACKED = 0, KVTRIM_GRAM = 1 };
/** form: PACKED as the kernels read it, for norms, which are the same; GRAM: norms are L2 in place of L1, at hidden / value_dim times
 * fewer operations, and replays of outputs need not prepare it for each chunk. */
KVTRIM_API kvtrim_status kvtrim_projection_create(const kvtrim_view* output_projection, int32_t form,
                                                  kvtrim_projection** projection);
KVTRIM_API void kvtrim_projection_destroy(kvtrim_projection* projection);

/** Norms of the cached tokens' values behind W_O, taken when tokens come: kvtrim_layer.norms. */
KVTRIM_API kvtrim_status kvtrim_norms_create(int64_t kv_heads, kvtrim_norms** norms);
KVTRIM_API void kvtrim_norms_destroy(kvtrim_norms* norms);
/** Takes those of the newest `count` tokens of each head, which the layer got at its end: keys, values, and W_O, prepared or not. */
KVTRIM_API kvtrim_status kvtrim_norms_append(kvtrim_norms* norms, const kvtrim_layer* layer, int64_t count,
                                             kvtrim_context* context);
KVTRIM_API kvtrim_status kvtrim_norms_rollback(kvtrim_norms* norms, int64_t count);
KVTRIM_API kvtrim_status kvtrim_norms_compact(kvtrim_norms* norms, const kvtrim_plan* plan);
/** Norms of a head, *count of them; null for no such head. */
KVTRIM_API const float* kvtrim_norms_of_head(const kvtrim_norms* norms, int64_t head, int64_t* count);
KVTRIM_API kvtrim_status kvtrim_norms_save(const kvtrim_norms* norms, void* out, int64_t out_bytes,
                                           int64_t* needed);
KVTRIM_API kvtrim_status kvtrim_norms_restore(kvtrim_norms* norms, const void* bytes, int64_t byte_count);

enum { KVTRIM_ATTENTION_MAXIMUM = 0, KVTRIM_OUTPUT_MAXIMUM = 1, KVTRIM_OUTPUT_SQUARE_SUM = 2 };

/** What a second pass over the prompt wants of each cached token (KVzip); policies "replay", "layer_replay", "replay_uniform",
 * and "layer_afar" for the prompt's own pass. */
KVTRIM_API kvtrim_status kvtrim_replay_create(int64_t kv_heads, int64_t tokens, int32_t loss,
                                              kvtrim_replay** replay);
KVTRIM_API void kvtrim_replay_destroy(kvtrim_replay* replay);
/** Adds the next queries of the replay and the cache they saw: keys, queries, and for losses of outputs values and, if given,
 * W_O. */
KVTRIM_API kvtrim_status kvtrim_replay_add(kvtrim_replay* replay, const kvtrim_layer* layer,
                                           const kvtrim_request* request, kvtrim_context* context);
/** The same of a part of the rows: those from `first` to before `end` are scored, and seen, beside the first sink_tokens. */
KVTRIM_API kvtrim_status kvtrim_replay_add_part(kvtrim_replay* replay, const kvtrim_layer* layer,
                                                const kvtrim_request* request, int64_t first, int64_t end,
                                                int64_t sink_tokens, kvtrim_context* context);
/** Adds the prompt's own queries, those of the newest rows; they score rows at least `nearest` before their own. */
KVTRIM_API kvtrim_status kvtrim_replay_add_own(kvtrim_replay* replay, const kvtrim_layer* layer,
                                               const kvtrim_request* request, int64_t nearest,
                                               kvtrim_context* context);
/** Adds what another pass made of the same rows: sums of squares `weight` times, of maxima the larger. own_nearest: if not negative,
 * `other` is of the prompt's own pass, all of it, with this as its `nearest`; -1: of a replay. After an own pass of 32 with a weight
 * of 2 "layer_replay" plans from what a replay and what the prompt's own queries want. */
KVTRIM_API kvtrim_status kvtrim_replay_add_pass(kvtrim_replay* replay, const kvtrim_replay* other,
                                                int64_t own_nearest, double weight);
/** The cache got `count` new tokens at its end, in every head; their scores are 0. */
KVTRIM_API kvtrim_status kvtrim_replay_append(kvtrim_replay* replay, int64_t count);
/** Keeps the rows of the plan. */
KVTRIM_API kvtrim_status kvtrim_replay_compact(kvtrim_replay* replay, const kvtrim_plan* plan);
/** Multiplies every score by the norm of its token's value, after the last add: for KVTRIM_ATTENTION_MAXIMUM. */
KVTRIM_API kvtrim_status kvtrim_replay_weigh(kvtrim_replay* replay, const kvtrim_norms* norms);
/** Scores of a head to out [out_count]; KVTRIM_NO_ROOM (needed: tokens of the head). */
KVTRIM_API kvtrim_status kvtrim_replay_scores(const kvtrim_replay* replay, int64_t head, float* out,
                                              int64_t out_count);
KVTRIM_API kvtrim_status kvtrim_replay_save(const kvtrim_replay* replay, void* out, int64_t out_bytes,
                                            int64_t* needed);
KVTRIM_API kvtrim_status kvtrim_replay_restore(kvtrim_replay* replay, const void* bytes, int64_t byte_count);

/** How scores fall in each (layer, KV head) row, over prompts: made once per model; request.profile of policy "profiled". */
KVTRIM_API kvtrim_status kvtrim_profile_create(kvtrim_profile** profile);
KVTRIM_API void kvtrim_profile_destroy(kvtrim_profile* profile);
/** Adds one prompt: what the policy ("layer_replay") scores in all of its layers. The budget is not read. */
KVTRIM_API kvtrim_status kvtrim_profile_add(kvtrim_profile* profile, const kvtrim_policy* policy,
                                            const kvtrim_layer* layers, int64_t layer_count,
                                            const kvtrim_request* request, kvtrim_context* context);
/** Prompts added. */
KVTRIM_API int64_t kvtrim_profile_prompts(const kvtrim_profile* profile);
/** Rows of all layers, 0 before the first prompt. */
KVTRIM_API int64_t kvtrim_profile_rows(const kvtrim_profile* profile);
KVTRIM_API kvtrim_status kvtrim_profile_save(const kvtrim_profile* profile, void* out, int64_t out_bytes,
                                             int64_t* needed);
KVTRIM_API kvtrim_status kvtrim_profile_restore(kvtrim_profile* profile, const void* bytes,
                                                int64_t byte_count);

/** Mean and covariance of the queries before RoPE, from position skip_positions on; policy "expected_attention". */
KVTRIM_API kvtrim_status kvtrim_statistics_create(int64_t q_heads, int64_t head_dim, int64_t skip_positions,
                                                  kvtrim_statistics** statistics);
KVTRIM_API void kvtrim_statistics_destroy(kvtrim_statistics* statistics);
/** Adds the sequence's next queries [q_heads, any number, head_dim]. */
KVTRIM_API kvtrim_status kvtrim_statistics_add(kvtrim_statistics* statistics, const kvtrim_view* queries,
                                               kvtrim_context* context);
KVTRIM_API kvtrim_status kvtrim_statistics_save(const kvtrim_statistics* statistics, void* out,
                                                int64_t out_bytes, int64_t* needed);
KVTRIM_API kvtrim_status kvtrim_statistics_restore(kvtrim_statistics* statistics, const void* bytes,
                                                   int64_t byte_count);

/** Mean query before RoPE, and mean length of each of its pairs, of any text: made once per model layer; policy "triattention". */
KVTRIM_API kvtrim_status kvtrim_means_create(int64_t q_heads, int64_t head_dim, const kvtrim_rope* rope,
                                             kvtrim_means** means);
KVTRIM_API void kvtrim_means_destroy(kvtrim_means* means);
/** Adds queries [q_heads, any number, head_dim]. */
KVTRIM_API kvtrim_status kvtrim_means_add(kvtrim_means* means, const kvtrim_view* queries,
                                          kvtrim_context* context);
KVTRIM_API kvtrim_status kvtrim_means_save(const kvtrim_means* means, void* out, int64_t out_bytes,
                                           int64_t* needed);
KVTRIM_API kvtrim_status kvtrim_means_restore(kvtrim_means* means, const void* bytes, int64_t byte_count);

/* ---- Attention, and a pruned prefill ---- */

/** Attention of the newest queries over a cache whose heads may differ in length. out: STRIDED [q_heads, queries, value_dim] of
 * f32, f16 or bf16. log_sum_exp [q_heads * queries], or null. */
KVTRIM_API kvtrim_status kvtrim_ragged_attention(const kvtrim_layer* layer, const kvtrim_request* request,
                                                 const kvtrim_view* out, float* log_sum_exp,
                                                 int64_t log_sum_exp_count, kvtrim_context* context);

enum { KVTRIM_MID_QUERY = 0, KVTRIM_CORNER_QUERY = 1, KVTRIM_MID_QUERY_ADAPTIVE = 2 };

/** CritiPrefill: which cache blocks each segment of a prompt attends. */
typedef struct kvtrim_pruning {
    size_t size; /**< sizeof(kvtrim_pruning) */
    int32_t
        estimate; /**< KVTRIM_MID_QUERY (the authors'), KVTRIM_CORNER_QUERY (Quest's bound), ..._ADAPTIVE (Ada-KV) */
    int32_t dense_last_segment; /**< whether the last segment attends all blocks: 0 or 1 */
    int64_t segment_tokens;     /**< queries of a segment */
    int64_t block_tokens;       /**< tokens of a block */
    int64_t budget_tokens;      /**< tokens that a segment attends, per KV head */
    int64_t dense_below_tokens; /**< segments that begin before it attend all blocks */
    int64_t dense_layers;       /**< first layers that attend all blocks */
    int64_t sink_blocks;        /**< first blocks, always attended */
    int64_t local_blocks;       /**< blocks before the segment, always attended */
    double previous_weight;     /**< of the layer before */
    int64_t first_fused_layer;  /**< first layer to which previous_weight applies */
} kvtrim_pruning;

/** The authors' numbers. */
KVTRIM_API void kvtrim_pruning_init(kvtrim_pruning* pruning);

/** The blocks of one layer, and what the next one is mixed with: one per request. */
typedef struct kvtrim_prefill kvtrim_prefill;
KVTRIM_API kvtrim_status kvtrim_prefill_create(kvtrim_prefill** prefill);
KVTRIM_API void kvtrim_prefill_destroy(kvtrim_prefill* prefill);
/** Plans layer `layer_index` of the chunk that begins at first_token; layer: keys with the chunk's own rows, and its queries. */
KVTRIM_API kvtrim_status kvtrim_prefill_plan(kvtrim_prefill* prefill, const kvtrim_pruning* pruning,
                                             const kvtrim_layer* layer, int64_t layer_index,
                                             int64_t first_token, int32_t ends_prompt,
                                             kvtrim_context* context);
/** Segments of the planned chunk. */
KVTRIM_API int64_t kvtrim_prefill_segments(const kvtrim_prefill* prefill);
/** Blocks that a segment attends in a KV head, ascending. */
KVTRIM_API kvtrim_ints kvtrim_prefill_blocks(const kvtrim_prefill* prefill, int64_t kv_head, int64_t segment);
/** Attention of the chunk over its blocks and itself; arguments as kvtrim_ragged_attention. */
KVTRIM_API kvtrim_status kvtrim_prefill_attention(const kvtrim_prefill* prefill, const kvtrim_layer* layer,
                                                  const kvtrim_request* request, const kvtrim_view* out,
                                                  float* log_sum_exp, int64_t log_sum_exp_count,
                                                  kvtrim_context* context);

#ifdef __cplusplus
}
#endif

#endif
