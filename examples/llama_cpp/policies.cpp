// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#include "policies.hpp"

#include <kvtrim/policy/baselines.hpp>
#include <kvtrim/policy/consensuskv.hpp>
#include <kvtrim/policy/criticalkv.hpp>
#include <kvtrim/policy/defensivekv.hpp>
#include <kvtrim/policy/lagkv.hpp>
#include <kvtrim/policy/replay.hpp>
#include <kvtrim/policy/rkv.hpp>
#include <kvtrim/policy/snapkv.hpp>

#include <memory>

namespace llama_example {
namespace {

struct named_scorer {
    const char* name;
    add_scores add;
};

template <class Policy>
add_scores scorer(const Policy& policy) {
    return [policy, memory = std::make_shared<kvtrim::growing_workspace>()](
               kvtrim::cell_scores& all, const kvtrim::llama_layer& l, std::span<const std::int32_t> cells) {
        return all.add(policy, l.inputs(cells), l.attention, *memory);
    };
}

// Of a policy that wants W_O. Decoded for each cut: of all layers together it would take as much memory as a small model.
template <class Policy>
add_scores projected_scorer(const Policy& policy) {
    return [policy, memory = std::make_shared<kvtrim::growing_workspace>()](
               kvtrim::cell_scores& all, const kvtrim::llama_layer& l, std::span<const std::int32_t> cells) {
        const kvtrim::ggml_output_projection wo = l.output_projection();
        if (!wo.validate().ok()) { return wo.validate(); }
        return all.add(policy, l.inputs(cells).with_output_projection(wo.view()), l.attention, *memory);
    };
}

const std::vector<named_scorer>& scorers() {
    static const std::vector<named_scorer> all{
        {"snapkv", scorer(kvtrim::snapkv())},
        {"consensuskv", scorer(kvtrim::consensuskv())},
        {"tova", scorer(kvtrim::tova())},
        {"criticalkv", projected_scorer(kvtrim::criticalkv())},
        {"defensivekv", projected_scorer(kvtrim::defensivekv())},
        {"dropkv", projected_scorer(kvtrim::dropkv({.loss = kvtrim::token_loss::output_square_sum}))},
        {"rkv", scorer(kvtrim::rkv())},
        {"lagkv", scorer(kvtrim::lagkv({.lag = 32}))},
        {"key_diff", scorer(kvtrim::key_diff())},
        {"key_norm", scorer(kvtrim::key_norm())},
        {"streaming_llm", scorer(kvtrim::streaming_llm())},
        {"random", scorer(kvtrim::random())},
    };
    return all;
}

} // namespace

std::vector<std::string> policy_names() {
    std::vector<std::string> names;
    for (const auto& s : scorers()) { names.emplace_back(s.name); }
    return names;
}

add_scores scorer_of(const std::string& policy) {
    for (const auto& s : scorers()) {
        if (policy == s.name) { return s.add; }
    }
    throw std::runtime_error("unknown policy " + policy);
}

} // namespace llama_example
