// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Policies whose budget is one for all layers.
#include "policies.hpp"

#include <kvtrim/allocate/above_threshold.hpp>
#include <kvtrim/policy/layers.hpp>
#include <kvtrim/policy/replay.hpp>

namespace kvtrim::c {

policy_rows layer_policies() {
    using o = option;
    const auto snapkv_options = [](std::initializer_list<option_default> more) {
        std::vector<option_default> all = {
            {o::kernel_tokens, 5}, {o::pooling, 1}, {o::group, 0}, {o::pooling_order, 0}};
        all.insert(all.end(), more);
        return all;
    };
    return {
        row<with_queries>("layer_ada_snapkv", "SnapKV's scores, the rows of all (layer, KV head) compete",
                          snapkv_options({{o::safeguard_ratio, layer_safeguard_ratio}}),
                          [](const settings& s, const call_state&) {
                              return layer_ada_snapkv(s.mean(), s.real(o::safeguard_ratio));
                          }),
        row_of_norms("layer_defensivekv", "Layer-DefensiveKV, arXiv:2510.13334: all rows compete",
                     {{o::kernel_tokens, 5},
                      {o::floor_weight, 1},
                      {o::norm_scope, 1},
                      {o::attention_mass, 0.9},
                      {o::first_ratio, 0.5},
                      {o::safeguard_ratio, layer_safeguard_ratio}},
                     [](const settings& s, const call_state&) {
                         return layer_defensivekv(
                             {.attention = {s.whole(o::kernel_tokens), s.single(o::floor_weight)},
                              .scope = s.choice<norm_scope>(o::norm_scope),
                              .attention_mass = s.real(o::attention_mass),
                              .first_at_most = s.real(o::first_ratio),
                              .safeguard_ratio = s.real(o::safeguard_ratio)});
                     }),
        row<with_queries>("pyramidkv",
                          "PyramidKV, arXiv:2406.02069: budgets fall from the first layer to the last",
                          snapkv_options({{o::beta, 20}}),
                          [](const settings& s, const call_state&) {
                              return pyramidkv(s.mean(), pyramid_shares{.beta = s.real(o::beta)});
                          }),
        row<with_queries>(
            "cake", "CAKE, arXiv:2503.12491: mean and variance of attention, shares of the request",
            {{o::kernel_tokens, 5}, {o::gamma, 200}},
            [](const settings& s, const call_state& state) {
                return cake(state.layer_shares,
                            {.gamma = s.single(o::gamma), .kernel_tokens = s.whole(o::kernel_tokens)});
            },
            KVTRIM_NEEDS_LAYER_SHARES),
        row<with_queries>(
            "snapkv_by_shares", "SnapKV, each layer with its share of the budget: those of the request",
            snapkv_options({}),
            [](const settings& s, const call_state& state) {
                return with_layer_shares(snapkv(s.mean()), state.layer_shares);
            },
            KVTRIM_NEEDS_LAYER_SHARES),
        row_of_outputs("layer_dropkv", "DropKV, the rows of all (layer, KV head) compete",
                       {{o::loss, 2}, {o::safeguard_ratio, 0}},
                       [](const settings& s, const call_state&) {
                           return layer_dropkv({.loss = s.choice<token_loss>(o::loss)},
                                               s.real(o::safeguard_ratio));
                       }),
        row<replay_ref>(
            "layer_replay", "KVzip, arXiv:2505.23416, as published: all rows compete",
            {{o::safeguard_ratio, 0}},
            [](const settings& s, const call_state&) { return layer_replay(s.real(o::safeguard_ratio)); }),
        row<replay_ref>(
            "profiled", "the scores of replays or own passes, budgets of all rows from a table of the model",
            {{o::nearest, 32}},
            [](const settings& s, const call_state& state) {
                return layer_wise{
                    eviction_policy{replayed{s.whole(o::nearest)}, state.profile, by_importance{}}};
            },
            KVTRIM_NEEDS_PROFILE),
        row<replay_ref>("layer_afar", "kvtrim's own: what the prompt's own queries want from afar",
                        {{o::nearest, 32}, {o::safeguard_ratio, 0}},
                        [](const settings& s, const call_state&) {
                            return layer_afar(s.whole(o::nearest), s.real(o::safeguard_ratio));
                        }),
        row<keys_only>(
            "layer_given", "scores of the engine's own, the rows of all (layer, KV head) compete",
            {{o::safeguard_ratio, 0}},
            [](const settings& s, const call_state&) {
                return layer_wise{eviction_policy{
                    own_scores{}, adaptive{.safeguard_ratio = s.real(o::safeguard_ratio)}, by_importance{}}};
            },
            KVTRIM_NEEDS_SCORES),
        row<keys_only>(
            "layer_above_threshold",
            "scores of the engine's own above a threshold, the budget of all layers is a bound",
            {{o::threshold, 0}},
            [](const settings& s, const call_state&) {
                return layer_wise{
                    eviction_policy{own_scores{}, above_threshold{s.single(o::threshold)}, by_importance{}}};
            },
            KVTRIM_NEEDS_SCORES),
    };
}

} // namespace kvtrim::c
