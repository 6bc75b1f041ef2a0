// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Where each cached token of one layer of one sequence stood in the text, through any number of evictions.
//
//   positions(head)  [tokens(head)]  int32, ascending; keys stay rotated to these
//
// A value: copies are forks; save() and restore() work (base/plain_memory.hpp). Memory: 4 bytes per token and KV head.

#include <kvtrim/decode/token_rows.hpp>

#include <cstdint>
#include <limits>

namespace kvtrim {

class cache_positions {
  public:
    using position = std::int32_t;

    /// reserved_tokens: per head, so that nothing allocates up to there. Not valid, and empty: token_rows::valid_size().
    explicit cache_positions(index_t kv_heads, index_t reserved_tokens = 0)
        : rows_(kv_heads, reserved_tokens) {}

    [[nodiscard]] status validate() const { return rows_.validate(); }
    [[nodiscard]] index_t kv_heads() const { return rows_.kv_heads(); }
    [[nodiscard]] index_t tokens(index_t head) const { return rows_.tokens(head); }
    // [kv_heads] rows of the cache that are filled, for base/filled.hpp.
    [[nodiscard]] std::span<const index_t> lengths() const { return rows_.lengths(); }
    [[nodiscard]] index_t total_tokens() const { return rows_.total_tokens(); } // of all heads
    [[nodiscard]] index_t longest_row() const { return rows_.longest_row(); }
    // The position that the next token will have: how many the sequence has had.
    [[nodiscard]] index_t next_position() const { return next_; }
    [[nodiscard]] std::span<const position> positions(index_t head) const { return rows_.row(head); }

    /// The cache got `count` new tokens at its end, in every head. Returns invalid_parameter for a negative count, index_overflow
    /// for more than 2^31 - 1 tokens so far (needed: tokens), with nothing changed.
    [[nodiscard]] status append(index_t count) {
        if (count > std::numeric_limits<position>::max() - next_) {
            return {errc::index_overflow, "cache_positions: a position must be below 2^31",
                    saturated_sum(next_, count)};
        }
        const status s = rows_.append(count, [&](index_t i) { return static_cast<position>(next_ + i); });
        if (s.ok()) { next_ += count; }
        return s;
    }
    /// The newest `count` tokens were undone (rejected drafts). Returns invalid_parameter where a head has lost one of them, with
    /// nothing changed.
    [[nodiscard]] status rollback(index_t count) {
        const status s = rows_.drop_newest(count);
        if (s.ok()) { next_ -= count; }
        return s;
    }
    /// The cache was cut by a plan. Returns plan_mismatch, with nothing changed.
    [[nodiscard]] status compact(const keep_plan& plan) { return rows_.compact(plan); }

    void write(memory_writer& out) const {
        out.put(tag);
        out.put(next_);
        rows_.write(out);
    }
    [[nodiscard]] bool read(memory_reader& in) {
        std::uint32_t kind = 0;
        return in.get(kind) && kind == tag && in.get(next_) && rows_.read(in) && can_be();
    }

  private:
    // Whether the positions are those of a life: ascending, below the next one, and the tokens that can be undone the newest.
    [[nodiscard]] bool can_be() const {
        const index_t undoable = rows_.droppable_tokens();
        if (next_ < undoable || next_ > std::numeric_limits<position>::max()) { return false; }
        for (index_t g = 0; g < kv_heads(); ++g) {
            const auto row = positions(g);
            index_t least = 0;
            for (const position p : row) {
                if (p < least || p >= next_) { return false; }
                least = index_t{p} + 1;
            }
            if (undoable > 0 && row[row.size() - static_cast<std::size_t>(undoable)] != next_ - undoable) {
                return false;
            }
        }
        return true;
    }

    static constexpr std::uint32_t tag = 0x31704B54; // "TKp1"

    token_rows<position> rows_;
    index_t next_ = 0;
};

} // namespace kvtrim
