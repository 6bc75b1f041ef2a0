// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Outputs in the memory of what is read, as of an engine that reuses a buffer too early: rows would change before they are
// read. Each call says so, and writes nothing.

#include "support/states.hpp"

#include <kvtrim/aggregate/dispersion_attention.hpp>
#include <kvtrim/aggregate/worst_case_attention.hpp>
#include <kvtrim/allocate/preference.hpp>
#include <kvtrim/allocate/pyramid.hpp>
#include <kvtrim/allocate/uniform.hpp>
#include <kvtrim/cache/cell_mirror.hpp>
#include <kvtrim/cache/filled.hpp>
#include <kvtrim/cache/indexed_rows.hpp>
#include <kvtrim/cache/paged_rows.hpp>
#include <kvtrim/cache/ragged.hpp>
#include <kvtrim/cache/row_range.hpp>
#include <kvtrim/cache/scaled_rows.hpp>
#include <kvtrim/compact/compact_in_place.hpp>
#include <kvtrim/compact/compact_to_flat.hpp>
#include <kvtrim/compact/edit_cells.hpp>
#include <kvtrim/compact/rerotate_keys.hpp>
#include <kvtrim/decode/ragged_attention.hpp>
#include <kvtrim/decode/recent_queries.hpp>
#include <kvtrim/policy/plan_pages.hpp>
#include <kvtrim/policy/snapkv.hpp>
#include <kvtrim/prefill/block_bounds.hpp>
#include <kvtrim/prefill/block_sparse_attention.hpp>
#include <kvtrim/score/combine_projections.hpp>
#include <kvtrim/score/projected_norm_weighted.hpp>
#include <kvtrim/score/value_norm_weighted.hpp>
#include <kvtrim/score/window_attention.hpp>

using namespace kvtrim;

namespace {

constexpr index_t kv_heads = 2, q_heads = 4, tokens = 6, dim = 8, hidden = 3;

// One buffer for everything that a call may read, and one for what it may write.
struct buffers {
    std::vector<float> read = std::vector<float>(1024);
    std::vector<float> written = std::vector<float>(256, 7.0f);
    float* next = read.data();
    serial_executor ex;
    growing_workspace memory;

    buffers() {
        for (std::size_t i = 0; i < read.size(); ++i) { read[i] = 0.01f * static_cast<float>(i % 97); }
    }
    strided<float, 3> take(index_t a, index_t b, index_t c) {
        const strided<float, 3> view(next, {a, b, c});
        next += a * b * c;
        return view;
    }
    strided<float, 3> keys = take(kv_heads, tokens, dim), values = take(kv_heads, tokens, dim),
                      queries = take(q_heads, tokens, dim), w_o = take(q_heads, dim, hidden);

    [[nodiscard]] auto layer() const {
        return kvtrim::layer(keys, values).with_queries(queries).with_output_projection(w_o);
    }
    workspace scratch() { return memory.of_bytes(index_t{1} << 22); }

    // call(float* out) is refused where out lies at the begin, the last element or the inside of any view, and not apart.
    template <class Call>
    void check(index_t floats, Call&& call, std::initializer_list<strided<float, 3>> views) {
        const auto before = read;
        for (const auto& view : views) {
            float* const begin = view.data_handle();
            const index_t count = view.extent(0) * view.extent(1) * view.extent(2);
            for (float* const out : {begin, begin + count / 2, begin + count - 1}) {
                CHECK(call(out).code() == errc::views_overlap);
            }
        }
        CHECK(read == before);
        REQUIRE(floats <= std::ssize(written));
        std::fill(written.begin(), written.end(), 7.0f);
        CHECK(call(written.data()).ok());
        CHECK(read == before);
        CHECK(written != std::vector<float>(written.size(), 7.0f));
    }
};

} // namespace

TEST_CASE("ragged_attention: an output over keys, values or queries is refused, and so are the log sums") {
    buffers b;
    const auto in = layer(b.keys, b.values).with_queries(b.queries);
    std::vector<float> apart(q_heads * tokens * dim), sums(q_heads * tokens);
    b.check(q_heads * tokens * dim,
            [&](float* out) {
                const strided<float, 3> o(out, {q_heads, tokens, dim});
                return ragged_attention(in, {}, o, {}, b.memory);
            },
            {b.keys, b.values, b.queries});
    const strided<float, 3> out(apart.data(), {q_heads, tokens, dim});
    b.check(q_heads * tokens,
            [&](float* lse) { return ragged_attention(in, {}, out, std::span(lse, sums.size()), b.memory); },
            {b.keys, b.values, b.queries});
    // Over each other, over itself and over the sink logits.
    const auto before = apart;
    CHECK(ragged_attention(in, {}, out, std::span(apart).last(sums.size()), b.memory).code() ==
          errc::views_overlap);
    CHECK(ragged_attention(in, {}, strided<float, 3>(apart.data(), {q_heads, tokens, dim}, {dim, 0, 1}), {},
                           b.memory)
              .code() == errc::views_overlap);
    CHECK(ragged_attention(in, {.sink_logits = std::span(apart).first(q_heads)}, out, {}, b.memory).code() ==
          errc::views_overlap);
    CHECK(apart == before);
}

TEST_CASE(
    "block_sparse_attention: an output over keys, values or queries is refused, and so are the log sums") {
    buffers b;
    const auto in = layer(b.keys, b.values).with_queries(b.queries);
    prune_plan plan;
    REQUIRE(plan_dense({.segment_tokens = 2, .block_tokens = 2, .end_token = tokens}, kv_heads, plan).ok());
    std::vector<float> apart(q_heads * tokens * dim);
    b.check(q_heads * tokens * dim,
            [&](float* out) {
                const strided<float, 3> o(out, {q_heads, tokens, dim});
                return block_sparse_attention(in, plan, {}, o, {}, b.memory);
            },
            {b.keys, b.values, b.queries});
    const strided<float, 3> out(apart.data(), {q_heads, tokens, dim});
    b.check(q_heads * tokens,
            [&](float* lse) {
                return block_sparse_attention(in, plan, {}, out, std::span(lse, q_heads * tokens), b.memory);
            },
            {b.keys, b.values, b.queries});
}

TEST_CASE(
    "Scorers: scores over keys, values, queries or W_O are refused, and so are scores over each other") {
    buffers b;
    const auto in = b.layer().with_queries(strided<float, 3>(b.queries.data_handle(), {q_heads, 2, dim}));
    const eviction_request request{.budget = per_head(4), .protect = {.window_tokens = 2}};
    std::vector<index_t> offsets{0, 4, 8};
    const auto check = [&](const auto& scorer) {
        std::vector<float> other(64);
        const auto score = [&](const token_scores& out) {
            workspace scratch = b.scratch();
            return scorer.score(in, request, out, scratch, b.ex);
        };
        const auto room = std::span(other);
        using scorer_type = std::remove_cvref_t<decltype(scorer)>;
        b.check(8,
                [&](float* out) {
                    return score({offsets, std::span(out, 8), room.first(8), room.subspan(16, 2)});
                },
                {b.keys, b.values, b.w_o});
        b.check(2,
                [&](float* out) {
                    return score({offsets, room.first(8), room.subspan(8, 8), {out, 2}});
                },
                {b.keys, b.values, b.w_o});
        CHECK(score({offsets, room.first(8), room.subspan(8, 8), room.subspan(7, 2)}).code() ==
              errc::views_overlap);
        if constexpr (scorer_type::writes_attention) {
            CHECK(score({offsets, room.first(8), room.subspan(7, 8), {}}).code() == errc::views_overlap);
        } else {
            CHECK(score({offsets, room.first(8), room.first(8), {}}).ok()); // it does not write attention
        }
    };
    check(window_attention<worst_case_attention>{});
    check(value_norm_weighted<window_attention<worst_case_attention>>{});
    check(projected_norm_weighted<window_attention<worst_case_attention>>{});
}

TEST_CASE("Value norms: norms over values, W_O or the norms that are known are refused") {
    buffers b;
    const auto in = b.layer();
    std::vector<index_t> offsets{0, tokens, 2 * tokens};
    b.check(2 * tokens,
            [&](float* out) {
                workspace scratch = b.scratch();
                const score_rows norms{offsets, std::span(out, 2 * tokens)};
                return projected_value_norms(in, {}, norms, scratch, b.ex);
            },
            {b.values, b.w_o});
    b.check(
        kv_heads,
        [&](float* out) {
            workspace scratch = b.scratch();
            return newest_projected_value_norms(in, 1, strided<float, 2>(out, {kv_heads, 1}), scratch, b.ex);
        },
        {b.values, b.w_o});
    const strided<float, 3> rows = b.take(1, kv_heads, tokens);
    const auto known =
        layer(b.keys, b.values).with_output_projection(known_norms{{rows.data_handle(), {kv_heads, tokens}}});
    b.check(2 * tokens,
            [&](float* out) {
                workspace scratch = b.scratch();
                const score_rows norms{offsets, std::span(out, 2 * tokens)};
                return projected_value_norms(known, {}, norms, scratch, b.ex);
            },
            {rows});
}

TEST_CASE("combine_projections, block bounds and page scores: an output over what is read is refused") {
    buffers b;
    const strided<float, 3> w_uv(b.queries.data_handle(), {q_heads, 2, dim});
    b.check(q_heads * 2 * hidden,
            [&](float* out) {
                workspace scratch = b.scratch();
                return combine_projections(w_uv, b.w_o, std::span(out, q_heads * 2 * hidden), scratch, b.ex);
            },
            {w_uv, b.w_o});

    std::vector<float> other(128);
    const index_t floats = kv_heads * 3 * dim;
    const auto bound = [&](float* maximum, float* minimum) {
        workspace scratch = b.scratch();
        const block_bounds out{std::span(maximum, floats), std::span(minimum, floats), 3, dim};
        return compute_block_bounds(b.keys, tokens, 2, 0, out, scratch, b.ex);
    };
    b.check(floats, [&](float* out) { return bound(out, other.data()); }, {b.keys});
    b.check(floats, [&](float* out) { return bound(other.data(), out); }, {b.keys});
    CHECK(bound(other.data(), other.data() + floats - 1).code() == errc::views_overlap);

    const strided<float, 3> row(b.keys.data_handle(), {1, 1, 16});
    b.check(4,
            [&](float* out) {
                return score_pages(std::span<const float>(row.data_handle(), 16), 4, page_reduction::sum,
                                   std::span(out, 4));
            },
            {row});
}

TEST_CASE("Allocators: budgets over the offsets or the protected counts of the scores are refused") {
    std::vector<float> values(8, 1.0f);
    std::vector<index_t> table{0, 4, 8, 1, 1, -1, -1};
    const auto before = table;
    const auto all = std::span(table);
    const score_rows scores{all.first(3), values, all.subspan(3, 2)};
    workspace none{std::span<std::byte>{}};
    for (const std::size_t begin : {std::size_t{0}, std::size_t{2}, std::size_t{4}}) {
        CHECK(uniform{}.allocate(scores, 4, all.subspan(begin, 2), none).code() == errc::views_overlap);
    }
    CHECK(table == before);
    CHECK(uniform{}.allocate(scores, 4, all.subspan(5, 2), none).ok());
}

TEST_CASE("Every source: an output over its rows is refused, and one over the table that finds them") {
    buffers b;
    std::vector<float> apart(kv_heads * dim);
    // ragged_attention of one query over this source, with the output at `out`.
    const auto attend = [&](const auto& source, void* out) {
        const auto in =
            layer(source, source).with_queries(strided<float, 3>(b.queries.data_handle(), {2, 1, dim}));
        const strided<float, 3> o(static_cast<float*>(out), {2, 1, dim});
        return ragged_attention(in, {}, o, {}, b.memory).code();
    };
    const auto check = [&](const auto& source, std::span<float> rows, auto table) {
        const auto before = b.read;
        CHECK(attend(source, rows.data()) == errc::views_overlap);
        CHECK(attend(source, rows.data() + rows.size() - 1) == errc::views_overlap);
        if (!table.empty()) { CHECK(attend(source, table.data()) == errc::views_overlap); }
        CHECK(b.read == before);
        CHECK(attend(source, apart.data()) == errc::ok);
    };
    float* const pool = b.keys.data_handle();
    const strided<float, 3> cache = b.keys;
    const auto rows = std::span(pool, kv_heads * tokens * dim);
    check(row_range(cache, 1, 4), rows.first(5 * dim).last(4 * dim), std::span<int>{});

    // Tables lie in memory that is long enough for an output.
    std::vector<std::int32_t> offsets(64), slots(64), pages(64);
    offsets[1] = 6, offsets[2] = 12;
    check(ragged<float>(pool, std::span(offsets).first(3), dim), rows, std::span(offsets).first(3));
    std::vector<index_t> lengths(64, tokens);
    check(filled<float>(cache, std::span(lengths).first(2)), rows, std::span(lengths).first(2));
    slots[0] = 5, slots[1] = 3;
    const indexed_rows<strided<float, 3>> indexed(cache, std::span<const std::int32_t>(slots).first(2));
    check(indexed, std::span(pool + 5 * dim, dim), std::span(slots).first(2));
    CHECK(attend(indexed, pool + 4 * dim) == errc::views_overlap); // two rows, the second over slot 5
    pages[0] = 2, pages[1] = 0;
    const auto layout = hnd_pages(2, kv_heads, dim);
    const std::vector<std::int32_t> indptr{0, 2}, last_page_len{2};
    const auto table = page_table{indptr, std::span<const std::int32_t>(pages).first(2), last_page_len};
    const paged_rows<float> paged(pool, layout, table, 0, kv_heads, dim);
    REQUIRE(paged.validate().ok());
    const auto page_floats = kv_heads * 2 * dim;
    check(paged, std::span(pool + 2 * page_floats, page_floats), std::span(pages).first(2));
    CHECK(attend(paged, pool + page_floats) == errc::ok); // page 1 is another sequence's
}

TEST_CASE("recent_queries: a chunk that is its own view is refused, another ring's is taken") {
    std::vector<float> data(2 * 3 * 4);
    for (std::size_t i = 0; i < data.size(); ++i) { data[i] = static_cast<float>(i); }
    recent_queries<float> ring(2, 3, 4), other(2, 3, 4);
    REQUIRE(ring.append(strided<float, 3>(data.data(), {2, 3, 4})).ok());
    const auto before = ring;
    CHECK(ring.append(ring.view()).code() == errc::views_overlap);
    CHECK(support::bytes_of(ring) == support::bytes_of(before));
    CHECK(other.append(ring.view()).ok());
    CHECK(support::bytes_of(other) == support::bytes_of(ring));
}

TEST_CASE("Codes: an output over scales or zero points is refused, also where rows share them") {
    std::vector<std::int8_t> codes(2 * 3 * 4, 1);
    const keep_plan plan = support::plan_of({{0, 1, 2}, {0, 1, 2}});
    for (const std::array<index_t, 3> strides :
         {std::array<index_t, 3>{3, 1, 0}, {4, 0, 1}, {1, 0, 0}, {0, 0, 0}}) {
        std::vector<float> tables(64, 2.0f);
        const auto before = tables;
        const scaled_rows<const std::int8_t> cache(codes.data(), {2, 3, 4}, {12, 4},
                                                   {tables.data() + 24, strides, tables.data() + 40});
        const std::vector<std::int32_t> indices{0, 1, 2};
        for (const std::size_t begin : {std::size_t{1}, std::size_t{24}, std::size_t{40}}) {
            const auto out = std::span(tables).subspan(begin, 24);
            CHECK(gather(cache, plan, out).code() == errc::views_overlap);
            CHECK(gather(indexed_rows(cache, indices), plan, out).code() == errc::views_overlap);
            CHECK(tables == before);
        }
        CHECK(gather(cache, plan, std::span(tables).first(24)).ok());
        // Over codes of slots that no index names.
        alignas(4) std::array<std::int8_t, 96> slots{};
        const scaled_rows<const std::int8_t> pool(slots.data(), {1, 8, 8}, {64, 8},
                                                  {tables.data(), {0, 0, 0}});
        const std::vector<std::int32_t> first{0, 1};
        auto* const behind = reinterpret_cast<float*>(slots.data() + 16);
        CHECK(gather(indexed_rows(pool, first), support::plan_of({{1}}), std::span(behind, 8)).ok());
        CHECK(gather(indexed_rows(pool, first), support::plan_of({{1}}), std::span(behind - 1, 8)).code() ==
              errc::views_overlap);
    }
}

TEST_CASE("Block tables: a table written over the blocks or the lengths is refused") {
    std::vector<std::int32_t> numbers(64), before;
    const std::span all(numbers);
    const auto pages = all.first(6), lengths = all.subspan(6, 2);
    std::iota(numbers.begin(), numbers.end(), 0);
    numbers[6] = 20, numbers[7] = 33;
    before = numbers;
    page_table out;
    const auto apart = all.subspan(32);
    const auto write = [&](auto indptr, auto indices, auto last) {
        return write_page_table({pages, 3, lengths}, 16, indptr, indices, last, out).code();
    };
    CHECK(write(all.subspan(5, 3), apart.first(6), apart.subspan(8, 2)) == errc::views_overlap);
    CHECK(write(apart.first(3), pages, apart.subspan(8, 2)) == errc::views_overlap);
    CHECK(write(apart.first(3), apart.subspan(4, 6), lengths) == errc::views_overlap);
    CHECK(write(apart.first(3), apart.subspan(2, 6), apart.subspan(8, 2)) == errc::views_overlap);
    CHECK(numbers == before);
    CHECK(out.indptr.empty());
    CHECK(write(apart.first(3), apart.subspan(4, 6), apart.subspan(12, 2)) == errc::ok);
}

TEST_CASE("Cells: room over the positions is refused, and so is a mirror's own list") {
    std::vector<std::int32_t> numbers{5, 4, 3, 0, 0};
    const auto before = numbers;
    const auto positions = std::span(numbers).first(3);
    cell_list list;
    const auto all = [](index_t) { return cell_use::owned; };
    CHECK(list_cells(positions, all, std::span(numbers).subspan(2, 3), list).code() == errc::views_overlap);
    CHECK(numbers == before);
    cell_mirror mirror(8);
    const std::vector<std::int64_t> cells{0, 1, 2}, later{1, 2, 3};
    REQUIRE(mirror.fill(cells, positions, 0).ok());
    const cell_mirror kept = mirror;
    CHECK(mirror.fill(later, mirror.positions().first(3), 1).code() == errc::views_overlap);
    CHECK(mirror == kept);
}

TEST_CASE("Layer budgets: budgets over the caps are refused") {
    std::vector<index_t> caps{8, 8, 8};
    const std::vector<double> preferences{1, 2, 5};
    growing_workspace memory;
    for (const preference_rule rule : {preference_rule::exact, preference_rule::authors}) {
        workspace scratch = memory.of_bytes(preference::workspace_bytes(3));
        const preference shares{.rule = rule};
        CHECK(shares.allocate(preferences, caps, 12, caps, scratch).code() == errc::views_overlap);
        CHECK(caps == std::vector<index_t>{8, 8, 8});
    }
}

TEST_CASE("A plan that has the positions, pages or offsets which are read is no output") {
    keep_plan out = support::plan_of({{0, 1, 1, 2}});
    const keep_plan before = out;
    const keep_plan plan = support::plan_of({{1}});
    CHECK(keep_whole_positions(plan, out.kept(), out).code() == errc::invalid_parameter);
    CHECK(out == before);

    buffers b;
    const auto scored = [&](const auto& keys, keep_plan& into) {
        const auto in = layer(keys).with_queries(strided<float, 3>(b.queries.data_handle(), {1, 1, dim}));
        return snapkv().plan(in, {.budget = per_head(2), .protect = {.window_tokens = 1}}, into, b.memory);
    };
    // The pages of a head are the plan's offsets, and the page numbers its rows.
    keep_plan tables = support::plan_of({{0, 1, 2}});
    const keep_plan as_made = tables;
    const std::vector<std::int32_t> lengths{2}, pages{2, 1, 0}, begins{0, 3};
    const page_layout layout = nhd_pages(2, 1, dim, 4);
    for (const page_table& table :
         {page_table{tables.offsets(), pages, lengths}, page_table{begins, tables.kept(), lengths}}) {
        const paged_head_rows keys(b.keys.data_handle(), layout, table, 0, 1, dim);
        REQUIRE(keys.validate().ok());
        CHECK(scored(keys, tables).code() == errc::invalid_parameter);
        CHECK(tables == as_made);
    }
    const indexed_rows slots(strided<float, 3>(b.keys.data_handle(), {1, tokens, dim}), tables.row(0));
    CHECK(scored(slots, tables).code() == errc::invalid_parameter);
    CHECK(tables == as_made);
    CHECK(scored(slots, out).ok());
}

TEST_CASE("Rows that move or rotate: lengths, positions, pages and shared scales among them are refused") {
    growing_workspace memory;
    const keep_plan plan = support::plan_of({{1, 3}});
    alignas(8) std::array<float, 64> rows{};
    auto* const words =
        reinterpret_cast<std::int32_t*>(rows.data()); // as an engine that reuses a buffer too early
    words[2] = 4;                                     // a length
    const auto before = rows;
    const std::span<const std::int32_t> none(words + 8, 1), four(words + 12, 4);
    const strided<float, 3> cache(rows.data(), {1, 4, 8});

    const std::span<const index_t> lengths(reinterpret_cast<const index_t*>(rows.data() + 2), 1);
    CHECK(compact_in_place(filled(cache, lengths), plan).code() == errc::views_overlap);
    std::vector<std::int8_t> codes(64);
    const scaled_rows<std::int8_t> own(codes.data(), {1, 4, 8}, {32, 8}, {rows.data() + 4, {8, 0, 1}});
    CHECK(compact_in_place(cache, own, plan).code() == errc::views_overlap);
    CHECK(compact_in_place(own, cache, plan).code() == errc::views_overlap);

    const std::vector<float> frequencies{1.0f, 0.5f};
    const rope turned{frequencies};
    const std::vector<std::int32_t> offsets{0, 4}, positions{0, 1, 2, 3}, moved{4, 5, 6, 7};
    const auto rotate = [&](const auto& keys, const row_positions& from, const row_positions& to) {
        workspace scratch = memory.of_bytes(rerotate_keys_bytes(keys, turned));
        return rerotate_keys(keys, turned, from, to, scratch).code();
    };
    CHECK(rotate(cache, {offsets, four}, {offsets, moved}) == errc::views_overlap);
    CHECK(rotate(cache, {offsets, positions}, {offsets, four}) == errc::views_overlap);
    CHECK(rotate(indexed_rows(cache, none), {}, {}) == errc::plan_mismatch); // no heads
    const std::vector<std::int32_t> one{0, 1}, at{3}, to{4};
    CHECK(rotate(indexed_rows(cache, none), {one, at}, {one, to}) == errc::views_overlap);
    const std::vector<std::int32_t> begins{0, 1}, last{1};
    CHECK(rotate(paged_rows(rows.data(), nhd_pages(4, 1, 8, 2), page_table{begins, none, last}, 0, 1, 8),
                 {one, at}, {one, to}) == errc::views_overlap);
    CHECK(rotate(paged_head_rows(rows.data(), nhd_pages(4, 1, 8, 2), page_table{begins, none, last}, 0, 1, 8),
                 {one, at}, {one, to}) == errc::views_overlap);
    CHECK(rotate(ragged(rows.data(), std::span<const std::int32_t>(words + 63, 1), 8), {}, {}) == errc::ok);
    CHECK(rows == before);
    CHECK(rotate(cache, {offsets, positions}, {offsets, moved}) == errc::ok);
}
