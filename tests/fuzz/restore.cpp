// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Bytes from elsewhere as the saved state of everything that has one: any bytes, or a real state with some bytes changed.
//
// Model: bytes are refused, and the state is as it was; or they are a state, which saves as many bytes, is equal to its
// copies, answers to every call, and keeps what it promises while it is used.

#include "input.hpp"

#include <kvtrim/allocate/row_profile.hpp>
#include <kvtrim/decode/cache_positions.hpp>
#include <kvtrim/decode/projected_norms.hpp>
#include <kvtrim/decode/recent_queries.hpp>
#include <kvtrim/decode/running_scores.hpp>
#include <kvtrim/score/replay_scores.hpp>

using namespace kvtrim;

namespace {

constexpr index_t most_bytes = 1 << 16;

template <class State>
std::vector<std::byte> bytes_of(const State& state) {
    std::vector<std::byte> bytes(static_cast<std::size_t>(saved_bytes(state)));
    FUZZ_CHECK(save(state, bytes).ok());
    if (!bytes.empty()) {
        const auto shorter = std::span(bytes).first(bytes.size() - 1);
        FUZZ_CHECK(save(state, shorter).code() == errc::workspace_too_small);
    }
    return bytes;
}

// Restores the rest of the input, or the bytes of `made` with changes, into `made`; then use(state).
template <class State, class Use>
void restore_and_use(fuzz::input& in, State made, Use&& use) {
    std::vector<std::byte> bytes;
    const auto before = bytes_of(made);
    if (in.chance(64)) {
        const auto rest = in.rest();
        const auto* const first = reinterpret_cast<const std::byte*>(rest.data());
        bytes.assign(first, first + rest.size());
    } else {
        bytes = before;
        for (index_t changes = in.between(0, 3); changes > 0 && !bytes.empty(); --changes) {
            const index_t size = std::ssize(bytes);
            if (in.chance(32)) {
                bytes.resize(static_cast<std::size_t>(in.between(0, size + 8)));
            } else if (in.chance(128)) {
                bytes[static_cast<std::size_t>(in.between(0, size - 1))] = std::byte{in.byte()};
            } else { // a number of the head
                const index_t at =
                    4 * in.between(0, std::min<index_t>(20, (size - 8) / 4 < 0 ? 0 : (size - 8) / 4));
                const index_t odd = in.hostile(in.between(0, 9), 128);
                if (at + 8 <= size) { std::memcpy(bytes.data() + at, &odd, sizeof odd); }
            }
        }
    }
    const status answer = restore(made, bytes);
    if (!answer.ok()) {
        FUZZ_CHECK(answer.code() == errc::invalid_parameter);
        FUZZ_CHECK(bytes_of(made) == before);
        return;
    }
    const auto saved =
        bytes_of(made); // the same, but for what lies behind a row that is shorter than the longest
    FUZZ_CHECK(saved.size() == bytes.size());
    State fork = made;
    FUZZ_CHECK(restore(fork, saved).ok() && bytes_of(fork) == saved);
    if (std::ssize(bytes) > most_bytes) { return; }
    use(made);
    FUZZ_CHECK(bytes_of(fork) == saved); // a copy is independent
}

keep_plan any_plan(fuzz::input& in, const auto& lengths) {
    keep_plan plan;
    std::vector<index_t> counts;
    std::vector<std::vector<std::int32_t>> rows;
    fuzz::stream s(in.byte());
    const std::uint64_t share = in.byte();
    for (const index_t length : lengths) {
        auto& row = rows.emplace_back();
        for (index_t t = 0; t < length; ++t) {
            if ((s.bits() >> 20) % 256 <= share) { row.push_back(static_cast<std::int32_t>(t)); }
        }
        counts.push_back(std::ssize(row));
    }
    FUZZ_CHECK(plan.reset(counts).ok());
    for (std::size_t r = 0; r < rows.size(); ++r) {
        std::ranges::copy(rows[r], plan.writable_row(static_cast<index_t>(r)).begin());
    }
    return plan;
}

template <class State>
std::vector<index_t> lengths_of(const State& state) {
    std::vector<index_t> lengths;
    for (index_t g = 0; g < state.kv_heads(); ++g) { lengths.push_back(state.tokens(g)); }
    return lengths;
}

// Appends, cuts and undoes; what only counts tokens has to agree with plain counting.
template <class State>
void live(fuzz::input& in, State& state) {
    for (int step = 0; step < 4; ++step) {
        const auto before = lengths_of(state);
        std::vector<index_t> expected = before;
        bool ok = false;
        const index_t count = in.hostile(in.between(0, 5));
        switch (in.between(0, 2)) {
        case 0:
            if (count > 64) { return; } // allocations that a caller asks for are his
            ok = state.append(count).ok();
            for (index_t& length : expected) { length += count; }
            break;
        case 1: {
            const keep_plan plan = any_plan(in, before);
            ok = state.compact(plan).ok();
            FUZZ_CHECK(ok);
            for (std::size_t g = 0; g < expected.size(); ++g) {
                expected[g] = plan.kept_tokens(static_cast<index_t>(g));
            }
            break;
        }
        default:
            ok = state.rollback(count).ok();
            for (index_t& length : expected) { length -= ok ? count : 0; }
        }
        FUZZ_CHECK(lengths_of(state) == (ok ? expected : before));
        FUZZ_CHECK(restore(state, bytes_of(state)).ok());
    }
}

void check_positions(const cache_positions& p) {
    for (index_t g = 0; g < p.kv_heads(); ++g) {
        for (const auto row : {p.positions(g), p.rotary_positions(g)}) {
            index_t last = -1;
            for (const auto x : row) {
                FUZZ_CHECK(x > last && x < p.seen_tokens());
                last = x;
            }
        }
        FUZZ_CHECK(p.rotary_positions(g).empty() || p.rotary_positions(g).back() < p.next_position());
    }
}

} // namespace

void run(fuzz::input& in) {
    const index_t heads = in.between(0, 3), drafts = in.between(0, 3), tokens = in.between(0, 9);
    switch (in.between(0, 6)) {
    case 0: {
        cache_positions made(heads);
        FUZZ_CHECK(made.append(tokens).ok() && made.compact(any_plan(in, lengths_of(made))).ok());
        if (in.chance(128)) { FUZZ_CHECK(made.close_up().ok()); }
        return restore_and_use(in, made, [&](cache_positions& p) {
            check_positions(p);
            live(in, p);
            check_positions(p);
            const close_up_options options{in.hostile(in.between(0, 3)), in.hostile(in.between(0, 9))};
            if (p.close_up(options).ok()) { check_positions(p); }
        });
    }
    case 1: {
        token_rows<float> made(heads);
        FUZZ_CHECK(made.append(tokens, [](index_t i) { return static_cast<float>(i); }).ok());
        return restore_and_use(in, made, [&](token_rows<float>& rows) {
            for (index_t g = 0; g < rows.kv_heads(); ++g) {
                for (const float x : rows.row(g)) { FUZZ_CHECK(x == x || x != x); } // every one can be read
            }
            FUZZ_CHECK(rows.compact(any_plan(in, rows.lengths())).ok());
        });
    }
    case 2: {
        running_scores made(heads, drafts);
        FUZZ_CHECK(made.append(tokens).ok());
        const std::vector<float> attention(static_cast<std::size_t>(heads * tokens), 0.5f);
        if (heads > 0 && tokens > 0) {
            FUZZ_CHECK(made.add(strided(attention.data(), {heads, tokens})).ok());
        }
        return restore_and_use(in, made, [&](running_scores& s) {
            live(in, s);
            index_t longest = 0;
            for (index_t g = 0; g < s.kv_heads(); ++g) {
                longest = std::max(longest, s.tokens(g));
                for (index_t t = 0; t < s.tokens(g); ++t) {
                    FUZZ_CHECK(s.observers(g, t) >= 0 || s.tokens(g) > 0);
                }
            }
            const std::vector<float> row(static_cast<std::size_t>(s.kv_heads() * longest), 0.25f);
            static_cast<void>(s.add(strided(row.data(), {s.kv_heads(), longest}), in.hostile(1)));
            FUZZ_CHECK(restore(s, bytes_of(s)).ok());
        });
    }
    case 3: {
        const index_t dim = in.between(0, 4), window = in.between(1, 4);
        recent_queries<float> made(heads, window, dim, drafts);
        const auto chunk = fuzz::values(in, heads * tokens * dim);
        const strided<const float, 3> queries(chunk.data(), {heads, tokens, dim});
        if (queries.validate().ok()) { FUZZ_CHECK(made.append(queries).ok()); }
        return restore_and_use(in, made, [&](recent_queries<float>& q) {
            const auto view = q.view(in.hostile(0));
            // Rows of no elements may be many, and long ones where there are no heads.
            if (view.validate().ok() && view.extent(0) > 0 && view.extent(1) <= most_bytes) {
                std::vector<float> tile(static_cast<std::size_t>(view.extent(1) * view.extent(2)));
                for (index_t h = 0; h < view.extent(0); ++h) {
                    view.load_rows(h, 0, view.extent(1), tile.data());
                }
            }
            const index_t held = q.held(), undone = in.hostile(in.between(0, 3));
            FUZZ_CHECK(q.rollback(undone).ok() == (undone >= 0 && undone <= held));
            const std::vector<float> more(
                static_cast<std::size_t>(std::min<index_t>(q.q_heads() * q.head_dim(), 1 << 16)));
            if (std::ssize(more) == q.q_heads() * q.head_dim() && !more.empty()) {
                FUZZ_CHECK(
                    q.append(strided<const float, 3>(more.data(), {q.q_heads(), 1, q.head_dim()})).ok());
            }
            FUZZ_CHECK(restore(q, bytes_of(q)).ok());
        });
    }
    case 4: {
        replay_scores made(heads, tokens);
        return restore_and_use(in, made, [&](replay_scores& r) {
            FUZZ_CHECK(r.compact(any_plan(in, lengths_of(r))).ok());
            const index_t count = in.between(0, 4);
            FUZZ_CHECK(r.append(count).ok());
            FUZZ_CHECK(restore(r, bytes_of(r)).ok());
        });
    }
    case 5: {
        row_profile made;
        std::vector<float> values = fuzz::values(in, heads * tokens);
        std::vector<index_t> offsets;
        for (index_t g = 0; g <= heads; ++g) { offsets.push_back(g * tokens); }
        static_cast<void>(made.add({offsets, values}));
        return restore_and_use(in, made, [&](row_profile& p) {
            static_cast<void>(p.add({offsets, values}));
            FUZZ_CHECK(restore(p, bytes_of(p)).ok());
        });
    }
    default: {
        projected_norms made(heads);
        return restore_and_use(in, made, [&](projected_norms& n) {
            FUZZ_CHECK(n.compact(any_plan(in, lengths_of(n))).ok());
            static_cast<void>(n.rollback(in.hostile(0)));
            FUZZ_CHECK(validate(n.view()).ok() || n.kv_heads() == 0);
        });
    }
    }
}
