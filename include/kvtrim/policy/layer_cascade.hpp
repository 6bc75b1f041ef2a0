// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// One budget over the rows of all layers, found while the layers arrive: what a threshold over all (layer, KV head)
// rows would keep, without ever holding more than `total` tokens and one layer.
//
//   one shot   every row keeps its best `safeguard` tokens; of all others the best total - sum of those stay
//   cascade    after layer l: the same over the rows of layers 0..l; all others are evicted at once
//
// Both end with the same tokens. Proof: a row's safeguarded tokens depend on that row alone, so they are the same at
// push time and at the end. All others compete for R(l) = total - (safeguarded tokens of layers 0..l) places. R falls
// as layers arrive and the number of competitors only grows, so a token outside the best R(l) of layers 0..l is outside the
// best R(L) of all layers: it can be evicted at once. After the last layer only such tokens have been evicted. Ties go to
// the lower (layer, row, column), the order of arrival, so they do not change under a later layer.
//
// Protected tokens are no candidates and never in the cascade; tokens of importance +infinity outrank all finite ones.
// Source: the global cut is Layer-DefensiveKV's, FFY0/DefensiveKV@9251b95 efficient_layer_defensivekv_press.py, whose
// authors keep every layer's cache until the last one is done; the cascade is ours.
// Method: competitors wait in buckets by the leading bits of their score; eviction empties the lowest buckets and splits
// one. A token that scores below all kept ones does not enter. Cost: a push costs its own tokens, those that leave
// (sorted), the rows they leave, and one bucket; the other tokens are not read. Memory: 16 bytes per held token.

#include <kvtrim/core/saturated.hpp>
#include <kvtrim/plan/find_top_k.hpp>
#include <kvtrim/plan/keep_plan.hpp>

#include <algorithm>
#include <numeric>
#include <vector>

namespace KVTRIM_NAMESPACE {

/// The tokens that stay under one budget over the layers pushed so far.
class layer_cascade {
  public:
    using column_index = keep_plan::table_index; ///< a candidate's column

    /// total: candidates that stay over all layers and rows. safeguard: best tokens of each row that do not compete.
    /// Not valid where one is negative: such a cascade holds nothing, and push() answers what validate() says.
    layer_cascade(index_t total, index_t safeguard) : total_(total), safeguard_(safeguard) {
        if (total < 0 || safeguard < 0) {
            validity_ = {errc::invalid_parameter, "layer_cascade: total and safeguard must not be negative"};
        }
    }

    layer_cascade(const layer_cascade&) = default;       ///< a copy
    layer_cascade(layer_cascade&&) = default;            ///< takes the memory
    layer_cascade& operator=(layer_cascade&&) = default; ///< takes the memory
    /// A copy; where an allocation throws this is as it was.
    layer_cascade& operator=(const layer_cascade& other) { return *this = layer_cascade(other); }

    /// A cascade that holds nothing, whose validate() and push() answer `refusal`: for functions that make cascades.
    [[nodiscard]] static layer_cascade invalid(const status& refusal) {
        layer_cascade cascade(0, 0);
        cascade.validity_ = refusal;
        return cascade;
    }

    /// Why this object is not valid, or ok.
    [[nodiscard]] status validate() const { return validity_; }

    [[nodiscard]] index_t layers() const { return std::ssize(layer_begin_) - 1; } ///< pushed so far
    /// Rows of a layer; the layer is not checked, here and below.
    [[nodiscard]] index_t rows(index_t layer) const { return begin_of(layer + 1) - begin_of(layer); }
    /// Candidates held in all rows; at most total after each push.
    [[nodiscard]] index_t held_tokens() const { return competing_ + safeguarded_; }
    /// Columns of a row that are kept so far, ascending.
    [[nodiscard]] std::span<const column_index> kept(index_t layer, index_t row) const {
        return kept_[static_cast<std::size_t>(begin_of(layer) + row)];
    }
    /// Columns that the last push evicted, ascending; for the new layer, all of its columns that are not kept.
    [[nodiscard]] std::span<const column_index> evicted(index_t layer, index_t row) const {
        return evicted_[static_cast<std::size_t>(begin_of(layer) + row)];
    }
    /// Whether the last push changed a layer's cache.
    [[nodiscard]] bool changed(index_t layer) const {
        for (index_t r = 0; r < rows(layer); ++r) {
            if (!evicted(layer, r).empty()) { return true; }
        }
        return false;
    }

    /// Adds the next layer's rows. Returns what validate() says, invalid_table for rows whose offsets are none,
    /// budget_below_protection (needed: tokens) if the safeguarded tokens alone exceed the total, and index_overflow beyond
    /// 2^31 - 1 columns or rows; with nothing changed.
    [[nodiscard]] status push(const score_rows& importance) {
        constexpr index_t most = std::numeric_limits<column_index>::max();
        if (!validity_.ok()) { return validity_; }
        if (const status s = kvtrim::validate(importance); !s.ok()) { return s; }
        index_t safeguarded = safeguarded_;
        for (index_t r = 0; r < importance.rows(); ++r) {
            safeguarded = saturated_sum(safeguarded, std::min(safeguard_, importance.length(r)));
            if (importance.length(r) > most) {
                return {errc::index_overflow, "layer_cascade: a row holds at most 2^31 - 1 tokens",
                        importance.length(r)};
            }
        }
        if (std::ssize(kept_) + importance.rows() > most) {
            return {errc::index_overflow, "layer_cascade: at most 2^31 - 1 rows"};
        }
        if (safeguarded > total_) {
            return {errc::budget_below_protection,
                    "layer_cascade: the safeguarded tokens alone exceed the total", safeguarded};
        }
        // If an allocation below throws, this is what every later call answers.
        validity_ = {errc::invalid_parameter, "layer_cascade: a push ran out of memory: begin again"};
        for (auto& row : evicted_) { row.clear(); }
        safeguarded_ = safeguarded;
        for (index_t r = 0; r < importance.rows(); ++r) { add_row(importance.row(r)); }
        layer_begin_.push_back(std::ssize(kept_));
        shrink(total_ - safeguarded_);
        validity_ = {};
        return {};
    }

    /// The tokens that stay in a layer's cache as it was before the last push, as a plan for compaction: candidate column
    /// c is cache row prefix + c while nothing was evicted, and `prefix` and `suffix` protected tokens lie around it.
    /// Returns invalid_parameter (a layer that was not pushed, needed: layers; a negative prefix or suffix) or
    /// index_overflow (needed: tokens), with out unchanged.
    [[nodiscard]] status plan(index_t layer, index_t prefix, index_t suffix, keep_plan& out) const {
        if (!validity_.ok()) { return validity_; }
        if (layer < 0 || layer >= layers()) {
            return {errc::invalid_parameter, "layer_cascade: this layer was not pushed", layers()};
        }
        if (prefix < 0 || suffix < 0) {
            return {errc::invalid_parameter, "layer_cascade: prefix and suffix must not be negative"};
        }
        const index_t around = saturated_sum(prefix, suffix);
        std::vector<index_t> counts;
        for (index_t r = 0; r < rows(layer); ++r) {
            const index_t tokens =
                saturated_sum(around, std::ssize(kept(layer, r)) + std::ssize(evicted(layer, r)));
            if (tokens > std::numeric_limits<column_index>::max()) {
                return {errc::index_overflow, "a plan addresses at most 2^31 - 1 tokens per head", tokens};
            }
            counts.push_back(around + std::ssize(kept(layer, r)));
        }
        if (const status s = out.reset(counts); !s.ok()) { return s; }
        for (index_t r = 0; r < rows(layer); ++r) {
            write_row(kept(layer, r), evicted(layer, r), prefix, out.writable_row(r));
        }
        return {};
    }

  private:
    struct entry {
        std::uint32_t bits; // ordered_bits of the score
        column_index row;   // over all layers
        column_index column;
    };
    static constexpr int bucket_shift = 20;
    static constexpr std::size_t buckets = std::size_t{1} << (32 - bucket_shift);

    [[nodiscard]] index_t begin_of(index_t layer) const {
        return layer_begin_[static_cast<std::size_t>(layer)];
    }

    // The row's safeguarded tokens are kept, whatever layers follow. The others are put into buckets by score.
    void add_row(std::span<float> scores) {
        const auto row = static_cast<column_index>(kept_.size());
        std::vector<column_index>& kept = kept_.emplace_back();
        std::vector<column_index>& evicted = evicted_.emplace_back();
        top_k_cut cut = find_top_k(scores, std::min(safeguard_, std::ssize(scores)));
        column_index safe = next_above(scores, cut, 0);
        for (column_index c = 0; c < std::ssize(scores); ++c) {
            const std::uint32_t bits = ordered_bits(scores[static_cast<std::size_t>(c)]);
            if (c != safe && bits < bar_) {
                evicted.push_back(c);
                continue;
            }
            kept.push_back(c);
            if (c == safe) {
                safe = next_above(scores, cut, c + 1);
                continue;
            }
            bucket_[bits >> bucket_shift].push_back({bits, row, c});
            ++competing_;
        }
    }

    // The next column from `begin` on that a cut selects; uses up cut.ties.
    [[nodiscard]] static column_index next_above(std::span<const float> scores, top_k_cut& cut,
                                                 column_index begin) {
        for (auto c = static_cast<std::size_t>(begin); c < scores.size(); ++c) {
            const std::uint32_t bits = ordered_bits(scores[c]);
            if (bits < cut.bits || (bits == cut.bits && cut.ties == 0)) { continue; }
            cut.ties -= bits == cut.bits ? 1 : 0;
            return static_cast<column_index>(c);
        }
        return static_cast<column_index>(scores.size());
    }

    // Evicts the lowest competitors until `places` are left.
    void shrink(index_t places) {
        gone_.clear();
        const bool full = competing_ >= places;
        for (std::size_t b = 0; competing_ > places; ++b) {
            std::vector<entry>& bucket = bucket_[b];
            const index_t over = std::min(competing_ - places, std::ssize(bucket));
            if (over < std::ssize(bucket)) { // lowest first: lower score, then the later arrival
                std::nth_element(
                    bucket.begin(), bucket.begin() + over, bucket.end(), [](const entry& x, const entry& y) {
                        return x.bits != y.bits ? x.bits < y.bits
                                                : std::pair(x.row, x.column) > std::pair(y.row, y.column);
                    });
            }
            gone_.insert(gone_.end(), bucket.begin(), bucket.begin() + over);
            bucket.erase(bucket.begin(), bucket.begin() + over);
            competing_ -= over;
        }
        std::sort(gone_.begin(), gone_.end(), [](const entry& x, const entry& y) {
            return std::pair(x.row, x.column) < std::pair(y.row, y.column);
        });
        for (auto first = gone_.begin(); first != gone_.end();) {
            const auto last =
                std::find_if(first, gone_.end(), [&](const entry& e) { return e.row != first->row; });
            remove(static_cast<std::size_t>(first->row), std::span<const entry>(first, last));
            first = last;
        }
        if (full) { raise_bar(); }
    }

    // All places are taken and their number only falls, so a later token below the lowest competitor is never kept.
    void raise_bar() {
        const auto lowest =
            std::find_if(bucket_.begin(), bucket_.end(), [](const auto& b) { return !b.empty(); });
        if (lowest == bucket_.end()) {
            bar_ = std::numeric_limits<std::uint32_t>::max(); // no score has these bits
            return;
        }
        bar_ = std::min_element(lowest->begin(), lowest->end(), [](const entry& x, const entry& y) {
                   return x.bits < y.bits;
               })->bits;
    }

    void remove(std::size_t row, std::span<const entry> gone) {
        std::vector<column_index>& kept = kept_[row];
        auto next = gone.begin();
        std::erase_if(kept, [&](column_index c) {
            if (next == gone.end() || next->column != c) { return false; }
            ++next;
            return true;
        });
        std::vector<column_index>& evicted = evicted_[row];
        const std::ptrdiff_t earlier = std::ssize(evicted); // columns of a new row that were below the bar
        for (const entry& e : gone) { evicted.push_back(e.column); }
        std::inplace_merge(evicted.begin(), evicted.begin() + earlier, evicted.end());
    }

    // Row numbers before the push: position in the merge of kept and evicted columns.
    static void write_row(std::span<const column_index> kept, std::span<const column_index> evicted,
                          index_t prefix, std::span<column_index> out) {
        std::size_t i = 0;
        const auto add = [&](index_t row) { out[i++] = static_cast<column_index>(row); };
        for (index_t t = 0; t < prefix; ++t) { add(t); }
        std::size_t gone = 0;
        for (std::size_t k = 0; k < kept.size(); ++k) {
            while (gone < evicted.size() && evicted[gone] < kept[k]) { ++gone; }
            add(prefix + static_cast<index_t>(k + gone));
        }
        const auto before = static_cast<index_t>(kept.size() + evicted.size());
        for (index_t t = prefix + before; i < out.size(); ++t) { add(t); }
    }

    status validity_;
    index_t total_;
    index_t safeguard_;
    index_t competing_ = 0;
    index_t safeguarded_ = 0;
    std::uint32_t bar_ = 0;                          // a new token with ordered_bits below it is evicted
    std::vector<index_t> layer_begin_ = {0};         // first row of each layer, and the end
    std::vector<std::vector<column_index>> kept_;    // [rows of all layers]
    std::vector<std::vector<column_index>> evicted_; // [rows of all layers], by the last push
    std::vector<std::vector<entry>> bucket_ = std::vector<std::vector<entry>>(buckets);
    std::vector<entry> gone_;
};

} // namespace KVTRIM_NAMESPACE
