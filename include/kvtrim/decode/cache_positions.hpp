// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The position of each cached token of one layer of one sequence in the text, and the position that its key is rotated to,
// after any number of evictions.
//
//   positions(head)          [tokens(head)]  int32, ascending; in the text, as masks and sliding windows use them
//   rotary_positions(head)   [tokens(head)]  int32, ascending; what the key's bits are rotated to
//   next_position()          what the next token's query and key are rotated to
//   seen_tokens()            how many tokens the sequence has had: the next token's position in the text
//
// Both are the same until keys are closed up. A cut alone leaves gaps between rotary positions, and attention over them
// is right: they only come closer to the end of the model's context. close_up() (decode/close_up.hpp) takes the gaps out,
// keys and positions together, when reclaimable_positions() is large enough: one rotation for many cuts rounds the keys
// once.
//
//   closed up: the first pinned rows of every head stay; the others end at next_position() - 1 in every head, without gaps
//   between each other
//
// A value: copies are forks; save() and restore() work (core/save.hpp). Memory: 4 bytes per token and KV head, 8
// once keys were closed up.

#include <kvtrim/core/any_index.hpp>
#include <kvtrim/decode/token_rows.hpp>

#include <cstdint>
#include <limits>

namespace KVTRIM_NAMESPACE {

/// How keys are closed up.
struct close_up_options {
    /// The first rows of every head that stay where they are, as a prefix that other sequences read.
    index_t pinned_tokens = 0;
    /// For engines with one position per token for all layers: the largest closed_next_position() of the layers, where
    /// these were cut to different lengths.
    index_t least_next_position = 0;
};

/// Text and rotary positions of the cached tokens of one layer of one sequence. A plain value.
class cache_positions {
  public:
    using position = std::int32_t; ///< a position in the text

    /// reserved_tokens: per head, so that nothing allocates up to there. It has no heads, and validate() says why, for a number
    /// that is negative, or more of both than memory can hold.
    explicit cache_positions(index_t kv_heads, index_t reserved_tokens = 0)
        : text_(kv_heads, reserved_tokens), rotary_(0) {}

    cache_positions(const cache_positions&) = default;       ///< a fork
    cache_positions(cache_positions&&) = default;            ///< takes the memory
    cache_positions& operator=(cache_positions&&) = default; ///< takes the memory
    /// A fork; where an allocation throws this is as it was.
    cache_positions& operator=(const cache_positions& other) { return *this = cache_positions(other); }

    /// Why this object is not valid, or ok.
    [[nodiscard]] status validate() const { return text_.validate(); }

    [[nodiscard]] index_t kv_heads() const { return text_.kv_heads(); } ///< 0 where it is not valid
    /// Tokens of a head, which is not checked.
    [[nodiscard]] index_t tokens(index_t head) const { return text_.tokens(head); }
    /// [kv_heads] rows of the cache that are filled, for cache/filled.hpp.
    [[nodiscard]] std::span<const index_t> lengths() const { return text_.lengths(); }
    /// Tokens of all heads.
    [[nodiscard]] index_t total_tokens() const { return text_.total_tokens(); }
    [[nodiscard]] index_t longest_row() const { return text_.longest_row(); } ///< of the longest head
    /// [tokens(head)] positions in the text, ascending; the head is not checked.
    [[nodiscard]] std::span<const position> positions(index_t head) const { return text_.row(head); }
    /// [tokens(head)] positions that the keys are rotated to, ascending; the head is not checked.
    [[nodiscard]] std::span<const position> rotary_positions(index_t head) const {
        return is_closed_ ? rotary_.row(head) : text_.row(head);
    }
    [[nodiscard]] index_t next_position() const { return next_; } ///< rotary, of the next token
    [[nodiscard]] index_t seen_tokens() const { return seen_; }   ///< position of the next token in the text

    /// Records that the cache got `count` new tokens at its end, in every head. Returns invalid_parameter for a negative
    /// count, or index_overflow (needed: positions) beyond 2^31 - 1 tokens, with nothing changed.
    [[nodiscard]] status append(index_t count) {
        if (const status s = validate(); !s.ok()) { return s; }
        if (count < 0) {
            return {errc::invalid_parameter, "append: the number of tokens must not be negative"};
        }
        constexpr index_t most = std::numeric_limits<position>::max();
        if (count > most - seen_) {
            return {errc::index_overflow, "cache_positions: a position must be below 2^31",
                    count > std::numeric_limits<index_t>::max() - seen_ ? count : seen_ + count};
        }
        for (auto* rows : {&text_, &rotary_}) { // all memory first: if it fails, both are unchanged
            if (rows == &rotary_ && !is_closed_) { break; }
            if (const status s = rows->reserve(count); !s.ok()) { return s; }
        }
        static_cast<void>(text_.append(count, [&](index_t i) { return static_cast<position>(seen_ + i); }));
        if (is_closed_) {
            static_cast<void>(
                rotary_.append(count, [&](index_t i) { return static_cast<position>(next_ + i); }));
        }
        seen_ += count;
        next_ += count;
        return {};
    }

    /// Records that the newest `count` tokens were undone (rejected drafts). Returns invalid_parameter (needed: tokens that
    /// can be undone), with nothing changed, if a head has lost one of them.
    [[nodiscard]] status rollback(index_t count) {
        if (const status s = validate(); !s.ok()) { return s; }
        if (count < 0 || count > text_.droppable_tokens()) {
            return {errc::invalid_parameter,
                    "rollback: tokens that were evicted or never cached cannot be undone; protect them with "
                    "request.protect.rollback_tokens",
                    text_.droppable_tokens()};
        }
        static_cast<void>(text_.drop_newest(count));
        if (is_closed_) { static_cast<void>(rotary_.drop_newest(count)); }
        seen_ -= count;
        next_ -= count;
        return {};
    }

    /// Returns what validate() says, or plan_mismatch for a plan of another cache.
    [[nodiscard]] status validate(const keep_plan& plan) const {
        return validate().ok() ? check_plan(text_, plan) : validate();
    }
    /// Records that the cache was cut by a plan. Returns what validate(plan) says, with nothing changed.
    [[nodiscard]] status compact(const keep_plan& plan) {
        if (const status s = validate(); !s.ok()) { return s; }
        if (const status s = text_.compact(plan); !s.ok()) { return s; }
        return is_closed_ ? rotary_.compact(plan) : status{};
    }

    /// How many positions close_up() would win for tokens to come; 0 for options that it refuses.
    [[nodiscard]] index_t reclaimable_positions(const close_up_options& options = {}) const {
        return validate(options).ok() ? next_ - closed_next_position(options) : 0;
    }
    /// What next_position() will be when keys are closed up: row i of a head gets this - tokens(head) + i, but for pinned
    /// rows; next_position() for options that it refuses.
    [[nodiscard]] index_t closed_next_position(const close_up_options& options = {}) const {
        if (kv_heads() == 0 || !validate(options).ok()) { return next_; }
        const index_t pinned = options.pinned_tokens;
        return std::max(pinned_end(0, pinned) + longest_row() - pinned, options.least_next_position);
    }
    /// Returns invalid_parameter unless every head has the pinned rows, and has them at the same rotary positions, and no
    /// position is asked for beyond next_position(). O(heads).
    [[nodiscard]] status validate(const close_up_options& options) const {
        if (const status s = validate(); !s.ok()) { return s; }
        const index_t pinned = options.pinned_tokens;
        bool fits = pinned >= 0;
        for (index_t g = 0; fits && g < kv_heads(); ++g) {
            fits = pinned <= tokens(g) && pinned_end(g, pinned) == pinned_end(0, pinned);
        }
        if (!fits) {
            return {
                errc::invalid_parameter,
                "close_up: pinned tokens are the first rows of every head, at the same positions in each"};
        }
        if (options.least_next_position > next_) {
            return {errc::invalid_parameter,
                    "close_up: positions come closer, they do not go beyond the next one", next_};
        }
        return {};
    }
    /// Allocates what the next close_up() needs: to be called before keys are rotated, which cannot be undone. Returns what
    /// validate() says.
    [[nodiscard]] status reserve_close_up() {
        if (const status s = validate(); !s.ok()) { return s; }
        if (!is_closed_) { rotary_ = text_; }
        return {};
    }
    /// Records that the keys were closed up. Returns what validate(options) says, with nothing changed. For engines that
    /// rotate keys themselves; else see decode/close_up.hpp.
    [[nodiscard]] status close_up(const close_up_options& options = {}) {
        if (const status s = validate(options); !s.ok()) { return s; }
        if (!is_closed_) { rotary_ = text_; }
        is_closed_ = true;
        const index_t next = closed_next_position(options);
        for (index_t g = 0; g < kv_heads(); ++g) {
            const auto row = rotary_.row(g);
            for (index_t i = options.pinned_tokens; i < tokens(g); ++i) {
                row[static_cast<std::size_t>(i)] = static_cast<position>(next - tokens(g) + i);
            }
        }
        next_ = next;
        return {};
    }

    /// Writes the state, for save() (core/save.hpp).
    void write(memory_writer& out) const {
        out.put(tag);
        out.put(seen_);
        out.put(next_);
        out.put(static_cast<std::uint32_t>(is_closed_));
        text_.write(out);
        if (is_closed_) { rotary_.write(out); }
    }
    /// Reads it back, for restore(). False for bytes that are no such state; this object is then not to be used.
    [[nodiscard]] bool read(memory_reader& in) {
        std::uint32_t kind = 0, closed = 0;
        if (!in.get(kind) || kind != tag || !in.get(seen_) || !in.get(next_) || !in.get(closed)) {
            return false;
        }
        constexpr index_t most = std::numeric_limits<position>::max();
        if (closed > 1 || next_ < 0 || seen_ < next_ || seen_ > most || !text_.read(in)) { return false; }
        is_closed_ = closed == 1;
        rotary_ = token_rows<position>(0);
        if (!is_closed_) { return next_ == seen_ && ascends(text_, seen_); }
        return rotary_.read(in) && same_rows() && ascends(text_, seen_) && ascends(rotary_, next_);
    }

  private:
    static constexpr std::uint32_t tag = 0x32704B54; // "TKp2"

    [[nodiscard]] bool same_rows() const {
        return rotary_.droppable_tokens() == text_.droppable_tokens() &&
               std::equal(text_.lengths().begin(), text_.lengths().end(), rotary_.lengths().begin(),
                          rotary_.lengths().end());
    }
    // Whether positions ascend from 0 on and stay below `end`, and the tokens that can be undone are the last before it.
    static bool ascends(const token_rows<position>& rows, index_t end) {
        const index_t newest = rows.droppable_tokens();
        if (newest > end) { return false; }
        for (index_t g = 0; g < rows.kv_heads(); ++g) {
            const auto row = rows.row(g);
            if (row.empty()) { continue; } // and no token can be undone
            const auto descends = [&](std::size_t i) { return row[i] >= row[i + 1]; };
            if (row.front() < 0 || row.back() >= end || any_index(row.size() - 1, descends)) { return false; }
            // Ascending, they can only be the numbers from here to the end.
            if (newest > 0 && row[static_cast<std::size_t>(rows.tokens(g) - newest)] != end - newest) {
                return false;
            }
        }
        return true;
    }
    [[nodiscard]] index_t pinned_end(index_t head, index_t pinned_tokens) const {
        if (pinned_tokens == 0) { return 0; }
        return index_t{rotary_positions(head)[static_cast<std::size_t>(pinned_tokens - 1)]} + 1;
    }

    bool is_closed_ = false; // rotary_ has rows of its own
    token_rows<position> text_;
    token_rows<position> rotary_;
    index_t seen_ = 0;
    index_t next_ = 0;
};

} // namespace KVTRIM_NAMESPACE
