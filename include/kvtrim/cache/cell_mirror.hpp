// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// What each cell of a cache holds, for engines that do not expose it (llama.cpp: one mirror per stream of cells).
//
//   cell        0    1    2    3    4
//   position    0    1    2    -    0       -1 where the cell is free
//   sequences   0    0    0,1  -    2       a bit each, so at most 64
//
// The engine says where it writes (the index tensor of llama.cpp's set_rows), and everything else that changes cells is a call
// of the program's own, which it repeats here:
//
//   fill(cells, positions, sequence)     tokens were written
//   remove(sequence, begin, end)         llama_memory_seq_rm; an end below 0: all behind begin
//   shift(sequence, begin, end, delta)   llama_memory_seq_add; cells that other sequences share move for those too
//   copy(from, to)                       llama_memory_seq_cp of a whole sequence in a unified cache
//   restore(sequence)                    llama_state_seq_get_data, seq_rm of all, llama_state_seq_set_data: the state lists cells
//                                        in ascending order, and they come back in the first free ones. Not between a shift and
//                                        the next fill: llama.cpp turns shifted keys when it decodes, and saves them unturned
//   list(sequence, room, out)            the cells in the order of the sequence (cache/list_cells.hpp)
//
// Cost: O(cells) per call, fill O(tokens). A value: copies are independent.

#include <kvtrim/cache/list_cells.hpp>

#include <algorithm>
#include <vector>

namespace KVTRIM_NAMESPACE {

/// Position and sequences of every cell. Calls that are refused change nothing.
class cell_mirror {
  public:
    /// Sequences are numbered from 0.
    static constexpr int most_sequences = 64;

    /// Free cells. The mirror is empty, and validate() says why, for a negative number of them, or more than 2^31 - 1.
    explicit cell_mirror(index_t cells = 0) {
        if (cells < 0 || cells > std::numeric_limits<std::int32_t>::max()) {
            validity_ = {errc::invalid_parameter, "cell_mirror: cells are numbered in 31 bits"};
            return;
        }
        positions_.assign(static_cast<std::size_t>(cells), -1);
        sequences_.assign(static_cast<std::size_t>(cells), 0);
    }

    cell_mirror(const cell_mirror&) = default;       ///< a copy
    cell_mirror(cell_mirror&&) = default;            ///< takes the memory
    cell_mirror& operator=(cell_mirror&&) = default; ///< takes the memory
    /// A copy; where an allocation throws this is as it was.
    cell_mirror& operator=(const cell_mirror& other) { return *this = cell_mirror(other); }

    [[nodiscard]] status validate() const { return validity_; } ///< why it is not valid, or ok
    /// Cells of the cache.
    [[nodiscard]] index_t cells() const { return std::ssize(positions_); }
    /// [cells] -1 where a cell is free.
    [[nodiscard]] std::span<const std::int32_t> positions() const { return positions_; }
    /// How a sequence uses a cell; not_used for a cell or sequence that cannot be.
    [[nodiscard]] cell_use use(int sequence, index_t cell) const {
        if (!is_sequence(sequence) || cell < 0 || cell >= cells()) { return cell_use::not_used; }
        const std::uint64_t holders = sequences_[static_cast<std::size_t>(cell)];
        if ((holders & bit(sequence)) == 0) { return cell_use::not_used; }
        return holders == bit(sequence) ? cell_use::owned : cell_use::shared;
    }
    /// Cells of a sequence, shared ones included.
    [[nodiscard]] index_t used(int sequence) const {
        index_t count = 0;
        for (index_t c = 0; c < cells(); ++c) { count += use(sequence, c) != cell_use::not_used ? 1 : 0; }
        return count;
    }
    /// Cells that no sequence uses.
    [[nodiscard]] index_t free_cells() const { return std::count(positions_.begin(), positions_.end(), -1); }
    /// The highest cell in use by any sequence, plus one: how far llama.cpp attends, but for padding.
    [[nodiscard]] index_t end_of_use() const {
        index_t end = cells();
        while (end > 0 && sequences_[static_cast<std::size_t>(end - 1)] == 0) { --end; }
        return end;
    }
    /// list_cells() of a sequence. Returns its answer, or invalid_parameter for a sequence that cannot be.
    [[nodiscard]] status list(int sequence, std::span<std::int32_t> room, cell_list& out,
                              const cell_list_options& options = {}) const {
        if (const status s = check(sequence); !s.ok()) { return s; }
        return list_cells(
            positions_, [&](index_t c) { return use(sequence, c); }, room, out, options);
    }

    /// Token i of the sequence is now in cells[i], at positions[i]; what was there is gone. Returns what validate() says,
    /// invalid_parameter for a sequence that cannot be or lists of different lengths, invalid_table for a cell outside or a
    /// position below 0, views_overlap for a list of positions(); with nothing changed.
    [[nodiscard]] status fill(std::span<const std::int64_t> cells_written,
                              std::span<const std::int32_t> positions, int sequence) {
        if (const status s = check(sequence); !s.ok()) { return s; }
        if (cells_written.size() != positions.size()) {
            return {errc::invalid_parameter, "cell_mirror: each cell needs a position"};
        }
        for (std::size_t i = 0; i < positions.size(); ++i) {
            if (cells_written[i] < 0 || cells_written[i] >= cells() || positions[i] < 0) {
                return {errc::invalid_table, "cell_mirror: a cell outside, or a negative position"};
            }
        }
        if (overlap(bytes_of(std::span(positions_)), bytes_of(positions))) {
            return {errc::views_overlap, "cell_mirror: its own positions are no list of new ones"};
        }
        for (std::size_t i = 0; i < positions.size(); ++i) {
            const auto c = static_cast<std::size_t>(cells_written[i]);
            positions_[c] = positions[i];
            sequences_[c] = bit(sequence);
        }
        awaits_turn_ = awaits_turn_ && positions.empty();
        return {};
    }

    /// Removes the sequence from its cells at positions [begin, end); an end below 0 is behind all. A cell that no other sequence
    /// uses is then free. Returns what validate() says, or invalid_parameter for a sequence that cannot be.
    [[nodiscard]] status remove(int sequence, index_t begin, index_t end) {
        return for_each_at(sequence, begin, end, [&](std::size_t c) {
            sequences_[c] &= ~bit(sequence);
            if (sequences_[c] == 0) { positions_[c] = -1; }
        });
    }

    /// Adds delta to the positions in [begin, end) of the sequence's cells; an end below 0 is behind all. Returns what remove()
    /// does, or invalid_table where a position would leave 0 ... 2^31 - 1; with nothing changed.
    [[nodiscard]] status shift(int sequence, index_t begin, index_t end, index_t delta) {
        bool fits = true;
        const status s = for_each_at(sequence, begin, end, [&](std::size_t c) {
            const index_t p = positions_[c];
            fits = fits && delta >= -p && delta <= std::numeric_limits<std::int32_t>::max() - p;
        });
        if (!s.ok()) { return s; }
        if (!fits) {
            return {errc::invalid_table, "cell_mirror: a cell would have a position that cannot be"};
        }
        return for_each_at(sequence, begin, end, [&](std::size_t c) {
            positions_[c] += static_cast<std::int32_t>(delta);
            awaits_turn_ = awaits_turn_ || delta != 0;
        });
    }

    /// Sequence `to` has the cells of `from` too, besides its own. Returns what validate() says, or invalid_parameter for a
    /// sequence that cannot be.
    [[nodiscard]] status copy(int from, int to) {
        if (const status s = check(to); !s.ok()) { return s; }
        return for_each_at(from, 0, -1, [&](std::size_t c) { sequences_[c] |= bit(to); });
    }

    /// The sequence's cells move to the first cells that are then free, in their order. Returns what validate() says,
    /// invalid_parameter for a sequence that cannot be or cells that were shifted since the last fill, or no_room (needed: cells)
    /// where other sequences hold too many; with nothing changed.
    [[nodiscard]] status restore(int sequence) {
        if (const status s = check(sequence); !s.ok()) { return s; }
        if (awaits_turn_) {
            return {errc::invalid_parameter,
                    "cell_mirror: shifted keys are turned in the next decode: save them behind it"};
        }
        cell_mirror moved = *this;
        std::vector<std::int32_t> state;
        for (index_t c = 0; c < cells(); ++c) {
            if (use(sequence, c) != cell_use::not_used) {
                state.push_back(positions_[static_cast<std::size_t>(c)]);
            }
        }
        if (const status s = moved.remove(sequence, 0, -1); !s.ok()) { return s; }
        std::size_t next = 0;
        for (std::size_t c = 0; c < positions_.size() && next < state.size(); ++c) {
            if (moved.sequences_[c] != 0) { continue; }
            moved.positions_[c] = state[next++];
            moved.sequences_[c] = bit(sequence);
        }
        if (next < state.size()) {
            return {errc::no_room, "cell_mirror: cells that are shared come back as copies",
                    std::ssize(state)};
        }
        *this = std::move(moved);
        return {};
    }

    friend bool operator==(const cell_mirror& a, const cell_mirror& b) {
        return a.positions_ == b.positions_ && a.sequences_ == b.sequences_;
    }

  private:
    [[nodiscard]] static constexpr bool is_sequence(int s) { return s >= 0 && s < most_sequences; }
    [[nodiscard]] static constexpr std::uint64_t bit(int sequence) { return std::uint64_t{1} << sequence; }

    [[nodiscard]] status check(int sequence) const {
        if (!validity_.ok() || is_sequence(sequence)) { return validity_; }
        return {errc::invalid_parameter, "cell_mirror: sequences are numbered 0 to 63"};
    }

    template <class Fn>
    [[nodiscard]] status for_each_at(int sequence, index_t begin, index_t end, Fn&& fn) {
        if (const status s = check(sequence); !s.ok()) { return s; }
        for (std::size_t c = 0; c < positions_.size(); ++c) {
            const index_t p = positions_[c];
            if (use(sequence, static_cast<index_t>(c)) == cell_use::not_used || p < begin) { continue; }
            if (end < 0 || p < end) { fn(c); }
        }
        return {};
    }

    std::vector<std::int32_t> positions_;
    std::vector<std::uint64_t> sequences_;
    bool awaits_turn_ = false; // shifted since the last fill
    status validity_;
};

} // namespace KVTRIM_NAMESPACE
