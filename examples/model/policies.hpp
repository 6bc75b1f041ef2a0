// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// kvtrim's policies by name, each a function from a prompt's layers to their plans.

#include "cache.hpp"
#include "policy_options.hpp"

#include <kvtrim/allocate/row_profile.hpp>
#include <kvtrim/core/eviction_request.hpp>
#include <kvtrim/core/workspace.hpp>
#include <kvtrim/plan/keep_plan.hpp>
#include <kvtrim/score/lag_score.hpp>
#include <kvtrim/score/replay_scores.hpp>

#include <functional>
#include <span>
#include <string>
#include <vector>

namespace lm {

// The queries that a policy wants to see.
enum class observed { window, whole_prompt };

// The pass over the prompt whose queries score its rows before a policy plans: none, its own (what is wanted from afar), or a
// second one behind it, or both, added up.
enum class scoring_pass { none, own, replay, both };

// How near before a query rows are not scored by it, where the prompt's own pass scores, unless a policy says otherwise.
inline constexpr index_t afar_tokens = 32;
// How much its scores count beside a replay's.
inline constexpr float both_weight = 2;

// One layer of a prefilled prompt.
struct layer_prompt {
    const model_config& config;
    cache_rows keys; // [kv_heads, tokens, head_dim]
    cache_rows values;
    kvtrim::strided<const float, 3>
        queries;                 // [q_heads, count, head_dim] the newest; all for observed::whole_prompt
    const_matrix_map wo;         // [d_model, q_heads * head_dim]
    std::span<const float> gram; // Gram matrices of W_O [q_heads, head_dim, head_dim]
    index_t tokens;
    index_t window_tokens; // newest queries that the policy may observe
    kvtrim::lag_score lag = {};
    float stream_power = 1;                        // mean of 1 / x^2, x the length of the stream at a token
    const kvtrim::replay_scores* scored = nullptr; // by the pass that the policy asked for
    const kvtrim::row_profile* profile = nullptr;  // of the model, where the policy needs one
    std::span<const double> shares = {};           // [layers] or [layers * kv_heads] of the budget, likewise
};

struct stage_seconds {
    double score = 0;
    double allocate = 0;
    double select = 0;
};

// Makes the plans of all layers and adds the time of the stages. The request's budget is a layer's average.
// Throws std::runtime_error if kvtrim refuses.
using plan_function =
    std::function<void(std::span<const layer_prompt>, const kvtrim::eviction_request&,
                       kvtrim::growing_workspace&, std::span<kvtrim::keep_plan>, stage_seconds&)>;

struct named_policy {
    std::string name;
    observed queries = observed::window;
    bool needs_gram = false;
    plan_function plan = {};
    scoring_pass pass = scoring_pass::none;
    kvtrim::token_loss loss = kvtrim::token_loss::attention_maximum; // of that pass
    index_t nearest = afar_tokens;                                   // of the own pass
    float own_weight = both_weight; // where there are both, that of the own pass
    bool softmax_over_part =
        false; // of a replay: a part's queries see that part and the sinks alone, as KVzip's
    bool needs_profile = false;
    bool needs_shares = false;
    // Makes the policy of this name with defaults of kvtrim's set otherwise; empty where it has no options. policy_named() asks.
    std::function<named_policy(policy_options&)> with_options = {};
    // For a policy that can evict while the layers arrive: plays one prefill, with real caches, and returns the most
    // bytes of keys and values that were held at a time. Otherwise empty.
    std::function<double(std::span<const layer_prompt>, const kvtrim::eviction_request&,
                         kvtrim::growing_workspace&)>
        cascade_peak_bytes = {};
};

[[nodiscard]] const std::vector<named_policy>& all_policies();

// Whether it is one of its own and plans from the layers alone, without a pass of its own, a table or shares of the model.
[[nodiscard]] inline bool is_plain(const named_policy& p) {
    return p.pass == scoring_pass::none && !p.needs_profile && !p.needs_shares;
}

// "NAME", or "NAME:OPTION=VALUE:..." (policy_options.hpp), which is another policy with the whole as its name. Throws
// std::invalid_argument for an unknown name, option or value; a number out of range is refused when it plans.
[[nodiscard]] const named_policy& policy_named(const std::string& name);

} // namespace lm
