// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// The products of limits.cpp at levels that multiply bf16: compiled once for each instruction set that does.

namespace bench::KVTRIM_TARGET {

using namespace kvtrim::kernels::KVTRIM_TARGET;

// The products of one step of the kernels and nothing else, of zeros: between tiles, which configure() clears, or else between
// rows that stay in vector registers.
template <class Tiles, class Sums = sums_of_panel>
void multiply_bf16(index_t steps) {
    Tiles::configure();
    if constexpr (requires { Tiles::template zero<0>(); }) {
        for (index_t i = 0; i < steps; ++i) {
            Tiles::template multiply_add<0, 4, 6>();
            Tiles::template multiply_add<1, 4, 7>();
            Tiles::template multiply_add<2, 5, 6>();
            Tiles::template multiply_add<3, 5, 7>();
        }
    } else {
        const kvtrim::bf16 row[edge] = {}, panel[edge * edge] = {};
        const kvtrim::bf16* const rows[edge] = {row, row, row, row, row, row, row, row};
        constexpr index_t count = sizeof(Sums) / sizeof(floats);
        Sums sums;
        KVTRIM_UNROLL
        for (index_t n = 0; n < count; ++n) { sums[n] = broadcast(one); }
        for (index_t i = 0; i < steps; ++i) { multiply_step(rows, 0, panel, sums); }
        floats total = sums[0];
        KVTRIM_UNROLL
        for (index_t n = 1; n < count; ++n) { total = total + sums[n]; }
        result = sum_of_lanes(total);
    }
    Tiles::release();
}
inline constexpr register_loop bf16_products{1'000'000, 1.0 * (2 * edge * edge * edge), multiply_bf16<tiles>};

} // namespace bench::KVTRIM_TARGET
