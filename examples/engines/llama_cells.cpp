// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// A cache of cells, as llama.cpp keeps it: one cell is one token for all heads and layers, cells of several sequences lie
// between each other, K is token-major and V transposed. The scores of all layers become one token set, and that becomes
// calls of seq_rm; of an image, whose tokens share a position (M-RoPE), all stay or none.
#include "numbers.hpp"

#include <kvtrim/cache/indexed_rows.hpp>
#include <kvtrim/cache/list_cells.hpp>
#include <kvtrim/compact/edit_cells.hpp>
#include <kvtrim/policy/snapkv.hpp>

#include <algorithm>
#include <cstdio>
#include <vector>

namespace {

using namespace kvtrim;

constexpr index_t layers = 3, q_heads = 4, kv_heads = 2, head_dim = 16, cells = 400, window = 8, kept = 64;

// The engine's side: which sequence a cell belongs to (-1: none), and at which position.
struct cell_array {
    std::vector<std::int32_t> position = std::vector<std::int32_t>(cells);
    std::vector<int> sequence = std::vector<int>(cells, -1);

    // Returns how many cells were freed.
    index_t seq_rm(int which, index_t begin, index_t end) {
        index_t freed = 0;
        for (std::size_t c = 0; c < cells; ++c) {
            if (sequence[c] != which || position[c] < begin || position[c] >= end) { continue; }
            sequence[c] = -1;
            ++freed;
        }
        return freed;
    }
    [[nodiscard]] auto use_by(int which) const {
        return [this, which](index_t c) {
            return sequence[static_cast<std::size_t>(c)] == which ? cell_use::owned : cell_use::not_used;
        };
    }
};

// Text at 0 ... 9, an image of 8 x 8 tokens at position 10, text from 18 on: as Qwen2-VL lies in the cells. The plan
// keeps a part of the image and the newest text.
bool cuts_around_an_image() {
    cell_array engine;
    std::vector<std::int32_t> positions;
    for (std::int32_t t = 0; t < 120; ++t) { positions.push_back(t < 10 ? t : t < 74 ? 10 : t - 56); }
    std::copy(positions.begin(), positions.end(), engine.position.begin());
    std::fill_n(engine.sequence.begin(), positions.size(), 0);
    std::vector<std::int32_t> survivors{0, 1, 30, 31};
    for (std::int32_t t = 100; t < 120; ++t) { survivors.push_back(t); }
    index_t freed = 0;
    cell_edit_report report;
    const status s = edit_cells(
        survivors, positions, {}, [&](token_range r) { freed += engine.seq_rm(0, r.begin, r.end); },
        [](const position_shift&) {}, &report);
    return s.ok() && freed == 120 - report.kept_cells && report.kept_cells == 2 + 64 + 20 &&
           report.shared_cells == 62;
}

} // namespace

int main() {
    cell_array engine; // two sequences by turns, then holes
    for (std::int32_t c = 0; c < 360; ++c) {
        const auto i = static_cast<std::size_t>(c);
        engine.sequence[i] = c % 3 == 0 ? 1 : 0;
        engine.position[i] = c % 3 == 0 ? c / 3 : c - c / 3 - 1;
    }
    std::vector<std::int32_t> room(cells);
    cell_list list;
    status s = list_cells(engine.position, engine.use_by(0), room, list);
    const auto tokens = std::ssize(list.cells);

    const cell_scores::request asked{
        .tokens = tokens,
        .kept_tokens = kept,
        .protect = {.sink_tokens = 4, .pinned_tokens = list.shared_prefix, .window_tokens = window}};
    growing_workspace fold_memory, memory;
    workspace fold_scratch = fold_memory.of_bytes(asked.workspace_bytes());
    cell_scores all_layers(asked, fold_scratch);
    for (std::uint32_t l = 0; l < layers && s.ok(); ++l) {
        const auto k = numbers(cells * kv_heads * head_dim, l);
        const auto v = numbers(cells * kv_heads * head_dim, 50 + l);
        const auto q = numbers(q_heads * window * head_dim, 100 + l);
        const strided keys(k.data(), {kv_heads, cells, head_dim}, {head_dim, kv_heads * head_dim, 1});
        const strided values(v.data(), {kv_heads, cells, head_dim},
                             {head_dim * cells, 1, cells}); // transposed
        const auto in = layer(indexed_rows(keys, list.cells), indexed_rows(values, list.cells))
                            .with_queries(strided(q.data(), {q_heads, window, head_dim}));
        s = all_layers.add(snapkv(), in, {}, memory);
    }
    keep_plan plan;
    if (s.ok()) { s = all_layers.plan(plan); }
    if (!s.ok()) { return std::puts(s.what()), 1; }

    std::vector<std::int32_t> positions, survivors; // of the sequence's tokens; of those that stay
    for (const auto c : list.cells) { positions.push_back(engine.position[static_cast<std::size_t>(c)]); }
    for (const auto t : plan.row(0)) { survivors.push_back(positions[static_cast<std::size_t>(t)]); }
    int calls = 0;
    index_t freed = 0;
    s = edit_cells(
        plan.row(0), positions, {},
        [&](token_range r) {
            ++calls;
            freed += engine.seq_rm(0, r.begin, r.end);
        },
        [](const position_shift&) {}); // positions are kept
    if (!s.ok()) { return std::puts(s.what()), 1; }

    std::vector<std::int32_t> room_after(cells), left;
    cell_list after;
    s = list_cells(engine.position, engine.use_by(0), room_after, after);
    if (!s.ok()) { return std::puts(s.what()), 1; }
    for (const auto c : after.cells) { left.push_back(engine.position[static_cast<std::size_t>(c)]); }
    const auto others = std::count(engine.sequence.begin(), engine.sequence.end(), 1);
    const bool is_right = left == survivors && std::ssize(left) == kept && freed == tokens - kept &&
                          others == 120 && left.back() == tokens - 1 && cuts_around_an_image();
    std::printf("%d of %d cells freed in %d calls of seq_rm, %s\n", static_cast<int>(freed),
                static_cast<int>(tokens), calls, is_right ? "the survivors at their positions" : "WRONG");
    return is_right ? 0 : 1;
}
