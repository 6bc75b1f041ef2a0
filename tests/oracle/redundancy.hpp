// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// R-KV's redundancy with the whole matrix of cosines.

#include "oracle/reference.hpp"

#include <cmath>

namespace oracle {

struct redundancy {
    row values;                   // e^r
    bool close_to_border = false; // float rounding may decide who is similar
};

// Among the first `rows` keys; the newest similar token is looked for among the `search` newest (0: all).
inline redundancy key_redundancy(const matrix& keys, std::size_t rows, double similar_above,
                                 std::size_t search) {
    matrix cosines(rows, row(rows, 0.0));
    for (std::size_t i = 0; i < rows; ++i) {
        for (std::size_t j = 0; j < rows; ++j) {
            const double norms = std::sqrt(dot(keys[i], keys[i]) * dot(keys[j], keys[j]));
            cosines[i][j] = i == j || norms == 0 ? 0.0 : dot(keys[i], keys[j]) / norms;
        }
    }
    redundancy result;
    const std::size_t oldest = search > 0 && search < rows ? rows - search : 0;
    for (std::size_t i = 0; i < rows; ++i) {
        for (std::size_t j = rows; j-- > oldest;) {
            if (j == i) { continue; }
            if (std::abs(cosines[i][j] - similar_above) < 1e-5) { result.close_to_border = true; }
            if (cosines[i][j] > similar_above) {
                cosines[i][j] = 0;
                break;
            }
        }
    }
    for (std::size_t j = 0; j < rows; ++j) {
        double mean = 0;
        for (std::size_t i = 0; i < rows; ++i) { mean += cosines[i][j] / static_cast<double>(rows); }
        result.values.push_back(std::exp(mean));
    }
    return result;
}

inline double mean_magnitude(const row& values) {
    return values.empty() ? 0.0 : l1_norm(values) / static_cast<double>(values.size());
}

// `columns`: the candidates' rows; `all`: the redundancy of every row.
inline row less_redundant(const row& importance, const token_set& columns, const row& all, double lambda) {
    row result;
    for (std::size_t c = 0; c < columns.size(); ++c) {
        const double unit = mean_magnitude(importance);
        result.push_back(lambda * (unit > 0 ? importance[c] / unit : 0.0) -
                         (1 - lambda) * all[columns[c]] / mean_magnitude(all));
    }
    return result;
}

} // namespace oracle
