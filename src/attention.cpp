// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Attention over cut caches, and the plans and attention of a pruned prefill.
#include "c_api.hpp"

#include <kvtrim/decode/ragged_attention.hpp>
#include <kvtrim/policy/critiprefill.hpp>
#include <kvtrim/prefill/block_sparse_attention.hpp>

struct kvtrim_prefill {
    kvtrim::prune_plan plan;
    kvtrim::layer_fusion state;
};

namespace kvtrim::c {
namespace {

/// What both attentions are asked.
struct attention_call {
    with_both in{{}, {}, {}, {}};
    request asked;
    std::span<float> log_sum_exp;
};

status read_attention(const kvtrim_layer* layer, const kvtrim_request* request, float* log_sum_exp,
                      index_t log_sum_exp_count, attention_call& out) {
    layer_parts parts;
    if (const status s = read_layer(layer, KVTRIM_NEEDS_VALUES | KVTRIM_NEEDS_QUERIES, parts); !s.ok()) {
        return s;
    }
    if (const status s = read_request(request, out.asked); !s.ok()) { return s; }
    out.in = inputs_of<with_both>(parts);
    out.log_sum_exp = counted(log_sum_exp, log_sum_exp_count);
    return valid_counted(log_sum_exp, log_sum_exp_count, "attention: log_sum_exp [log_sum_exp_count]");
}

/// Calls fn(pruner) with the policy that is asked for.
template <class Fn>
status with_pruner(const kvtrim_pruning* given, Fn&& fn) {
    kvtrim_pruning p = {};
    if (const status s = read_struct(given, p); !s.ok()) { return s; }
    const pruning_options options{.segment_tokens = p.segment_tokens,
                                  .block_tokens = p.block_tokens,
                                  .budget_tokens = p.budget_tokens,
                                  .dense_below_tokens = p.dense_below_tokens,
                                  .dense_layers = p.dense_layers,
                                  .dense_last_segment = p.dense_last_segment != 0,
                                  .sink_blocks = p.sink_blocks,
                                  .local_blocks = p.local_blocks};
    const auto fused = [&](auto pruner) {
        pruner.fusion = {p.previous_weight, p.first_fused_layer};
        return fn(pruner);
    };
    switch (p.estimate) {
    case KVTRIM_MID_QUERY:
        return fused(critiprefill(options));
    case KVTRIM_CORNER_QUERY:
        return fused(critiprefill_bound(options));
    case KVTRIM_MID_QUERY_ADAPTIVE:
        return fused(ada_critiprefill(options));
    default:
        return invalid("pruning: no such estimate");
    }
}

} // namespace
} // namespace kvtrim::c

using namespace kvtrim;
using namespace kvtrim::c;

extern "C" {

kvtrim_status kvtrim_ragged_attention(const kvtrim_layer* layer, const kvtrim_request* request,
                                      const kvtrim_view* out, float* log_sum_exp, int64_t log_sum_exp_count,
                                      kvtrim_context* context) {
    return guarded([&]() -> status {
        if (context == nullptr) { return no_handle(); }
        attention_call c;
        const status s = read_attention(layer, request, log_sum_exp, log_sum_exp_count, c);
        if (!s.ok()) { return s; }
        return with_output(out, [&](const auto& rows) {
            return ragged_attention(c.in, c.asked.value.attention, rows, c.log_sum_exp, context->memory,
                                    context->executor);
        });
    });
}

void kvtrim_pruning_init(kvtrim_pruning* pruning) {
    if (pruning == nullptr) { return; }
    const pruning_options o;
    const fusion_options f;
    *pruning = {sizeof(kvtrim_pruning), KVTRIM_MID_QUERY,  o.dense_last_segment ? 1 : 0,
                o.segment_tokens,       o.block_tokens,    o.budget_tokens,
                o.dense_below_tokens,   o.dense_layers,    o.sink_blocks,
                o.local_blocks,         f.previous_weight, f.first_fused_layer};
}

kvtrim_status kvtrim_prefill_create(kvtrim_prefill** prefill) {
    return guarded([&] { return make(prefill); });
}
void kvtrim_prefill_destroy(kvtrim_prefill* prefill) {
    delete prefill;
}

kvtrim_status kvtrim_prefill_plan(kvtrim_prefill* prefill, const kvtrim_pruning* pruning,
                                  const kvtrim_layer* layer, int64_t layer_index, int64_t first_token,
                                  int32_t ends_prompt, kvtrim_context* context) {
    return guarded([&]() -> status {
        if (prefill == nullptr || context == nullptr) { return no_handle(); }
        layer_parts parts;
        if (const status s = read_layer(layer, KVTRIM_NEEDS_QUERIES, parts); !s.ok()) { return s; }
        return with_pruner(pruning, [&](const auto& pruner) {
            return pruner.plan(parts.queries, parts.keys, {layer_index, first_token, ends_prompt != 0},
                               prefill->state, prefill->plan, context->memory, context->executor);
        });
    });
}

int64_t kvtrim_prefill_segments(const kvtrim_prefill* prefill) {
    return prefill == nullptr ? 0 : prefill->plan.grid().segments();
}
kvtrim_ints kvtrim_prefill_blocks(const kvtrim_prefill* prefill, int64_t kv_head, int64_t segment) {
    const bool exists = prefill != nullptr && kv_head >= 0 && kv_head < prefill->plan.kv_heads() &&
                        segment >= 0 && segment < prefill->plan.grid().segments();
    return exists ? ints(prefill->plan.row(kv_head, segment)) : kvtrim_ints{};
}

kvtrim_status kvtrim_prefill_attention(const kvtrim_prefill* prefill, const kvtrim_layer* layer,
                                       const kvtrim_request* request, const kvtrim_view* out,
                                       float* log_sum_exp, int64_t log_sum_exp_count,
                                       kvtrim_context* context) {
    return guarded([&]() -> status {
        if (prefill == nullptr || context == nullptr) { return no_handle(); }
        attention_call c;
        const status s = read_attention(layer, request, log_sum_exp, log_sum_exp_count, c);
        if (!s.ok()) { return s; }
        return with_output(out, [&](const auto& rows) {
            return block_sparse_attention(c.in, prefill->plan, c.asked.value.attention, rows, c.log_sum_exp,
                                          context->memory, context->executor);
        });
    });
}

} // extern "C"
