// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The floats that most tests of wrong numbers need.

#include <limits>

namespace support {

constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();
constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float largest_float = std::numeric_limits<float>::max();

} // namespace support
