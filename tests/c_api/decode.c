/* Copyright (c) kvtrim authors
 * SPDX-License-Identifier: MIT
 *
 * A cache while it lives: positions, interval eviction, running scores, replays; undone, cut, saved and restored.
 */
#include "support.h"

#include <math.h>

static kvtrim_context* context;

static void positions_follow_the_cache(void) {
    static const int32_t offsets[] = {0, 3, 6}, kept[] = {0, 2, 4, 1, 2, 4};
    kvtrim_positions *p = NULL, *copy = NULL;
    kvtrim_plan* plan = make_plan();
    unsigned char bytes[2000];
    int64_t needed = 0;
    ok(kvtrim_positions_create(2, &p), "positions");
    ok(kvtrim_positions_append(p, 5), "5 tokens");
    ok(kvtrim_plan_assign(plan, offsets, 2, kept), "a plan");
    ok(kvtrim_positions_compact(p, plan), "a cut");
    ok(kvtrim_positions_append(p, 2), "2 more");
    check(kvtrim_positions_text(p, 1).count == 5 && kvtrim_positions_text(p, 1).data[0] == 1 &&
              kvtrim_positions_text(p, 1).data[4] == 6 && kvtrim_positions_next(p) == 7 &&
              kvtrim_positions_seen(p) == 7,
          "survivors keep their positions", "positions");
    refused(kvtrim_positions_save(p, NULL, 0, &needed), KVTRIM_NO_ROOM, "how many bytes");
    check(needed > 0 && needed <= (int64_t)sizeof bytes, "bytes", "save");
    ok(kvtrim_positions_save(p, bytes, sizeof bytes, &needed), "save");
    ok(kvtrim_positions_rollback(p, 2), "drafts are undone");
    check(kvtrim_positions_next(p) == 5 && kvtrim_positions_text(p, 1).count == 3, "as before them",
          "rollback");
    refused(kvtrim_positions_rollback(p, 3), KVTRIM_INVALID_PARAMETER, "tokens that were evicted");
    ok(kvtrim_positions_create(0, &copy), "another");
    ok(kvtrim_positions_restore(copy, bytes, needed), "restore");
    check(kvtrim_positions_next(copy) == 7 && kvtrim_positions_text(copy, 1).data[4] == 6, "as saved",
          "restore");
    bytes[0] ^= 1;
    refused(kvtrim_positions_restore(copy, bytes, needed), KVTRIM_INVALID_PARAMETER, "other bytes");
    refused(kvtrim_positions_restore(copy, bytes, needed - 1), KVTRIM_INVALID_PARAMETER, "too few bytes");
    check(kvtrim_positions_next(copy) == 7, "it stays as it was", "restore");
    check(kvtrim_positions_text(p, 2).count == 0 && kvtrim_positions_text(p, -1).data == NULL, "no such head",
          "positions");
    kvtrim_positions_destroy(p);
    kvtrim_positions_destroy(copy);
    kvtrim_plan_destroy(plan);
}

static void gaps_close(void) {
    static const float frequency[] = {0.5f};
    static const int32_t offsets[] = {0, 2}, kept[] = {0, 4};
    kvtrim_rope rope = {sizeof rope, NULL, 1, 0, 0};
    float rows[] = {1, 2, 1, 2};
    kvtrim_positions* p = NULL;
    kvtrim_plan* plan = make_plan();
    kvtrim_view k;
    rope.inverse_frequencies = frequency;
    kvtrim_view_init(&k, KVTRIM_F32, rows, 1, 2, 2);
    ok(kvtrim_positions_create(1, &p), "positions");
    ok(kvtrim_positions_append(p, 5), "5 tokens");
    ok(kvtrim_plan_assign(plan, offsets, 1, kept), "a plan");
    ok(kvtrim_positions_compact(p, plan), "a cut");
    ok(kvtrim_positions_close_up(p, &k, &rope, 0, context), "close up");
    check(kvtrim_positions_next(p) == 2 && kvtrim_positions_seen(p) == 5 &&
              kvtrim_positions_rotary(p, 0).data[1] == 1 && kvtrim_positions_text(p, 0).data[1] == 4,
          "4 is rotated to 1, and stays 4 in the text", "close up");
    check(rows[0] == 1 && fabs((double)rows[2] - (cos(-1.5) - 2 * sin(-1.5))) < 1e-5, "the key turned",
          "close up");
    refused(kvtrim_positions_close_up(p, &k, &rope, 3, context), KVTRIM_INVALID_PARAMETER,
            "pinned rows that there are not");
    kvtrim_positions_destroy(p);
    kvtrim_plan_destroy(plan);
}

/* The cache grows to 40 + 16 tokens and is cut to 40, and never holds more. */
static void an_interval_bounds_the_cache(void) {
    kvtrim_policy* policy = make_policy("key_norm", NULL);
    kvtrim_request r = make_request();
    kvtrim_interval interval = {sizeof interval, NULL, NULL, 16, 0};
    kvtrim_positions* p = NULL;
    kvtrim_plan* plan = make_plan();
    layer_of_test t;
    int64_t lengths[KV_HEADS] = {0, 0}, step, h;
    int32_t due = 0;
    int cuts = 0;
    interval.policy = policy;
    interval.request = &r;
    make_layer(&t);
    t.keys.lengths = lengths;
    ok(kvtrim_positions_create(KV_HEADS, &p), "positions");
    for (step = 0; step < 30; ++step) { /* 5 tokens at a time */
        ok(kvtrim_interval_admits(&interval, p, 5, &due), "admits");
        if (due != 0) {
            ++cuts;
            ok(kvtrim_interval_plan(&interval, &t.layer, plan, context), "a cut");
            ok(kvtrim_compact_in_place(&t.keys, NULL, plan), "carried out");
            ok(kvtrim_positions_compact(p, plan), "recorded");
            for (h = 0; h < KV_HEADS; ++h) { lengths[h] = kept_of(plan, h); }
            check(lengths[0] == 40 && lengths[1] == 40, "a cut leaves the budget", "interval");
        }
        ok(kvtrim_positions_append(p, 5), "5 tokens");
        lengths[0] += 5;
        lengths[1] += 5;
        check(lengths[0] <= 56, "the limit is never passed", "interval");
    }
    check(cuts == 7, "a cut each 15 tokens",
          "interval"); /* 55, then 40 + 15 each: 30 * 5 = 55 + 6 * 15 + 5 */
    refused(kvtrim_interval_admits(&interval, p, 17, &due), KVTRIM_NO_ROOM, "more than the buffer");
    interval.pending_drafts = 17;
    refused(kvtrim_interval_plan(&interval, &t.layer, plan, context), KVTRIM_INVALID_PARAMETER,
            "more drafts than the buffer");
    kvtrim_positions_destroy(p);
    kvtrim_plan_destroy(plan);
    kvtrim_policy_destroy(policy);
    fill();
}

static void sums_run_and_are_undone(void) {
    static const float first[] = {0.5f, 0.25f, 0.25f, 0.125f, 0.75f, 0.125f},
                       second[] = {1, 0, 0, 0, 0, 0, 0, 1};
    static const int32_t offsets[] = {0, 2, 4}, kept[] = {0, 3, 1, 3};
    kvtrim_running *r = NULL, *copy = NULL;
    kvtrim_plan* plan = make_plan();
    unsigned char bytes[2000];
    int64_t n = 0, needed = 0;
    ok(kvtrim_running_create(2, 1, &r), "running scores");
    ok(kvtrim_running_append(r, 3), "3 tokens");
    ok(kvtrim_running_add(r, first, 2, 3, 3), "their attention");
    ok(kvtrim_running_append(r, 1), "a token");
    ok(kvtrim_running_add(r, second, 2, 4, 1), "its attention");
    check(kvtrim_running_sums(r, 0, &n)[0] == 1.5f && n == 4 && kvtrim_running_sums(r, 1, NULL)[3] == 1,
          "sums", "running");
    ok(kvtrim_running_rollback(r, 1), "the token is undone");
    check(kvtrim_running_sums(r, 0, &n)[0] == 0.5f && n == 3, "bit for bit", "running");
    ok(kvtrim_running_append(r, 1), "a token");
    ok(kvtrim_running_add(r, second, 2, 4, 1), "its attention");
    ok(kvtrim_plan_assign(plan, offsets, 2, kept), "a plan");
    ok(kvtrim_running_compact(r, plan), "a cut");
    check(kvtrim_running_sums(r, 1, &n)[0] == 0.75f && n == 2, "survivors keep their sums", "running");
    ok(kvtrim_running_save(r, bytes, sizeof bytes, &needed), "save");
    ok(kvtrim_running_create(2, 1, &copy), "another");
    ok(kvtrim_running_restore(copy, bytes, needed), "restore");
    check(kvtrim_running_sums(copy, 1, &n)[0] == 0.75f && n == 2, "as saved", "running");
    refused(kvtrim_running_add(r, second, 2, 4, 1), KVTRIM_INVALID_PARAMETER, "a query without a token");
    ok(kvtrim_running_append(r, 1), "a token");
    refused(kvtrim_running_add(r, second, 1, 4, 1), KVTRIM_HEADS_NOT_DIVISIBLE, "one row for two heads");
    refused(kvtrim_running_add(r, second, 2, 1, 1), KVTRIM_INVALID_PARAMETER, "too few columns");
    check(kvtrim_running_sums(r, 2, &n) == NULL && n == 0, "no such head", "running");
    kvtrim_running_destroy(r);
    kvtrim_running_destroy(copy);
    kvtrim_plan_destroy(plan);
}

/* The score of a token is the most that a query paid it: computed here in double. */
static void replays_take_maxima(void) {
    static const int32_t offsets[] = {0, 1, 2}, kept[] = {5, 6};
    kvtrim_replay* r = NULL;
    kvtrim_request request = make_request();
    kvtrim_plan* plan = make_plan();
    layer_of_test t;
    float scores[TOKENS], twice[TOKENS], one;
    int64_t head, q, i, d;
    make_layer(&t);
    ok(kvtrim_replay_create(KV_HEADS, TOKENS, KVTRIM_ATTENTION_MAXIMUM, &r), "a replay");
    ok(kvtrim_replay_add(r, &t.layer, &request, context), "queries");
    for (head = 0; head < KV_HEADS; ++head) {
        static double most[TOKENS], weight[TOKENS];
        memset(most, 0, sizeof most);
        for (q = 0; q < Q_HEADS / KV_HEADS * WINDOW; ++q) {
            const float* query = queries + (head * Q_HEADS / KV_HEADS * WINDOW + q) * DIM;
            double sum = 0;
            for (i = 0; i < TOKENS; ++i) {
                double logit = 0;
                for (d = 0; d < DIM; ++d) {
                    logit += (double)query[d] * (double)keys[(head * TOKENS + i) * DIM + d];
                }
                weight[i] = exp(logit / sqrt((double)DIM));
                sum += weight[i];
            }
            for (i = 0; i < TOKENS; ++i) { most[i] = weight[i] / sum > most[i] ? weight[i] / sum : most[i]; }
        }
        ok(kvtrim_replay_scores(r, head, scores, TOKENS), "scores");
        for (i = 0; i < TOKENS; ++i) {
            check(fabs((double)scores[i] - most[i]) < 1e-5, "the maximum", "replay");
        }
    }
    ok(kvtrim_plan_assign(plan, offsets, 2, kept), "a plan");
    ok(kvtrim_replay_compact(r, plan), "a cut");
    ok(kvtrim_replay_scores(r, 1, &one, 1), "what is left");
    check(one == scores[6], "survivors keep their scores", "replay");
    ok(kvtrim_replay_append(r, 2), "2 tokens");
    refused(kvtrim_replay_scores(r, 1, &one, 1), KVTRIM_NO_ROOM, "room for 3");
    kvtrim_replay_destroy(r);
    r = NULL;
    ok(kvtrim_replay_create(KV_HEADS, TOKENS, KVTRIM_OUTPUT_SQUARE_SUM, &r), "a replay of outputs");
    ok(kvtrim_replay_add(r, &t.layer, &request, context), "behind W_O");
    t.layer.output_projection = NULL;
    ok(kvtrim_replay_add_own(r, &t.layer, &request, 0, context), "before W_O, the prompt's own queries");
    ok(kvtrim_replay_scores(r, 0, scores, TOKENS), "scores");
    ok(kvtrim_replay_add_pass(r, r, -1, 3), "the same pass three times more");
    ok(kvtrim_replay_scores(r, 0, twice, TOKENS), "scores");
    for (i = 0; i < TOKENS; ++i) {
        check(fabs((double)twice[i] - 2 * (double)scores[i]) <= 1e-5 * (double)twice[i],
              "four times the squares", "replay");
    }
    t.layer.values = NULL;
    refused(kvtrim_replay_add(r, &t.layer, &request, context), KVTRIM_INVALID_PARAMETER,
            "outputs without values");
    kvtrim_replay_destroy(r);
    kvtrim_plan_destroy(plan);
}

int main(void) {
    use_all();
    fill();
    context = make_context();
    positions_follow_the_cache();
    gaps_close();
    an_interval_bounds_the_cache();
    sums_run_and_are_undone();
    replays_take_maxima();
    kvtrim_context_destroy(context);
    return done();
}
