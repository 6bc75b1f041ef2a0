// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Views on an engine's own memory, with the interface of std::mdspan.
//
//   tensor_view<V, Rank>   rank(), extent(r), v(i, j, k) or v[i, j, k]   enough for correct results
//   strided_view<V, Rank>  adds data_handle() and stride(r)             read by pointer, by vectors
//   strided<T, Rank>       the library's own view; strides count elements, in any order, also negative
//
// std::mdspan and Kokkos mdspan satisfy the concepts as they are. Views are held by value and never own.

#include <kvtrim/core/element.hpp>
#include <kvtrim/core/status.hpp>

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

namespace KVTRIM_NAMESPACE {

/// Element (i...) of any view, spelled v(i...) or v[i...].
template <class V, class... I>
[[nodiscard]] constexpr decltype(auto) at(const V& v, I... i) requires requires {
    v(i...);
}
{ return v(i...); }

#if defined(__cpp_multidimensional_subscript)
/// Element v[i...] of a view that has no v(i...).
template <class V, class... I>
[[nodiscard]] constexpr decltype(auto) at(const V& v, I... i) requires(
    !requires { v(i...); } && requires { v[i...]; }) {
    return v[i...];
}
#endif

namespace detail {

template <class V, std::size_t Rank>
inline constexpr bool indexable = false;
template <class V>
    requires requires(const V& v, index_t i) {
        to_float(at(v, i, i));
    }
inline constexpr bool indexable<V, 2> = true;
template <class V>
    requires requires(const V& v, index_t i) {
        to_float(at(v, i, i, i));
    }
inline constexpr bool indexable<V, 3> = true;

} // namespace detail

/// A view of this rank whose elements can be indexed.
template <class V, std::size_t Rank>
concept tensor_view = requires(const V& v) {
    { v.extent(0) } -> std::convertible_to<index_t>;
    requires static_cast<std::size_t>(V::rank()) == Rank;
}
&&detail::indexable<V, Rank>;

namespace detail {

// Whether indexing yields the element in memory, not a value that an accessor computes from it.
template <class V, std::size_t Rank>
inline constexpr bool indexes_memory = false;
template <class V>
    requires requires(const V& v, index_t i) {
        at(v, i, i);
    }
inline constexpr bool indexes_memory<V, 2> =
    std::is_same_v<decltype(at(std::declval<const V&>(), index_t{}, index_t{})),
                   decltype(*std::declval<const V&>().data_handle())>;
template <class V>
    requires requires(const V& v, index_t i) {
        at(v, i, i, i);
    }
inline constexpr bool indexes_memory<V, 3> =
    std::is_same_v<decltype(at(std::declval<const V&>(), index_t{}, index_t{}, index_t{})),
                   decltype(*std::declval<const V&>().data_handle())>;

} // namespace detail

/// A view whose elements lie in memory at data_handle() and its strides.
template <class V, std::size_t Rank>
concept strided_view = tensor_view<V, Rank> && requires(const V& v) {
    {*v.data_handle()};
    { v.stride(0) } -> std::convertible_to<index_t>;
} && detail::indexes_memory<V, Rank>;

namespace detail {

// Whether the extents that are not 0 make an array that a machine can address (2^56 bytes): no product of extents overflows,
// nor a small multiple of it.
template <std::size_t Rank>
[[nodiscard]] constexpr bool fits_in_memory(const std::array<index_t, Rank>& extents, std::size_t bytes) {
    index_t room = (index_t{1} << 56) / static_cast<index_t>(bytes);
    for (const index_t e : extents) {
        if (e > room) { return false; }
        room /= e > 0 ? e : 1;
    }
    return true;
}

// The same of an array whose strides, of any sign, count units of `unit` bytes: no element of it, unless it is empty, lies
// farther from the first than can be addressed.
template <std::size_t Rank>
[[nodiscard]] constexpr bool fits_in_memory(const std::array<index_t, Rank>& extents,
                                            const std::array<index_t, Rank>& strides, std::size_t bytes,
                                            std::size_t unit) {
    if (!fits_in_memory(extents, bytes)) { return false; }
    for (const index_t e : extents) {
        if (e <= 0) { return true; }
    }
    index_t reach = ((index_t{1} << 56) - static_cast<index_t>(bytes)) / static_cast<index_t>(unit);
    for (std::size_t r = 0; r < Rank; ++r) {
        if (extents[r] == 1) { continue; }
        const index_t longest = reach / (extents[r] - 1);
        if (strides[r] > longest || strides[r] < -longest) { return false; }
        reach -= (strides[r] < 0 ? -strides[r] : strides[r]) * (extents[r] - 1);
    }
    return true;
}

} // namespace detail

/// Extents or strides of any integer types; what index_t cannot hold becomes the largest one, which no view accepts.
template <std::size_t Rank>
struct tensor_extents {
    std::array<index_t, Rank> values; ///< as index_t

    /// From an array.
    constexpr tensor_extents(const std::array<index_t, Rank>& v) : values(v) {} // NOLINT: a conversion
    /// From one integer per dimension.
    template <std::integral... I>
        requires(sizeof...(I) == Rank)
    constexpr tensor_extents(I... v) : values{to_index(v)...} {} // NOLINT: a conversion

  private:
    template <std::integral I>
    static constexpr index_t to_index(I value) {
        constexpr index_t most = std::numeric_limits<index_t>::max();
        return std::cmp_greater(value, most) ? most : static_cast<index_t>(value);
    }
};

/// A non-owning view of a strided array: element (i, j, k) is data[i * stride(0) + j * stride(1) + ...]. Extents and strides are
/// any integers, in elements. The view is empty, and validate() says why, for an extent that is negative, more elements or longer
/// strides than memory can hold, null data unless an extent is 0.
template <class T, std::size_t Rank>
class strided {
    static_assert(element<T>, "kvtrim: this type is no element of a cache: specialise "
                              "kvtrim::element_traits; see core/element.hpp");

  public:
    /// The element in memory.
    using element_type = T;
    /// One number per dimension.
    using indices = std::array<index_t, Rank>;

    /// Row-major: the last index is contiguous.
    constexpr strided(T* data, const tensor_extents<Rank>& extents)
        : strided(data, extents, row_major(extents.values)) {}

    /// Strides count elements; they may be 0 or negative.
    constexpr strided(T* data, const tensor_extents<Rank>& extents, const tensor_extents<Rank>& strides)
        : data_(data), extents_(extents.values), strides_(strides.values),
          problem_(problem_of(data, extents.values, strides.values)) {
        if (problem_ != nullptr) { extents_ = {}; }
    }

    /// An empty view of which validate() says `problem`, a string literal: for functions that make views.
    [[nodiscard]] static constexpr strided invalid(const char* problem) {
        strided view(nullptr, indices{});
        view.problem_ = problem;
        return view;
    }

    /// Returns invalid_parameter for extents that cannot be, or memory that is missing.
    [[nodiscard]] constexpr status validate() const {
        return problem_ == nullptr ? status{} : status{errc::invalid_parameter, problem_};
    }

    /// Dimensions.
    [[nodiscard]] static constexpr std::size_t rank() { return Rank; }
    /// Elements along dimension r.
    [[nodiscard]] constexpr index_t extent(std::size_t r) const { return extents_[r]; }
    /// Elements from one index of dimension r to the next.
    [[nodiscard]] constexpr index_t stride(std::size_t r) const { return strides_[r]; }
    /// Element (0, 0, ...).
    [[nodiscard]] constexpr T* data_handle() const { return data_; }

    /// Element (i...), unchecked.
    template <std::convertible_to<index_t>... I>
        requires(sizeof...(I) == Rank)
    [[nodiscard]] constexpr T& operator()(I... i) const {
        std::size_t r = 0;
        index_t offset = 0;
        ((offset += static_cast<index_t>(i) * strides_[r++]), ...);
        return data_[offset];
    }

  private:
    static constexpr indices row_major(const indices& extents) {
        indices strides{};
        std::uint64_t next = 1; // wraps where problem_of() refuses the extents
        for (std::size_t r = Rank; r-- > 0;) {
            strides[r] = static_cast<index_t>(next);
            next *= static_cast<std::uint64_t>(extents[r]);
        }
        return strides;
    }

    static constexpr const char* problem_of(const T* data, const indices& extents, const indices& strides) {
        bool empty = false;
        for (const index_t e : extents) {
            if (e < 0) { return "strided: extents must not be negative"; }
            empty = empty || e == 0;
        }
        if (!detail::fits_in_memory(extents, sizeof(T))) {
            return "strided: extents of more elements than memory can hold";
        }
        if (empty) { return nullptr; }
        if (!detail::fits_in_memory(extents, strides, sizeof(T), sizeof(T))) {
            return "strided: strides that lead beyond what memory can hold";
        }
        return data != nullptr ? nullptr : "strided: data must not be null";
    }

    T* data_;
    indices extents_;
    indices strides_;
    const char* problem_;
};

template <class T, std::integral I, std::size_t Rank>
strided(T*, const I (&)[Rank]) -> strided<T, Rank>;
template <class T, std::integral I, std::integral J, std::size_t Rank>
strided(T*, const I (&)[Rank], const J (&)[Rank]) -> strided<T, Rank>;
template <class T, std::size_t Rank>
strided(T*, const index_t (&)[Rank]) -> strided<T, Rank>;
template <class T, std::size_t Rank>
strided(T*, const index_t (&)[Rank], const index_t (&)[Rank]) -> strided<T, Rank>;

namespace detail {

// The elements of row i where they are floats that lie side by side; else null.
template <tensor_view<2> V>
[[nodiscard]] const float* floats_in_place(const V& view, index_t i) {
    if constexpr (strided_view<V, 2>) {
        if constexpr (std::is_same_v<std::remove_cv_t<std::remove_pointer_t<decltype(view.data_handle())>>,
                                     float>) {
            if (view.stride(1) == 1) { return view.data_handle() + i * static_cast<index_t>(view.stride(0)); }
        }
    }
    return nullptr;
}

// Elements first .. first + count - 1 of row i as floats: where they lie, or the copy that is made.
template <tensor_view<2> V>
[[nodiscard]] const float* read_floats(const V& view, index_t i, index_t first, index_t count, float* copy) {
    if (const float* const row = floats_in_place(view, i); row != nullptr) { return row + first; }
    for (index_t t = 0; t < count; ++t) { copy[t] = to_float(at(view, i, first + t)); }
    return copy;
}

} // namespace detail

} // namespace KVTRIM_NAMESPACE
