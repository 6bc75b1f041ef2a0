// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// A cache that grows, is cut and grows again, with all state beside it, fed from a text whose every token is known.

#include "support/states.hpp"

#include <kvtrim/cache/filled.hpp>
#include <kvtrim/compact/compact_in_place.hpp>
#include <kvtrim/decode/interval_policy.hpp>
#include <kvtrim/decode/recent_queries.hpp>
#include <kvtrim/decode/running_scores.hpp>

namespace support {

// One layer of one sequence while it lives: a buffer with room for more, and all state beside it. Tokens come from a layer
// that has a query for each of them.
struct living_cache {
    const layer_data* text;
    std::vector<float> k, v;
    kvtrim::cache_positions positions;
    kvtrim::recent_queries<> queries;
    kvtrim::running_scores scores;
    kvtrim::keep_plan plan;
    kvtrim::growing_workspace memory;

    living_cache(const layer_data& layer, index_t window, index_t rollback_tokens = 0)
        : text(&layer), k(layer.k.size()), v(layer.v.size()), positions(layer.shape.kv_heads),
          queries(layer.shape.q_heads(), window, layer.shape.head_dim, rollback_tokens),
          scores(layer.shape.kv_heads, rollback_tokens) {}

    [[nodiscard]] kvtrim::filled<float> keys() {
        const auto& s = text->shape;
        return {kvtrim::strided(k.data(), {s.kv_heads, s.tokens, s.head_dim}), positions.lengths()};
    }
    [[nodiscard]] kvtrim::filled<float> values() {
        const auto& s = text->shape;
        return {kvtrim::strided(v.data(), {s.kv_heads, s.tokens, s.value_dim}), positions.lengths()};
    }
    // What a policy sees while the newest `drafts` tokens may be undone.
    [[nodiscard]] auto inputs(index_t drafts = 0) {
        return kvtrim::layer(keys(), values())
            .with_queries(queries.view(drafts))
            .with_output_projection(text->projection());
    }

    // The text's next tokens, their queries, and the attention those pay.
    void push(index_t count) {
        const index_t next = positions.next_position();
        const auto& s = text->shape;
        for (index_t g = 0; g < s.kv_heads; ++g) {
            const index_t from = g * s.tokens + next, to = g * s.tokens + positions.tokens(g);
            std::copy_n(text->k.begin() + from * s.head_dim, count * s.head_dim, k.begin() + to * s.head_dim);
            std::copy_n(text->v.begin() + from * s.value_dim, count * s.value_dim,
                        v.begin() + to * s.value_dim);
        }
        bool done = positions.append(count).ok() && queries.append(query_slice(*text, next, count)).ok() &&
                    scores.append(count).ok();
        const auto in = kvtrim::layer(keys()).with_queries(query_slice(*text, next, count));
        done = done && (count == 0 || scores.update(in, {}, memory).ok());
        if (!done) { throw std::logic_error("an append failed"); }
    }
    void rollback(index_t count) {
        const bool done =
            positions.rollback(count).ok() && queries.rollback(count).ok() && scores.rollback(count).ok();
        if (!done) { throw std::logic_error("a rollback failed"); }
    }
    // Everything by this->plan.
    void compact() {
        const bool done = kvtrim::compact_in_place(keys(), values(), plan).ok() &&
                          positions.compact(plan).ok() && scores.compact(plan).ok();
        if (!done) { throw std::logic_error("a compaction failed"); }
    }
    // Whether each row of the buffer is the text's token of the row's position.
    [[nodiscard]] bool holds_its_text() {
        for (index_t g = 0; g < text->shape.kv_heads; ++g) {
            for (index_t t = 0; t < positions.tokens(g); ++t) {
                const index_t p = positions.positions(g)[static_cast<std::size_t>(t)];
                for (index_t d = 0; d < text->shape.head_dim; ++d) {
                    if (keys()(g, t, d) != text->keys()(g, p, d)) { return false; }
                }
                for (index_t d = 0; d < text->shape.value_dim; ++d) {
                    if (values()(g, t, d) != text->values()(g, p, d)) { return false; }
                }
            }
        }
        return true;
    }
};

} // namespace support
