// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// What becomes of each page when a row of a page table keeps some of its tokens. compact/plan_page_moves.hpp says which
// rules this follows, and lists the moves.
//
//   survivors [heads]: tokens of each page that stay  ->  a fate per page, and how many new pages the row needs
//
// Cost: linear in kept tokens, pages of the row and heads * page_tokens.

#include <kvtrim/compact/page_pool.hpp>
#include <kvtrim/core/workspace.hpp>
#include <kvtrim/plan/keep_plan.hpp>

#include <algorithm>

namespace KVTRIM_NAMESPACE::detail {

enum class page_fate : std::uint8_t {
    stays,
    ends_row, // stays, with its first slots only
    leaves,   // owned: freed
    copied,   // shared: released
    replaced, // shared: released, and a free page takes its place in the row
};

// Decides the fates of the pages of one row at a time.
class page_fates {
  public:
    page_fates(const page_table& table, const page_pool& pool, const page_move_options& options,
               workspace& scratch)
        : table_(table), pool_(pool), options_(options), page_tokens_(pool.page_tokens),
          columns_(table.longest_row() + 1), first_(scratch.take<std::int32_t>(pool.heads * columns_)),
          survivors_(scratch.take<std::int32_t>(columns_)),
          histogram_(scratch.take<std::int32_t>(pool.heads * page_tokens_ + 1)),
          fates_(scratch.take<page_fate>(columns_)) {}

    // Returns errc::rows_differ or page_shared. Requires a plan of this table.
    [[nodiscard]] status decide(const keep_plan& plan, index_t row) {
        pages_ = table_.row(row);
        row_tokens_ = table_.tokens(row, page_tokens_);
        fresh_pages_ = 0;
        count_survivors(plan, row);
        if (const status s = count_kept(plan, row); !s.ok()) { return s; }
        new_pages_ = (kept_ + page_tokens_ - 1) / page_tokens_;
        used_of_last_ = kept_ - std::max<index_t>(0, new_pages_ - 1) * page_tokens_;
        if (kept_ == row_tokens_) {
            std::fill_n(fates_.begin(), pages_.size(), page_fate::stays);
            if (kept_ > 0) { fates_[pages_.size() - 1] = page_fate::ends_row; }
            return {};
        }
        return options_.order == move_order::in_order ? decide_in_order() : decide_by_holes(plan, row);
    }

    // Returns what decide() returns, and sets kept() and fresh_pages(); O(heads) for a pool without shared pages.
    [[nodiscard]] status check(const keep_plan& plan, index_t row) {
        return pool_.ref_counts.empty() ? count_kept(plan, row) : decide(plan, row);
    }

    [[nodiscard]] std::size_t pages() const { return pages_.size(); }
    [[nodiscard]] std::int32_t page(std::size_t j) const { return pages_[j]; }
    [[nodiscard]] page_fate operator[](std::size_t j) const { return fates_[j]; }
    [[nodiscard]] bool is_shared(std::size_t j) const { return pool_.is_shared(pages_[j]); }
    [[nodiscard]] index_t page_length(std::size_t j) const {
        return std::min(page_tokens_, row_tokens_ - static_cast<index_t>(j) * page_tokens_);
    }
    // Survivors of one head in page j are kept[first(head)[j]] up to kept[first(head)[j + 1]].
    [[nodiscard]] std::int32_t* first(index_t head) const { return first_.data() + head * columns_; }
    [[nodiscard]] index_t kept() const { return kept_; }               // tokens of each head afterwards
    [[nodiscard]] index_t fresh_pages() const { return fresh_pages_; } // to be taken from the free ones
    // Slots of the last page; 0 without pages.
    [[nodiscard]] index_t used_of_last() const { return used_of_last_; }

  private:
    void count_survivors(const keep_plan& plan, index_t row) {
        const auto page_tokens = static_cast<std::uint32_t>(page_tokens_);
        std::fill_n(survivors_.begin(), pages_.size(), 0);
        for (index_t head = 0; head < pool_.heads; ++head) {
            const std::span begins(first(head), pages_.size() + 1);
            std::fill(begins.begin(), begins.end(), 0);
            for (const std::int32_t token : plan.row(row * pool_.heads + head)) {
                ++begins[static_cast<std::uint32_t>(token) / page_tokens + 1];
            }
            for (std::size_t j = 0; j < pages_.size(); ++j) {
                survivors_[j] += begins[j + 1];
                begins[j + 1] += begins[j];
            }
        }
    }

    // Pages of the row that may be shared.
    [[nodiscard]] std::size_t sharable() const { return pool_.ref_counts.empty() ? 0 : pages_.size(); }

    // Tokens of each head that stay, and survivors of each page, with those of shared pages that stay whole.
    [[nodiscard]] status count_kept(const keep_plan& plan, index_t row) {
        const auto extends = [&](std::size_t j) {
            return options_.shared == shared_pages::stay_whole && is_shared(j) && survivors_[j] > 0;
        };
        for (index_t head = 0; head < pool_.heads; ++head) {
            index_t kept = plan.kept_tokens(row * pool_.heads + head);
            for (std::size_t j = 0; j < sharable(); ++j) {
                if (extends(j)) { kept += page_length(j) - (first(head)[j + 1] - first(head)[j]); }
            }
            if (head > 0 && kept != kept_) {
                return {errc::rows_differ, "heads that share pages must keep equally many tokens"};
            }
            kept_ = kept;
        }
        for (std::size_t j = 0; j < sharable(); ++j) {
            if (extends(j)) { survivors_[j] = static_cast<std::int32_t>(page_length(j) * pool_.heads); }
        }
        return {};
    }

    // A page whose tokens are all at their final slots stays; of the others, the first that hold tokens become destinations.
    [[nodiscard]] status decide_in_order() {
        bool in_place = true;
        index_t destinations = 0;
        for (std::size_t j = 0; j < pages_.size(); ++j) {
            if (survivors_[j] == 0) {
                fates_[j] = is_shared(j) ? page_fate::copied : page_fate::leaves;
                continue;
            }
            in_place = in_place && survivors_[j] == page_length(j) * pool_.heads;
            const bool is_destination = destinations++ < new_pages_;
            if (!is_shared(j)) {
                fates_[j] = is_destination ? page_fate::stays : page_fate::leaves;
            } else if (in_place) {
                fates_[j] = page_fate::stays;
            } else if (options_.shared == shared_pages::stay_whole) {
                return {errc::page_shared,
                        "tokens cannot keep their order around a shared page: let it be copied"};
            } else {
                fates_[j] = is_destination ? page_fate::replaced : page_fate::copied;
                fresh_pages_ += is_destination ? 1 : 0;
            }
        }
        return {};
    }

    // Survivors fill holes: full shared pages stay as they are, and of the others as many stay as the remaining tokens need.
    [[nodiscard]] status decide_by_holes(const keep_plan& plan, index_t row) {
        std::fill_n(fates_.begin(), pages_.size(), page_fate::leaves);
        index_t owned = std::ssize(pages_);
        index_t needed = new_pages_;
        for (std::size_t j = 0; j < sharable(); ++j) {
            if (!is_shared(j)) { continue; }
            --owned;
            if (survivors_[j] == page_tokens_ * pool_.heads) {
                fates_[j] = page_fate::stays;
                --needed;
            } else if (survivors_[j] == 0 || options_.shared == shared_pages::copied) {
                fates_[j] = page_fate::copied;
            } else {
                return {errc::page_shared,
                        "a shared last page that is not full cannot stay: let it be copied"};
            }
        }
        fresh_pages_ = std::max<index_t>(0, needed - owned);
        if (fresh_pages_ > 0) {
            std::replace(fates_.begin(), fates_.begin() + std::ssize(pages_), page_fate::leaves,
                         page_fate::stays);
        } else if (options_.order == move_order::from_tail) {
            keep_first(needed);
        } else if (needed > 0) {
            mark_fullest(needed - 1);
            end_row_with_best(plan, row);
        }
        return {};
    }

    void keep_first(index_t count) {
        for (std::size_t j = 0; count > 0; ++j) {
            if (fates_[j] != page_fate::leaves) { continue; }
            fates_[j] = --count == 0 ? page_fate::ends_row : page_fate::stays;
        }
    }

    // Of the pages that would leave, the `count` with the most survivors stay; ties to the first.
    void mark_fullest(index_t count) {
        std::fill(histogram_.begin(), histogram_.end(), 0);
        for (std::size_t j = 0; j < pages_.size(); ++j) {
            if (fates_[j] == page_fate::leaves) { ++histogram_[static_cast<std::size_t>(survivors_[j])]; }
        }
        std::size_t least = histogram_.size() - 1;
        while (least > 0 && count > histogram_[least]) { count -= histogram_[least--]; }
        for (std::size_t j = 0; j < pages_.size(); ++j) {
            const auto found = static_cast<std::size_t>(survivors_[j]);
            if (fates_[j] != page_fate::leaves || found < least) { continue; }
            if (found == least && count-- <= 0) { continue; }
            fates_[j] = page_fate::stays;
        }
    }

    // Chooses the page that ends the row, with used_of_last slots: the one with which most survivors are in place. If it is
    // among those that stay, the fullest of the others stays instead of it. Ties to the last page.
    void end_row_with_best(const keep_plan& plan, index_t row) {
        std::size_t next = pages_.size();
        for (std::size_t j = 0; j < pages_.size(); ++j) {
            if (fates_[j] != page_fate::leaves) { continue; }
            if (next == pages_.size() || survivors_[j] > survivors_[next]) { next = j; }
        }
        std::size_t best = next;
        index_t best_gain = -1;
        // No gain exceeds the survivors of `next`.
        for (std::size_t j = pages_.size(); j-- > 0 && best_gain < survivors_[next];) {
            const bool swaps = fates_[j] == page_fate::stays && !is_shared(j);
            if (!swaps && fates_[j] != page_fate::leaves) { continue; }
            const index_t swap = swaps ? index_t{survivors_[next]} - survivors_[j] : 0;
            const index_t gain = survivors_in_front(j, plan, row) + swap;
            if (gain <= best_gain) { continue; }
            best_gain = gain;
            best = j;
        }
        if (fates_[best] == page_fate::stays) { fates_[next] = page_fate::stays; }
        fates_[best] = page_fate::ends_row;
    }

    // Survivors of all heads in the slots of page j that would be used if it ended the row.
    [[nodiscard]] index_t survivors_in_front(std::size_t j, const keep_plan& plan, index_t row) const {
        index_t count = 0;
        for (index_t head = 0; head < pool_.heads; ++head) {
            const auto kept = plan.row(row * pool_.heads + head);
            const auto begin = kept.begin() + first(head)[j];
            const auto end = kept.begin() + first(head)[j + 1];
            count +=
                std::lower_bound(begin, end, static_cast<index_t>(j) * page_tokens_ + used_of_last_) - begin;
        }
        return count;
    }

    const page_table& table_;
    const page_pool& pool_;
    const page_move_options& options_;
    index_t page_tokens_;
    index_t columns_;
    std::span<std::int32_t> first_;     // [heads, columns]
    std::span<std::int32_t> survivors_; // [columns], of all heads
    std::span<std::int32_t> histogram_; // [heads * page_tokens + 1]
    std::span<page_fate> fates_;        // [columns]

    // Of the row that decide() or check() was called for.
    std::span<const std::int32_t> pages_;
    index_t row_tokens_ = 0;
    index_t kept_ = 0;
    index_t new_pages_ = 0;
    index_t used_of_last_ = 0;
    index_t fresh_pages_ = 0;
};

} // namespace KVTRIM_NAMESPACE::detail
