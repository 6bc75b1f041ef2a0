// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

namespace KVTRIM_NAMESPACE::kernels::KVTRIM_TARGET {

using namespace simd::KVTRIM_TARGET;

// A row that has seen only masked logits has no finite maximum; relative to 0 its weights are 0.
KVTRIM_INLINE floats finite_or_zero(floats maximum) {
    return keep(greater(maximum, broadcast(masked_logit)), maximum);
}

// Calls step.run<Vectors>(first row, lanes) until all rows are done: `Most` vectors at a time, one, and what is left.
template <index_t Most, class Step>
KVTRIM_INLINE void for_all_rows(index_t rows, const Step& step) {
    index_t r = 0;
    for (; r + Most * lanes <= rows; r += Most * lanes) { step.template run<Most>(r, all_lanes{}); }
    for (; r + lanes <= rows; r += lanes) { step.template run<1>(r, all_lanes{}); }
    if (r < rows) { step.template run<1>(r, first_lanes(rows - r)); }
}

// Vectors of exponentials at a time: of four lanes in 16 registers no more than two, as intermediate results need the others.
inline constexpr index_t exponential_vectors = lanes > 4 || product_registers > 12 ? 4 : 2;

// found [rows] = the highest logit of each row; NaN counts as masked.
struct highest_step {
    const float* tile;
    index_t tokens, rows;
    float* found;

    template <index_t Vectors, class Lanes>
    void run(index_t first, Lanes some) const {
        registers<Vectors> highest;
        KVTRIM_UNROLL
        for (index_t v = 0; v < Vectors; ++v) { highest[v] = broadcast(masked_logit); }
        for (index_t t = 0; t < tokens; ++t) {
            KVTRIM_UNROLL
            for (index_t v = 0; v < Vectors; ++v) {
                highest[v] = max(some.load(tile + t * rows + first + lanes * v), highest[v]);
            }
        }
        KVTRIM_UNROLL
        for (index_t v = 0; v < Vectors; ++v) { some.store(found + first + lanes * v, highest[v]); }
    }
};

struct exponentials_step {
    const float* tile;
    index_t tokens, rows;
    const float* maximum;
    double* sums;

    template <index_t Vectors, class Lanes>
    void run(index_t first, Lanes some) const {
        registers<Vectors> highest, sum;
        KVTRIM_UNROLL
        for (index_t v = 0; v < Vectors; ++v) {
            highest[v] = finite_or_zero(some.load(maximum + first + lanes * v));
            sum[v] = broadcast(0.0f);
        }
        for (index_t t = 0; t < tokens; ++t) {
            KVTRIM_UNROLL
            for (index_t v = 0; v < Vectors; ++v) {
                const floats logit = some.load(tile + t * rows + first + lanes * v);
                sum[v] = sum[v] + weight_of(logit, highest[v]);
            }
        }
        float partial[static_cast<std::size_t>(Vectors * lanes)];
        KVTRIM_UNROLL
        for (index_t v = 0; v < Vectors; ++v) { store(partial + lanes * v, sum[v]); }
        for (index_t r = 0; r < (Vectors - 1) * lanes + some.count(); ++r) {
            sums[first + r] += static_cast<double>(partial[r]);
        }
    }
};

struct attention_step {
    const float* tile;
    index_t tokens, rows;
    const float* maximum;
    const float* weight;
    float* out;

    template <index_t Vectors, class Lanes>
    void run(index_t first, Lanes some) const {
        registers<Vectors> highest, weights;
        KVTRIM_UNROLL
        for (index_t v = 0; v < Vectors; ++v) {
            highest[v] = some.load(maximum + first + lanes * v);
            weights[v] = some.load(weight + first + lanes * v);
        }
        for (index_t t = 0; t < tokens; ++t) {
            KVTRIM_UNROLL
            for (index_t v = 0; v < Vectors; ++v) {
                const index_t at = t * rows + first + lanes * v;
                some.store(out + at, weight_of(some.load(tile + at), highest[v]) * weights[v]);
            }
        }
    }
};

inline void pack_queries(const float* queries, index_t first_row, index_t count, index_t head_dim,
                         float scale, float* packed) {
    for (index_t i = 0; i < count; ++i) {
        const index_t row = first_row + i;
        float* const to = packed + row / panel_columns * panel_columns * head_dim + row % panel_columns;
        for (index_t d = 0; d < head_dim; ++d) { to[d * panel_columns] = scale * queries[i * head_dim + d]; }
    }
}

inline void logits(const float* keys, index_t key_stride, index_t tokens, const float* packed, index_t rows,
                   index_t head_dim, float soft_cap, float* out, soon_read next) {
    // The next keys are prefetched evenly over all panels. If the first panel alone read them, it would wait for memory, and
    // the other panels would leave memory idle.
    constexpr index_t step_tokens = product_registers; // whole steps of the product
    const index_t panels = (rows + panel_columns - 1) / panel_columns;
    even_prefetch soon(next, panels * ((tokens + step_tokens - 1) / step_tokens));
    for (index_t r = 0; r < rows; r += panel_columns) {
        for (index_t t = 0; t < tokens; t += step_tokens) {
            soon.step();
            multiply_rows<false>({keys + t * key_stride, key_stride, 1}, packed + r * head_dim, head_dim,
                                 {out + t * rows + r, rows, std::min(panel_columns, rows - r)},
                                 std::min(step_tokens, tokens - t));
        }
    }
    if (soft_cap > 0) { cap_logits(out, tokens * rows, logit_cap{soft_cap}); }
}

inline void raise_maximum(const float* tile, index_t tokens, index_t rows, float* maximum, float* rescale) {
    for_all_rows<4>(rows, highest_step{tile, tokens, rows, rescale});
    for (index_t r = 0; r < rows; r += lanes) {
        const first_lanes some(std::min(lanes, rows - r));
        const floats old = some.load(maximum + r), found = some.load(rescale + r);
        const raised_maximum raised(old, found);
        some.store(maximum + r, raised.highest);
        some.store(rescale + r, raised.rescale(weight_of(old, raised.highest)));
    }
}

inline void add_exponentials(const float* tile, index_t tokens, index_t rows, const float* maximum,
                             double* sums) {
    for_all_rows<exponential_vectors>(rows, exponentials_step{tile, tokens, rows, maximum, sums});
}

inline void attention(const float* tile, index_t tokens, index_t rows, const float* maximum,
                      const float* weight, float* out) {
    for_all_rows<exponential_vectors>(rows, attention_step{tile, tokens, rows, maximum, weight, out});
}

inline void add_row_sums(const float* attention, index_t tokens, index_t rows, index_t begin, index_t end,
                         float* sums) {
    if (end - begin < lanes) { // the few rows of one query: its lanes are found once
        const first_lanes some(end - begin);
        for (index_t t = 0; t < tokens; ++t) {
            sums[t] += sum_of_lanes(some.load(attention + t * rows + begin));
        }
        return;
    }
    sum_rows(
        tokens, end - begin,
        [&](index_t t, floats sum, index_t r, auto some)
            KVTRIM_INLINED { return sum + some.load(attention + t * rows + begin + r); },
        [&](index_t t, float sum) KVTRIM_INLINED { sums[t] += sum; });
}

inline constexpr window_kernels window_table{pack_queries,     logits,    raise_maximum,
                                             add_exponentials, attention, add_row_sums};

} // namespace KVTRIM_NAMESPACE::kernels::KVTRIM_TARGET
