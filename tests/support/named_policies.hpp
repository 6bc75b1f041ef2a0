// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Every named policy, and every other combination of stages worth a name, behind one type: properties hold for all
// of them.

#include "support/checks.hpp"

#include <functional>
#include <string>
#include <vector>

namespace support {

// Any executor as one type.
using any_executor = std::function<void(index_t, const std::function<void(index_t)>&)>;

struct named_policy {
    std::string name;
    bool needs_window; // refuses a prompt shorter than its queries
    bool one_set;      // keeps the same tokens in every head: the remainder of an uneven budget stays unused
    bool across_heads; // a head's budget depends on the other heads
    std::function<trace(const inputs&, const kvtrim::eviction_request&, const any_executor&)> run;
    std::function<kvtrim::status(const inputs&, const kvtrim::eviction_request&, kvtrim::keep_plan&,
                                 kvtrim::workspace&)>
        plan;
    std::function<index_t(const inputs&, const kvtrim::eviction_request&)> workspace_bytes;

    [[nodiscard]] trace operator()(const inputs& in, const kvtrim::eviction_request& request) const {
        return run(in, request, kvtrim::serial_executor{});
    }
    // Tokens that stay of a budget over all heads that is above the protected tokens.
    [[nodiscard]] index_t kept_of(index_t budget, const inputs& in, const kvtrim::protection& p) const {
        if (!one_set) { return budget; }
        const index_t spent = protected_tokens(in, p);
        return spent + (budget - spent) / in.kv_heads() * in.kv_heads();
    }
};

const std::vector<named_policy>& named_policies();

} // namespace support
