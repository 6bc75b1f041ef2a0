// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The oracle of prefill pruning: bounds, estimates, fusion, plans and attention as plain loops in double precision.
//
//   plan rows   [kv_heads][segments]: the blocks that end before the segment and are attended, ascending

#include "oracle/reference.hpp"

#include <cmath>

namespace oracle {

constexpr double masked = -std::numeric_limits<double>::infinity();

// ---- Estimates --------------------------------------------------------------------------------------------

// One channel of rows [begin, end), without NaN; 0 if nothing else is there.
inline row channel(const matrix& rows, std::size_t begin, std::size_t end, std::size_t d) {
    row result;
    for (std::size_t t = begin; t < end; ++t) {
        if (!std::isnan(rows[t][d])) { result.push_back(rows[t][d]); }
    }
    return result.empty() ? row{0.0} : result;
}

// Elementwise, of rows [begin, end).
inline row maximum_of(const matrix& rows, std::size_t begin, std::size_t end) {
    row result;
    for (std::size_t d = 0; d < rows.at(begin).size(); ++d) {
        const row x = channel(rows, begin, end, d);
        result.push_back(*std::max_element(x.begin(), x.end()));
    }
    return result;
}

inline row minimum_of(const matrix& rows, std::size_t begin, std::size_t end) {
    row result;
    for (std::size_t d = 0; d < rows.at(begin).size(); ++d) {
        const row x = channel(rows, begin, end, d);
        result.push_back(*std::min_element(x.begin(), x.end()));
    }
    return result;
}

// The authors' form: the mean of what the largest and the smallest query say, against either bound of the keys.
inline double mid_estimate(const row& q_high, const row& q_low, const row& k_high, const row& k_low) {
    return std::max((dot(q_high, k_high) + dot(q_low, k_high)) / 2,
                    (dot(q_high, k_low) + dot(q_low, k_low)) / 2);
}

// Per channel the largest product that a query and a key within their bounds can have.
inline double corner_estimate(const row& q_high, const row& q_low, const row& k_high, const row& k_low) {
    double total = 0;
    for (std::size_t d = 0; d < q_high.size(); ++d) {
        total += std::max(std::max(q_high[d] * k_high[d], q_high[d] * k_low[d]),
                          std::max(q_low[d] * k_high[d], q_low[d] * k_low[d]));
    }
    return total;
}

// ---- Plans ------------------------------------------------------------------------------------------------

using plan_rows = std::vector<std::vector<token_set>>;

struct prefill_setup {
    std::size_t segment = 0, block = 0, budget_tokens = 0;
    std::size_t dense_below = 0, dense_layers = 0;
    bool dense_last = true;
    std::size_t sinks = 0, locals = 0;
    bool corner = false;
    double scale = 0; // 0: 1 / sqrt(head_dim)
    reduction group = reduction::mean;
    double previous_weight = 0;
    std::size_t first_fused_layer = 2;
    bool adaptive = false;
    double safeguard_ratio = 0;
};

// Logits of one KV head and segment (queries [begin, end) of the chunk) against the first `blocks` blocks.
inline row block_logits(const prefill_setup& s, const tensor& queries, const matrix& keys,
                        std::size_t kv_head, std::size_t group, std::size_t begin, std::size_t end,
                        std::size_t blocks) {
    matrix q_high, q_low;
    for (std::size_t h = kv_head * group; h < (kv_head + 1) * group; ++h) {
        q_high.push_back(maximum_of(queries[h], begin, end));
        q_low.push_back(minimum_of(queries[h], begin, end));
    }
    row result;
    for (std::size_t b = 0; b < blocks; ++b) {
        const row k_high = maximum_of(keys, b * s.block, (b + 1) * s.block);
        const row k_low = minimum_of(keys, b * s.block, (b + 1) * s.block);
        row estimates;
        for (std::size_t j = 0; j < group; ++j) {
            estimates.push_back(s.corner ? corner_estimate(q_high[j], q_low[j], k_high, k_low)
                                         : mid_estimate(q_high[j], q_low[j], k_high, k_low));
        }
        const double all = sum(estimates);
        const double reduced = s.group == reduction::mean ? all / static_cast<double>(group)
                               : s.group == reduction::sum
                                   ? all
                                   : *std::max_element(estimates.begin(), estimates.end());
        result.push_back(reduced *
                         (s.scale > 0 ? s.scale : 1 / std::sqrt(static_cast<double>(keys[0].size()))));
    }
    return result;
}

// A request's fused estimates of the layer before, [kv_heads][segments][blocks]; empty: there was none.
using fused_layer = std::vector<std::vector<row>>;

// The rows of one layer for a chunk of queries; keys hold everything up to the chunk's end.
inline plan_rows prune(const prefill_setup& s, const tensor& queries, const tensor& keys,
                       std::size_t first_token, bool ends_prompt, std::size_t layer, fused_layer& previous,
                       near_ties& ties) {
    const std::size_t group = queries.size() / keys.size();
    const std::size_t tokens = queries[0].size();
    const std::size_t segments = (tokens + s.segment - 1) / s.segment;
    const std::size_t budget = s.budget_tokens / s.block;
    plan_rows result(keys.size(), std::vector<token_set>(segments));
    fused_layer current(keys.size(), std::vector<row>(segments));
    bool pruned_any = false;
    for (std::size_t i = 0; i < segments; ++i) {
        const std::size_t begin = i * s.segment;
        const std::size_t end = std::min(begin + s.segment, tokens);
        const std::size_t allowed = (first_token + begin) / s.block;
        if (layer < s.dense_layers || first_token + begin < s.dense_below || allowed <= budget ||
            (s.dense_last && ends_prompt && i + 1 == segments)) {
            for (auto& rows : result) {
                for (std::size_t b = 0; b < allowed; ++b) { rows[i].push_back(b); }
            }
            continue;
        }
        pruned_any = true;
        matrix scores;
        for (std::size_t g = 0; g < keys.size(); ++g) {
            row score = block_logits(s, queries, keys[g], g, group, begin, end, allowed);
            const row own = softmax(score);
            const bool mixed = s.previous_weight > 0 && layer >= s.first_fused_layer && !previous.empty();
            current[g][i] = own;
            for (std::size_t b = 0; b < allowed && mixed; ++b) {
                current[g][i][b] = s.previous_weight * previous[g][i][b] + (1 - s.previous_weight) * own[b];
            }
            if (mixed || s.adaptive) { score = current[g][i]; }
            for (std::size_t b = 0; b < allowed; ++b) {
                if (b < s.sinks || b + s.locals >= allowed) { score[b] = -masked; }
            }
            scores.push_back(score);
        }
        counts budgets(keys.size(), budget);
        if (s.adaptive) {
            const auto safeguard =
                static_cast<std::size_t>(static_cast<double>(budget) * s.safeguard_ratio + 1e-9);
            budgets = adaptive_budgets(scores, budget * keys.size(), safeguard, ties);
        }
        for (std::size_t g = 0; g < keys.size(); ++g) {
            ties.cut(scores[g], budgets[g]);
            result[g][i] = top_k(scores[g], budgets[g]);
        }
    }
    previous = pruned_any ? current : fused_layer{};
    return result;
}

// ---- Attention --------------------------------------------------------------------------------------------

struct attended_row {
    row out;
    double log_sum_exp;
};

// Softmax over logits and a sink, applied to values. NaN counts as masked, +infinity as the largest float.
inline attended_row attend(const row& logits, const matrix& values, std::size_t value_dim, double sink) {
    constexpr auto largest_float = static_cast<double>(std::numeric_limits<float>::max());
    row conditioned;
    double largest = sink;
    for (const double l : logits) {
        conditioned.push_back(std::isnan(l) ? masked : std::min(l, largest_float));
        largest = std::max(largest, conditioned.back());
    }
    attended_row result{row(value_dim, 0.0), masked};
    if (largest == masked) { return result; }
    double total = sink == masked ? 0.0 : std::exp(sink - largest);
    for (std::size_t t = 0; t < logits.size(); ++t) {
        const double weight = conditioned[t] == masked ? 0.0 : std::exp(conditioned[t] - largest);
        if (weight == 0) { continue; }
        total += weight;
        for (std::size_t d = 0; d < value_dim; ++d) { result.out[d] += weight * values[t][d]; }
    }
    for (double& x : result.out) { x /= total; }
    result.log_sum_exp = largest + std::log(total);
    return result;
}

inline double logit(const row& query, const row& key, const attention_setup& s) {
    const double scale = s.scale > 0 ? s.scale : 1 / std::sqrt(static_cast<double>(key.size()));
    const double l = scale * dot(query, key);
    return s.soft_cap > 0 ? s.soft_cap * std::tanh(l / s.soft_cap) : l;
}

// Whether a query at cache row p sees the key at cache row t.
inline bool sees_row(const attention_setup& s, std::size_t p, std::size_t t) {
    return t <= p && (s.sliding_window == 0 || p - t < s.sliding_window);
}

// Causal attention of a chunk over the planned blocks and each query's own segment. [q_heads][queries]
inline std::vector<std::vector<attended_row>>
block_sparse_attention(const tensor& queries, const tensor& keys, const tensor& values, const plan_rows& plan,
                       std::size_t segment, std::size_t block, std::size_t first_token,
                       const attention_setup& s) {
    const std::size_t group = queries.size() / keys.size();
    std::vector<std::vector<attended_row>> result(queries.size());
    for (std::size_t h = 0; h < queries.size(); ++h) {
        const std::size_t g = h / group;
        for (std::size_t i = 0; i < queries[h].size(); ++i) {
            const std::size_t p = first_token + i;
            const std::size_t segment_begin = first_token + i / segment * segment;
            row logits(p + 1, masked);
            for (std::size_t t = 0; t <= p; ++t) {
                const token_set& blocks = plan[g][i / segment];
                const bool planned =
                    t >= segment_begin || std::binary_search(blocks.begin(), blocks.end(), t / block);
                if (planned && sees_row(s, p, t)) { logits[t] = logit(queries[h][i], keys[g][t], s); }
            }
            const double sink = s.sink_logits.empty() ? masked : s.sink_logits[h];
            const std::size_t value_dim = values[g].empty() ? 0 : values[g][0].size();
            result[h].push_back(attend(logits, values[g], value_dim, sink));
        }
    }
    return result;
}

} // namespace oracle
