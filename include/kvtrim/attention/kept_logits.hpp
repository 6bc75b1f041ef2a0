// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The KV heads of a scorer spread over workers that share a bound on memory for logits: those that the first sweep over a head's
// keys leaves to the second (attention/attention_rows.hpp).
//
//   logits of a worker = min(query rows of a row group * rows of the longest head, bound / workers)
//
// So a serial call keeps as much as all workers of a wide one. Where the workspace does not hold what all workers need, fewer run,
// and each keeps more. Scores are the same floats whatever is kept, so they do not depend on workers.

#include <kvtrim/cache/layer.hpp>
#include <kvtrim/core/for_each_item.hpp>
#include <kvtrim/kernels/tile_tokens.hpp>

#include <algorithm>
#include <span>

namespace KVTRIM_NAMESPACE {

/// How many logits the workers of one call keep.
class kept_logits {
  public:
    /// 48 MiB hold three quarters of a KV head's 128 query rows at 131072 tokens, and leave room below 64 MiB for all else.
    static constexpr index_t default_bytes = index_t{48} << 20;

    /// most_bytes: of all workers together. newest: queries of each head that are used; 0: all. Requires what
    /// validate_observers() asks.
    template <class Inputs>
    kept_logits(const Inputs& in, index_t newest, index_t most_bytes)
        : kv_heads_(in.kv_heads()), most_(most_bytes / static_cast<index_t>(sizeof(float))) {
        const index_t queries = extent(in.queries, 1);
        const index_t rows =
            extent(in.queries, 0) / in.kv_heads() * (newest > 0 ? std::min(newest, queries) : queries);
        row_group_ = std::min(rows, kernels::tile_query_rows) * in.longest_row();
    }

    /// Bytes with which for_each_head() runs at the full width of this executor; those for one worker are enough.
    /// take(workspace&) takes what a worker needs beside its logits.
    template <class Executor, class Take>
    [[nodiscard]] index_t workspace_bytes(const Executor& ex, Take&& take) const {
        return for_each_item_bytes(ex, kv_heads_, worker_bytes(worker_count(ex, kv_heads_), take));
    }

    /// Calls fn(kv_head, logits, own) for every KV head: memory for logits, and a workspace with what take() takes.
    /// Returns what for_each_item() does.
    template <class Executor, class Take, class Fn>
    [[nodiscard]] status for_each_head(workspace& scratch, Executor& ex, Take&& take, Fn&& fn) const {
        index_t workers = worker_count(ex, kv_heads_);
        index_t bytes = worker_bytes(workers, take);
        while (workers > 1 && saturated_product(workers, bytes) > scratch.free_bytes()) {
            bytes = worker_bytes(--workers, take);
        }
        return for_each_item(kv_heads_, bytes, scratch, ex, [&](index_t g, workspace& own) {
            const auto logits = own.take<float>(floats(workers));
            fn(g, logits, own);
        });
    }

  private:
    // Logits that one of `workers` keeps.
    [[nodiscard]] index_t floats(index_t workers) const { return std::min(row_group_, most_ / workers); }

    template <class Take>
    [[nodiscard]] index_t worker_bytes(index_t workers, Take&& take) const {
        workspace counting = workspace::counting();
        static_cast<void>(counting.take<float>(floats(workers)));
        take(counting);
        return counting.needed_bytes();
    }

    index_t kv_heads_;
    index_t most_;      // of all workers
    index_t row_group_; // logits of the largest row group
};

} // namespace KVTRIM_NAMESPACE
