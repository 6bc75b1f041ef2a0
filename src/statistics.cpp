// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// What is gathered of queries and of scores: statistics, means, profiles, preferences of layers.
#include "policies.hpp"

#include <kvtrim/score/layer_preference.hpp>

using namespace kvtrim;
using namespace kvtrim::c;

extern "C" {

// ---- Statistics of queries ----

kvtrim_status kvtrim_statistics_create(int64_t q_heads, int64_t head_dim, int64_t skip_positions,
                                       kvtrim_statistics** statistics) {
    return guarded([&]() -> status {
        if (const status s = valid_queries(q_heads, head_dim); !s.ok()) { return s; }
        return make_valid(statistics, saved_statistics(q_heads, head_dim, skip_positions));
    });
}
void kvtrim_statistics_destroy(kvtrim_statistics* statistics) {
    delete statistics;
}
kvtrim_status kvtrim_statistics_add(kvtrim_statistics* statistics, const kvtrim_view* queries,
                                    kvtrim_context* context) {
    return guarded([&]() -> status {
        if (statistics == nullptr || context == nullptr) { return no_handle(); }
        const any_rows rows = any_rows::of(queries);
        workspace scratch = context->memory.of_bytes(statistics->state.workspace_bytes(context->executor));
        return statistics->state.add(rows, scratch, context->executor);
    });
}
kvtrim_status kvtrim_statistics_save(const kvtrim_statistics* statistics, void* out, int64_t out_bytes,
                                     int64_t* needed) {
    return guarded([&] {
        return statistics == nullptr ? no_handle() : save_state(statistics->state, out, out_bytes, needed);
    });
}
kvtrim_status kvtrim_statistics_restore(kvtrim_statistics* statistics, const void* bytes,
                                        int64_t byte_count) {
    return guarded([&] {
        return statistics == nullptr ? no_handle() : restore_state(statistics->state, bytes, byte_count);
    });
}

// ---- Means of queries ----

kvtrim_status kvtrim_means_create(int64_t q_heads, int64_t head_dim, const kvtrim_rope* rope,
                                  kvtrim_means** means) {
    return guarded([&]() -> status {
        kvtrim::rope turn;
        if (const status s = valid_queries(q_heads, head_dim); !s.ok()) { return s; }
        if (const status s = read_rope(rope, turn); !s.ok()) { return s; }
        return make_valid(means, saved_means(q_heads, head_dim, turn));
    });
}
void kvtrim_means_destroy(kvtrim_means* means) {
    delete means;
}
kvtrim_status kvtrim_means_add(kvtrim_means* means, const kvtrim_view* queries, kvtrim_context* context) {
    return guarded([&]() -> status {
        if (means == nullptr || context == nullptr) { return no_handle(); }
        const any_rows rows = any_rows::of(queries);
        workspace scratch = context->memory.of_bytes(means->state.workspace_bytes());
        return means->state.add(rows, scratch);
    });
}
kvtrim_status kvtrim_means_save(const kvtrim_means* means, void* out, int64_t out_bytes, int64_t* needed) {
    return guarded(
        [&] { return means == nullptr ? no_handle() : save_state(means->state, out, out_bytes, needed); });
}
kvtrim_status kvtrim_means_restore(kvtrim_means* means, const void* bytes, int64_t byte_count) {
    return guarded(
        [&] { return means == nullptr ? no_handle() : restore_state(means->state, bytes, byte_count); });
}

// ---- Profiles of rows ----

kvtrim_status kvtrim_profile_create(kvtrim_profile** profile) {
    return guarded([&] { return make(profile); });
}
void kvtrim_profile_destroy(kvtrim_profile* profile) {
    delete profile;
}
kvtrim_status kvtrim_profile_add(kvtrim_profile* profile, const kvtrim_policy* policy,
                                 const kvtrim_layer* layers, int64_t layer_count,
                                 const kvtrim_request* request, kvtrim_context* context) {
    return guarded([&]() -> status {
        if (profile == nullptr || context == nullptr) { return no_handle(); }
        call in;
        if (const status s = read_call(policy, layers, layer_count, request, in); !s.ok()) { return s; }
        std::vector<index_t> offsets{0};
        std::vector<float> scores;
        for (index_t l = 0; l < layer_count; ++l) {
            score_table of_layer;
            const status s =
                in.policy->score(l, in.asked.value, of_layer, context->memory, context->executor);
            if (!s.ok()) { return s; }
            for (index_t g = 0; g < of_layer.rows(); ++g) {
                const auto row = of_layer.row(g);
                scores.insert(scores.end(), row.begin(), row.end());
                offsets.push_back(std::ssize(scores));
            }
        }
        return profile->state.add(score_rows{offsets, scores});
    });
}
int64_t kvtrim_profile_prompts(const kvtrim_profile* profile) {
    return profile == nullptr ? 0 : profile->state.prompts();
}
int64_t kvtrim_profile_rows(const kvtrim_profile* profile) {
    return profile == nullptr ? 0 : profile->state.rows();
}
kvtrim_status kvtrim_profile_save(const kvtrim_profile* profile, void* out, int64_t out_bytes,
                                  int64_t* needed) {
    return guarded([&] {
        return profile == nullptr ? no_handle() : save_state(profile->state, out, out_bytes, needed);
    });
}
kvtrim_status kvtrim_profile_restore(kvtrim_profile* profile, const void* bytes, int64_t byte_count) {
    return guarded(
        [&] { return profile == nullptr ? no_handle() : restore_state(profile->state, bytes, byte_count); });
}

// ---- Preferences of layers ----

kvtrim_status kvtrim_layer_preference(const kvtrim_layer* layer, const kvtrim_request* request, double tau1,
                                      double tau2, double* preference, kvtrim_context* context) {
    return guarded([&]() -> status {
        if (preference == nullptr || context == nullptr) { return no_handle(); }
        layer_parts parts;
        c::request asked;
        if (const status s = read_layer(layer, KVTRIM_NEEDS_QUERIES, parts); !s.ok()) { return s; }
        if (const status s = read_request(request, asked); !s.ok()) { return s; }
        kvtrim::layer_preference measured;
        if (tau1 != 0) { measured.tau1 = tau1; }
        if (tau2 != 0) { measured.tau2 = tau2; }
        return measured.measure(inputs_of<with_queries>(parts), asked.value, *preference, context->memory,
                                context->executor);
    });
}

} // extern "C"
