// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Row-major float matrices and the head-major tensors that attention works on.

#include <kvtrim/cache/row_source.hpp>

#include <Eigen/Core>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace lm {

using index_t = Eigen::Index;
using token_id = std::int32_t;

using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using row_vector = Eigen::RowVectorXf;
using matrix_map = Eigen::Map<matrix>;
using const_matrix_map = Eigen::Map<const matrix>;

// Floats [heads, tokens, head_dim], contiguous; owns its storage.
class head_tensor {
  public:
    head_tensor() = default;
    head_tensor(index_t heads, index_t tokens, index_t head_dim)
        : heads_(heads), tokens_(tokens), head_dim_(head_dim),
          data_(static_cast<std::size_t>(heads * tokens * head_dim)) {}

    [[nodiscard]] index_t heads() const { return heads_; }
    [[nodiscard]] index_t tokens() const { return tokens_; }
    [[nodiscard]] index_t head_dim() const { return head_dim_; }
    [[nodiscard]] const float* data() const { return data_.data(); }
    [[nodiscard]] std::size_t bytes() const { return data_.size() * sizeof(float); }

    // One head [tokens, head_dim].
    [[nodiscard]] matrix_map head(index_t head) {
        return {data_.data() + head * tokens_ * head_dim_, tokens_, head_dim_};
    }
    [[nodiscard]] const_matrix_map head(index_t head) const { return heads(head, 1); }

    // Neighbouring heads, one below the other: [count * tokens, head_dim].
    [[nodiscard]] const_matrix_map heads(index_t first, index_t count) const {
        return {data_.data() + first * tokens_ * head_dim_, count * tokens_, head_dim_};
    }

  private:
    index_t heads_ = 0;
    index_t tokens_ = 0;
    index_t head_dim_ = 0;
    std::vector<float> data_;
};

// `count` tokens from `first` on, as kvtrim sees them: [heads, count, head_dim].
[[nodiscard]] inline kvtrim::strided<const float, 3> rows_of(const head_tensor& t, index_t first,
                                                             index_t count) {
    const index_t row = t.head_dim();
    return {t.data() + first * row, {t.heads(), count, row}, {t.tokens() * row, row, 1}};
}
[[nodiscard]] inline kvtrim::strided<const float, 3> rows_of(const head_tensor& t) {
    return rows_of(t, 0, t.tokens());
}

// Softmax of the first `visible` scores of a row; the others become 0. Requires visible >= 1.
inline void softmax_prefix(Eigen::Ref<row_vector> row, index_t visible) {
    auto scores = row.head(visible).array();
    // Below e^-60 a weight is nothing to a float sum, but denormal weights make products slow.
    scores = (scores - scores.maxCoeff()).max(-60.0F).exp();
    scores /= scores.sum();
    row.tail(row.size() - visible).setZero();
}

} // namespace lm
