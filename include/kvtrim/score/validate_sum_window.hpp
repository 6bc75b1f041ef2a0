// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Whether a request fits scores that are sums of attention: those of H2O, and running scores.

#include <kvtrim/core/eviction_request.hpp>

#include <algorithm>

namespace KVTRIM_NAMESPACE::detail {

// Few queries have seen the newest tokens, so their sums are the
// lowest: without a protected window they would be evicted first, and the prompt would never be. Returns invalid_parameter
// (needed: window_tokens; H2O's are half of the budget) unless the window holds `least` tokens or everything is kept.
template <class Inputs>
[[nodiscard]] status validate_sum_window(const Inputs& in, const eviction_request& request,
                                         index_t least = 1) {
    index_t tokens = 0;
    for (index_t g = 0; g < in.kv_heads(); ++g) { tokens += in.tokens(g); }
    const index_t total = request.budget.total(in.kv_heads());
    if (request.protect.window_tokens >= least || tokens == 0 || total >= tokens) { return {}; }
    return {errc::invalid_parameter,
            "sums of attention put the newest tokens last: protect them with request.protect.window_tokens, "
            "half of the budget in H2O",
            std::max(least, total / in.kv_heads() / 2)};
}

} // namespace KVTRIM_NAMESPACE::detail
