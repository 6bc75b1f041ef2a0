// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Whether a call may write its outputs: one rule for every call that reads views and writes to memory of the caller.
//
//   check_outputs(std::array{bytes_of(out), bytes_of(norms)}, in.keys, in.values, positions)
//
// An output shares no byte with what the call reads, with another output, or with itself (a stride of 0). Rows are read
// by several workers, and more than once, so that an output among them would change what is still to be read.
// Compaction and the rotation of keys change a cache in place by contract: compact/moved_views.hpp says what they take.
//
// What a view occupies is known of strided views, and of sources that say it: memory() or overlaps(strided_bytes)
// (cache/row_source.hpp); the library's own count their page tables, indices and lengths in. Of others nothing is checked.
// Scratch is not looked at: a workspace is memory that nothing else uses (core/status.hpp).
// Cost: a comparison of two address ranges for each pair, one a page for paged rows; where ranges meet, see
// cache/strided_bytes.hpp.

#include <kvtrim/cache/row_source.hpp>
#include <kvtrim/core/any_index.hpp>

#include <type_traits>

namespace KVTRIM_NAMESPACE {

/// The bytes of a strided view's elements.
template <class V>
    requires(strided_view<V, 2> || strided_view<V, 3>)
[[nodiscard]] strided_bytes bytes_of(const V& view) {
    constexpr index_t size = sizeof(*view.data_handle());
    strided_bytes all{.first = view.data_handle(), .bytes = size};
    constexpr std::size_t unused = 4 - V::rank();
    for (std::size_t r = 0; r < V::rank(); ++r) {
        all.extents[unused + r] = extent(view, static_cast<int>(r));
        all.strides[unused + r] = to_bytes(static_cast<index_t>(view.stride(r)), size);
    }
    return all;
}

/// Whether the rows of a view, or the elements of a list, share a byte with `other`; false where that is not known.
template <class View>
[[nodiscard]] bool shares_bytes(const View& view, const strided_bytes& other) {
    if constexpr (requires { view.overlaps(other); }) {
        return view.overlaps(other);
    } else if constexpr (requires { view.memory(); }) {
        return any_element(view.memory(), [&](const strided_bytes& m) { return overlap(m, other); });
    } else if constexpr (requires { kvtrim::bytes_of(view); }) { // ours, not one of the view's own namespace
        return overlap(kvtrim::bytes_of(view), other);
    } else if constexpr (requires { std::span(view); }) {
        return overlap(bytes_of(std::span(view)), other);
    } else {
        return false;
    }
}

namespace detail {

// The same but for what is read.
[[nodiscard]] KVTRIM_NOINLINE inline status check_alone(std::span<const strided_bytes> outputs) {
    for (const strided_bytes& out : outputs) {
        if (const status s = out.validate(); !s.ok()) { return s; }
        if (overlaps_itself(out)) { return {errc::views_overlap, "two elements of an output share memory"}; }
        for (const strided_bytes& other : outputs) {
            if (&other == &out) { break; }
            if (overlap(other, out)) { return {errc::views_overlap, "two outputs share memory"}; }
        }
    }
    return {};
}

} // namespace detail

/// Returns views_overlap for an output that shares a byte with what is read, with another output or with itself,
/// invalid_parameter for one whose strides lead beyond what can be addressed. `outputs` is an array of strided_bytes;
/// `read` are views, layers and spans.
template <class Outputs, class... Read>
[[nodiscard]] status check_outputs(const Outputs& outputs, const Read&... read) {
    if (const status s = detail::check_alone(outputs); !s.ok()) { return s; }
    for (const strided_bytes& out : outputs) {
        if ((shares_bytes(read, out) || ...)) {
            return {errc::views_overlap, "the output lies in the memory of what is read"};
        }
    }
    return {};
}

} // namespace KVTRIM_NAMESPACE
