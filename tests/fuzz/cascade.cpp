// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Layers pushed one after the other under one budget.
//
// Model: all scores at once. Each row keeps its best `safeguard`, the best of all others fill the places that are left, ties to
// the earlier (row, column). Each push's plan, carried out on a list of columns, must lead to that.

#include "input.hpp"

#include <kvtrim/policy/layer_cascade.hpp>

#include <algorithm>
#include <tuple>

using namespace kvtrim;

namespace {

// Whether a ranks above b: as the library ranks scores, NaN below all.
std::uint32_t rank_of(float score) {
    return ordered_bits(score);
}

struct row {
    std::vector<float> scores;
    std::vector<std::int32_t> held; // columns, as the plans leave them
};

std::vector<std::vector<std::int32_t>> best_of(const std::vector<row>& rows, index_t total,
                                               index_t safeguard) {
    std::vector<std::vector<std::int32_t>> kept(rows.size());
    std::vector<std::tuple<std::int64_t, std::size_t, std::int32_t>> others; // ascending: best first
    for (std::size_t r = 0; r < rows.size(); ++r) {
        std::vector<std::pair<std::int64_t, std::int32_t>> order;
        for (std::size_t c = 0; c < rows[r].scores.size(); ++c) {
            order.emplace_back(-std::int64_t{rank_of(rows[r].scores[c])}, static_cast<std::int32_t>(c));
        }
        std::sort(order.begin(), order.end());
        for (std::size_t i = 0; i < order.size(); ++i) {
            if (static_cast<index_t>(i) < safeguard) {
                kept[r].push_back(order[i].second);
                --total;
            } else {
                others.emplace_back(order[i].first, r, order[i].second);
            }
        }
    }
    std::sort(others.begin(), others.end());
    for (const auto& [score, r, c] : others) {
        if (total-- <= 0) { break; }
        kept[r].push_back(c);
    }
    for (auto& columns : kept) { std::sort(columns.begin(), columns.end()); }
    return kept;
}

} // namespace

void run(fuzz::input& in) {
    const index_t layers = in.between(1, 6), heads = in.between(0, 3);
    const index_t total = in.hostile(in.between(0, 120), 4), safeguard = in.hostile(in.between(0, 6), 4);
    // Numbers that are refused, or small: a plan has an entry for each protected token.
    const auto around = [&] {
        const index_t n = in.hostile(in.between(0, 3), 4);
        return n > 4096 && n <= std::numeric_limits<std::int32_t>::max() ? index_t{3} : n;
    };
    const index_t prefix = around(), suffix = around();
    layer_cascade cascade(total, safeguard);
    FUZZ_CHECK(cascade.validate().ok() == (total >= 0 && safeguard >= 0));
    std::vector<row> rows;
    for (index_t l = 0; l < layers; ++l) {
        std::vector<float> scores;
        std::vector<index_t> offsets{0};
        std::vector<row> added;
        for (index_t h = 0; h < heads; ++h) {
            row& r = added.emplace_back();
            r.scores = fuzz::values(in, in.between(0, 30));
            scores.insert(scores.end(), r.scores.begin(), r.scores.end());
            offsets.push_back(std::ssize(scores));
            for (std::int32_t c = 0; c < std::ssize(r.scores); ++c) { r.held.push_back(c); }
        }
        const auto true_offsets = offsets;
        if (in.chance(12)) { offsets[static_cast<std::size_t>(in.between(0, heads))] = in.hostile(0, 255); }
        const index_t held_before = cascade.held_tokens();
        const status answer = cascade.push({offsets, scores});
        if (!answer.ok()) {
            FUZZ_CHECK(cascade.held_tokens() == held_before && cascade.layers() == l);
            index_t safe = 0;
            for (const auto& list : {rows, added}) {
                for (const row& r : list) { safe += std::clamp<index_t>(safeguard, 0, std::ssize(r.scores)); }
            }
            FUZZ_CHECK(!cascade.validate().ok() || offsets != true_offsets || safe > total);
            keep_plan plan;
            FUZZ_CHECK(!cascade.plan(l, 0, 0, plan).ok() && plan == keep_plan{});
            return;
        }
        if (offsets != true_offsets) { return; } // another layer than the model has
        rows.insert(rows.end(), added.begin(), added.end());
        for (index_t k = 0; k <= l; ++k) { // each layer's cache follows its plan
            keep_plan plan;
            const status planned = cascade.plan(k, prefix, suffix, plan);
            if (!planned.ok()) {
                FUZZ_CHECK(plan == keep_plan{} && (prefix < 0 || suffix < 0 || prefix > 9 || suffix > 9));
                return;
            }
            for (index_t h = 0; h < heads; ++h) {
                row& r = rows[static_cast<std::size_t>(k * heads + h)];
                const index_t tokens = prefix + suffix + std::ssize(r.held);
                const auto kept = plan.row(h);
                std::vector<std::int32_t> held;
                for (std::size_t i = 0; i < kept.size(); ++i) {
                    FUZZ_CHECK(kept[i] >= 0 && kept[i] < tokens && (i == 0 || kept[i] > kept[i - 1]));
                    const index_t c = kept[i] - prefix;
                    if (c >= 0 && c < std::ssize(r.held)) {
                        held.push_back(r.held[static_cast<std::size_t>(c)]);
                    }
                }
                FUZZ_CHECK(std::ssize(held) + prefix + suffix == std::ssize(kept)); // protected ones all stay
                FUZZ_CHECK(cascade.changed(k) || held == r.held);
                r.held = held;
            }
        }
        const auto expected = best_of(rows, total, safeguard);
        index_t held = 0;
        for (std::size_t r = 0; r < rows.size(); ++r) {
            FUZZ_CHECK(rows[r].held == expected[r]);
            held += std::ssize(expected[r]);
        }
        FUZZ_CHECK(cascade.held_tokens() == held && held <= total);
    }
}
