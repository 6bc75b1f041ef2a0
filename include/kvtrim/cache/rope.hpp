// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Rotary position embedding as a model configures it: the rotation of a query or key at position p.
//
//   pair i of channels:  (x, y)  ->  a * (x cos - y sin, y cos + x sin)     angle p * inverse_frequencies[i]
//
//   half_split    pair i is channels (i, i + rotary_dim / 2)    Llama, Qwen, Mistral, GPT-NeoX
//   interleaved   pair i is channels (2 i, 2 i + 1)             GPT-J, and the original paper
//
// rotary_dim is twice the number of frequencies; the channels behind it are not rotated (partial rotary dimension).
// Every scaling of the frequencies (linear, NTK, YaRN, Llama 3) is a table of them, passed in as the model has it; a
// is YaRN's attention factor, which multiplies the rotated channels only.
// Source: RoFormer, arXiv:2104.09864; YaRN, arXiv:2309.00071.

#include <kvtrim/core/status.hpp>

#include <cmath>
#include <cstdint>
#include <span>

namespace KVTRIM_NAMESPACE {

/// Which channels are rotated together.
enum class rope_pairing : std::uint8_t {
    half_split,  ///< channels i and i + rotary_dim / 2
    interleaved, ///< channels 2 i and 2 i + 1
};

/// The rotary embedding of a model. Checked by valid_rope().
struct rope {
    std::span<const float> inverse_frequencies = {}; ///< [rotary_dim / 2], radians per position
    float attention_factor = 1;                      ///< YaRN's factor of the rotated channels
    rope_pairing pairing = rope_pairing::half_split; ///< which channels are rotated together

    /// Pairs of channels that are rotated.
    [[nodiscard]] constexpr index_t pairs() const { return static_cast<index_t>(inverse_frequencies.size()); }
    /// Channels that are rotated.
    [[nodiscard]] constexpr index_t rotary_dim() const { return 2 * pairs(); }
    /// The first channel of pair i.
    [[nodiscard]] constexpr index_t first_channel(index_t i) const {
        return pairing == rope_pairing::half_split ? i : 2 * i;
    }
    /// The second channel of pair i.
    [[nodiscard]] constexpr index_t second_channel(index_t i) const {
        return pairing == rope_pairing::half_split ? i + pairs() : 2 * i + 1;
    }
    /// Radians per position of pair i.
    [[nodiscard]] constexpr double frequency(index_t i) const {
        return static_cast<double>(inverse_frequencies[static_cast<std::size_t>(i)]);
    }
};

/// Returns invalid_parameter for a frequency that is not finite, or an attention factor that is not finite and positive.
/// O(pairs).
[[nodiscard]] inline status valid_rope(const rope& r) {
    bool valid = std::isfinite(r.attention_factor) && r.attention_factor > 0;
    for (const float f : r.inverse_frequencies) { valid = valid && std::isfinite(f); }
    if (valid) { return {}; }
    return {errc::invalid_parameter, "rope: frequencies must be finite, the attention factor above 0"};
}

} // namespace KVTRIM_NAMESPACE
