// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// kvtrim's policies by name, as a cache that is cut again and again asks them.

#include "live_layer.hpp"

#include <kvtrim/core/eviction_request.hpp>
#include <kvtrim/core/workspace.hpp>
#include <kvtrim/plan/keep_plan.hpp>

#include <functional>
#include <string>
#include <vector>

namespace needle {

// A policy in the sense of kvtrim::interval_policy, whose inputs are a live layer.
struct live_policy {
    std::string name;
    kept_state state;
    bool heads_differ; // heads compete for the budget: one may keep more than the average
    std::function<kvtrim::status(const live_layer&, const kvtrim::eviction_request&,
                                 kvtrim::growing_workspace&, kvtrim::keep_plan&)>
        cut;

    template <class Executor>
    [[nodiscard]] kvtrim::status plan(const live_layer& layer, const kvtrim::eviction_request& request,
                                      kvtrim::keep_plan& out, kvtrim::growing_workspace& memory,
                                      Executor&) const {
        return cut(layer, request, memory, out);
    }
};

[[nodiscard]] const std::vector<live_policy>& live_policies();

// Throws std::invalid_argument for an unknown name.
[[nodiscard]] const live_policy& live_policy_named(const std::string& name);

} // namespace needle
