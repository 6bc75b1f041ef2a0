// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

namespace kvtrim::kernels::KVTRIM_TARGET {

using namespace simd::KVTRIM_TARGET;

inline constexpr index_t panel_columns = lanes * product_vectors;

// Rows of C in registers beside each other, when its rows are so many vectors.
[[nodiscard]] constexpr index_t product_rows(index_t vectors) {
    return std::min<index_t>(product_registers / vectors, 8);
}

// sum [Vectors * i + v] = A [first_row + i][inner] * vector v of B.
template <index_t Rows, index_t Vectors>
KVTRIM_INLINE void products(const matrix_in& a, index_t first_row, const float* b, index_t inner,
                            registers<Rows * Vectors>& sum) {
    constexpr index_t sums = Rows * Vectors;
    KVTRIM_UNROLL
    for (index_t n = 0; n < sums; ++n) { sum[n] = broadcast(0.0f); }
    const float* column = a.data + first_row * a.row;
    const index_t row = a.row, step = a.step;
    for (index_t k = 0; k < inner; ++k, column += step, b += panel_columns) {
        registers<Vectors> panel;
        KVTRIM_UNROLL
        for (index_t v = 0; v < Vectors; ++v) { panel[v] = load(b + lanes * v); }
        KVTRIM_UNROLL
        for (index_t n = 0; n < sums; ++n) {
            sum[n] = fma(broadcast(column[n / Vectors * row]), panel[n % Vectors], sum[n]);
        }
    }
}

// The product is summed before it is added to C: thousands of small terms added to one large float one by one would drift.
template <bool Accumulate, index_t Rows, index_t Vectors>
inline void multiply(const matrix_in& a, const float* b, index_t inner, const panel_out& c,
                     index_t first_row) {
    registers<Rows * Vectors> sum;
    products<Rows, Vectors>(a, first_row, b, inner, sum);
    float* const first = c.data + first_row * c.row;
    const auto put = [&](float* to, floats x, auto some) __attribute__((always_inline)) {
        if constexpr (Accumulate) { x = x + some.load(to); }
        some.store(to, x);
    };
    const bool whole = c.columns >= Vectors * lanes;
    const first_lanes last(c.columns - (Vectors - 1) * lanes);
    KVTRIM_UNROLL
    for (index_t n = 0; n < Rows * Vectors; ++n) {
        float* const to = first + n / Vectors * c.row + n % Vectors * lanes;
        if (n % Vectors + 1 < Vectors || whole) {
            put(to, sum[n], all_lanes{});
        } else {
            put(to, sum[n], last);
        }
    }
}

template <bool Accumulate, index_t Vectors>
inline void multiply_rows_of(const matrix_in& a, const float* b, index_t inner, const panel_out& c,
                             index_t rows) {
    constexpr index_t many = product_rows(Vectors);
    index_t r = 0;
    for (; r + many <= rows; r += many) { multiply<Accumulate, many, Vectors>(a, b, inner, c, r); }
    for (; r + 2 <= rows; r += 2) { multiply<Accumulate, 2, Vectors>(a, b, inner, c, r); }
    if (r < rows) { multiply<Accumulate, 1, Vectors>(a, b, inner, c, r); }
}

// C = (or +=) A * B for any number of rows.
template <bool Accumulate, index_t Vectors = product_vectors>
inline void multiply_rows(const matrix_in& a, const float* b, index_t inner, const panel_out& c,
                          index_t rows) {
    if constexpr (Vectors > 1) {
        if (c.columns <= (Vectors - 1) * lanes) {
            return multiply_rows<Accumulate, Vectors - 1>(a, b, inner, c, rows);
        }
    }
    multiply_rows_of<Accumulate, Vectors>(a, b, inner, c, rows);
}

// ---- Logits ----

// e^(logit - maximum), the logit at most the largest float; 0 for NaN, and below e^-75: such a weight is nothing to a float
// sum, and denormals would make products ten times slower.
KVTRIM_INLINE floats weight_of(floats logit, floats maximum) {
    const floats x = min(broadcast(largest_logit), logit) - maximum;
    return keep(greater(x, broadcast(-75.0f)), exp2(x * broadcast(1.44269504f)));
}

// cap * tanh(logit / cap) with tanh x = 1 - 2 / (e^2x + 1); for small x, where that is mostly rounding,
// x - x^3 / 3 + 2 x^5 / 15 - 17 x^7 / 315. What goes in is multiplied by `scale`, what comes out by `unit`.
struct logit_cap {
    float soft_cap, unit = 1.0f, scale = 1.0f;

    [[nodiscard]] KVTRIM_INLINE floats operator()(floats logit) const {
        const floats one = broadcast(1.0f);
        const floats x = logit * broadcast(2 * 1.44269504f / soft_cap * scale);
        // e^2x beyond 60 changes nothing
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

inline void cap_logits(float* logits, index_t count, const logit_cap& cap) {
    index_t i = 0;
    for (; i + lanes <= count; i += lanes) { store(logits + i, cap(load(logits + i))); }
    const first_lanes rest(count - i);
    rest.store(logits + i, cap(rest.load(logits + i)));
}

} // namespace kvtrim::kernels::KVTRIM_TARGET
