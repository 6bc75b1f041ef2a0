/* Copyright (c) kvtrim authors
 * SPDX-License-Identifier: MIT
 *
 * State beside the tokens of a cache, and tables of a model: the newest queries, norms of values, statistics and means of queries,
 * profiles of rows. Each plans as what it was made from, and comes back from its bytes, but not from others.
 */
#include "support.h"

#include <math.h>

static kvtrim_context* context;
static float frequencies[DIM / 2];
static kvtrim_rope rope = {sizeof rope, frequencies, DIM / 2, 0, 0};

/* Saves an object, restores it into `copy`, and refuses its bytes cut short, with more behind them, or of another tag. */
#define COMES_BACK(kind, object, copy)                                                                       \
    do {                                                                                                     \
        unsigned char* bytes;                                                                                \
        int64_t size = 0, again = 0;                                                                         \
        const kvtrim_status asked = kvtrim_##kind##_save(object, NULL, 0, &size);                            \
        refused(asked, KVTRIM_NO_ROOM, #kind ": its size");                                                  \
        check(size > 0 && asked.needed == size, "asking tells the bytes", #kind);                            \
        bytes = (unsigned char*)malloc((size_t)size + 1);                                                    \
        refused(kvtrim_##kind##_save(object, bytes, size - 1, &again), KVTRIM_NO_ROOM,                       \
                #kind ": a byte less");                                                                      \
        ok(kvtrim_##kind##_save(object, bytes, size, &again), #kind ": save");                               \
        check(again == size, "as many bytes", #kind);                                                        \
        bytes[size] = 0;                                                                                     \
        refused(kvtrim_##kind##_restore(copy, bytes, size - 1), KVTRIM_INVALID_PARAMETER,                    \
                #kind ": cut short");                                                                        \
        refused(kvtrim_##kind##_restore(copy, bytes, size + 1), KVTRIM_INVALID_PARAMETER, #kind ": more");   \
        bytes[0] ^= 1;                                                                                       \
        refused(kvtrim_##kind##_restore(copy, bytes, size), KVTRIM_INVALID_PARAMETER,                        \
                #kind ": another tag");                                                                      \
        bytes[0] ^= 1;                                                                                       \
        ok(kvtrim_##kind##_restore(copy, bytes, size), #kind ": restore");                                   \
        refused(kvtrim_##kind##_save(copy, NULL, 0, &again), KVTRIM_NO_ROOM, #kind ": its size");            \
        check(again == size, "what came back is as long", #kind);                                            \
        free(bytes);                                                                                         \
    } while (0)

static void plan_with(const char* name, const char* options, const kvtrim_layer* layers, int64_t count,
                      const kvtrim_request* request, kvtrim_plan** plans) {
    kvtrim_policy* policy = make_policy(name, options);
    ok(kvtrim_plan_layers(policy, layers, count, request, plans, count, context), name);
    kvtrim_policy_destroy(policy);
}

static float long_queries[Q_HEADS * 3 * WINDOW * DIM]; /* [Q_HEADS, 3 WINDOW, DIM] */

static kvtrim_view queries_from(int64_t first, int64_t count) {
    kvtrim_view v;
    kvtrim_view_init(&v, KVTRIM_F32, long_queries + first * DIM, Q_HEADS, count, DIM);
    v.strides[0] = (int64_t)sizeof(float) * 3 * WINDOW * DIM;
    return v;
}
static void shows(kvtrim_queries* q, int64_t rollback, int64_t first, int64_t count, const char* what) {
    static float rows[WINDOW * DIM];
    kvtrim_view v;
    int64_t h;
    ok(kvtrim_queries_view(q, rollback, &v), what);
    ok(kvtrim_view_validate(&v), what);
    for (h = 0; h < Q_HEADS; ++h) {
        ok(kvtrim_view_read(&v, h, 0, count, rows, WINDOW * DIM), what);
        check(memcmp(rows, long_queries + (h * 3 * WINDOW + first) * DIM, (size_t)(count * DIM) * 4) == 0,
              "queries in their order", what);
    }
    refused(kvtrim_view_read(&v, 0, count, 1, rows, DIM), KVTRIM_INVALID_PARAMETER, "one query more");
}

static void newest_queries(void) {
    static const int64_t chunks[] = {3, 1, 9, 4}; /* 17 in all, of which a ring of 8 + 2 holds 10 */
    int element;
    size_t i;
    for (i = 0; i < sizeof long_queries / sizeof *long_queries; ++i) { long_queries[i] = number(i + 400000); }
    for (element = KVTRIM_F32; element <= KVTRIM_BF16; ++element) {
        kvtrim_queries *q = NULL, *copy = NULL, *other = NULL;
        int64_t done_so_far = 0;
        kvtrim_view v;
        ok(kvtrim_queries_create(Q_HEADS, WINDOW, DIM, 2, element, &q), "queries");
        ok(kvtrim_queries_create(1, 1, 1, 0, element, &copy), "others");
        ok(kvtrim_queries_create(1, 1, 1, 0, (element + 1) % 3, &other), "of another element");
        shows(q, 0, 0, 0, "none yet");
        for (i = 0; i < 4; ++i) {
            v = queries_from(done_so_far, chunks[i]);
            ok(kvtrim_queries_append(q, &v), "a chunk");
            done_so_far += chunks[i];
            if (i == 1) { shows(q, 0, 0, 4, "a short sequence"); }
        }
        check(kvtrim_queries_held(q) == WINDOW + 2, "the window and what may be undone", "queries");
        shows(q, 0, 17 - WINDOW, WINDOW, "the newest");
        shows(q, 2, 15 - WINDOW, WINDOW, "before two drafts");
        ok(kvtrim_queries_rollback(q, 2), "the drafts go");
        shows(q, 0, 15 - WINDOW, WINDOW, "without them");
        refused(kvtrim_queries_view(q, 9, &v), KVTRIM_INVALID_PARAMETER, "more drafts than are held");
        ok(kvtrim_queries_view(q, 0, &v), "its own view");
        refused(kvtrim_queries_append(q, &v), KVTRIM_VIEWS_OVERLAP, "queries of its own");
        COMES_BACK(queries, q, copy);
        shows(copy, 0, 15 - WINDOW, WINDOW, "as saved");
        {
            static unsigned char bytes[Q_HEADS * (WINDOW + 2) * DIM * 4 + 200];
            int64_t size = 0;
            ok(kvtrim_queries_save(q, bytes, sizeof bytes, &size), "save");
            refused(kvtrim_queries_restore(other, bytes, size), KVTRIM_INVALID_PARAMETER, "another element");
        }
        kvtrim_queries_destroy(q), kvtrim_queries_destroy(copy), kvtrim_queries_destroy(other);
    }
}

static void the_ring_plans_as_its_queries(void) {
    kvtrim_queries* q = NULL;
    kvtrim_plan *plan = make_plan(), *same = make_plan();
    kvtrim_request r = make_request();
    kvtrim_view chunk = queries_from(0, 3 * WINDOW);
    layer_of_test t;
    make_layer(&t);
    ok(kvtrim_queries_create(Q_HEADS, WINDOW, DIM, 3, KVTRIM_F32, &q), "queries");
    ok(kvtrim_queries_append(q, &chunk), "a prompt");
    t.queries = queries_from(2 * WINDOW, WINDOW);
    plan_with("ada_snapkv", NULL, &t.layer, 1, &r, &plan);
    ok(kvtrim_queries_view(q, 0, &t.queries), "a view");
    check(t.queries.layout == KVTRIM_INDEXED, "the ring has wrapped", "queries");
    plan_with("ada_snapkv", NULL, &t.layer, 1, &r, &same);
    check(same_plan(plan, same), "the same plan", "queries");
    kvtrim_queries_destroy(q);
    kvtrim_plan_destroy(plan), kvtrim_plan_destroy(same);
}

/* Norms that were taken as tokens came plan as W_O does. */
static void norms_of_values(void) {
    static const char* const names[] = {"criticalkv", "ada_criticalkv", "defensivekv", "layer_defensivekv"};
    static const int32_t offsets[] = {0, 2, 3}, kept[] = {4, 90, 7};
    kvtrim_norms *norms = NULL, *packed = NULL, *gram = NULL, *copy = NULL;
    kvtrim_projection *prepared = NULL, *matrices = NULL;
    kvtrim_plan *plans[2] = {make_plan(), make_plan()}, *same[2] = {make_plan(), make_plan()};
    kvtrim_request r = make_request();
    kvtrim_layer layers[2];
    layer_of_test t;
    int64_t n = 0, h, i;
    size_t p;
    make_layer(&t);
    ok(kvtrim_norms_create(KV_HEADS, &norms), "norms"), ok(kvtrim_norms_create(KV_HEADS, &packed), "norms");
    ok(kvtrim_norms_create(KV_HEADS, &gram), "norms"), ok(kvtrim_norms_create(1, &copy), "norms");
    ok(kvtrim_projection_create(&t.projection, KVTRIM_PACKED, &prepared), "packed");
    ok(kvtrim_projection_create(&t.projection, KVTRIM_GRAM, &matrices), "Gram");
    t.keys.extents[1] = t.values.extents[1] = 60; /* of TOKENS rows that are there */
    ok(kvtrim_norms_append(norms, &t.layer, 60, context), "a prompt");
    t.layer.projection = prepared;
    ok(kvtrim_norms_append(packed, &t.layer, 60, context), "a prompt");
    t.layer.projection = NULL;
    t.keys.extents[1] = t.values.extents[1] = TOKENS;
    refused(kvtrim_norms_append(norms, &t.layer, TOKENS - 61, context), KVTRIM_INVALID_PARAMETER, "a gap");
    ok(kvtrim_norms_append(norms, &t.layer, TOKENS - 60, context), "its end");
    t.layer.projection = prepared;
    ok(kvtrim_norms_append(packed, &t.layer, TOKENS - 60, context), "its end");
    t.layer.projection = matrices;
    ok(kvtrim_norms_append(gram, &t.layer, TOKENS, context), "all at once");
    t.layer.projection = NULL;
    for (h = 0; h < KV_HEADS; ++h) {
        for (i = 0; i < TOKENS; ++i) {
            double l1 = 0, l2 = 0; /* means over the group's query heads */
            const float* value = values + (h * TOKENS + i) * DIM;
            int64_t q, c, d;
            for (q = h * Q_HEADS / KV_HEADS; q < (h + 1) * Q_HEADS / KV_HEADS; ++q) {
                double squares = 0;
                for (c = 0; c < HIDDEN; ++c) {
                    double x = 0;
                    for (d = 0; d < DIM; ++d) {
                        x += (double)value[d] * (double)projection[(q * DIM + d) * HIDDEN + c];
                    }
                    l1 += fabs(x) * KV_HEADS / Q_HEADS;
                    squares += x * x;
                }
                l2 += sqrt(squares) * KV_HEADS / Q_HEADS;
            }
            check(fabs((double)kvtrim_norms_of_head(norms, h, &n)[i] - l1) < 1e-3 && n == TOKENS,
                  "L1 of v W_O", "norms");
            check(fabs((double)kvtrim_norms_of_head(packed, h, NULL)[i] - l1) < 1e-3, "L1 of v W_O",
                  "packed");
            check(fabs((double)kvtrim_norms_of_head(gram, h, NULL)[i] - l2) < 1e-3, "L2 of v W_O", "Gram");
        }
    }
    for (p = 0; p < sizeof names / sizeof *names; ++p) {
        const int64_t count = p == 3 ? 2 : 1;
        layers[0] = layers[1] = t.layer;
        plan_with(names[p], NULL, layers, count, &r, plans);
        layers[0].output_projection = layers[1].output_projection = NULL;
        layers[0].norms = layers[1].norms = norms;
        plan_with(names[p], NULL, layers, count, &r, same);
        check(same_plan(plans[0], same[0]) && (count == 1 || same_plan(plans[1], same[1])),
              "norms plan as W_O does", names[p]);
    }
    layers[1].norms = NULL; /* the first layer says what all have */
    {
        kvtrim_policy* policy = make_policy("layer_defensivekv", NULL);
        refused(kvtrim_plan_layers(policy, layers, 2, &r, plans, 2, context), KVTRIM_INVALID_PARAMETER,
                "a layer without norms");
        kvtrim_policy_destroy(policy);
    }
    ok(kvtrim_norms_rollback(norms, 3), "three tokens are undone");
    check(kvtrim_norms_of_head(norms, 0, &n) != NULL && n == TOKENS - 3, "they are gone", "norms");
    ok(kvtrim_plan_assign(plans[0], offsets, KV_HEADS, kept), "a plan");
    ok(kvtrim_norms_compact(norms, plans[0]), "a cut");
    check(kvtrim_norms_of_head(norms, 0, &n)[1] == kvtrim_norms_of_head(packed, 0, NULL)[90] && n == 2 &&
              kvtrim_norms_of_head(norms, 1, &n)[0] == kvtrim_norms_of_head(packed, 1, NULL)[7] && n == 1,
          "survivors keep their norms", "norms");
    COMES_BACK(norms, norms, copy);
    check(kvtrim_norms_of_head(copy, 0, &n)[1] == kvtrim_norms_of_head(norms, 0, NULL)[1] && n == 2,
          "as saved", "norms");
    check(kvtrim_norms_of_head(norms, KV_HEADS, &n) == NULL && n == 0, "no such head", "norms");
    kvtrim_norms_destroy(norms), kvtrim_norms_destroy(packed), kvtrim_norms_destroy(gram),
        kvtrim_norms_destroy(copy);
    kvtrim_projection_destroy(prepared), kvtrim_projection_destroy(matrices);
    kvtrim_plan_destroy(plans[0]), kvtrim_plan_destroy(plans[1]);
    kvtrim_plan_destroy(same[0]), kvtrim_plan_destroy(same[1]);
}

static void replays_in_parts(void) {
    kvtrim_replay *whole = NULL, *part = NULL, *copy = NULL;
    kvtrim_norms* norms = NULL;
    kvtrim_request r = make_request();
    layer_of_test t;
    static float a[TOKENS], b[TOKENS];
    double kept = 0;
    int64_t i, n = 0;
    make_layer(&t);
    ok(kvtrim_replay_create(KV_HEADS, TOKENS, KVTRIM_ATTENTION_MAXIMUM, &whole), "a replay");
    ok(kvtrim_replay_create(KV_HEADS, TOKENS, KVTRIM_ATTENTION_MAXIMUM, &part), "a replay");
    ok(kvtrim_replay_create(1, 0, KVTRIM_OUTPUT_MAXIMUM, &copy), "another");
    ok(kvtrim_replay_add(whole, &t.layer, &r, context), "queries");
    ok(kvtrim_replay_add_part(part, &t.layer, &r, 0, INT64_MAX, 0, context), "all rows as a part");
    ok(kvtrim_replay_scores(whole, 1, a, TOKENS), "scores");
    ok(kvtrim_replay_scores(part, 1, b, TOKENS), "scores");
    check(memcmp(a, b, sizeof a) == 0, "all rows are a part", "replay");
    COMES_BACK(replay, whole, copy);
    ok(kvtrim_replay_scores(copy, 1, b, TOKENS), "scores");
    check(memcmp(a, b, sizeof a) == 0, "as saved", "replay");
    ok(kvtrim_norms_create(KV_HEADS, &norms), "norms");
    refused(kvtrim_replay_weigh(whole, norms), KVTRIM_INVALID_PARAMETER, "norms of no tokens");
    ok(kvtrim_norms_append(norms, &t.layer, TOKENS, context), "norms");
    ok(kvtrim_replay_weigh(whole, norms), "weigh");
    ok(kvtrim_replay_scores(whole, 1, b, TOKENS), "scores");
    for (i = 0; i < TOKENS; ++i) {
        check(b[i] == a[i] * kvtrim_norms_of_head(norms, 1, &n)[i], "a score times a norm", "replay");
    }
    kvtrim_replay_destroy(part);
    part = NULL;
    ok(kvtrim_replay_create(KV_HEADS, TOKENS, KVTRIM_ATTENTION_MAXIMUM, &part), "a replay");
    ok(kvtrim_replay_add_part(part, &t.layer, &r, 20, 50, 4, context), "30 rows beside 4 sinks");
    ok(kvtrim_replay_scores(part, 1, b, TOKENS), "scores");
    for (i = 0; i < TOKENS; ++i) {
        kept += (double)b[i];
        check((b[i] > 0) == (i >= 20 && i < 50), "rows of the part are scored", "replay");
        check(i < 20 || i >= 50 || b[i] >= a[i], "among fewer rows each is worth more", "replay");
    }
    check(kept > 0, "there are scores", "replay");
    refused(kvtrim_replay_add_part(part, &t.layer, &r, 50, 20, 4, context), KVTRIM_INVALID_PARAMETER,
            "a range");
    refused(kvtrim_replay_add_part(part, &t.layer, &r, 0, 20, -4, context), KVTRIM_INVALID_PARAMETER,
            "sinks");
    kvtrim_replay_destroy(whole), kvtrim_replay_destroy(part), kvtrim_replay_destroy(copy);
    kvtrim_norms_destroy(norms);
}

/* W_O as its Gram matrices, made once: the losses are those behind W_O. */
static void replays_behind_prepared_projections(void) {
    kvtrim_replay *plain = NULL, *prepared = NULL;
    kvtrim_projection *gram = NULL, *packed = NULL;
    kvtrim_request r = make_request();
    static float a[TOKENS], b[TOKENS];
    layer_of_test t;
    double sum = 0;
    int64_t i;
    make_layer(&t);
    ok(kvtrim_projection_create(&t.projection, KVTRIM_GRAM, &gram), "Gram");
    ok(kvtrim_projection_create(&t.projection, KVTRIM_PACKED, &packed), "packed");
    ok(kvtrim_replay_create(KV_HEADS, TOKENS, KVTRIM_OUTPUT_SQUARE_SUM, &plain), "a replay");
    ok(kvtrim_replay_create(KV_HEADS, TOKENS, KVTRIM_OUTPUT_SQUARE_SUM, &prepared), "a replay");
    ok(kvtrim_replay_add(plain, &t.layer, &r, context), "behind W_O");
    t.layer.output_projection = NULL;
    t.layer.projection = gram;
    ok(kvtrim_replay_add(prepared, &t.layer, &r, context), "behind its Gram matrices");
    ok(kvtrim_replay_scores(plain, 0, a, TOKENS), "scores");
    ok(kvtrim_replay_scores(prepared, 0, b, TOKENS), "scores");
    for (i = 0; i < TOKENS; ++i) {
        check(fabsf(a[i] - b[i]) <= 1e-4f * a[i] + 1e-6f, "the same losses", "Gram");
        sum += (double)a[i];
    }
    check(sum > 0, "there are some", "Gram");
    t.layer.projection = packed;
    refused(kvtrim_replay_add(prepared, &t.layer, &r, context), KVTRIM_INVALID_PARAMETER,
            "W_O packed for norms");
    kvtrim_replay_destroy(plain), kvtrim_replay_destroy(prepared);
    kvtrim_projection_destroy(gram), kvtrim_projection_destroy(packed);
}

static void statistics_and_means(void) {
    kvtrim_statistics *statistics = NULL, *kept = NULL;
    kvtrim_means *means = NULL, *of_file = NULL;
    kvtrim_plan *plan = make_plan(), *same = make_plan();
    kvtrim_request r = make_request();
    kvtrim_view first = queries_from(0, 10), rest = queries_from(10, 3 * WINDOW - 10);
    layer_of_test t;
    make_layer(&t);
    t.layer.rope = &rope;
    ok(kvtrim_statistics_create(Q_HEADS, DIM, 2, &statistics), "statistics");
    ok(kvtrim_statistics_create(1, 1, 0, &kept), "others");
    ok(kvtrim_statistics_add(statistics, &first, context), "queries");
    COMES_BACK(statistics, statistics, kept);
    ok(kvtrim_statistics_add(statistics, &rest, context), "later ones");
    ok(kvtrim_statistics_add(kept, &rest, context), "later ones");
    t.layer.statistics = statistics;
    plan_with("expected_attention", NULL, &t.layer, 1, &r, &plan);
    t.layer.statistics = kept;
    plan_with("expected_attention", NULL, &t.layer, 1, &r, &same);
    check(same_plan(plan, same), "the same plan", "statistics");

    ok(kvtrim_means_create(Q_HEADS, DIM, &rope, &means), "means");
    rope.interleaved = 1;
    refused(kvtrim_means_create(1, 2, &rope, &of_file), KVTRIM_INVALID_PARAMETER, "more pairs than channels");
    ok(kvtrim_means_create(1, DIM, &rope, &of_file), "others");
    rope.interleaved = 0;
    ok(kvtrim_means_add(means, &first, context), "queries");
    COMES_BACK(means, means, of_file);
    ok(kvtrim_means_add(means, &rest, context), "later ones");
    ok(kvtrim_means_add(of_file, &rest, context), "later ones");
    t.layer.means = means;
    plan_with("triattention", NULL, &t.layer, 1, &r, &plan);
    t.layer.means = of_file;
    plan_with("triattention", NULL, &t.layer, 1, &r, &same);
    check(same_plan(plan, same), "the same plan", "means");
    plan_with("triattention", "next_position=5000 octaves=3", &t.layer, 1, &r, &same);
    check(!same_plan(plan, same), "another position and horizon", "means");
    rope.pairs = DIM / 4;
    {
        kvtrim_policy* policy = make_policy("triattention", NULL);
        refused(kvtrim_plan_layers(policy, &t.layer, 1, &r, &same, 1, context), KVTRIM_INVALID_PARAMETER,
                "means of other pairs");
        kvtrim_policy_destroy(policy);
    }
    rope.pairs = DIM / 2;
    kvtrim_statistics_destroy(statistics), kvtrim_statistics_destroy(kept);
    kvtrim_means_destroy(means), kvtrim_means_destroy(of_file);
    kvtrim_plan_destroy(plan), kvtrim_plan_destroy(same);
}

enum { LAYERS = 2 };

static void profiles_and_preferences(void) {
    static float other[NUMBERS];
    kvtrim_policy *replayed = make_policy("layer_replay", NULL), *cake = make_policy("cake", NULL);
    kvtrim_policy* one = make_policy("replay", NULL);
    kvtrim_replay* replays[LAYERS] = {NULL, NULL};
    kvtrim_profile *profile = NULL, *of_file = NULL;
    kvtrim_plan *plans[LAYERS] = {make_plan(), make_plan()}, *same[LAYERS] = {make_plan(), make_plan()};
    kvtrim_request r = make_request();
    kvtrim_layer layers[LAYERS];
    layer_of_test t[LAYERS];
    double shares[LAYERS] = {-1, -1}, far = 0;
    int l;
    size_t i;
    for (i = 0; i < NUMBERS; ++i) { other[i] = number(i + 555) * 2; }
    for (l = 0; l < LAYERS; ++l) {
        make_layer(&t[l]);
        if (l == 1) { t[l].keys.data = other; }
        ok(kvtrim_replay_create(KV_HEADS, TOKENS, KVTRIM_ATTENTION_MAXIMUM, &replays[l]), "a replay");
        ok(kvtrim_replay_add(replays[l], &t[l].layer, &r, context), "queries");
        t[l].layer.replay = replays[l];
        layers[l] = t[l].layer;
        ok(kvtrim_layer_preference(&layers[l], &r, 0, 0, &shares[l], context), "a preference");
        ok(kvtrim_layer_preference(&layers[l], &r, 1.6, 0.6, &far, context), "by the authors' numbers");
        check(far == shares[l] && far > 0, "they are the default", "preference");
    }
    ok(kvtrim_layer_preference(&layers[0], &r, 3.2, 0.6, &far, context), "another tau");
    check(far != shares[0], "tau matters", "preference");
    refused(kvtrim_layer_preference(&layers[0], &r, -1, 0, &far, context), KVTRIM_INVALID_PARAMETER, "a tau");
    r.layer_shares = shares, r.layer_shares_count = LAYERS;
    ok(kvtrim_plan_layers(cake, layers, LAYERS, &r, plans, LAYERS, context), "CAKE by its preferences");
    check((kvtrim_plan_offsets(plans[0])[KV_HEADS] > kvtrim_plan_offsets(plans[1])[KV_HEADS]) ==
              (shares[0] > shares[1]),
          "the layer with the larger one keeps more", "preference");
    r.layer_shares = NULL, r.layer_shares_count = 0;

    ok(kvtrim_profile_create(&profile), "a profile"), ok(kvtrim_profile_create(&of_file), "another");
    {
        kvtrim_policy* profiled = make_policy("profiled", NULL);
        refused(kvtrim_plan_layers(profiled, layers, LAYERS, &r, plans, LAYERS, context),
                KVTRIM_INVALID_PARAMETER, "no profile");
        r.profile = profile;
        refused(kvtrim_plan_layers(profiled, layers, LAYERS, &r, plans, LAYERS, context),
                KVTRIM_INVALID_PARAMETER, "an empty profile");
        kvtrim_policy_destroy(profiled);
    }
    ok(kvtrim_profile_add(profile, replayed, layers, LAYERS, &r, context), "a prompt");
    refused(kvtrim_profile_add(profile, one, layers, 1, &r, context), KVTRIM_INVALID_PARAMETER, "fewer rows");
    refused(kvtrim_profile_add(profile, one, layers, 2, &r, context), KVTRIM_INVALID_PARAMETER,
            "a policy of one layer");
    check(kvtrim_profile_prompts(profile) == 1 && kvtrim_profile_rows(profile) == LAYERS * KV_HEADS,
          "a row for each head of each layer", "profile");
    COMES_BACK(profile, profile, of_file);
    plan_with("profiled", "nearest=16", layers, LAYERS, &r, plans);
    r.profile = of_file;
    plan_with("profiled", "nearest=16", layers, LAYERS, &r, same);
    check(same_plan(plans[0], same[0]) && same_plan(plans[1], same[1]), "the same plans", "profile");
    for (l = 0; l < LAYERS; ++l) {
        kvtrim_replay_destroy(replays[l]);
        kvtrim_plan_destroy(plans[l]), kvtrim_plan_destroy(same[l]);
    }
    kvtrim_profile_destroy(profile), kvtrim_profile_destroy(of_file);
    kvtrim_policy_destroy(replayed), kvtrim_policy_destroy(cake), kvtrim_policy_destroy(one);
}

int main(void) {
    int i;
    use_all();
    fill();
    for (i = 0; i < DIM / 2; ++i) { frequencies[i] = (float)pow(10000, -2.0 * i / DIM); }
    context = make_context();
    newest_queries();
    the_ring_plans_as_its_queries();
    norms_of_values();
    replays_in_parts();
    replays_behind_prepared_projections();
    statistics_and_means();
    profiles_and_preferences();
    kvtrim_context_destroy(context);
    return done();
}
