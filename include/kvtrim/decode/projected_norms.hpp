// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The projected value norms of one layer's cache, taken when tokens enter it: CriticalKV's and DefensiveKV's most expensive
// step, spread over the prefill and the generation.
//
//   norms[g, t] as in score/projected_value_norms.hpp
//
//     s = norms.append(layer(keys, values).with_output_projection(w_o), n, memory);   // n new rows in every head
//     s = policy.plan(layer(keys, values).with_queries(q).with_output_projection(norms.view()), ...);
//     s = norms.compact(plan);                                                        // the cache was cut
//
// A value: copies are forks; save() and restore() work (core/save.hpp). A row's norm depends on no other row, so the norms are
// bit for bit those of a single pass.
// Cost: that of the norms of the new tokens. Memory: 4 bytes per token and KV head.

#include <kvtrim/decode/token_rows.hpp>
#include <kvtrim/score/projected_value_norms.hpp>

namespace KVTRIM_NAMESPACE {

/// The projected value norms of the cached tokens of one layer of one sequence. A plain value.
class projected_norms {
  public:
    /// reserved_tokens: per head, so that nothing allocates up to there. The object is empty, and validate() says why, for what
    /// token_rows::valid_size() refuses.
    explicit projected_norms(index_t kv_heads, index_t reserved_tokens = 0)
        : rows_(kv_heads, reserved_tokens) {}

    /// Why this object is not valid, or ok.
    [[nodiscard]] status validate() const { return rows_.validate(); }
    [[nodiscard]] index_t kv_heads() const { return rows_.kv_heads(); } ///< 0 where it is not valid
    /// Tokens of a head, which is not checked.
    [[nodiscard]] index_t tokens(index_t head) const { return rows_.tokens(head); }
    /// [tokens(head)] norms of a head, which is not checked.
    [[nodiscard]] std::span<const float> row(index_t head) const { return rows_.row(head); }
    /// For with_output_projection(). Refers to this object until it changes.
    [[nodiscard]] known_norms view() const& { return {rows_.view()}; }
    known_norms view() const&& = delete; ///< of a temporary

    /// Takes the norms of the newest `count` tokens of every head, which the cache of `in` got at its end.
    /// in.output_projection is W_O or a prepared form of it. Returns invalid_parameter where `in` is not a cache of this
    /// state's tokens and the new ones, index_overflow, heads_not_divisible or workspace_too_small, with nothing changed.
    template <class Inputs, class Executor = serial_executor>
    [[nodiscard]] status append(const Inputs& in, index_t count, workspace& scratch, Executor&& ex = {}) {
        if (const status s = validate_append(in, count); !s.ok()) { return s; }
        if (const index_t bytes = projected_value_norms_bytes(in); !scratch.holds(bytes)) {
            return scratch.too_small(bytes);
        }
        if (const status s = rows_.append(count, [](index_t) { return 0.0f; }); !s.ok()) { return s; }
        return detail::compute_projected_norms(
            in,
            [&](index_t g) {
                return token_range{tokens(g) - count, tokens(g)};
            },
            [&](index_t g) { return rows_.row(g).last(static_cast<std::size_t>(count)); }, scratch, ex);
    }
    /// The same with a workspace that grows on first use and then stays.
    template <class Inputs, class Executor = serial_executor>
    [[nodiscard]] status append(const Inputs& in, index_t count, growing_workspace& memory,
                                Executor&& ex = {}) {
        workspace scratch =
            memory.of_bytes(validate_append(in, count).ok() ? projected_value_norms_bytes(in) : 0);
        return append(in, count, scratch, ex);
    }

    /// Records that the newest `count` tokens were undone. Returns invalid_parameter where a head has lost one of them, with
    /// nothing changed.
    [[nodiscard]] status rollback(index_t count) { return rows_.drop_newest(count); }
    /// Records that the cache was cut by a plan. Returns plan_mismatch, with nothing changed.
    [[nodiscard]] status compact(const keep_plan& plan) { return rows_.compact(plan); }

    /// Writes the state, for save() (core/save.hpp).
    void write(memory_writer& out) const {
        out.put(tag);
        rows_.write(out);
    }
    /// Reads it back, for restore(). False for bytes that are no such state; this object is then not to be used.
    [[nodiscard]] bool read(memory_reader& in) {
        std::uint32_t kind = 0;
        return in.get(kind) && kind == tag && rows_.read(in);
    }

  private:
    static constexpr std::uint32_t tag = 0x316e4B54;

    template <class Inputs>
    [[nodiscard]] status validate_append(const Inputs& in, index_t count) const {
        for (const status s : {rows_.can_append(count), in.validate()}) {
            if (!s.ok()) { return s; }
        }
        if (in.kv_heads() != kv_heads()) {
            return {errc::invalid_parameter, "projected_norms: the cache must have this state's heads",
                    kv_heads()};
        }
        for (index_t g = 0; g < kv_heads(); ++g) {
            if (in.tokens(g) != tokens(g) + count) {
                return {errc::invalid_parameter,
                        "projected_norms: the cache must hold this state's tokens and the new ones",
                        tokens(g) + count};
            }
        }
        return validate_projection(in);
    }

    token_rows<float> rows_; // [kv_heads, tokens]
};

} // namespace KVTRIM_NAMESPACE
