// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

namespace KVTRIM_NAMESPACE::kernels::KVTRIM_TARGET {

using namespace simd::KVTRIM_TARGET;

template <bool Accumulate>
inline void multiply_matrices(const matrix_in& a, index_t rows, const matrix_in& b, index_t inner,
                              index_t columns, float* out, index_t out_row) {
    constexpr index_t most = 256;
    alignas(64) float panel[most * panel_columns];
    for (index_t c = 0; c < columns; c += panel_columns) {
        index_t k = 0;
        do { // also once for inner = 0, which writes zeros
            const index_t count = std::min(most, inner - k);
            const matrix_in left{a.data + k * a.step, a.row, a.step};
            const panel_out to{out + c, out_row, std::min(columns - c, panel_columns)};
            pack_panel({b.data + k * b.row + c * b.step, b.row, b.step}, count, columns - c, panel);
            if (Accumulate || k > 0) {
                multiply_rows<true>(left, panel, count, to, rows);
            } else {
                multiply_rows<false>(left, panel, count, to, rows);
            }
            k += count;
        } while (k < inner);
    }
}

inline constexpr product_kernels product_table{multiply_matrices<false>, multiply_matrices<true>};

} // namespace KVTRIM_NAMESPACE::kernels::KVTRIM_TARGET
