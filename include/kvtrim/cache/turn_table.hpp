// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Turns of a model's RoPE by many distances, for rows that are rotated one after the other.
//
//   table[i] = length * R(i * step), i = 0 ... turns - 1        cosines and sines of each pair, in double
//
// A table of fine turns and one of coarse turns, or a coarse turn that follows the rows, give every distance by two of them
// (kernels/turn_row.hpp): 2 sqrt(n) sines and cosines a pair in place of n.

#include <kvtrim/cache/rope.hpp>
#include <kvtrim/core/saturated.hpp>
#include <kvtrim/core/workspace.hpp>
#include <kvtrim/kernels/turn_row.hpp>

#include <cmath>

namespace KVTRIM_NAMESPACE::detail {

class turn_table {
  public:
    turn_table(index_t turns, index_t pairs, workspace& scratch)
        : turns_(turns), pairs_(pairs),
          turn_(scratch.take<double>(saturated_product(turns, saturated_product(2, pairs)))) {}

    void fill(const rope& r, index_t step = 1, double length = 1) const {
        for (index_t i = 0; i < turns_; ++i) { write(r, i * step, length, turn_.data() + i * 2 * pairs_); }
    }
    [[nodiscard]] index_t turns() const { return turns_; }
    [[nodiscard]] kernels::turn_row operator[](index_t i) const {
        const double* row = turn_.data() + i * 2 * pairs_;
        return {row, row + pairs_};
    }

    // turn [2, pairs]: cosines, then sines.
    static void write(const rope& r, index_t distance, double length, double* turn) {
        for (index_t i = 0; i < r.pairs(); ++i) {
            const double angle = static_cast<double>(distance) * r.frequency(i);
            turn[i] = length * std::cos(angle);
            turn[r.pairs() + i] = length * std::sin(angle);
        }
    }

  private:
    index_t turns_;
    index_t pairs_;
    std::span<double> turn_;
};

// Rotates the rotary channels of a row by both turns together.
inline void rotate_by(const rope& r, kernels::turn_row a, kernels::turn_row b, float* row) {
    if (r.pairing == rope_pairing::half_split) {
        kernels::rotate_half_split(a, b, r.pairs(), row);
    } else {
        kernels::rotate_interleaved(a, b, r.pairs(), row);
    }
}

} // namespace KVTRIM_NAMESPACE::detail
