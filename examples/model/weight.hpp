// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// A weight matrix [rows, columns] in the format of its file, and products with it: y = x W^T.
//
//   f32, f16   elements
//   q4_0       blocks of 32: f16 d, 16 bytes b:        x[i] = d * ((b[i] & 15) - 8),   x[16 + i] = d * ((b[i] >> 4) - 8)
//   q4_1       blocks of 32: f16 d, f16 m, 16 bytes b: x[i] = d * (b[i] & 15) + m,     x[16 + i] = d * (b[i] >> 4) + m
//   q8_0       blocks of 32: f16 d, 32 signed bytes q: x[i] = d * q[i]
//
// A weight stays as it is: products decode a row, or a panel of rows, and multiply floats. Rows are handed out to OpenMP's
// threads.
// Numerics: float products and sums; a result depends on the number of x's rows and the CPU level, not on the threads.

#include "tensor.hpp"

#include <kvtrim/kernels/quant_blocks.hpp>

#include <cstddef>
#include <memory>
#include <vector>

namespace lm {

enum class weight_format : std::uint8_t { f32, f16, q4_0, q4_1, q8_0 };

// Elements that are stored together.
[[nodiscard]] constexpr index_t block_elements(weight_format format) {
    return format == weight_format::f32 || format == weight_format::f16 ? 1 : 32;
}

// Requires columns to be a multiple of block_elements(format).
[[nodiscard]] constexpr index_t row_bytes(weight_format format, index_t columns) {
    switch (format) {
    case weight_format::f32:
        return columns * 4;
    case weight_format::f16:
        return columns * 2;
    case weight_format::q4_0:
        return columns / 32 * static_cast<index_t>(sizeof(kvtrim::block_q4_0));
    case weight_format::q4_1:
        return columns / 32 * static_cast<index_t>(sizeof(kvtrim::block_q4_1));
    case weight_format::q8_0:
        return columns / 32 * static_cast<index_t>(sizeof(kvtrim::block_q8_0));
    }
    return 0;
}

class weight {
  public:
    weight() = default;
    // Rows in memory without gaps, aligned for 4-byte elements (f32) or 2-byte ones; `owner` keeps them alive.
    weight(weight_format format, index_t rows, index_t columns, const std::byte* data,
           std::shared_ptr<const void> owner)
        : format_(format), rows_(rows), columns_(columns), data_(data), owner_(std::move(owner)) {}
    // f32, with memory of its own.
    weight(index_t rows, index_t columns, std::vector<float> values);

    [[nodiscard]] weight_format format() const { return format_; }
    [[nodiscard]] index_t rows() const { return rows_; }
    [[nodiscard]] index_t columns() const { return columns_; }
    [[nodiscard]] std::size_t bytes() const {
        return static_cast<std::size_t>(rows_ * row_bytes(format_, columns_));
    }
    [[nodiscard]] const std::byte* row(index_t r) const { return data_ + r * row_bytes(format_, columns_); }

    // to [columns] = row r
    void decode_row(index_t r, float* to) const;
    // All of it as floats.
    [[nodiscard]] matrix decoded() const;
    // The same without a copy. Throws std::logic_error unless the format is f32.
    [[nodiscard]] const_matrix_map floats() const;

    // Row r of the result is row order[r] of this; has memory of its own.
    [[nodiscard]] weight with_rows(const std::vector<index_t>& order) const;

    // x W^T [x.rows(), rows]. Requires x.cols() == columns().
    [[nodiscard]] matrix multiply(const matrix& x) const;

  private:
    weight_format format_ = weight_format::f32;
    index_t rows_ = 0;
    index_t columns_ = 0;
    const std::byte* data_ = nullptr;
    std::shared_ptr<const void> owner_;
};

} // namespace lm
