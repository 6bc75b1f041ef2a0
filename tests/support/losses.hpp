// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Losses of a layer's tokens as the oracle sees them, and the comparison of scores with them.

#include "support/checks.hpp"

#include <kvtrim/score/single_eviction.hpp>

namespace support {

inline constexpr kvtrim::token_loss all_losses[] = {kvtrim::token_loss::attention_maximum,
                                                    kvtrim::token_loss::output_maximum,
                                                    kvtrim::token_loss::output_square_sum};

// last_rows[i]: query i scores the rows before it.
inline oracle::row losses_of(const layer_oracle& slow, kvtrim::token_loss loss, std::size_t head,
                             const std::vector<std::size_t>& last_rows, bool projected = true) {
    const std::size_t tokens = slow.keys[head].size();
    if (loss == kvtrim::token_loss::attention_maximum) {
        return oracle::attention_maximum(slow.attention, slow.group, head, tokens, last_rows);
    }
    return oracle::eviction_losses(slow.attention, slow.values[head], projected ? slow.w_o : oracle::tensor{},
                                   slow.group, head, loss == kvtrim::token_loss::output_square_sum,
                                   last_rows);
}

// Distances are differences of squares: what is small beside the largest loss is noise.
inline std::string loss_difference(std::span<const float> got, const oracle::row& expected) {
    double largest = 0;
    for (const double x : expected) { largest = std::max(largest, x); }
    return difference(got, expected, 2e-2, 1e-3 * largest + 1e-6);
}

} // namespace support
