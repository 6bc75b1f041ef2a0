// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The attention of one KV head as plain numbers, and its fold through an aggregator in tiles of any size: what a
// scorer does, without queries and keys.

#include "support/random_layer.hpp"

#include <kvtrim/aggregate/attention_tile.hpp>

#include <cmath>

namespace support {

// [group][queries][columns], non-negative, with exact zeros in between.
inline oracle::tensor random_attention(random& r, std::size_t group, std::size_t queries,
                                       std::size_t columns) {
    oracle::tensor a(group, oracle::matrix(queries, oracle::row(columns)));
    for (auto& head : a) {
        for (auto& weights : head) {
            for (double& x : weights) {
                x = r.chance(0.2) ? 0.0 : static_cast<double>(static_cast<float>(std::exp(3 * r.normal())));
            }
        }
    }
    return a;
}

struct folded {
    std::vector<float> importance;
    std::vector<float> attention;
};

// What a scorer knows of a group of query rows once it has their softmax. Weights gives a row of plain numbers.
template <class Weights>
struct attention_of_rows {
    const Weights& weights;
    index_t first_row;
    index_t rows;
    std::vector<float> column;

    [[nodiscard]] index_t current_rows() const { return rows; }
    [[nodiscard]] double candidate_mass(index_t row) const { return oracle::sum(weights(first_row + row)); }
    [[nodiscard]] const float* attention(index_t token, index_t) {
        column.clear();
        for (index_t r = 0; r < rows; ++r) {
            column.push_back(static_cast<float>(weights(first_row + r)[static_cast<std::size_t>(token)]));
        }
        return column.data();
    }
};
template <class Weights>
attention_of_rows(const Weights&, index_t, index_t, std::vector<float>) -> attention_of_rows<Weights>;

// Blocks of query rows and tiles of tokens are cut at random.
template <class Aggregator>
folded fold(random& r, const Aggregator& aggregator, const oracle::tensor& a, index_t sliding_window = 0) {
    const auto group = static_cast<index_t>(a.size());
    const auto queries = static_cast<index_t>(a[0].size());
    const auto columns = static_cast<index_t>(a[0][0].size());
    // The queries follow the candidates directly: with no sliding window all see all.
    const kvtrim::attention_head head{group, queries, columns, 0, columns, sliding_window};
    const auto weights = [&](index_t row_index) -> const oracle::row& {
        return a[static_cast<std::size_t>(row_index / queries)]
                [static_cast<std::size_t>(row_index % queries)];
    };
    std::vector<float> accumulators = zeros(aggregator.lanes(group) * columns);
    for (index_t first_row = 0; first_row < group * queries;) {
        const index_t rows = std::min(r.between(1, 9), group * queries - first_row);
        std::vector<float> factor = zeros(rows);
        attention_of_rows current{weights, first_row, rows, {}};
        if constexpr (requires(const kvtrim::attention_row_group<decltype(current)>& b) {
                          aggregator.weigh_rows(b, factor);
                      }) {
            aggregator.weigh_rows(kvtrim::attention_row_group<decltype(current)>{current, head}, factor);
        }
        for (index_t first = 0; first < columns;) {
            const index_t tokens = std::min(r.between(1, 11), columns - first);
            const index_t before = std::min(aggregator.halo(), first);
            const index_t after = std::min(aggregator.halo(), columns - first - tokens);
            std::vector<float> tile;
            for (index_t c = first - before; c < first + tokens + after; ++c) {
                for (index_t i = 0; i < rows; ++i) {
                    tile.push_back(static_cast<float>(weights(first_row + i)[static_cast<std::size_t>(c)]));
                }
            }
            aggregator.add({tile.data(), factor.data(), rows, first_row, first, tokens, before, after, head},
                           accumulators);
            first += tokens;
        }
        first_row += rows;
    }
    folded result{zeros(columns), zeros(columns)};
    aggregator.finish(head, accumulators, result.importance, result.attention);
    return result;
}

} // namespace support
