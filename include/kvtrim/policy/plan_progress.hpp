// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// What an observer of a policy's pipeline is called with: `policy.plan(in, request, plan, memory, executor, observer)` calls
// observer(plan_progress) after scoring, after allocation, and after selection.

#include <kvtrim/plan/token_scores.hpp>

#include <cstdint>
#include <span>

namespace KVTRIM_NAMESPACE {

/// The moments at which a policy calls its observer, with what is known by then.
enum class plan_stage : std::uint8_t { scored, allocated, selected };

/// What an observer is called with.
struct plan_progress {
    plan_stage stage;                 ///< which moment it is
    const token_scores& scores;       ///< of the layer, or of all layers
    std::span<const index_t> budgets; ///< candidates per row, from `allocated` on
};

/// The observer that does nothing.
struct no_observer {
    void operator()(const plan_progress&) const {} ///< ignores it
};

} // namespace KVTRIM_NAMESPACE
