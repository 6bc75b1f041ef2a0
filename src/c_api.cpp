// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Versions, contexts, and the structs of a call read into kvtrim's own types.
#include "c_api.hpp"

#include <kvtrim/simd/cpu_level.hpp>
#include <kvtrim/version.hpp>

#define KVTRIM_TEXT_OF(x) #x
#define KVTRIM_TEXT(x) KVTRIM_TEXT_OF(x)

namespace kvtrim::c {

status read_request(const kvtrim_request* given, request& out) {
    kvtrim_request r = {};
    if (const status s = read_struct(given, r); !s.ok()) { return s; }
    for (const status s :
         {valid_counted(r.sink_logits, r.sink_logits_count, "request: sink_logits [sink_logits_count]"),
          valid_counted(r.layer_shares, r.layer_shares_count,
                        "request: layer_shares [layer_shares_count]")}) {
        if (!s.ok()) { return s; }
    }
    if (r.budget_scope < KVTRIM_PER_HEAD || r.budget_scope > KVTRIM_PER_MODEL) {
        return invalid("request: no such budget_scope");
    }
    out.value = {.budget = {r.budget_tokens, static_cast<budget_scope>(r.budget_scope)},
                 .protect = {.sink_tokens = r.sink_tokens,
                             .pinned_tokens = r.pinned_tokens,
                             .window_tokens = r.window_tokens,
                             .rollback_tokens = r.rollback_tokens},
                 .attention = {.scale = r.scale,
                               .soft_cap = r.soft_cap,
                               .sliding_window = r.sliding_window,
                               .sink_logits = counted(r.sink_logits, r.sink_logits_count)}};
    out.layer_shares = counted(r.layer_shares, r.layer_shares_count);
    out.profile = r.profile;
    return {};
}

status read_rope(const kvtrim_rope* given, rope& out) {
    kvtrim_rope r = {};
    if (const status s = read_struct(given, r); !s.ok()) { return s; }
    const status s = valid_counted(r.inverse_frequencies, r.pairs, "rope: inverse_frequencies [pairs]");
    if (!s.ok()) { return s; }
    if (r.interleaved != 0 && r.interleaved != 1) { return invalid("rope: interleaved must be 0 or 1"); }
    if (r.pairs > index_t{1} << 20) { return invalid("rope: too many pairs"); }
    out = {.inverse_frequencies = counted(r.inverse_frequencies, r.pairs),
           .attention_factor = r.attention_factor == 0 ? 1 : r.attention_factor,
           .pairing = r.interleaved == 1 ? rope_pairing::interleaved : rope_pairing::half_split};
    return valid_rope(out);
}

status read_layer(const kvtrim_layer* first, int wanted, layer_parts& out, index_t l) {
    if (const status s = read_struct_at(first, l, out.given); !s.ok()) { return s; }
    const kvtrim_layer& in = out.given;
    struct part {
        int wanted;
        const void* given;
        const char* missing;
    };
    const part parts[] = {{KVTRIM_NEEDS_VALUES, in.values, "layer: this call needs values"},
                          {KVTRIM_NEEDS_QUERIES, in.queries, "layer: this call needs queries"},
                          {KVTRIM_NEEDS_OUTPUT_PROJECTION, in.output_projection,
                           "layer: this call needs the output projection"},
                          {KVTRIM_NEEDS_REPLAY, in.replay, "layer: this call needs a replay"},
                          {KVTRIM_NEEDS_STATISTICS, in.statistics, "layer: this call needs statistics"},
                          {needs_any_rope, in.rope, "layer: this call needs a rope"},
                          {KVTRIM_NEEDS_RUNNING, in.running, "layer: this call needs running scores"},
                          {KVTRIM_NEEDS_SCORES, in.scores, "layer: this call needs scores"},
                          {KVTRIM_NEEDS_MEANS, in.means, "layer: this call needs means"},
                          {needs_norms, in.norms, "layer: this call needs norms, as its first layer"}};
    for (const part& p : parts) {
        if ((wanted & p.wanted) != 0 && p.given == nullptr) { return invalid(p.missing); }
    }
    if ((wanted & KVTRIM_NEEDS_REPLAY) != 0) { return {}; }
    const bool scores_alone = (wanted & KVTRIM_NEEDS_SCORES) != 0;
    out.keys = any_rows::of(scores_alone ? in.scores : in.keys);
    if ((wanted & KVTRIM_NEEDS_VALUES) != 0) { out.values = any_rows::of(in.values); }
    if ((wanted & KVTRIM_NEEDS_QUERIES) != 0) { out.queries = any_rows::of(in.queries); }
    if ((wanted & KVTRIM_NEEDS_OUTPUT_PROJECTION) != 0) {
        out.output_projection = any_rows::of(in.output_projection);
    }
    return {};
}

} // namespace kvtrim::c

using namespace kvtrim;
using namespace kvtrim::c;

extern "C" {

int32_t kvtrim_api_version(void) {
    return KVTRIM_C_API_VERSION;
}
const char* kvtrim_version(void) {
    return KVTRIM_TEXT(KVTRIM_VERSION_MAJOR) "." KVTRIM_TEXT(KVTRIM_VERSION_MINOR) "." KVTRIM_TEXT(
        KVTRIM_VERSION_PATCH);
}
const char* kvtrim_cpu_level(void) {
    return name_of(active_cpu_level());
}

kvtrim_status kvtrim_context_create(const kvtrim_executor* executor, kvtrim_context** context) {
    return guarded([&]() -> status {
        any_executor threads;
        if (executor != nullptr) {
            if (const status s = read_struct(executor, threads.given); !s.ok()) { return s; }
            if (threads.given.run == nullptr || threads.given.workers < 1 || threads.given.workers > 4096) {
                return invalid("executor: run must not be null, workers must be 1 ... 4096");
            }
        }
        return make(context, threads, growing_workspace{});
    });
}
void kvtrim_context_destroy(kvtrim_context* context) {
    delete context;
}
int64_t kvtrim_context_bytes(const kvtrim_context* context) {
    return context == nullptr ? 0 : context->memory.capacity_bytes();
}

void kvtrim_request_init(kvtrim_request* request) {
    if (request == nullptr) { return; }
    *request = {};
    request->size = sizeof(kvtrim_request);
}

} // extern "C"
