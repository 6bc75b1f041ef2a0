// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The kernels of each instruction set: the one place that chooses.
//
// Templates, as all functions here that are slow to compile, so that a file pays for what it uses.

#include <kvtrim/kernels/projection_ops_amx.hpp>
#include <kvtrim/kernels/projection_ops_avx2.hpp>
#include <kvtrim/kernels/projection_ops_avx512.hpp>
#include <kvtrim/kernels/window_ops_amx.hpp>
#include <kvtrim/kernels/window_ops_avx2.hpp>
#include <kvtrim/kernels/window_ops_avx512.hpp>

namespace kvtrim::kernels {

template <class = void>
[[nodiscard]] const window_kernels& window_kernels_of(cpu_level level) {
    static constexpr window_kernels plain{portable::pack_queries,
                                          portable::logits,
                                          nullptr,
                                          nullptr,
                                          portable::raise_maximum,
                                          portable::add_exponentials,
                                          portable::attention,
                                          portable::add_row_sums,
                                          portable::raise_to_pooled};
#if KVTRIM_HAS_X86
    static constexpr window_kernels eight{
        avx2::pack_queries,   avx2::logits,           nullptr,         nullptr,
        avx2::raise_maximum,  avx2::add_exponentials, avx2::attention, avx2::add_row_sums,
        avx2::raise_to_pooled};
    static constexpr window_kernels sixteen{avx512::pack_queries,
                                            avx512::logits,
                                            nullptr,
                                            nullptr,
                                            avx512::raise_maximum_of_rows,
                                            avx512::add_exponentials_of_rows,
                                            avx512::attention_of_rows,
                                            avx512::add_row_sums,
                                            avx512::raise_to_pooled};
    static constexpr window_kernels tiles = [] {
        window_kernels steps = sixteen;
        steps.pack_bf16_queries = amx::pack_queries;
        steps.bf16_logits = amx::logits<amx_tiles>;
        return steps;
    }();
    if (level >= cpu_level::amx) { return tiles; }
    if (level >= cpu_level::avx512) { return sixteen; }
    if (level >= cpu_level::avx2) { return eight; }
#endif
    static_cast<void>(level);
    return plain;
}

template <class = void>
[[nodiscard]] const projection_kernels& projection_kernels_of(cpu_level level) {
    static constexpr projection_kernels plain{portable::pack_matrix, portable::add_l1, portable::add_gram_l2,
                                              nullptr, nullptr};
#if KVTRIM_HAS_X86
    static constexpr projection_kernels eight{avx2::pack_matrix, avx2::add_l1, avx2::add_gram_l2, nullptr,
                                              nullptr};
    static constexpr projection_kernels sixteen{avx512::pack_matrix, avx512::add_l1, avx512::add_gram_l2,
                                                nullptr, nullptr};
    static constexpr projection_kernels tiles{avx512::pack_matrix, avx512::add_l1, avx512::add_gram_l2,
                                              amx::pack_matrix, amx::add_l1<amx_tiles>};
    if (level >= cpu_level::amx) { return tiles; }
    if (level >= cpu_level::avx512) { return sixteen; }
    if (level >= cpu_level::avx2) { return eight; }
#endif
    static_cast<void>(level);
    return plain;
}

// Those that are in force now.
[[nodiscard]] inline const window_kernels& active_window_kernels() {
    return window_kernels_of(active_cpu_level());
}
[[nodiscard]] inline const projection_kernels& active_projection_kernels() {
    return projection_kernels_of(active_cpu_level());
}

// Without these each including file compiles the kernels that it uses: kernels/compiled.hpp.
#if defined(KVTRIM_COMPILED_KERNELS)
extern template const window_kernels& window_kernels_of<void>(cpu_level);
extern template const projection_kernels& projection_kernels_of<void>(cpu_level);
#endif

} // namespace kvtrim::kernels
