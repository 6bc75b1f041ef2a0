// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Policies of one layer that read keys, and attention of the newest queries.
#include "policies.hpp"

#include <kvtrim/allocate/above_threshold.hpp>
#include <kvtrim/allocate/adaptive.hpp>
#include <kvtrim/allocate/blended.hpp>
#include <kvtrim/policy/baselines.hpp>
#include <kvtrim/policy/consensuskv.hpp>
#include <kvtrim/policy/rkv.hpp>
#include <kvtrim/policy/triattention.hpp>
#include <kvtrim/rerank/chunked.hpp>

namespace kvtrim::c {

policy_rows window_policies() {
    using o = option;
    const auto mean_options = [](double kernel, pooling pool, group_reduction group,
                                 std::initializer_list<option_default> more = {}) {
        std::vector<option_default> all = {{o::kernel_tokens, kernel},
                                           {o::pooling, static_cast<double>(pool)},
                                           {o::group, static_cast<double>(group)},
                                           {o::pooling_order, 0}};
        all.insert(all.end(), more);
        return all;
    };
    const auto snapkv_options = [&](std::initializer_list<option_default> more = {}) {
        return mean_options(5, pooling::average, group_reduction::mean, more);
    };
    return {
        row<with_queries>(
            "snapkv", "SnapKV, arXiv:2404.14469: pooled mean attention of the window, equal budgets",
            snapkv_options(), [](const settings& s, const call_state&) { return snapkv(s.mean()); }),
        row<with_queries>(
            "ada_snapkv", "Ada-KV, arXiv:2407.11550: SnapKV's scores, heads compete for the budget",
            snapkv_options({{o::safeguard_ratio, 0.2}}),
            [](const settings& s, const call_state&) {
                return ada_snapkv(s.mean(), adaptive{.safeguard_ratio = s.real(o::safeguard_ratio)});
            }),
        row<with_queries>(
            "ada_snapkv_blended", "Ada-KV as its authors run it: budgets are blended with an even share",
            mean_options(7, pooling::maximum, group_reduction::mean,
                         {{o::floor_ratio, 0.2}, {o::weight_by_kept_mass, 0}}),
            [](const settings& s, const call_state&) {
                return ada_snapkv(s.mean(), blended{.floor_ratio = s.real(o::floor_ratio),
                                                    .weight_by_kept_mass = s.flag(o::weight_by_kept_mass)});
            }),
        row<with_queries>("chunkkv",
                          "ChunkKV: SnapKV's scores, whole chunks stay together, one set for all heads",
                          snapkv_options({{o::chunk_tokens, 20}}),
                          [](const settings& s, const call_state&) {
                              return eviction_policy{window_attention{s.mean()}, uniform{},
                                                     chunked{.chunk_tokens = s.whole(o::chunk_tokens)}};
                          }),
        row<with_queries>("shared_snapkv",
                          "SnapKV's scores folded over the heads: one token set for all of them",
                          snapkv_options({{o::fold, 0}}),
                          [](const settings& s, const call_state&) {
                              return eviction_policy{window_attention{s.mean()}, uniform{},
                                                     shared{s.choice<head_reduction>(o::fold)}};
                          }),
        row<with_queries>("consensuskv", "kvtrim's own: SnapKV's scores, advised by the layer's sum",
                          snapkv_options({{o::lambda, 1}}),
                          [](const settings& s, const call_state&) {
                              return consensuskv({s.mean(), s.single(o::lambda)});
                          }),
        row<with_queries>(
            "consensuskv_shared", "the layer's sum alone: one token set for all heads", snapkv_options(),
            [](const settings& s, const call_state&) { return consensuskv_shared({s.mean()}); }),
        row<with_queries>(
            "rkv", "R-KV, arXiv:2505.24133: attention, and how much a key repeats others",
            mean_options(7, pooling::maximum, group_reduction::maximum,
                         {{o::importance_share, 0.1}, {o::similar_above, 0.5}, {o::search_tokens, 1024}}),
            [](const settings& s, const call_state&) {
                return rkv(rkv_config{s.mean(), s.single(o::importance_share), s.single(o::similar_above),
                                      s.whole(o::search_tokens)});
            }),
        row<with_queries>(
            "h2o", "H2O, arXiv:2306.14048: attention summed over all queries of the prompt", {{o::group, 0}},
            [](const settings& s, const call_state&) { return h2o(s.choice<group_reduction>(o::group)); }),
        row<with_queries>("observed_attention", "kvpress: the sum divided by the queries that saw a token",
                          {}, [](const settings&, const call_state&) { return observed_attention(); }),
        row<with_queries>("tova",
                          "TOVA, arXiv:2401.06104: attention of the last query, one token set for all heads",
                          {}, [](const settings&, const call_state&) { return tova(); }),
        row<keys_only>("key_norm", "arXiv:2406.11430: the smallest keys stay", {},
                       [](const settings&, const call_state&) { return key_norm(); }),
        row<keys_only>("key_diff", "KeyDiff, arXiv:2504.15364: keys unlike the average key stay", {},
                       [](const settings&, const call_state&) { return key_diff(); }),
        row<keys_only>(
            "key_diff_before_rope", "KeyDiff on keys as they were before RoPE", {},
            [](const settings&, const call_state& state) { return key_diff_before_rope(state.rope); },
            KVTRIM_NEEDS_ROPE),
        row<keys_only>("streaming_llm",
                       "StreamingLLM, arXiv:2309.17453: the newest tokens, and the protected sinks", {},
                       [](const settings&, const call_state&) { return streaming_llm(); }),
        row<keys_only>("random", "random tokens; equal seeds give equal plans", {{o::seed, 0}},
                       [](const settings& s, const call_state&) {
                           return kvtrim::random(static_cast<std::uint64_t>(s.whole(o::seed)));
                       }),
        row<keys_only>(
            "running", "H2O while generating: what kvtrim_running holds", {{o::lifetime, 0}},
            [](const settings& s, const call_state& state) {
                return eviction_policy{state.running->scorer(s.choice<score_lifetime>(o::lifetime)),
                                       uniform{}, by_importance{}};
            },
            KVTRIM_NEEDS_RUNNING),
        row<keys_only>(
            "triattention", "TriAttention, arXiv:2604.04921: logits that the mean query is expected to give",
            {{o::next_position, -1}, {o::octaves, 17}},
            [](const settings& s, const call_state& state) {
                return triattention(*state.means, state.rope,
                                    {s.whole(o::next_position), s.whole(o::octaves)});
            },
            KVTRIM_NEEDS_MEANS),
        row<keys_only>(
            "given", "scores of the engine's own, of tokens or pages; equal budgets", {},
            [](const settings&, const call_state&) {
                return eviction_policy{own_scores{}, uniform{}, by_importance{}};
            },
            KVTRIM_NEEDS_SCORES),
        row<keys_only>(
            "ada_given", "scores of the engine's own, heads compete for the budget",
            {{o::safeguard_ratio, 0}},
            [](const settings& s, const call_state&) {
                return eviction_policy{own_scores{}, adaptive{.safeguard_ratio = s.real(o::safeguard_ratio)},
                                       by_importance{}};
            },
            KVTRIM_NEEDS_SCORES),
        row<keys_only>(
            "above_threshold",
            "DMS, KVzap, arXiv:2601.07891: the engine's own scores above a threshold, the budget is a bound",
            {{o::threshold, 0}},
            [](const settings& s, const call_state&) {
                return eviction_policy{own_scores{}, above_threshold{s.single(o::threshold)},
                                       by_importance{}};
            },
            KVTRIM_NEEDS_SCORES),
    };
}

} // namespace kvtrim::c
