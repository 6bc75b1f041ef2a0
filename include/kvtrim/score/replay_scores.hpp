// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Scores every cached token by the attention that a second pass over the prompt pays to it: KVzip, for any engine.
//
// The prompt is fed again behind itself ("Repeat the previous context:" and the prompt, or a part of it). The score of a cached
// row is the maximum over the queries of this replay: of the attention to it, or of what the output loses without it.
//
//   score[g, t] = max over the replay's queries i and the query heads h of group g of A[h, i, t]
//                 or of A / (1 - A) || (v[t] - o[i]) W_O[h] ||, or the root of the sum of its squares   (token_loss)
//
//     kvtrim::replay_scores scores(kv_heads, tokens);              // one per layer, for the rows before the replay
//     s = scores.add(kvtrim::layer(keys, values).with_queries(q), {}, memory);     // each chunk's queries, in each layer
//     ... drop the replay's own rows; then plan from the scores alone:
//     s = kvtrim::replay().plan(scores, request, plan, memory);                    // one layer; policy/replay.hpp
//     s = kvtrim::layer_replay().plan(std::span<const kvtrim::replay_scores>(all), request, plans, memory);
//
// Queries need no row of their own. If the cache of an add() has the state's rows alone, every query sees them all; if it has
// more, they are the replay's so far, the queries are those of the newest rows, and the softmax runs over both (KVzip's).
// A long prompt is replayed part by part, each part against the whole; replay_part restricts the softmax to a part's rows, its
// first tokens and the replay, as KVzip does.
// Chunks may be cut anywhere: maxima are the same bit for bit (of finite values), sums but for rounding.
// Source: KVzip, arXiv:2505.23416, Sec. 3 (attention, softmax over a part). Departures: by default the softmax runs over all rows;
// what the output loses, and its sum, are kvtrim's own (score/single_eviction.hpp).
// decode/running_scores.hpp differs: it sums over the tokens of a growing cache, and each sum can be undone.
// Cost: per chunk that of score/single_eviction.hpp, for all rows. Memory: 4 bytes per row.

#include <kvtrim/core/any_index.hpp>
#include <kvtrim/core/saturated.hpp>
#include <kvtrim/core/save.hpp>
#include <kvtrim/plan/keep_plan.hpp>
#include <kvtrim/score/single_eviction.hpp>

#include <cmath>
#include <limits>
#include <vector>

namespace KVTRIM_NAMESPACE {

/// The cache rows that one add() is about.
struct replay_part {
    token_range rows = {0, std::numeric_limits<index_t>::max()}; ///< scored, and seen by the queries
    index_t sink_tokens = 0;                                     ///< first rows, seen beside them
};

/// A layer's scores [kv_heads, tokens], folded over chunks of queries. A value: copies are independent; save() and restore()
/// take it (core/save.hpp).
class replay_scores {
  public:
    /// `tokens` rows in every head. Not valid, and empty: negative numbers or more than memory can hold.
    explicit replay_scores(index_t kv_heads, index_t tokens, token_loss loss = token_loss::attention_maximum)
        : loss_(loss), validity_(valid_size(kv_heads, tokens)) {
        if (!validity_.ok()) { kv_heads = tokens = 0; }
        for (index_t g = 0; g <= kv_heads; ++g) { offsets_.push_back(g * tokens); }
        scores_.resize(static_cast<std::size_t>(offsets_.back()));
    }
    /// The rows of a cache whose heads have lengths of their own. Not valid, and empty: a view that is not.
    template <cache_view Keys>
    explicit replay_scores(const Keys& keys, token_loss loss = token_loss::attention_maximum)
        : replay_scores(0, 0, loss) {
        validity_ = kvtrim::validate(keys);
        if (validity_.ok()) { validity_ = valid_size(extent(keys, 0), extent(keys, 1)); }
        for (index_t g = 0; validity_.ok() && g < extent(keys, 0); ++g) {
            offsets_.push_back(offsets_.back() + row_count(keys, g));
        }
        scores_.resize(static_cast<std::size_t>(offsets_.back()));
    }

    replay_scores(const replay_scores&) = default;       ///< a copy
    replay_scores(replay_scores&&) = default;            ///< takes the memory
    replay_scores& operator=(replay_scores&&) = default; ///< takes the memory
    /// A copy; where an allocation throws this is as it was.
    replay_scores& operator=(const replay_scores& other) { return *this = replay_scores(other); }

    // ---- As the inputs of a policy ----
    [[nodiscard]] status validate() const { return validity_; }                 ///< ok, or why it is empty
    [[nodiscard]] token_loss loss() const { return loss_; }                     ///< what a score is
    [[nodiscard]] index_t kv_heads() const { return std::ssize(offsets_) - 1; } ///< 0 where it is not valid
    /// Rows of a head; the head is not checked.
    [[nodiscard]] index_t tokens(index_t kv_head) const {
        const auto g = static_cast<std::size_t>(kv_head);
        return offsets_[g + 1] - offsets_[g];
    }
    /// Rows of the longest head. O(kv_heads).
    [[nodiscard]] index_t longest_row() const {
        index_t longest = 0;
        for (index_t g = 0; g < kv_heads(); ++g) { longest = std::max(longest, tokens(g)); }
        return longest;
    }
    /// Of a cache row; 0 where no query saw it. Neither index is checked.
    [[nodiscard]] float score(index_t kv_head, index_t token) const {
        const float x =
            scores_[static_cast<std::size_t>(offsets_[static_cast<std::size_t>(kv_head)] + token)];
        return loss_ == token_loss::attention_maximum ? x : std::sqrt(x);
    }

    // ---- What changes it ----

    /// The replay's next queries [q_heads, any number, head_dim], and the cache that they saw. Returns what inputs.validate() says,
    /// heads_not_divisible, invalid_parameter (another cache, more queries than rows of the replay, a part or options that cannot
    /// be), rows_differ for a part of heads of different lengths, or workspace_too_small, with nothing changed.
    template <class Inputs, class Executor = serial_executor>
    [[nodiscard]] status add(const Inputs& in, const attention_options& attention, workspace& scratch,
                             const replay_part& part = {}, Executor&& ex = {}) {
        if (const status s = validate_add(in, attention, part); !s.ok()) { return s; }
        const index_t queries = extent(in.queries, 1);
        return add_seen(in, attention, scratch, ex, [&](index_t g) {
            const bool have_rows = in.tokens(g) > tokens(g);
            const token_range scored{std::min(part.rows.begin, tokens(g)),
                                     std::min(part.rows.end, tokens(g))};
            return observed_by{
                in.tokens(g) - (have_rows ? queries : 0),
                scored,
                {{std::min(part.sink_tokens, scored.begin), scored.begin}, {scored.end, tokens(g)}}};
        });
    }
    /// The same with a workspace that grows on first use and then stays.
    template <class Inputs, class Executor = serial_executor>
    [[nodiscard]] status add(const Inputs& in, const attention_options& attention, growing_workspace& memory,
                             const replay_part& part = {}, Executor&& ex = {}) {
        workspace scratch = memory.of_bytes(workspace_bytes(in, attention, part, ex));
        return add(in, attention, scratch, part, ex);
    }
    /// Bytes of workspace that add() needs; 0 for inputs it refuses.
    template <class Inputs, class Executor = serial_executor>
    [[nodiscard]] index_t workspace_bytes(const Inputs& in, const attention_options& attention,
                                          const replay_part& part = {}, const Executor& ex = {}) const {
        if (!validate_add(in, attention, part).ok()) { return 0; }
        return bytes_of(in, ex);
    }

    /// The prompt's own pass, chunk by chunk: the queries of the newest rows of `in`, which has the state's rows alone (append()
    /// first). They score the rows at least `nearest` before their own. Nearer rows are skipped, because most tokens attend to
    /// their neighbours. Returns what add() does.
    template <class Inputs, class Executor = serial_executor>
    [[nodiscard]] status add_own(const Inputs& in, const attention_options& attention, index_t nearest,
                                 workspace& scratch, Executor&& ex = {}) {
        if (const status s = validate_own(in, attention, nearest); !s.ok()) { return s; }
        const index_t queries = extent(in.queries, 1);
        return add_seen(in, attention, scratch, ex, [&](index_t g) {
            return observed_by{tokens(g) - queries, {0, tokens(g)}, {}, nearest};
        });
    }
    /// The same with a workspace that grows on first use and then stays.
    template <class Inputs, class Executor = serial_executor>
    [[nodiscard]] status add_own(const Inputs& in, const attention_options& attention, index_t nearest,
                                 growing_workspace& memory, Executor&& ex = {}) {
        workspace scratch = memory.of_bytes(validate_own(in, attention, nearest).ok() ? bytes_of(in, ex) : 0);
        return add_own(in, attention, nearest, scratch, ex);
    }

    /// The cache got `count` new tokens at its end, in every head; their scores are 0. Returns what the constructor refuses, with
    /// nothing changed.
    [[nodiscard]] status append(index_t count) {
        if (!validity_.ok()) { return validity_; }
        if (count < 0) {
            return {errc::invalid_parameter, "append: the number of tokens must not be negative"};
        }
        if (const status s = valid_size(kv_heads(), saturated_sum(longest_row(), count)); !s.ok()) {
            return s;
        }
        std::vector<float> grown(scores_.size() + static_cast<std::size_t>(kv_heads() * count));
        for (index_t g = 0; g < kv_heads(); ++g) {
            const auto from = row(g);
            const auto i = static_cast<std::size_t>(g);
            std::copy(from.begin(), from.end(), grown.begin() + offsets_[i] + g * count);
        }
        for (index_t g = 0; g <= kv_heads(); ++g) { offsets_[static_cast<std::size_t>(g)] += g * count; }
        scores_ = std::move(grown);
        return {};
    }

    /// Multiplies every score by the norm of its token's value [kv_heads, tokens or more], after the last add(): for
    /// attention_maximum, e.g. decode/projected_norms.hpp. A norm that is negative or NaN counts as 0. Returns what validate() says of
    /// the view, or invalid_parameter for norms of another cache, with nothing changed.
    template <tensor_view<2> Norms>
    [[nodiscard]] status weigh(const Norms& norms) {
        for (const status s : {validity_, kvtrim::validate(norms)}) {
            if (!s.ok()) { return s; }
        }
        if (extent(norms, 0) != kv_heads() || extent(norms, 1) < longest_row()) {
            return {errc::invalid_parameter, "replay_scores: norms must be [kv_heads, tokens] of the cache",
                    longest_row()};
        }
        for (index_t g = 0; g < kv_heads(); ++g) {
            index_t t = 0;
            for (float& x : row(g)) {
                const float norm = to_float(at(norms, g, t++));
                const float factor = norm > 0 ? norm : 0.0f;
                x = x > 0 ? x * (loss_ == token_loss::attention_maximum ? factor : factor * factor) : 0.0f;
            }
        }
        return {};
    }

    /// The cache was cut by a plan: the rows that stay keep their scores. Returns plan_mismatch, with nothing changed.
    [[nodiscard]] status compact(const keep_plan& plan) {
        if (!validity_.ok()) { return validity_; }
        if (plan.rows() != kv_heads() || !plan.check_invariants([&](index_t g) { return tokens(g); })) {
            return {errc::plan_mismatch, "replay_scores: a plan for another cache", plan.rows()};
        }
        index_t next = 0;
        for (index_t g = 0; g < kv_heads(); ++g) {
            const auto i = static_cast<std::size_t>(g);
            const index_t begin = offsets_[i];
            offsets_[i] = next;
            for (const auto kept : plan.row(g)) {
                scores_[static_cast<std::size_t>(next++)] = scores_[static_cast<std::size_t>(begin + kept)];
            }
        }
        offsets_.back() = next;
        scores_.resize(static_cast<std::size_t>(next));
        return {};
    }

    /// Writes the state, for save() (core/save.hpp).
    void write(memory_writer& out) const {
        out.put(tag);
        out.put(loss_);
        out.put(kv_heads());
        out.put(std::span<const index_t>(offsets_));
        out.put(std::span<const float>(scores_));
    }
    /// Reads it back, for restore(). False for bytes that are no such state; this object is then not to be used.
    [[nodiscard]] bool read(memory_reader& in) {
        std::uint32_t kind = 0;
        index_t heads = 0;
        if (!in.get(kind) || kind != tag || !in.get(loss_) || loss_ > token_loss::output_square_sum ||
            !in.get(heads) || heads < 0 || !in.holds<index_t>(heads, 1)) {
            return false;
        }
        offsets_.resize(static_cast<std::size_t>(heads) + 1);
        if (!in.get(std::span(offsets_)) || offsets_.front() != 0) { return false; }
        for (std::size_t g = 1; g < offsets_.size(); ++g) {
            const bool possible = offsets_[g] >= offsets_[g - 1] && in.holds<float>(offsets_[g], 1);
            if (!possible || !valid_size(1, offsets_[g] - offsets_[g - 1]).ok()) { return false; }
        }
        scores_.resize(static_cast<std::size_t>(offsets_.back()));
        validity_ = {};
        const auto impossible = [&](std::size_t i) { return !(scores_[i] >= 0); }; // NaN too
        return in.get(std::span(scores_)) && !any_index(scores_.size(), impossible);
    }

  private:
    friend status add_pass(replay_scores&, const replay_scores&, index_t, float); // score/add_pass.hpp
    static constexpr std::uint32_t tag = 0x31704B54;
    [[nodiscard]] static status valid_size(index_t kv_heads, index_t tokens) {
        constexpr index_t most = std::numeric_limits<keep_plan::table_index>::max();
        if (kv_heads < 0 || tokens < 0 ||
            saturated_product(kv_heads, tokens) > std::numeric_limits<index_t>::max() / 4) {
            return {errc::invalid_parameter, "replay_scores: kv_heads and tokens of a cache in memory"};
        }
        if (kv_heads > most || tokens > most) {
            return {errc::index_overflow, "replay_scores: at most 2^31 - 1 heads, and tokens of a head",
                    std::max(kv_heads, tokens)};
        }
        return {};
    }

    [[nodiscard]] std::span<float> row(index_t kv_head) {
        return std::span(scores_).subspan(
            static_cast<std::size_t>(offsets_[static_cast<std::size_t>(kv_head)]),
            static_cast<std::size_t>(tokens(kv_head)));
    }
    template <class Inputs, class Executor>
    [[nodiscard]] index_t bytes_of(const Inputs& in, const Executor& ex) const {
        return kept_logits(in, 0, kept_logits::default_bytes).workspace_bytes(ex, [&](workspace& counting) {
            detail::take_loss_scratch(in, loss_, longest_row(), counting);
        });
    }

    // seen(g): what the queries of head g see.
    template <class Inputs, class Executor, class Seen>
    [[nodiscard]] status add_seen(const Inputs& in, const attention_options& attention, workspace& scratch,
                                  Executor& ex, Seen&& seen) {
        return kept_logits(in, 0, kept_logits::default_bytes)
            .for_each_head(
                scratch, ex,
                [&](workspace& counting) { detail::take_loss_scratch(in, loss_, longest_row(), counting); },
                [&](index_t g, std::span<float> kept, workspace& own) {
                    const observed_by what = seen(g);
                    const auto scored = row(g).subspan(static_cast<std::size_t>(what.candidates.begin),
                                                       static_cast<std::size_t>(what.candidates.size()));
                    detail::add_losses(in, attention, loss_, g, what, 0, kept, scored, own);
                });
    }

    template <class Inputs>
    [[nodiscard]] status validate_own(const Inputs& in, const attention_options& attention,
                                      index_t nearest) const {
        if (!validity_.ok()) { return validity_; }
        if (const status s = validate_attention(in, {.budget = {}, .attention = attention}); !s.ok()) {
            return s;
        }
        if (const status s = detail::validate_loss(in, loss_); !s.ok()) { return s; }
        bool fits = in.kv_heads() == kv_heads();
        for (index_t g = 0; fits && g < kv_heads(); ++g) { fits = in.tokens(g) == tokens(g); }
        if (!fits) {
            return {errc::invalid_parameter,
                    "replay_scores: the state must have as many tokens as the cache"};
        }
        if (nearest < 0) { return {errc::invalid_parameter, "replay_scores: nearest must not be negative"}; }
        return {};
    }
    template <class Inputs>
    [[nodiscard]] status validate_add(const Inputs& in, const attention_options& attention,
                                      const replay_part& part) const {
        static_assert(Inputs::has_queries, "kvtrim: replay_scores needs the replay's queries: pass "
                                           "layer(keys, values).with_queries(queries); see cache/layer.hpp");
        if (!validity_.ok()) { return validity_; }
        if (const status s = validate_observers(in, attention); !s.ok()) { return s; }
        if (const status s = detail::validate_loss(in, loss_); !s.ok()) { return s; }
        bool fits = in.kv_heads() == kv_heads();
        const index_t added = fits ? in.longest_row() - longest_row() : 0;
        for (index_t g = 0; fits && g < kv_heads(); ++g) { fits = in.tokens(g) - tokens(g) == added; }
        if (!fits || added < 0 || (added > 0 && added < extent(in.queries, 1))) {
            return {errc::invalid_parameter,
                    "replay_scores: the cache must have this state's rows, and behind "
                    "them none or those of all queries"};
        }
        if (attention.sliding_window > 0 && added == 0) {
            return {errc::invalid_parameter,
                    "replay_scores: with a sliding window queries need rows of their own"};
        }
        const token_range rows = part.rows;
        if (rows.begin < 0 || rows.end < rows.begin || part.sink_tokens < 0) {
            return {errc::invalid_parameter, "replay_part: rows must be a range, and nothing negative"};
        }
        if (rows.begin == 0 && rows.end >= longest_row()) { return {}; }
        for (index_t g = 0; g < kv_heads(); ++g) {
            if (tokens(g) != longest_row()) {
                return {errc::rows_differ, "replay_part: a part needs heads of equal length"};
            }
        }
        return {};
    }

    token_loss loss_;
    status validity_;
    std::vector<index_t> offsets_{}; // [kv_heads + 1]
    std::vector<float> scores_;      // [offsets_.back()]; squares where the loss is an output's
};

} // namespace KVTRIM_NAMESPACE
