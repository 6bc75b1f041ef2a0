// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// What the kernels' tests write to and compare with: outputs with a guard behind them, and the floats that no kernel may choke on.

#include <kvtrim/core/status.hpp>

#include "support/special_floats.hpp"

#include <algorithm>
#include <vector>

namespace support {

using kvtrim::index_t;

constexpr float guard = -31337.0f; // behind every output: must stay

inline std::vector<float> guarded(index_t count, float value = 0.0f) {
    std::vector<float> floats(static_cast<std::size_t>(count + 16), guard);
    std::fill_n(floats.begin(), count, value);
    return floats;
}

inline bool guard_is_whole(const std::vector<float>& floats) {
    return std::all_of(floats.end() - 16, floats.end(), [](float x) { return x == guard; });
}

inline float at(const std::vector<float>& values, index_t i) {
    return values[static_cast<std::size_t>(i)];
}
inline double wide(float x) {
    return static_cast<double>(x);
}

} // namespace support
