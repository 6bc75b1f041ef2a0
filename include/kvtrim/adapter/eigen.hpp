// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Eigen matrices as kvtrim views, and Eigen's 16-bit floats as elements. No copy.
//
//   heads_in_columns(m, heads)   m [tokens, heads * head_dim]: all heads of a token together (token-major);
//                                q, k and v as a projection leaves them
//   heads_in_rows(m, heads)      m [heads * tokens, head_dim]: the tokens of a head together (head-major)
//   output_projection(m, heads)  m [hidden, q_heads * head_dim]: W_O as checkpoints store it (y = x m^T)
//
// Any storage order; Map, Ref or Block with strides, also a temporary one, because it is a view itself. The memory must
// outlive the view: a temporary that owns (or, a Ref to const, may own) its elements is refused.

#include <kvtrim/cache/tensor_view.hpp>
#include <kvtrim/core/saturated.hpp>

#include <Eigen/Core>

#include <type_traits>

namespace KVTRIM_NAMESPACE {

/// Eigen's f16 as an element.
template <>
struct element_traits<Eigen::half> {
    static float to_float(Eigen::half x) { return static_cast<float>(x); } ///< exact
    static Eigen::half from_float(float x) { return Eigen::half(x); }      ///< rounds to nearest even
};

/// Eigen's bf16 as an element.
template <>
struct element_traits<Eigen::bfloat16> {
    static float to_float(Eigen::bfloat16 x) { return static_cast<float>(x); } ///< exact
    static Eigen::bfloat16 from_float(float x) { return Eigen::bfloat16(x); }  ///< rounds to nearest even
};

namespace detail {

template <class M>
inline constexpr bool is_ref_to_const = false;
template <class M, int Options, class Stride>
inline constexpr bool is_ref_to_const<Eigen::Ref<const M, Options, Stride>> = true;

// Whether the elements of m, passed as an M&&, are still there after the call.
template <class M>
inline constexpr bool outlives_call =
    !std::is_same_v<std::remove_cv_t<M>, typename M::PlainObject> && !is_ref_to_const<std::remove_cv_t<M>>;
template <class M>
inline constexpr bool outlives_call<M&> = true;

template <class M>
using view_of = strided<std::remove_pointer_t<decltype(std::declval<M&>().data())>, 3>;

template <class M>
constexpr void expect_no_temporary() {
    static_assert(outlives_call<M>,
                  "kvtrim: this matrix is gone when its view is used: give it a name first");
}

} // namespace detail

/// [heads, tokens, head_dim] of m [tokens, heads * head_dim]. The view is empty, and validate() says why, unless cols is a
/// multiple of heads > 0.
template <class M>
[[nodiscard]] auto heads_in_columns(M&& m, index_t heads) {
    detail::expect_no_temporary<M>();
    if (heads <= 0 || m.cols() % heads != 0) {
        return detail::view_of<M>::invalid("heads_in_columns: cols must be heads * head_dim");
    }
    const index_t head_dim = m.cols() / heads;
    return detail::view_of<M>(m.data(), {heads, m.rows(), head_dim},
                              {saturated_product(head_dim, m.colStride()), m.rowStride(), m.colStride()});
}

/// [heads, tokens, head_dim] of m [heads * tokens, head_dim]. The view is empty, and validate() says why, unless rows is a
/// multiple of heads > 0.
template <class M>
[[nodiscard]] auto heads_in_rows(M&& m, index_t heads) {
    detail::expect_no_temporary<M>();
    if (heads <= 0 || m.rows() % heads != 0) {
        return detail::view_of<M>::invalid("heads_in_rows: rows must be heads * tokens");
    }
    const index_t tokens = m.rows() / heads;
    return detail::view_of<M>(m.data(), {heads, tokens, m.cols()},
                              {saturated_product(tokens, m.rowStride()), m.rowStride(), m.colStride()});
}

/// [q_heads, head_dim, hidden] of m [hidden, q_heads * head_dim]. The view is empty, and validate() says why, unless cols is a
/// multiple of q_heads > 0.
template <class M>
[[nodiscard]] auto output_projection(M&& m, index_t q_heads) {
    detail::expect_no_temporary<M>();
    if (q_heads <= 0 || m.cols() % q_heads != 0) {
        return detail::view_of<M>::invalid("output_projection: cols must be q_heads * head_dim");
    }
    const index_t head_dim = m.cols() / q_heads;
    return detail::view_of<M>(m.data(), {q_heads, head_dim, m.rows()},
                              {saturated_product(head_dim, m.colStride()), m.colStride(), m.rowStride()});
}

} // namespace KVTRIM_NAMESPACE
