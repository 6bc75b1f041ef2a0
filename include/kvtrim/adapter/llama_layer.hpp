// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// One layer of a sequence in llama.cpp, as adapter/llama_graph.hpp saw it: the inputs of a policy, in place.

#include <kvtrim/adapter/ggml_any_rows.hpp>
#include <kvtrim/cache/indexed_rows.hpp>
#include <kvtrim/cache/layer.hpp>
#include <kvtrim/decode/recent_queries.hpp>

namespace KVTRIM_NAMESPACE {

/// What was seen of one layer by one sequence.
struct llama_layer {
    ggml_tensor k{}; ///< what attention reads: [head_dim, cells, kv_heads] of the sequence's stream
    ggml_tensor v{}; ///< the same, or [cells, head_dim, kv_heads]
    bool v_is_transposed = false;           ///< the latter
    attention_options attention;            ///< scale, soft cap, sink logits
    const ggml_tensor* wo = nullptr;        ///< W_O, if it is a plain weight
    recent_queries<float> queries{0, 0, 0}; ///< [q_heads, window, head_dim]
    std::span<const float> v_rotation;      ///< [n, n] of a cache of quantised V; empty: none

    /// The cells of a sequence, in its order, as a policy's inputs. The cells must outlive them.
    [[nodiscard]] auto inputs(std::span<const std::int32_t> cells) const {
        const ggml_any_rows keys(k),
            values(v, v_is_transposed ? ggml_axes::transposed() : ggml_axes::attended());
        return layer(indexed_rows(keys, cells), indexed_rows(values, cells)).with_queries(queries.view());
    }
    /// W_O for the values as they lie in the cache. Not valid where there is none, or none that the CPU can read.
    [[nodiscard]] ggml_output_projection output_projection() const {
        ggml_output_projection w = wo != nullptr
                                       ? ggml_output_projection(*wo, queries.q_heads())
                                       : ggml_output_projection::invalid("llama.cpp: no W_O was seen");
        if (!v_rotation.empty() && w.validate().ok()) {
            if (!w.rotate(v_rotation).ok()) {
                return ggml_output_projection::invalid("llama.cpp: V is rotated otherwise");
            }
        }
        return w;
    }
};

} // namespace KVTRIM_NAMESPACE
