// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Where an allocation fails, calls of the C interface answer KVTRIM_OUT_OF_MEMORY, and outputs, caches and states are what they
// were, whichever allocation it is. Replaces operator new, also that of the library, in a program of its own.

#include "../support/failing_new.hpp"

#include <kvtrim_c.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <vector>

namespace {

using bytes = std::vector<unsigned char>;

int failures = 0;

template <class T>
void add(bytes& all, const T* data, std::int64_t count) {
    const auto* const begin = reinterpret_cast<const unsigned char*>(data);
    if (count > 0) { all.insert(all.end(), begin, begin + count * static_cast<std::int64_t>(sizeof(T))); }
}

void must(const kvtrim_status& s) {
    if (s.code == KVTRIM_OK) { return; }
    std::printf("%s\n", s.text);
    std::abort();
}

// save(out, out_bytes, needed)
template <class Save>
bytes saved(Save&& save) {
    std::int64_t needed = 0;
    static_cast<void>(save(nullptr, std::int64_t{0}, &needed));
    bytes all(static_cast<std::size_t>(needed));
    must(save(all.data(), needed, &needed));
    return all;
}

// call() with its first, second, ... allocation failing until none does; state() is the same after each failure.
template <class Call, class State>
void fail_each(const char* what, Call&& call, State&& state) {
    const bytes before = state();
    for (long nth = 0;; ++nth) {
        allowed = nth;
        const kvtrim_status s = call();
        allowed = -1;
        if (s.code == KVTRIM_OK) { return; }
        if (s.code != KVTRIM_OUT_OF_MEMORY || state() != before) {
            ++failures;
            std::printf("%s: not what it was when allocation %ld failed: %s\n", what, nth, s.text);
            if (s.code != KVTRIM_OUT_OF_MEMORY) { return; }
        }
    }
}

} // namespace

int main() {
    constexpr std::int64_t heads = 2, q_heads = 4, tokens = 40, channels = 32, window = 8;
    std::vector<float> k(heads * tokens * channels), q(q_heads * window * channels), more(q.size());
    for (std::size_t i = 0; i < k.size(); ++i) { k[i] = static_cast<float>(i * 37 % 101) / 50.0f - 1.0f; }
    for (std::size_t i = 0; i < q.size(); ++i) { q[i] = static_cast<float>(i * 29 % 97) / 40.0f - 1.0f; }
    for (std::size_t i = 0; i < q.size(); ++i) { more[i] = q[i] + 1.0f; }
    kvtrim_view keys, queries, newest;
    kvtrim_view_init(&keys, KVTRIM_F32, k.data(), heads, tokens, channels);
    kvtrim_view_init(&queries, KVTRIM_F32, q.data(), q_heads, window, channels);
    kvtrim_view_init(&newest, KVTRIM_F32, more.data(), q_heads, window, channels);
    kvtrim_layer layer = {};
    layer.size = sizeof layer;
    layer.keys = &keys;
    layer.queries = &queries;
    kvtrim_request request;
    kvtrim_request_init(&request);
    request.budget_tokens = 20;
    request.window_tokens = window;
    kvtrim_policy* policy = nullptr;
    must(kvtrim_policy_create("snapkv", nullptr, &policy));
    kvtrim_plan* plan = nullptr;
    must(kvtrim_plan_create(&plan));
    kvtrim_scores* scores = nullptr;
    must(kvtrim_scores_create(&scores));
    const auto plan_state = [&] {
        bytes all;
        const std::int64_t rows = kvtrim_plan_rows(plan);
        const std::int32_t* const offsets = kvtrim_plan_offsets(plan);
        if (rows > 0) {
            add(all, offsets, rows + 1);
            add(all, kvtrim_plan_kept(plan), offsets[rows]);
        }
        return all;
    };
    const auto score_state = [&] {
        bytes all;
        const std::int64_t rows = kvtrim_scores_rows(scores);
        const std::int64_t* const offsets = kvtrim_scores_offsets(scores);
        if (rows > 0) {
            add(all, offsets, rows + 1);
            add(all, kvtrim_scores_importance(scores), offsets[rows]);
        }
        return all;
    };
    for (const std::int64_t budget : {20, 30}) { // the second time larger
        request.budget_tokens = budget;
        keys.extents[1] = budget + 10;
        kvtrim_context* context = nullptr;
        must(kvtrim_context_create(nullptr, &context));
        fail_each(
            "kvtrim_plan_layers",
            [&] { return kvtrim_plan_layers(policy, &layer, 1, &request, &plan, 1, context); }, plan_state);
        fail_each(
            "kvtrim_score_layer",
            [&] { return kvtrim_score_layer(policy, &layer, &request, scores, context); }, score_state);
        kvtrim_context_destroy(context);
    }

    kvtrim_positions* positions = nullptr;
    must(kvtrim_positions_create(heads, &positions));
    const auto positions_and_keys = [&] {
        bytes all = saved([&](void* out, std::int64_t count, std::int64_t* needed) {
            return kvtrim_positions_save(positions, out, count, needed);
        });
        add(all, k.data(), static_cast<std::int64_t>(k.size()));
        return all;
    };
    fail_each(
        "kvtrim_positions_append", [&] { return kvtrim_positions_append(positions, tokens); },
        positions_and_keys);
    must(kvtrim_positions_compact(positions, plan));
    const std::vector<float> frequencies{1.0f, 0.5f, 0.25f, 0.125f};
    kvtrim_rope rope = {};
    rope.size = sizeof rope;
    rope.inverse_frequencies = frequencies.data();
    rope.pairs = 4;
    kvtrim_context* context = nullptr;
    must(kvtrim_context_create(nullptr, &context));
    fail_each(
        "kvtrim_positions_close_up",
        [&] { return kvtrim_positions_close_up(positions, &keys, &rope, 0, context); }, positions_and_keys);

    for (const std::int32_t element : {KVTRIM_F32, KVTRIM_F16, KVTRIM_BF16}) {
        kvtrim_queries* ring = nullptr;
        must(kvtrim_queries_create(q_heads, 4, channels, 0, element, &ring));
        must(kvtrim_queries_append(ring, &queries));
        fail_each(
            "kvtrim_queries_append", [&] { return kvtrim_queries_append(ring, &newest); },
            [&] {
                return saved([&](void* out, std::int64_t count, std::int64_t* needed) {
                    return kvtrim_queries_save(ring, out, count, needed);
                });
            });
        kvtrim_view view = keys;
        fail_each(
            "kvtrim_queries_view", [&] { return kvtrim_queries_view(ring, 0, &view); },
            [&] {
                bytes all;
                add(all, &view, 1);
                return all;
            });
        kvtrim_queries_destroy(ring);
    }
    kvtrim_context_destroy(context);
    kvtrim_positions_destroy(positions);
    kvtrim_scores_destroy(scores);
    kvtrim_plan_destroy(plan);
    kvtrim_policy_destroy(policy);
    std::printf(failures == 0 ? "ok\n" : "%d failures\n", failures);
    return failures == 0 ? 0 : 1;
}
