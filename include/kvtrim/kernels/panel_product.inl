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

// ---- Rows ----

// The sum over all elements of a row, by step(sum, position, lanes). Long rows have four independent sums, so that additions
// do not wait for each other.
template <bool IsLong, class Step>
KVTRIM_INLINE float sum_of_elements(index_t length, const Step& step) {
    floats total = broadcast(0.0f);
    index_t d = 0;
    if constexpr (IsLong) {
        registers<4> sum;
        KVTRIM_UNROLL
        for (index_t v = 0; v < 4; ++v) { sum[v] = broadcast(0.0f); }
        for (; d + 4 * lanes <= length; d += 4 * lanes) {
            KVTRIM_UNROLL
            for (index_t v = 0; v < 4; ++v) { sum[v] = step(sum[v], d + v * lanes, all_lanes{}); }
        }
        total = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    }
    for (; d + lanes <= length; d += lanes) { total = step(total, d, all_lanes{}); }
    if (d < length) { total = step(total, d, first_lanes(length - d)); }
    return sum_of_lanes(total);
}

// Calls take(i, sum of row i) for `count` rows; step(i, sum, position, lanes) as above.
template <class Step, class Take>
KVTRIM_INLINE void sum_rows(index_t count, index_t length, const Step& step, const Take& take) {
    const auto sum_all = [&](auto is_long) KVTRIM_INLINED {
        for (index_t i = 0; i < count; ++i) {
            const auto of_row = [&](floats sum, index_t d, auto some)
                                    KVTRIM_INLINED { return step(i, sum, d, some); };
            take(i, sum_of_elements<decltype(is_long)::value>(length, of_row));
        }
    };
    if (length >= 8 * lanes) {
        sum_all(std::true_type{});
    } else {
        sum_all(std::false_type{});
    }
}

// Calls step(position, lanes) for all elements.
template <class Step>
KVTRIM_INLINE void for_each_vector(index_t count, const Step& step) {
    index_t i = 0;
    for (; i + lanes <= count; i += lanes) { step(i, all_lanes{}); }
    if (i < count) { step(i, first_lanes(count - i)); }
}

// ---- Logits ----

// e^(logit - maximum), the logit at most the largest float; 0 for NaN and below e^-75: so small a weight does not change a
// float sum, and denormals would make products ten times slower.
KVTRIM_INLINE floats weight_of(floats logit, floats maximum) {
    const floats x = min(broadcast(largest_logit), logit) - maximum;
    return keep(greater(x, broadcast(-75.0f)), exp2(x * broadcast(log2_e)));
}

// The same for logits in units of log 2: one multiplication less.
KVTRIM_INLINE floats binary_weight_of(floats logit, floats maximum) {
    const floats x = min(broadcast(largest_logit), logit) - maximum;
    return keep(greater(x, broadcast(-108.0f)), exp2(x));
}

// cap * tanh(logit / cap) with tanh x = 1 - 2 / (e^2x + 1); for small x, where that is mostly rounding error,
// x - x^3 / 3 + 2 x^5 / 15 - 17 x^7 / 315. The input is multiplied by `scale`, the output by `unit`.
struct logit_cap {
    float soft_cap, unit = 1.0f, scale = 1.0f;

    [[nodiscard]] KVTRIM_INLINE floats operator()(floats logit) const {
        const floats one = broadcast(1.0f);
        const floats x = logit * broadcast(2 * 1.44269504f / soft_cap * scale);
        // beyond 60 tanh is 1 in float
        const floats power = exp2(max(broadcast(-60.0f), min(broadcast(60.0f), x)));
        const floats tanh = one - broadcast(2.0f) / (power + one);
        const floats ratio = logit * broadcast(scale / soft_cap);
        const floats square = ratio * ratio;
        floats series = fma(square, broadcast(-17.0f / 315), broadcast(2.0f / 15));
        series = fma(square, series, broadcast(-1.0f / 3));
        series = fma(square, series, one);
        const floats small = logit * broadcast(unit * scale) * series;
        return select(greater(broadcast(0.04f), square), small, broadcast(unit * soft_cap) * tanh);
    }
};

// In place, with one body for whole vectors and the rest: the last vector ends at the last logit. Logits that it has in common
// with the one before are those of before the cap, so that none is capped twice. Fewer logits than lanes move to a full vector.
inline void cap_logits(float* logits, index_t count, const logit_cap& cap) {
    float few[static_cast<std::size_t>(lanes)] = {};
    const bool are_few = count < lanes;
    if (are_few) { std::copy_n(logits, count, few); }
    float* const at = are_few ? few : logits;
    const index_t last = std::max(count, lanes) - lanes;
    const floats uncapped = load(at + last);
    for (index_t i = 0; i < count; i += lanes) {
        const bool is_whole = i <= last;
        store(at + (is_whole ? i : last), cap(is_whole ? load(at + i) : uncapped));
    }
    if (are_few) { std::copy_n(few, count, logits); }
}

} // namespace KVTRIM_NAMESPACE::kernels::KVTRIM_TARGET
