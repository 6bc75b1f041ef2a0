// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The projected value norms of one layer's cache, taken when tokens enter it: CriticalKV's and DefensiveKV's most expensive
// step, spread over the prefill and the generation.
//
//   norms[g, t] as in score/projected_value_norm.hpp
//
//     s = norms.append(layer(keys, values).with_output_projection(w_o), n, memory);   // n new rows in every head
//     s = policy.plan(layer(keys, values).with_queries(q).with_output_projection(norms.view()), ...);
//     s = norms.compact(plan);                                                        // the cache was cut
//
// A value: copies are forks; save() and restore() work (base/plain_memory.hpp). With AVX-512 the norms are bit for bit those of
// a single pass; the portable products may differ in the last bits where their tiles are cut otherwise.
// Cost: that of the norms of the new tokens. Memory: 4 bytes per token and KV head.

#include <kvtrim/decode/token_rows.hpp>
#include <kvtrim/score/projected_value_norm.hpp>

namespace kvtrim {

class value_norms {
  public:
    // reserved_tokens: per head, so that nothing allocates up to there. Requires both >= 0.
    explicit value_norms(index_t kv_heads, index_t reserved_tokens = 0) : rows_(kv_heads, reserved_tokens) {}

    [[nodiscard]] index_t kv_heads() const { return rows_.kv_heads(); }
    [[nodiscard]] index_t tokens(index_t head) const { return rows_.tokens(head); }
    // [tokens(head)]
    [[nodiscard]] std::span<const float> row(index_t head) const { return rows_.row(head); }
    // For with_output_projection(). Refers to this object until it changes.
    [[nodiscard]] known_norms view() const& { return {rows_.view()}; }
    known_norms view() const&& = delete; // of a temporary

    // The cache of `in` got `count` new tokens at its end, in every head; their norms are taken. in.output_projection is W_O or
    // a prepared form of it. Returns heads_not_divisible or workspace_too_small, with nothing changed.
    // Requires values of as many tokens as this state will have.
    template <class Inputs, class Executor = serial_executor>
    [[nodiscard]] status append(const Inputs& in, index_t count, workspace& scratch, Executor&& ex = {}) {
        KVTRIM_EXPECTS(in.kv_heads() == kv_heads(), "value_norms: the cache must have this state's heads");
        for (index_t g = 0; g < kv_heads(); ++g) {
            KVTRIM_EXPECTS(in.tokens(g) == tokens(g) + count,
                           "value_norms: the cache must hold this state's tokens and the new ones");
        }
        if (const status s = validate_projection(in); !s.ok()) { return s; }
        if (const index_t bytes = projected_value_norms_bytes(in); !scratch.holds(bytes)) {
            return scratch.too_small(bytes);
        }
        rows_.append(count, [](index_t) { return 0.0f; });
        return detail::projected_norms(
            in,
            [&](index_t g) {
                return token_range{tokens(g) - count, tokens(g)};
            },
            [&](index_t g) { return rows_.row(g).last(static_cast<std::size_t>(count)); }, scratch, ex);
    }
    template <class Inputs, class Executor = serial_executor>
    [[nodiscard]] status append(const Inputs& in, index_t count, growing_workspace& memory,
                                Executor&& ex = {}) {
        workspace scratch =
            memory.of_bytes(validate_projection(in).ok() ? projected_value_norms_bytes(in) : 0);
        return append(in, count, scratch, ex);
    }

    // The newest `count` tokens were undone. Requires that no head has lost one of them.
    void rollback(index_t count) { rows_.drop_newest(count); }
    // The cache was cut by a plan. Returns errc::plan_mismatch, with nothing changed.
    [[nodiscard]] status compact(const keep_plan& plan) { return rows_.compact(plan); }

    void write(memory_writer& out) const {
        out.put(tag);
        rows_.write(out);
    }
    [[nodiscard]] bool read(memory_reader& in) {
        std::uint32_t kind = 0;
        return in.get(kind) && kind == tag && rows_.read(in);
    }

  private:
    static constexpr std::uint32_t tag = 0x316e4B54;

    token_rows<float> rows_; // [kv_heads, tokens]
};

} // namespace kvtrim
