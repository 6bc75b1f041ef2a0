// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Two stages of a third party. Each struct is all it takes: it then works with every allocator, reranker, cache layout,
// executor and compaction of the library.

#include <kvtrim/policy/snapkv.hpp>

#include <cmath>

// A scorer: keep the tokens whose values are large. Rows come from the library's reader, which decodes every source by vectors.
struct value_size {
    static constexpr bool writes_attention = false;

    template <class Inputs, class Executor = kvtrim::serial_executor>
    kvtrim::index_t workspace_bytes(const Inputs& in, const kvtrim::eviction_request&,
                                    const Executor& ex = {}) const {
        return kvtrim::for_each_item_bytes(ex, in.kv_heads(), tile_bytes(in));
    }

    template <class Inputs, class Executor>
    kvtrim::status score(const Inputs& in, const kvtrim::eviction_request& request,
                         const kvtrim::token_scores& out, kvtrim::workspace& scratch, Executor& ex) const {
        if (const auto s = kvtrim::validate_scoring(*this, in, request, out); !s.ok()) { return s; }
        return kvtrim::for_each_item(
            in.kv_heads(), tile_bytes(in), scratch, ex, [&](kvtrim::index_t head, kvtrim::workspace& own) {
                const kvtrim::row_tile tile(in.head_dim(), own);
                float* score = out.importance_rows().row(head).data();
                kvtrim::for_each_row(in.values, head, kvtrim::candidates(request.protect, in.tokens(head)),
                                     tile, [&](kvtrim::index_t, std::span<const float> row) {
                                         float sum = 0;
                                         for (const float x : row) { sum += std::abs(x); }
                                         *score++ = sum;
                                     });
            });
    }

  private:
    template <class Inputs>
    static kvtrim::index_t tile_bytes(const Inputs& in) {
        return kvtrim::row_tile::bytes(in.head_dim());
    }
};

// An aggregator: the mean attention of all queries that read a KV head, without pooling.
struct plain_mean {
    static constexpr bool writes_attention = false;

    static kvtrim::status validate() { return {}; }
    static kvtrim::index_t halo() { return 0; }
    static kvtrim::index_t lanes(kvtrim::index_t) { return 1; }

    void add(const kvtrim::attention_tile& tile, std::span<float> sums) const {
        tile.add_row_sums(0, tile.query_rows, sums.data() + tile.first);
    }
    void finish(const kvtrim::attention_head& head, std::span<float> sums, std::span<float> importance,
                std::span<float>) const {
        const auto rows = static_cast<float>(head.group_size * head.queries);
        for (std::size_t c = 0; c < importance.size(); ++c) { importance[c] = sums[c] / rows; }
    }
};
