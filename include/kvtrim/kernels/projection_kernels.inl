// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

namespace KVTRIM_NAMESPACE::kernels::KVTRIM_TARGET {

using namespace simd::KVTRIM_TARGET;

inline void pack_matrix(const float* rows, index_t stride, index_t first_row, index_t count, index_t inner,
                        index_t columns, float* packed) {
    for (index_t c = 0; c < columns; c += panel_columns) {
        float* const to = packed + c * inner + first_row * panel_columns;
        pack_panel({rows + c, stride, 1}, count, columns - c, to);
    }
}

// How a product C [rows, panel_columns] is reduced: sums [rows][lanes] += |C| folded to one vector, or += C * x.
enum class fold { absolute, times_row };

// Not inlined: inlined into the loops of its caller, clang spills some of the sums.
template <fold Fold, index_t Rows>
KVTRIM_NOINLINE inline void fold_products(const matrix_in& x, const float* panel, index_t inner,
                                          index_t first_column, index_t columns, index_t first_row,
                                          float* sums) {
    registers<Rows * product_vectors> product;
    products<Rows, product_vectors>(x, first_row, Rows, panel, inner, product);
    const auto fold_all = [&](auto lanes_of) KVTRIM_INLINED {
        KVTRIM_UNROLL
        for (index_t i = 0; i < Rows; ++i) {
            const index_t row = first_row + i;
            floats sum = load(sums + row * lanes);
            KVTRIM_UNROLL
            for (index_t v = 0; v < product_vectors; ++v) {
                // Padding columns are 0, but 0 times an infinite element of the row is NaN: they are left out.
                const auto some = lanes_of(v);
                const floats p = some.keep(product[i * product_vectors + v]);
                if constexpr (Fold == fold::absolute) {
                    sum = sum + absolute(p);
                } else {
                    sum = fma(p, some.load(x.data + row * x.row + first_column + v * lanes), sum);
                }
            }
            store(sums + row * lanes, sum);
        }
    };
    if (first_column + panel_columns <= columns) {
        fold_all([](index_t) KVTRIM_INLINED { return all_lanes{}; });
    } else {
        fold_all([&](index_t v) KVTRIM_INLINED { return first_lanes(columns - first_column - v * lanes); });
    }
}

// Reduces the products with all panels to sums [rows][lanes], then calls what(r, sum of row r).
template <fold Fold, class What>
inline void fold_matrix(const matrix_in& x, index_t rows, const float* packed, index_t inner, index_t columns,
                        float* sums, What what) {
    constexpr index_t many = product_rows(product_vectors);
    std::fill_n(sums, rows * lanes, 0.0f);
    for (index_t c = 0; c < columns; c += panel_columns) {
        const float* const panel = packed + c * inner;
        index_t r = 0;
        for (; r + many <= rows; r += many) {
            fold_products<Fold, many>(x, panel, inner, c, columns, r, sums);
        }
        for (; r + 2 <= rows; r += 2) { fold_products<Fold, 2>(x, panel, inner, c, columns, r, sums); }
        if (r < rows) { fold_products<Fold, 1>(x, panel, inner, c, columns, r, sums); }
    }
    for (index_t r = 0; r < rows; ++r) { what(r, sum_of_lanes(load(sums + r * lanes))); }
}

inline void add_l1(const float* x, index_t x_stride, index_t rows, const float* packed, index_t inner,
                   index_t columns, float* scratch, float* norms) {
    fold_matrix<fold::absolute>({x, x_stride, 1}, rows, packed, inner, columns, scratch,
                                [&](index_t r, float sum) { norms[r] += sum; });
}

inline void add_gram_l2(const float* x, index_t x_stride, index_t rows, const float* packed, index_t dim,
                        float* scratch, float* norms) {
    fold_matrix<fold::times_row>({x, x_stride, 1}, rows, packed, dim, dim, scratch,
                                 [&](index_t r, float sum) { norms[r] += std::sqrt(std::max(sum, 0.0f)); });
}

inline void add_forms(const float* x, index_t x_stride, index_t rows, const float* packed, index_t dim,
                      float* scratch, float* forms) {
    fold_matrix<fold::times_row>({x, x_stride, 1}, rows, packed, dim, dim, scratch,
                                 [&](index_t r, float sum) { forms[r] += sum; });
}

inline constexpr projection_kernels projection_table{pack_matrix, add_l1, add_gram_l2, add_forms};

} // namespace KVTRIM_NAMESPACE::kernels::KVTRIM_TARGET
