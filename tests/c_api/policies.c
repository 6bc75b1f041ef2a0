/* Copyright (c) kvtrim authors
 * SPDX-License-Identifier: MIT
 *
 * The table of policies: every name plans with its defaults, every option can be set to its ends, and what the table does not have
 * is refused with the place where it stands. Batches, scores, layers and cascades of them.
 */
#include "support.h"

enum { LAYERS = 3 };

static layer_of_test layers[LAYERS];
static kvtrim_layer layer_structs[LAYERS];
static float layer_keys[LAYERS][NUMBERS];
static kvtrim_replay* replays[LAYERS];
static kvtrim_running* running;
static kvtrim_statistics* statistics;
static kvtrim_means* means;
static kvtrim_profile* profile;
static float scores[LAYERS][KV_HEADS * TOKENS];
static kvtrim_view score_views[LAYERS];
static float frequencies[DIM / 2];
static kvtrim_rope rope;

static void make_state(kvtrim_context* context) {
    kvtrim_request r = make_request();
    kvtrim_policy* replayed;
    int l, i;
    for (l = 0; l < LAYERS; ++l) {
        make_layer(&layers[l]);
        for (i = 0; i < NUMBERS; ++i) {
            layer_keys[l][i] = l == 0 ? keys[i] : number((size_t)(i + 7777 * l));
        }
        layers[l].keys.data = layer_keys[l];
        ok(kvtrim_replay_create(KV_HEADS, TOKENS, KVTRIM_ATTENTION_MAXIMUM, &replays[l]), "a replay");
        ok(kvtrim_replay_add(replays[l], &layers[l].layer, &r, context), "queries of a replay");
    }
    ok(kvtrim_running_create(KV_HEADS, 0, &running), "running scores");
    ok(kvtrim_running_append(running, TOKENS), "tokens");
    ok(kvtrim_running_update(running, &layers[0].layer, &r, context), "their queries");
    ok(kvtrim_statistics_create(Q_HEADS, DIM, 0, &statistics), "statistics");
    ok(kvtrim_statistics_add(statistics, &layers[0].queries, context), "queries of statistics");
    for (i = 0; i < DIM / 2; ++i) { frequencies[i] = 0.1f; }
    rope.size = sizeof rope;
    rope.inverse_frequencies = frequencies;
    rope.pairs = DIM / 2;
    ok(kvtrim_means_create(Q_HEADS, DIM, &rope, &means), "means");
    ok(kvtrim_means_add(means, &layers[0].queries, context), "queries of means");
    for (l = 0; l < LAYERS; ++l) {
        for (i = 0; i < KV_HEADS * TOKENS; ++i) { scores[l][i] = number((size_t)(i * 3 + 99 * l)) + 2.5f; }
        kvtrim_view_init(&score_views[l], KVTRIM_F32, scores[l], KV_HEADS, TOKENS, 1);
        layers[l].layer.scores = &score_views[l];
        layers[l].layer.means = means;
        layers[l].layer.replay = replays[l];
        layers[l].layer.running = running;
        layers[l].layer.statistics = statistics;
        layers[l].layer.rope = &rope;
        layer_structs[l] = layers[l].layer;
    }
    replayed = make_policy("layer_replay", NULL);
    ok(kvtrim_profile_create(&profile), "a profile");
    ok(kvtrim_profile_add(profile, replayed, layer_structs, LAYERS, &r, context), "scores of a profile");
    kvtrim_policy_destroy(replayed);
}

static int is_valid_plan(const kvtrim_plan* p, int64_t heads, int64_t tokens, const kvtrim_request* r) {
    int64_t h, i;
    if (kvtrim_plan_rows(p) != heads) { return 0; }
    for (h = 0; h < heads; ++h) {
        const int32_t* row = row_of(p, h);
        const int64_t n = kept_of(p, h);
        if (n < r->sink_tokens + r->window_tokens || n > tokens) { return 0; }
        for (i = 0; i < n; ++i) {
            if (row[i] < 0 || row[i] >= tokens || (i > 0 && row[i] <= row[i - 1])) { return 0; }
            if (i < r->sink_tokens && row[i] != i) { return 0; }
            if (n - i <= r->window_tokens && row[i] != tokens - (n - i)) { return 0; }
        }
    }
    return 1;
}

/* Plans with a policy over one layer, or over all that it takes. Tokens kept in all. */
static int64_t plan_with(const char* name, const char* options, int32_t needs, kvtrim_plan** plans,
                         kvtrim_context* context) {
    static const double shares[LAYERS] = {1, 2, 1};
    kvtrim_request r = make_request();
    kvtrim_policy* policy = make_policy(name, options);
    const int64_t count = (needs & KVTRIM_TAKES_LAYERS) != 0 ? LAYERS : 1;
    int64_t l, total = 0;
    r.layer_shares = shares;
    r.layer_shares_count = LAYERS;
    r.profile = profile;
    if (strcmp(name, "lagkv") == 0) { r.budget_tokens = 80; }
    ok(kvtrim_plan_layers(policy, layer_structs, count, &r, plans, count, context), name);
    for (l = 0; l < count; ++l) {
        check(is_valid_plan(plans[l], KV_HEADS, TOKENS, &r), "a plan ascends and keeps what is protected",
              name);
        total += kvtrim_plan_offsets(plans[l])[KV_HEADS];
    }
    check(total <= count * KV_HEADS * r.budget_tokens && total > count * KV_HEADS * r.budget_tokens * 9 / 10,
          "the budget is kept, and used", name);
    kvtrim_policy_destroy(policy);
    return total;
}

static void every_policy_plans(kvtrim_plan** plans, kvtrim_context* context) {
    int64_t p, o, e;
    char options[200];
    check(kvtrim_policy_count() >= 39, "all policies are there", "count");
    for (p = 0; p < kvtrim_policy_count(); ++p) {
        kvtrim_policy_info info = {sizeof info, NULL, NULL, 0, 0};
        ok(kvtrim_policy_describe(p, &info), "describe");
        check(info.text != NULL && info.text[0] != 0, "a policy says what it is", info.name);
        plan_with(info.name, strcmp(info.name, "lagkv") == 0 ? "lag=16" : NULL, info.needs, plans, context);
        for (o = 0; o < info.option_count; ++o) {
            kvtrim_option_info option = {sizeof option, NULL, NULL, NULL, 0, 0, 0, 0, 0};
            ok(kvtrim_policy_describe_option(p, o, &option), info.name);
            check(option.by_default >= option.lowest && option.by_default <= option.highest &&
                      option.text[0] != 0,
                  "a default is in range", option.name);
            for (e = 0; e < 2 && option.type != KVTRIM_CHOICE; ++e) {
                kvtrim_policy* policy = NULL;
                const double value = e == 0 ? option.lowest : option.highest;
                sprintf(options, "%s=%.17g", option.name, value);
                ok(kvtrim_policy_create(info.name, options, &policy), options);
                kvtrim_policy_destroy(policy);
                policy = NULL;
                sprintf(options, "%s=%.17g", option.name,
                        e == 0 ? (value < 0 ? value * 2 : -1 - value) : value * 2 + 1);
                refused(kvtrim_policy_create(info.name, options, &policy), KVTRIM_INVALID_PARAMETER, options);
                check(policy == NULL, "nothing is made", options);
            }
            check((option.type == KVTRIM_CHOICE) == (option.choices != NULL), "choices are named",
                  option.name);
        }
    }
}

static void options_change_plans(kvtrim_plan** plans, kvtrim_context* context) {
    kvtrim_policy* policy = NULL;
    kvtrim_status s;
    plan_with("snapkv", NULL, 0, &plans[0], context);
    plan_with("snapkv", "kernel_tokens=5, pooling=average group=mean", 0, &plans[1], context);
    check(same_plan(plans[0], plans[1]), "defaults by name are the defaults", "snapkv");
    plan_with("snapkv", "pooling=maximum kernel_tokens=9", 0, &plans[1], context);
    check(!same_plan(plans[0], plans[1]), "other options are another policy", "snapkv");
    plan_with("ada_snapkv", "safeguard_ratio=1", 0, &plans[1], context);
    check(same_plan(plans[0], plans[1]), "Ada-KV with everything safe is SnapKV", "ada_snapkv");
    plan_with("h2o", NULL, 0, &plans[0], context);
    plan_with("running", NULL, 0, &plans[1], context);
    check(same_plan(plans[0], plans[1]), "sums taken while generating are those of H2O over the same queries",
          "running");
    s = kvtrim_policy_create("snapkv", "kernel_tokens=5 poling=average", &policy);
    refused(s, KVTRIM_INVALID_PARAMETER, "a misspelt option");
    check(s.needed == 17, "it is said where", "needed");
    refused(kvtrim_policy_create("snapkv", "pooling=average pooling", &policy), KVTRIM_INVALID_PARAMETER,
            "no value");
    refused(kvtrim_policy_create("snapkv", "pooling=", &policy), KVTRIM_INVALID_PARAMETER, "an empty value");
    refused(kvtrim_policy_create("snapkv", "pooling=median", &policy), KVTRIM_INVALID_PARAMETER,
            "no such choice");
    refused(kvtrim_policy_create("snapkv", "kernel_tokens=5.5", &policy), KVTRIM_INVALID_PARAMETER,
            "half a token");
    refused(kvtrim_policy_create("snapkv", "kernel_tokens=nan", &policy), KVTRIM_INVALID_PARAMETER, "nan");
    refused(kvtrim_policy_create("snapkv", "safeguard_ratio=0.1", &policy), KVTRIM_INVALID_PARAMETER,
            "another's option");
    refused(kvtrim_policy_create("snappkv", NULL, &policy), KVTRIM_INVALID_PARAMETER, "a misspelt policy");
    check(policy == NULL, "nothing was made", "policy");
}

/* What scores above a threshold stays, and the budget is a bound; where it binds, the best stay. */
static void thresholds_bound_by_a_budget(kvtrim_plan** plans, kvtrim_context* context) {
    kvtrim_policy* policy = make_policy("above_threshold", "threshold=3.75");
    kvtrim_request r = make_request();
    int64_t h, i, above = 0;
    r.budget_tokens = TOKENS;
    ok(kvtrim_plan_layers(policy, layer_structs, 1, &r, plans, 1, context), "a threshold");
    for (h = 0; h < KV_HEADS; ++h) {
        int64_t next = r.sink_tokens;
        for (i = r.sink_tokens; i < TOKENS - WINDOW; ++i) {
            const int stays = row_of(plans[0], h)[next] == i;
            check(stays == (scores[0][h * TOKENS + i] > 3.75f), "what scores above it stays",
                  "above_threshold");
            next += stays;
            above += stays;
        }
        check(next + WINDOW == kept_of(plans[0], h), "and the window", "above_threshold");
    }
    check(above > 10, "some do", "above_threshold");
    kvtrim_policy_destroy(policy);
    plan_with("above_threshold", "threshold=-1e30", 0, &plans[0], context);
    plan_with("ada_given", NULL, 0, &plans[1], context);
    check(same_plan(plans[0], plans[1]), "a low threshold leaves the budget to the best", "above_threshold");
    score_views[0].extents[2] = 2;
    policy = make_policy("given", NULL);
    refused(kvtrim_plan_layers(policy, layer_structs, 1, &r, plans, 1, context), KVTRIM_INVALID_PARAMETER,
            "two scores for a token");
    score_views[0].extents[2] = 1;
    kvtrim_policy_destroy(policy);
}

static void batches_plan_as_alone(kvtrim_context* context) {
    kvtrim_plan *alone[3] = {make_plan(), make_plan(), make_plan()},
                *many[4] = {make_plan(), make_plan(), make_plan(), make_plan()};
    kvtrim_policy *snapkv = make_policy("snapkv", NULL), *layered = make_policy("layer_ada_snapkv", NULL);
    kvtrim_request r = make_request(), zero = make_request();
    kvtrim_batch_item items[3];
    memset(items, 0, sizeof items);
    zero.budget_tokens = 0;
    ok(kvtrim_plan_layers(snapkv, layer_structs, 1, &r, alone, 1, context), "alone");
    items[0].policy = snapkv, items[0].request = &r, items[0].layer_count = 1, items[0].plan_count = 1,
    items[0].plans = &many[0];
    items[1].policy = layered, items[1].request = &r, items[1].layer_count = 2, items[1].plan_count = 2,
    items[1].plans = &many[1];
    items[2].policy = snapkv, items[2].request = &zero, items[2].layer_count = 1, items[2].plan_count = 1,
    items[2].plans = &many[3];
    items[0].layers = items[1].layers = items[2].layers = layer_structs;
    items[0].size = items[1].size = items[2].size = sizeof items[0];
    refused(kvtrim_plan_batch(items, 3, context), KVTRIM_BUDGET_ZERO, "the third of a batch");
    check(items[0].answer.code == KVTRIM_OK && items[1].answer.code == KVTRIM_OK &&
              items[2].answer.code == KVTRIM_BUDGET_ZERO,
          "each has its own answer", "batch");
    check(same_plan(many[0], alone[0]) && kvtrim_plan_rows(many[3]) == 0, "plans are those made alone",
          "batch");
    ok(kvtrim_plan_layers(layered, layer_structs, 2, &r, alone, 2, context), "alone");
    check(same_plan(many[1], alone[0]) && same_plan(many[2], alone[1]), "of layers too", "batch");
    items[2].request = &r;
    items[2].plans = &many[0];
    refused(kvtrim_plan_batch(items, 3, context), KVTRIM_INVALID_PARAMETER, "two sequences with one plan");
    kvtrim_plan_destroy(alone[0]), kvtrim_plan_destroy(alone[1]), kvtrim_plan_destroy(alone[2]);
    kvtrim_plan_destroy(many[0]), kvtrim_plan_destroy(many[1]), kvtrim_plan_destroy(many[2]),
        kvtrim_plan_destroy(many[3]);
    kvtrim_policy_destroy(snapkv), kvtrim_policy_destroy(layered);
}

/* SnapKV keeps the candidates with the best scores. */
static void scores_rank_what_plans_keep(kvtrim_plan** plans, kvtrim_context* context) {
    kvtrim_policy* policy = make_policy("snapkv", NULL);
    kvtrim_scores* scores = NULL;
    kvtrim_request r = make_request();
    int64_t h, c, i;
    ok(kvtrim_scores_create(&scores), "scores");
    ok(kvtrim_score_layer(policy, layer_structs, &r, scores, context), "score");
    ok(kvtrim_plan_layers(policy, layer_structs, 1, &r, plans, 1, context), "plan");
    check(kvtrim_scores_rows(scores) == KV_HEADS && kvtrim_scores_offsets(scores)[1] == TOKENS - 2 - WINDOW,
          "a score for each candidate", "scores");
    for (h = 0; h < KV_HEADS; ++h) {
        const float* row = kvtrim_scores_importance(scores) + kvtrim_scores_offsets(scores)[h];
        float worst_kept = 1e30f, best_gone = -1e30f;
        for (c = 0, i = 2; c < TOKENS - 2 - WINDOW; ++c) {
            if (row_of(plans[0], h)[i] == c + 2) {
                worst_kept = row[c] < worst_kept ? row[c] : worst_kept;
                ++i;
            } else {
                best_gone = row[c] > best_gone ? row[c] : best_gone;
            }
        }
        check(worst_kept >= best_gone, "what stays scores at least what goes", "scores");
    }
    kvtrim_scores_destroy(scores);
    kvtrim_policy_destroy(policy);
}

/* Pushing the layers one by one ends with the plans of all at once: a plan of the cascade is composed with the one before. */
static void cascades_end_as_one_shot(kvtrim_plan** plans, kvtrim_context* context) {
    static int32_t alive[LAYERS][KV_HEADS][TOKENS];
    int64_t counts[LAYERS][KV_HEADS], l, k, h, i;
    kvtrim_policy *policy = make_policy("layer_ada_snapkv", NULL), *other = make_policy("snapkv", NULL);
    kvtrim_cascade* cascade = NULL;
    kvtrim_plan* step = make_plan();
    kvtrim_request r = make_request();
    int32_t changed = 0;
    ok(kvtrim_plan_layers(policy, layer_structs, LAYERS, &r, plans, LAYERS, context), "one shot");
    ok(kvtrim_cascade_create(policy, layer_structs, &r, LAYERS, &cascade), "a cascade");
    for (l = 0; l < LAYERS; ++l) {
        ok(kvtrim_cascade_push(cascade, &layer_structs[l], context), "push");
        for (h = 0; h < KV_HEADS; ++h) {
            counts[l][h] = TOKENS;
            for (i = 0; i < TOKENS; ++i) { alive[l][h][i] = (int32_t)i; }
        }
        for (k = 0; k <= l; ++k) {
            ok(kvtrim_cascade_plan(cascade, k, step, &changed), "plan of the cascade");
            for (h = 0; h < KV_HEADS; ++h) {
                check(changed != 0 || kept_of(step, h) == counts[k][h],
                      "a layer that did not change keeps all", "cascade");
                counts[k][h] = kept_of(step, h);
                for (i = 0; i < counts[k][h]; ++i) { alive[k][h][i] = alive[k][h][row_of(step, h)[i]]; }
            }
        }
    }
    for (l = 0; l < LAYERS; ++l) {
        for (h = 0; h < KV_HEADS; ++h) {
            check(counts[l][h] == kept_of(plans[l], h) &&
                      memcmp(alive[l][h], row_of(plans[l], h), (size_t)counts[l][h] * sizeof(int32_t)) == 0,
                  "the cascade ends as one shot", "cascade");
        }
    }
    check(kvtrim_cascade_layers(cascade) == LAYERS, "layers are counted", "cascade");
    refused(kvtrim_cascade_push(cascade, layer_structs, context), KVTRIM_INVALID_PARAMETER,
            "one layer too many");
    refused(kvtrim_cascade_plan(cascade, LAYERS, step, &changed), KVTRIM_INVALID_PARAMETER,
            "a layer that was not pushed");
    kvtrim_cascade_destroy(cascade);
    cascade = NULL;
    refused(kvtrim_cascade_create(other, layer_structs, &r, LAYERS, &cascade), KVTRIM_INVALID_PARAMETER,
            "snapkv has none");
    check(cascade == NULL, "nothing was made", "cascade");
    kvtrim_plan_destroy(step);
    kvtrim_policy_destroy(policy);
    kvtrim_policy_destroy(other);
}

/* A prompt that is shorter than what is protected stays whole; heads of different lengths then are refused. */
static void cascades_of_short_layers(kvtrim_context* context) {
    enum { SHORT = 6 };
    static const int64_t lengths[] = {SHORT, SHORT - 1};
    kvtrim_policy* policy = make_policy("layer_given", NULL);
    kvtrim_cascade* cascade = NULL;
    kvtrim_plan* plan = make_plan();
    kvtrim_request r = make_request(); /* protects 10 tokens */
    kvtrim_view view;
    kvtrim_layer layer;
    int32_t changed = 7;
    kvtrim_view_init(&view, KVTRIM_F32, scores[0], KV_HEADS, SHORT, 1);
    memset(&layer, 0, sizeof layer);
    layer.size = sizeof layer, layer.scores = &view;
    ok(kvtrim_cascade_create(policy, &layer, &r, 2, &cascade), "a cascade");
    ok(kvtrim_cascade_push(cascade, &layer, context), "a short layer");
    ok(kvtrim_cascade_plan(cascade, 0, plan, &changed), "its plan");
    check(changed == 0 && kept_of(plan, 0) == SHORT && kept_of(plan, 1) == SHORT &&
              row_of(plan, 1)[SHORT - 1] == SHORT - 1,
          "all rows stay, and no others", "cascade");
    view.lengths = lengths;
    refused(kvtrim_cascade_push(cascade, &layer, context), KVTRIM_ROWS_DIFFER, "heads of different lengths");
    check(kvtrim_cascade_layers(cascade) == 1, "nothing was pushed", "cascade");
    kvtrim_cascade_destroy(cascade);
    kvtrim_policy_destroy(policy), kvtrim_plan_destroy(plan);
}

static int64_t tasks_run = 0;
static void run_backwards(void* user, int64_t count, void (*task)(void*, int64_t), void* argument) {
    *(int64_t*)user += count;
    while (count-- > 0) { task(argument, count); }
}

static void threads_do_not_change_plans(kvtrim_plan** plans, kvtrim_context* context) {
    kvtrim_executor threads = {sizeof threads, 3, NULL, run_backwards};
    kvtrim_context* wide = NULL;
    threads.user = &tasks_run;
    ok(kvtrim_context_create(&threads, &wide), "a context with threads");
    plan_with("ada_criticalkv", NULL, 0, &plans[0], context);
    plan_with("ada_criticalkv", NULL, 0, &plans[1], wide);
    check(tasks_run > 1, "the engine's threads were used", "executor");
    check(same_plan(plans[0], plans[1]), "they change nothing", "executor");
    check(kvtrim_context_bytes(wide) > 0, "a context knows its bytes", "executor");
    kvtrim_context_destroy(wide);
}

int main(void) {
    kvtrim_context* context = make_context();
    kvtrim_plan* plans[LAYERS] = {make_plan(), make_plan(), make_plan()};
    int l;
    use_all();
    fill();
    make_state(context);
    every_policy_plans(plans, context);
    options_change_plans(plans, context);
    thresholds_bound_by_a_budget(plans, context);
    batches_plan_as_alone(context);
    scores_rank_what_plans_keep(plans, context);
    cascades_end_as_one_shot(plans, context);
    cascades_of_short_layers(context);
    threads_do_not_change_plans(plans, context);
    for (l = 0; l < LAYERS; ++l) {
        kvtrim_plan_destroy(plans[l]);
        kvtrim_replay_destroy(replays[l]);
    }
    kvtrim_running_destroy(running);
    kvtrim_statistics_destroy(statistics);
    kvtrim_means_destroy(means);
    kvtrim_profile_destroy(profile);
    kvtrim_context_destroy(context);
    return done();
}
