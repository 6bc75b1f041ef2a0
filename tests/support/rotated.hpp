// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// RoPE as a model applies it, in complex doubles, and random ones.

#include "support/random_layer.hpp"

#include <kvtrim/cache/rope.hpp>

#include <complex>

namespace support {

// Frequencies of a rope over all channels or a half of them.
inline std::vector<float> random_frequencies(random& r, index_t head_dim) {
    return rope_frequencies(r.chance(0.7) ? head_dim / 2 : head_dim / 4);
}
inline kvtrim::rope random_rope(random& r, const std::vector<float>& frequencies) {
    return {.inverse_frequencies = frequencies,
            .attention_factor = r.chance(0.5) ? 1.0f : 1.2f,
            .pairing = r.chance(0.5) ? kvtrim::rope_pairing::half_split : kvtrim::rope_pairing::interleaved};
}

using complex_pair = std::complex<double>;

inline complex_pair pair_of(const float* row, const kvtrim::rope& r, index_t i) {
    return {static_cast<double>(row[r.first_channel(i)]), static_cast<double>(row[r.second_channel(i)])};
}

inline void rotate(float* row, const kvtrim::rope& r, double position) {
    for (index_t i = 0; i < r.pairs(); ++i) {
        const complex_pair turned = pair_of(row, r, i) * std::polar(static_cast<double>(r.attention_factor),
                                                                    position * r.frequency(i));
        row[r.first_channel(i)] = static_cast<float>(turned.real());
        row[r.second_channel(i)] = static_cast<float>(turned.imag());
    }
}

// The layer with key t of head g rotated to position_of(g, t).
template <class PositionOf>
layer_data rotated(layer_data layer, const kvtrim::rope& r, PositionOf&& position_of) {
    for (index_t g = 0; g < layer.shape.kv_heads; ++g) {
        for (index_t t = 0; t < layer.shape.tokens; ++t) {
            rotate(layer.key(g, t), r, static_cast<double>(position_of(g, t)));
        }
    }
    return layer;
}
inline layer_data rotated(const layer_data& layer, const kvtrim::rope& r) {
    return rotated(layer, r, [](index_t, index_t t) { return t; });
}

} // namespace support
