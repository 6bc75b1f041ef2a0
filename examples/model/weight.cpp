// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#include "weight.hpp"

#include "threads.hpp"

#include <kvtrim/kernels/convert.hpp>
#include <kvtrim/simd/choose.hpp>
#include <kvtrim/simd/prefetch.hpp>
#include <kvtrim/simd/simd.hpp>

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

namespace lm {

// Rows of W that are decoded together: two registers of lanes, or more.
constexpr index_t panel_rows = 32;

} // namespace lm

#define KVTRIM_BODY "weight_loops.inl"
#include <kvtrim/simd/for_each_target.inl>

namespace lm {
namespace {

using kvtrim::cpu_level, kvtrim::active_cpu_level;

// Above so many rows of x panels pay.
constexpr index_t few_tokens = 48;

// ---- Parts of a product ----

// Rows [first, end) of W x, for x [columns] and W in blocks. Returns whether it is in blocks.
bool multiply_one_token(const weight& w, const float* x, index_t first, index_t end, float* out) {
    const auto multiply = [&]<class Block>() {
        (KVTRIM_CHOOSE(active_cpu_level(), multiply_token<Block>))(
            reinterpret_cast<const Block*>(w.row(first)), w.columns() / 32, end - first, x, out + first);
        return true;
    };
    switch (w.format()) {
    case weight_format::q4_0:
        return multiply.operator()<kvtrim::block_q4_0>();
    case weight_format::q4_1:
        return multiply.operator()<kvtrim::block_q4_1>();
    case weight_format::q8_0:
        return multiply.operator()<kvtrim::block_q8_0>();
    default:
        return false;
    }
}

// Columns [first, end) of out = x W^T, a row of W at a time.
void multiply_rows(const weight& w, const matrix& x, index_t first, index_t end, matrix& out) {
    if (x.rows() == 1 && multiply_one_token(w, x.data(), first, end, out.data())) { return; }
    std::vector<float> row(static_cast<std::size_t>(w.columns()));
    for (index_t r = first; r < end; ++r) {
        const float* values = row.data();
        if (w.format() == weight_format::f32) {
            values = reinterpret_cast<const float*>(w.row(r));
        } else {
            w.decode_row(r, row.data());
        }
        (KVTRIM_CHOOSE(active_cpu_level(), dot_products))(x.data(), x.rows(), w.columns(), values,
                                                          out.data() + r, out.cols());
    }
}

// The same for the panel that starts at row `first`.
void multiply_panel(const weight& w, const matrix& x, index_t first, matrix& out) {
    const index_t columns = w.columns();
    const index_t count = std::min(panel_rows, w.rows() - first);
    std::vector<float> row(static_cast<std::size_t>(columns));
    std::vector<float> panel(static_cast<std::size_t>(columns * panel_rows));
    for (index_t r = 0; r < count; ++r) {
        w.decode_row(first + r, row.data());
        for (index_t k = 0; k < columns; ++k) {
            panel[static_cast<std::size_t>(k * panel_rows + r)] = row[static_cast<std::size_t>(k)];
        }
    }
    const auto multiply = [&](matrix& to, index_t at) {
        (KVTRIM_CHOOSE(active_cpu_level(), panel_products))(x.data(), x.rows(), columns, panel.data(),
                                                            to.data() + at, to.cols());
    };
    if (count == panel_rows) {
        multiply(out, first);
        return;
    }
    matrix wide(x.rows(), panel_rows); // out has no room behind the last rows of W
    multiply(wide, 0);
    out.middleCols(first, count) = wide.leftCols(count);
}

} // namespace

weight::weight(index_t rows, index_t columns, std::vector<float> values) : rows_(rows), columns_(columns) {
    const auto own = std::make_shared<const std::vector<float>>(std::move(values));
    data_ = reinterpret_cast<const std::byte*>(own->data());
    owner_ = own;
}

void weight::decode_row(index_t r, float* to) const {
    const auto blocks = [&]<class Block>() {
        kvtrim::kernels::decode_blocks(reinterpret_cast<const Block*>(row(r)), columns_ / 32, to);
    };
    switch (format_) {
    case weight_format::f32:
        std::memcpy(to, row(r), static_cast<std::size_t>(columns_) * 4);
        break;
    case weight_format::f16:
        kvtrim::kernels::widen(reinterpret_cast<const kvtrim::f16*>(row(r)), columns_, to);
        break;
    case weight_format::q4_0:
        blocks.operator()<kvtrim::block_q4_0>();
        break;
    case weight_format::q4_1:
        blocks.operator()<kvtrim::block_q4_1>();
        break;
    case weight_format::q8_0:
        blocks.operator()<kvtrim::block_q8_0>();
        break;
    }
}

matrix weight::decoded() const {
    matrix all(rows_, columns_);
    for (index_t r = 0; r < rows_; ++r) { decode_row(r, all.data() + r * columns_); }
    return all;
}

const_matrix_map weight::floats() const {
    if (format_ != weight_format::f32) { throw std::logic_error("a quantised weight has no floats"); }
    return {reinterpret_cast<const float*>(data_), rows_, columns_};
}

weight weight::with_rows(const std::vector<index_t>& order) const {
    const auto size = static_cast<std::size_t>(row_bytes(format_, columns_));
    const auto own = std::make_shared<std::vector<std::byte>>(order.size() * size);
    for (std::size_t r = 0; r < order.size(); ++r) {
        std::memcpy(own->data() + r * size, row(order[r]), size);
    }
    return {format_, std::ssize(order), columns_, own->data(), own};
}

matrix weight::multiply(const matrix& x) const {
    if (x.cols() != columns_) { throw std::invalid_argument("a product of matrices that do not fit"); }
    matrix out(x.rows(), rows_);
    const auto threads = threads_for(rows_ * columns_ * x.rows());
    if (x.rows() > few_tokens) {
        threads((rows_ + panel_rows - 1) / panel_rows,
                [&](index_t panel) { multiply_panel(*this, x, panel * panel_rows, out); });
    } else {
        // Parts of equal size, a few per thread: a row alone is less work than handing it out.
        const index_t parts = std::min<index_t>(rows_, 4 * threads.workers());
        threads(parts, [&](index_t part) {
            multiply_rows(*this, x, rows_ * part / parts, rows_ * (part + 1) / parts, out);
        });
    }
    return out;
}

} // namespace lm
