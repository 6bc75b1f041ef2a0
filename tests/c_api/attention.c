/* Copyright (c) kvtrim authors
 * SPDX-License-Identifier: MIT
 *
 * Attention over caches of any layout, and over the blocks of a pruned prefill, against the formula in double.
 */
#include "support.h"

#include <math.h>

enum { PROMPT = 64, SEGMENT = 16, BLOCK = 4 };

static kvtrim_context* context;
static float out[Q_HEADS * PROMPT * DIM], sums[Q_HEADS * PROMPT];

/* out[d] of one query over the rows of a head that `sees` marks; returns the log of the sum. */
static double attend(const float* query, int64_t head, int64_t rows, const unsigned char* sees,
                     double* result) {
    double sum = 0;
    int64_t t, d;
    memset(result, 0, DIM * sizeof *result);
    for (t = 0; t < rows; ++t) {
        double logit = 0, weight;
        if (sees != NULL && sees[t] == 0) { continue; }
        for (d = 0; d < DIM; ++d) { logit += (double)query[d] * (double)keys[(head * TOKENS + t) * DIM + d]; }
        weight = exp(logit / sqrt((double)DIM));
        sum += weight;
        for (d = 0; d < DIM; ++d) { result[d] += weight * (double)values[(head * TOKENS + t) * DIM + d]; }
    }
    for (d = 0; d < DIM; ++d) { result[d] /= sum; }
    return log(sum);
}

static void decode_attention(void) {
    static const int64_t lengths[KV_HEADS] = {TOKENS, 33};
    static uint16_t halves[Q_HEADS * DIM];
    const kvtrim_request r = make_request();
    layer_of_test t;
    kvtrim_view to;
    double expected[DIM];
    int64_t h, d;
    make_layer(&t);
    t.keys.lengths = t.values.lengths = lengths;
    kvtrim_view_init(&t.queries, KVTRIM_F32, queries, Q_HEADS, 1, DIM);
    kvtrim_view_init(&to, KVTRIM_F32, out, Q_HEADS, 1, DIM);
    ok(kvtrim_ragged_attention(&t.layer, &r, &to, sums, Q_HEADS, context), "ragged attention");
    for (h = 0; h < Q_HEADS; ++h) {
        const int64_t head = h / (Q_HEADS / KV_HEADS);
        const double sum = attend(queries + h * DIM, head, lengths[head], NULL, expected);
        check(fabs((double)sums[h] - sum) < 1e-4, "log of the sum", "ragged attention");
        for (d = 0; d < DIM; ++d) {
            check(fabs((double)out[h * DIM + d] - expected[d]) < 1e-5, "the formula", "ragged attention");
        }
    }
    kvtrim_view_init(&to, KVTRIM_BF16, halves, Q_HEADS, 1, DIM);
    ok(kvtrim_ragged_attention(&t.layer, &r, &to, NULL, 0, context), "into bf16");
    for (d = 0; d < Q_HEADS * DIM; ++d) {
        const uint32_t bits = (uint32_t)halves[d] << 16;
        float x;
        memcpy(&x, &bits, 4);
        check(fabs((double)x - (double)out[d]) < 0.01, "rounded once", "bf16");
    }
    refused(kvtrim_ragged_attention(&t.layer, &r, &to, sums, Q_HEADS - 1, context), KVTRIM_INVALID_PARAMETER,
            "too few sums");
    to.element = KVTRIM_Q8_0;
    refused(kvtrim_ragged_attention(&t.layer, &r, &to, NULL, 0, context), KVTRIM_INVALID_PARAMETER,
            "an output of blocks");
    to.element = KVTRIM_BF16;
    to.extents[1] = 2;
    refused(kvtrim_ragged_attention(&t.layer, &r, &to, NULL, 0, context), KVTRIM_INVALID_PARAMETER,
            "an output for two queries");
}

static void pruned_prefill(int estimate) {
    static float prompt[Q_HEADS * PROMPT * DIM];
    const kvtrim_request r = make_request();
    kvtrim_prefill* prefill = NULL;
    kvtrim_pruning pruning;
    layer_of_test t;
    kvtrim_view to;
    int64_t h, i, b, s, pruned = 0;
    double expected[DIM];
    for (i = 0; i < Q_HEADS * PROMPT * DIM; ++i) { prompt[i] = number((size_t)i + 500000); }
    make_layer(&t);
    t.keys.extents[1] = t.values.extents[1] = PROMPT; /* the strides stay those of TOKENS rows */
    kvtrim_view_init(&t.queries, KVTRIM_F32, prompt, Q_HEADS, PROMPT, DIM);
    kvtrim_view_init(&to, KVTRIM_F32, out, Q_HEADS, PROMPT, DIM);
    kvtrim_pruning_init(&pruning);
    check(pruning.segment_tokens == 512 && pruning.block_tokens == 32 && pruning.budget_tokens == 2048,
          "the authors'", "pruning");
    pruning.estimate = estimate;
    pruning.segment_tokens = SEGMENT;
    pruning.block_tokens = BLOCK;
    pruning.budget_tokens = 4 * BLOCK;
    pruning.dense_below_tokens = 0;
    pruning.dense_layers = 0;
    pruning.dense_last_segment = 0;
    ok(kvtrim_prefill_create(&prefill), "a prefill");
    ok(kvtrim_prefill_plan(prefill, &pruning, &t.layer, 1, 0, 1, context), "plan");
    check(kvtrim_prefill_segments(prefill) == PROMPT / SEGMENT, "segments", "prefill");
    for (s = 2; s < PROMPT / SEGMENT; ++s) {
        int64_t blocks = 0;
        for (h = 0; h < KV_HEADS; ++h) {
            const kvtrim_ints row = kvtrim_prefill_blocks(prefill, h, s);
            blocks += row.count;
            check(row.count >= 2 && row.data[0] == 0 && row.data[row.count - 1] == s * SEGMENT / BLOCK - 1,
                  "the first and the last block are attended", "prefill");
        }
        check(blocks == 4 * KV_HEADS, "the budget in blocks", "prefill");
        pruned += KV_HEADS * s * SEGMENT / BLOCK - blocks;
    }
    check(pruned == 24, "what is pruned", "prefill"); /* 2 heads * (8 - 4 + 12 - 4) */
    ok(kvtrim_prefill_attention(prefill, &t.layer, &r, &to, sums, Q_HEADS * PROMPT, context), "attention");
    for (h = 0; h < Q_HEADS; ++h) {
        const int64_t head = h / (Q_HEADS / KV_HEADS);
        for (i = 0; i < PROMPT; ++i) {
            const kvtrim_ints row = kvtrim_prefill_blocks(prefill, head, i / SEGMENT);
            unsigned char sees[PROMPT] = {0};
            int64_t d;
            double sum;
            for (b = 0; b < row.count; ++b) { memset(sees + row.data[b] * BLOCK, 1, BLOCK); }
            memset(sees + i / SEGMENT * SEGMENT, 1, (size_t)(i % SEGMENT + 1));
            sum = attend(prompt + (h * PROMPT + i) * DIM, head, PROMPT, sees, expected);
            check(fabs((double)sums[h * PROMPT + i] - sum) < 1e-4, "log of the sum", "prefill");
            for (d = 0; d < DIM; ++d) {
                check(fabs((double)out[(h * PROMPT + i) * DIM + d] - expected[d]) < 1e-5, "the formula",
                      "prefill");
            }
        }
    }
    check(kvtrim_prefill_blocks(prefill, KV_HEADS, 0).data == NULL &&
              kvtrim_prefill_blocks(prefill, 0, -1).count == 0,
          "no such row", "prefill");
    pruning.budget_tokens = BLOCK - 1;
    refused(kvtrim_prefill_plan(prefill, &pruning, &t.layer, 1, 0, 1, context), KVTRIM_BUDGET_ZERO,
            "less than a block");
    pruning.budget_tokens = 4 * BLOCK;
    refused(kvtrim_prefill_plan(prefill, &pruning, &t.layer, 1, 3, 1, context), KVTRIM_INVALID_PARAMETER,
            "inside a segment");
    check(kvtrim_prefill_segments(prefill) == PROMPT / SEGMENT, "the plan is as it was", "prefill");
    kvtrim_prefill_destroy(prefill);
}

int main(void) {
    int estimate;
    use_all();
    fill();
    context = make_context();
    decode_attention();
    for (estimate = KVTRIM_MID_QUERY; estimate <= KVTRIM_MID_QUERY_ADAPTIVE; ++estimate) {
        pruned_prefill(estimate);
    }
    kvtrim_context_destroy(context);
    return done();
}
