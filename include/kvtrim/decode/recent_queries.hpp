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
// came in chunks of any sizes, the last perhaps shorter than the window, is scored as if it had come in one piece, and a
// policy that needs a window (SnapKV, Ada-KV, CriticalKV, DefensiveKV, TOVA) works during generation. Scores are the same bit
// for bit where the ring keeps the queries exactly; but at levels amx and neon_bf16, which multiply bf16 queries and keys as
// such, those of bf16 queries need recent_queries<bf16>: as floats they are multiplied as floats, the same within rounding.
//
//     queries.append(chunk);                                  // [q_heads, n, head_dim], after each forward
//     layer(keys, values).with_queries(queries.view());       // oldest to newest, at most `window`
//
// Scores need each query at the row of its own token: protect the window (request.protect.window_tokens >= window).
// Speculative decoding: append the drafts' queries too, score with view(drafts) and protect.rollback_tokens = drafts,
// and rollback(rejected) undoes them; the ring then shows what it would have shown without them.
//
// A value: copies are forks; save() and restore() work (core/save.hpp). Cost: one copy of each query.
// Numerics: T = float keeps what any view gives, f16 and bf16 keep such queries exactly in half the memory, others rounded.

#include <kvtrim/cache/check_outputs.hpp>
#include <kvtrim/cache/layer.hpp>
#include <kvtrim/cache/read_rows.hpp>
#include <kvtrim/core/saturated.hpp>
#include <kvtrim/core/save.hpp>

#include <algorithm>
#include <limits>

namespace KVTRIM_NAMESPACE {

template <element T>
class query_ring_view;

/// The newest queries of one layer of one sequence, in a ring. A plain value.
template <element T = float>
class recent_queries {
  public:
    /// window: how many queries a scorer sees. rollback_tokens: how many may be undone without one of them missing. The object is
    /// empty, and validate() says why, for no window, another number below 0, more than memory can hold, than most_heads
    /// (cache/layer.hpp), or than 2^31 - 1 queries.
    recent_queries(index_t q_heads, index_t window, index_t head_dim, index_t rollback_tokens = 0)
        : shape_{q_heads, window, head_dim, saturated_sum(window, rollback_tokens), 0, 0},
          validity_(shape_.validate()) {
        if (!validity_.ok()) { shape_ = {}; }
        allocate();
    }

    recent_queries(const recent_queries&) = default;       ///< a fork
    recent_queries(recent_queries&&) = default;            ///< takes the memory
    recent_queries& operator=(recent_queries&&) = default; ///< takes the memory
    /// A fork; where an allocation throws this is as it was.
    recent_queries& operator=(const recent_queries& other) { return *this = recent_queries(other); }

    /// Why this object is not valid, or ok.
    [[nodiscard]] status validate() const { return validity_; }
    [[nodiscard]] index_t q_heads() const { return shape_.q_heads; }   ///< query heads
    [[nodiscard]] index_t window() const { return shape_.window; }     ///< queries that a scorer sees
    [[nodiscard]] index_t head_dim() const { return shape_.head_dim; } ///< elements of a query
    /// Queries held: all of a short sequence, at most window + rollback.
    [[nodiscard]] index_t held() const { return shape_.held; }

    /// Takes the newest queries [q_heads, any number, head_dim], oldest first. Returns the answer of a view that is not
    /// valid, invalid_parameter for other heads or head_dim, rows_differ for heads with different numbers of queries,
    /// views_overlap for a view() of this object, with nothing changed.
    template <cache_view Queries>
    [[nodiscard]] status append(const Queries& chunk) {
        for (const status s : {validity_, kvtrim::validate(chunk)}) {
            if (!s.ok()) { return s; }
        }
        if (extent(chunk, 0) != q_heads() || extent(chunk, 2) != head_dim()) {
            return {errc::invalid_parameter,
                    "recent_queries: queries must be [q_heads, any number, head_dim]"};
        }
        const index_t count = extent(chunk, 1);
        for (index_t h = 0; h < q_heads(); ++h) {
            if (row_count(chunk, h) != count) {
                return {errc::rows_differ, "recent_queries: every head must have the same number of queries"};
            }
        }
        if (const status s = check_outputs(std::array{bytes_of(std::span(rows_))}, chunk); !s.ok()) {
            return s;
        }
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
        return {};
    }

    /// Forgets the newest `count` queries; up to rollback_tokens the window stays full. Returns invalid_parameter unless
    /// 0 <= count <= held(), with nothing changed.
    [[nodiscard]] status rollback(index_t count) {
        if (!validity_.ok()) { return validity_; }
        if (count < 0 || count > held()) {
            return {errc::invalid_parameter, "recent_queries: only queries that are held can be undone"};
        }
        shape_.next = slot_of(shape_.next + capacity() - count);
        shape_.held -= count;
        return {};
    }

    /// The newest `window` queries before the newest `rollback_tokens`, fewer of a short sequence; [q_heads, queries, head_dim],
    /// a row_source. To be read while this object lives and does not change. The object is empty, and validate() says why, unless
    /// 0 <= rollback_tokens <= held().
    [[nodiscard]] query_ring_view<T> view(index_t rollback_tokens = 0) const& {
        return query_ring_view<T>(*this, rollback_tokens);
    }
    query_ring_view<T> view(index_t = 0) const&& = delete; ///< a view of a temporary

    /// Writes the state, for save() (core/save.hpp).
    void write(memory_writer& out) const {
        out.put(tag);
        out.put(shape_);
        out.put(std::span<const T>(rows_));
    }
    /// Reads it back, for restore(). False for bytes that are no such state; this object is then not to be used.
    [[nodiscard]] bool read(memory_reader& in) {
        std::uint32_t kind = 0;
        if (!in.get(kind) || kind != tag || !in.get(shape_)) { return false; }
        validity_ = shape_.validate();
        if (!validity_.ok() || shape_.next < 0 || shape_.next >= capacity() || held() < 0 ||
            held() > capacity() || !in.holds<T>(shape_.elements(), 1)) {
            return false;
        }
        allocate();
        return in.get(std::span(rows_));
    }

  private:
    friend class query_ring_view<T>;

    struct shape {
        index_t q_heads, window, head_dim;
        index_t capacity; // window + rollback
        index_t next;     // slot of the next query, in [0, capacity)
        index_t held;

        [[nodiscard]] index_t elements() const { return q_heads * capacity * head_dim; }
        [[nodiscard]] status validate() const {
            constexpr index_t most = std::numeric_limits<std::int32_t>::max();
            constexpr index_t most_elements =
                std::numeric_limits<index_t>::max() / static_cast<index_t>(sizeof(T));
            if (window <= 0 || capacity < window || q_heads < 0 || head_dim < 0) {
                return {errc::invalid_parameter,
                        "recent_queries: the window must be positive, the other sizes not negative"};
            }
            if (q_heads > most_heads || capacity > most ||
                saturated_product(q_heads * capacity, head_dim) > most_elements) {
                return {errc::invalid_parameter, "recent_queries: more queries than memory can hold"};
            }
            return {};
        }
    };
    // Bytes of one element are not read as those of another.
    static constexpr std::uint32_t tag =
        0x30714B54 + (sizeof(T) << 24) + (std::is_same_v<T, bf16> ? std::uint32_t{1} << 24 : 0);

    [[nodiscard]] index_t capacity() const { return shape_.capacity; }
    [[nodiscard]] index_t slot_of(index_t number) const { return number % capacity(); }
    [[nodiscard]] index_t offset(index_t head, index_t slot) const {
        return (head * capacity() + slot) * head_dim();
    }

    void allocate() {
        rows_.resize(static_cast<std::size_t>(shape_.elements()));
        if (!std::is_same_v<T, float> && !rows_.empty()) {
            query_.resize(static_cast<std::size_t>(head_dim()));
        }
    }

    template <class Queries>
    void store(const Queries& chunk, index_t head, index_t first, index_t count, T* out) {
        if constexpr (std::is_same_v<T, float>) {
            load_rows(chunk, head, first, count, out);
        } else {
            if constexpr (std::is_same_v<stored_element<Queries>, T>) {
                if (keeps<T>(chunk)) { return load_rows(chunk, head, first, count, out); }
            }
            for (index_t i = first; i < first + count; ++i, out += head_dim()) {
                kernels::narrow(read_rows(chunk, head, i, 1, query_.data()).data, head_dim(), out);
            }
        }
    }

    std::vector<T> rows_; // [q_heads, capacity, head_dim]
    shape shape_;
    status validity_;
    std::vector<float> query_{}; // [head_dim] of a query that is rounded to T
};

/// Queries of a ring in their order, as floats.
template <element T>
class query_ring_view {
  public:
    /// Why this object is not valid, or ok.
    [[nodiscard]] status validate() const { return validity_; }
    /// [q_heads, queries, head_dim].
    [[nodiscard]] index_t extent(std::size_t r) const {
        if (!validity_.ok()) { return 0; }
        return r == 0 ? ring_->q_heads() : r == 1 ? count_ : ring_->head_dim();
    }
    /// Queries [first, first + count) in place, or nothing where they wrap around the end of the ring; for read_rows().
    [[nodiscard]] element_rows<T> rows_in_place(index_t head, index_t first, index_t count) const {
        const index_t slot = slot_of(first);
        return slot + count <= ring_->capacity() ? rows_from(head, slot) : element_rows<T>{};
    }
    /// Copies queries [first, first + count) to tile, as floats or as they are.
    template <class Out>
    void load_rows(index_t head, index_t first, index_t count, Out* tile) const {
        const index_t length = ring_->head_dim();
        const index_t slot = slot_of(first);
        const index_t older = std::min(count, ring_->capacity() - slot); // queries before the ring wraps
        copy_rows(rows_from(head, slot), older, length, tile);
        copy_rows(rows_from(head, 0), count - older, length, tile + older * length);
    }
    /// Whether the object's memory shares a byte with other memory.
    [[nodiscard]] bool overlaps(const strided_bytes& other) const {
        return overlap(bytes_of(std::span(ring_->rows_)), other);
    }

  private:
    friend class recent_queries<T>;

    query_ring_view(const recent_queries<T>& ring, index_t skipped)
        : ring_(&ring), skipped_(skipped), validity_(ring.validate()) {
        if (validity_.ok() && (skipped < 0 || skipped > ring.held())) {
            validity_ = {errc::invalid_parameter,
                         "recent_queries: the rollback tail is longer than what is held, or negative"};
        }
        if (validity_.ok()) { count_ = std::min(ring.window(), ring.held() - skipped); }
    }

    [[nodiscard]] index_t slot_of(index_t row) const {
        return ring_->slot_of(ring_->shape_.next + ring_->capacity() - skipped_ - count_ + row);
    }
    [[nodiscard]] element_rows<T> rows_from(index_t head, index_t slot) const {
        return {ring_->rows_.data() + ring_->offset(head, slot), ring_->head_dim()};
    }

    const recent_queries<T>* ring_;
    index_t count_ = 0;
    index_t skipped_; // newest queries that are left out
    status validity_;
};

} // namespace KVTRIM_NAMESPACE
