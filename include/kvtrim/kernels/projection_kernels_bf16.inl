// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

namespace KVTRIM_NAMESPACE::kernels::KVTRIM_TARGET {

// A pair of rows at a time: bf16 is the upper half of a float.
inline void pack_matrix(const float* rows, index_t stride, index_t first_row, index_t count, index_t inner,
                        index_t columns, bf16* packed) {
    constexpr index_t distance = order::index(1, 0, 1); // from column to column
    const bool is_last = first_row + count == inner;    // then the padding is written, too
    for (index_t i = first_row; i < (is_last ? order::whole_steps(inner) : first_row + count); i += 2) {
        for (index_t c = 0; c < order::whole_steps(columns); c += lanes) {
            const auto row = [&](index_t r) KVTRIM_INLINED {
                const first_lanes some(r < inner ? columns - c : 0);
                return reinterpret_cast<uints>(some.load(rows + (r - first_row) * stride + c));
            };
            const uints pairs = row(i) >> 16 | (row(i + 1) & 0xffff0000u);
            bf16* const to = packed + order::index(inner, i, c);
            if constexpr (distance == 2) {
                std::memcpy(to, &pairs, sizeof(pairs));
            } else {
                std::uint32_t pair[lanes];
                std::memcpy(pair, &pairs, sizeof(pairs));
                for (index_t n = 0; n < lanes; ++n) { std::memcpy(to + n * distance, pair + n, 4); }
            }
        }
    }
}

// Adds the L1 norms of `edge` rows of A from `first` on, times a panel, to `sums`.
template <class Tiles>
void fold_panel(const bf16_rows& a, index_t first, const bf16* panel, index_t columns, float* sums) {
    sums_of_panel c;
    multiply_panel<Tiles>(a, first, panel, c);
    fold_absolute(c, std::min(edge, a.count - first), columns, sums);
}

// Rows are read in place. 64 rows are multiplied by all panels before the next 64, because so many rows and a panel fit in the
// first level cache. The products of one panel are reduced before those of the next.
template <class Tiles>
void add_l1(const bf16* x, index_t x_stride, index_t rows, const bf16* packed, index_t inner, index_t columns,
            float* scratch, float* norms) {
    constexpr index_t rows_at_once = 64;
    const bf16_rows a{x, x_stride, rows, inner};
    std::fill_n(scratch, norm_scratch_floats(rows), 0.0f);
    Tiles::configure();
    for (index_t begin = 0; begin < rows; begin += rows_at_once) {
        const index_t end = std::min(begin + rows_at_once, rows);
        for (index_t column = 0; column < columns; column += edge) {
            const bf16* const panel = packed + column * order::whole_steps(inner);
            for (index_t r = begin; r < end; r += edge) {
                fold_panel<Tiles>(a, r, panel, columns - column, scratch + r * row_sums);
            }
        }
    }
    Tiles::release();
    for (index_t r = 0; r < rows; ++r) { norms[r] += folded(scratch + r * row_sums); }
}

// The steps of projection_kernels with these products.
template <const auto& Steps>
inline constexpr auto with_norms = [] {
    auto steps = Steps;
    steps.pack_bf16 = pack_matrix;
    steps.unpack_bf16 = unpack_matrix<order>;
    steps.add_bf16_l1 = add_l1<tiles>;
    return steps;
}();

} // namespace KVTRIM_NAMESPACE::kernels::KVTRIM_TARGET
