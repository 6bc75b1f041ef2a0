// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The oracle: the papers' formulas as plain loops in double precision, to be read beside the papers. It shares no
// code with the library, keeps whole attention matrices, sorts everything and is as slow as it looks.
//
//   tensor   [heads][rows][columns]: queries and keys and values, W_O, attention
//   matrix   [kv_heads][columns]: scores; heads may have different lengths
//
// Order of scores everywhere: higher first, then the lower index (of the flattened heads where they compete), NaN
// last. Where float rounding could decide a cut, near_ties says so and the comparison is left out.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

namespace oracle {

using row = std::vector<double>;
using matrix = std::vector<row>;
using tensor = std::vector<matrix>;
using counts = std::vector<std::size_t>;
using token_set = std::vector<std::size_t>; // ascending cache rows

inline double sum(const row& values) {
    return std::accumulate(values.begin(), values.end(), 0.0);
}

inline double dot(const row& a, const row& b) {
    return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

inline double l1_norm(const row& values) {
    double norm = 0;
    for (const double x : values) { norm += std::abs(x); }
    return norm;
}

inline row softmax(const row& logits) {
    row result(logits.size(), 0.0);
    if (logits.empty()) { return result; }
    const double largest = *std::max_element(logits.begin(), logits.end());
    for (std::size_t i = 0; i < logits.size(); ++i) { result[i] = std::exp(logits[i] - largest); }
    const double total = sum(result);
    for (double& x : result) { x /= total; }
    return result;
}

// x [inner] * m [inner][columns]
inline row times(const row& x, const matrix& m) {
    row result(m.empty() ? 0 : m[0].size(), 0.0);
    for (std::size_t d = 0; d < x.size(); ++d) {
        for (std::size_t c = 0; c < result.size(); ++c) { result[c] += x[d] * m[d][c]; }
    }
    return result;
}

// ---- Candidates -------------------------------------------------------------------------------------------

// Tokens that always stay: the first `prefix` and the last `suffix`.
struct protection {
    std::size_t prefix = 0;
    std::size_t suffix = 0;

    [[nodiscard]] bool covers(std::size_t token, std::size_t tokens) const {
        return token < prefix || token + suffix >= tokens;
    }
};

// The cache rows of a head that compete.
inline token_set candidates(const protection& p, std::size_t tokens) {
    token_set result;
    for (std::size_t t = 0; t < tokens; ++t) {
        if (!p.covers(t, tokens)) { result.push_back(t); }
    }
    return result;
}

inline row at(const row& values, const token_set& tokens) {
    row result;
    for (const std::size_t t : tokens) { result.push_back(values[t]); }
    return result;
}

// ---- Attention --------------------------------------------------------------------------------------------

struct attention_setup {
    double scale = 0;               // 0: 1 / sqrt(head_dim)
    double soft_cap = 0;            // 0: none
    std::size_t sliding_window = 0; // 0: all
    row sink_logits = {};           // [q_heads]
    std::size_t rollback_tokens = 0;
};

// Whether query i of `queries` sees a token: the last query belongs to the last token before the rollback tail.
inline bool sees(const attention_setup& s, std::size_t tokens, std::size_t queries, std::size_t i,
                 std::size_t token) {
    const std::size_t own = tokens - s.rollback_tokens - queries + i;
    return token <= own && (s.sliding_window == 0 || own - token < s.sliding_window);
}

// Softmax over the tokens that are seen and not evicted; `kept` empty: all are kept. [q_heads][queries][tokens]
inline tensor attention(const tensor& queries, const tensor& keys, const attention_setup& s,
                        const std::vector<token_set>& kept = {}) {
    const std::size_t group = queries.size() / keys.size();
    tensor result;
    for (std::size_t h = 0; h < queries.size(); ++h) {
        const matrix& k = keys[h / group];
        matrix rows;
        for (std::size_t i = 0; i < queries[h].size(); ++i) {
            row logits(k.size(), -std::numeric_limits<double>::infinity());
            double largest = s.sink_logits.empty() ? logits.empty() ? 0.0 : logits[0] : s.sink_logits[h];
            for (std::size_t t = 0; t < k.size(); ++t) {
                if (!sees(s, k.size(), queries[h].size(), i, t)) { continue; }
                if (!kept.empty() && !std::binary_search(kept[h / group].begin(), kept[h / group].end(), t)) {
                    continue;
                }
                const auto dim = static_cast<double>(k[t].size());
                logits[t] = dot(queries[h][i], k[t]) * (s.scale > 0 ? s.scale : 1.0 / std::sqrt(dim));
                if (s.soft_cap > 0) { logits[t] = s.soft_cap * std::tanh(logits[t] / s.soft_cap); }
                largest = std::max(largest, logits[t]);
            }
            double total = s.sink_logits.empty() ? 0.0 : std::exp(s.sink_logits[h] - largest);
            row weights(k.size(), 0.0);
            for (std::size_t t = 0; t < k.size(); ++t) {
                if (std::isinf(logits[t])) { continue; }
                weights[t] = std::exp(logits[t] - largest);
                total += weights[t];
            }
            for (double& w : weights) { w = total > 0 ? w / total : 0.0; }
            rows.push_back(weights);
        }
        result.push_back(rows);
    }
    return result;
}

// What the outputs of the heads that read one KV head change when a single token is evicted and the others share its weight:
// |(o' - o) W_O|, without w_o |o' - o|. nearest: an observer has no say on rows closer than this before its own. [tokens]
inline row eviction_losses(const tensor& attention, const matrix& values, const tensor& w_o,
                           std::size_t group, std::size_t head, bool sum_of_squares,
                           const std::vector<std::size_t>& last_rows) {
    row losses(values.size(), 0.0);
    for (std::size_t h = head * group; h < (head + 1) * group; ++h) {
        for (std::size_t i = 0; i < attention[h].size(); ++i) {
            const row& p = attention[h][i];
            const row output = times(p, values);
            for (std::size_t t = 0; t < std::min(values.size(), last_rows[i]); ++t) {
                if (p[t] == 0) { continue; }
                row change(values[t].size(), 0.0);
                for (std::size_t d = 0; d < change.size(); ++d) {
                    const double gone = p[t] * values[t][d];
                    // Of a weight near 1 the library sees no more than that o is v.
                    change[d] = p[t] > 1 - 0x1p-8 ? gone : (output[d] - gone) / (1 - p[t]) - output[d];
                }
                const row changed = w_o.empty() ? change : times(change, w_o[h]);
                const double square = dot(changed, changed);
                losses[t] = sum_of_squares ? losses[t] + square : std::max(losses[t], square);
            }
        }
    }
    for (double& x : losses) { x = std::sqrt(x); }
    return losses;
}

// The most attention that a query of the group pays each token.
inline row attention_maximum(const tensor& attention, std::size_t group, std::size_t head, std::size_t tokens,
                             const std::vector<std::size_t>& last_rows) {
    row most(tokens, 0.0);
    for (std::size_t h = head * group; h < (head + 1) * group; ++h) {
        for (std::size_t i = 0; i < attention[h].size(); ++i) {
            for (std::size_t t = 0; t < std::min(tokens, last_rows[i]); ++t) {
                most[t] = std::max(most[t], attention[h][i][t]);
            }
        }
    }
    return most;
}

// Mean over all query rows of one KV head of the attention to protected tokens.
inline double protected_mass(const tensor& a, std::size_t group, std::size_t kv_head, const protection& p) {
    double mass = 0;
    for (std::size_t h = kv_head * group; h < (kv_head + 1) * group; ++h) {
        for (const row& weights : a[h]) {
            for (std::size_t t = 0; t < weights.size(); ++t) {
                mass += p.covers(t, weights.size()) ? weights[t] : 0.0;
            }
        }
    }
    return mass / static_cast<double>(group * a[0].size());
}

// ---- Pooling ----------------------------------------------------------------------------------------------

enum class pool_kind { none, average, maximum };

// Stride 1, same length; an average divides by the kernel at the borders too, a maximum ignores what is outside.
inline row pooled(const row& in, pool_kind kind, std::size_t kernel) {
    if (kind == pool_kind::none) { return in; }
    const std::size_t half = kernel / 2;
    row out;
    for (std::size_t c = 0; c < in.size(); ++c) {
        double total = 0;
        double largest = -std::numeric_limits<double>::infinity();
        for (std::size_t j = c < half ? 0 : c - half; j <= c + half && j < in.size(); ++j) {
            total += in[j];
            largest = std::max(largest, in[j]);
        }
        out.push_back(kind == pool_kind::average ? total / static_cast<double>(kernel) : largest);
    }
    return out;
}

// ---- SnapKV -----------------------------------------------------------------------------------------------

enum class reduction { mean, maximum, sum };
enum class query_average { mean, sum, lifetime };

struct snapkv_setup {
    pool_kind pool = pool_kind::average;
    std::size_t kernel = 5;
    reduction group = reduction::mean;
    bool pool_first = true; // pool each query head, then reduce the group; else the other way round
    query_average queries = query_average::mean;
};

inline row reduced(const matrix& rows, reduction kind) {
    row result = rows[0];
    for (std::size_t r = 1; r < rows.size(); ++r) {
        for (std::size_t c = 0; c < result.size(); ++c) {
            result[c] = kind == reduction::maximum ? std::max(result[c], rows[r][c]) : result[c] + rows[r][c];
        }
    }
    for (double& x : result) { x /= kind == reduction::mean ? static_cast<double>(rows.size()) : 1.0; }
    return result;
}

// Scores of the candidates of one KV head.
inline row snapkv_scores(const tensor& a, std::size_t group, std::size_t kv_head, const token_set& columns,
                         const snapkv_setup& setup, const attention_setup& s = {}) {
    matrix of_heads;
    for (std::size_t h = kv_head * group; h < (kv_head + 1) * group; ++h) {
        row scores;
        for (const std::size_t t : columns) {
            double total = 0;
            double observers = 0;
            for (std::size_t i = 0; i < a[h].size(); ++i) {
                total += a[h][i][t];
                observers += sees(s, a[h][i].size(), a[h].size(), i, t) ? 1.0 : 0.0;
            }
            switch (setup.queries) {
            case query_average::mean:
                total /= static_cast<double>(a[h].size());
                break;
            case query_average::lifetime:
                total /= std::max(1.0, observers);
                break;
            case query_average::sum:
                break;
            }
            scores.push_back(total);
        }
        of_heads.push_back(scores);
    }
    if (!setup.pool_first) { return pooled(reduced(of_heads, setup.group), setup.pool, setup.kernel); }
    for (row& scores : of_heads) { scores = pooled(scores, setup.pool, setup.kernel); }
    return reduced(of_heads, setup.group);
}

// ---- DefensiveKV ------------------------------------------------------------------------------------------

struct defensive_scores {
    row aggregated; // worst case over the queries, floored by its mean
    row attention;  // plain mean, which pass one ranks by
};

inline defensive_scores worst_case(const tensor& a, std::size_t group, std::size_t kv_head,
                                   const token_set& columns, std::size_t kernel, double floor_weight) {
    defensive_scores result{row(columns.size(), 0.0), row(columns.size(), 0.0)};
    for (std::size_t h = kv_head * group; h < (kv_head + 1) * group; ++h) {
        for (const row& weights : a[h]) {
            const row seen = at(weights, columns);
            const row smooth = pooled(seen, pool_kind::average, kernel);
            const double mass = sum(smooth);
            for (std::size_t c = 0; c < columns.size(); ++c) {
                const double renormalised = mass > 0 ? smooth[c] / mass * sum(seen) : 0.0;
                result.aggregated[c] = std::max(result.aggregated[c], renormalised);
                result.attention[c] += seen[c] / static_cast<double>(group * a[h].size());
            }
        }
    }
    const double floor = floor_weight * sum(result.aggregated) / static_cast<double>(columns.size());
    for (double& x : result.aggregated) { x = std::max(x, floor); }
    return result;
}

// ---- Projected value norms --------------------------------------------------------------------------------

enum class norm_kind { l1, l2 };

// Mean over the group of the norm of v[t] W_O[h]. [tokens]
inline row projected_norms(const tensor& values, const tensor& w_o, std::size_t kv_head, norm_kind kind) {
    const std::size_t group = w_o.size() / values.size();
    row result;
    for (const row& v : values[kv_head]) {
        double norm = 0;
        for (std::size_t h = kv_head * group; h < (kv_head + 1) * group; ++h) {
            const row projected = times(v, w_o[h]);
            norm += kind == norm_kind::l1 ? l1_norm(projected) : std::sqrt(dot(projected, projected));
        }
        result.push_back(norm / static_cast<double>(group));
    }
    return result;
}

// Each row divided by its sum (over the tokens of a head); a row without any norm stays zero.
inline matrix per_head(matrix norms) {
    for (row& head : norms) {
        const double total = sum(head);
        for (double& x : head) { x = total > 0 ? x / total : 0.0; }
    }
    return norms;
}

// Each column divided by its sum (over the heads of a token).
inline matrix per_token(matrix norms) {
    for (std::size_t c = 0; c < norms[0].size(); ++c) {
        double total = 0;
        for (const row& head : norms) { total += head[c]; }
        for (row& head : norms) { head[c] = total > 0 ? head[c] / total : 0.0; }
    }
    return norms;
}

// (score + epsilon) * norm; epsilon in units of the row's mean score if relative.
inline matrix weighted(matrix scores, const matrix& norms, double epsilon, bool relative = false) {
    for (std::size_t g = 0; g < scores.size(); ++g) {
        const double unit =
            relative && !scores[g].empty() ? sum(scores[g]) / static_cast<double>(scores[g].size()) : 1.0;
        for (std::size_t c = 0; c < scores[g].size(); ++c) {
            scores[g][c] = (scores[g][c] + epsilon * unit) * norms[g][c];
        }
    }
    return scores;
}

// ---- Keys -------------------------------------------------------------------------------------------------

inline row key_norms(const matrix& keys) {
    row result;
    for (const row& k : keys) { result.push_back(-std::sqrt(dot(k, k))); }
    return result;
}

inline row key_differences(const matrix& keys) {
    row anchor(keys[0].size(), 0.0);
    for (const row& k : keys) {
        const double norm = std::sqrt(dot(k, k));
        for (std::size_t d = 0; d < k.size() && norm > 0; ++d) { anchor[d] += k[d] / norm; }
    }
    row result;
    for (const row& k : keys) {
        const double norms = std::sqrt(dot(k, k) * dot(anchor, anchor));
        result.push_back(norms > 0 ? -dot(k, anchor) / norms : 0.0);
    }
    return result;
}

// ---- Order, cuts and how close they are -------------------------------------------------------------------

inline bool ranks_before(double a, double b) {
    return std::isnan(b) ? !std::isnan(a) : a > b;
}

// Columns from the best to the worst; equal scores keep their order.
inline token_set ranking(const row& scores) {
    token_set order(scores.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return ranks_before(scores[a], scores[b]); });
    return order;
}

// The columns of the k best, ascending.
inline token_set top_k(const row& scores, std::size_t k) {
    token_set order = ranking(scores);
    order.resize(std::min(k, order.size()));
    std::sort(order.begin(), order.end());
    return order;
}

// Watches cuts: a score that is near the last kept one without being equal to it may change sides in float.
class near_ties {
  public:
    void cut(const row& scores, std::size_t k) {
        if (k == 0 || k >= scores.size()) { return; }
        const double last = scores[ranking(scores)[k - 1]];
        for (const double x : scores) {
            if (x == last || std::isnan(x) || std::isnan(last)) { continue; }
            near(x, last);
        }
    }
    void near(double a, double b) {
        const double scale = std::max(std::abs(a), std::abs(b));
        smallest_ = std::min(smallest_, scale > 0 && !std::isinf(scale) ? std::abs(a - b) / scale : 1.0);
    }
    [[nodiscard]] bool rounding_may_decide() const { return smallest_ < 1e-5; }

  private:
    double smallest_ = 1;
};

// ---- Budgets ----------------------------------------------------------------------------------------------

inline counts lengths(const matrix& scores) {
    counts result;
    for (const row& head : scores) { result.push_back(head.size()); }
    return result;
}

// Dealt one by one to the heads in turn, passing over those that are full.
inline counts uniform_budgets(const counts& lengths, std::size_t total) {
    counts budgets(lengths.size(), 0);
    while (total > 0) {
        for (std::size_t g = 0; g < budgets.size() && total > 0; ++g) {
            if (budgets[g] == lengths[g]) { continue; }
            ++budgets[g];
            --total;
        }
    }
    return budgets;
}

// How many of the `total` best of all heads belong to each.
inline counts global_counts(const matrix& scores, std::size_t total, near_ties& ties) {
    row flat;
    counts head_of;
    for (std::size_t g = 0; g < scores.size(); ++g) {
        flat.insert(flat.end(), scores[g].begin(), scores[g].end());
        head_of.insert(head_of.end(), scores[g].size(), g);
    }
    ties.cut(flat, total);
    counts result(scores.size(), 0);
    for (const std::size_t i : top_k(flat, total)) { ++result[head_of[i]]; }
    return result;
}

// Ada-KV with a safeguard: the best `safeguard` of each head are forced in, then everything else is sorted.
inline counts adaptive_budgets(const matrix& scores, std::size_t total, std::size_t safeguard,
                               near_ties& ties) {
    matrix others = scores;
    counts budgets(scores.size(), 0);
    for (std::size_t g = 0; g < scores.size(); ++g) {
        const token_set forced = top_k(scores[g], safeguard);
        budgets[g] = forced.size();
        total -= forced.size();
        for (std::size_t i = forced.size(); i-- > 0;) {
            others[g].erase(others[g].begin() + static_cast<std::ptrdiff_t>(forced[i]));
        }
    }
    const counts competed = global_counts(others, total, ties);
    for (std::size_t g = 0; g < scores.size(); ++g) { budgets[g] += competed[g]; }
    return budgets;
}

// Whole numbers with sum `total` near `ideal`: all rounded down, then one more to the largest fractions in turn.
inline counts largest_remainder(const row& ideal, const counts& caps, std::size_t total) {
    counts result;
    row fractions;
    for (std::size_t i = 0; i < ideal.size(); ++i) {
        const double whole = std::floor(ideal[i] + 1e-9);
        result.push_back(std::min(caps[i], static_cast<std::size_t>(whole)));
        fractions.push_back(std::round((ideal[i] - whole) * 1e9));
    }
    const token_set order = ranking(fractions);
    std::size_t dealt = std::accumulate(result.begin(), result.end(), std::size_t{0});
    while (dealt < total) {
        for (const std::size_t i : order) {
            if (dealt == total || result[i] == caps[i]) { continue; }
            ++result[i];
            ++dealt;
        }
    }
    return result;
}

struct blend_setup {
    double floor_ratio = 0.2;
    bool weight_by_kept_mass = false;
    bool exact = true; // largest remainder; else the authors' rounding
};

// Ada-KV as its authors run it.
inline counts blended_budgets(matrix scores, std::size_t total, const blend_setup& setup, near_ties& ties) {
    const counts caps = lengths(scores);
    const std::size_t share = total / scores.size();
    if (setup.weight_by_kept_mass) {
        for (row& head : scores) {
            const double weight = sum(head) > 0 ? sum(at(head, top_k(head, share))) / sum(head) : 1.0;
            for (double& x : head) { x *= weight; }
        }
    }
    const counts adaptive = global_counts(scores, total, ties);
    row ideal;
    counts rounded;
    for (std::size_t g = 0; g < scores.size(); ++g) {
        const double part = static_cast<double>(adaptive[g]) * (1.0 - setup.floor_ratio);
        const double even =
            setup.floor_ratio * static_cast<double>(total) / static_cast<double>(scores.size());
        ideal.push_back(std::min(static_cast<double>(caps[g]), part + even));
        const double by_authors =
            std::nearbyint(part + std::trunc(static_cast<double>(share) * setup.floor_ratio));
        rounded.push_back(std::min(caps[g], static_cast<std::size_t>(by_authors)));
    }
    return setup.exact ? largest_remainder(ideal, caps, total) : rounded;
}

// ---- Selection: columns of one head that stay, ascending --------------------------------------------------

inline token_set by_importance(const row& importance, std::size_t budget, near_ties& ties) {
    ties.cut(importance, budget);
    return top_k(importance, budget);
}

// The `first` most attended, then the most important of the others.
inline token_set two_stage(const row& attention, const row& importance, std::size_t first, std::size_t budget,
                           near_ties& ties) {
    first = std::min(first, budget);
    ties.cut(attention, first);
    token_set kept = top_k(attention, first);
    row others;
    token_set columns;
    for (std::size_t c = 0; c < importance.size(); ++c) {
        if (std::binary_search(kept.begin(), kept.end(), c)) { continue; }
        others.push_back(importance[c]);
        columns.push_back(c);
    }
    for (const std::size_t i : by_importance(others, budget - first, ties)) { kept.push_back(columns[i]); }
    std::sort(kept.begin(), kept.end());
    return kept;
}

// DefensiveKV's pass one: the fewest most attended tokens that, with what the protected tokens have, hold `mass`.
inline std::size_t pass_one_count(const row& attention, double mass, double protected_mass, std::size_t limit,
                                  near_ties& ties) {
    double held = protected_mass;
    std::size_t count = 0;
    for (const std::size_t c : ranking(attention)) {
        if (count < limit) { ties.near(held, mass); }
        if (held >= mass || count == limit) { break; }
        held += attention[c];
        ++count;
    }
    return count;
}

// Whole chunks by their mean, the next best chunk filled up token by token.
inline token_set chunked(const row& importance, std::size_t chunk_tokens, std::size_t budget,
                         std::size_t kept_chunks, near_ties& ties) {
    matrix chunks;
    row means;
    for (std::size_t begin = 0; begin < importance.size(); begin += chunk_tokens) {
        const std::size_t end = std::min(begin + chunk_tokens, importance.size());
        chunks.emplace_back(importance.begin() + static_cast<std::ptrdiff_t>(begin),
                            importance.begin() + static_cast<std::ptrdiff_t>(end));
        means.push_back(sum(chunks.back()) / static_cast<double>(end - begin));
    }
    token_set kept;
    std::size_t whole_chunks = 0;
    for (const std::size_t i : ranking(means)) {
        const bool enough = kept_chunks > 0 ? whole_chunks == kept_chunks : kept.size() == budget;
        if (enough) { break; }
        std::size_t taken = chunks[i].size();
        if (kept_chunks == 0) { taken = std::min(taken, budget - kept.size()); }
        for (const std::size_t c : by_importance(chunks[i], taken, ties)) {
            kept.push_back(i * chunk_tokens + c);
        }
        ++whole_chunks;
    }
    ties.cut(means, whole_chunks);
    if (whole_chunks > 1) { ties.cut(means, whole_chunks - 1); }
    std::sort(kept.begin(), kept.end());
    return kept;
}

// One score per token for all heads: sum, maximum, sum of signed squares, or the number of heads whose own budget keeps it (and then the
// sum).
enum class head_reduction { sum, maximum, votes, squares };

inline token_set shared(const matrix& importance, std::size_t budget, head_reduction kind, near_ties& ties) {
    const row total = reduced(importance, reduction::sum);
    if (kind == head_reduction::sum) { return by_importance(total, budget, ties); }
    if (kind == head_reduction::maximum) {
        return by_importance(reduced(importance, reduction::maximum), budget, ties);
    }
    if (kind == head_reduction::squares) {
        row squares(total.size(), 0.0);
        for (const row& head : importance) {
            for (std::size_t c = 0; c < head.size(); ++c) { squares[c] += head[c] * std::abs(head[c]); }
        }
        return by_importance(squares, budget, ties);
    }
    row votes(total.size(), 0.0);
    for (const row& head : importance) {
        for (const std::size_t c : by_importance(head, budget, ties)) { votes[c] += 1.0; }
    }
    token_set order = ranking(total);
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return votes[a] > votes[b]; });
    if (budget > 0 && budget < order.size()) {
        const std::size_t last = order[budget - 1];
        for (std::size_t c = 0; c < total.size(); ++c) {
            if (votes[c] == votes[last] && total[c] != total[last]) { ties.near(total[c], total[last]); }
        }
    }
    order.resize(std::min(budget, order.size()));
    std::sort(order.begin(), order.end());
    return order;
}

// Protected tokens and the selected candidates of a head, as cache rows.
inline token_set with_protected(const protection& p, std::size_t tokens, const token_set& columns) {
    const token_set competing = candidates(p, tokens);
    token_set kept;
    for (std::size_t t = 0; t < tokens; ++t) {
        if (p.covers(t, tokens)) { kept.push_back(t); }
    }
    for (const std::size_t c : columns) { kept.push_back(competing[c]); }
    std::sort(kept.begin(), kept.end());
    return kept;
}

// ---- Eviction loss ----------------------------------------------------------------------------------------

struct loss {
    row kept_mass;       // [q_heads]
    row evicted_mass;    // [q_heads]; with a sink logit less than what is missing from the kept
    row error;           // [q_heads]
    row error_projected; // [q_heads]
    double layer_error = 0;
    double layer_bound = 0;
};

// Outputs with all tokens and with the kept ones alone, both by a softmax of their own. w_o may be empty.
inline loss eviction_loss(const tensor& queries, const tensor& keys, const tensor& values, const tensor& w_o,
                          const std::vector<token_set>& kept, const attention_setup& s) {
    const std::size_t group = queries.size() / keys.size();
    const std::size_t query_count = queries[0].size();
    const tensor before = attention(queries, keys, s);
    const tensor after = attention(queries, keys, s, kept);
    const auto mean = 1.0 / static_cast<double>(query_count);
    loss result;
    matrix layer(query_count, row(w_o.empty() ? 0 : w_o[0][0].size(), 0.0));
    double largest = 0;
    double all_evicted = 0;
    for (std::size_t h = 0; h < queries.size(); ++h) {
        const matrix& v = values[h / group];
        double mass = 0;
        double evicted = 0;
        double error = 0;
        double projected_error = 0;
        for (std::size_t i = 0; i < query_count; ++i) {
            row difference(v[0].size(), 0.0);
            for (std::size_t t = 0; t < v.size(); ++t) {
                for (std::size_t d = 0; d < difference.size(); ++d) {
                    difference[d] += (before[h][i][t] - after[h][i][t]) * v[t][d];
                }
            }
            mass += mean * sum(at(before[h][i], kept[h / group]));
            for (std::size_t t = 0; t < v.size(); ++t) {
                const bool stays = std::binary_search(kept[h / group].begin(), kept[h / group].end(), t);
                evicted += stays ? 0.0 : mean * before[h][i][t];
            }
            error += mean * l1_norm(difference);
            if (w_o.empty()) { continue; }
            const row projected = times(difference, w_o[h]);
            projected_error += mean * l1_norm(projected);
            for (std::size_t c = 0; c < projected.size(); ++c) { layer[i][c] += projected[c]; }
        }
        result.kept_mass.push_back(mass);
        result.error.push_back(error);
        result.evicted_mass.push_back(evicted);
        all_evicted += evicted;
        if (w_o.empty()) { continue; }
        result.error_projected.push_back(projected_error);
        for (const row& token : v) { largest = std::max(largest, l1_norm(times(token, w_o[h]))); }
    }
    for (const row& output : layer) { result.layer_error += mean * l1_norm(output); }
    result.layer_bound = 2.0 * largest * all_evicted;
    return result;
}

} // namespace oracle
