// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Expected attention as its formulas say, with whole arrays of queries and one rotation per future position.

#include "oracle/reference.hpp"

#include <cmath>

namespace oracle {

// Channels (i, i + rotary_dim / 2), or (2 i, 2 i + 1) where interleaved; further channels stay.
struct rotation {
    row frequencies;
    bool interleaved = false;
    double factor = 1;

    [[nodiscard]] std::size_t first(std::size_t i) const { return interleaved ? 2 * i : i; }
    [[nodiscard]] std::size_t second(std::size_t i) const {
        return interleaved ? 2 * i + 1 : i + frequencies.size();
    }
    [[nodiscard]] row rotated(row x, double position) const {
        for (std::size_t i = 0; i < frequencies.size(); ++i) {
            const double angle = position * frequencies[i];
            const double a = x[first(i)];
            const double b = x[second(i)];
            x[first(i)] = factor * (a * std::cos(angle) - b * std::sin(angle));
            x[second(i)] = factor * (b * std::cos(angle) + a * std::sin(angle));
        }
        return x;
    }
    // Its matrix, averaged over positions: column c is the mean of the rotated unit vector c.
    [[nodiscard]] matrix averaged(std::size_t dim, std::size_t begin, std::size_t count) const {
        matrix mean(dim, row(dim, 0.0));
        for (std::size_t c = 0; c < dim; ++c) {
            row unit(dim, 0.0);
            unit[c] = 1;
            for (std::size_t p = begin; p < begin + count; ++p) {
                const row turned = rotated(unit, static_cast<double>(p));
                for (std::size_t d = 0; d < dim; ++d) {
                    mean[d][c] += turned[d] / static_cast<double>(count);
                }
            }
        }
        return mean;
    }
};

struct moments {
    row mean;
    matrix covariance; // biased
};

// Of the queries from `skipped` on.
inline moments query_moments(const matrix& queries, std::size_t skipped, std::size_t dim) {
    moments m{row(dim, 0.0), matrix(dim, row(dim, 0.0))};
    if (queries.size() <= skipped) { return m; }
    const auto count = static_cast<double>(queries.size() - skipped);
    for (std::size_t p = skipped; p < queries.size(); ++p) {
        for (std::size_t d = 0; d < dim; ++d) { m.mean[d] += queries[p][d] / count; }
    }
    for (std::size_t p = skipped; p < queries.size(); ++p) {
        for (std::size_t a = 0; a < dim; ++a) {
            for (std::size_t b = 0; b < dim; ++b) {
                m.covariance[a][b] += (queries[p][a] - m.mean[a]) * (queries[p][b] - m.mean[b]) / count;
            }
        }
    }
    return m;
}

struct expectation {
    std::size_t position = 0; // of the next query
    std::size_t future = 1;
    bool use_covariance = true;
    std::size_t sinks = 0;
};

// Scores of all tokens of one KV head from the moments of its query heads; sinks, the rollback tail and tokens that
// the next query does not see have none (0). `sink_logits`: of these query heads, or empty.
inline row expected_attention(const std::vector<moments>& queries, const matrix& keys, const rotation& rope,
                              const expectation& e, const attention_setup& s, const row& sink_logits) {
    row scores(keys.size(), 0.0);
    if (keys.empty()) { return scores; }
    const std::size_t dim = keys[0].size();
    const double scale = s.scale > 0 ? s.scale : 1.0 / std::sqrt(static_cast<double>(dim));
    const matrix mean_rotation = rope.averaged(dim, e.position, e.future);
    const std::size_t end = keys.size() - std::min(s.rollback_tokens, keys.size());
    for (std::size_t h = 0; h < queries.size(); ++h) {
        row logits(keys.size(), -std::numeric_limits<double>::infinity());
        double total = sink_logits.empty() ? 0.0 : std::exp(sink_logits[h]);
        for (std::size_t t = e.sinks; t < end; ++t) {
            if (s.sliding_window > 0 && end - t >= s.sliding_window) { continue; }
            // k R as a row, so that <R mean, k> = <mean, k R> and k R C R^T k^T is a form in it.
            const row turned = times(keys[t], mean_rotation);
            double logit = scale * dot(turned, queries[h].mean);
            if (e.use_covariance) {
                logit += 0.5 * scale * scale * dot(times(turned, queries[h].covariance), turned);
            }
            if (s.soft_cap > 0) { logit = s.soft_cap * std::tanh(logit / s.soft_cap); }
            logits[t] = logit;
            total += std::exp(logit);
        }
        for (std::size_t t = 0; t < keys.size(); ++t) {
            if (total > 0) { scores[t] += std::exp(logits[t]) / total / static_cast<double>(queries.size()); }
        }
    }
    return scores;
}

} // namespace oracle
