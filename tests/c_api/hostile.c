/* Copyright (c) kvtrim authors
 * SPDX-License-Identifier: MIT
 *
 * Every argument of every C function wrong in turn: each is answered with a code and a sentence, and nothing is written. What
 * pointers point to is as large as they say; all else may be anything.
 */
#include "support.h"

#include <float.h>
#include <math.h>

static const int64_t huge = (int64_t)1 << 62;
static int64_t asked = 0;

static kvtrim_context* context;
static kvtrim_policy *policy, *every[64];
static kvtrim_plan *plan, *plan_before;
static float cache[2 * NUMBERS], cache_before[2 * NUMBERS];
static layer_of_test good;
static kvtrim_request request;

/* A call was refused: with a code that says what, and with everything as it was. */
static void no(kvtrim_status s, const char* what) {
    ++asked;
    if (s.code == KVTRIM_OK || s.code == KVTRIM_FAILED || s.text == NULL || s.text[0] == 0) {
        printf("FAILED: %s was answered %d\n", what, (int)s.code);
        ++failures;
    }
    check(memcmp(cache, cache_before, sizeof cache) == 0, "the cache is as it was", what);
    check(same_plan(plan, plan_before), "the plan is as it was", what);
    memcpy(cache, cache_before, sizeof cache); /* so that each failure is named once */
}

/* All calls that read this layer's keys. */
static void no_keys(const kvtrim_view* bad, const char* what) {
    static const float frequency[] = {0.5f};
    static const int32_t offsets[KV_HEADS + 1] = {0, 0, 0};
    kvtrim_rope rope = {sizeof rope, NULL, 1, 0, 0};
    layer_of_test t;
    static float out[NUMBERS];
    rope.inverse_frequencies = frequency;
    make_layer(&t);
    t.layer.keys = bad;
    no(kvtrim_view_validate(bad), what);
    no(kvtrim_view_read(bad, 0, 0, 1, out, NUMBERS), what);
    no(kvtrim_plan_layers(policy, &t.layer, 1, &request, &plan, 1, context), what);
    no(kvtrim_compact_in_place(bad, NULL, plan), what);
    no(kvtrim_compact_in_place(&good.keys, bad == NULL ? &t.queries : bad, plan), what);
    no(kvtrim_compact_to_flat(bad, NULL, plan), what);
    no(kvtrim_gather(bad, plan, KVTRIM_F32, out, sizeof out), what);
    no(kvtrim_rerotate_keys(bad, &rope, offsets, NULL, NULL, context), what);
}

static void wrong_views(void) {
    static const int64_t extents[] = {-1, INT64_MIN, INT64_MAX, (int64_t)1 << 62},
                         strides[] = {INT64_MAX, INT64_MIN, (int64_t)1 << 61, 2};
    static const int32_t enums[] = {-1, 12, 1000, INT32_MAX, INT32_MIN};
    static const int64_t lengths[][KV_HEADS] = {{-1, 0}, {0, TOKENS + 1}, {INT64_MAX, INT64_MIN}};
    static const int32_t bad_indices[] = {0, TOKENS, -1, INT32_MAX, INT32_MIN};
    static const int32_t offsets[][3] = {{1, 2, 3}, {0, 5, 4}, {0, -1, 4}};
    static float scales[KV_HEADS * TOKENS];
    kvtrim_view v;
    size_t i;
    int a;
    no_keys(NULL, "no view");
    for (i = 0; i < 4; ++i) {
        v = good.keys;
        v.size = i == 0 ? 0 : i == 1 ? 8 : i == 2 ? sizeof v - 1 : sizeof(void*);
        no_keys(&v, "a size");
        for (a = 0; a < 3; ++a) {
            v = good.keys;
            v.extents[a] = extents[i];
            no_keys(&v, "an extent");
            v = good.keys;
            v.strides[a] = strides[i];
            no_keys(&v, "a stride");
        }
    }
    for (i = 0; i < 5; ++i) {
        v = good.keys;
        v.element = enums[i];
        no_keys(&v, "an element");
        v = good.keys;
        v.layout = enums[i];
        no_keys(&v, "a layout");
    }
    v = good.keys;
    v.data = NULL;
    no_keys(&v, "no data");
    v.data = (char*)cache + 1;
    no_keys(&v, "misaligned data");
    for (i = 0; i < 3; ++i) {
        v = good.keys;
        v.lengths = lengths[i];
        no_keys(&v, "lengths");
        v = good.keys;
        v.layout = KVTRIM_RAGGED;
        v.indptr = i == 0 ? NULL : offsets[i];
        no_keys(&v, "offsets");
    }
    for (i = 1; i < 5; ++i) {
        v = good.keys;
        v.layout = KVTRIM_INDEXED;
        v.indices = bad_indices + i;
        v.index_count = 1;
        no_keys(&v, "an index");
    }
    v.indices = NULL;
    no_keys(&v, "no indices");
    v.indices = bad_indices;
    v.index_count = -1;
    no_keys(&v, "a negative number of indices");
    for (a = KVTRIM_I8; a <= KVTRIM_F8_E5M2; ++a) {
        kvtrim_view_init(&v, a, cache, KV_HEADS, TOKENS, DIM);
        no_keys(&v, "codes without scales");
        v.scales = scales;
        v.scale_strides[1] = 2;
        no_keys(&v, "half a scale");
        v.scale_strides[1] = INT64_MAX - 3;
        no_keys(&v, "scales beyond memory");
        v.scale_strides[1] = 4;
        v.scales = (float*)(void*)((char*)scales + 1);
        no_keys(&v, "misaligned scales");
    }
    kvtrim_view_init(&v, KVTRIM_Q8_0, cache, KV_HEADS, TOKENS, 33);
    no_keys(&v, "part of a block");
    kvtrim_view_init(&v, -1, cache, 1, 1, 1);
    no_keys(&v, "an element that init does not know");
    kvtrim_view_init(&v, KVTRIM_F32, cache, INT64_MAX, INT64_MAX, INT64_MAX);
    no_keys(&v, "everything");
    kvtrim_view_init(NULL, KVTRIM_F32, cache, 1, 1, 1);
}

static void wrong_tables(void) {
    static const int32_t indptr[][2] = {{0, 6}, {0, 7}, {0, -1}, {-1, 6}, {6, 0}}, last[] = {16, 0, 17, -1};
    static int32_t pages[6] = {0, 1, 2, 3, 4, 5};
    kvtrim_view v;
    size_t i;
    int layout;
    for (layout = KVTRIM_PAGED; layout <= KVTRIM_PAGED_PER_HEAD; ++layout) {
        kvtrim_view base;
        kvtrim_view_init(&base, KVTRIM_F32, cache, layout == KVTRIM_PAGED ? KV_HEADS : 1, 0, DIM);
        base.layout = layout;
        base.page_tokens = 16, base.pages = 6;
        base.strides[0] = 4 * DIM, base.strides[1] = 4 * DIM * KV_HEADS,
        base.page_stride = 16 * base.strides[1];
        base.indices = pages, base.index_count = 6, base.indptr = indptr[0], base.last_page = last,
        base.table_rows = 1;
        ok(kvtrim_view_validate(&base), "pages");
        for (i = 1; i < 5; ++i) { v = base, v.indptr = indptr[i], no_keys(&v, "indptr"); }
        for (i = 1; i < 4; ++i) { v = base, v.last_page = last + i, no_keys(&v, "tokens of the last page"); }
        v = base, v.indptr = NULL, no_keys(&v, "no indptr");
        v = base, v.indices = NULL, no_keys(&v, "no pages");
        v = base, v.last_page = NULL, no_keys(&v, "no last_page");
        v = base, v.row = 1, no_keys(&v, "a row that there is not");
        v = base, v.row = INT64_MAX, no_keys(&v, "a row");
        v = base, v.row = -1, no_keys(&v, "a negative row");
        v = base, v.table_rows = -1, no_keys(&v, "a negative number of rows");
        v = base, v.table_rows = INT64_MAX, no_keys(&v, "rows beyond 32 bits");
        v = base, v.index_count = -1, no_keys(&v, "a negative number of pages");
        v = base, v.page_tokens = 0, no_keys(&v, "pages without tokens");
        v = base, v.page_tokens = INT64_MIN, no_keys(&v, "negative pages");
        v = base, v.page_tokens = huge, no_keys(&v, "large pages");
        v = base, v.pages = 5, no_keys(&v, "a page outside the pool");
        v = base, v.pages = INT64_MIN, no_keys(&v, "a negative pool");
        v = base, v.page_stride = huge, no_keys(&v, "a page beyond memory");
        v = base, v.page_stride += 2, no_keys(&v, "half an element");
        v = base, v.strides[2] = 8, no_keys(&v, "channels apart");
        v = base, v.element = KVTRIM_Q8_0, no_keys(&v, "paged blocks");
        pages[3] = -7, no_keys(&base, "a negative page"), pages[3] = 3;
    }
}

static void wrong_requests(void) {
    static const int64_t negative[] = {-1, INT64_MIN};
    static const float floats[] = {-1.0f, (float)HUGE_VAL, (float)NAN};
    static float sinks[Q_HEADS] = {0, 0, (float)NAN, 0};
    kvtrim_request r;
    size_t i, m, p;
    for (p = 0; every[p] != NULL; ++p) {
        kvtrim_scores* scores = NULL;
        ok(kvtrim_scores_create(&scores), "scores");
#define REFUSED(what) no(kvtrim_plan_layers(every[p], &good.layer, 1, &r, &plan, 1, context), what)
        for (i = 0; i < 2; ++i) {
            r = request, r.budget_tokens = negative[i], REFUSED("a negative budget");
            for (m = 0; m < 4; ++m) {
                int64_t* const members[] = {&r.sink_tokens, &r.pinned_tokens, &r.window_tokens,
                                            &r.rollback_tokens};
                r = request, *members[m] = negative[i], REFUSED("a negative count");
                no(kvtrim_score_layer(every[p], &good.layer, &r, scores, context), "a negative count");
                r = request, *members[m] = i == 0 ? INT64_MAX : TOKENS + 1,
                REFUSED("protection beyond the budget");
            }
        }
        r = request, r.budget_tokens = 0, REFUSED("no budget");
        r = request, r.budget_scope = 3, REFUSED("a scope");
        r = request, r.budget_scope = -1, REFUSED("a scope");
        r = request, r.sink_logits_count = -1, REFUSED("a count");
        r = request, r.sink_logits_count = Q_HEADS, REFUSED("a count without logits");
        r = request, r.layer_shares_count = 1, REFUSED("a count without shares");
        r = request, r.size = sizeof r - 4, REFUSED("a size");
        r = request, no(kvtrim_plan_layers(every[p], &good.layer, 1, NULL, &plan, 1, context), "no request");
        check(kvtrim_scores_rows(scores) == 0, "scores are as they were", "scores");
        kvtrim_scores_destroy(scores);
    }
    p = 0; /* attention's options: of the first policy, which reads them */
    for (i = 0; i < 3; ++i) {
        r = request, r.scale = floats[i], REFUSED("a scale");
        r = request, r.soft_cap = floats[i], REFUSED("a cap");
    }
    r = request, r.sliding_window = -1, REFUSED("a sliding window");
    r = request, r.sink_logits = sinks, r.sink_logits_count = Q_HEADS, REFUSED("a logit that is none");
    r = request, r.sink_logits = sinks, r.sink_logits_count = 1, REFUSED("one logit");
#undef REFUSED
}

static void wrong_layers(void) {
    kvtrim_plan *two[2], *none[1] = {NULL};
    layer_of_test t;
    kvtrim_view other;
    size_t p;
    two[0] = two[1] = plan;
    make_layer(&t);
    {
        kvtrim_batch_item item;
        memset(&item, 0, sizeof item);
        no(kvtrim_plan_batch(&item, 1, context), "an item without a size");
        item.size = sizeof item;
        no(kvtrim_plan_batch(&item, 1, context), "an empty item");
        item.policy = policy, item.layers = &t.layer, item.layer_count = 1, item.request = &request;
        item.plans = &plan, item.plan_count = INT64_MAX;
        no(kvtrim_plan_batch(&item, 1, context), "many plans");
        item.layer_count = INT64_MAX;
        no(kvtrim_plan_batch(&item, 1, context), "many layers and plans");
        check(item.answer.code != KVTRIM_OK, "the item is answered", "batch");
        item.layer_count = item.plan_count = INT64_MIN;
        no(kvtrim_plan_batch(&item, 1, context), "fewer than none");
    }
    for (p = 0; every[p] != NULL; ++p) {
        t.layer.size = 8;
        no(kvtrim_plan_layers(every[p], &t.layer, 1, &request, &plan, 1, context), "a size");
        make_layer(&t);
        no(kvtrim_plan_layers(every[p], NULL, 1, &request, &plan, 1, context), "no layers");
        no(kvtrim_plan_layers(every[p], &t.layer, 0, &request, &plan, 0, context), "not one layer");
        no(kvtrim_plan_layers(every[p], &t.layer, INT64_MIN, &request, &plan, 1, context),
           "a negative number of layers");
        no(kvtrim_plan_layers(every[p], &t.layer, INT64_MAX, &request, &plan, 1, context), "many layers");
        no(kvtrim_plan_layers(every[p], &t.layer, 1, &request, NULL, 1, context), "no plans");
        no(kvtrim_plan_layers(every[p], &t.layer, 1, &request, none, 1, context), "a plan that is null");
        no(kvtrim_plan_layers(every[p], &t.layer, 1, &request, two, 2, context), "more plans than layers");
        no(kvtrim_plan_layers(every[p], &t.layer, 1, &request, &plan, 1, NULL), "no context");
    }
    no(kvtrim_plan_layers(NULL, &t.layer, 1, &request, &plan, 1, context), "no policy");
    t.layer.queries = NULL;
    no(kvtrim_plan_layers(policy, &t.layer, 1, &request, &plan, 1, context), "no queries");
    t.layer.queries = &other;
    other = t.queries, other.extents[2] = DIM - 1;
    no(kvtrim_plan_layers(policy, &t.layer, 1, &request, &plan, 1, context), "another head_dim");
    other = t.queries, other.extents[0] = 3;
    no(kvtrim_plan_layers(policy, &t.layer, 1, &request, &plan, 1, context), "3 heads for 2");
    other = t.queries, other.size = 0;
    no(kvtrim_plan_layers(policy, &t.layer, 1, &request, &plan, 1, context), "queries of no size");
}

static void wrong_plans(void) {
    static const int32_t offsets[] = {0, 2, 4}, kept[] = {0, TOKENS, 0, 1}, ascending[] = {3, 1, 0, 1},
                         negative[] = {-1, 1, 0, 1};
    static const int32_t from_one[] = {1, 2, 3}, falling[] = {0, 3, 2};
    kvtrim_plan* other = make_plan();
    no(kvtrim_plan_assign(NULL, offsets, 2, kept), "no plan");
    no(kvtrim_plan_assign(plan, NULL, 2, kept), "no offsets");
    no(kvtrim_plan_assign(plan, offsets, -1, kept), "negative rows");
    no(kvtrim_plan_assign(plan, offsets, INT64_MAX, kept), "many rows");
    no(kvtrim_plan_assign(plan, offsets, 2, NULL), "no rows");
    no(kvtrim_plan_assign(plan, offsets, 2, ascending), "rows that fall");
    no(kvtrim_plan_assign(plan, offsets, 2, negative), "a negative row");
    no(kvtrim_plan_assign(plan, from_one, 2, kept), "offsets from 1 on");
    no(kvtrim_plan_assign(plan, falling, 2, kept), "offsets that fall");
    ok(kvtrim_plan_assign(other, offsets, 2, kept), "a plan for a longer cache");
    no(kvtrim_compact_in_place(&good.keys, NULL, other), "a row that the cache does not have");
    no(kvtrim_compact_to_flat(&good.keys, &good.values, other), "a row that the cache does not have");
    ok(kvtrim_plan_assign(other, offsets, 1, ascending + 2), "a plan of one head");
    no(kvtrim_compact_in_place(&good.keys, &good.values, other), "a plan of another number of heads");
    no(kvtrim_compact_in_place(&good.keys, NULL, NULL), "no plan");
    no(kvtrim_compact_to_flat(&good.keys, NULL, NULL), "no plan");
    no(kvtrim_gather(&good.keys, NULL, KVTRIM_F32, cache, 0), "no plan");
    no(kvtrim_gather(&good.keys, plan, KVTRIM_F32, NULL, 0), "no output");
    no(kvtrim_gather(&good.keys, plan, KVTRIM_F32, cache, INT64_MIN), "a negative output");
    no(kvtrim_gather(&good.keys, plan, 77, cache, sizeof cache), "an element");
    no(kvtrim_plan_share(NULL, TOKENS, 0, plan, context), "no plan");
    no(kvtrim_plan_share(plan, TOKENS, 0, NULL, context), "no output");
    no(kvtrim_plan_share(plan, TOKENS, 0, plan, NULL), "no context");
    no(kvtrim_plan_share(plan, -1, 0, plan, context), "negative tokens");
    no(kvtrim_plan_share(plan, INT64_MAX, 0, plan, context), "many tokens");
    no(kvtrim_plan_share(plan, TOKENS, TOKENS + 1, plan, context), "more than there are");
    no(kvtrim_plan_share(plan, TOKENS, INT64_MIN, plan, context), "a negative number");
    kvtrim_plan_destroy(other);
}

static void wrong_moves(void) {
    static const int32_t indptr[] = {0, 1}, indices[] = {1}, last[] = {4}, twice[] = {0, 0},
                         two_pages[] = {0, 2}, counts[] = {-1, 1};
    static const int32_t offsets[] = {0, 1}, kept[] = {2};
    kvtrim_page_pool p, good_pool;
    kvtrim_moves* moves = NULL;
    kvtrim_plan* one = make_plan();
    kvtrim_view v;
    memset(&p, 0, sizeof p);
    p.size = sizeof p, p.indptr = indptr, p.indices = indices, p.index_count = 1, p.last_page = last,
    p.table_rows = 1;
    p.pages = 2, p.page_tokens = 4, p.heads = 1;
    good_pool = p;
    ok(kvtrim_plan_assign(one, offsets, 1, kept), "a plan");
    ok(kvtrim_moves_create(&moves), "moves");
#define REFUSED(what) no(kvtrim_moves_plan(moves, one, &p, context), what), p = good_pool
    p.size = 0, REFUSED("a size");
    p.indptr = NULL, REFUSED("no indptr");
    p.indices = NULL, REFUSED("no pages");
    p.last_page = NULL, REFUSED("no last page");
    p.table_rows = INT64_MAX, REFUSED("rows");
    p.table_rows = -1, REFUSED("negative rows");
    p.index_count = INT64_MIN, REFUSED("pages");
    p.pages = 0, REFUSED("no pool");
    p.pages = INT64_MIN, REFUSED("a negative pool");
    p.pages = huge, REFUSED("a large pool");
    p.page_tokens = 0, REFUSED("no tokens");
    p.page_tokens = huge, REFUSED("many tokens");
    p.heads = 0, REFUSED("no heads");
    p.heads = INT64_MAX, REFUSED("many heads");
    p.free_count = -1, REFUSED("free pages");
    p.free_count = 1, REFUSED("free pages that are null");
    p.order = 3, REFUSED("an order");
    p.copy_shared = -1, REFUSED("a flag");
    p.ref_counts = counts, REFUSED("a negative count");
    p.indices = twice, p.index_count = 2, p.indptr = two_pages, REFUSED("a page twice");
    no(kvtrim_moves_plan(NULL, one, &p, context), "no moves");
    no(kvtrim_moves_plan(moves, NULL, &p, context), "no plan");
    no(kvtrim_moves_plan(moves, one, NULL, context), "no pool");
    no(kvtrim_moves_plan(moves, one, &p, NULL), "no context");
#undef REFUSED
    check(kvtrim_moves_rows(moves) == 0 && kvtrim_moves_of_row(moves, 0).count == 0 &&
              kvtrim_moves_indptr(NULL).count == 0,
          "nothing was planned", "moves");
    ok(kvtrim_moves_plan(moves, one, &p, context), "moves");
    kvtrim_view_init(&v, KVTRIM_F32, cache, 1, 0, 8);
    v.layout = KVTRIM_PAGED, v.page_tokens = 4, v.pages = 2, v.strides[1] = 32, v.page_stride = 128;
    v.page_tokens = 8, no(kvtrim_moves_run(moves, &v, NULL, context), "pages of another size"),
    v.page_tokens = 4;
    v.extents[0] = -1, no(kvtrim_moves_run(moves, &v, NULL, context), "negative heads"), v.extents[0] = 1;
    v.extents[2] = -8, no(kvtrim_moves_run(moves, &v, NULL, context), "negative channels");
    v.extents[2] = huge, no(kvtrim_moves_run(moves, &v, NULL, context), "many channels"), v.extents[2] = 8;
    v.page_stride = huge, no(kvtrim_moves_run(moves, &v, NULL, context), "a stride"), v.page_stride = 128;
    v.strides[1] = 1, no(kvtrim_moves_run(moves, &v, NULL, context), "rows that overlap"), v.strides[1] = 32;
    v.data = NULL, no(kvtrim_moves_run(moves, &v, NULL, context), "no data"), v.data = cache;
    v.layout = KVTRIM_STRIDED, no(kvtrim_moves_run(moves, &v, NULL, context), "a layout"),
    v.layout = KVTRIM_PAGED;
    no(kvtrim_moves_run(moves, &v, &v, NULL), "no context");
    no(kvtrim_moves_run(NULL, &v, NULL, context), "no moves");
    no(kvtrim_moves_run(moves, NULL, NULL, context), "no memory");
    kvtrim_moves_destroy(moves);
    kvtrim_plan_destroy(one);
}

static void wrong_handles(void) {
    const int64_t numbers[] = {-1, INT64_MIN, INT64_MAX, (int64_t)1 << 62};
    kvtrim_executor threads = {sizeof threads, 1, NULL, NULL};
    kvtrim_positions* positions = NULL;
    kvtrim_running* running = NULL;
    kvtrim_replay* replay = NULL;
    kvtrim_statistics* statistics = NULL;
    kvtrim_context* other = NULL;
    kvtrim_policy_info info = {0, NULL, NULL, 0, 0};
    kvtrim_option_info option;
    kvtrim_interval interval = {sizeof interval, NULL, NULL, 16, 0};
    kvtrim_prefill* prefill = NULL;
    kvtrim_pruning pruning;
    kvtrim_rope rope = {sizeof rope, NULL, 1, 0, 0};
    static const int32_t offsets[] = {0, 1, 2}, from[] = {1, -1};
    static const float frequency[] = {(float)NAN};
    int32_t due = 7;
    int64_t needed = -7, listed = -7;
    char bytes[8] = {0};
    size_t i;
    no(kvtrim_context_create(NULL, NULL), "no context");
    no(kvtrim_context_create(&threads, &other), "no run");
    threads.size = 1, no(kvtrim_context_create(&threads, &other), "a size");
    no(kvtrim_policy_create(NULL, NULL, &policy), "no name");
    no(kvtrim_policy_create("snapkv", NULL, NULL), "no policy");
    no(kvtrim_policy_describe(0, NULL), "no info");
    no(kvtrim_policy_describe(0, &info), "a size of 0");
    info.size = sizeof info;
    memset(&option, 0, sizeof option);
    no(kvtrim_policy_describe_option(0, 0, &option), "a size of 0");
    option.size = sizeof option;
    for (i = 0; i < 4; ++i) {
        no(kvtrim_policy_describe(numbers[i], &info), "an index");
        no(kvtrim_policy_describe_option(numbers[i], 0, &option), "an index");
        no(kvtrim_policy_describe_option(0, numbers[i], &option), "an option");
        no(kvtrim_positions_create(numbers[i], &positions), "heads");
        no(kvtrim_running_create(numbers[i], 0, &running), "heads");
        no(kvtrim_running_create(1, numbers[i], &running), "rollback");
        no(kvtrim_replay_create(numbers[i], 1, 0, &replay), "heads");
        no(kvtrim_replay_create(1, numbers[i], 0, &replay), "tokens");
        no(kvtrim_statistics_create(numbers[i], 1, 0, &statistics), "heads");
        no(kvtrim_statistics_create(1, numbers[i], 0, &statistics), "channels");
    }
    no(kvtrim_statistics_create(1, 1, -1, &statistics), "skipped positions");
    no(kvtrim_replay_create(1, 1, 3, &replay), "a loss");
    check(positions == NULL && running == NULL && replay == NULL && statistics == NULL && other == NULL,
          "nothing was made", "create");
    no(kvtrim_plan_create(NULL), "no plan"), no(kvtrim_scores_create(NULL), "no scores"),
        no(kvtrim_moves_create(NULL), "no moves");
    no(kvtrim_positions_create(1, NULL), "no positions"),
        no(kvtrim_running_create(1, 0, NULL), "no running scores");
    no(kvtrim_replay_create(1, 1, 0, NULL), "no replay"),
        no(kvtrim_statistics_create(1, 1, 0, NULL), "no statistics");
    no(kvtrim_prefill_create(NULL), "no prefill");
    ok(kvtrim_positions_create(KV_HEADS, &positions), "positions"),
        ok(kvtrim_running_create(KV_HEADS, 0, &running), "running");
    ok(kvtrim_replay_create(KV_HEADS, TOKENS, 0, &replay), "replay");
    ok(kvtrim_statistics_create(Q_HEADS, DIM, 0, &statistics), "statistics"),
        ok(kvtrim_prefill_create(&prefill), "prefill");
    for (i = 0; i < 4; ++i) {
        no(kvtrim_positions_append(positions, numbers[i]), "tokens"),
            no(kvtrim_positions_rollback(positions, numbers[i]), "tokens");
        no(kvtrim_running_append(running, numbers[i]), "tokens"),
            no(kvtrim_running_rollback(running, numbers[i]), "tokens");
        no(kvtrim_replay_append(replay, numbers[i]), "tokens");
        no(kvtrim_running_add(running, cache, numbers[i], 1, 1), "rows"),
            no(kvtrim_running_add(running, cache, 1, numbers[i], 1), "columns");
        no(kvtrim_running_add(running, cache, 2, 1, numbers[i]), "queries");
        no(kvtrim_view_read(&good.keys, numbers[i], 0, 0, cache, 0), "a head"),
            no(kvtrim_view_read(&good.keys, 0, numbers[i], 1, cache, DIM), "a row");
        no(kvtrim_view_read(&good.keys, 0, 1, numbers[i], cache, INT64_MAX), "rows");
        no(kvtrim_positions_close_up(positions, &good.keys, &rope, numbers[i], context), "no frequencies");
        check(kvtrim_positions_text(positions, numbers[i]).count == 0 &&
                  kvtrim_running_sums(running, numbers[i], NULL) == NULL,
              "no such head", "get");
    }
    no(kvtrim_view_read(&good.keys, 0, 0, 1, cache + 5, DIM), "an output inside the view");
    no(kvtrim_view_read(&good.keys, 0, 0, 1, NULL, DIM), "no output"),
        no(kvtrim_view_read(&good.keys, 0, 0, 1, cache, DIM - 1), "a short output");
    no(kvtrim_positions_append(NULL, 1), "null"), no(kvtrim_positions_rollback(NULL, 1), "null"),
        no(kvtrim_positions_compact(NULL, plan), "null");
    no(kvtrim_positions_compact(positions, NULL), "null"),
        no(kvtrim_positions_compact(positions, plan), "another cache");
    no(kvtrim_positions_save(NULL, bytes, 8, &needed), "null"),
        no(kvtrim_positions_save(positions, bytes, 8, NULL), "null");
    no(kvtrim_positions_save(positions, NULL, 8, &needed), "null"),
        no(kvtrim_positions_save(positions, bytes, -1, &needed), "bytes");
    no(kvtrim_positions_restore(positions, NULL, 8), "null"),
        no(kvtrim_positions_restore(positions, bytes, -1), "bytes");
    no(kvtrim_positions_restore(positions, bytes, 8), "zeros"),
        no(kvtrim_positions_restore(NULL, bytes, 8), "null");
    no(kvtrim_running_append(NULL, 1), "null"), no(kvtrim_running_add(NULL, cache, 1, 1, 1), "null"),
        no(kvtrim_running_add(running, NULL, 2, 1, 1), "null");
    no(kvtrim_running_update(NULL, &good.layer, &request, context), "null"),
        no(kvtrim_running_update(running, NULL, &request, context), "null");
    no(kvtrim_running_update(running, &good.layer, NULL, context), "null"),
        no(kvtrim_running_update(running, &good.layer, &request, NULL), "null");
    no(kvtrim_running_update(running, &good.layer, &request, context), "a cache of other tokens");
    no(kvtrim_running_rollback(NULL, 0), "null"), no(kvtrim_running_compact(NULL, plan), "null"),
        no(kvtrim_running_compact(running, NULL), "null");
    no(kvtrim_running_compact(running, plan), "another cache"),
        no(kvtrim_running_save(NULL, bytes, 8, &needed), "null");
    no(kvtrim_running_restore(running, bytes, 8), "zeros"),
        no(kvtrim_running_restore(NULL, bytes, 8), "null");
    no(kvtrim_replay_add(NULL, &good.layer, &request, context), "null"),
        no(kvtrim_replay_add(replay, NULL, &request, context), "null");
    no(kvtrim_replay_add(replay, &good.layer, NULL, context), "null"),
        no(kvtrim_replay_add(replay, &good.layer, &request, NULL), "null");
    no(kvtrim_replay_add_own(replay, &good.layer, &request, -1, context), "nearest"),
        no(kvtrim_replay_add_own(NULL, &good.layer, &request, 0, context), "null");
    no(kvtrim_replay_add_pass(NULL, replay, -1, 1), "null"),
        no(kvtrim_replay_add_pass(replay, NULL, -1, 1), "null");
    no(kvtrim_replay_add_pass(replay, replay, INT64_MIN, -1), "a weight"),
        no(kvtrim_replay_add_pass(replay, replay, 0, 1e300), "a weight");
    no(kvtrim_replay_append(NULL, 1), "null"), no(kvtrim_replay_compact(replay, NULL), "null"),
        no(kvtrim_replay_compact(NULL, plan), "null");
    no(kvtrim_replay_scores(NULL, 0, cache, 1), "null"),
        no(kvtrim_replay_scores(replay, -1, cache, 1000), "a head");
    no(kvtrim_replay_scores(replay, KV_HEADS, cache, 1000), "a head"),
        no(kvtrim_replay_scores(replay, 0, NULL, 1000), "null");
    no(kvtrim_statistics_add(NULL, &good.queries, context), "null"),
        no(kvtrim_statistics_add(statistics, NULL, context), "null");
    no(kvtrim_statistics_add(statistics, &good.queries, NULL), "null"),
        no(kvtrim_statistics_add(statistics, &good.keys, context), "other heads");
    no(kvtrim_score_layer(policy, &good.layer, &request, NULL, context), "null"),
        no(kvtrim_plan_batch(NULL, 1, context), "null");
    no(kvtrim_plan_batch(NULL, -1, context), "a count"), no(kvtrim_plan_batch(NULL, 0, NULL), "null");
    no(kvtrim_interval_admits(NULL, positions, 1, &due), "null"),
        no(kvtrim_interval_admits(&interval, positions, 1, &due), "no request");
    interval.request = &request;
    no(kvtrim_interval_admits(&interval, positions, -1, &due), "incoming"),
        no(kvtrim_interval_admits(&interval, NULL, 1, &due), "null");
    no(kvtrim_interval_admits(&interval, positions, 1, NULL), "null"),
        no(kvtrim_interval_plan(&interval, &good.layer, plan, context), "no policy");
    interval.policy = policy, interval.buffer_tokens = INT64_MIN;
    no(kvtrim_interval_plan(&interval, &good.layer, plan, context), "a buffer"),
        no(kvtrim_interval_admits(&interval, positions, 1, &due), "a buffer");
    no(kvtrim_interval_plan(NULL, &good.layer, plan, context), "null"),
        no(kvtrim_interval_plan(&interval, NULL, plan, context), "null");
    no(kvtrim_interval_plan(&interval, &good.layer, NULL, context), "null"),
        no(kvtrim_interval_plan(&interval, &good.layer, plan, NULL), "null");
    no(kvtrim_rerotate_keys(&good.keys, NULL, offsets, from, NULL, context), "no rope"),
        no(kvtrim_rerotate_keys(&good.keys, &rope, offsets, from, NULL, context), "no frequencies");
    rope.inverse_frequencies = frequency;
    no(kvtrim_rerotate_keys(&good.keys, &rope, offsets, from, NULL, context), "a frequency");
    rope.pairs = INT64_MAX,
    no(kvtrim_rerotate_keys(&good.keys, &rope, offsets, from, NULL, context), "pairs");
    rope.pairs = 0,
    no(kvtrim_rerotate_keys(&good.keys, &rope, offsets, from, NULL, context), "a negative position");
    no(kvtrim_rerotate_keys(&good.keys, &rope, NULL, from, NULL, context), "no offsets"),
        no(kvtrim_rerotate_keys(&good.keys, &rope, offsets, NULL, NULL, context), "no positions");
    rope.interleaved = 2,
    no(kvtrim_rerotate_keys(&good.keys, &rope, offsets, from, NULL, context), "a pairing");
    kvtrim_pruning_init(&pruning), kvtrim_pruning_init(NULL), kvtrim_request_init(NULL);
    no(kvtrim_prefill_plan(NULL, &pruning, &good.layer, 0, 0, 1, context), "null"),
        no(kvtrim_prefill_plan(prefill, NULL, &good.layer, 0, 0, 1, context), "null");
    no(kvtrim_prefill_plan(prefill, &pruning, NULL, 0, 0, 1, context), "null"),
        no(kvtrim_prefill_plan(prefill, &pruning, &good.layer, 0, 0, 1, NULL), "null");
    no(kvtrim_prefill_plan(prefill, &pruning, &good.layer, -1, 0, 1, context), "a layer"),
        no(kvtrim_prefill_plan(prefill, &pruning, &good.layer, 0, INT64_MAX, 1, context), "a token");
    for (i = 0; i < 4; ++i) {
        kvtrim_pruning p = pruning;
        p.segment_tokens = numbers[i], p.block_tokens = numbers[3 - i];
        no(kvtrim_prefill_plan(prefill, &p, &good.layer, 0, 0, 1, context), "sizes");
        p = pruning, p.budget_tokens = i == 2 ? 0 : -1,
        no(kvtrim_prefill_plan(prefill, &p, &good.layer, 0, 0, 1, context), "a budget");
        p = pruning, p.sink_blocks = numbers[i],
        no(kvtrim_prefill_plan(prefill, &p, &good.layer, 0, 0, 1, context), "blocks");
    }
    pruning.previous_weight = NAN,
    no(kvtrim_prefill_plan(prefill, &pruning, &good.layer, 0, 0, 1, context), "a weight");
    kvtrim_pruning_init(&pruning),
        pruning.estimate = 3,
        no(kvtrim_prefill_plan(prefill, &pruning, &good.layer, 0, 0, 1, context), "an estimate");
    no(kvtrim_prefill_attention(NULL, &good.layer, &request, &good.queries, NULL, 0, context), "null");
    no(kvtrim_prefill_attention(prefill, &good.layer, &request, NULL, NULL, 0, context), "null");
    no(kvtrim_ragged_attention(&good.layer, &request, NULL, NULL, 0, context), "null"),
        no(kvtrim_ragged_attention(NULL, &request, &good.queries, NULL, 0, context), "null");
    no(kvtrim_ragged_attention(&good.layer, NULL, &good.queries, NULL, 0, context), "null"),
        no(kvtrim_ragged_attention(&good.layer, &request, &good.queries, NULL, 5, context), "sums");
    no(kvtrim_ragged_attention(&good.layer, &request, &good.queries, NULL, 0, NULL), "null");
    no(kvtrim_cascade_create(NULL, &good.layer, &request, 1, NULL), "null"),
        no(kvtrim_cascade_push(NULL, &good.layer, context), "null");
    no(kvtrim_cascade_plan(NULL, 0, plan, &due), "null");
    no(kvtrim_list_cells(NULL, offsets, 3, 0, NULL, 0, &listed, NULL), "null"),
        no(kvtrim_list_cells(offsets, from, 2, 0, NULL, 0, &listed, NULL), "a use");
    no(kvtrim_list_cells(offsets, offsets, -1, 0, NULL, 0, &listed, NULL), "cells"),
        no(kvtrim_list_cells(offsets, offsets, 3, 0, NULL, 9, &listed, NULL), "room");
    check(due == 7 && listed == -7, "outputs are as they were", "out");
    kvtrim_positions_destroy(positions), kvtrim_running_destroy(running), kvtrim_replay_destroy(replay);
    kvtrim_statistics_destroy(statistics), kvtrim_prefill_destroy(prefill);
    kvtrim_context_destroy(NULL), kvtrim_policy_destroy(NULL), kvtrim_plan_destroy(NULL),
        kvtrim_scores_destroy(NULL);
    kvtrim_cascade_destroy(NULL), kvtrim_moves_destroy(NULL), kvtrim_positions_destroy(NULL),
        kvtrim_running_destroy(NULL);
    kvtrim_replay_destroy(NULL), kvtrim_statistics_destroy(NULL), kvtrim_prefill_destroy(NULL);
    check(kvtrim_plan_rows(NULL) == 0 && kvtrim_plan_offsets(NULL) == NULL &&
              kvtrim_plan_kept(NULL) == NULL && kvtrim_scores_rows(NULL) == 0 &&
              kvtrim_scores_importance(NULL) == NULL && kvtrim_cascade_layers(NULL) == 0 &&
              kvtrim_moves_rows(NULL) == 0 && kvtrim_positions_next(NULL) == 0 &&
              kvtrim_prefill_segments(NULL) == 0 && kvtrim_context_bytes(NULL) == 0,
          "null has nothing", "get");
}

int main(void) {
    static const char* const names[] = {"snapkv",           "criticalkv", "defensivekv", "tova",
                                        "layer_ada_snapkv", "dropkv",     "key_norm",    "streaming_llm"};
    size_t i;
    use_all();
    fill();
    memcpy(cache, keys, sizeof keys);
    memcpy(cache + NUMBERS, values, sizeof values);
    memcpy(cache_before, cache, sizeof cache);
    context = make_context();
    plan = make_plan(), plan_before = make_plan();
    for (i = 0; i < sizeof names / sizeof *names; ++i) { every[i] = make_policy(names[i], NULL); }
    policy = every[0];
    make_layer(&good);
    good.keys.data = cache;
    good.values.data = cache + NUMBERS;
    request = make_request();
    ok(kvtrim_plan_layers(policy, &good.layer, 1, &request, &plan, 1, context), "a plan");
    ok(kvtrim_plan_layers(policy, &good.layer, 1, &request, &plan_before, 1, context), "the same");
    wrong_views();
    wrong_tables();
    wrong_requests();
    wrong_layers();
    wrong_plans();
    wrong_moves();
    wrong_handles();
    printf("%lld wrong calls\n", (long long)asked);
    for (i = 0; i < sizeof names / sizeof *names; ++i) { kvtrim_policy_destroy(every[i]); }
    kvtrim_plan_destroy(plan);
    kvtrim_plan_destroy(plan_before);
    kvtrim_context_destroy(context);
    return done();
}
