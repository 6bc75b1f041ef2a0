// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The layer that every benchmark measures: the shape of one Llama-3.1-8B attention layer, with seeded random data.
// Random queries and keys say nothing about quality; for that, see the demo.

#include "row.hpp"

#include <kvtrim/kvtrim.hpp>

#include <cmath>
#include <map>
#include <memory>
#include <vector>

namespace bench {

inline constexpr index_t q_heads = 32;
inline constexpr index_t kv_heads = 8;
inline constexpr index_t group = q_heads / kv_heads;
inline constexpr index_t head_dim = 128;
inline constexpr index_t hidden = 4096;
inline constexpr index_t window = 32;

// Uniform in [-0.5, 0.5), as elements of T.
template <class T>
std::vector<T> random_elements(index_t count, std::uint32_t seed) {
    std::vector<T> out(static_cast<std::size_t>(count));
    std::uint32_t state = seed * 2654435761u + 1u;
    for (T& x : out) {
        state = state * 1664525u + 1013904223u;
        x = kvtrim::element_traits<T>::from_float(static_cast<float>(state >> 8) * 0x1p-24f - 0.5f);
    }
    return out;
}

// W_O [q_heads, head_dim, hidden].
template <class T>
const std::vector<T>& output_weights() {
    static const auto weights = random_elements<T>(q_heads * head_dim * hidden, 4);
    return weights;
}

// The same as its Gram matrix.
template <class T>
const kvtrim::gram_projection& output_gram() {
    static const kvtrim::gram_projection gram(
        kvtrim::strided<const T, 3>(output_weights<T>().data(), {q_heads, head_dim, hidden}));
    return gram;
}

template <class T>
struct layer {
    index_t tokens;
    std::vector<T> k, v, q;

    explicit layer(index_t token_count)
        : tokens(token_count), k(random_elements<T>(kv_heads * tokens * head_dim, 1)),
          v(random_elements<T>(kv_heads * tokens * head_dim, 2)),
          q(random_elements<T>(q_heads * window * head_dim, 3)) {}

    kvtrim::strided<const T, 3> keys() const { return {k.data(), {kv_heads, tokens, head_dim}}; }
    kvtrim::strided<const T, 3> values() const { return {v.data(), {kv_heads, tokens, head_dim}}; }
    kvtrim::strided<const T, 3> queries() const { return {q.data(), {q_heads, window, head_dim}}; }
    kvtrim::strided<const T, 3> output_projection() const {
        return {output_weights<T>().data(), {q_heads, head_dim, hidden}};
    }
    auto inputs() const { return kvtrim::layer(keys(), values()).with_queries(queries()); }
    kvtrim::eviction_request request() const {
        return {.budget = kvtrim::per_head(tokens / 5), .protect = {.window_tokens = window}};
    }
    double bytes_of_keys() const { return static_cast<double>(k.size() * sizeof(T)); }
};

// Made once, for all rows of this element and length.
template <class T>
const layer<T>& shared_layer(index_t tokens) {
    static std::map<index_t, std::unique_ptr<const layer<T>>> layers;
    auto& data = layers[tokens];
    if (data == nullptr) { data = std::make_unique<const layer<T>>(tokens); }
    return *data;
}

// Scores like attention: a few large, most small; [kv_heads, tokens].
inline std::vector<float> attention_like_scores(index_t tokens) {
    auto scores = random_elements<float>(kv_heads * tokens, 5);
    for (float& s : scores) {
        const float u = (s + 0.5f) * (s + 0.5f);
        s = u * u * u * u;
    }
    return scores;
}

// Row g of `each` elements starts at g * each.
inline std::vector<index_t> even_offsets(index_t rows, index_t each) {
    std::vector<index_t> offsets;
    for (index_t g = 0; g <= rows; ++g) { offsets.push_back(g * each); }
    return offsets;
}

// One product of the window's queries and all keys.
inline double window_flops(index_t tokens) {
    return 2.0 * static_cast<double>(q_heads * window) * static_cast<double>(tokens * head_dim);
}

// One product of the values and a matrix [head_dim, columns] for each query head.
inline double projection_flops(index_t tokens, index_t columns) {
    return 2.0 * static_cast<double>(q_heads * tokens) * static_cast<double>(head_dim * columns);
}

// Three passes over the scores of all heads: what an exact selection needs.
inline work three_passes(index_t tokens) {
    return {.cached_bytes = 3.0 * static_cast<double>(kv_heads * tokens) * sizeof(float)};
}

// Whether two results agree within `tolerance` times the largest.
inline bool agree(const std::vector<float>& a, const std::vector<float>& b, float tolerance) {
    float largest = 0, distance = 0;
    for (std::size_t i = 0; i < a.size(); ++i) {
        largest = std::max(largest, std::abs(b[i]));
        distance = std::max(distance, std::abs(a[i] - b[i]));
    }
    return a.size() == b.size() && distance <= tolerance * largest;
}

} // namespace bench
