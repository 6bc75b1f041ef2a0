// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#include "cache.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

namespace needle {
namespace {

void check(const keep_list& keep, index_t kv_heads, index_t tokens) {
    const auto& [offsets, kept] = keep;
    bool valid = std::ssize(offsets) == kv_heads + 1 && offsets.front() == 0 &&
                 offsets.back() == std::ssize(kept) && std::is_sorted(offsets.begin(), offsets.end());
    for (std::size_t row = 0; valid && row + 1 < offsets.size(); ++row) {
        std::int32_t previous = -1;
        for (std::int32_t i = offsets[row]; i < offsets[row + 1]; ++i) {
            const std::int32_t position = kept[static_cast<std::size_t>(i)];
            valid = valid && position > previous && position < tokens;
            previous = position;
        }
    }
    if (!valid) { throw std::invalid_argument("ragged_cache: not a keep_list for this cache"); }
}

// The kept rows of [kv_heads, tokens, head_dim], one head after the other.
std::vector<float> gather(const head_tensor& from, const keep_list& keep) {
    std::vector<float> flat(keep.kept.size() * static_cast<std::size_t>(from.head_dim()));
    float* to = flat.data();
    for (index_t h = 0; h < from.heads(); ++h) {
        const auto row = static_cast<std::size_t>(h);
        for (std::int32_t i = keep.offsets[row]; i < keep.offsets[row + 1]; ++i) {
            const float* entry = from.head(h).row(keep.kept[static_cast<std::size_t>(i)]).data();
            to = std::copy_n(entry, from.head_dim(), to);
        }
    }
    return flat;
}

} // namespace

keep_list keep_same(index_t kv_heads, std::span<const std::int32_t> positions) {
    keep_list keep{.offsets = {0}, .kept = {}};
    for (index_t h = 0; h < kv_heads; ++h) {
        keep.kept.insert(keep.kept.end(), positions.begin(), positions.end());
        keep.offsets.push_back(static_cast<std::int32_t>(keep.kept.size()));
    }
    return keep;
}

keep_list keep_all(index_t kv_heads, index_t tokens) {
    std::vector<std::int32_t> positions(static_cast<std::size_t>(tokens));
    std::iota(positions.begin(), positions.end(), 0);
    return keep_same(kv_heads, positions);
}

ragged_cache::ragged_cache(const head_tensor& keys, const head_tensor& values, const keep_list& keep)
    : head_dim_(keys.head_dim()) {
    check(keep, keys.heads(), keys.tokens());
    offsets_ = keep.offsets;
    keys_ = gather(keys, keep);
    values_ = gather(values, keep);
    tail_keys_.resize(static_cast<std::size_t>(keys.heads()));
    tail_values_.resize(static_cast<std::size_t>(keys.heads()));
}

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

std::size_t ragged_cache::bytes() const {
    const auto tail_floats = static_cast<std::size_t>(2 * kv_heads() * tail_tokens_ * head_dim_);
    return (keys_.size() + values_.size() + tail_floats) * sizeof(float) +
           offsets_.size() * sizeof(std::int32_t);
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
