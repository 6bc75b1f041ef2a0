// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// What a function answers to input that it cannot serve: a code, a static text, and the number that would
// have been enough. No allocation, no exception.
//
// What is trusted: one rule for the whole library.
//
//   trusted      memory behind a view: that it holds the elements that extents, strides and tables name, and that no other
//                thread writes it meanwhile; that nothing else uses the memory of a workspace; indices passed to plain
//                accessors (row(i), view(i, j, k)), as a vector's; the caller's own executors, views and stages
//   not trusted  every number, length, table and byte: extents, budgets, counts, page tables, index lists, plans, offsets,
//                positions, saved states, options; that outputs lie apart from what is read (cache/check_outputs.hpp); that
//                two sequences of a batch write two plans. A wrong one is answered with a status, never with an abort,
//                before anything is written: outputs, caches and states are as they were
//
// Failed allocations: workspaces are the caller's, and too small a one is a status; only the tables of plans and states and
// growing_workspace allocate, and what the allocator throws passes through with the plan or the state as it was (of several
// plans the first may be written); a move_plan is then one never made, and a layer_cascade answers that it has to begin
// again. Sizes that were read from saved bytes are compared with their number before memory is allocated for them.
//
// A view checks its numbers and tables once, when it is made: O(1), O(heads) or O(pages). One with a wrong number is empty,
// so that reading it reads nothing, and its validate() says why. Calls that take views ask them first. An object whose
// constructor got a wrong number is empty likewise, and every call on it answers that status.

#include <kvtrim/core/region.hpp>

#include <cstdint>

// A key that is NaN has to be told from the others, and equal keys have to get equal scores. Under -ffinite-math-only no
// comparison finds a NaN, and under -fassociative-math the compiler chooses the order of each sum (clang defines no macro
// for it).
#if (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__ > 0) || defined(__FAST_MATH__) ||                 \
    defined(__ASSOCIATIVE_MATH__)
#error                                                                                                       \
    "kvtrim: NaN keys and ties need IEEE arithmetic: compile this file with -fno-fast-math behind -ffast-math or -Ofast"
#endif

namespace KVTRIM_NAMESPACE {

/// Counts and positions of tokens, heads and bytes are signed 64-bit everywhere but in the CSR tables.
using index_t = std::int64_t;

/// Why a call was refused.
enum class errc : std::uint8_t {
    ok,                      ///< the call did what it says
    budget_zero,             ///< a budget of no tokens would empty the cache
    budget_below_protection, ///< the protected tokens alone exceed the budget; needed: tokens in total
    window_exceeds_tokens,   ///< more observation queries than cached tokens; needed: tokens
    heads_not_divisible,     ///< q_heads is no multiple of kv_heads
    ratio_out_of_range,      ///< a ratio outside its documented interval
    invalid_parameter,       ///< a configuration field outside its documented range
    rows_differ,             ///< one shared token set asked for heads of different lengths
    plan_mismatch,           ///< a plan made for another cache
    index_overflow,          ///< more tokens than a 32-bit table can address
    invalid_table, ///< a page table with impossible numbers, or a page named twice where it may be named once
    page_shared,   ///< a shared page would have to be changed
    pages_too_few, ///< fewer free pages than copies need; needed: pages
    no_room,       ///< a cache whose memory is full; needed: rows of memory
    workspace_too_small, ///< needed: bytes
    views_overlap, ///< rows to be moved, or an output, share bytes with others that would be destroyed before they are read
};

/// The answer of a call: ok, or a code with a text and a number.
class [[nodiscard]] status {
  public:
    /// ok
    constexpr status() = default;
    /// `what` is a string literal; `needed` is what would have been enough.
    constexpr status(errc code, const char* what, index_t needed = 0)
        : what_(what), needed_(needed), code_(code) {}

    /// Whether the call did what it says.
    [[nodiscard]] constexpr bool ok() const { return code_ == errc::ok; }
    /// The reason; errc::ok if there is none.
    [[nodiscard]] constexpr errc code() const { return code_; }
    /// A sentence for the log; never null, never freed.
    [[nodiscard]] constexpr const char* what() const { return what_; }
    /// How much would have been enough (tokens or bytes, see errc); 0 where no number applies.
    [[nodiscard]] constexpr index_t needed() const { return needed_; }

    friend constexpr bool operator==(const status& a, const status& b) {
        return a.code_ == b.code_ && a.needed_ == b.needed_;
    }

  private:
    const char* what_ = "ok";
    index_t needed_ = 0;
    errc code_ = errc::ok;
};

} // namespace KVTRIM_NAMESPACE
