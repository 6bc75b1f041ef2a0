// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// One-dimensional pooling of a score row, stride 1, same length, odd kernel.
//
//   average: out[c] = sum of in[c - half .. c + half] / kernel    outside counts as 0 and is still divided by
//                                                                 kernel, as the papers' code does: borders
//                                                                 are damped
//   maximum: out[c] = max of the same columns, outside ignored
//
// NaN: average spreads it over the kernel; maximum ignores it unless all columns are NaN.
// Cost: kernel reads per column. in and out must not overlap.

#include <kvtrim/core/status.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>

namespace KVTRIM_NAMESPACE {

/// How a score is pooled over its neighbours.
enum class pooling : std::uint8_t { none, average, maximum };

/// Returns invalid_parameter for a kernel that is not odd and positive.
[[nodiscard]] constexpr status valid_kernel(index_t kernel_tokens) {
    if (kernel_tokens > 0 && kernel_tokens % 2 == 1) { return {}; }
    return {errc::invalid_parameter, "a pooling kernel must be odd and positive"};
}

/// out [columns] = in [columns] pooled; pooling::none copies.
/// Returns invalid_parameter for a kernel that is not odd and positive, or an output of another length, with nothing
/// written.
[[nodiscard]] inline status pool(pooling kind, index_t kernel_tokens, std::span<const float> in,
                                 std::span<float> out) {
    if (const status s = valid_kernel(kernel_tokens); !s.ok()) { return s; }
    if (in.size() != out.size()) {
        return {errc::invalid_parameter, "pool: in and out must have the same length", std::ssize(in)};
    }
    const auto columns = static_cast<index_t>(in.size());
    const index_t half = kind == pooling::none ? 0 : kernel_tokens / 2;
    for (index_t c = 0; c < columns; ++c) {
        const auto window = in.subspan(
            static_cast<std::size_t>(std::max<index_t>(0, c - half)),
            static_cast<std::size_t>(std::min(columns, c + half + 1) - std::max<index_t>(0, c - half)));
        float pooled = window[0];
        if (kind == pooling::maximum) {
            for (const float x : window) { pooled = std::fmax(pooled, x); }
        } else {
            for (const float x : window.subspan(1)) { pooled += x; }
            if (kind == pooling::average) { pooled /= static_cast<float>(kernel_tokens); }
        }
        out[static_cast<std::size_t>(c)] = pooled;
    }
    return {};
}

} // namespace KVTRIM_NAMESPACE
