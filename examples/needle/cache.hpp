// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// A KV cache in which every KV head has its own number of entries, and decoding over it.
//
// What survives the eviction after prefill lies in flat storage of exactly that size: head h owns
// rows [offsets[h], offsets[h + 1]) of [survivors, head_dim], as a varlen attention kernel expects.
// Tokens decoded later go to a small tail per head. Keys keep the rotation of their original
// position, so evicting some entries does not move the others.

#include "model.hpp"

#include <kvtrim/compact/flat.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace needle {

using cache_view = kvtrim::strided<const float, 3>;

// The cache of one layer.
class ragged_cache {
  public:
    // Gathers the rows that the plan keeps of keys and values [kv_heads, tokens, head_dim].
    // Throws std::invalid_argument unless the plan was made for that shape.
    ragged_cache(const cache_view& keys, const cache_view& values, const kvtrim::keep_plan& plan);

    [[nodiscard]] index_t kv_heads() const { return static_cast<index_t>(offsets_.size()) - 1; }
    [[nodiscard]] std::span<const std::int32_t> offsets() const { return offsets_; }

    // Survivors of one head: [entries of the head, head_dim].
    [[nodiscard]] const_matrix_map keys(index_t kv_head) const { return rows(keys_, kv_head); }
    [[nodiscard]] const_matrix_map values(index_t kv_head) const { return rows(values_, kv_head); }

    // Decoded tokens of one head: [tail_tokens, head_dim].
    [[nodiscard]] index_t tail_tokens() const { return tail_tokens_; }
    [[nodiscard]] const_matrix_map tail_keys(index_t kv_head) const;
    [[nodiscard]] const_matrix_map tail_values(index_t kv_head) const;

    // Adds decoded tokens; keys and values [kv_heads, new_tokens, head_dim].
    void append(const head_tensor& keys, const head_tensor& values);

    // Keeps the rows that the plan names, and gives the others' memory back. Requires an empty tail.
    // Throws std::invalid_argument unless the plan was made for this cache.
    void cut(const kvtrim::keep_plan& plan);

    // Storage in use: keys, values, offsets and tails.
    [[nodiscard]] std::size_t bytes() const;

  private:
    [[nodiscard]] const_matrix_map rows(const std::vector<float>& flat, index_t kv_head) const;

    index_t head_dim_;
    index_t tail_tokens_ = 0;
    std::vector<std::int32_t> offsets_;           // [kv_heads + 1]
    std::vector<float> keys_;                     // [survivors, head_dim]
    std::vector<float> values_;                   // [survivors, head_dim]
    std::vector<std::vector<float>> tail_keys_;   // kv_heads times [tail_tokens, head_dim]
    std::vector<std::vector<float>> tail_values_; // kv_heads times [tail_tokens, head_dim]
};

// Everything stays.
[[nodiscard]] ragged_cache whole_cache(const attention_inputs& layer);

// Attention of new tokens over the survivors, the tail and, causally, themselves.
//
// queries [q_heads, new_tokens, head_dim]; the new tokens' keys and values are already the end of
// the tail. Returns [new_tokens, q_heads * head_dim].
[[nodiscard]] matrix ragged_attention(const ragged_cache& cache, const head_tensor& queries);

// Runs new tokens at positions start_position .. and appends them to the caches, one per layer.
// Returns logits [tokens, vocabulary].
matrix decode(const recall_model& model, std::span<ragged_cache> caches, std::span<const token_id> tokens,
              index_t start_position);

} // namespace needle
