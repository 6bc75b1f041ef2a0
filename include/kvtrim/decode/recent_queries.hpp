// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The newest queries of one layer of one sequence: the observation window, carried across prompt chunks and decode
// steps.
//
//   queries of the sequence   0 ......... | window, shown by view() | rollback |
//   rows kept                             [q_heads, window + rollback, head_dim], a ring
//
// The scores of every window scorer are functions of the newest queries and the keys in the cache. So a prompt that
// came in chunks of any sizes, the last perhaps shorter than the window, is scored bit for bit as if it had come in
// one piece, and a policy that needs a window (SnapKV, Ada-KV, CriticalKV, DefensiveKV, TOVA) works during generation.
//
//     queries.append(chunk);                                  // [q_heads, n, head_dim], after each forward
//     layer(keys, values).with_queries(queries.view());       // oldest to newest, at most `window`
//
// Scores need each query at the row of its own token: protect the window (request.protect.window_tokens >= window).
// Speculative decoding: append the drafts' queries too, score with view(drafts) and protect.rollback_tokens = drafts,
// and rollback(rejected) undoes them; the ring then shows what it would have shown without them.
//
// A value: copies are forks; save() and restore() work (base/plain_memory.hpp). Cost: one copy of each query.
// Numerics: T = float keeps what any view gives, f16 and bf16 keep such queries exactly in half the memory.

#include <kvtrim/base/plain_memory.hpp>
#include <kvtrim/base/row_source.hpp>

#include <algorithm>

namespace kvtrim {

template <element T>
class query_ring_view;

template <element T = float>
class recent_queries {
  public:
    // window: how many queries a scorer sees. rollback_tokens: how many may be undone without one of them missing.
    // Requires window > 0 and the others >= 0.
    recent_queries(index_t q_heads, index_t window, index_t head_dim, index_t rollback_tokens = 0)
        : shape_{q_heads, window, head_dim, window + rollback_tokens, 0, 0} {
        KVTRIM_EXPECTS(window > 0 && q_heads >= 0 && head_dim >= 0 && rollback_tokens >= 0,
                       "recent_queries: the window must be positive, the other sizes not negative");
        rows_.resize(static_cast<std::size_t>(q_heads * capacity() * head_dim));
    }

    [[nodiscard]] index_t q_heads() const { return shape_.q_heads; }
    [[nodiscard]] index_t window() const { return shape_.window; }
    [[nodiscard]] index_t head_dim() const { return shape_.head_dim; }
    // Queries held: all of a short sequence, at most window + rollback.
    [[nodiscard]] index_t held() const { return shape_.held; }

    // Takes the newest queries, oldest first. Requires [q_heads, any, head_dim].
    template <cache_view Queries>
    void append(const Queries& chunk) {
        KVTRIM_EXPECTS(extent(chunk, 0) == q_heads() && extent(chunk, 2) == head_dim(),
                       "recent_queries: queries must be [q_heads, any number, head_dim]");
        const index_t count = extent(chunk, 1);
        const index_t taken = std::min(count, capacity());
        for (index_t done = 0; done < taken;) {
            const index_t slot = slot_of(shape_.next + done);
            const index_t run = std::min(taken - done, capacity() - slot);
            for (index_t h = 0; h < q_heads(); ++h) {
                store(chunk, h, count - taken + done, run, rows_.data() + offset(h, slot));
            }
            done += run;
        }
        shape_.next = slot_of(shape_.next + taken);
        shape_.held = std::min(shape_.held + taken, capacity());
    }

    // Forgets the newest `count` queries. Requires 0 <= count <= held(); up to rollback_tokens the window stays full.
    void rollback(index_t count) {
        KVTRIM_EXPECTS(0 <= count && count <= held(),
                       "recent_queries: only queries that are held can be undone");
        shape_.next = slot_of(shape_.next + capacity() - count);
        shape_.held -= count;
    }

    // The newest `window` queries before the newest `rollback_tokens`, fewer of a short sequence; [q_heads, queries,
    // head_dim], a row_source. Valid while this object lives and does not change. Requires 0 <= rollback_tokens <= held().
    [[nodiscard]] query_ring_view<T> view(index_t rollback_tokens = 0) const& {
        KVTRIM_EXPECTS(0 <= rollback_tokens && rollback_tokens <= held(),
                       "recent_queries: the rollback tail is longer than what is held");
        return query_ring_view<T>(*this, std::min(window(), held() - rollback_tokens), rollback_tokens);
    }
    query_ring_view<T> view(index_t = 0) const&& = delete; // a view of a temporary

    void write(memory_writer& out) const {
        out.put(tag);
        out.put(shape_);
        out.put(std::span<const T>(rows_));
    }
    [[nodiscard]] bool read(memory_reader& in) {
        std::uint32_t kind = 0;
        if (!in.get(kind) || kind != tag || !in.get(shape_)) { return false; }
        const auto& [q_heads, window, head_dim, capacity, next, held] = shape_;
        if (window <= 0 || window > capacity || next < 0 || next >= capacity || held < 0 || held > capacity ||
            q_heads < 0 || head_dim < 0 || (head_dim > 0 && !in.holds<T>(capacity, head_dim)) ||
            !in.holds<T>(q_heads, capacity * head_dim)) {
            return false;
        }
        rows_.resize(static_cast<std::size_t>(q_heads * capacity * head_dim));
        return in.get(std::span(rows_));
    }

  private:
    friend class query_ring_view<T>;

    struct shape {
        index_t q_heads, window, head_dim;
        index_t capacity; // window + rollback
        index_t next;     // slot of the next query, in [0, capacity)
        index_t held;
    };
    static constexpr std::uint32_t tag = 0x30714B54 + (sizeof(T) << 24);

    [[nodiscard]] index_t capacity() const { return shape_.capacity; }
    [[nodiscard]] index_t slot_of(index_t number) const { return number % capacity(); }
    [[nodiscard]] index_t offset(index_t head, index_t slot) const {
        return (head * capacity() + slot) * head_dim();
    }

    template <class Queries>
    void store(const Queries& chunk, index_t head, index_t first, index_t count, T* out) const {
        if constexpr (std::is_same_v<T, float>) {
            load_rows(chunk, head, first, count, out);
        } else {
            static_assert(tensor_view<Queries, 3>,
                          "kvtrim: these queries are read as floats: keep them in recent_queries<float>");
            for (index_t i = 0; i < count; ++i) {
                for (index_t d = 0; d < head_dim(); ++d) {
                    *out++ = element_traits<T>::from_float(to_float(at(chunk, head, first + i, d)));
                }
            }
        }
    }

    shape shape_;
    std::vector<T> rows_; // [q_heads, capacity, head_dim]
};

// Queries of a ring in their order, as floats.
template <element T>
class query_ring_view {
  public:
    [[nodiscard]] index_t extent(std::size_t r) const {
        return r == 0 ? ring_->q_heads() : r == 1 ? count_ : ring_->head_dim();
    }
    void load_rows(index_t head, index_t first, index_t count, float* tile) const {
        const index_t oldest = ring_->shape_.next + ring_->capacity() - skipped_ - count_;
        for (index_t i = first; i < first + count; ++i) {
            const T* row = ring_->rows_.data() + ring_->offset(head, ring_->slot_of(oldest + i));
            for (index_t d = 0; d < ring_->head_dim(); ++d) { *tile++ = to_float(row[d]); }
        }
    }

  private:
    friend class recent_queries<T>;

    query_ring_view(const recent_queries<T>& ring, index_t count, index_t skipped)
        : ring_(&ring), count_(count), skipped_(skipped) {}

    const recent_queries<T>* ring_;
    index_t count_;
    index_t skipped_; // newest queries that are left out
};

} // namespace kvtrim
