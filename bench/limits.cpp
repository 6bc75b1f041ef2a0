// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include "limits.hpp"

#include <kvtrim/kernels/amx_products.hpp>
#include <kvtrim/kernels/bfmmla_products.hpp>
#include <kvtrim/simd/choose.hpp>
#include <kvtrim/simd/simd.hpp>

#include <vector>

namespace bench {

// What the compiler may not know, so that no loop is computed ahead; sums stay near 2.
static volatile float half = 0.5f, one = 1.0f;
static thread_local volatile float result; // of the last loop, which nobody reads

} // namespace bench

#define KVTRIM_BODY "limits.inl"
#include <kvtrim/simd/for_each_target.inl>

#define KVTRIM_BODY "limits_bf16.inl"
#include <kvtrim/simd/for_each_bf16_target.inl>

namespace bench {

using kvtrim::cpu_level;

namespace {

register_loop float_products_of(cpu_level level) {
    return KVTRIM_CHOOSE(level, float_products);
}

register_loop products_of(cpu_level level) {
    return KVTRIM_CHOOSE_PRODUCTS(level, amx::bf16_products, bfmmla::bf16_products, float_products);
}

// The levels of this machine, the lowest first.
std::vector<cpu_level> levels() {
    std::vector<cpu_level> all;
    for (int i = 0; i <= static_cast<int>(kvtrim::best_cpu_level()); ++i) {
        const auto level = static_cast<cpu_level>(i);
        if (kvtrim::detail::detect_cpu_level(level) == level) { all.push_back(level); }
    }
    return all;
}

} // namespace

bool multiplies_bf16(cpu_level level) {
    return products_of(level).run != float_products_of(level).run;
}

cpu_level float_level(cpu_level level) {
    for (const cpu_level lower : levels()) {
        if (float_products_of(lower).run == float_products_of(level).run) { return lower; }
    }
    return level;
}

std::span<const level_limit> product_limits() {
    static const std::vector<level_limit> limits = [] {
        std::vector<level_limit> all;
        for (const cpu_level level : levels()) { all.push_back({level, products_of(level)}); }
        return all;
    }();
    return limits;
}

level_limit exponential_limit() {
    const cpu_level best = kvtrim::best_cpu_level();
    return {float_level(best), KVTRIM_CHOOSE(best, exponentials)};
}

void read_all(const float* data, index_t count) {
    (KVTRIM_CHOOSE(kvtrim::best_cpu_level(), read))(data, count);
}

} // namespace bench
