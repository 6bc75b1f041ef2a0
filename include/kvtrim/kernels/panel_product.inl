// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

namespace KVTRIM_NAMESPACE::kernels::KVTRIM_TARGET {

using namespace simd::KVTRIM_TARGET;

inline constexpr index_t panel_columns = lanes * product_vectors;

// Rows of C that are kept in registers together, if each is so many vectors.
[[nodiscard]] constexpr index_t product_rows(index_t vectors) {
    return std::min(product_registers / vectors, product_registers / 2);
}

// sum [Vectors * i + v] = A [first_row + i][inner] * vector v of B, for i < count; the other sums are those of the last row.
template <index_t Rows, index_t Vectors>
KVTRIM_INLINE void products(const matrix_in& a, index_t first_row, index_t count, const float* b,
                            index_t inner, registers<Rows * Vectors>& sum) {
    constexpr index_t sums = Rows * Vectors;
    // A pointer per row: one pointer, moved from row to row, would be a chain of dependent additions.
    const float* rows[static_cast<std::size_t>(Rows)];
    KVTRIM_UNROLL
    for (index_t i = 0; i < Rows; ++i) { rows[i] = a.data + (first_row + std::min(i, count - 1)) * a.row; }
    KVTRIM_UNROLL
    for (index_t n = 0; n < sums; ++n) { sum[n] = broadcast(0.0f); }
    const index_t step = a.step;
    index_t at = 0;
    for (index_t k = 0; k < inner; ++k, b += panel_columns, at += step) {
        registers<Vectors> panel;
        KVTRIM_UNROLL
        for (index_t v = 0; v < Vectors; ++v) { panel[v] = load(b + lanes * v); }
        KVTRIM_UNROLL
        for (index_t n = 0; n < sums; ++n) {
            sum[n] = fma(broadcast(rows[n / Vectors][at]), panel[n % Vectors], sum[n]);
        }
    }
}

// C = (or +=) A * B for as many rows as registers hold, or fewer: one body for any number of rows. The last rows of a matrix
// take as long as a whole step; bodies for two rows and for one cost each file that has products a tenth of its compile time.
//
// The product is summed before it is added to C: thousands of small terms added one by one to a large float would each round.
template <bool Accumulate, index_t Vectors>
inline void multiply(const matrix_in& a, const float* b, index_t inner, const panel_out& c, index_t first_row,
                     index_t count) {
    constexpr index_t sums = product_rows(Vectors) * Vectors;
    registers<sums> sum;
    products<product_rows(Vectors), Vectors>(a, first_row, count, b, inner, sum);
    const auto put = [](float* to, floats x, auto some) KVTRIM_INLINED {
        if constexpr (Accumulate) { x = x + some.load(to); }
        some.store(to, x);
    };
    // The last two vectors of a row may be cut off; with fewer columns the caller takes half as many vectors.
    const bool is_whole = c.columns >= Vectors * lanes;
    const first_lanes cut[] = {first_lanes(c.columns - (Vectors - 2) * lanes),
                               first_lanes(c.columns - (Vectors - 1) * lanes)};
    float* const first = c.data + first_row * c.row;
    KVTRIM_UNROLL
    for (index_t n = 0; n < sums; ++n) {
        if (n / Vectors >= count) { continue; }
        float* const to = first + n / Vectors * c.row + n % Vectors * lanes;
        if (is_whole || n % Vectors < Vectors / 2) {
            put(to, sum[n], all_lanes{});
        } else {
            put(to, sum[n], cut[n % Vectors + 2 - Vectors]);
        }
    }
}

// C = (or +=) A * B for any number of rows.
template <bool Accumulate, index_t Vectors = product_vectors>
inline void multiply_rows(const matrix_in& a, const float* b, index_t inner, const panel_out& c,
                          index_t rows) {
    if constexpr (Vectors > 1) {
        if (c.columns <= Vectors / 2 * lanes) {
            return multiply_rows<Accumulate, Vectors / 2>(a, b, inner, c, rows);
        }
    }
    constexpr index_t most = product_rows(Vectors);
    for (index_t r = 0; r < rows; r += most) {
        multiply<Accumulate, Vectors>(a, b, inner, c, r, std::min(most, rows - r));
    }
}

// Lane j of x[i] and lane i of x[j] are exchanged. Seen as one row of lanes * lanes elements, each round is a perfect shuffle
// of its halves, which rotates the bits of an element's number by one; log2(lanes) rounds exchange row and column.
KVTRIM_INLINE void transpose(registers<lanes>& x) {
    KVTRIM_UNROLL
    for (index_t round = 1; round < lanes; round *= 2) {
        registers<lanes> y;
        KVTRIM_UNROLL
        for (index_t i = 0; i < lanes / 2; ++i) {
            y[2 * i] = zip_low(x[i], x[i + lanes / 2]);
            y[2 * i + 1] = zip_high(x[i], x[i + lanes / 2]);
        }
        KVTRIM_UNROLL
        for (index_t i = 0; i < lanes; ++i) { x[i] = y[i]; }
    }
}

// panel [inner][panel_columns] = the first `columns` of B, padded with zeros. Rows or columns of B have no gaps.
inline void pack_panel(const matrix_in& b, index_t inner, index_t columns, float* panel) {
    if (b.step == 1) {
        const auto copy = [&](auto lanes_of) KVTRIM_INLINED {
            for (index_t k = 0; k < inner; ++k) {
                KVTRIM_UNROLL
                for (index_t v = 0; v < product_vectors; ++v) {
                    const index_t at = v * lanes;
                    store(panel + k * panel_columns + at, lanes_of(v).load(b.data + k * b.row + at));
                }
            }
        };
        if (columns >= panel_columns) {
            copy([](index_t) KVTRIM_INLINED { return all_lanes{}; });
        } else {
            copy([&](index_t v) KVTRIM_INLINED { return first_lanes(columns - v * lanes); });
        }
        return;
    }
    for (index_t j = 0; j < panel_columns; j += lanes) {
        const auto turn = [&](index_t k, index_t count, auto some) KVTRIM_INLINED {
            registers<lanes> x;
            KVTRIM_UNROLL
            for (index_t i = 0; i < lanes; ++i) {
                x[i] = j + i < columns ? some.load(b.data + (j + i) * b.step + k) : broadcast(0.0f);
            }
            transpose(x);
            float* to = panel + k * panel_columns + j;
            KVTRIM_UNROLL
            for (index_t i = 0; i < lanes; ++i, to += panel_columns) {
                if (i < count) { store(to, x[i]); }
            }
        };
        index_t k = 0;
        for (; k + lanes <= inner; k += lanes) { turn(k, lanes, all_lanes{}); }
        if (k < inner) { turn(k, inner - k, first_lanes(inner - k)); }
    }
}

} // namespace KVTRIM_NAMESPACE::kernels::KVTRIM_TARGET
