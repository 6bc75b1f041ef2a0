// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#include "live_layer.hpp"

#include "require.hpp"

#include <kvtrim/compact/compact_in_place.hpp>

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <utility>

namespace needle {
namespace {

using lm::require;

} // namespace

live_layer::live_layer(const model_config& config, const layer_weights& weights, index_t slots,
                       index_t window_tokens, kept_state state)
    : config_(config), wo_(weights.wo.decoded()), slots_(slots), state_(state),
      keys_(static_cast<std::size_t>(config.kv_heads * slots * config.head_dim)), values_(keys_.size()),
      positions_(config.kv_heads, slots), queries_(config.q_heads, window_tokens, config.head_dim),
      received_(config.kv_heads), statistics_(config.q_heads, config.head_dim),
      frequencies_(config.frequencies.begin(), config.frequencies.end()),
      pair_means_(config.q_heads, config.head_dim, rotation()) {}

std::size_t live_layer::bytes() const {
    return static_cast<std::size_t>(2 * positions_.total_tokens() * config_.head_dim) * sizeof(float);
}

const_matrix_map live_layer::rows(const std::vector<float>& buffer, index_t kv_head) const {
    const index_t head_dim = config_.head_dim;
    return {buffer.data() + kv_head * slots_ * head_dim, positions_.tokens(kv_head), head_dim};
}

void live_layer::append(const head_tensor& incoming, std::vector<float>& buffer) const {
    for (index_t h = 0; h < config_.kv_heads; ++h) {
        const auto new_rows = incoming.head(h);
        const index_t first = h * slots_ + positions_.tokens(h);
        std::copy_n(new_rows.data(), new_rows.size(), buffer.begin() + first * config_.head_dim);
    }
}

matrix live_layer::attend(const attention_inputs& incoming, const rope_table& rope) {
    const index_t new_tokens = incoming.queries.tokens();
    if (positions_.longest_row() + new_tokens > slots_) {
        throw std::runtime_error("a cache of " + std::to_string(slots_) + " tokens per KV head is full");
    }
    append(incoming.keys, keys_);
    append(incoming.values, values_);
    require(positions_.append(new_tokens));
    require(queries_.append(rows_of(incoming.queries)));

    const index_t head_dim = config_.head_dim;
    const index_t group_heads = config_.group_heads();
    const float scale = 1.0F / std::sqrt(static_cast<float>(head_dim));
    matrix attended(new_tokens, config_.q_heads * head_dim);
    matrix received = matrix::Zero(config_.q_heads, positions_.longest_row()); // summed over the new tokens
    for (index_t h = 0; h < config_.kv_heads; ++h) {
        const auto keys = rows(keys_, h);
        matrix scores = scale * incoming.queries.heads(h * group_heads, group_heads) * keys.transpose();
        for (index_t row = 0; row < scores.rows(); ++row) {
            const index_t later_tokens = new_tokens - 1 - row % new_tokens;
            softmax_prefix(scores.row(row), scores.cols() - later_tokens);
        }
        const matrix output = scores * rows(values_, h);
        for (index_t g = 0; g < group_heads; ++g) {
            const index_t q_head = h * group_heads + g;
            attended.middleCols(q_head * head_dim, head_dim) = output.middleRows(g * new_tokens, new_tokens);
            received.row(q_head).head(keys.rows()) =
                scores.middleRows(g * new_tokens, new_tokens).colwise().sum();
        }
    }
    if (state_ == kept_state::received_attention) {
        require(received_.append(new_tokens));
        require(received_.add(
            kvtrim::strided<const float, 2>(received.data(), {received.rows(), received.cols()}),
            new_tokens));
    }
    const auto add_queries = [&](auto& gathered) {
        const head_tensor queries = before_rotation(incoming.queries, rope);
        kvtrim::workspace scratch = memory_.of_bytes(gathered.workspace_bytes());
        require(gathered.add(rows_of(queries), scratch));
    };
    if (state_ == kept_state::query_statistics) { add_queries(statistics_); }
    if (state_ == kept_state::query_pair_means) { add_queries(pair_means_); }
    return attended;
}

void live_layer::cut(const kvtrim::keep_plan& plan) {
    require(kvtrim::compact_in_place(filled_rows(keys_.data()), filled_rows(values_.data()), plan));
    require(positions_.compact(plan));
    if (state_ == kept_state::received_attention) { require(received_.compact(plan)); }
}

} // namespace needle
