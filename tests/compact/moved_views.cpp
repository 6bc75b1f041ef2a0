// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/compact/moved_views.hpp>

#include <kvtrim/cache/ggml_rows.hpp>
#include <kvtrim/cache/indexed_rows.hpp>
#include <kvtrim/cache/latent_cache.hpp>
#include <kvtrim/cache/paged_rows.hpp>
#include <kvtrim/cache/scaled_rows.hpp>
#include <kvtrim/compact/compact_in_place.hpp>
#include <kvtrim/compact/compact_to_flat.hpp>
#include <kvtrim/compact/flat_cache.hpp>
#include <kvtrim/compact/plan_page_moves.hpp>
#include <kvtrim/compact/rerotate_keys.hpp>

#include "compact/random_pages.hpp"
#include "core/own_views.hpp"

#include <map>
#include <set>

using namespace kvtrim;
using support::plan_of;

namespace {

using row_index = std::pair<index_t, index_t>;

// The bytes of each row of a view, as addresses.
template <class T>
std::map<row_index, std::multiset<const void*>> bytes_of_rows(const strided<T, 3>& v) {
    std::map<row_index, std::multiset<const void*>> rows;
    for (index_t g = 0; g < v.extent(0); ++g) {
        for (index_t t = 0; t < v.extent(1); ++t) {
            for (index_t d = 0; d < v.extent(2); ++d) {
                const auto* at = reinterpret_cast<const unsigned char*>(&v(g, t, d));
                for (std::size_t b = 0; b < sizeof(T); ++b) { rows[{g, t}].insert(at + b); }
            }
        }
    }
    return rows;
}

struct byte_relation {
    bool itself = false; // one of the views
    bool meet = false;
    bool inside = false; // rows of one within the same rows of the other
};

template <class A, class B>
byte_relation relation(const strided<A, 3>& a, const strided<B, 3>& b) {
    const auto rows_a = bytes_of_rows(a);
    const auto rows_b = bytes_of_rows(b);
    byte_relation r;
    const auto all = [&](const auto& rows) {
        std::multiset<const void*> bytes;
        for (const auto& [row, of_row] : rows) { bytes.insert(of_row.begin(), of_row.end()); }
        r.itself = r.itself || std::adjacent_find(bytes.begin(), bytes.end()) != bytes.end();
        return bytes;
    };
    const auto all_a = all(rows_a);
    const auto all_b = all(rows_b);
    std::vector<const void*> common;
    std::set_intersection(all_a.begin(), all_a.end(), all_b.begin(), all_b.end(), std::back_inserter(common));
    r.meet = !common.empty();
    const auto contains = [](auto outer, const auto& inner) {
        return std::all_of(inner.begin(), inner.end(), [&](const auto& row) {
            const auto& [index, bytes] = row;
            return std::includes(outer[index].begin(), outer[index].end(), bytes.begin(), bytes.end());
        });
    };
    r.inside = r.meet && (contains(rows_a, rows_b) || contains(rows_b, rows_a));
    return r;
}

// The rows that lie at the front of each head.
template <class T>
std::vector<T> front_rows(const strided<T, 3>& v, const keep_plan& plan) {
    std::vector<T> rows;
    for (index_t g = 0; g < v.extent(0); ++g) {
        for (index_t i = 0; i < plan.kept_tokens(g); ++i) {
            for (index_t d = 0; d < v.extent(2); ++d) { rows.push_back(v(g, i, d)); }
        }
    }
    return rows;
}

// A latent cache of DeepSeek's shape, with each row its own.
struct latent_rows {
    support::random r{3};
    std::vector<bf16> memory = support::random_elements<bf16>(r, 40 * 576);
    latent_cache<bf16> cache{memory.data(), 40, 576, {576, {0, 512}, {512, 64}}};
    keep_plan plan = support::any_plan(r, {40});
};

} // namespace

// llama.cpp#8862, ik_llama.cpp#400: V is a view into K.
TEST_CASE("check_movable: parts of one view may not share bytes", "[compact]") {
    std::array<float, 16> memory{};
    const auto part = [&](std::size_t first, std::size_t count) {
        return bytes_of(std::span(memory).subspan(first, count));
    };
    CHECK(check_movable(std::array{part(0, 8), part(8, 8)}).ok());
    CHECK(check_movable(std::array{part(0, 9), part(8, 8)}).code() == errc::views_overlap);
}

TEST_CASE("compact_in_place: values inside the keys, and one tensor as both, move once",
          "[compact][regression]") {
    for (int round = 0; round < 4; ++round) {
        latent_rows l;
        l.plan = plan_of({{1, 4, 5, 20, 39}});
        const auto keys = l.cache.keys();
        const auto values = round == 0 ? keys : round == 1 ? l.cache.values() : l.cache.rotary();
        const auto kept_keys = support::survivors(keys, l.plan);
        const auto kept_values = support::survivors(values, l.plan);
        compaction_report report;
        CAPTURE(round);
        // Last round: what is called keys is the part.
        REQUIRE((round == 3 ? compact_in_place(values, keys, l.plan, &report)
                            : compact_in_place(keys, values, l.plan, &report))
                    .ok());
        CHECK(support::bytes_of(front_rows(keys, l.plan)) == support::bytes_of(kept_keys));
        CHECK(support::bytes_of(front_rows(values, l.plan)) == support::bytes_of(kept_values));
        CHECK(report == compaction_report{40 * 576 * 2, 5 * 576 * 2}); // shared bytes once
    }
}

TEST_CASE("compact_in_place: the parts of a latent row that lie beside each other both move", "[compact]") {
    latent_rows l;
    const auto kept = support::survivors(l.cache.keys(), l.plan);
    compaction_report report;
    REQUIRE(compact_in_place(l.cache.rotary(), l.cache.values(), l.plan, &report).ok());
    CHECK(support::bytes_of(front_rows(l.cache.keys(), l.plan)) == support::bytes_of(kept));
    CHECK(report.bytes_before == 40 * 576 * 2);
}

TEST_CASE("compact_in_place: keys and values between each other in one buffer do not overlap, and both move",
          "[compact]") {
    constexpr index_t h = 3, n = 20, d = 4;
    struct pair_of_strides {
        index_t value_offset;
        std::array<index_t, 3> keys, values;
    };
    for (const auto& [offset, k, v] :
         {pair_of_strides{h * d, {d, 2 * h * d, 1}, {d, 2 * h * d, 1}},     // [token][K | V][head][d]
          pair_of_strides{d, {2 * d, 2 * h * d, 1}, {2 * d, 2 * h * d, 1}}, // [token][head][K | V][d]
          pair_of_strides{n * d, {2 * n * d, d, 1}, {2 * n * d, d, 1}},     // [head][K | V][token][d]
          pair_of_strides{1, {2 * n * d, 2 * d, 2}, {2 * n * d, 2 * d, 2}}, // channels by turns
          pair_of_strides{
              n * d, {2 * n * d, d, 1}, {2 * n * d, 1, n}}}) { // [head][K token-major | V transposed]
        support::random r(1);
        std::vector<f16> buffer = support::random_elements<f16>(r, 2 * h * n * d);
        const strided<f16, 3> keys(buffer.data(), {h, n, d}, k);
        const strided<f16, 3> values(buffer.data() + offset, {h, n, d}, v);
        const keep_plan plan = support::any_plan(r, {n, n, n});
        const auto kept_keys = support::survivors(keys, plan);
        const auto kept_values = support::survivors(values, plan);
        CAPTURE(offset);
        compaction_report report;
        REQUIRE(compact_in_place(keys, values, plan, &report).ok());
        CHECK(support::bytes_of(front_rows(keys, plan)) == support::bytes_of(kept_keys));
        CHECK(support::bytes_of(front_rows(values, plan)) == support::bytes_of(kept_values));
        CHECK(report.bytes_before == 2 * h * n * d * 2);
    }
}

TEST_CASE("compact_in_place: rows that overlap in another way are refused before one moves",
          "[compact][errors]") {
    support::random r(4);
    std::vector<float> buffer = support::random_elements<float>(r, 400);
    const auto before = support::bytes_of(buffer);
    const keep_plan plan = plan_of({{1, 4}, {2, 3}});
    const auto view = [&](index_t offset, const std::array<index_t, 3>& extents,
                          const std::array<index_t, 3>& strides) {
        return strided<float, 3>(buffer.data() + offset, extents, strides);
    };
    const auto keys = view(0, {2, 5, 8}, {40, 8, 1});
    compaction_report report{1, 2};
    for (const auto& values : {view(8, {2, 5, 8}, {40, 8, 1}),  // the next token's rows
                               view(4, {2, 5, 8}, {40, 8, 1}),  // half of each row, half of the next
                               view(40, {2, 5, 8}, {40, 8, 1}), // the next head
                               view(0, {2, 5, 8}, {8, 16, 1}),  // the same bytes, as other rows
                               view(0, {2, 5, 4}, {40, 4, 1}),  // rows of another length
                               view(0, {2, 5, 8}, {40, 1, 5}),  // transposed over them
                               view(36, {2, 5, 8}, {-4, 8, 1})}) {
        CHECK(compact_in_place(keys, values, plan).code() == errc::views_overlap);
        CHECK(compact_in_place(values, keys, plan, &report).code() == errc::views_overlap);
    }
    for (const std::array<index_t, 3>& strides : {std::array<index_t, 3>{0, 8, 1},
                                                  {7, 16, 1},
                                                  {40, 0, 1},
                                                  {40, 7, 1},
                                                  {8, 8, 1},
                                                  {40, 8, 0},
                                                  {39, 8, 1},
                                                  {-3, 8, 1}}) {
        const auto one = view(100, {2, 5, 8}, strides);
        CAPTURE(strides);
        CHECK(compact_in_place(one, plan, &report).code() ==
              errc::views_overlap); // moved twice, head by head
        CHECK(compact_in_place(keys, one, plan).code() == errc::views_overlap);
    }
    CHECK(report == compaction_report{1, 2});
    CHECK(support::bytes_of(buffer) == before);
    const own::mdspan_like<float> endless(buffer.data(), {2, 5, 8}, {40, 0, 1});
    CHECK(compact_in_place(endless, plan).code() == errc::views_overlap);
}

TEST_CASE("compact_in_place: whatever the strides of keys and values in one buffer, both are right or "
          "nothing changed",
          "[compact][properties][oracle]") {
    support::random r(5);
    int moved = 0, inside = 0, refused = 0;
    for (int round = 0; round < 4000; ++round) {
        const std::array<index_t, 3> shape{r.between(1, 3), r.between(1, 5), r.between(1, 4)};
        auto k = support::any_cache<f16>(r, shape);
        std::vector<f16> buffer = support::random_elements<f16>(r, 700);
        const strided<f16, 3> keys(buffer.data() + 300, shape, k.strides);
        std::array<index_t, 3> other = shape;
        other[2] = r.between(1, 4);
        auto strides = r.chance(0.6) ? k.strides : support::any_cache<f16>(r, other).strides;
        if (r.chance(0.2)) { strides[r.bits() % 3] += r.between(-1, 1); }
        const index_t offset = r.between(-12, 12) * (r.chance(0.3) ? 8 : 1);
        const strided<f16, 3> values(buffer.data() + 300 + offset, other, strides);
        const keep_plan plan =
            support::any_plan(r, std::vector<index_t>(static_cast<std::size_t>(shape[0]), shape[1]));
        const auto before = support::bytes_of(buffer);
        const auto kept_keys = support::survivors(keys, plan);
        const auto kept_values = support::survivors(values, plan);
        const byte_relation is = relation(keys, values);
        const status s = compact_in_place(keys, values, plan);
        CAPTURE(round, shape, other, k.strides, strides, offset);
        if (s.ok()) {
            REQUIRE_FALSE(is.itself);
            REQUIRE((!is.meet || is.inside));
            REQUIRE(support::bytes_of(front_rows(keys, plan)) == support::bytes_of(kept_keys));
            REQUIRE(support::bytes_of(front_rows(values, plan)) == support::bytes_of(kept_values));
            ++moved;
            inside += is.inside ? 1 : 0;
        } else {
            REQUIRE(s.code() == errc::views_overlap);
            REQUIRE((is.itself || is.meet));
            REQUIRE(support::bytes_of(buffer) == before);
            ++refused;
        }
    }
    CHECK(moved > 600);
    CHECK(inside > 50);
    CHECK(refused > 600);
}

TEST_CASE("compact_in_place: blocks and scaled rows move once, or are refused, as strided ones",
          "[compact]") {
    constexpr index_t h = 2, n = 6, d = 32;
    support::random r(6);
    const keep_plan plan = plan_of({{1, 4}, {2, 3}});
    using blocks = std::vector<block_q8_0>;
    const auto cut = [&](index_t offset, const std::array<index_t, 2>& strides) {
        blocks memory(2 * h * n);
        for (auto& b : memory) { b.scale = f16{static_cast<std::uint16_t>(r.bits() & 0x3fff)}; }
        const blocks before = memory;
        const ggml_rows<block_q8_0> keys(memory.data(), {h, n, d}, strides);
        const ggml_rows<block_q8_0> values(memory.data() + offset, {h, n, d}, strides);
        const status s = compact_in_place(keys, values, plan);
        const auto same = [&](const block_q8_0& a, const block_q8_0& b) {
            return std::memcmp(&a, &b, sizeof a) == 0;
        };
        if (!s.ok()) {
            CHECK(std::equal(memory.begin(), memory.end(), before.begin(), same));
            return s.code();
        }
        const ggml_rows<const block_q8_0> old_keys(before.data(), {h, n, d}, strides);
        const ggml_rows<const block_q8_0> old_values(before.data() + offset, {h, n, d}, strides);
        for (index_t g = 0; g < h; ++g) {
            for (index_t i = 0; i < plan.kept_tokens(g); ++i) {
                const auto from = plan.row(g)[static_cast<std::size_t>(i)];
                CHECK(same(*keys.row(g, i), *old_keys.row(g, from)));
                CHECK(same(*values.row(g, i), *old_values.row(g, from)));
            }
        }
        return s.code();
    };
    constexpr index_t b = sizeof(block_q8_0);
    CHECK(cut(h * n, {n * b, b}) == errc::ok);        // one behind the other
    CHECK(cut(h, {b, 2 * h * b}) == errc::ok);        // [token][K | V][head]
    CHECK(cut(0, {n * b, b}) == errc::ok);            // the same rows
    CHECK(cut(1, {n * b, b}) == errc::views_overlap); // the next token's
    CHECK(cut(h * n, {0, b}) == errc::views_overlap); // heads on each other

    std::vector<std::int8_t> codes(static_cast<std::size_t>(2 * h * n * d));
    std::vector<float> scales(static_cast<std::size_t>(2 * h * n));
    for (std::size_t i = 0; i < codes.size(); ++i) { codes[i] = static_cast<std::int8_t>(r.bits()); }
    for (std::size_t i = 0; i < scales.size(); ++i) { scales[i] = static_cast<float>(i); }
    const auto scaled = [&](index_t code_offset, index_t scale_offset,
                            const std::array<index_t, 3>& scale_strides) {
        const scale_table<float> table{scales.data() + scale_offset, scale_strides};
        return scaled_rows<std::int8_t, float>(codes.data() + code_offset, {h, n, d}, {n * d, d}, table);
    };
    const auto codes_before = codes;
    const auto scales_before = scales;
    const std::array<index_t, 3> per_token{n, 1, 0}, per_head{1, 0, 0};
    const auto keys = scaled(0, 0, per_token);
    CHECK(compact_in_place(keys, scaled(h * n * d, 0, per_token), plan).code() ==
          errc::views_overlap); // one scale, two rows
    CHECK(compact_in_place(keys, scaled(0, h * n, per_token), plan).code() == errc::views_overlap);
    CHECK(compact_in_place(keys, scaled(d, h * n, per_token), plan).code() == errc::views_overlap);
    CHECK(codes == codes_before);
    CHECK(scales == scales_before);
    REQUIRE(compact_in_place(keys, keys, plan).ok());
    CHECK(std::equal(codes.begin(), codes.begin() + d, codes_before.begin() + d)); // token 1 of head 0
    CHECK(scales[1] == scales_before[4]);
    CHECK(compact_in_place(scaled(0, 0, per_head), scaled(h * n * d, 0, per_head), plan).ok()); // scales stay
}

TEST_CASE("compact_to_flat: the same rows as keys and values move once, and overlapping ones are refused",
          "[compact]") {
    support::random r(8);
    const keep_plan plan = plan_of({{1, 4, 5}, {0, 3}});
    const std::vector<std::int32_t> offsets{0, 6, 12}, uneven{0, 8, 12};
    for (const bool is_ragged_view : {false, true}) {
        std::vector<float> memory = support::random_elements<float>(r, 200);
        const strided<float, 3> keys(memory.data(), {2, 6, 8});
        const auto kept = support::survivors(keys, plan);
        compaction_report report;
        REQUIRE((is_ragged_view
                     ? compact_to_flat(keys, ragged<float>(memory.data(), offsets, 8), plan, &report)
                     : compact_to_flat(keys, keys, plan, &report))
                    .ok());
        CHECK(report == compaction_report{12 * 32, 5 * 32});
        memory.resize(kept.size());
        CHECK(support::bytes_of(memory) == support::bytes_of(kept));
    }
    std::vector<float> memory = support::random_elements<float>(r, 400);
    const auto before = support::bytes_of(memory);
    const strided<float, 3> keys(memory.data(), {2, 6, 8});
    compaction_report report{1, 2};
    const auto refused = [&](const auto& values) {
        const bool both = compact_to_flat(keys, values, plan, &report).code() == errc::views_overlap &&
                          compact_to_flat(values, keys, plan, &report).code() == errc::views_overlap;
        return both && report == compaction_report{1, 2} && support::bytes_of(memory) == before;
    };
    CHECK(refused(strided<float, 3>(memory.data() + 8, {2, 6, 8})));
    CHECK(refused(strided<float, 3>(memory.data(), {2, 6, 4})));
    CHECK(refused(ragged<float>(memory.data(), uneven, 8)));
    CHECK(refused(ragged<float>(memory.data() + 95, offsets, 8)));
    CHECK(compact_to_flat(keys, ragged<float>(memory.data() + 96, offsets, 8), plan).ok());
}

TEST_CASE("gather: an output inside the cache is refused, one in a gap between rows is not", "[compact]") {
    support::random r(9);
    const keep_plan plan = plan_of({{1, 4}, {2}});
    std::vector<float> memory = support::random_elements<float>(r, 400);
    const auto before = support::bytes_of(memory);
    const std::vector<std::int32_t> offsets{0, 6, 12};
    const strided<float, 3> cache(memory.data(), {2, 6, 4});
    const ragged<float> flat(memory.data(), offsets, 4);
    const flat_cache table(plan_of({{0, 1, 2, 3, 4}, {0, 1, 2, 3}}));
    const flat_rows<float> grown(memory.data(), table, 4);
    for (const std::size_t at : {0u, 1u, 20u, 35u}) {
        const auto out = std::span(memory).subspan(at, 12);
        compaction_report report{1, 2};
        CHECK(gather(cache, plan, out, &report).code() == errc::views_overlap);
        CHECK(gather(flat, plan, out, &report).code() == errc::views_overlap);
        CHECK(gather(grown, plan, out, &report).code() == errc::views_overlap);
        CHECK(report == compaction_report{1, 2});
    }
    CHECK(support::bytes_of(memory) == before);
    CHECK(gather(cache, plan, std::span(memory).subspan(48)).ok());
    const strided<float, 3> spaced(memory.data(), {2, 6, 4}, {150, 20, 1});
    const keep_plan one = plan_of({{1, 2}, {5}});
    CHECK(gather(spaced, one, std::span(memory).subspan(4, 12)).ok());
    CHECK(gather(spaced, one, std::span(memory).subspan(9, 12)).code() == errc::views_overlap);
}

TEST_CASE("gather: pages and slots that are read are the cache, other pages of the pool are not",
          "[compact]") {
    support::random r(11);
    std::vector<float> pool =
        support::random_elements<float>(r, 8 * 4 * 6); // 8 pages of 4 tokens, 2 heads, 3 channels
    const auto before = support::bytes_of(pool);
    const support::int32s indptr{0, 2, 3}, pages{1, 4, 6}, last{4, 2}, slots{5, 4, 20};
    const page_table table{indptr, pages, last};
    const paged_rows<float> rows(pool.data(), nhd_pages(4, 2, 3), table, 0, 2, 3);
    const paged_head_rows<float> head_rows(pool.data(), {4, 24, 6, 0}, table, 0, 2, 6);
    const strided<float, 3> all(pool.data(), {2, 32, 3}, {3, 6, 1});
    const indexed_rows indexed(all, std::span(slots));
    const indexed_rows of_pages(rows, std::span(slots).first(0));
    const auto out = [&](index_t slot, index_t floats) {
        return std::span(pool).subspan(static_cast<std::size_t>(slot * 6), static_cast<std::size_t>(floats));
    };
    const keep_plan two = plan_of({{0, 2}, {1}}), none = plan_of({{}, {}});
    for (const index_t slot : {3, 4, 7, 15, 16, 19}) { // in page 1 or 4, or reaching into it
        CHECK(gather(rows, two, out(slot, 9)).code() == errc::views_overlap);
        CHECK(gather(head_rows, two, out(slot, 18)).code() == errc::views_overlap);
    }
    CHECK(gather(head_rows, two, out(24, 18)).code() == errc::views_overlap); // page 6 is of head 1
    for (const index_t slot : {3, 4, 5, 19, 20}) {
        CHECK(gather(indexed, two, out(slot, 9)).code() == errc::views_overlap);
    }
    CHECK(gather(of_pages, none, std::span<float>{}).ok());
    CHECK(support::bytes_of(pool) == before);
    CHECK(gather(indexed, two, out(6, 9)).ok());
    CHECK(gather(rows, two, out(24, 9)).ok());
    CHECK(gather(head_rows, two, out(8, 18)).ok());
    CHECK(gather(rows, two, out(0, 9)).ok());
}

TEST_CASE("move_rows: pools of keys and values by turns both move, values inside the keys move once, others "
          "are refused",
          "[compact]") {
    support::random r(10);
    for (int round = 0; round < 100; ++round) {
        support::paged_cache c = support::random_pages(r, {r.between(1, 40), r.between(0, 30)}, 0.0);
        const keep_plan plan = support::random_page_plan(r, c, 1);
        const auto p = support::plan_moves(plan, c.table(), {.pages = c.pages, .page_tokens = c.page_tokens});
        REQUIRE(p.answer.ok());
        const index_t pt = c.page_tokens, h = c.heads, d = 3;
        const bool nhd = r.chance(0.5);
        page_layout twice = nhd ? nhd_pages(pt, h, d, c.pages) : hnd_pages(pt, h, d, c.pages);
        twice.page_stride *= 2;
        std::vector<float> buffer = support::random_elements<float>(r, c.pages * twice.page_stride);
        const std::vector<float> old = buffer;
        const auto check_rows = [&](const paged_memory<float>& now, index_t offset) {
            const paged_memory<const float> before{old.data() + offset, now.layout, now.heads,
                                                   now.row_length};
            for (index_t row = 0; row < p.plan.rows(); ++row) {
                for (index_t i = 0; i < p.plan.kept_tokens(row); ++i) {
                    const auto slot = support::slot_of(p.plan.table(), row, i, pt);
                    const auto from = support::slot_of(c.table(), row,
                                                       p.plan.origins(row)[static_cast<std::size_t>(i)], pt);
                    for (index_t head = 0; head < h; ++head) {
                        REQUIRE(std::memcmp(now.row(slot, head), before.row(from, head),
                                            static_cast<std::size_t>(now.row_length) * sizeof(float)) == 0);
                    }
                }
            }
        };
        const index_t behind = twice.page_stride / 2;
        const paged_memory<float> keys{buffer.data(), twice, h, d};
        const paged_memory<float> values{buffer.data() + behind, twice, h, d};
        CAPTURE(round, pt, h, nhd);
        REQUIRE(move_rows(keys, values, p.plan).ok());
        check_rows(keys, 0);
        check_rows(values, behind);
        buffer = old;
        const paged_memory<float> part{buffer.data() + 1, twice, h, d - 1}; // MLA
        REQUIRE(move_rows(keys, part, p.plan).ok());
        check_rows(keys, 0);
        buffer = old;
        REQUIRE(move_rows(part, keys, p.plan).ok());
        check_rows(keys, 0);
        if (p.plan.total_moves() == 0) { continue; }
        buffer = old;
        const paged_memory<float> shifted{buffer.data() + 1, twice, h, d};
        CHECK(move_rows(keys, shifted, p.plan).code() == errc::views_overlap);
        page_layout narrow = twice;
        narrow.token_stride -= 1;
        if (pt > 1) {
            CHECK(move_rows(paged_memory<float>{buffer.data(), narrow, h, d}, p.plan).code() ==
                  errc::views_overlap);
        }
        CHECK(support::bytes_of(buffer) == support::bytes_of(old));
    }
}

TEST_CASE(
    "compact_in_place: a cache that moves its own rows and does not say where they are is moved unasked",
    "[compact]") {
    struct silent {
        index_t* moves;
        static index_t extent(std::size_t r) { return r == 0 ? 1 : r == 1 ? 6 : 1; }
        void move_row(index_t, index_t, index_t) const { ++*moves; }
    };
    index_t moves = 0;
    CHECK(memory_of(silent{&moves}).empty());
    CHECK(compact_in_place(silent{&moves}, silent{&moves}, plan_of({{1, 2}})).ok());
    CHECK(moves == 4);
}

TEST_CASE("move_rows: another pool's pages that stay are not overwritten either", "[compact][regression]") {
    std::vector<float> memory(32);
    for (std::size_t i = 0; i < memory.size(); ++i) { memory[i] = static_cast<float>(i); }
    const std::vector<float> before = memory;
    const page_layout layout = nhd_pages(2, 1, 1, 6);
    const std::vector<std::int32_t> indptr{0, 2, 3}, pages{0, 1, 5}, last{2, 2};
    keep_plan keep;
    const std::vector<index_t> counts{2, 2};
    REQUIRE(keep.reset(counts).ok());
    keep.writable_row(0)[0] = 0;
    keep.writable_row(0)[1] = 3;
    keep.writable_row(1)[0] = 0;
    keep.writable_row(1)[1] = 1;
    move_plan plan;
    growing_workspace bytes;
    const page_table table{indptr, pages, last};
    const page_pool pool{.pages = 6, .page_tokens = 2};
    workspace scratch = bytes.of_bytes(plan_page_moves_bytes(table, pool));
    REQUIRE(plan_page_moves(keep, table, pool, {}, plan, scratch).ok());
    REQUIRE(plan.total_moves() == 1);
    const paged_memory<float> keys{memory.data(), layout, 1, 1};
    const paged_memory<float> values{memory.data() + 8, layout, 1,
                                     1}; // page 1 of the values is page 5 of the keys
    CHECK(move_rows(keys, values, plan).code() == errc::views_overlap);
    CHECK(memory == before);
}

TEST_CASE("rerotate_keys: rows that overlap would be turned twice, and are refused",
          "[compact][regression]") {
    std::vector<float> memory(1000, 1.0f);
    const std::vector<float> before = memory;
    const std::vector<float> frequencies{1.0f, 0.5f};
    const std::vector<std::int32_t> offsets{0, 1, 2}, from{1, 1};
    for (const auto& strides : {std::array<index_t, 3>{8, 8, 1}, {4, 8, 1}, {8, 2, 1}, {0, 8, 1}}) {
        const strided<float, 3> keys(memory.data(), {2, 50, 8}, strides);
        const rope r{.inverse_frequencies = frequencies};
        growing_workspace bytes;
        workspace scratch = bytes.of_bytes(rerotate_keys_bytes(keys, r));
        CHECK(rerotate_keys(keys, r, row_positions{offsets, from}, scratch).code() == errc::views_overlap);
        CHECK(memory == before);
    }
}
