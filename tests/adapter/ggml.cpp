// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/adapter/ggml.hpp>

#include "support/catch.hpp"

#include <vector>

namespace {

using namespace kvtrim;

// A tensor of ggml over bytes of its own that a test may spoil.
struct context {
    ggml_context* c = ggml_init({1u << 20, nullptr, false});

    context() = default;
    context(const context&) = delete;
    context& operator=(const context&) = delete;
    ~context() { ggml_free(c); }
};

template <class T>
bool is_refused(const ggml_tensor& tensor) {
    T element{};
    strided<T, 3> view(&element, {1, 1, 1});
    const status s = view_ggml(tensor, view);
    return s.code() == errc::invalid_parameter && view.data_handle() == &element;
}

} // namespace

TEST_CASE("view_ggml: element (head, token, channel) wherever ggml says it is", "[adapter]") {
    const context own;
    constexpr index_t dim = 5, tokens = 4, heads = 3;
    ggml_tensor* flat = ggml_new_tensor_3d(own.c, GGML_TYPE_F32, dim, heads, tokens); // as cached
    auto* data = static_cast<float*>(flat->data);
    for (index_t i = 0; i < dim * heads * tokens; ++i) { data[i] = static_cast<float>(i); }
    const auto shows = [&](ggml_tensor* t, ggml_axes axes) {
        strided<float, 3> view{nullptr, {0, 0, 0}};
        if (!view_ggml(*t, view, axes).ok() || view.extent(0) != heads || view.extent(1) != tokens ||
            view.extent(2) != dim) {
            return false;
        }
        for (index_t h = 0; h < heads; ++h) {
            for (index_t i = 0; i < tokens; ++i) {
                for (index_t d = 0; d < dim; ++d) {
                    if (view(h, i, d) != static_cast<float>((i * heads + h) * dim + d)) { return false; }
                }
            }
        }
        return true;
    };
    CHECK(shows(flat, ggml_axes::cached()));
    CHECK(shows(ggml_permute(own.c, flat, 0, 2, 1, 3), ggml_axes::attended()));
    CHECK(shows(ggml_permute(own.c, flat, 1, 2, 0, 3), ggml_axes::transposed()));
}

TEST_CASE("view_ggml: a view of part of a cache, in 16 bits", "[adapter]") {
    const context own;
    ggml_tensor* all = ggml_new_tensor_3d(own.c, GGML_TYPE_BF16, 2, 10, 3);
    for (index_t i = 0; i < 60; ++i) { static_cast<bf16*>(all->data)[i] = {static_cast<std::uint16_t>(i)}; }
    ggml_tensor* part = ggml_view_3d(own.c, all, 2, 4, 3, all->nb[1], all->nb[2], 3 * all->nb[1]);
    strided<const bf16, 3> view{nullptr, {0, 0, 0}};
    REQUIRE(view_ggml(*part, view).ok());
    CHECK(view.extent(1) == 4);
    CHECK(view(2, 3, 1).bits == 40 + 2 * 6 + 1);
}

TEST_CASE("view_ggml: what it can not view, it refuses", "[adapter]") {
    const context own;
    ggml_tensor* good = ggml_new_tensor_3d(own.c, GGML_TYPE_F16, 32, 2, 2);
    CHECK_FALSE(is_refused<f16>(*good));
    CHECK(is_refused<float>(*good));
    CHECK(is_refused<bf16>(*good));
    CHECK(is_refused<f16>(*ggml_new_tensor_3d(own.c, GGML_TYPE_Q8_0, 32, 2, 2)));
    CHECK(is_refused<f16>(*ggml_new_tensor_4d(own.c, GGML_TYPE_F16, 32, 2, 2, 2)));
    ggml_tensor spoiled = *good;
    spoiled.nb[1] = 65;
    CHECK(is_refused<f16>(spoiled));
    spoiled = *good;
    spoiled.data = nullptr;
    CHECK(is_refused<f16>(spoiled));
}
