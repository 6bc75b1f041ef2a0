// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include "limits.hpp"

#include <kvtrim/simd/amx_tiles.hpp>
#include <kvtrim/simd/cpu_level.hpp>
#include <kvtrim/simd/simd.hpp>

#include <Eigen/Core>

#include <cstring>
#include <vector>

namespace bench {

namespace {

using four_floats = float __attribute__((vector_size(16)));
using sixteen_floats = float __attribute__((vector_size(64)));

// What the compiler may not know, so that no loop is computed ahead; sums stay near 2.
volatile float half = 0.5f, one = 1.0f;

// Makes the compiler believe that `values` are used.
template <class T>
[[gnu::always_inline]] inline void use(const T& values) {
    __asm__ volatile("" ::"r"(&values) : "memory");
}

// ---- Products ----------------------------------------------------------------------------------

// As many independent sums as hide the latency and fit the registers; they start apart, or they would be computed once.

void multiply_add_portable(index_t steps) {
    four_floats sum[12];
    for (auto& s : sum) { s = four_floats{} + one; }
    const four_floats factor = four_floats{} + half, addend = four_floats{} + one;
    for (index_t i = 0; i < steps; ++i) {
        for (auto& s : sum) { s = s * factor + addend; }
    }
    use(sum);
}

#if KVTRIM_HAS_X86

KVTRIM_TARGET_AVX2 void multiply_add_avx2(index_t steps) {
    __m256 sum[12];
    for (auto& s : sum) { s = _mm256_set1_ps(one); }
    const __m256 factor = _mm256_set1_ps(half), addend = _mm256_set1_ps(one);
    for (index_t i = 0; i < steps; ++i) {
        KVTRIM_UNROLL
        for (auto& s : sum) { s = _mm256_fmadd_ps(s, factor, addend); }
    }
    use(sum);
}

KVTRIM_TARGET_AVX512 void multiply_add_avx512(index_t steps) {
    __m512 sum[16];
    for (auto& s : sum) { s = _mm512_set1_ps(one); }
    const __m512 factor = _mm512_set1_ps(half), addend = _mm512_set1_ps(one);
    for (index_t i = 0; i < steps; ++i) {
        KVTRIM_UNROLL
        for (auto& s : sum) { s = _mm512_fmadd_ps(s, factor, addend); }
    }
    use(sum);
}

KVTRIM_TARGET_AMX void multiply_tiles(index_t steps) {
    using tiles = kvtrim::simd::amx_tiles;
    tiles::configure(); // all zeros
    for (index_t i = 0; i < steps; ++i) {
        tiles::multiply_add<0, 4, 6>();
        tiles::multiply_add<1, 4, 7>();
        tiles::multiply_add<2, 5, 6>();
        tiles::multiply_add<3, 5, 7>();
    }
    tiles::release();
}

#endif

// ---- Exponentials ------------------------------------------------------------------------------

void exponentials_portable(index_t steps) {
    Eigen::ArrayXf x = Eigen::ArrayXf::Constant(4096, -half), y(4096);
    for (index_t i = 0; i < steps; ++i) {
        y = x.exp();
        use(*y.data());
    }
}

#if KVTRIM_HAS_X86
KVTRIM_TARGET_AVX512 void exponentials_avx512(index_t steps) {
    __m512 power[16];
    for (auto& p : power) { p = _mm512_set1_ps(-half); }
    for (index_t i = 0; i < steps; ++i) {
        KVTRIM_UNROLL
        for (auto& p : power) { // of what it was, negative again
            p = kvtrim::simd::avx512::exp2(_mm512_sub_ps(_mm512_setzero_ps(), p));
        }
    }
    use(power);
}
#endif

// ---- Reading -----------------------------------------------------------------------------------

template <class Vector>
[[gnu::always_inline]] inline void read_with(const float* data, index_t count) {
    constexpr auto lanes = static_cast<index_t>(sizeof(Vector) / sizeof(float));
    constexpr index_t line = 16; // floats in a cache line
    const index_t quarter = count / 4;
    Vector sum[8] = {};
    for (index_t i = 0; i < quarter; i += 2 * line) {
        for (index_t stream = 0; stream < 4; ++stream) {
            const float* from = data + stream * quarter + i;
            for (index_t j = 0; j < 2 * line; j += lanes) {
                Vector x;
                std::memcpy(&x, from + j, sizeof x);
                sum[2 * stream + j / line] += x;
            }
        }
    }
    use(sum);
}

#if KVTRIM_HAS_X86
KVTRIM_TARGET_AVX512 void read_avx512(const float* data, index_t count) {
    read_with<sixteen_floats>(data, count);
}
#endif

} // namespace

std::span<const register_loop> product_limits() {
    static const std::vector<register_loop> loops = [] {
        std::vector<register_loop> all{{"products_portable", 4'000'000, 2 * 12 * 4, multiply_add_portable}};
#if KVTRIM_HAS_X86
        const kvtrim::cpu_level best = kvtrim::best_cpu_level();
        if (best >= kvtrim::cpu_level::avx2) {
            all.push_back({"products_avx2", 4'000'000, 2 * 12 * 8, multiply_add_avx2});
        }
        if (best >= kvtrim::cpu_level::avx512) {
            all.push_back({"products_avx512", 4'000'000, 2 * 16 * 16, multiply_add_avx512});
        }
        if (best >= kvtrim::cpu_level::amx) {
            all.push_back({"products_amx", 1'000'000, 2 * 4 * 16 * 16 * 32, multiply_tiles});
        }
#endif
        return all;
    }();
    return loops;
}

register_loop exponential_limit() {
#if KVTRIM_HAS_X86
    if (kvtrim::best_cpu_level() >= kvtrim::cpu_level::avx512) {
        return {"exp_avx512", 1'000'000, 16 * 16, exponentials_avx512};
    }
#endif
    return {"exp_portable", 4000, 4096, exponentials_portable};
}

void read_all(const float* data, index_t count) {
#if KVTRIM_HAS_X86
    if (kvtrim::best_cpu_level() >= kvtrim::cpu_level::avx512) {
        read_avx512(data, count);
        return;
    }
#endif
    read_with<four_floats>(data, count);
}

} // namespace bench
