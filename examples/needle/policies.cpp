// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#include "policies.hpp"

#include <kvtrim/adapter/eigen.hpp>
#include <kvtrim/kvtrim.hpp>

#include <chrono>
#include <stdexcept>

namespace needle {
namespace {

using view = kvtrim::strided<const float, 3>;

// [heads, count, head_dim]: `count` tokens from `first` on.
view rows_of(const head_tensor& tensor, index_t first, index_t count) {
    const index_t row = tensor.head_dim();
    return {tensor.data() + first * row, {tensor.heads(), count, row}, {tensor.tokens() * row, row, 1}};
}

enum class observed { window, whole_prompt };

// The attention layer as kvtrim sees it: the engine's own memory, no copies.
auto inputs_of(const layer_prompt& p, observed queries) {
    const index_t count = queries == observed::window ? p.window_tokens : p.tokens;
    return kvtrim::layer(rows_of(p.attention.keys, 0, p.tokens), rows_of(p.attention.values, 0, p.tokens))
        .with_queries(rows_of(p.attention.queries, p.tokens - count, count))
        .with_output_projection(kvtrim::output_projection(p.weights.wo, p.attention.queries.heads()));
}

template <class Policy, class Inputs>
void run(const Policy& policy, const Inputs& in, const kvtrim::eviction_request& request,
         kvtrim::growing_workspace& memory, kvtrim::keep_plan& plan, stage_seconds& seconds) {
    using clock = std::chrono::steady_clock;
    auto last = clock::now();
    const auto lap = [&](const kvtrim::plan_progress& at) {
        const auto now = clock::now();
        double& stage = at.stage == kvtrim::plan_stage::scored      ? seconds.score
                        : at.stage == kvtrim::plan_stage::allocated ? seconds.allocate
                                                                    : seconds.select;
        stage += std::chrono::duration<double>(now - last).count();
        last = now;
    };
    const kvtrim::status done = policy.plan(in, request, plan, memory, kvtrim::serial_executor{}, lap);
    if (!done.ok()) { throw std::runtime_error(done.what()); }
}

template <class Policy>
named_policy named(std::string name, const Policy& policy, observed queries = observed::window) {
    return {std::move(name), [policy, queries](const layer_prompt& p, const kvtrim::eviction_request& request,
                                               kvtrim::growing_workspace& memory, kvtrim::keep_plan& plan,
                                               stage_seconds& seconds) {
                run(policy, inputs_of(p, queries), request, memory, plan, seconds);
            }};
}

// CriticalKV with the Gram form of the value norm.
named_policy critical_gram() {
    return {"criticalkv_gram",
            [](const layer_prompt& p, const kvtrim::eviction_request& request,
               kvtrim::growing_workspace& memory, kvtrim::keep_plan& plan, stage_seconds& seconds) {
                const kvtrim::gram_view gram{p.gram.data(), p.attention.queries.heads(),
                                             p.attention.queries.head_dim()};
                run(kvtrim::criticalkv(), inputs_of(p, observed::window).with_output_projection(gram),
                    request, memory, plan, seconds);
            }};
}

} // namespace

const std::vector<named_policy>& all_policies() {
    static const std::vector<named_policy> policies{
        named("snapkv", kvtrim::snapkv()),
        named("ada_snapkv", kvtrim::ada_snapkv()),
        named("criticalkv", kvtrim::criticalkv()),
        critical_gram(),
        named("ada_criticalkv", kvtrim::ada_criticalkv()),
        named("defensivekv", kvtrim::defensivekv()),
        named("tova", kvtrim::tova()),
        named("h2o", kvtrim::h2o(), observed::whole_prompt),
        named("streaming_llm", kvtrim::streaming_llm()),
        named("key_norm", kvtrim::key_norm()),
        named("key_diff", kvtrim::key_diff()),
        named("random", kvtrim::random()),
    };
    return policies;
}

const named_policy& policy_named(const std::string& name) {
    for (const named_policy& p : all_policies()) {
        if (p.name == name) { return p; }
    }
    throw std::invalid_argument("unknown policy " + name);
}

} // namespace needle
