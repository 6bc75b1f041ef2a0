// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/adapter/eigen.hpp>

#include <kvtrim/cache/row_source.hpp>
#include <kvtrim/compact/compact_in_place.hpp>

#include "support/checks.hpp"

#include <cmath>
#include <type_traits>
#include <vector>

namespace {

using namespace kvtrim;
using row_major = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using column_major = Eigen::MatrixXf;
using any_stride = Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>;

static_assert(element<Eigen::half> && element<Eigen::bfloat16>);

// Whether a view's element (h, t, d) is m(row, column) for all its elements, read one by one and by rows.
template <class View, class M, class Place>
bool shows(const View& v, const M& m, Place&& place) {
    for (index_t h = 0; h < extent(v, 0); ++h) {
        std::vector<float> copied(static_cast<std::size_t>(extent(v, 1) * extent(v, 2)));
        load_rows(v, h, 0, extent(v, 1), copied.data());
        std::vector<float> tile(copied.size());
        const float_rows rows = read_rows(v, h, 0, extent(v, 1), tile.data());
        for (index_t t = 0; t < extent(v, 1); ++t) {
            for (index_t d = 0; d < extent(v, 2); ++d) {
                const auto [row, column] = place(h, t, d);
                const float expected = to_float(m(row, column));
                if (to_float(v(h, t, d)) != expected || rows.data[t * rows.stride + d] != expected ||
                    copied[static_cast<std::size_t>(t * extent(v, 2) + d)] != expected) {
                    return false;
                }
            }
        }
    }
    return true;
}

using place = std::pair<index_t, index_t>;

// All three views of one matrix [12, 12] with 3 heads of 4.
template <class M>
bool all_views_show(M& m) {
    const auto columns = heads_in_columns(m, 3);
    const auto rows = heads_in_rows(m, 3);
    const auto w_o = output_projection(m, 3);
    return columns.extent(0) == 3 && columns.extent(1) == 12 && columns.extent(2) == 4 &&
           rows.extent(0) == 3 && rows.extent(1) == 4 && rows.extent(2) == 12 && //
           w_o.extent(0) == 3 && w_o.extent(1) == 4 && w_o.extent(2) == 12 &&
           shows(columns, m,
                 [](index_t h, index_t t, index_t d) {
                     return place{t, 4 * h + d};
                 }) &&
           shows(rows, m,
                 [](index_t h, index_t t, index_t d) {
                     return place{4 * h + t, d};
                 }) &&
           shows(w_o, m, [](index_t h, index_t d, index_t y) {
               return place{y, 4 * h + d};
           });
}

template <class M>
M numbered() {
    M m(12, 12);
    for (Eigen::Index r = 0; r < 12; ++r) {
        for (Eigen::Index c = 0; c < 12; ++c) {
            m(r, c) = typename M::Scalar(static_cast<float>(12 * r + c)); // exact in 8 bits of mantissa
        }
    }
    return m;
}

} // namespace

TEST_CASE("Eigen views: matrices of any storage order show the heads where they lie", "[adapter]") {
    auto rows = numbered<row_major>();
    auto columns = numbered<column_major>();
    CHECK(all_views_show(rows));
    CHECK(all_views_show(columns));
}

TEST_CASE("Eigen views: 16-bit and double matrices are views as well", "[adapter]") {
    auto half = numbered<Eigen::Matrix<Eigen::half, 12, 12>>();
    auto bfloat = numbered<Eigen::Matrix<Eigen::bfloat16, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>>();
    auto wide = numbered<Eigen::MatrixXd>();
    CHECK(all_views_show(half));
    CHECK(all_views_show(bfloat));
    CHECK(all_views_show(wide));
}

TEST_CASE("Eigen views: maps, refs and blocks keep their strides", "[adapter]") {
    std::vector<float> memory(3000);
    for (std::size_t i = 0; i < memory.size(); ++i) { memory[i] = static_cast<float>(i); }
    Eigen::Map<row_major, 0, any_stride> wide_rows(memory.data(), 12, 12, any_stride(40, 3));
    Eigen::Map<column_major, 0, any_stride> wide_columns(memory.data(), 12, 12, any_stride(29, 2));
    Eigen::Map<row_major, 0, Eigen::OuterStride<>> outer(memory.data() + 5, 12, 12, Eigen::OuterStride<>(20));
    CHECK(all_views_show(wide_rows));
    CHECK(all_views_show(wide_columns));
    CHECK(all_views_show(outer));
    Eigen::Ref<row_major, 0, Eigen::OuterStride<>> ref(outer);
    CHECK(all_views_show(ref));
    auto big = column_major(20, 30);
    for (Eigen::Index i = 0; i < 600; ++i) { big.data()[i] = static_cast<float>(i); }
    auto block = big.block(3, 7, 12, 12);
    CHECK(all_views_show(block));
}

TEST_CASE("Eigen views: a temporary map, ref or block is a view of memory that stays", "[adapter]") {
    std::vector<float> memory(144);
    for (std::size_t i = 0; i < memory.size(); ++i) { memory[i] = static_cast<float>(i); }
    const auto show_memory = [&](const auto& columns, const auto& rows, const auto& w_o) {
        using element = std::remove_reference_t<decltype(*columns.data_handle())>;
        return columns.data_handle() == memory.data() && rows.data_handle() == memory.data() &&
               w_o.data_handle() == memory.data() && columns(1, 2, 3) == 31 && rows(1, 2, 3) == 75 &&
               w_o(1, 2, 3) == 42 && !std::is_const_v<element>;
    };
    using map = Eigen::Map<row_major>;
    using ref = Eigen::Ref<row_major, 0, Eigen::OuterStride<>>;
    CHECK(show_memory(heads_in_columns(map(memory.data(), 12, 12), 3),
                      heads_in_rows(map(memory.data(), 12, 12), 3),
                      output_projection(map(memory.data(), 12, 12), 3)));
    map named(memory.data(), 12, 12);
    CHECK(show_memory(heads_in_columns(ref(named), 3), heads_in_rows(ref(named), 3),
                      output_projection(ref(named), 3)));
    CHECK(show_memory(heads_in_columns(named.block(0, 0, 12, 12), 3), heads_in_rows(named.topRows(12), 3),
                      output_projection(named.leftCols(12), 3)));
    const Eigen::Ref<const row_major> read_only(named);
    CHECK(heads_in_rows(read_only, 3).data_handle() == memory.data());
    static_assert(std::is_same_v<decltype(heads_in_rows(read_only, 3)), strided<const float, 3>>);
}

TEST_CASE("Eigen views: a const matrix gives a view that can not be written through", "[adapter]") {
    const auto m = numbered<row_major>();
    CHECK(all_views_show(m));
    static_assert(std::is_same_v<decltype(heads_in_rows(m, 3)), strided<const float, 3>>);
    const std::vector<float> memory(144);
    const Eigen::Map<const row_major> map(memory.data(), 12, 12);
    CHECK(all_views_show(map));
    auto writable = numbered<row_major>();
    static_assert(std::is_same_v<decltype(heads_in_rows(writable, 3)), strided<float, 3>>);
}

TEST_CASE("Eigen views: no bytes are copied, so that compaction acts on the matrix", "[adapter]") {
    auto m = numbered<row_major>();
    const auto v = heads_in_columns(m, 3);
    CHECK(v.data_handle() == m.data());
    REQUIRE(compact_in_place(v, support::plan_of({{5}, {0, 7}, {}})).ok());
    CHECK(m(0, 0) == 60); // head 0, token 5
    CHECK(m(0, 4) == 4);
    CHECK(m(1, 4) == 88); // head 1, token 7
    CHECK(m(0, 8) == 8);
}

TEST_CASE("Eigen views: sizes that are no multiple of the heads give an empty view that says why",
          "[adapter][errors]") {
    auto m = numbered<row_major>();
    const auto says = [](const strided<float, 3>& view) {
        for (std::size_t r = 0; r < 3; ++r) { CHECK(view.extent(r) == 0); }
        CHECK(view.validate().code() == errc::invalid_parameter);
        return std::string(view.validate().what());
    };
    for (const index_t heads : {0, -3, 5}) {
        CHECK(says(heads_in_columns(m, heads)) == "heads_in_columns: cols must be heads * head_dim");
        CHECK(says(heads_in_rows(m, heads)) == "heads_in_rows: rows must be heads * tokens");
        CHECK(says(output_projection(m, heads)) == "output_projection: cols must be q_heads * head_dim");
    }
    const auto in = kvtrim::layer(heads_in_columns(m, 5), heads_in_columns(m, 3));
    CHECK(std::string(in.validate().what()) == "heads_in_columns: cols must be heads * head_dim");
}

TEST_CASE("Eigen elements: they convert as kvtrim's own 16-bit elements do", "[adapter]") {
    support::random r(1);
    int wrong = 0;
    for (int i = 0; i < 20000; ++i) {
        const auto x = static_cast<float>(r.normal() * std::exp2(30 * r.uniform() - 15));
        const Eigen::half half = element_traits<Eigen::half>::from_float(x);
        const Eigen::bfloat16 bfloat = element_traits<Eigen::bfloat16>::from_float(x);
        const f16 own_half = element_traits<f16>::from_float(x);
        const bf16 own_bfloat = element_traits<bf16>::from_float(x);
        wrong += half.x == own_half.bits && to_float(half) == to_float(own_half) ? 0 : 1;
        wrong += bfloat.value == own_bfloat.bits && to_float(bfloat) == to_float(own_bfloat) ? 0 : 1;
    }
    CHECK(wrong == 0);
}

TEST_CASE("heads_in_columns, heads_in_rows, output_projection: strides beyond what memory can hold give "
          "empty views",
          "[adapter][errors]") {
    std::vector<float> data(64);
    constexpr index_t far = index_t{1} << 61;
    Eigen::Map<Eigen::MatrixXf, 0, any_stride> matrix(data.data(), 8, 8, any_stride(far, 1));
    Eigen::Map<Eigen::Matrix<float, -1, -1, Eigen::RowMajor>, 0, any_stride> rows(data.data(), 8, 8,
                                                                                  any_stride(far, 1));
    for (const auto& view :
         {heads_in_columns(matrix, 2), output_projection(matrix, 2), heads_in_rows(rows, 2)}) {
        CHECK(view.validate().code() == errc::invalid_parameter);
        CHECK(view.extent(1) == 0);
    }
}
