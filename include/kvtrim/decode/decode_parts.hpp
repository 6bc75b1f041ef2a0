// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// A head's rows in parts for decode attention, and the merge of what the parts found.
//
//   z = sum over parts p of z[p] (+ exp(sink logit)),   o = sum over p of (z[p] / z) o[p]
//
// Parts depend on the head's length alone and are merged in their order, so results do not depend on who computed them.
// Numerics: weights in double from float log-sum-exps, sums in float.

#include <kvtrim/core/eviction_request.hpp>
#include <kvtrim/core/saturated.hpp>
#include <kvtrim/core/workspace.hpp>

#include <cmath>

namespace KVTRIM_NAMESPACE::detail {

inline constexpr float nothing_seen = -std::numeric_limits<float>::infinity(); // log of an empty sum

// The rows of a cut cache that the queries of one step see, in parts.
class decode_parts {
  public:
    static constexpr index_t most_rows = 4096; // of a part

    // queries > 0
    decode_parts(index_t tokens, index_t queries, index_t sliding_window)
        : tokens_(tokens), queries_(queries), sliding_window_(sliding_window), begin_(seen_by(0).begin) {
        const index_t rows = tokens_ - begin_;
        count_ = (rows + most_rows - 1) / most_rows;
        part_rows_ = count_ == 0 ? 0 : (rows + count_ - 1) / count_;
    }

    // The rows that query i sees.
    [[nodiscard]] token_range seen_by(index_t i) const {
        const index_t end = std::max<index_t>(0, tokens_ - (queries_ - 1 - i));
        return {sliding_window_ > 0 ? std::max<index_t>(0, end - sliding_window_) : 0, end};
    }
    [[nodiscard]] index_t count() const { return count_; }
    [[nodiscard]] token_range rows(index_t part) const {
        const index_t begin = begin_ + part * part_rows_;
        return {begin, std::min(begin + part_rows_, tokens_)};
    }

  private:
    index_t tokens_;
    index_t queries_;
    index_t sliding_window_;
    index_t begin_;
    index_t count_;
    index_t part_rows_;
};

// What the parts of all heads have found, before they are merged: [kv_heads, parts, query row], where query row
// i * group_size + j is query i of the j-th query head of the group.
struct decode_partials {
    index_t parts; // of the longest head
    index_t query_rows;
    index_t value_dim;
    std::span<float> out;
    std::span<float> log_sum_exp;

    decode_partials(index_t kv_heads, index_t part_count, index_t rows, index_t columns, workspace& scratch)
        : parts(part_count), query_rows(rows), value_dim(columns),
          out(scratch.take<float>(saturated_product(rows_of(kv_heads), value_dim))),
          log_sum_exp(scratch.take<float>(rows_of(kv_heads))) {}

    [[nodiscard]] index_t at(index_t kv_head, index_t part, index_t query_row) const {
        return (kv_head * parts + part) * query_rows + query_row;
    }

  private:
    // Saturates, so that a product that memory cannot hold is not mistaken for a small one.
    [[nodiscard]] index_t rows_of(index_t kv_heads) const {
        return saturated_product(saturated_product(kv_heads, parts), query_rows);
    }
};

// One row of the result from its parts. Returns log z.
inline float merge_parts(const decode_partials& found, index_t kv_head, index_t part_count, index_t query_row,
                         float sink_logit, std::span<float> out) {
    float highest = sink_logit;
    for (index_t p = 0; p < part_count; ++p) {
        highest =
            std::max(highest, found.log_sum_exp[static_cast<std::size_t>(found.at(kv_head, p, query_row))]);
    }
    std::fill(out.begin(), out.end(), 0.0f);
    const auto weight_of = [&](float log_sum) {
        return log_sum == nothing_seen
                   ? 0.0
                   : std::exp(static_cast<double>(log_sum) - static_cast<double>(highest));
    };
    double sum = weight_of(sink_logit);
    for (index_t p = 0; p < part_count; ++p) {
        sum += weight_of(found.log_sum_exp[static_cast<std::size_t>(found.at(kv_head, p, query_row))]);
    }
    for (index_t p = 0; p < part_count; ++p) {
        const auto row = static_cast<std::size_t>(found.at(kv_head, p, query_row));
        const auto weight = static_cast<float>(sum > 0 ? weight_of(found.log_sum_exp[row]) / sum : 0.0);
        const float* const from = found.out.data() + row * out.size();
        for (std::size_t d = 0; d < out.size(); ++d) { out[d] += weight * from[d]; }
    }
    return sum > 0 ? highest + static_cast<float>(std::log(sum)) : nothing_seen;
}

} // namespace KVTRIM_NAMESPACE::detail
