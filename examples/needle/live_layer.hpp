// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// One layer's KV cache while its sequence lives: a fixed buffer that grows by chunks and tokens and is cut in place, with
// what kvtrim keeps beside it.
//
//   buffer   [kv_heads, slots, head_dim]   of each head's rows the first tokens(head) are filled
//
// Keys keep the rotation of their original positions. Where heads differ in length, `slots` must hold the longest.

#include "engine.hpp"

#include <kvtrim/adapter/eigen.hpp>
#include <kvtrim/cache/filled.hpp>
#include <kvtrim/decode/cache_positions.hpp>
#include <kvtrim/decode/recent_queries.hpp>
#include <kvtrim/decode/running_scores.hpp>
#include <kvtrim/score/query_pair_means.hpp>
#include <kvtrim/score/query_statistics.hpp>

#include <vector>

namespace needle {

// What a policy wants to be kept beyond the newest queries.
enum class kept_state {
    none,
    received_attention, // H2O's running sums
    query_statistics,   // mean and covariance of all queries before their rotation
    query_pair_means,   // their mean in every pair of channels that is rotated
};

class live_layer {
  public:
    live_layer(const model_config& config, const layer_weights& weights, index_t slots, index_t window_tokens,
               kept_state state);

    [[nodiscard]] const model_config& config() const { return config_; }
    [[nodiscard]] index_t kv_heads() const { return config_.kv_heads; }
    [[nodiscard]] const kvtrim::cache_positions& positions() const { return positions_; }
    [[nodiscard]] const kvtrim::running_scores& received() const { return received_; }
    [[nodiscard]] const kvtrim::query_statistics& statistics() const { return statistics_; }
    [[nodiscard]] const kvtrim::query_pair_means& pair_means() const { return pair_means_; }
    // The model's rotation, of frequencies that the layer holds.
    [[nodiscard]] kvtrim::rope rotation() const { return {.inverse_frequencies = frequencies_}; }
    // Keys and values of the filled rows.
    [[nodiscard]] std::size_t bytes() const;

    // The cache as a policy sees it, the newest queries as its window. Valid until the layer changes.
    [[nodiscard]] auto inputs() const {
        return kvtrim::layer(filled_rows(keys_.data()), filled_rows(values_.data()))
            .with_queries(queries_.view())
            .with_output_projection(kvtrim::output_projection(wo_, config_.q_heads));
    }

    // Caches new tokens, whose positions `rope` has, and returns their attention over the cache and, causally, themselves:
    // [new_tokens, q_heads * head_dim]. Throws std::runtime_error if there is no room for them.
    [[nodiscard]] matrix attend(const attention_inputs& incoming, const rope_table& rope);

    // Keeps what the plan keeps. Throws std::runtime_error if it is no plan for this cache.
    void cut(const kvtrim::keep_plan& plan);

  private:
    // A view of the keys or the values.
    template <class T>
    [[nodiscard]] kvtrim::filled<T> filled_rows(T* buffer) const {
        return {kvtrim::strided<T, 3>(buffer, {config_.kv_heads, slots_, config_.head_dim}),
                positions_.lengths()};
    }
    // The filled rows of one head [tokens(head), head_dim].
    [[nodiscard]] const_matrix_map rows(const std::vector<float>& buffer, index_t kv_head) const;
    void append(const head_tensor& incoming, std::vector<float>& buffer) const;

    const model_config& config_;
    matrix wo_;
    index_t slots_;
    kept_state state_;
    std::vector<float> keys_;
    std::vector<float> values_;
    kvtrim::cache_positions positions_;
    kvtrim::recent_queries<float> queries_;
    kvtrim::running_scores received_;
    kvtrim::query_statistics statistics_;
    std::vector<float> frequencies_;
    kvtrim::query_pair_means pair_means_;
    kvtrim::growing_workspace memory_;
};

} // namespace needle
