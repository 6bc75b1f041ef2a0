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

#include <kvtrim/core/math.hpp>
#include <kvtrim/core/status.hpp>

#include <algorithm>
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

namespace detail {

// out [columns] = fold(the columns of `in` at most `half` away).
template <class Fold>
void fold_windows(index_t half, std::span<const float> in, std::span<float> out, const Fold& fold) {
    const auto columns = static_cast<index_t>(in.size());
    for (index_t c = 0; c < columns; ++c) {
        const index_t first = std::max<index_t>(0, c - half), end = std::min(columns, c + half + 1);
        out[static_cast<std::size_t>(c)] = fold(in.data() + first, end - first);
    }
}

} // namespace detail

/// out [columns] = in [columns] pooled; pooling::none copies.
/// Returns invalid_parameter for a kernel that is not odd and positive, or an output of another length, with nothing
/// written.
[[nodiscard]] inline status pool(pooling kind, index_t kernel_tokens, std::span<const float> in,
                                 std::span<float> out) {
    if (const status s = valid_kernel(kernel_tokens); !s.ok()) { return s; }
    if (in.size() != out.size()) {
        return {errc::invalid_parameter, "pool: in and out must have the same length", std::ssize(in)};
    }
    const index_t half = kind == pooling::none ? 0 : kernel_tokens / 2;
    if (kind == pooling::maximum) {
        detail::fold_windows(half, in, out, [](const float* window, index_t count) {
            float highest = window[0];
            for (index_t i = 1; i < count; ++i) { highest = detail::math::fmax(highest, window[i]); }
            return highest;
        });
        return {};
    }
    const float divisor = kind == pooling::average ? static_cast<float>(kernel_tokens) : 1.0f;
    detail::fold_windows(half, in, out, [&](const float* window, index_t count) {
        float sum = window[0];
        for (index_t i = 1; i < count; ++i) { sum += window[i]; }
        return sum / divisor;
    });
    return {};
}

} // namespace KVTRIM_NAMESPACE
