// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// The life of a cache, in any order: tokens appended, cut, undone, forked, saved, restored, keys closed up. All state beside a
// flat cache of one number per token and head.
//
// Model: for each head a list of tokens {text position, rotary position, number, attention received}, and the list of queries.
// After every step the library's states must say what the lists say; a refused step changes nothing.

#include "input.hpp"

#include <kvtrim/compact/compact_in_place.hpp>
#include <kvtrim/compact/flat_cache.hpp>
#include <kvtrim/decode/cache_positions.hpp>
#include <kvtrim/decode/interval_policy.hpp>
#include <kvtrim/decode/recent_queries.hpp>
#include <kvtrim/decode/running_scores.hpp>
#include <kvtrim/policy/baselines.hpp>

#include <algorithm>

using namespace kvtrim;

namespace {

struct token {
    index_t text, rotary;
    float number;
    std::vector<float> sums; // after each query so far, the newest last
};

struct model {
    std::vector<std::vector<token>> heads;
    std::vector<float> queries; // one number each, of all tokens so far
    index_t next = 0;           // rotary
    index_t intact = 0;         // newest tokens that no head has lost
    struct addition {
        index_t tokens, queries; // tokens of the sequence by then, and how many of the newest ones' queries
    };
    std::vector<addition> added;

    [[nodiscard]] index_t seen() const { return std::ssize(queries); }
    // Newest tokens that no query saw.
    [[nodiscard]] index_t unadded() const {
        return std::min(intact, seen() - (added.empty() ? 0 : added.back().tokens));
    }
};

struct library {
    cache_positions positions;
    flat_cache table;
    std::vector<float> memory;
    recent_queries<float> queries;
    running_scores scores;

    library(index_t heads, index_t window, index_t drafts)
        : positions(heads), table(heads, 0.25), queries(1, window, 1, drafts), scores(heads, drafts) {}
    [[nodiscard]] flat_rows<float> rows() { return {memory.data(), table, 1}; }
};

std::vector<std::byte> all_bytes(const library& l) {
    std::vector<std::byte> all;
    const auto add = [&](const auto& state) {
        std::vector<std::byte> bytes(static_cast<std::size_t>(saved_bytes(state)));
        FUZZ_CHECK(save(state, bytes).ok());
        all.insert(all.end(), bytes.begin(), bytes.end());
    };
    add(l.positions);
    add(l.queries);
    add(l.scores);
    return all;
}

void check_same(library& l, const model& m, index_t window) {
    const index_t heads = std::ssize(m.heads);
    FUZZ_CHECK(l.positions.kv_heads() == heads && l.positions.seen_tokens() == m.seen() &&
               l.positions.next_position() == m.next);
    for (index_t g = 0; g < heads; ++g) {
        const auto& head = m.heads[static_cast<std::size_t>(g)];
        const index_t tokens = std::ssize(head);
        FUZZ_CHECK(l.positions.tokens(g) == tokens && l.table.rows(g) == tokens &&
                   l.scores.tokens(g) == tokens);
        for (index_t t = 0; t < tokens; ++t) {
            const auto i = static_cast<std::size_t>(t);
            FUZZ_CHECK(l.positions.positions(g)[i] == head[i].text &&
                       l.positions.rotary_positions(g)[i] == head[i].rotary);
            FUZZ_CHECK(*l.rows().row(g, t) == head[i].number);
            FUZZ_CHECK(l.scores.sums(g)[i] == head[i].sums.back());
        }
    }
    const auto shown = l.queries.view();
    const index_t count = std::min(window, l.queries.held());
    FUZZ_CHECK(shown.extent(1) == count);
    std::vector<float> tile(static_cast<std::size_t>(count));
    shown.load_rows(0, 0, count, tile.data());
    for (index_t i = 0; i < count; ++i) {
        FUZZ_CHECK(tile[static_cast<std::size_t>(i)] ==
                   m.queries[static_cast<std::size_t>(m.seen() - count + i)]);
    }
}

// Appends to all or none: the table's memory grows as its header says.
void append(library& l, model& m, index_t count, std::uint32_t& next_number) {
    status s = l.table.append(count);
    if (s.code() == errc::no_room) {
        l.memory.resize(static_cast<std::size_t>(s.needed()));
        FUZZ_CHECK(l.table
                       .spread(s.needed(),
                               [&](index_t from, index_t to, index_t n) {
                                   std::memmove(l.memory.data() + to, l.memory.data() + from,
                                                static_cast<std::size_t>(n) * sizeof(float));
                               })
                       .ok());
        s = l.table.append(count);
    }
    FUZZ_CHECK(s.ok() && l.positions.append(count).ok() && l.scores.append(count).ok());
    std::vector<float> chunk;
    for (index_t i = 0; i < count; ++i) {
        const auto number = static_cast<float>(++next_number);
        chunk.push_back(number);
        for (std::size_t g = 0; g < m.heads.size(); ++g) {
            m.heads[g].push_back({m.seen(), m.next, number + static_cast<float>(g) / 8,
                                  std::vector<float>(m.added.size() + 1)});
        }
        m.queries.push_back(number);
        ++m.next;
    }
    for (std::size_t g = 0; g < m.heads.size(); ++g) {
        const index_t tokens = std::ssize(m.heads[g]);
        for (index_t t = tokens - count; t < tokens; ++t) {
            *l.rows().row(static_cast<index_t>(g), t) = m.heads[g][static_cast<std::size_t>(t)].number;
        }
    }
    FUZZ_CHECK(
        l.queries.append(strided<const float, 3>(chunk.data(), {index_t{1}, count, index_t{1}})).ok() ||
        count == 0);
    m.intact += count;
}

} // namespace

void run(fuzz::input& in) {
    const index_t heads = in.between(1, 3), window = in.between(1, 4), drafts = in.between(0, 3);
    library l(heads, window, drafts);
    model m;
    m.heads.resize(static_cast<std::size_t>(heads));
    index_t held = 0, undoable = 0; // queries in the ring; versions
    std::uint32_t next_number = 0;
    library saved_library = l;
    std::vector<std::byte> saved_positions, saved_queries, saved_scores;
    model saved_model = m;
    index_t saved_counts[2] = {0, 0};
    bool is_saved = false;

    for (int step = 0; step < 40 && !in.is_empty(); ++step) {
        const auto before = all_bytes(l);
        switch (in.between(0, 7)) {
        case 0:
        case 1: {
            const index_t count = in.between(0, 4);
            append(l, m, count, next_number);
            held = std::min(held + count, window + drafts);
            break;
        }
        case 2: { // attention of the newest token's query, or of several
            const index_t unadded = m.unadded();
            const index_t queries = in.hostile(in.chance(64) ? unadded : 1, 8);
            index_t longest = 0;
            for (const auto& head : m.heads) { longest = std::max(longest, std::ssize(head)); }
            const auto attention = fuzz::values(in, heads * longest);
            const status s =
                l.scores.add(strided<const float, 2>(attention.data(), {heads, longest}), queries);
            FUZZ_CHECK(s.ok() == (queries >= 1 && queries <= unadded && (longest > 0 || attention.empty())) ||
                       longest == 0);
            if (!s.ok()) {
                FUZZ_CHECK(all_bytes(l) == before);
                break;
            }
            for (std::size_t g = 0; g < m.heads.size(); ++g) {
                for (std::size_t t = 0; t < m.heads[g].size(); ++t) {
                    const float w = attention[g * static_cast<std::size_t>(longest) + t];
                    auto& sums = m.heads[g][t].sums;
                    sums.push_back(sums.back() +
                                   (w > 0 && w <= std::numeric_limits<float>::max() ? w : 0.0f));
                }
            }
            m.added.push_back({m.seen(), queries});
            undoable = queries == 1 ? std::min(undoable + 1, drafts) : 0;
            break;
        }
        case 3: { // rejected drafts
            const index_t count = in.hostile(in.between(0, 3), 8);
            const bool can_drop = count >= 0 && count <= m.intact;
            index_t undone = 0; // additions, which were of a token that goes
            while (can_drop && undone < std::ssize(m.added) &&
                   m.added[m.added.size() - 1 - static_cast<std::size_t>(undone)].tokens > m.seen() - count) {
                ++undone;
            }
            const bool possible = can_drop && undone <= undoable && count <= held;
            library kept = l;
            const bool positions_ok = kept.positions.rollback(count).ok();
            FUZZ_CHECK(positions_ok == can_drop);
            FUZZ_CHECK(kept.scores.rollback(count).ok() == (can_drop && undone <= undoable));
            FUZZ_CHECK(kept.queries.rollback(count).ok() == (count >= 0 && count <= held));
            if (!possible) { break; } // a step of one state alone is not the cache's
            std::vector<index_t> counts;
            keep_plan plan;
            for (auto& head : m.heads) {
                head.resize(head.size() - static_cast<std::size_t>(count));
                for (token& t : head) { t.sums.resize(t.sums.size() - static_cast<std::size_t>(undone)); }
                counts.push_back(std::ssize(head));
            }
            FUZZ_CHECK(plan.reset(counts).ok());
            for (index_t g = 0; g < heads; ++g) {
                std::int32_t t = 0;
                for (auto& kept_token : plan.writable_row(g)) { kept_token = t++; }
            }
            FUZZ_CHECK(kept.table.compact(plan).ok());
            l = kept;
            m.queries.resize(m.queries.size() - static_cast<std::size_t>(count));
            m.added.resize(m.added.size() - static_cast<std::size_t>(undone));
            m.next -= count;
            m.intact -= count;
            undoable -= undone;
            held -= count;
            break;
        }
        case 4: { // a cut, by any plan
            keep_plan plan;
            std::vector<std::vector<std::int32_t>> kept(m.heads.size());
            std::vector<index_t> counts;
            fuzz::stream s(in.byte());
            const std::uint64_t share = in.byte();
            for (std::size_t g = 0; g < kept.size(); ++g) {
                for (std::int32_t t = 0; t < std::ssize(m.heads[g]); ++t) {
                    if ((s.bits() >> 20) % 256 <= share) { kept[g].push_back(t); }
                }
                if (in.chance(4)) { kept[g].push_back(in.number<std::int32_t>()); }
                counts.push_back(std::ssize(kept[g]));
            }
            FUZZ_CHECK(plan.reset(counts).ok());
            for (std::size_t g = 0; g < kept.size(); ++g) {
                std::ranges::copy(kept[g], plan.writable_row(static_cast<index_t>(g)).begin());
            }
            const bool fits = plan.check_invariants(
                [&](index_t g) { return std::ssize(m.heads[static_cast<std::size_t>(g)]); });
            FUZZ_CHECK(l.positions.validate(plan).ok() == fits);
            const status moved = compact_in_place(l.rows(), plan);
            FUZZ_CHECK(moved.ok() == fits);
            FUZZ_CHECK(l.table.compact(plan).ok() == fits && l.positions.compact(plan).ok() == fits &&
                       l.scores.compact(plan).ok() == fits);
            if (!fits) {
                FUZZ_CHECK(all_bytes(l) == before);
                break;
            }
            for (std::size_t g = 0; g < kept.size(); ++g) {
                std::vector<token> left;
                index_t newest = 0; // of the old rows, kept without a gap
                while (newest < std::ssize(kept[g]) &&
                       kept[g][kept[g].size() - 1 - static_cast<std::size_t>(newest)] ==
                           std::ssize(m.heads[g]) - 1 - newest) {
                    ++newest;
                }
                m.intact = std::min(m.intact, newest);
                for (const auto t : kept[g]) { left.push_back(m.heads[g][static_cast<std::size_t>(t)]); }
                m.heads[g] = left;
            }
            break;
        }
        case 5: { // keys closed up
            const close_up_options options{in.hostile(in.between(0, 2), 16),
                                           in.hostile(in.between(0, 20), 16)};
            const status s = l.positions.close_up(options);
            if (!s.ok()) {
                FUZZ_CHECK(all_bytes(l) == before);
                break;
            }
            index_t longest = 0;
            for (const auto& head : m.heads) { longest = std::max(longest, std::ssize(head)); }
            const index_t pinned = options.pinned_tokens;
            const index_t pinned_end =
                pinned == 0 ? 0 : m.heads[0][static_cast<std::size_t>(pinned - 1)].rotary + 1;
            const index_t next = std::max(pinned_end + longest - pinned, options.least_next_position);
            FUZZ_CHECK(next <= m.next);
            for (auto& head : m.heads) {
                for (index_t i = pinned; i < std::ssize(head); ++i) {
                    head[static_cast<std::size_t>(i)].rotary = next - std::ssize(head) + i;
                }
            }
            m.next = next;
            FUZZ_CHECK(l.positions.reclaimable_positions({pinned, 0}) == 0 ||
                       options.least_next_position > 0);
            break;
        }
        case 6: // saved: to other objects, later
            saved_positions.resize(static_cast<std::size_t>(saved_bytes(l.positions)));
            saved_queries.resize(static_cast<std::size_t>(saved_bytes(l.queries)));
            saved_scores.resize(static_cast<std::size_t>(saved_bytes(l.scores)));
            FUZZ_CHECK(save(l.positions, saved_positions).ok() && save(l.queries, saved_queries).ok() &&
                       save(l.scores, saved_scores).ok());
            saved_library = l; // a fork
            saved_model = m;
            saved_counts[0] = held;
            saved_counts[1] = undoable;
            is_saved = true;
            break;
        default: // back to what was saved, read from the bytes or the fork itself
            if (!is_saved) { break; }
            l = saved_library;
            if (in.chance(128)) {
                l.positions = cache_positions(0);
                l.queries = recent_queries<float>(2, 3, 4);
                l.scores = running_scores(7);
                FUZZ_CHECK(restore(l.positions, saved_positions).ok() &&
                           restore(l.queries, saved_queries).ok() && restore(l.scores, saved_scores).ok());
            }
            m = saved_model;
            held = saved_counts[0];
            undoable = saved_counts[1];
        }
        check_same(l, m, window);

        // What an engine asks before it generates on.
        interval_policy policy{
            streaming_llm(),
            {.budget = over_all_heads(in.hostile(heads * 6, 8)), .protect = {.sink_tokens = 1}}};
        policy.buffer_tokens = in.hostile(in.between(0, 4), 8);
        const index_t incoming = in.hostile(in.between(0, 3), 8);
        const status admitted = policy.admits(l.positions, incoming);
        if (admitted.ok() && policy.is_due(l.positions, incoming)) {
            keep_plan plan;
            growing_workspace memory;
            FUZZ_CHECK(policy.plan(layer(l.rows()), plan, memory).ok());
            FUZZ_CHECK(plan.total_tokens() + heads * incoming <= policy.limit_tokens(heads));
        }
    }
}
