// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The plans of several requests as the table of sources that an engine's own compaction kernel reads: where equally many
// tokens of every head close up behind a prefix that stays.
//
//   plans               [requests]              each of kv_heads rows, equally long within a request
//   first_destinations  [requests]              tokens at the front of each request that stay where they are
//   offsets             [requests + 1]  int32   moves of request r are columns [offsets[r], offsets[r + 1])
//   sources             [kv_heads, width] int32 row-major; columns behind the last move are not written
//
//   token sources[h, offsets[r] + i] of head h  ->  token first_destinations[r] + i,   of K and of V
//
// A source is never before its destination, so moves may be carried out in place in the order of the columns. The request
// is first_destinations[r] + offsets[r + 1] - offsets[r] tokens long afterwards.
//
// Source: TensorRT-LLM's sparse_kv_cache_compact_layers (source_indices, source_offsets, destination_bases) and, with all
// first_destinations 0, sparse_kv_indices and sparse_kv_offsets of its attention operator. Layers that keep different
// tokens are one call each, into the slices of [layers, kv_heads, width]: every layer must then keep equally many.
//
// Cost: each kept token read once. No workspace.

#include <kvtrim/cache/check_outputs.hpp>
#include <kvtrim/plan/keep_plan.hpp>

#include <algorithm>

namespace KVTRIM_NAMESPACE {

/// Columns that write_move_sources() writes for these plans: the tokens of one head that move, summed over requests.
/// 0 for what it refuses.
[[nodiscard]] inline index_t move_source_columns(std::span<const keep_plan> plans,
                                                 std::span<const index_t> first_destinations) {
    index_t columns = 0;
    if (first_destinations.size() != plans.size()) { return 0; }
    for (std::size_t r = 0; r < plans.size(); ++r) {
        const index_t kept = plans[r].rows() == 0 ? 0 : plans[r].kept_tokens(0);
        if (first_destinations[r] < 0 || first_destinations[r] > kept) { return 0; }
        columns += kept - first_destinations[r];
    }
    return columns;
}

namespace detail {

// Rows of one length that ascend and begin with the prefix 0 ... first - 1.
[[nodiscard]] inline status check_move_sources(const keep_plan& plan, index_t kv_heads, index_t first) {
    if (plan.rows() != kv_heads) {
        return {errc::rows_differ, "write_move_sources: requests of different kv_heads", plan.rows()};
    }
    const bool ascends =
        plan.check_invariants([](index_t) { return std::numeric_limits<keep_plan::table_index>::max(); });
    if (!ascends) { return {errc::plan_mismatch, "write_move_sources: the rows of a plan must ascend"}; }
    if (first < 0) {
        return {errc::invalid_parameter, "write_move_sources: a first destination must not be negative"};
    }
    for (index_t h = 0; h < kv_heads; ++h) {
        if (plan.kept_tokens(h) != plan.kept_tokens(0)) {
            return {errc::rows_differ, "write_move_sources: all heads must keep equally many tokens"};
        }
        const auto row = plan.row(h);
        if (first > std::ssize(row)) {
            return {errc::plan_mismatch, "write_move_sources: a plan keeps less than the prefix", first};
        }
        // Rows ascend from 0 on, so the prefix is whole if its last token stands at its own place.
        if (first > 0 && row[static_cast<std::size_t>(first - 1)] != first - 1) {
            return {errc::plan_mismatch, "write_move_sources: a plan evicts a token of the prefix", first};
        }
    }
    return {};
}

} // namespace detail

/// Writes offsets [requests + 1] and sources [kv_heads, width], where width is sources.size() / kv_heads. Returns rows_differ
/// (heads of a request that keep different numbers, or requests of different kv_heads), plan_mismatch (a plan that evicts a token
/// of the prefix, or whose rows do not ascend), invalid_parameter (a negative or missing first destination, or tables too small;
/// needed: columns), index_overflow or views_overlap; with both tables unchanged.
[[nodiscard]] inline status write_move_sources(std::span<const keep_plan> plans,
                                               std::span<const index_t> first_destinations,
                                               std::span<std::int32_t> offsets,
                                               std::span<std::int32_t> sources) {
    if (first_destinations.size() != plans.size() || offsets.size() != plans.size() + 1) {
        return {errc::invalid_parameter,
                "write_move_sources: a first destination for each plan, and one offset more",
                std::ssize(plans) + 1};
    }
    const index_t kv_heads = plans.empty() ? 0 : plans[0].rows();
    for (std::size_t r = 0; r < plans.size(); ++r) {
        if (const status s = detail::check_move_sources(plans[r], kv_heads, first_destinations[r]); !s.ok()) {
            return s;
        }
    }
    const index_t columns = move_source_columns(plans, first_destinations);
    if (columns > std::numeric_limits<std::int32_t>::max()) {
        return {errc::index_overflow, "write_move_sources: offsets are numbers of 32 bits", columns};
    }
    const index_t width = kv_heads == 0 ? 0 : std::ssize(sources) / kv_heads;
    if (columns > width) {
        return {errc::invalid_parameter, "write_move_sources: the table of sources is too small", columns};
    }
    const std::array written{bytes_of(offsets), bytes_of(sources)};
    if (const status s = check_outputs(written, first_destinations); !s.ok()) { return s; }
    index_t next = 0;
    offsets[0] = 0;
    for (std::size_t r = 0; r < plans.size(); ++r) {
        for (index_t h = 0; h < kv_heads; ++h) {
            const auto moved = plans[r].row(h).subspan(static_cast<std::size_t>(first_destinations[r]));
            std::copy(moved.begin(), moved.end(), sources.begin() + h * width + next);
        }
        next += kv_heads == 0 ? 0 : plans[r].kept_tokens(0) - first_destinations[r];
        offsets[r + 1] = static_cast<std::int32_t>(next);
    }
    return {};
}

} // namespace KVTRIM_NAMESPACE
