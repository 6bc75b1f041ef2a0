// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

namespace KVTRIM_NAMESPACE::kernels::KVTRIM_TARGET {

using namespace simd::KVTRIM_TARGET;

// Rows are read once, faster than the hardware fetches by itself, most of all between two calls for neighbouring rows. So the
// line 4 KiB further on is prefetched; it may lie behind this call's rows, where that does no harm. With vectors of 4 floats
// 128 MiB of rows take 11.5 ms instead of 15; with vectors of 8 they would take 15.5 instead of 13.
inline void dots(const float* rows, index_t stride, index_t count, index_t length, const float* other,
                 float* out) {
    constexpr index_t line_floats = 16, floats_ahead = 1024;
    const index_t ahead = std::max<index_t>(1, floats_ahead / std::max<index_t>(1, length)) * stride;
    const auto load_row = [&](index_t i, index_t d, auto some) KVTRIM_INLINED {
        const float* const from = rows + i * stride + d;
        if (lanes != 8 && d % line_floats == 0) { simd::prefetch_to_l2(from + ahead); }
        return some.load(from);
    };
    // Two loops, because a compiler takes the choice out of one at -O3 alone.
    const auto take = [&](index_t i, float sum) KVTRIM_INLINED { out[i] = sum; };
    if (other == nullptr) {
        sum_rows(
            count, length,
            [&](index_t i, floats sum, index_t d, auto some) KVTRIM_INLINED {
                const floats x = load_row(i, d, some);
                return fma(x, x, sum);
            },
            take);
        return;
    }
    sum_rows(
        count, length,
        [&](index_t i, floats sum, index_t d, auto some)
            KVTRIM_INLINED { return fma(load_row(i, d, some), some.load(other + d), sum); },
        take);
}

inline void add_absolute(const float* rows, index_t stride, index_t count, index_t length, float* out) {
    sum_rows(
        count, length,
        [&](index_t i, floats sum, index_t d, auto some)
            KVTRIM_INLINED { return sum + absolute(some.load(rows + i * stride + d)); },
        [&](index_t i, float sum) KVTRIM_INLINED { out[i] += sum; });
}

inline void condition_logits(float* logits, index_t count, float soft_cap) {
    if (soft_cap > 0) { cap_logits(logits, count, logit_cap{soft_cap}); }
    for_each_vector(count, [&](index_t i, auto some) KVTRIM_INLINED {
        const floats x = some.load(logits + i); // max and min give their second operand for NaN
        some.store(logits + i, min(max(x, broadcast(masked_logit)), broadcast(largest_logit)));
    });
}

// Four vectors of columns at a time, so that the additions do not wait for each other.
inline void add_over_rows(const float* rows, index_t stride, index_t count, index_t length,
                          const float* weights, double* sums) {
    const auto add = [&](auto vectors, index_t first, auto some) KVTRIM_INLINED {
        constexpr index_t columns = decltype(vectors)::value;
        registers<columns> sum;
        KVTRIM_UNROLL
        for (index_t v = 0; v < columns; ++v) { sum[v] = broadcast(0.0f); }
        for (index_t i = 0; i < count; ++i) {
            const float weight = weights != nullptr ? weights[i] : 1.0f;
            if (weight == 0) { continue; }
            KVTRIM_UNROLL
            for (index_t v = 0; v < columns; ++v) {
                sum[v] = fma(some.load(rows + i * stride + first + v * lanes), broadcast(weight), sum[v]);
            }
        }
        KVTRIM_UNROLL
        for (index_t v = 0; v < columns; ++v) {
            float partial[lanes];
            store(partial, sum[v]);
            double* const to = sums + first + v * lanes;
            for (index_t i = 0; i < some.count(); ++i) { to[i] += static_cast<double>(partial[i]); }
        }
    };
    constexpr std::integral_constant<index_t, 4> four;
    constexpr std::integral_constant<index_t, 1> one;
    index_t d = 0;
    for (; d + 4 * lanes <= length; d += 4 * lanes) { add(four, d, all_lanes{}); }
    for (; d + lanes <= length; d += lanes) { add(one, d, all_lanes{}); }
    if (d < length) { add(one, d, first_lanes(length - d)); }
}

inline void add_row(const float* from, index_t count, float* into) {
    for_each_vector(count, [&](index_t i, auto some) KVTRIM_INLINED {
        some.store(into + i, some.load(into + i) + some.load(from + i));
    });
}

inline void add_squares(const float* from, index_t count, float* into) {
    for_each_vector(count, [&](index_t i, auto some) KVTRIM_INLINED {
        const floats x = some.load(from + i);
        some.store(into + i, fma(x, absolute(x), some.load(into + i)));
    });
}

inline void raise_row(const float* from, index_t count, float* into) {
    for_each_vector(count, [&](index_t i, auto some) KVTRIM_INLINED {
        some.store(into + i, max(some.load(from + i), some.load(into + i)));
    });
}

inline void weigh_row(float* row, index_t count, float added, const float* weights) {
    for_each_vector(count, [&](index_t i, auto some) KVTRIM_INLINED {
        some.store(row + i, (some.load(row + i) + broadcast(added)) * some.load(weights + i));
    });
}

inline void scale_rows(float* rows, index_t count, index_t length, const float* factors) {
    for (index_t i = 0; i < count; ++i, rows += length) {
        for_each_vector(length, [&](index_t d, auto some) KVTRIM_INLINED {
            some.store(rows + d, some.load(rows + d) * broadcast(factors[i]));
        });
    }
}

inline void softmax(float* row, index_t count) {
    float highest = masked_logit;
    for (index_t i = 0; i < count; ++i) { highest = std::max(highest, row[i]); }
    if (highest == masked_logit) {
        std::fill_n(row, count, 0.0f);
        return;
    }
    const float sum = sum_of_elements<true>(count, [&](floats partial, index_t i, auto some) KVTRIM_INLINED {
        const floats p = some.keep(weight_of(some.load(row + i), broadcast(highest)));
        some.store(row + i, p);
        return partial + p;
    });
    for_each_vector(count, [&](index_t i, auto some) KVTRIM_INLINED {
        some.store(row + i, some.load(row + i) * broadcast(1.0f / sum));
    });
}

inline constexpr row_kernels row_table{dots,        add_absolute, condition_logits, add_over_rows, add_row,
                                       add_squares, raise_row,    weigh_row,        scale_rows,    softmax};

} // namespace KVTRIM_NAMESPACE::kernels::KVTRIM_TARGET
