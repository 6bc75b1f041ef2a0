// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// H2O during generation: the attention that each cached token has received so far, per KV head.
//
//   sum[g, t]      += mean over the query heads h of group g of A[h, i, t]     for each new query i
//   importance[g, t] = sum[g, t], or sum[g, t] / queries that saw t            scorer(), for an eviction_policy
//
//     s = scores.append(1);                      // the cache got a token
//     s = scores.add(attention);                 // the engine has A [q_heads or kv_heads, tokens], or
//     s = scores.update(inputs, {}, memory);     // kvtrim computes it from inputs.with_queries(new queries)
//     ... plan with eviction_policy{scores.scorer(), uniform{}, by_importance{}}, then: s = scores.compact(plan);
//
// New tokens have the lowest sums and would be evicted first. So the scorer refuses sums without request.protect.window_tokens
// (needed: half of the budget, as H2O). The window must cover tokens whose queries were not added; normalised sums need no more.
// Source: H2O, arXiv:2306.14048 (sums); kvpress@8bb29b9 observed_attention_press.py (over the queries that saw a token).
// Departures: one sum per KV head, a mean over its group; attention is that of the cache as it is, after evictions too.
// With rollback_tokens = R the last R single queries can be undone exactly, by R + 1 versions of the sums; a prompt cannot.
// Cost: add() an addition per token and head; update() two sweeps over the keys, so give it several queries where nothing has
// to be undone. Memory: 4 (R + 2) bytes per token and KV head. Numerics: float; a weight not positive and finite counts as 0.

#include <kvtrim/aggregate/mean_attention.hpp>
#include <kvtrim/cache/row_range.hpp>
#include <kvtrim/core/any_index.hpp>
#include <kvtrim/decode/token_rows.hpp>
#include <kvtrim/kernels/row_kernels.hpp>
#include <kvtrim/score/fill_scores.hpp>
#include <kvtrim/score/validate_sum_window.hpp>
#include <kvtrim/score/window_attention.hpp>

namespace KVTRIM_NAMESPACE {

/// Whether a sum is divided by the number of queries that saw the token.
enum class score_lifetime : std::uint8_t { ignored, normalised };

/// The attention that the cached tokens of one layer of one sequence have received. A plain value.
class running_scores {
  public:
    using query_number = std::int32_t; ///< a query's number in the order of addition
    /// reserved_tokens per head are allocated at once. Empty, and validate() says why, for what token_rows::valid_size() refuses.
    explicit running_scores(index_t kv_heads, index_t rollback_tokens = 0, index_t reserved_tokens = 0)
        : validity_(valid_sizes(kv_heads, rollback_tokens, reserved_tokens)), first_(0) {
        if (!validity_.ok()) { rollback_tokens = kv_heads = reserved_tokens = 0; }
        first_ = token_rows<query_number>(kv_heads, reserved_tokens);
        sums_.assign(static_cast<std::size_t>(rollback_tokens + 1),
                     token_rows<float>(kv_heads, reserved_tokens));
    }

    running_scores(const running_scores&) = default;       ///< a fork
    running_scores(running_scores&&) = default;            ///< takes the memory
    running_scores& operator=(running_scores&&) = default; ///< takes the memory
    /// A fork; where an allocation throws this is as it was.
    running_scores& operator=(const running_scores& other) { return *this = running_scores(other); }

    [[nodiscard]] status validate() const { return validity_; }          ///< why it is not valid, or ok
    [[nodiscard]] index_t kv_heads() const { return first_.kv_heads(); } ///< 0 where it is not valid
    [[nodiscard]] index_t tokens(index_t head) const { return first_.tokens(head); } ///< not checked
    [[nodiscard]] std::span<const float> sums(index_t head) const { return newest().row(head); } ///< so far
    /// How many of the added queries saw a cached token.
    [[nodiscard]] index_t observers(index_t head, index_t token) const {
        return queries_ - first_.row(head)[static_cast<std::size_t>(token)];
    }

    /// Appends `count` new tokens to every head. Returns invalid_parameter or index_overflow, with nothing changed.
    [[nodiscard]] status append(index_t count) {
        for (const status s : {validity_, first_.reserve(count)}) {
            if (!s.ok()) { return s; }
        }
        for (auto& sums : sums_) { static_cast<void>(sums.reserve(count)); } // all before one changes
        const auto zero = [](index_t) { return 0.0f; };
        for (auto& sums : sums_) { static_cast<void>(sums.append(count, zero)); } // as long as first_
        return first_.append(count, [&](index_t) { return static_cast<query_number>(queries_); });
    }
    /// Adds attention [kv_heads or q_heads, tokens] that the engine has, summed over the newest `queries` tokens' queries.
    /// Rows are as long as their head; what lies behind is not read. Returns the answer of a view that is not valid,
    /// heads_not_divisible, invalid_parameter for rows that do not cover the cached tokens (needed: tokens) or unless
    /// 1 <= queries <= tokens appended since the last query that was added, index_overflow, with nothing changed.
    template <tensor_view<2> Attention>
    [[nodiscard]] status add(const Attention& attention, index_t queries = 1) {
        for (const status s : {validity_, kvtrim::validate(attention), validate_new(queries)}) {
            if (!s.ok()) { return s; }
        }
        const index_t rows = extent(attention, 0);
        if (kv_heads() == 0 || rows <= 0 || rows % kv_heads() != 0) {
            return {errc::heads_not_divisible, "running_scores: attention has a row per KV or query head"};
        }
        if (extent(attention, 1) < first_.longest_row()) {
            return {errc::invalid_parameter, "running_scores: attention must cover the cached tokens",
                    first_.longest_row()};
        }
        const auto& steps = kernels::active_row_kernels();
        float copy[detail::weights_run];
        const index_t group = rows / kv_heads();
        add_queries(queries, 0, group, [&](index_t g, index_t first, index_t n, float* sums) {
            for (index_t h = g * group; h < (g + 1) * group; ++h) {
                steps.add_row(detail::read_floats(attention, h, first, n, copy), n, sums);
            }
        });
        return {};
    }

    /// Adds the attention of in.queries [q_heads, n, head_dim], those of the newest n tokens. Returns what inputs.validate()
    /// says, window_exceeds_tokens, heads_not_divisible, invalid_parameter (keys of other tokens, or not 1 <= n <= tokens
    /// appended since the last query added), index_overflow or workspace_too_small, with nothing changed.
    template <class Inputs, class Executor = serial_executor>
    [[nodiscard]] status update(const Inputs& in, const attention_options& attention, workspace& scratch,
                                Executor&& ex = {}) {
        if (const status s = validate_update(in, attention); !s.ok()) { return s; }
        if (const index_t bytes = workspace_bytes(in, attention); !scratch.holds(bytes)) {
            return scratch.too_small(bytes);
        }
        const index_t queries = extent(in.queries, 1);
        const index_t single = std::min(queries, undo_capacity()); // each needs a version of the sums
        if (single < queries) {
            const auto batch = in.with_queries(row_range(in.queries, 0, queries - single));
            if (const status s = update_batch(batch, attention, single, scratch, ex); !s.ok()) { return s; }
        }
        for (index_t newer = single; newer-- > 0;) {
            const auto one = in.with_queries(row_range(in.queries, queries - 1 - newer, 1));
            if (const status s = update_batch(one, attention, newer, scratch, ex); !s.ok()) { return s; }
        }
        return {};
    }
    /// The same with a workspace that grows on first use and then stays.
    template <class Inputs, class Executor = serial_executor>
    [[nodiscard]] status update(const Inputs& in, const attention_options& attention,
                                growing_workspace& memory, Executor&& ex = {}) {
        workspace scratch = memory.of_bytes(workspace_bytes(in, attention));
        return update(in, attention, scratch, ex);
    }
    /// Bytes of workspace that update() needs; 0 for inputs it refuses.
    template <class Inputs>
    [[nodiscard]] index_t workspace_bytes(const Inputs& in, const attention_options& attention) const {
        if (!validate_update(in, attention).ok()) { return 0; }
        const eviction_request request{.budget = {}, .attention = attention};
        workspace counting = workspace::counting();
        static_cast<void>(counting.take<index_t>(kv_heads() + 1));
        static_cast<void>(counting.take<float>(first_.total_tokens()));
        static_cast<void>(counting.take<std::byte>(attention_of_queries.workspace_bytes(in, request)));
        return counting.needed_bytes();
    }

    /// Undoes the newest `count` tokens and their queries, bit for bit. Returns invalid_parameter where a head has lost one
    /// of them, or for more than rollback_tokens added queries, with nothing changed.
    [[nodiscard]] status rollback(index_t count) {
        for (const status s : {validity_, first_.can_drop(count)}) {
            if (!s.ok()) { return s; }
        }
        const index_t undone = queries_ - first_of_newest(count);
        if (undone > undoable_) {
            return {errc::invalid_parameter,
                    "running_scores: only the last rollback_tokens queries, added one by one, can be undone"};
        }
        for (auto& sums : sums_) { static_cast<void>(sums.drop_newest(count)); } // as long as first_
        version_ = (version_ + std::ssize(sums_) - undone) % std::ssize(sums_);
        undoable_ -= undone;
        queries_ -= undone;
        return first_.drop_newest(count);
    }
    /// Records that the cache was cut by a plan. Returns plan_mismatch, with nothing changed.
    [[nodiscard]] status compact(const keep_plan& plan) {
        if (!validity_.ok()) { return validity_; }
        if (const status s = first_.compact(plan); !s.ok()) { return s; }
        for (auto& sums : sums_) { static_cast<void>(sums.compact(plan)); } // as long as first_
        return {};
    }

    /// A scorer over the sums; refers to this object. It refuses a cache of other tokens, and a request whose window is too
    /// short, as described above (invalid_parameter; needed: window_tokens), unless everything is kept.
    [[nodiscard]] auto scorer(score_lifetime lifetime = score_lifetime::ignored) const& {
        return accumulated{this, lifetime};
    }
    void scorer(score_lifetime = score_lifetime::ignored) const&& = delete; ///< of a temporary

    /// Writes the state, for save() (core/save.hpp).
    void write(memory_writer& out) const {
        out.put(tag);
        for (const index_t number : {std::ssize(sums_), version_, undoable_, queries_}) { out.put(number); }
        first_.write(out);
        for (const auto& sums : sums_) { sums.write(out); }
    }
    /// Reads it back, for restore(). False for bytes that are no such state; this object is then not to be used.
    [[nodiscard]] bool read(memory_reader& in) {
        std::uint32_t kind = 0;
        index_t versions = 0;
        if (!in.get(kind) || kind != tag) { return false; }
        for (index_t* number : {&versions, &version_, &undoable_, &queries_}) {
            if (!in.get(*number) || *number < 0) { return false; }
        }
        if (version_ >= versions || undoable_ >= versions || undoable_ > queries_ ||
            queries_ > most_queries || !first_.read(in)) {
            return false;
        }
        const auto newest = static_cast<std::size_t>(first_.droppable_tokens());
        for (index_t g = 0; g < kv_heads(); ++g) {
            const auto row = std::as_const(first_).row(g);
            const auto is_wrong = [&](std::size_t i) {
                return row[i] < 0 || row[i] > queries_ || (i > 0 && row[i] < row[i - 1]);
            };
            const auto last = row.last(newest), first_row = std::as_const(first_).row(0).last(newest);
            if (any_index(row.size(), is_wrong) || !std::ranges::equal(last, first_row)) { return false; }
        }
        sums_.clear();
        for (index_t version = 0; version < versions; ++version) { // as many as there are bytes for
            if (!sums_.emplace_back(0).read(in) || !same_rows(sums_.back())) { return false; }
        }
        validity_ = {};
        return true;
    }

  private:
    struct accumulated {
        const running_scores* state;
        score_lifetime lifetime;
        static constexpr bool writes_attention = false;

        template <class Inputs>
        [[nodiscard]] status validate(const Inputs& in, const eviction_request& request) const {
            if (const status s = state->validate_tokens(in); !s.ok()) { return s; }
            const index_t drafts = std::max<index_t>(0, request.protect.rollback_tokens);
            const index_t least = state->unseen_tokens() - drafts;
            if (lifetime == score_lifetime::ignored) {
                return detail::validate_sum_window(in, request, std::max<index_t>(least, 1));
            }
            if (request.protect.window_tokens >= least ||
                request.budget.total(in.kv_heads()) >= state->first_.total_tokens()) { // nothing leaves
                return {};
            }
            return {errc::invalid_parameter,
                    "running_scores: the window must cover the tokens whose queries were not added", least};
        }

        template <class Inputs, executor Executor>
        [[nodiscard]] status score(const Inputs& in, const eviction_request& request, const token_scores& out,
                                   workspace&, Executor&) const {
            if (const status s = validate_scoring(*this, in, request, out); !s.ok()) { return s; }
            detail::copy_scores(in, request, out, [&](index_t g) { return state->sums(g).data(); });
            if (lifetime == score_lifetime::ignored) { return {}; }
            detail::fill_scores(in, request, out, [&](index_t g, index_t t) {
                return state->sums(g)[static_cast<std::size_t>(t)] /
                       static_cast<float>(std::max<index_t>(1, state->observers(g, t)));
            });
            return {};
        }
    };
    static constexpr window_attention<mean_attention> attention_of_queries{
        {.pool = pooling::none, .queries = query_normalisation::sum}};
    static constexpr std::uint32_t tag = 0x32734B54;
    static constexpr index_t most_queries = std::numeric_limits<query_number>::max();

    [[nodiscard]] const token_rows<float>& newest() const {
        return sums_[static_cast<std::size_t>(version_)];
    }
    // As long as first_, and as far to be undone: all rows change together.
    [[nodiscard]] bool same_rows(const token_rows<float>& sums) const {
        return sums.droppable_tokens() == first_.droppable_tokens() &&
               std::ranges::equal(sums.lengths(), first_.lengths());
    }
    // The first query that saw the oldest of the newest `count` tokens: it and those after it are of these tokens.
    [[nodiscard]] index_t first_of_newest(index_t count) const {
        return count == 0 || kv_heads() == 0 ? queries_ : first_.row(0).end()[-count];
    }
    // Newest tokens whose queries were not added: no query saw them.
    [[nodiscard]] index_t unseen_tokens() const {
        index_t count = kv_heads() == 0 ? first_.droppable_tokens() : 0;
        while (count < first_.droppable_tokens() && first_of_newest(count + 1) == queries_) { ++count; }
        return count;
    }
    [[nodiscard]] index_t undo_capacity() const { return std::ssize(sums_) - 1; }
    [[nodiscard]] static status valid_sizes(index_t kv_heads, index_t rollback_tokens, index_t reserved) {
        const status s = token_rows<float>::valid_size(kv_heads, reserved);
        return s.ok() ? token_rows<float>::valid_size(0, rollback_tokens) : s;
    }
    template <class Inputs>
    [[nodiscard]] status validate_tokens(const Inputs& in) const {
        bool same = in.kv_heads() == kv_heads();
        for (index_t g = 0; same && g < kv_heads(); ++g) { same = in.tokens(g) == tokens(g); }
        if (!validity_.ok() || same) { return validity_; }
        return {errc::invalid_parameter, "running_scores: the state must have as many tokens as the cache"};
    }
    [[nodiscard]] status validate_new(index_t queries) const {
        if (queries < 1 || queries > unseen_tokens()) {
            return {errc::invalid_parameter, "running_scores: a query is a new token's: append() first"};
        }
        if (queries > most_queries - queries_) {
            return {errc::index_overflow, "running_scores: at most 2^31 - 1 queries", queries_ + queries};
        }
        return {};
    }
    template <class Inputs>
    [[nodiscard]] status validate_update(const Inputs& in, const attention_options& attention) const {
        const eviction_request request{.budget = {}, .attention = attention};
        if (const status s = attention_of_queries.validate(in, request); !s.ok()) { return s; }
        if (const status s = validate_tokens(in); !s.ok()) { return s; }
        return validate_new(extent(in.queries, 1));
    }

    // The queries of the tokens before the newest `newer`.
    template <class Inputs, class Executor>
    status update_batch(const Inputs& in, const attention_options& attention, index_t newer,
                        workspace& scratch, Executor& ex) {
        const workspace::frame frame(scratch);
        const auto offsets = scratch.take<index_t>(kv_heads() + 1);
        offsets[0] = 0;
        for (std::size_t g = 1; g < offsets.size(); ++g) {
            offsets[g] = offsets[g - 1] + std::max<index_t>(0, tokens(static_cast<index_t>(g) - 1) - newer);
        }
        const score_rows rows{offsets, scratch.take<float>(offsets.back())};
        const protection behind{.rollback_tokens = newer};
        const eviction_request asked{.budget = {}, .protect = behind, .attention = attention};
        const status s = attention_of_queries.score(in, asked, {rows.offsets, rows.values}, scratch, ex);
        if (!s.ok()) { return s; }
        const auto copy = [&](index_t g, index_t first, index_t n, float* out) {
            const index_t from = std::min(first, rows.length(g));
            std::copy_n(rows.row(g).data() + from, std::min(n, rows.length(g) - from), out);
        };
        add_queries(extent(in.queries, 1), newer, 1, copy);
        return {};
    }

    // attention(g, first, n, out): of tokens first + i, summed over `group` rows and the `queries` tokens before the newest `newer`.
    template <class Fn>
    void add_queries(index_t queries, index_t newer, index_t group, Fn&& attention) {
        const index_t next = (version_ + 1) % std::ssize(sums_), unseen = unseen_tokens();
        for (index_t g = 0; g < kv_heads(); ++g) {
            const auto after = sums_[static_cast<std::size_t>(next)].row(g);
            const auto weights = [&](auto... part) { attention(g, part...); };
            detail::add_weights(sums(g).data(), tokens(g), static_cast<float>(group), weights, after.data());
            // A new token is seen from its own query on.
            const auto first = first_.row(g);
            for (index_t i = 0; i < unseen; ++i) {
                const index_t skipped = std::clamp<index_t>(queries - 1 - (i - newer), 0, queries);
                first.end()[-1 - i] = static_cast<query_number>(queries_ + skipped);
            }
        }
        version_ = next;
        undoable_ = queries == 1 ? std::min(undoable_ + 1, undo_capacity()) : 0;
        queries_ += queries;
    }

    status validity_;
    std::vector<token_rows<float>> sums_; // versions; version_ is the newest
    token_rows<query_number> first_;      // the first added query that saw a token
    index_t version_ = 0;
    index_t undoable_ = 0;
    index_t queries_ = 0; // added so far
};

} // namespace KVTRIM_NAMESPACE
