// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// A cache of multi-head latent attention (MLA): one row per token for all query heads, part latent, part rotated key.
//
//   row t = [ latent c(t), rotary key k_r(t) ]      DeepSeek: 512 + 64, in this order (vLLM, SGLang) or reversed (llama.cpp)
//
//   keys()    [1, tokens, row_length]        the whole row
//   values()  [1, tokens, latent length]     the latent part of the same rows
//   rotary()  [1, tokens, rotary length]     the part that rerotate_keys() rotates: compact/rerotate_keys.hpp
//
// All are strided views of one KV head, so every scorer reads them. What MLA asks of the rest:
//
//   queries   absorbed, channels in the order of the row: W_uk[h] q_nope beside the rotated q_rope
//   scale     the model's, 1 / sqrt(nope + rope length): attention.scale must be set, for row_length is not that length
//   W_O       W_uv[h] * W_O[h], made once per model layer: score/combine_projections.hpp
//   cutting   compact_in_place(cache.keys(), plan) moves whole rows, values with them, also if given values() too
//
// With one KV head there is one token set per layer: head-wise budgets (Ada-KV) equal uniform ones. Budgets may still differ
// by layer (policy/layer_wise.hpp). A paged latent pool is a paged source of one head with the same two row lengths.
// Source: DeepSeek-V2, arXiv:2405.04434, Sec. 2.1.

#include <kvtrim/cache/tensor_view.hpp>

namespace KVTRIM_NAMESPACE {

/// Channels [begin, begin + length) of a row.
struct channel_range {
    index_t begin = 0;  ///< first channel
    index_t length = 0; ///< channels
};

/// Where the two parts of a row are; channels outside both belong to the keys alone.
struct latent_layout {
    index_t row_length = 0; ///< channels of a row
    channel_range latent;   ///< of the values
    channel_range rotary;   ///< of the rotated key
};

/// View of latent rows: channel d of token t is data[t * token_stride + d]; the stride counts elements.
template <element T>
class latent_cache {
  public:
    /// Its three views are empty, and validate() says why, for negative tokens, more rows than memory can hold, a part that is
    /// not inside the row or overlaps the other, rows without data.
    latent_cache(T* data, index_t tokens, index_t token_stride, const latent_layout& layout)
        : data_(data), tokens_(tokens), token_stride_(token_stride), layout_(layout),
          problem_(find_problem()) {}

    /// Ok, or why the views are empty.
    [[nodiscard]] status validate() const {
        return problem_ == nullptr ? status{} : status{errc::invalid_parameter, problem_};
    }
    /// [1, tokens, row_length] the whole rows.
    [[nodiscard]] strided<T, 3> keys() const { return part({0, layout_.row_length}); }
    /// [1, tokens, latent length]
    [[nodiscard]] strided<T, 3> values() const { return part(layout_.latent); }
    /// [1, tokens, rotary length]
    [[nodiscard]] strided<T, 3> rotary() const { return part(layout_.rotary); }
    /// Where the parts of a row are.
    [[nodiscard]] const latent_layout& layout() const { return layout_; }

  private:
    [[nodiscard]] const char* find_problem() const {
        const channel_range& a = layout_.latent;
        const channel_range& b = layout_.rotary;
        const auto inside = [&](const channel_range& part) {
            return part.begin >= 0 && part.length >= 0 && part.length <= layout_.row_length &&
                   part.begin <= layout_.row_length - part.length;
        };
        if (!inside(a) || !inside(b)) { return "latent_cache: both parts must lie inside the row"; }
        if (a.begin + a.length > b.begin && b.begin + b.length > a.begin) {
            return "latent_cache: the latent and the rotary part must not overlap";
        }
        // The parts are views of these rows, so they are valid only if the rows are.
        const strided<T, 3> rows(data_, {1, tokens_, layout_.row_length}, {0, token_stride_, 1});
        return rows.validate().ok() ? nullptr : rows.validate().what();
    }
    [[nodiscard]] strided<T, 3> part(const channel_range& channels) const {
        if (problem_ != nullptr) { return strided<T, 3>::invalid(problem_); }
        T* const begin = data_ != nullptr ? data_ + channels.begin : nullptr;
        return {begin, {1, tokens_, channels.length}, {0, token_stride_, 1}};
    }

    T* data_;
    index_t tokens_;
    index_t token_stride_;
    latent_layout layout_;
    const char* problem_;
};

} // namespace KVTRIM_NAMESPACE
