// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include "support/named_policies.hpp"

#include <kvtrim/allocate/blended.hpp>
#include <kvtrim/policy/baselines.hpp>
#include <kvtrim/policy/criticalkv.hpp>
#include <kvtrim/policy/defensivekv.hpp>
#include <kvtrim/policy/expected_attention.hpp>
#include <kvtrim/policy/lagkv.hpp>
#include <kvtrim/policy/replay.hpp>
#include <kvtrim/policy/rkv.hpp>
#include <kvtrim/rerank/chunked.hpp>

namespace support {
namespace {

using namespace kvtrim;

enum kind : unsigned { separate = 0, window = 1, one_set = 2, across_heads = 4 };

template <class Policy, class Prepare>
named_policy describe(const char* name, unsigned flags, const Policy& policy, Prepare prepare) {
    return {name,
            (flags & window) != 0,
            (flags & one_set) != 0,
            (flags & across_heads) != 0,
            [=](const inputs& in, const eviction_request& request, const any_executor& ex) {
                return prepare(in, [&](const auto& prepared) { return run(policy, prepared, request, ex); });
            },
            [=](const inputs& in, const eviction_request& request, keep_plan& out, workspace& scratch) {
                return prepare(
                    in, [&](const auto& prepared) { return policy.plan(prepared, request, out, scratch); });
            },
            [=](const inputs& in, const eviction_request& request) {
                return prepare(
                    in, [&](const auto& prepared) { return policy.workspace_bytes(prepared, request); });
            }};
}

template <class Policy>
named_policy describe(const char* name, unsigned flags, const Policy& policy) {
    return describe(name, flags, policy, [](const inputs& in, auto&& fn) { return fn(in); });
}

// Keys whose first pair of channels is rotated, where there is one.
struct key_diff_of_one_pair {
    static auto of(const inputs& in) {
        static constexpr float turn = 0.1f;
        return key_diff_before_rope({std::span(&turn, in.head_dim() > 1 ? 1 : 0)});
    }
    template <class Memory, class... Rest>
    status plan(const inputs& in, const eviction_request& request, keep_plan& out, Memory& memory,
                Rest&&... rest) const {
        return of(in).plan(in, request, out, memory, rest...);
    }
    index_t workspace_bytes(const inputs& in, const eviction_request& request) const {
        return of(in).workspace_bytes(in, request);
    }
};

// W_O as Gram matrices.
constexpr auto with_gram = [](const inputs& in, auto&& fn) {
    const gram_projection gram(in.output_projection);
    return fn(in.with_output_projection(gram.view()));
};

// Expected attention with the statistics of the window's queries, which it does not need otherwise.
struct expected_from_window {
    template <class Fn>
    static auto with_policy(const inputs& in, Fn&& fn) {
        query_statistics statistics(in.queries.extent(0), in.queries.extent(2), 0);
        growing_workspace memory;
        workspace scratch = memory.of_bytes(statistics.workspace_bytes());
        if (!statistics.add(in.queries, scratch).ok()) { throw std::logic_error("statistics failed"); }
        const std::vector<float> frequencies(static_cast<std::size_t>(in.head_dim() / 2), 0.1f);
        return fn(kvtrim::expected_attention(statistics, {frequencies}));
    }
    template <class Memory, class... Rest>
    status plan(const inputs& in, const eviction_request& request, keep_plan& out, Memory& memory,
                Rest&&... rest) const {
        return with_policy(
            in, [&](const auto& policy) { return policy.plan(in, request, out, memory, rest...); });
    }
    index_t workspace_bytes(const inputs& in, const eviction_request& request) const {
        return with_policy(in, [&](const auto& policy) { return policy.workspace_bytes(in, request); });
    }
};

std::vector<named_policy> describe_all() {
    const mean_attention adakv_repository{pooling::maximum, 7, group_reduction::mean,
                                          pooling_order::group_then_pool};
    const mean_attention group_maximum{.pool = pooling::maximum, .group = group_reduction::maximum};
    const mean_attention attention_sums{.pool = pooling::none, .queries = query_normalisation::sum};
    const blended weighted{.floor_ratio = 0.5, .weight_by_kept_mass = true};
    defensivekv_config careful;
    careful.first_at_most = 0.5;
    careful.safeguard_ratio = 0.2;
    return {
        describe("snapkv", window, snapkv()),
        describe("snapkv, group maximum", window, snapkv(group_maximum)),
        describe("ada_snapkv", window | across_heads, ada_snapkv()),
        describe("ada_snapkv, blended", window | across_heads, ada_snapkv(adakv_repository, weighted)),
        describe("criticalkv", window, criticalkv()),
        describe("criticalkv, Gram", window, criticalkv(), with_gram),
        describe("dropkv", window | across_heads, dropkv()),
        describe("dropkv, Gram, maximum", window | across_heads, dropkv({.loss = token_loss::output_maximum}),
                 with_gram),
        describe("ada_criticalkv", window | across_heads, ada_criticalkv()),
        describe("defensivekv", window | across_heads, defensivekv()),
        describe("defensivekv, Gram", window | across_heads, defensivekv(), with_gram),
        describe("defensivekv, careful", window | across_heads, defensivekv(careful)),
        describe("streaming_llm", separate, streaming_llm()),
        // h2o() without its condition on the request: requests of all kinds come here.
        describe("h2o", window,
                 eviction_policy{window_attention{attention_sums}, uniform{}, by_importance{}}),
        describe("observed_attention", window, observed_attention()),
        describe("tova", window | one_set | across_heads, tova()),
        describe("key_norm", separate, key_norm()),
        describe("key_diff", separate, key_diff()),
        describe("key_diff_before_rope", separate, key_diff_of_one_pair{}),
        describe("random", separate, kvtrim::random(3)),
        describe("expected_attention", separate, expected_from_window{}),
        describe("rkv", window, rkv()),
        describe("lagkv", separate, lagkv({.lag = 8})),
        describe("lagkv, cross scoring", separate, lagkv({.lag = 8, .cross_scoring = true})),
        describe("chunked, one set", window | one_set | across_heads,
                 eviction_policy{window_attention{mean_attention{}}, uniform{}, chunked{.chunk_tokens = 5}}),
        describe("chunked, per head", window,
                 eviction_policy{window_attention{mean_attention{}}, uniform{},
                                 chunked_per_head{.chunk_tokens = 5}}),
        describe("chunked, per head, adaptive", window | across_heads,
                 eviction_policy{window_attention{mean_attention{}}, adaptive{},
                                 chunked_per_head{.chunk_tokens = 5}}),
        describe(
            "shared by votes", window | one_set | across_heads,
            eviction_policy{window_attention{mean_attention{}}, uniform{}, shared{head_reduction::votes}}),
    };
}

} // namespace

const std::vector<named_policy>& named_policies() {
    static const std::vector<named_policy> all = describe_all();
    return all;
}

} // namespace support
