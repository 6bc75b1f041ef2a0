// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// CritiPrefill's layer fusion: neighbouring layers agree on critical blocks, so a layer's estimate is mixed with the
// one before it.
//
//   p[l] = softmax over the allowed blocks of logits[l]
//   f[l] = previous_weight * f[l - 1] + (1 - previous_weight) * p[l]    from layer `first_fused_layer` on, else p[l]
//
// The state belongs to one request and is a plain value: copy it with the request, keep one per sequence. A layer that
// does not follow the one before it (the first, one behind a skipped layer, another chunk) is not mixed.
//
// Source: CritiPrefill, arXiv:2409.12490, Sec. 3.3; 66RING/CritiPrefill@3067f1e (weight 0.25, from layer 2).
// Departures: the authors keep the state in a global object, so that interleaved requests mix.
// Memory: the allowed half of [kv_heads, segments, blocks] floats: 16 MiB for 131072 tokens, 8 KV heads, segment 512
// and block 32, a quarter of that for chunks of 32768. It is the only memory of pruning that grows with
// segments * blocks; without fusion nothing is kept.

#include <kvtrim/plan/prune_plan.hpp>

#include <span>
#include <vector>

namespace KVTRIM_NAMESPACE {

/// How a layer's estimate is mixed with that of the layer before.
struct fusion_options {
    double previous_weight = 0.25; ///< in [0, 1); 0: no fusion
    index_t first_fused_layer = 2; ///< the first layer that is mixed; reference 2

    /// Whether layers are mixed at all.
    [[nodiscard]] bool is_on() const { return previous_weight > 0; }
    /// Returns ratio_out_of_range unless previous_weight lies in [0, 1).
    [[nodiscard]] status validate() const {
        if (previous_weight >= 0 && previous_weight < 1) { return {}; }
        return {errc::ratio_out_of_range, "fusion: previous_weight must lie in [0, 1)"};
    }
};

/// The fused estimates of one request, layer by layer. A plain value.
class layer_fusion {
  public:
    /// Forgets everything: the next layer is a first one.
    void reset() { layer_ = none; }

    /// Opens a layer; its rows are then mixed through fuse(). Allocates when the shape grows.
    /// Returns what the options or valid_table_size() say, or invalid_parameter for a negative layer, with the state
    /// unchanged.
    [[nodiscard]] status begin_layer(index_t layer, const segment_grid& grid, index_t kv_heads,
                                     const fusion_options& options) {
        if (const status s = options.validate(); !s.ok()) { return s; }
        if (const status s = valid_table_size(grid, kv_heads); !s.ok()) { return s; }
        if (layer < 0) { return {errc::invalid_parameter, "fusion: a layer must not be negative"}; }
        const index_t head_floats = grid.allowed_before(grid.segments());
        fused_.resize(static_cast<std::size_t>(kv_heads * head_floats)); // may throw: before all changes
        const bool follows = layer > 0 && layer - 1 == layer_ && grid == grid_ && kv_heads == kv_heads_;
        weight_ =
            follows && layer >= options.first_fused_layer ? static_cast<float>(options.previous_weight) : 0;
        layer_ = layer;
        grid_ = grid;
        kv_heads_ = kv_heads;
        head_floats_ = head_floats;
        return {};
    }

    /// Replaces estimate [allowed blocks of the segment] by the fused one, which is kept for the next layer. Different rows
    /// may be fused by different threads at the same time.
    /// Returns invalid_parameter for a row that the open layer does not have, or an estimate of another length (needed:
    /// blocks), with nothing changed.
    [[nodiscard]] status fuse(index_t kv_head, index_t segment, std::span<float> estimate) {
        const bool has_row = layer_ != none && 0 <= kv_head && kv_head < kv_heads_ && 0 <= segment &&
                             segment < grid_.segments();
        const index_t blocks = has_row ? grid_.allowed_blocks(segment) : 0;
        if (!has_row || std::ssize(estimate) != blocks) {
            return {errc::invalid_parameter, "fusion: an estimate must be a row of the open layer", blocks};
        }
        float* const kept = fused_.data() + kv_head * head_floats_ + grid_.allowed_before(segment);
        for (std::size_t b = 0; b < estimate.size(); ++b) {
            if (weight_ > 0) { estimate[b] = weight_ * kept[b] + (1 - weight_) * estimate[b]; }
            kept[b] = estimate[b];
        }
        return {};
    }

    /// Whether the open layer is mixed with the one before.
    [[nodiscard]] bool is_mixing() const { return weight_ > 0; }
    /// Bytes of memory it holds.
    [[nodiscard]] index_t bytes() const { return static_cast<index_t>(fused_.size() * sizeof(float)); }

  private:
    static constexpr index_t none = -1;

    std::vector<float> fused_; // first, so that assigning a copy throws before all changes
    index_t layer_ = none;
    segment_grid grid_ = {};
    index_t kv_heads_ = 0;
    index_t head_floats_ = 0;
    float weight_ = 0;
};

} // namespace KVTRIM_NAMESPACE
