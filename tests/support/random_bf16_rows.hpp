// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Random rows of bf16 with gaps between them, for the products of bf16 that one instruction set has.

#include "support/random_layer.hpp"

#include <kvtrim/core/element.hpp>

#include <vector>

namespace support {

using kvtrim::bf16;

struct random_bf16_rows {
    index_t count, length, stride;
    std::vector<bf16> data; // nothing behind the last row

    random_bf16_rows(random& r, index_t rows, index_t row_length)
        : count(rows), length(row_length), stride(row_length + r.between(0, 11)),
          data(static_cast<std::size_t>((rows - 1) * stride + row_length)) {
        for (bf16& x : data) {
            x = kvtrim::element_traits<bf16>::from_float(static_cast<float>(3 * r.normal()));
        }
    }
    [[nodiscard]] bf16* row(index_t i) { return data.data() + i * stride; }
    [[nodiscard]] const bf16* row(index_t i) const { return data.data() + i * stride; }
    [[nodiscard]] double at(index_t i, index_t d) const {
        return static_cast<double>(kvtrim::to_float(row(i)[d]));
    }
};

} // namespace support
