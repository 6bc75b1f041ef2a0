// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#include "weight.hpp"

#include "threads.hpp"

#include <kvtrim/simd/convert.hpp>

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

namespace lm {
namespace {

// ---- Loops over lanes, written once and compiled for each instruction set ----
//
// A vector type of 4, 8 or 16 floats is one register of its level; every function here is part of one that is compiled for
// the level (KVTRIM_TARGET_AVX2, KVTRIM_TARGET_AVX512), so none is called with vectors as arguments.

template <std::size_t Lanes>
struct lanes {
    typedef float type
        __attribute__((vector_size(Lanes * sizeof(float)), aligned(alignof(float)), may_alias));
};

#define LM_INLINE [[gnu::always_inline]] inline

// Rows of x that the product with a decoded row takes at a time.
constexpr index_t row_tokens = 4;
// Rows of W that are decoded together: two registers of lanes.
constexpr index_t panel_rows = 32;
// Above so many rows of x panels pay.
constexpr index_t few_tokens = 48;

// to [Tokens] at stride = <x[t], w>
template <std::size_t Lanes, std::size_t Tokens>
LM_INLINE void dot_rows(const float* x, std::size_t columns, const float* w, float* to, index_t stride) {
    using vector = typename lanes<Lanes>::type;
    constexpr std::size_t chains = 16 / Lanes * (Tokens > 1 ? 1 : 4); // sums that do not wait for each other
    vector sums[Tokens][chains] = {};
    std::size_t k = 0;
    for (; k + Lanes * chains <= columns; k += Lanes * chains) {
        for (std::size_t c = 0; c < chains; ++c) {
            const vector weights = *reinterpret_cast<const vector*>(w + k + c * Lanes);
            for (std::size_t t = 0; t < Tokens; ++t) {
                sums[t][c] += weights * *reinterpret_cast<const vector*>(x + t * columns + k + c * Lanes);
            }
        }
    }
    for (std::size_t t = 0; t < Tokens; ++t, to += stride) {
        for (std::size_t c = 1; c < chains; ++c) { sums[t][0] += sums[t][c]; }
        float sum = 0;
        for (std::size_t i = 0; i < Lanes; ++i) { sum += sums[t][0][i]; }
        for (std::size_t rest = k; rest < columns; ++rest) { sum += x[t * columns + rest] * w[rest]; }
        *to = sum;
    }
}

// to [Tokens, panel_rows] at stride = x [Tokens, columns] times panel [columns, panel_rows]
template <std::size_t Lanes, std::size_t Tokens>
LM_INLINE void tile_product(const float* x, std::size_t columns, const float* panel, float* to,
                            index_t stride) {
    using vector = typename lanes<Lanes>::type;
    for (std::size_t first = 0; first < panel_rows; first += 2 * Lanes) {
        vector sums[Tokens][2] = {};
        for (std::size_t k = 0; k < columns; ++k) {
            const float* const row = panel + k * panel_rows + first;
            const vector left = *reinterpret_cast<const vector*>(row);
            const vector right = *reinterpret_cast<const vector*>(row + Lanes);
#pragma GCC unroll 16
            for (std::size_t t = 0; t < Tokens; ++t) {
                const float value = x[t * columns + k];
                sums[t][0] += value * left;
                sums[t][1] += value * right;
            }
        }
        float* row = to + first;
        for (std::size_t t = 0; t < Tokens; ++t, row += stride) {
            *reinterpret_cast<vector*>(row) = sums[t][0];
            *reinterpret_cast<vector*>(row + Lanes) = sums[t][1];
        }
    }
}

// The loops of one level: x [tokens, columns], to [tokens, ...] at stride.
struct level_loops {
    void (*dots)(const float* x, index_t tokens, std::size_t columns, const float* w, float* to,
                 index_t stride);
    void (*tiles)(const float* x, index_t tokens, std::size_t columns, const float* panel, float* to,
                  index_t stride);
};

#define LM_LOOPS(name, target, width, tile_tokens)                                                           \
    target void dots_##name(const float* x, index_t tokens, std::size_t columns, const float* w, float* to,  \
                            index_t stride) {                                                                \
        for (; tokens >= row_tokens; tokens -= row_tokens) {                                                 \
            dot_rows<width, row_tokens>(x, columns, w, to, stride);                                          \
            x += row_tokens * columns, to += row_tokens * stride;                                            \
        }                                                                                                    \
        for (; tokens > 0; --tokens, x += columns, to += stride) {                                           \
            dot_rows<width, 1>(x, columns, w, to, stride);                                                   \
        }                                                                                                    \
    }                                                                                                        \
    target void tiles_##name(const float* x, index_t tokens, std::size_t columns, const float* panel,        \
                             float* to, index_t stride) {                                                    \
        for (; tokens >= tile_tokens; tokens -= tile_tokens) {                                               \
            tile_product<width, tile_tokens>(x, columns, panel, to, stride);                                 \
            x += tile_tokens * columns, to += tile_tokens * stride;                                          \
        }                                                                                                    \
        for (; tokens > 0; --tokens, x += columns, to += stride) {                                           \
            tile_product<width, 1>(x, columns, panel, to, stride);                                           \
        }                                                                                                    \
    }                                                                                                        \
    constexpr level_loops loops_##name{dots_##name, tiles_##name};

LM_LOOPS(portable, , 4, 4)
#if KVTRIM_HAS_X86
LM_LOOPS(avx2, KVTRIM_TARGET_AVX2, 8, 4)
LM_LOOPS(avx512, KVTRIM_TARGET_AVX512, 16, 12)
#endif

const level_loops& active_loops() {
#if KVTRIM_HAS_X86
    if (kvtrim::active_cpu_level() >= kvtrim::cpu_level::avx512) { return loops_avx512; }
    if (kvtrim::active_cpu_level() >= kvtrim::cpu_level::avx2) { return loops_avx2; }
#endif
    return loops_portable;
}

// ---- One token: a row's blocks are decoded in registers ----

#if KVTRIM_HAS_X86
using kvtrim::block_q4_0, kvtrim::block_q4_1, kvtrim::block_q8_0;

KVTRIM_TARGET_AVX512 inline __m512 spread(kvtrim::f16 x) {
    return _mm512_maskz_broadcastss_ps(0xffff, _mm_cvtph_ps(_mm_cvtsi32_si128(x.bits)));
}
KVTRIM_TARGET_AVX512 inline __m128i sixteen_codes(const void* from) {
    return _mm_loadu_si128(static_cast<const __m128i*>(from));
}
// What each code of four bits means.
KVTRIM_TARGET_AVX512 inline __m512 code_values(const block_q4_1& block) {
    const __m512 codes = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_fmadd_ps(spread(block.scale), codes, spread(block.minimum));
}
KVTRIM_TARGET_AVX512 inline __m512 code_values(const block_q4_0& block) {
    const __m512 codes = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    return _mm512_mul_ps(spread(block.scale), codes);
}

// sums += the block's elements times x [32]
template <class Block>
KVTRIM_TARGET_AVX512 inline void add_products(const Block& block, const float* x, __m512& low, __m512& high) {
    const __m512 values = code_values(block); // a code chooses among them
    const __m512i codes = _mm512_maskz_cvtepu8_epi32(0xffff, sixteen_codes(block.codes.data()));
    const __m512i high_codes = _mm512_maskz_srli_epi32(0xffff, codes, 4);
    low = _mm512_fmadd_ps(_mm512_maskz_permutexvar_ps(0xffff, codes, values), _mm512_loadu_ps(x), low);
    high = _mm512_fmadd_ps(_mm512_maskz_permutexvar_ps(0xffff, high_codes, values), _mm512_loadu_ps(x + 16),
                           high);
}
KVTRIM_TARGET_AVX512 inline void add_products(const block_q8_0& block, const float* x, __m512& low,
                                              __m512& high) {
    const __m512 scale = spread(block.scale);
    const __m512i first = _mm512_maskz_cvtepi8_epi32(0xffff, sixteen_codes(block.codes.data()));
    const __m512i second = _mm512_maskz_cvtepi8_epi32(0xffff, sixteen_codes(block.codes.data() + 16));
    const __m512 scaled_x = _mm512_mul_ps(scale, _mm512_loadu_ps(x));
    const __m512 scaled_y = _mm512_mul_ps(scale, _mm512_loadu_ps(x + 16));
    low = _mm512_fmadd_ps(_mm512_maskz_cvtepi32_ps(0xffff, first), scaled_x, low);
    high = _mm512_fmadd_ps(_mm512_maskz_cvtepi32_ps(0xffff, second), scaled_y, high);
}

// Weights come from memory for each token, over pages at whose ends the processor's own prefetch stops.
constexpr index_t bytes_ahead = 2048;

// Rows [first, end) of W x, for x [columns] and W in blocks.
template <class Block>
KVTRIM_TARGET_AVX512 void multiply_token(const weight& w, const float* x, index_t first, index_t end,
                                         float* out) {
    for (index_t r = first; r < end; ++r) {
        const auto* const blocks = reinterpret_cast<const Block*>(w.row(r));
        __m512 low = _mm512_setzero_ps(), high = _mm512_setzero_ps();
        for (index_t b = 0; b < w.columns() / 32; ++b) {
            _mm_prefetch(reinterpret_cast<const char*>(blocks + b) + bytes_ahead, _MM_HINT_T0);
            add_products(blocks[b], x + b * 32, low, high);
        }
        alignas(64) float lanes_of_sum[16];
        _mm512_store_ps(lanes_of_sum, _mm512_add_ps(low, high));
        float sum = 0;
        for (const float lane : lanes_of_sum) { sum += lane; }
        out[r] = sum;
    }
}
#endif

// Whether it was done.
bool multiply_token_in_registers([[maybe_unused]] const weight& w, [[maybe_unused]] const float* x,
                                 [[maybe_unused]] index_t first, [[maybe_unused]] index_t end,
                                 [[maybe_unused]] float* out) {
#if KVTRIM_HAS_X86
    if (kvtrim::active_cpu_level() < kvtrim::cpu_level::avx512) { return false; }
    switch (w.format()) {
    case weight_format::q4_0:
        multiply_token<block_q4_0>(w, x, first, end, out);
        return true;
    case weight_format::q4_1:
        multiply_token<block_q4_1>(w, x, first, end, out);
        return true;
    case weight_format::q8_0:
        multiply_token<block_q8_0>(w, x, first, end, out);
        return true;
    default:
        break;
    }
#endif
    return false;
}

// ---- Parts of a product ----

// Columns [first, end) of out = x W^T, a row of W at a time.
void multiply_rows(const weight& w, const matrix& x, index_t first, index_t end, matrix& out) {
    if (x.rows() == 1 && multiply_token_in_registers(w, x.data(), first, end, out.data())) { return; }
    const level_loops& loops = active_loops();
    std::vector<float> row(static_cast<std::size_t>(w.columns()));
    for (index_t r = first; r < end; ++r) {
        const float* values = row.data();
        if (w.format() == weight_format::f32) {
            values = reinterpret_cast<const float*>(w.row(r));
        } else {
            w.decode_row(r, row.data());
        }
        loops.dots(x.data(), x.rows(), row.size(), values, out.data() + r, out.cols());
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
    const level_loops& loops = active_loops();
    if (count == panel_rows) {
        loops.tiles(x.data(), x.rows(), row.size(), panel.data(), out.data() + first, out.cols());
        return;
    }
    matrix wide(x.rows(), panel_rows); // out has no room behind the last rows of W
    loops.tiles(x.data(), x.rows(), row.size(), panel.data(), wide.data(), panel_rows);
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
        kvtrim::simd::widen(reinterpret_cast<const kvtrim::f16*>(row(r)), columns_, to);
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
