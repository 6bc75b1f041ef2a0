// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Policies of one layer that read values or W_O, or a replay.
#include "policies.hpp"

#include <kvtrim/policy/criticalkv.hpp>
#include <kvtrim/policy/defensivekv.hpp>
#include <kvtrim/policy/expected_attention.hpp>
#include <kvtrim/policy/lagkv.hpp>
#include <kvtrim/policy/replay.hpp>

namespace kvtrim::c {
namespace {

using o = option;

criticalkv_config critical(const settings& s) {
    return {.attention = s.mean(),
            .first_ratio = s.real(o::first_ratio),
            .epsilon = s.single(o::epsilon),
            .epsilon_relative = s.flag(o::epsilon_relative)};
}

} // namespace

policy_rows value_policies() {
    const auto critical_options = [](std::initializer_list<option_default> more = {}) {
        std::vector<option_default> all = {{o::kernel_tokens, 5},   {o::pooling, 1},       {o::group, 0},
                                           {o::pooling_order, 0},   {o::first_ratio, 0.5}, {o::epsilon, 1e-4},
                                           {o::epsilon_relative, 0}};
        all.insert(all.end(), more);
        return all;
    };
    return {
        row_of_norms(
            "criticalkv", "CriticalKV, arXiv:2502.03805: attention, then attention times value norms",
            critical_options(), [](const settings& s, const call_state&) { return criticalkv(critical(s)); }),
        row_of_norms("ada_criticalkv", "CriticalKV, heads compete for the budget",
                     critical_options({{o::safeguard_ratio, 0.2}}),
                     [](const settings& s, const call_state&) {
                         return ada_criticalkv(critical(s),
                                               adaptive{.safeguard_ratio = s.real(o::safeguard_ratio)});
                     }),
        row_of_norms("defensivekv", "DefensiveKV, arXiv:2510.13334: worst-case attention times value norms",
                     {{o::kernel_tokens, 5},
                      {o::floor_weight, 1},
                      {o::norm_scope, 1},
                      {o::attention_mass, 0.9},
                      {o::first_ratio, 0.5},
                      {o::safeguard_ratio, 0}},
                     [](const settings& s, const call_state&) {
                         return defensivekv(
                             {.attention = {s.whole(o::kernel_tokens), s.single(o::floor_weight)},
                              .scope = s.choice<norm_scope>(o::norm_scope),
                              .attention_mass = s.real(o::attention_mass),
                              .first_at_most = s.real(o::first_ratio),
                              .safeguard_ratio = s.real(o::safeguard_ratio)});
                     }),
        row_of_outputs("dropkv", "DropKV: what outputs lose without a token; behind W_O where it is given",
                       {{o::loss, 2}, {o::safeguard_ratio, 0}},
                       [](const settings& s, const call_state&) {
                           return dropkv({.loss = s.choice<token_loss>(o::loss)}, s.real(o::safeguard_ratio));
                       }),
        row<with_values>("lagkv", "LagKV, arXiv:2504.04704: tokens that stand out from the next partition",
                         {{o::lag, 128}, {o::cross_scoring, 0}},
                         [](const settings& s, const call_state&) {
                             return lagkv(
                                 {.lag = s.whole(o::lag), .cross_scoring = s.flag(o::cross_scoring)});
                         }),
        row<with_values>(
            "expected_attention",
            "Expected Attention, arXiv:2510.00636: what later queries will pay, times value norms",
            {{o::future_positions, 512}, {o::use_covariance, 1}, {o::epsilon, 0}},
            [](const settings& s, const call_state& state) {
                return expected_attention(
                    *state.statistics, state.rope,
                    {s.whole(o::future_positions), s.flag(o::use_covariance), s.single(o::epsilon)});
            },
            KVTRIM_NEEDS_STATISTICS),
        row<replay_ref>(
            "replay", "KVzip, arXiv:2505.23416: heads compete by their scores in a replay",
            {{o::safeguard_ratio, 0}},
            [](const settings& s, const call_state&) { return replay(s.real(o::safeguard_ratio)); }),
        row<replay_ref>("replay_uniform", "KVzip with equal budgets", {},
                        [](const settings&, const call_state&) { return replay_uniform(); }),
    };
}

} // namespace kvtrim::c
