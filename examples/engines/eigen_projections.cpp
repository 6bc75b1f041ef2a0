// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// An engine whose activations are Eigen matrices: keys, values and queries as the projections leave them, W_O as the checkpoint
// stores it. CriticalKV cuts the matrices where they are; the rows behind the survivors are given back.
#include <kvtrim/adapter/eigen.hpp>
#include <kvtrim/compact/compact_in_place.hpp>
#include <kvtrim/decode/ragged_attention.hpp>
#include <kvtrim/policy/criticalkv.hpp>

#include <cmath>
#include <cstdio>

namespace {

using row_major = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

constexpr Eigen::Index q_heads = 4, kv_heads = 2, head_dim = 16, hidden = 48, tokens = 300, window = 8,
                       kept = 60;

// The attention of query head h over the tokens that the plan kept, by the whole matrices: the definition.
Eigen::RowVectorXf attend(const row_major& q, const row_major& k, const row_major& v,
                          const kvtrim::keep_plan& plan, Eigen::Index h) {
    const Eigen::Index group = h / (q_heads / kv_heads);
    const auto rows = plan.row(group);
    const Eigen::VectorXf logits = k.middleCols(group * head_dim, head_dim)(rows, Eigen::all) *
                                   q.middleCols(h * head_dim, head_dim).transpose() /
                                   std::sqrt(static_cast<float>(head_dim));
    const Eigen::VectorXf weights = (logits.array() - logits.maxCoeff()).exp();
    return weights.transpose() * v.middleCols(group * head_dim, head_dim)(rows, Eigen::all) / weights.sum();
}

} // namespace

int main() {
    std::srand(1);
    const row_major x = row_major::Random(tokens, hidden), next = row_major::Random(1, hidden);
    const row_major w_q = row_major::Random(hidden, q_heads * head_dim);
    const row_major w_o = row_major::Random(hidden, q_heads * head_dim); // [hidden, q_heads * head_dim]
    row_major k = x * row_major::Random(hidden, kv_heads * head_dim);
    row_major v = x * row_major::Random(hidden, kv_heads * head_dim);
    const row_major q = x.bottomRows(window) * w_q, next_q = next * w_q;
    const row_major full_k = k, full_v = v;

    const auto inputs =
        kvtrim::layer(kvtrim::heads_in_columns(k, kv_heads), kvtrim::heads_in_columns(v, kv_heads))
            .with_queries(kvtrim::heads_in_columns(q, q_heads))
            .with_output_projection(kvtrim::output_projection(w_o, q_heads));
    const kvtrim::eviction_request request{.budget = kvtrim::per_head(kept),
                                           .protect = {.sink_tokens = 4, .window_tokens = window}};
    kvtrim::keep_plan plan;
    kvtrim::growing_workspace memory;
    kvtrim::status s = kvtrim::criticalkv().plan(inputs, request, plan, memory);
    if (s.ok()) { s = kvtrim::compact_in_place(inputs.keys, inputs.values, plan); }
    if (!s.ok()) { return std::puts(s.what()), 1; }
    k.conservativeResize(kept, Eigen::NoChange); // every head kept as many, so whole rows are free
    v.conservativeResize(kept, Eigen::NoChange);

    row_major out(1, q_heads * head_dim);
    s = kvtrim::ragged_attention(
        kvtrim::layer(kvtrim::heads_in_columns(k, kv_heads), kvtrim::heads_in_columns(v, kv_heads))
            .with_queries(kvtrim::heads_in_columns(next_q, q_heads)),
        {}, kvtrim::heads_in_columns(out, q_heads), {}, memory);
    if (!s.ok()) { return std::puts(s.what()), 1; }
    float worst = 0;
    for (Eigen::Index h = 0; h < q_heads; ++h) {
        const Eigen::RowVectorXf expected = attend(next_q, full_k, full_v, plan, h);
        worst = std::max(worst, (out.middleCols(h * head_dim, head_dim) - expected).cwiseAbs().maxCoeff());
    }
    std::printf("%d of %d rows stay; the next token's attention is that over the survivors within %.1g\n",
                static_cast<int>(k.rows()), static_cast<int>(tokens), static_cast<double>(worst));
    return worst < 1e-4F ? 0 : 1;
}
