// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Scratch memory that the caller owns: a bump arena, with a mode that counts bytes and hands out none.
//
// A stage takes its scratch at entry and then asks fits(). The same lines run over a counting workspace give
// the bytes it needs, so that the number reported by workspace_bytes() can not drift from the number used.
// A caller that knows that number beforehand asks holds() instead, and its status then names all bytes that are needed.
// Every array is aligned to a cache line. Arrays taken inside a frame are freed when it ends.

#include <kvtrim/core/span_of.hpp>
#include <kvtrim/core/status.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <type_traits>
#include <vector>

namespace KVTRIM_NAMESPACE {

/// Scratch memory of the caller, handed out array by array. Holds plain data only.
class workspace {
  public:
    /// Alignment of every array.
    static constexpr index_t alignment_bytes = 64;

    /// Uses the caller's bytes; their own alignment does not matter.
    explicit workspace(std::span<std::byte> bytes) {
        const auto address = reinterpret_cast<std::uintptr_t>(bytes.data());
        const auto skipped = static_cast<index_t>(-address % alignment_bytes);
        const auto size = static_cast<index_t>(bytes.size());
        base_ = size > skipped ? bytes.data() + skipped : nullptr;
        capacity_ = std::max<index_t>(0, size - skipped);
    }

    /// A workspace that hands out no memory and counts the bytes that were asked for.
    [[nodiscard]] static workspace counting() { return workspace(std::span<std::byte>{}); }

    /// `count` uninitialised elements, or an empty span if they do not fit. A count that no memory holds, or one below 0
    /// (an overflow of the caller's product), counts as the most there can be.
    template <class T>
    [[nodiscard]] std::span<T> take(index_t count) {
        static_assert(std::is_trivial_v<T>, "kvtrim: workspace holds plain data only");
        std::byte* const first = take_elements(count, sizeof(T));
        if (first == nullptr) { return {}; }
        return {reinterpret_cast<T*>(first), static_cast<std::size_t>(count)};
    }

    /// Whether all arrays now taken fitted.
    [[nodiscard]] bool fits() const { return used_ <= capacity_; }
    /// Whether a stage that counted `bytes` (needed_bytes() of a counting workspace) still fits.
    [[nodiscard]] bool holds(index_t bytes) const {
        return bytes == 0 ? fits() : used_ + (bytes - alignment_bytes) <= capacity_;
    }
    /// Bytes that are not taken.
    [[nodiscard]] index_t free_bytes() const { return std::max<index_t>(0, capacity_ - used_); }
    /// Bytes that the caller must pass for the most that was taken at any time, alignment included.
    [[nodiscard]] index_t needed_bytes() const { return with_alignment(peak_); }
    /// The status of a stage whose scratch did not fit, asked before its frame ends; needed: bytes for the arrays taken so
    /// far.
    [[nodiscard]] status too_small() const {
        return {errc::workspace_too_small, "the workspace is too small; ask workspace_bytes()",
                with_alignment(used_)};
    }
    /// The status of a stage that counted `bytes`; needed: bytes for all of it, beside the arrays taken before.
    [[nodiscard]] status too_small(index_t bytes) const {
        return {errc::workspace_too_small, "the workspace is too small; ask workspace_bytes()",
                used_ + bytes};
    }

    /// Frees at its end the arrays taken during its life.
    class frame {
      public:
        /// Of a workspace that outlives it.
        explicit frame(workspace& w) : workspace_(w), used_(w.used_) {}
        frame(const frame&) = delete;
        frame& operator=(const frame&) = delete;
        ~frame() { workspace_.used_ = used_; }

      private:
        workspace& workspace_;
        index_t used_;
    };

  private:
    static constexpr index_t most_bytes =
        std::numeric_limits<index_t>::max() / 4 / alignment_bytes * alignment_bytes;

    // Where `count` elements lie that were taken; null if they do not fit. Not inlined: a stage takes many arrays.
    KVTRIM_NOINLINE std::byte* take_elements(index_t count, index_t element_bytes) {
        const bool possible = 0 <= count && count <= most_bytes / element_bytes;
        const index_t begin = used_;
        used_ = std::min(used_ + (possible ? round_up(count * element_bytes) : most_bytes), most_bytes);
        peak_ = std::max(peak_, used_);
        return used_ > capacity_ || base_ == nullptr ? nullptr : base_ + begin;
    }

    static constexpr index_t with_alignment(index_t bytes) {
        return bytes == 0 ? 0 : bytes + alignment_bytes;
    }
    static constexpr index_t round_up(index_t bytes) {
        return (bytes + alignment_bytes - 1) / alignment_bytes * alignment_bytes;
    }

    std::byte* base_ = nullptr;
    index_t capacity_ = 0;
    index_t used_ = 0;
    index_t peak_ = 0;
};

/// A workspace that grows to the largest size asked for and keeps it, for callers without an arena of their own. The only
/// allocation of the library outside the tables of plans and states.
class growing_workspace {
  public:
    /// A workspace of so many bytes. For more bytes than a machine addresses it has none, and the call that needs them
    /// returns workspace_too_small.
    [[nodiscard]] workspace of_bytes(index_t bytes) {
        if (bytes > index_t{1} << 56) { return workspace::counting(); }
        if (static_cast<index_t>(bytes_.size()) < bytes) { bytes_.resize(static_cast<std::size_t>(bytes)); }
        return workspace(span_of(bytes_));
    }
    /// Bytes allocated so far.
    [[nodiscard]] index_t capacity_bytes() const { return static_cast<index_t>(bytes_.size()); }

  private:
    std::vector<std::byte> bytes_;
};

} // namespace KVTRIM_NAMESPACE
