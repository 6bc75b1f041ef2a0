// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#include "cache.hpp"

#include <kvtrim/base/ragged.hpp>

#include <cmath>
#include <numeric>
#include <stdexcept>

namespace needle {
namespace {

template <class View>
std::vector<float> gather(const View& from, const kvtrim::keep_plan& plan) {
    std::vector<float> flat(static_cast<std::size_t>(plan.total_tokens() * from.extent(2)));
    const kvtrim::status done = kvtrim::gather(from, plan, std::span(flat));
    if (!done.ok()) { throw std::invalid_argument(done.what()); }
    return flat;
}

} // namespace

ragged_cache::ragged_cache(const cache_view& keys, const cache_view& values, const kvtrim::keep_plan& plan)
    : head_dim_(keys.extent(2)), offsets_(plan.cu_seqlens().begin(), plan.cu_seqlens().end()),
      keys_(gather(keys, plan)), values_(gather(values, plan)),
      tail_keys_(static_cast<std::size_t>(keys.extent(0))), tail_values_(tail_keys_.size()) {}

const_matrix_map ragged_cache::rows(const std::vector<float>& flat, index_t kv_head) const {
    const index_t begin = offsets_[static_cast<std::size_t>(kv_head)];
    const index_t end = offsets_[static_cast<std::size_t>(kv_head + 1)];
    return {flat.data() + begin * head_dim_, end - begin, head_dim_};
}

const_matrix_map ragged_cache::tail_keys(index_t kv_head) const {
    return {tail_keys_[static_cast<std::size_t>(kv_head)].data(), tail_tokens_, head_dim_};
}

const_matrix_map ragged_cache::tail_values(index_t kv_head) const {
    return {tail_values_[static_cast<std::size_t>(kv_head)].data(), tail_tokens_, head_dim_};
}

void ragged_cache::append(const head_tensor& keys, const head_tensor& values) {
    const auto add = [](std::vector<float>& tail, const_matrix_map rows) {
        tail.insert(tail.end(), rows.data(), rows.data() + rows.size());
    };
    for (index_t h = 0; h < kv_heads(); ++h) {
        add(tail_keys_[static_cast<std::size_t>(h)], keys.head(h));
        add(tail_values_[static_cast<std::size_t>(h)], values.head(h));
    }
    tail_tokens_ += keys.tokens();
}

void ragged_cache::cut(const kvtrim::keep_plan& plan) {
    if (tail_tokens_ != 0) { throw std::invalid_argument("a cache with decoded tokens is not cut"); }
    keys_ = gather(kvtrim::ragged<const float>(keys_.data(), offsets_, head_dim_), plan);
    values_ = gather(kvtrim::ragged<const float>(values_.data(), offsets_, head_dim_), plan);
    offsets_.assign(plan.cu_seqlens().begin(), plan.cu_seqlens().end());
}

std::size_t ragged_cache::bytes() const {
    const auto tail_floats = static_cast<std::size_t>(2 * kv_heads() * tail_tokens_ * head_dim_);
    return (keys_.size() + values_.size() + tail_floats) * sizeof(float) +
           offsets_.size() * sizeof(std::int32_t);
}

ragged_cache whole_cache(const attention_inputs& layer) {
    const index_t tokens = layer.keys.tokens();
    const std::vector<kvtrim::index_t> counts(static_cast<std::size_t>(layer.keys.heads()), tokens);
    kvtrim::keep_plan all;
    const kvtrim::status done = all.reset(counts);
    if (!done.ok()) { throw std::invalid_argument(done.what()); }
    for (kvtrim::index_t r = 0; r < all.rows(); ++r) {
        const auto row = all.writable_row(r);
        std::iota(row.begin(), row.end(), 0);
    }
    const auto view_of = [](const head_tensor& t) {
        return cache_view(t.data(), {t.heads(), t.tokens(), t.head_dim()});
    };
    return {view_of(layer.keys), view_of(layer.values), all};
}

matrix ragged_attention(const ragged_cache& cache, const head_tensor& queries) {
    const index_t group_heads = queries.heads() / cache.kv_heads();
    const index_t new_tokens = queries.tokens();
    const index_t head_dim = queries.head_dim();
    const index_t tail = cache.tail_tokens();
    const float scale = 1.0F / std::sqrt(static_cast<float>(head_dim));

    matrix attended(new_tokens, queries.heads() * head_dim);
    for (index_t h = 0; h < cache.kv_heads(); ++h) {
        const auto group = queries.heads(h * group_heads, group_heads);
        const index_t survivors = cache.keys(h).rows();
        matrix scores(group.rows(), survivors + tail);
        scores.leftCols(survivors).noalias() = scale * group * cache.keys(h).transpose();
        scores.rightCols(tail).noalias() = scale * group * cache.tail_keys(h).transpose();
        for (index_t row = 0; row < scores.rows(); ++row) {
            const index_t later_tokens = new_tokens - 1 - row % new_tokens;
            softmax_prefix(scores.row(row), scores.cols() - later_tokens);
        }
        matrix output = scores.leftCols(survivors) * cache.values(h);
        output.noalias() += scores.rightCols(tail) * cache.tail_values(h);
        for (index_t g = 0; g < group_heads; ++g) {
            attended.middleCols((h * group_heads + g) * head_dim, head_dim) =
                output.middleRows(g * new_tokens, new_tokens);
        }
    }
    return attended;
}

matrix decode(const recall_model& model, std::span<ragged_cache> caches, std::span<const token_id> tokens,
              index_t start_position) {
    const model_config& config = model.config;
    if (std::ssize(caches) != config.layers) {
        throw std::invalid_argument("decode needs one cache per layer");
    }
    matrix hidden = embed(model, tokens);
    const rope_table rope = make_rope_table(config, start_position, hidden.rows());
    for (std::size_t layer = 0; layer < caches.size(); ++layer) {
        const layer_weights& weights = model.layers[layer];
        const attention_inputs inputs = project(config, weights, hidden, rope);
        caches[layer].append(inputs.keys, inputs.values);
        finish_layer(config, weights, ragged_attention(caches[layer], inputs.queries), hidden);
    }
    return output_logits(model, hidden);
}

} // namespace needle
