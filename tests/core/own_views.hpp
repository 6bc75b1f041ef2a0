// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Views as an engine would bring them: std::mdspan in miniature, an indexable lazy tensor, a quantised cache, an
// element of 8 bits.

#include <kvtrim/core/element.hpp>
#include <kvtrim/core/status.hpp>

#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

namespace own {

using kvtrim::index_t;

// Four bits of exponent, three of mantissa; no infinities. Read-only: no from_float.
struct fp8 {
    std::uint8_t bits;
};

} // namespace own

template <>
struct kvtrim::element_traits<own::fp8> {
    static float to_float(own::fp8 x) {
        const int exponent = (x.bits >> 3) & 15;
        const int mantissa = x.bits & 7;
        const float size = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                         : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
        return x.bits >= 0x80 ? -size : size;
    }
};

namespace own {

// The members of std::mdspan that a view needs, with its index types.
template <class T>
class mdspan_like {
  public:
    using element_type = T;
    using size_type = std::uint32_t;

    mdspan_like(T* data, std::array<std::int32_t, 3> extents, std::array<std::int32_t, 3> strides)
        : data_(data), extents_(extents), strides_(strides) {}

    static constexpr std::size_t rank() noexcept { return 3; }
    [[nodiscard]] std::int32_t extent(std::size_t r) const { return extents_[r]; }
    [[nodiscard]] std::int32_t stride(std::size_t r) const { return strides_[r]; }
    [[nodiscard]] T* const& data_handle() const { return data_; }
    template <class I, class J, class K>
    [[nodiscard]] T& operator()(I i, J j, K k) const {
        return data_[static_cast<index_t>(i) * strides_[0] + static_cast<index_t>(j) * strides_[1] +
                     static_cast<index_t>(k) * strides_[2]];
    }

  private:
    T* data_;
    std::array<std::int32_t, 3> extents_;
    std::array<std::int32_t, 3> strides_;
};

// An mdspan whose accessor scales what it reads (std::linalg::scaled): the memory alone is not the tensor.
template <class T>
struct scaled_mdspan {
    mdspan_like<T> inner;
    float scale;

    static constexpr std::size_t rank() noexcept { return 3; }
    [[nodiscard]] std::int32_t extent(std::size_t r) const { return inner.extent(r); }
    [[nodiscard]] std::int32_t stride(std::size_t r) const { return inner.stride(r); }
    [[nodiscard]] T* data_handle() const { return inner.data_handle(); }
    template <class I, class J, class K>
    [[nodiscard]] float operator()(I i, J j, K k) const {
        return scale * kvtrim::to_float(inner(i, j, k));
    }
};

// A tensor without memory: its elements are computed.
struct indexable {
    std::array<index_t, 3> extents;

    static constexpr std::size_t rank() { return 3; }
    [[nodiscard]] index_t extent(std::size_t r) const { return extents[r]; }
    [[nodiscard]] float operator()(index_t i, index_t j, index_t k) const {
        return static_cast<float>(100 * i + 10 * j + k);
    }
};

// Eight-bit integers with a scale per token: a row_source, decoded on the fly.
class quantised {
  public:
    template <class View>
    explicit quantised(const View& v) : extents_{v.extent(0), v.extent(1), v.extent(2)} {
        for (index_t h = 0; h < extents_[0]; ++h) {
            for (index_t t = 0; t < extents_[1]; ++t) {
                float largest = 0;
                for (index_t d = 0; d < extents_[2]; ++d) {
                    largest = std::max(largest, std::abs(kvtrim::to_float(v(h, t, d))));
                }
                scales_.push_back(largest / 127.0f);
                for (index_t d = 0; d < extents_[2]; ++d) {
                    const float units = largest > 0 ? kvtrim::to_float(v(h, t, d)) / scales_.back() : 0.0f;
                    codes_.push_back(static_cast<std::int8_t>(std::lround(units)));
                }
            }
        }
    }

    [[nodiscard]] index_t extent(std::size_t r) const { return extents_[r]; }
    void load_rows(index_t head, index_t first, index_t count, float* tile) const {
        for (index_t t = first; t < first + count; ++t) {
            for (index_t d = 0; d < extents_[2]; ++d) { *tile++ = decoded(head, t, d); }
        }
    }

    [[nodiscard]] float decoded(index_t head, index_t token, index_t channel) const {
        const auto r = static_cast<std::size_t>(head * extents_[1] + token);
        const auto code =
            codes_[r * static_cast<std::size_t>(extents_[2]) + static_cast<std::size_t>(channel)];
        return scales_[r] * static_cast<float>(code);
    }
    // Eight bits per channel and the row's scale.
    [[nodiscard]] index_t row_bytes() const { return extents_[2] + static_cast<index_t>(sizeof(float)); }
    // The codes themselves, as a cache that can also move rows would offer them.
    [[nodiscard]] const std::int8_t* codes(index_t head, index_t token) const {
        return codes_.data() + (head * extents_[1] + token) * extents_[2];
    }

  private:
    std::array<index_t, 3> extents_;
    std::vector<std::int8_t> codes_;
    std::vector<float> scales_;
};

} // namespace own
