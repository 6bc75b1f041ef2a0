// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// A pool of pages, tables over it that may be wrong anywhere, plans, and the moves that follow from them.
//
// Model: each slot of the pool holds bits of its own. After the moves every row must show the tokens that it keeps, each owned
// page is freed or named, shared pages are as they were, and no other byte of the pool has changed.

#include "input.hpp"

#include <kvtrim/cache/paged_rows.hpp>
#include <kvtrim/compact/move_rows.hpp>
#include <kvtrim/compact/plan_page_moves.hpp>

#include <algorithm>
#include <map>
#include <set>

using namespace kvtrim;

namespace {

using int32s = std::vector<std::int32_t>;

struct pool {
    index_t pages, page_tokens, heads, key_dim, value_dim;
    bool head_major;
    std::vector<float> k, v;
    int32s indptr{0}, indices, last_page_len, ref_counts, free_pages;

    [[nodiscard]] page_table table() const { return {indptr, indices, last_page_len}; }
    [[nodiscard]] page_layout layout(index_t dim) const {
        const index_t gap = 3; // behind each page
        const index_t page = page_tokens * heads * dim + gap;
        return head_major ? page_layout{page_tokens, page, dim, page_tokens * dim, pages}
                          : page_layout{page_tokens, page, heads * dim, dim, pages};
    }
    [[nodiscard]] paged_memory<float> keys() { return {k.data(), layout(key_dim), heads, key_dim}; }
    [[nodiscard]] paged_memory<float> values() { return {v.data(), layout(value_dim), heads, value_dim}; }
};

pool any_pool(fuzz::input& in) {
    pool p;
    p.page_tokens = in.between(1, 6);
    p.heads = in.between(1, 3);
    p.key_dim = in.between(0, 3);
    p.value_dim = in.between(1, 2);
    p.head_major = in.chance(128);
    const index_t rows = in.between(0, 4);
    std::int32_t next = 0;
    int32s shared_before;
    for (index_t r = 0; r < rows; ++r) {
        const index_t tokens = in.between(0, 20);
        const index_t count = (tokens + p.page_tokens - 1) / p.page_tokens;
        index_t common = in.chance(64) ? in.between(0, count) : 0;
        common = std::min(common, std::ssize(shared_before));
        const auto begin = p.indices.size();
        for (index_t j = 0; j < count; ++j) {
            const bool is_common = j < common && j + 1 < count;
            const std::int32_t page = is_common ? shared_before[static_cast<std::size_t>(j)] : next++;
            if (is_common) {
                ++p.ref_counts[static_cast<std::size_t>(page)];
            } else {
                p.ref_counts.push_back(in.chance(32) ? 2 : 1);
            }
            p.indices.push_back(page);
        }
        shared_before.assign(p.indices.begin() + static_cast<std::ptrdiff_t>(begin), p.indices.end());
        p.indptr.push_back(static_cast<std::int32_t>(p.indices.size()));
        p.last_page_len.push_back(
            static_cast<std::int32_t>(count == 0 ? in.between(0, 9) : tokens - (count - 1) * p.page_tokens));
    }
    for (index_t spare = in.between(0, 6); spare > 0; --spare) {
        p.free_pages.push_back(next++);
        p.ref_counts.push_back(1);
    }
    p.pages = next;
    // Pages in another order.
    int32s order(static_cast<std::size_t>(next));
    for (std::size_t i = 0; i < order.size(); ++i) { order[i] = static_cast<std::int32_t>(i); }
    fuzz::stream s(in.byte());
    for (std::size_t i = order.size(); i > 1; --i) { std::swap(order[i - 1], order[s.bits() % i]); }
    for (auto* list : {&p.indices, &p.free_pages}) {
        for (auto& page : *list) { page = order[static_cast<std::size_t>(page)]; }
    }
    int32s counts(order.size());
    for (std::size_t i = 0; i < order.size(); ++i) {
        counts[static_cast<std::size_t>(order[i])] = p.ref_counts[i];
    }
    p.ref_counts = counts;
    const auto fill = [&](index_t dim) {
        std::vector<float> all(static_cast<std::size_t>(p.pages * p.layout(dim).page_stride + 1));
        float x = 0;
        for (float& e : all) { e = ++x; }
        return all;
    };
    p.k = fill(p.key_dim);
    p.v = fill(p.value_dim);
    return p;
}

// One number of a list, changed.
void damage(fuzz::input& in, int32s& list) {
    if (list.empty()) { return; }
    auto& at = list[static_cast<std::size_t>(in.between(0, std::ssize(list) - 1))];
    at = static_cast<std::int32_t>(in.hostile(at, 255));
}

std::int32_t slot_of(const page_table& table, index_t row, index_t token, index_t page_tokens) {
    return static_cast<std::int32_t>(
        table.row(row)[static_cast<std::size_t>(token / page_tokens)] * page_tokens + token % page_tokens);
}

void check_moves(fuzz::input& in, pool& p, const keep_plan& plan, const move_plan& moved, index_t heads,
                 const page_move_options& options) {
    pool before = p;
    if (in.chance(128)) {
        FUZZ_CHECK(move_rows(p.keys(), p.values(), moved).ok());
    } else {
        FUZZ_CHECK(move_rows(p.keys(), moved).ok() && move_rows(p.values(), moved).ok());
    }
    const page_table table = moved.table(), old_table = before.table();
    FUZZ_CHECK(validate(table, p.pages, p.page_tokens).ok());
    std::set<std::int32_t> written;
    for (index_t row = 0; row < moved.rows(); ++row) {
        const auto origins = moved.origins(row);
        const index_t table_row = row / heads;
        FUZZ_CHECK(table.tokens(table_row, p.page_tokens) == std::ssize(origins));
        const std::set<std::int32_t> held(origins.begin(), origins.end());
        FUZZ_CHECK(held.size() == origins.size());
        for (const auto kept : plan.row(row)) { FUZZ_CHECK(held.count(kept) == 1); }
        FUZZ_CHECK(options.shared == shared_pages::stay_whole || held.size() == plan.row(row).size());
        FUZZ_CHECK(options.order != move_order::in_order || std::is_sorted(origins.begin(), origins.end()));
        for (std::size_t i = 0; i < origins.size(); ++i) {
            const auto slot = slot_of(table, table_row, static_cast<index_t>(i), p.page_tokens);
            const auto old = slot_of(old_table, table_row, origins[i], p.page_tokens);
            for (index_t head = 0; head < p.heads; ++head) {
                if (heads > 1 && head != row % heads) { continue; }
                FUZZ_CHECK(std::equal(p.keys().row(slot, head), p.keys().row(slot, head) + p.key_dim,
                                      before.keys().row(old, head)));
                FUZZ_CHECK(std::equal(p.values().row(slot, head), p.values().row(slot, head) + p.value_dim,
                                      before.values().row(old, head)));
            }
        }
        for (const slot_move m : moved.moves(row)) {
            written.insert(m.to / static_cast<std::int32_t>(p.page_tokens));
        }
    }
    int32s named = before.indices, accounted(table.indices.begin(), table.indices.end());
    named.insert(named.end(), before.free_pages.begin(), before.free_pages.begin() + moved.taken_pages());
    for (const auto list : {moved.freed_pages(), moved.released_pages()}) {
        accounted.insert(accounted.end(), list.begin(), list.end());
    }
    std::sort(named.begin(), named.end());
    std::sort(accounted.begin(), accounted.end());
    FUZZ_CHECK(named == accounted);
    const index_t stride = p.layout(p.value_dim).page_stride;
    for (std::int32_t page = 0; page < p.pages; ++page) {
        const bool is_shared = before.ref_counts[static_cast<std::size_t>(page)] > 1;
        FUZZ_CHECK(!is_shared || written.count(page) == 0);
        if (written.count(page) > 0) { continue; }
        FUZZ_CHECK(std::equal(p.v.begin() + page * stride, p.v.begin() + (page + 1) * stride,
                              before.v.begin() + page * stride));
    }
    for (const auto page : moved.freed_pages()) {
        FUZZ_CHECK(before.ref_counts[static_cast<std::size_t>(page)] < 2);
        FUZZ_CHECK(std::count(table.indices.begin(), table.indices.end(), page) == 0);
    }
}

// Rows of a request as a source: what the table says, token by token.
void read_rows(fuzz::input& in, const pool& p) {
    const index_t request = in.hostile(in.between(0, 3));
    const page_table table = p.table();
    const auto check = [&](const auto& source, auto&& slot_row) {
        if (!source.validate().ok()) {
            FUZZ_CHECK(source.extent(0) == 0 && source.extent(1) == 0);
            return;
        }
        for (index_t g = 0; g < source.extent(0); ++g) {
            const index_t tokens = row_count(source, g);
            std::vector<float> tile(static_cast<std::size_t>(tokens * source.extent(2)));
            source.load_rows(g, 0, tokens, tile.data());
            for (index_t t = 0; t < tokens; ++t) {
                const float* const row = slot_row(g, t);
                FUZZ_CHECK(std::equal(row, row + source.extent(2), tile.begin() + t * source.extent(2)));
            }
        }
    };
    const page_layout layout = p.layout(p.value_dim);
    check(paged_rows<float>(p.v.data(), layout, table, request, p.heads, p.value_dim),
          [&](index_t g, index_t t) {
              return p.v.data() +
                     table.row(request)[static_cast<std::size_t>(t / p.page_tokens)] * layout.page_stride +
                     t % p.page_tokens * layout.token_stride + g * layout.head_stride;
          });
    const index_t of_heads = in.hostile(in.between(0, 3));
    check(paged_head_rows<float>(p.v.data(), layout, table, request, of_heads, p.value_dim),
          [&](index_t g, index_t t) {
              return p.v.data() +
                     table.row(request * of_heads + g)[static_cast<std::size_t>(t / p.page_tokens)] *
                         layout.page_stride +
                     t % p.page_tokens * layout.token_stride;
          });
}

void write_blocks(fuzz::input& in) {
    const index_t requests = in.between(0, 4), most_pages = in.between(0, 4),
                  page_tokens = in.hostile(in.between(1, 5));
    int32s pages(static_cast<std::size_t>(requests * most_pages)), tokens(static_cast<std::size_t>(requests));
    for (auto& page : pages) { page = static_cast<std::int32_t>(in.hostile(in.between(0, 9), 4)); }
    for (auto& length : tokens) { length = static_cast<std::int32_t>(in.hostile(in.between(0, 20), 4)); }
    const block_table blocks{pages, in.hostile(most_pages, 8), tokens};
    int32s indptr(static_cast<std::size_t>(in.hostile(requests + 1, 8) & 15), -7);
    int32s indices(static_cast<std::size_t>(in.hostile(requests * most_pages, 64) & 31), -7);
    int32s last(static_cast<std::size_t>(in.hostile(requests, 8) & 15), -7);
    page_table table;
    const status answer = write_page_table(blocks, page_tokens, indptr, indices, last, table);
    if (!answer.ok()) {
        for (const auto* list : {&indptr, &indices, &last}) {
            FUZZ_CHECK(std::count(list->begin(), list->end(), -7) == std::ssize(*list));
        }
        return;
    }
    for (index_t r = 0; r < requests; ++r) {
        const index_t length = tokens[static_cast<std::size_t>(r)];
        FUZZ_CHECK(table.tokens(r, page_tokens) == length);
        // By page: a page may hold as many tokens as a number can say.
        const auto row = table.row(r);
        FUZZ_CHECK(std::ssize(row) == length / page_tokens + (length % page_tokens != 0));
        FUZZ_CHECK(std::equal(row.begin(), row.end(), pages.begin() + r * most_pages));
    }
}

} // namespace

void run(fuzz::input& in) {
    write_blocks(in);
    pool p = any_pool(in);
    const pool sound = p;
    for (int hits = in.chance(48) ? 2 : 0; hits > 0; --hits) {
        int32s* const lists[] = {&p.indptr, &p.indices, &p.last_page_len, &p.ref_counts, &p.free_pages};
        damage(in, *in.one_of(lists));
    }
    const bool is_sound = p.indptr == sound.indptr && p.indices == sound.indices &&
                          p.last_page_len == sound.last_page_len && p.ref_counts == sound.ref_counts &&
                          p.free_pages == sound.free_pages;
    read_rows(in, p);

    const index_t heads = in.chance(128) ? p.heads : 1;
    const index_t rows = std::ssize(p.last_page_len) * heads;
    std::vector<index_t> counts;
    std::vector<int32s> kept(static_cast<std::size_t>(rows));
    for (index_t r = 0; r < rows; ++r) {
        const index_t tokens = sound.table().tokens(r / heads, p.page_tokens);
        const index_t count = r % heads == 0 ? in.between(0, tokens) : counts.back();
        fuzz::stream s(in.byte());
        std::set<std::int32_t> chosen;
        while (std::ssize(chosen) < count) {
            chosen.insert(static_cast<std::int32_t>((s.bits() >> 16) % static_cast<std::uint64_t>(tokens)));
        }
        kept[static_cast<std::size_t>(r)].assign(chosen.begin(), chosen.end());
        counts.push_back(count);
    }
    keep_plan plan;
    FUZZ_CHECK(plan.reset(counts).ok());
    for (index_t r = 0; r < rows; ++r) {
        std::ranges::copy(kept[static_cast<std::size_t>(r)], plan.writable_row(r).begin());
    }

    constexpr move_order orders[] = {move_order::fewest, move_order::from_tail, move_order::in_order};
    const page_move_options options{in.one_of(orders),
                                    in.chance(128) ? shared_pages::stay_whole : shared_pages::copied};
    page_pool described{.pages = in.hostile(p.pages, 8),
                        .page_tokens = in.hostile(p.page_tokens, 8),
                        .heads = in.hostile(heads, 8),
                        .ref_counts = p.ref_counts,
                        .free_pages = p.free_pages};
    const bool same_pool =
        described.pages == p.pages && described.page_tokens == p.page_tokens && described.heads == heads;
    growing_workspace memory;
    const index_t bytes = plan_page_moves_bytes(p.table(), described);
    const bool has_memory = bytes < index_t{1} << 24; // pages that are said to be huge ask for as much
    workspace scratch = memory.of_bytes(has_memory ? bytes : 0);
    move_plan moved;
    const status answer = plan_page_moves(plan, p.table(), described, options, moved, scratch);
    FUZZ_CHECK(has_memory ? answer.code() != errc::workspace_too_small : !answer.ok());
    if (!answer.ok()) {
        FUZZ_CHECK(moved == move_plan{});
        const errc c = answer.code();
        FUZZ_CHECK(!is_sound || !same_pool || c == errc::page_shared || c == errc::rows_differ ||
                   c == errc::pages_too_few);
        return;
    }
    if (same_pool && is_sound) { check_moves(in, p, plan, moved, heads, options); }
}
