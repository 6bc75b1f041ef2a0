// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// What the examples fill their caches with: `count` floats in [-1, 1), the same for a seed everywhere.

#include <kvtrim/core/status.hpp>

#include <cstdint>
#include <vector>

inline std::vector<float> numbers(kvtrim::index_t count, std::uint32_t seed) {
    std::vector<float> out(static_cast<std::size_t>(count));
    for (float& x : out) {
        seed = seed * 1664525u + 1013904223u;
        x = static_cast<float>(seed >> 8) / 8388608 - 1;
    }
    return out;
}
