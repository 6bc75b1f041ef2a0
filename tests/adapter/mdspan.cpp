// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// There is no adapter for mdspan: it is a view as it is. Compiled where Kokkos' mdspan is found (std::mdspan has the same
// members, with v[i, j, k] for v(i, j, k), and needs C++23); own::mdspan_like (tests/core/own_views.hpp) stands for it elsewhere.
#include <kvtrim/compact/compact_in_place.hpp>

#include "support/catch.hpp"

#include <mdspan/mdspan.hpp>

#include <algorithm>
#include <array>
#include <vector>

using namespace kvtrim;

namespace {

using extents = Kokkos::dextents<int, 3>;

// Whether a span [2, 5, 3] reads through kvtrim as through itself, and is cut in place like any strided view.
template <class Span>
bool reads_and_cuts(const Span& span) {
    static_assert(strided_view<Span, 3> && cache_view<Span>);
    for (index_t h = 0; h < 2; ++h) {
        for (index_t t = 0; t < 5; ++t) {
            for (index_t d = 0; d < 3; ++d) {
                span(static_cast<int>(h), static_cast<int>(t), static_cast<int>(d)) =
                    static_cast<float>(100 * h + 10 * t + d);
            }
        }
    }
    keep_plan plan;
    const index_t counts[] = {2, 3};
    if (!plan.reset(counts).ok()) { return false; }
    const keep_plan::table_index kept[2][3] = {{1, 4, 0}, {0, 2, 3}};
    for (index_t h = 0; h < 2; ++h) {
        std::copy_n(kept[h], plan.kept_tokens(h), plan.writable_row(h).begin());
    }
    std::vector<float> tile(15);
    load_rows(span, 1, 0, 5, tile.data());
    bool same = tile[14] == 142 && tile[3] == 110 && compact_in_place(span, plan).ok();
    for (index_t h = 0; h < 2; ++h) {
        load_rows(span, h, 0, plan.kept_tokens(h), tile.data());
        for (index_t i = 0; i < 3 * plan.kept_tokens(h); ++i) {
            const auto token = static_cast<float>(kept[h][i / 3]);
            same = same && tile[static_cast<std::size_t>(i)] ==
                               100 * static_cast<float>(h) + 10 * token + static_cast<float>(i % 3);
        }
    }
    return same;
}

} // namespace

TEST_CASE("mdspan: layouts right, left and stride are views as they are", "[adapter]") {
    std::vector<float> memory(64);
    CHECK(reads_and_cuts(Kokkos::mdspan<float, extents>(memory.data(), 2, 5, 3)));
    CHECK(reads_and_cuts(Kokkos::mdspan<float, extents, Kokkos::layout_left>(memory.data(), 2, 5, 3)));
    const Kokkos::layout_stride::mapping<extents> token_major(extents(2, 5, 3), std::array<int, 3>{4, 8, 1});
    CHECK(reads_and_cuts(Kokkos::mdspan<float, extents, Kokkos::layout_stride>(memory.data(), token_major)));
}
