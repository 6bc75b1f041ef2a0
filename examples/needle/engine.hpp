// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The engine (../model), whose names are the evaluation's own.

#include "cache.hpp"
#include "policies.hpp"

namespace needle {

using namespace lm;

// Budgets of the demo's model are small: partitions of 128 tokens, the default, would fill them.
inline constexpr kvtrim::lag_score small_lag{.lag = 16};

} // namespace needle
