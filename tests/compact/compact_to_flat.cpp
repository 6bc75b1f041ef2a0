// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/compact/compact_to_flat.hpp>

#include <kvtrim/allocate/uniform.hpp>
#include <kvtrim/cache/indexed_rows.hpp>
#include <kvtrim/cache/paged_rows.hpp>
#include <kvtrim/cache/row_range.hpp>
#include <kvtrim/policy/eviction_policy.hpp>
#include <kvtrim/rerank/by_importance.hpp>
#include <kvtrim/score/recency.hpp>

#include "compact/random_cache.hpp"
#include "core/own_views.hpp"

#include <string>
#include <vector>

namespace {

using namespace kvtrim;

// Counts the bytes that are allocated and not yet given back.
inline index_t live_bytes = 0;

template <class T>
struct counting_allocator {
    using value_type = T;

    counting_allocator() = default;
    template <class U>
    counting_allocator(const counting_allocator<U>&) {}

    T* allocate(std::size_t count) {
        live_bytes += static_cast<index_t>(count * sizeof(T));
        return static_cast<T*>(::operator new(count * sizeof(T)));
    }
    void deallocate(T* p, std::size_t count) {
        live_bytes -= static_cast<index_t>(count * sizeof(T));
        ::operator delete(p);
    }
    friend bool operator==(const counting_allocator&, const counting_allocator&) { return true; }
};

template <class T>
using counted = std::vector<T, counting_allocator<T>>;

// A plan whose heads keep very different numbers of tokens, as adaptive budgets do: 1 of 2, 1 of 4, 1 of 8, ...
keep_plan uneven_plan(index_t heads, index_t tokens) {
    std::vector<oracle::token_set> sets;
    for (index_t g = 0; g < heads; ++g) {
        sets.emplace_back();
        for (index_t t = 0; t < tokens; t += index_t{2} << g) {
            sets.back().push_back(static_cast<std::size_t>(t));
        }
    }
    return support::plan_of(sets);
}

template <class T>
std::vector<T> random_flat(support::random& r, const std::vector<std::int32_t>& offsets, index_t dim) {
    return support::random_elements<T>(r, offsets.back() * dim);
}

std::vector<std::int32_t> random_offsets(support::random& r) {
    std::vector<std::int32_t> offsets{0};
    for (index_t i = r.between(1, 6); i > 0; --i) {
        offsets.push_back(offsets.back() + static_cast<std::int32_t>(r.chance(0.2) ? 0 : r.between(0, 40)));
    }
    return offsets;
}

} // namespace

TEMPLATE_TEST_CASE("gather, compact_to_flat: survivors of all heads follow one another, bit for bit",
                   "[compact]", float, double, f16, bf16) {
    support::random r(sizeof(TestType) + 10);
    for (int round = 0; round < 150; ++round) {
        support::random_cache<TestType> cache(r, support::any_cache_shape(r), {0, 1, 2}, false, false);
        const keep_plan plan = support::any_plan(r, support::lengths_of(cache.view()));
        const index_t dim = cache.extents[2];
        const std::vector<TestType> expected = support::survivors(cache.view(), plan);
        std::vector<TestType> out(expected.size());
        compaction_report gathered;
        compaction_report compacted;
        REQUIRE(gather(cache.view(), plan, std::span(out), &gathered).ok());
        REQUIRE(compact_to_flat(cache.view(), plan, &compacted).ok());
        cache.elements.resize(expected.size());
        CAPTURE(round, cache.extents);
        CHECK(support::bytes_of(out) == support::bytes_of(expected));
        CHECK(support::bytes_of(cache.elements) == support::bytes_of(expected));
        const auto row_size = dim * static_cast<index_t>(sizeof(TestType));
        for (const compaction_report& report : {gathered, compacted}) {
            CHECK(report.bytes_before == cache.extents[0] * cache.extents[1] * row_size);
            CHECK(report.bytes_after == plan.total_tokens() * row_size);
        }
        const ragged<TestType> flat = flat_view(out.data(), plan, dim);
        CHECK(flat.offsets().data() == plan.cu_seqlens().data());
        for (index_t g = 0; g < plan.rows(); ++g) { CHECK(flat.rows(g) == plan.kept_tokens(g)); }
    }
}

TEMPLATE_TEST_CASE("gather, compact_to_flat: a ragged cache is cut again, bit for bit", "[compact]", float,
                   double, f16, bf16) {
    support::random r(sizeof(TestType) + 20);
    for (int round = 0; round < 150; ++round) {
        const std::vector<std::int32_t> offsets = random_offsets(r);
        const index_t dim = r.one_of({1, 3, 16});
        std::vector<TestType> elements = random_flat<TestType>(r, offsets, dim);
        const ragged<TestType> cache(elements.data(), offsets, dim);
        const keep_plan plan = support::any_plan(r, support::lengths_of(cache));
        const std::vector<TestType> expected = support::survivors(cache, plan);
        std::vector<TestType> out(expected.size());
        compaction_report report;
        REQUIRE(gather(cache, plan, std::span(out)).ok());
        REQUIRE(compact_to_flat(cache, plan, &report).ok());
        CAPTURE(round, offsets);
        CHECK(support::bytes_of(out) == support::bytes_of(expected));
        CHECK(report.bytes_before == static_cast<index_t>(elements.size() * sizeof(TestType)));
        CHECK(report.bytes_after == static_cast<index_t>(expected.size() * sizeof(TestType)));
        elements.resize(expected.size());
        CHECK(support::bytes_of(elements) == support::bytes_of(expected));
    }
}

TEST_CASE("gather: a cache in any memory order gives the same flat rows", "[compact]") {
    support::random r(30);
    for (int round = 0; round < 100; ++round) {
        auto cache = support::any_cache<bf16>(r, support::any_cache_shape(r));
        const keep_plan plan = support::any_plan(r, support::lengths_of(cache.view()));
        const std::vector<bf16> expected = support::survivors(cache.view(), plan);
        std::vector<bf16> out(expected.size() + 3, bf16{0x1234});
        REQUIRE(gather(cache.view(), plan, std::span(out)).ok());
        for (int i = 0; i < 3; ++i) {
            CHECK(out[out.size() - 1 - static_cast<std::size_t>(i)].bits == 0x1234);
        }
        out.resize(expected.size());
        CHECK(support::bytes_of(out) == support::bytes_of(expected));
    }
}

TEST_CASE("gather: sources that are not memory are read as floats", "[compact]") {
    const own::indexable lazy{{2, 5, 3}};
    const keep_plan plan = support::plan_of({{4}, {0, 2}});
    std::vector<float> out(9);
    compaction_report report;
    REQUIRE(gather(lazy, plan, std::span(out), &report).ok());
    CHECK(out == std::vector<float>{40, 41, 42, 100, 101, 102, 120, 121, 122});
    CHECK(report.bytes_before == 2 * 5 * 3 * 4);
    const own::quantised codes(lazy);
    REQUIRE(gather(codes, plan, std::span(out)).ok());
    CHECK(out[8] == codes.decoded(1, 2, 2));
    REQUIRE(gather(codes, plan, std::span(out), &report).ok());
    CHECK(report.bytes_before == 2 * 5 * (3 + 4)); // codes and a scale per row
    CHECK(report.bytes_after == 3 * 3 * 4);        // floats
    const support::layer_data layer = support::random_layer({.tokens = 6, .head_dim = 4}, 1);
    std::vector<float> decoded(12);
    REQUIRE(gather(support::decoding_source(layer.keys()), plan, std::span(decoded)).ok());
    CHECK(decoded[11] == layer.keys()(1, 2, 3));
}

TEST_CASE("gather: rows behind pages and indices keep their bits, or are read as floats", "[compact]") {
    support::random r(33);
    const std::vector<bf16> pool = support::random_elements<bf16>(r, 5 * 4 * 2 * 3);
    const page_layout pages{
        .page_tokens = 4, .page_stride = 24, .token_stride = 6, .head_stride = 3, .pages = 5};
    const std::vector<std::int32_t> indptr{0, 3}, indices{4, 0, 2}, last{2};
    const paged_rows<bf16> paged(pool.data(), pages, {indptr, indices, last}, 0, 2, 3);
    const std::vector<std::int32_t> slots{7, 1, 2, 19, 0, 3, 4, 12, 9, 8};
    const strided<const bf16, 3> all_slots(pool.data(), {2, 20, 3}, {3, 6, 1});
    const indexed_rows<strided<const bf16, 3>> indexed(all_slots, slots);
    const keep_plan plan = support::plan_of({{0, 3, 4, 9}, {2, 8}});
    const auto check = [&](const auto& cache, auto&& slot_of) {
        std::vector<bf16> expected;
        std::vector<float> floats;
        for (index_t g = 0; g < 2; ++g) {
            for (const auto token : plan.row(g)) {
                for (index_t d = 0; d < 3; ++d) {
                    expected.push_back(pool[static_cast<std::size_t>(slot_of(token) * 6 + g * 3 + d)]);
                    floats.push_back(to_float(expected.back()));
                }
            }
        }
        std::vector<bf16> out(expected.size());
        REQUIRE(gather(cache, plan, std::span(out)).ok());
        CHECK(support::bytes_of(out) == support::bytes_of(expected));
        std::vector<float> read(floats.size());
        REQUIRE(gather(cache, plan, std::span(read)).ok());
        CHECK(support::bytes_of(read) == support::bytes_of(floats));
    };
    check(paged, [&](index_t t) { return indices[static_cast<std::size_t>(t / 4)] * 4 + t % 4; });
    check(indexed, [&](index_t t) { return index_t{slots[static_cast<std::size_t>(t)]}; });
    check(row_range(all_slots, 5, 10), [](index_t t) { return t + 5; });
}

TEST_CASE("gather, compact_to_flat: a plan for another cache is refused with nothing written", "[compact]") {
    support::random r(31);
    support::random_cache<float> cache(r, {3, 10, 4}, {0, 1, 2}, false, false);
    const std::vector<std::int32_t> offsets{0, 4, 4, 9};
    std::vector<float> elements = random_flat<float>(r, offsets, 4);
    const ragged<float> uneven(elements.data(), offsets, 4);
    std::vector<float> out(200, 7.0f);
    const auto refuses = [&](const auto& view, const auto& memory) {
        const auto before = support::bytes_of(memory);
        bool refused = true;
        for (const keep_plan& plan : support::wrong_plans(support::lengths_of(view))) {
            compaction_report report{1, 2};
            refused = refused && gather(view, plan, std::span(out), &report).code() == errc::plan_mismatch;
            refused = refused && compact_to_flat(view, plan, &report).code() == errc::plan_mismatch;
            refused = refused && report.bytes_before == 1 && report.bytes_after == 2;
        }
        return refused && support::bytes_of(memory) == before;
    };
    CHECK(refuses(cache.view(), cache.elements));
    CHECK(refuses(uneven, elements));
    CHECK(out == std::vector<float>(200, 7.0f));
    // A row that the longest head has, but not this one.
    CHECK(compact_to_flat(uneven, support::plan_of({{4}, {}, {}})).code() == errc::plan_mismatch);
    CHECK(compact_to_flat(uneven, support::plan_of({{3}, {0}, {}})).code() == errc::plan_mismatch);
}

TEST_CASE("gather, compact_to_flat: a short output and a cache with gaps are refused, with nothing written",
          "[compact][errors]") {
    support::random r(32);
    support::random_cache<float> cache(r, {2, 5, 4}, {0, 1, 2}, false, false);
    const keep_plan plan = support::plan_of({{0, 3}, {1}});
    std::vector<float> out(11, -1.0f);
    for (const std::size_t size : {0u, 1u, 11u}) {
        const status s = gather(cache.view(), plan, std::span(out).first(size));
        CHECK(s == status{errc::invalid_parameter, "", 12});
    }
    CHECK(out == std::vector<float>(11, -1.0f));
    std::vector<float> memory = support::random_elements<float>(r, 200);
    const auto before = support::bytes_of(memory);
    for (const std::array<index_t, 3>& strides :
         {std::array<index_t, 3>{4, 8, 1},   // token-major
          std::array<index_t, 3>{20, 1, 5},  // transposed
          std::array<index_t, 3>{25, 5, 1},  // gaps between rows
          std::array<index_t, 3>{24, 4, 1},  // gaps between heads
          std::array<index_t, 3>{20, -4, 1}, // backwards
          std::array<index_t, 3>{0, 4, 1}, std::array<index_t, 3>{20, 0, 1}}) {
        CAPTURE(strides);
        const strided<float, 3> view(memory.data() + 50, {2, 5, 4}, strides);
        CHECK(compact_to_flat(view, plan).code() == errc::invalid_parameter);
        CHECK(compact_to_flat(view, cache.view(), plan).code() == errc::invalid_parameter);
        CHECK(compact_to_flat(cache.view(), view, plan).code() == errc::invalid_parameter);
    }
    CHECK(support::bytes_of(memory) == before);
    CHECK(compact_to_flat(strided<float, 3>(memory.data() + 50, {2, 5, 4}, {20, 4, 1}), plan).ok());
}

TEST_CASE("gather, compact_to_flat: a view that is not valid is refused, with what it says",
          "[compact][errors]") {
    std::vector<float> memory(64, 3.0f), out(64, -1.0f);
    const keep_plan plan = support::plan_of({{0, 1}, {1}});
    const strided<float, 3> negative(memory.data(), {2, -5, 4});
    const strided<float, 3> nowhere(nullptr, {2, 5, 4});
    for (const auto& view : {negative, nowhere}) {
        CHECK(gather(view, plan, std::span(out)) == view.validate());
        CHECK(compact_to_flat(view, plan) == view.validate());
    }
    const std::vector<std::int32_t> descending{0, 5, 3}, offsets{0, 5, 8};
    const ragged<float> table(memory.data(), descending, 4);
    const ragged<float> endless(memory.data(), offsets, index_t{1} << 60);
    CHECK(gather(table, plan, std::span(out)).code() == errc::invalid_table);
    CHECK(compact_to_flat(table, plan).code() == errc::invalid_table);
    CHECK(compact_to_flat(endless, plan).code() == errc::invalid_parameter);
    CHECK(out == std::vector<float>(64, -1.0f));
    CHECK(memory == std::vector<float>(64, 3.0f));
}

TEST_CASE("compact_to_flat: strides of extents below 2 do not matter, as engines with one KV head leave them",
          "[compact]") {
    support::random r(35);
    const auto compacted = [&](const std::array<index_t, 3>& extents, const std::array<index_t, 3>& strides,
                               const keep_plan& plan) {
        std::vector<float> memory = support::random_elements<float>(r, 200);
        const strided<float, 3> view(memory.data(), extents, strides);
        const auto expected = support::bytes_of(support::survivors(view, plan));
        if (!compact_to_flat(view, plan).ok()) { return false; }
        memory.resize(expected.size() / sizeof(float));
        return support::bytes_of(memory) == expected;
    };
    for (const index_t any : {0, 1, -7, 4096}) {
        CAPTURE(any);
        CHECK(compacted({1, 5, 4}, {any, 4, 1}, support::plan_of({{1, 4}})));
        CHECK(compacted({2, 1, 4}, {4, any, 1}, support::plan_of({{}, {0}})));
        CHECK(compacted({2, 5, 1}, {5, 1, any}, support::plan_of({{1, 4}, {3}})));
        CHECK(compacted({1, 1, 1}, {any, any, any}, support::plan_of({{0}})));
    }
    CHECK_FALSE(compacted({1, 5, 4}, {20, 5, 1}, support::plan_of({{1, 4}}))); // gaps between rows
}

TEST_CASE("compact_to_flat: keys and values are cut together, strided or ragged", "[compact]") {
    support::random r(36);
    support::random_cache<f16> keys(r, {2, 6, 8}, {0, 1, 2}, false, false);
    std::vector<float> values = support::random_elements<float>(r, 12 * 5);
    const std::vector<std::int32_t> offsets{0, 6, 12};
    const ragged<float> ragged_values(values.data(), offsets, 5);
    const keep_plan plan = support::plan_of({{1, 4, 5}, {0, 3}});
    const auto kept_keys = support::survivors(keys.view(), plan);
    const auto kept_values = support::survivors(ragged_values, plan);
    compaction_report report;
    REQUIRE(compact_to_flat(keys.view(), ragged_values, plan, &report).ok());
    keys.elements.resize(kept_keys.size());
    values.resize(kept_values.size());
    CHECK(support::bytes_of(keys.elements) == support::bytes_of(kept_keys));
    CHECK(support::bytes_of(values) == support::bytes_of(kept_values));
    CHECK(report.bytes_before == 12 * (16 + 20));
    CHECK(report.bytes_after == 5 * (16 + 20));
}

TEST_CASE("compact_to_flat: if keys or values alone do not fit, neither changes", "[compact][errors]") {
    support::random r(37);
    support::random_cache<float> fits(r, {2, 5, 4}, {0, 1, 2}, false, false);
    support::random_cache<float> shorter(r, {2, 4, 4}, {0, 1, 2}, false, false);
    const strided<float, 3> token_major(shorter.elements.data(), {2, 2, 4}, {4, 8, 1});
    const keep_plan plan = support::plan_of({{1, 4}, {2, 3}});
    const keep_plan of_two = support::plan_of({{1}, {0, 1}});
    const auto fits_before = support::bytes_of(fits.elements);
    const auto shorter_before = support::bytes_of(shorter.elements);
    CHECK(compact_to_flat(fits.view(), shorter.view(), plan).code() == errc::plan_mismatch);
    CHECK(compact_to_flat(shorter.view(), fits.view(), plan).code() == errc::plan_mismatch);
    const strided<float, 3> first_two(fits.elements.data(), {2, 2, 4});
    CHECK(compact_to_flat(first_two, token_major, of_two).code() == errc::invalid_parameter);
    CHECK(compact_to_flat(token_major, first_two, of_two).code() == errc::invalid_parameter);
    CHECK(support::bytes_of(fits.elements) == fits_before);
    CHECK(support::bytes_of(shorter.elements) == shorter_before);
}

TEST_CASE("gather, compact_to_flat: rows without elements need no memory", "[compact][odd]") {
    const keep_plan plan = support::plan_of({{0, 2}, {1}});
    const std::vector<std::int32_t> offsets{0, 3, 5};
    const strided<float, 3> packed(nullptr, {2, 3, 0});
    const strided<float, 3> spaced(nullptr, {2, 3, 0}, {30, 10, 1});
    const ragged<float> cut(nullptr, offsets, 0);
    compaction_report report{1, 1};
    CHECK(gather(packed, plan, std::span<float>{}, &report).ok());
    CHECK(report.bytes_before == 0);
    CHECK(gather(spaced, plan, std::span<float>{}).ok());
    CHECK(gather(cut, plan, std::span<float>{}).ok());
    CHECK(compact_to_flat(packed, plan).ok());
    CHECK(compact_to_flat(cut, plan).ok());
    CHECK(flat_view<float>(nullptr, plan, 0).rows(0) == 2);
}

TEST_CASE("compact_to_flat: cutting twice equals cutting once by both plans", "[compact]") {
    support::random r(33);
    for (int round = 0; round < 50; ++round) {
        support::random_cache<f16> cache(r, {4, 30, 6}, {0, 1, 2}, false, false);
        auto once = cache;
        const keep_plan first = support::any_plan(r, {30, 30, 30, 30});
        std::vector<index_t> lengths;
        for (index_t g = 0; g < 4; ++g) { lengths.push_back(first.kept_tokens(g)); }
        const keep_plan second = support::any_plan(r, lengths);
        std::vector<oracle::token_set> both(4);
        for (index_t g = 0; g < 4; ++g) {
            for (const auto i : second.row(g)) {
                both[static_cast<std::size_t>(g)].push_back(
                    static_cast<std::size_t>(first.row(g)[static_cast<std::size_t>(i)]));
            }
        }
        REQUIRE(compact_to_flat(cache.view(), first).ok());
        REQUIRE(compact_to_flat(flat_view(cache.elements.data(), first, 6), second).ok());
        REQUIRE(compact_to_flat(once.view(), support::plan_of(both)).ok());
        const auto size = static_cast<std::size_t>(second.total_tokens() * 6);
        cache.elements.resize(size);
        once.elements.resize(size);
        CHECK(support::bytes_of(cache.elements) == support::bytes_of(once.elements));
    }
}

TEST_CASE("flat_view: planning again into the plan that holds the view's offsets is refused or right",
          "[compact]") {
    std::vector<float> memory(10 * 4);
    keep_plan plan = support::plan_of({{0, 1, 2, 3, 4, 5}, {0, 1, 2, 3}});
    const auto in = layer(flat_view(memory.data(), plan, 4));
    const eviction_policy policy{recency{}, uniform{}, by_importance{}};
    const eviction_request request{.budget = over_all_heads(6), .protect = {.window_tokens = 1}};
    growing_workspace scratch;
    keep_plan other;
    REQUIRE(policy.plan(in, request, other, scratch).ok());
    REQUIRE(other == support::plan_of({{3, 4, 5}, {1, 2, 3}}));
    const status s = policy.plan(in, request, plan, scratch);
    CHECK((!s.ok() || plan == other));
}

TEST_CASE("gather: head-wise eviction frees the evicted rows once the old cache is gone",
          "[compact][memory]") {
    const index_t before_all = live_bytes;
    const keep_plan plan = uneven_plan(4, 1024);
    REQUIRE(plan.total_tokens() == 512 + 256 + 128 + 64);
    {
        counted<f16> cache(4 * 1024 * 64, f16{0x3c00});
        CHECK(live_bytes - before_all == 4 * 1024 * 64 * 2);
        counted<f16> kept(static_cast<std::size_t>(plan.total_tokens() * 64));
        compaction_report report;
        REQUIRE(
            gather(strided<f16, 3>(cache.data(), {4, 1024, 64}), plan, std::span<f16>(kept), &report).ok());
        counted<f16>().swap(cache);
        CHECK(live_bytes - before_all == 960 * 64 * 2);
        CHECK(live_bytes - before_all == report.bytes_after);
        CHECK(report.bytes_before == 4 * 1024 * 64 * 2);
    }
    CHECK(live_bytes == before_all);
}

TEST_CASE("compact_to_flat: head-wise eviction frees everything behind the survivors in one piece",
          "[compact][memory]") {
    support::random r(34);
    const index_t before_all = live_bytes;
    const keep_plan plan = uneven_plan(4, 1024);
    counted<bf16> cache;
    {
        const std::vector<bf16> elements = support::random_elements<bf16>(r, 4 * 1024 * 32);
        cache.assign(elements.begin(), elements.end());
    }
    cache.shrink_to_fit();
    const std::vector<bf16> expected =
        support::survivors(strided<bf16, 3>(cache.data(), {4, 1024, 32}), plan);
    const index_t with_cache = live_bytes - before_all;
    CHECK(with_cache == 4 * 1024 * 32 * 2);
    compaction_report report;
    REQUIRE(compact_to_flat(strided<bf16, 3>(cache.data(), {4, 1024, 32}), plan, &report).ok());
    CHECK(live_bytes - before_all == with_cache); // compaction itself takes no second buffer
    cache.resize(static_cast<std::size_t>(plan.total_tokens() * 32));
    cache.shrink_to_fit();
    CHECK(live_bytes - before_all == 960 * 32 * 2);
    CHECK(report.bytes_before - report.bytes_after == with_cache - (live_bytes - before_all));
    CHECK(std::memcmp(cache.data(), expected.data(), expected.size() * sizeof(bf16)) == 0);
}
