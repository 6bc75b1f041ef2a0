// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/adapter/dlpack.hpp>

#include <kvtrim/cache/row_source.hpp>

#include "support/catch.hpp"

#include <array>
#include <limits>
#include <vector>

namespace {

using namespace kvtrim;

// A row-major tensor [2, 3, 4] of floats 0, 1, 2, ... that a test may spoil.
struct example {
    std::vector<float> data = std::vector<float>(24);
    std::array<std::int64_t, 4> shape = {2, 3, 4, 0};
    std::array<std::int64_t, 4> strides = {12, 4, 1, 0};
    DLTensor tensor = {};

    example() {
        for (std::size_t i = 0; i < data.size(); ++i) { data[i] = static_cast<float>(i); }
        tensor.data = data.data();
        tensor.device = {kDLCPU, 0};
        tensor.ndim = 3;
        tensor.dtype = {kDLFloat, 32, 1};
        tensor.shape = shape.data();
        tensor.strides = strides.data();
    }
    example(const example&) = delete;
    example& operator=(const example&) = delete;
};

// Whether it is refused, with the view as it was.
template <class T = float>
bool is_refused(const DLTensor& tensor, index_t batch = 0) {
    T element{};
    strided<T, 3> view(&element, {1, 1, 1});
    const status s = view_dlpack(tensor, view, batch);
    return s.code() == errc::invalid_parameter && view.data_handle() == &element && view.extent(2) == 1;
}

} // namespace

TEST_CASE("view_dlpack: strides given, or null for row-major", "[adapter]") {
    example e;
    strided<const float, 3> view = no_tensor<const float>;
    for (std::int64_t* strides : {e.strides.data(), static_cast<std::int64_t*>(nullptr)}) {
        e.tensor.strides = strides;
        REQUIRE(view_dlpack(e.tensor, view).ok());
        CHECK(view.extent(0) == 2);
        CHECK(view.extent(1) == 3);
        CHECK(view.extent(2) == 4);
        CHECK(view(1, 2, 3) == 23);
        CHECK(view(1, 0, 1) == 13);
    }
}

TEST_CASE("view_dlpack: permuted axes, byte_offset, negative strides", "[adapter]") {
    example e;
    strided<float, 3> view = no_tensor<float>;
    e.shape = {2, 4, 2, 0}; // the last two tokens of each head, transposed
    e.strides = {12, 1, -4, 0};
    e.tensor.byte_offset = 8 * sizeof(float);
    REQUIRE(view_dlpack(e.tensor, view).ok());
    CHECK(view(0, 0, 0) == 8);
    CHECK(view(0, 3, 1) == 7);
    CHECK(view(1, 1, 1) == 17);
    view(0, 0, 0) = -1;
    CHECK(e.data[8] == -1);
}

TEST_CASE("view_dlpack: a batch is a view per sequence", "[adapter]") {
    example e;
    e.tensor.ndim = 4;
    e.shape = {2, 1, 3, 4};
    strided<float, 3> view = no_tensor<float>;
    for (const bool has_strides : {false, true}) {
        e.strides = {12, 12, 4, 1};
        e.tensor.strides = has_strides ? e.strides.data() : nullptr;
        REQUIRE(view_dlpack(e.tensor, view, 1).ok());
        CHECK(view(0, 2, 1) == 21);
    }
    CHECK(is_refused(e.tensor, 2));
    CHECK(is_refused(e.tensor, -1));
}

TEST_CASE("view_dlpack: 16-bit elements keep their bits", "[adapter]") {
    example e;
    std::vector<std::uint16_t> bits = {0x3c00, 0xc000, 0x7e01, 0x8001};
    e.tensor.data = bits.data();
    e.shape = {1, 2, 2, 0};
    e.strides = {4, 2, 1, 0};
    strided<f16, 3> halves = no_tensor<f16>;
    e.tensor.dtype = {kDLFloat, 16, 1};
    REQUIRE(view_dlpack(e.tensor, halves).ok());
    CHECK(halves(0, 1, 1).bits == 0x8001);
    CHECK(is_refused<bf16>(e.tensor));
    strided<bf16, 3> brains = no_tensor<bf16>;
    e.tensor.dtype = {kDLBfloat, 16, 1};
    REQUIRE(view_dlpack(e.tensor, brains).ok());
    CHECK(brains(0, 1, 0).bits == 0x7e01);
    CHECK(is_refused<f16>(e.tensor));
}

TEST_CASE("view_dlpack: an empty tensor needs no data", "[adapter]") {
    example e;
    e.shape[1] = 0;
    e.tensor.data = nullptr;
    strided<float, 3> view = no_tensor<float>;
    REQUIRE(view_dlpack(e.tensor, view).ok());
    CHECK(view.extent(0) == 2);
    CHECK(view.extent(1) == 0);
}

TEST_CASE("view_dlpack: what it can not view, it refuses", "[adapter]") {
    const auto refused_after = [](auto&& spoil) {
        example e;
        if (is_refused(e.tensor)) { return false; } // the positive control
        spoil(e);
        return is_refused(e.tensor);
    };
    CHECK(refused_after([](example& e) { e.tensor.device.device_type = kDLCUDA; }));
    CHECK(refused_after([](example& e) { e.tensor.dtype.bits = 64; }));
    CHECK(refused_after([](example& e) { e.tensor.dtype.lanes = 4; }));
    CHECK(refused_after([](example& e) { e.tensor.dtype.code = kDLInt; }));
    CHECK(refused_after([](example& e) { e.tensor.ndim = 2; }));
    CHECK(refused_after([](example& e) { e.tensor.ndim = 0; }));
    CHECK(refused_after([](example& e) { e.shape[1] = -3; }));
    CHECK(refused_after([](example& e) { e.tensor.data = nullptr; }));
    CHECK(refused_after([](example& e) { e.tensor.byte_offset = 2; }));
    const example e;
    CHECK(is_refused(e.tensor, 1));
}

TEST_CASE("view_dlpack: a missing shape, and extents whose product no memory holds, are refused",
          "[adapter][errors]") {
    example e;
    e.tensor.shape = nullptr;
    CHECK(is_refused(e.tensor));
    constexpr index_t huge = index_t{1} << 40;
    for (const bool has_strides : {false, true}) {
        example wide;
        wide.tensor.strides = has_strides ? wide.strides.data() : nullptr;
        wide.shape = {huge, huge, huge, 0};
        CHECK(is_refused(wide.tensor));
        wide.shape = {huge, 0, huge, 0}; // empty, but its strides overflow
        CHECK(is_refused(wide.tensor));
        wide.tensor.ndim = 4;
        wide.shape = {huge, 1, huge, 4};
        CHECK(is_refused(wide.tensor, 1));
    }
}

TEST_CASE("view_dlpack: strides, items and offsets that lead out of any memory are refused",
          "[adapter][errors]") {
    constexpr index_t most = std::numeric_limits<index_t>::max();
    for (const index_t stride : {most, -most, -most - 1, index_t{1} << 61}) {
        for (const std::size_t axis : {0u, 1u, 2u}) {
            example e;
            e.strides[axis] = stride;
            CHECK(is_refused(e.tensor));
        }
        example e;
        e.tensor.ndim = 4;
        e.shape = {3, 2, 3, 2};
        e.strides = {stride, 6, 2, 1};
        for (const index_t item : {0, 1, 2}) { CHECK(is_refused(e.tensor, item)); }
    }
    example e;
    e.tensor.byte_offset = ~std::uint64_t{0} - 3; // wraps to 4 bytes before the data
    CHECK(is_refused(e.tensor));
}
