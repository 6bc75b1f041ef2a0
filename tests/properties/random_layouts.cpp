// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// A cache in memory of any layout is planned and cut as the contiguous one, to the bit. ./dev test --long asks for a million
// layouts (KVTRIM_LAYOUTS), and the test says how many it tried.

#include "support/cpu_levels.hpp"
#include "support/policy_oracle.hpp"

#include <kvtrim/cache/filled.hpp>
#include <kvtrim/cache/indexed_rows.hpp>
#include <kvtrim/cache/paged_rows.hpp>
#include <kvtrim/compact/compact_in_place.hpp>
#include <kvtrim/compact/compact_to_flat.hpp>
#include <kvtrim/policy/criticalkv.hpp>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>

using namespace kvtrim;
using namespace support;

namespace {

// Axes in any order, some backwards, with elements between their steps that are nobody's.
struct random_axes {
    std::array<index_t, 3> strides{};
    index_t origin = 0, size = 0;

    random_axes(support::random& r, const std::array<index_t, 3>& extents, bool rows_are_whole = false) {
        std::array<std::size_t, 3> order{0, 1, 2}; // from the outermost
        const std::size_t free = rows_are_whole ? 2 : 3;
        for (std::size_t i = free; i > 1; --i) { std::swap(order[i - 1], order[r.bits() % i]); }
        index_t step = 1;
        for (std::size_t i = 3; i-- > 0;) {
            const std::size_t axis = order[i];
            strides[axis] = step;
            const bool may_change = !rows_are_whole || axis != 2;
            step = step * std::max<index_t>(1, extents[axis]) + (r.chance(0.3) ? r.between(1, 5) : 0);
            if (may_change && !rows_are_whole && r.chance(0.3)) {
                origin += strides[axis] * (std::max<index_t>(1, extents[axis]) - 1);
                strides[axis] = -strides[axis];
            }
        }
        origin += r.between(0, 3);
        size = origin + step + 3;
    }
    [[nodiscard]] index_t at(index_t h, index_t t, index_t d) const {
        return origin + h * strides[0] + t * strides[1] + d * strides[2];
    }
};

std::vector<std::int32_t> any_order(support::random& r, index_t count) {
    std::vector<std::int32_t> order(static_cast<std::size_t>(count));
    std::iota(order.begin(), order.end(), 0);
    for (std::size_t i = order.size(); i > 1; --i) { std::swap(order[i - 1], order[r.bits() % i]); }
    return order;
}

// NaN but where a row has its elements.
template <class T, class At>
std::vector<T> memory_of(const view& rows, index_t size, At&& at) {
    std::vector<T> memory(static_cast<std::size_t>(size), element_traits<T>::from_float(std::nanf("")));
    for (index_t h = 0; h < rows.extent(0); ++h) {
        for (index_t t = 0; t < rows.extent(1); ++t) {
            for (index_t d = 0; d < rows.extent(2); ++d) {
                memory[static_cast<std::size_t>(at(h, t, d))] = element_traits<T>::from_float(rows(h, t, d));
            }
        }
    }
    return memory;
}

// ---- Layouts: each owns memory of its own kind and shows the same rows ------------------------------------

template <class T>
struct in_strides {
    std::array<index_t, 3> extents;
    random_axes axes;
    std::vector<T> memory;

    in_strides(support::random& r, const view& v, index_t room = 0)
        : extents{v.extent(0), v.extent(1) + room, v.extent(2)}, axes(r, extents),
          memory(memory_of<T>(v, axes.size,
                              [&](index_t h, index_t t, index_t d) { return axes.at(h, t, d); })) {}
    [[nodiscard]] strided<T, 3> rows() { return {memory.data() + axes.origin, extents, axes.strides}; }
};

template <class T>
struct in_part_filled : in_strides<T> {
    std::vector<index_t> lengths;

    in_part_filled(support::random& r, const view& v)
        : in_strides<T>(r, v, r.between(0, 9)), lengths(static_cast<std::size_t>(v.extent(0)), v.extent(1)) {}
    [[nodiscard]] filled<T> rows() { return {in_strides<T>::rows(), lengths}; }
};

template <class T>
struct in_slots {
    std::vector<std::int32_t> indices;
    std::array<index_t, 3> extents;
    random_axes axes;
    std::vector<T> memory;

    in_slots(support::random& r, const view& v)
        : indices(any_order(r, v.extent(1) + r.between(0, 9))), extents{v.extent(0), std::ssize(indices),
                                                                        v.extent(2)},
          axes(r, extents), memory(memory_of<T>(v, axes.size, [&](index_t h, index_t t, index_t d) {
              return axes.at(h, indices[static_cast<std::size_t>(t)], d);
          })) {
        indices.resize(static_cast<std::size_t>(v.extent(1)));
    }
    [[nodiscard]] auto rows() const {
        return indexed_rows(strided<const T, 3>(memory.data() + axes.origin, extents, axes.strides), indices);
    }
};

// Row 1 of the table or, of heads with pages of their own, the rows from `heads` on.
template <class T, bool PerHead>
struct in_pages {
    index_t heads, tokens, dim, page_tokens, pages_of_row, first_row, row_count;
    std::vector<std::int32_t> order, indptr, last_page;
    random_axes axes;
    page_layout layout;
    std::vector<T> memory;

    in_pages(support::random& r, const view& v)
        : heads(v.extent(0)), tokens(v.extent(1)), dim(v.extent(2)), page_tokens(r.between(1, 20)),
          pages_of_row((tokens + page_tokens - 1) / page_tokens), first_row(PerHead ? heads : 1),
          row_count(PerHead ? heads : 1), order(any_order(r, (first_row + row_count) * pages_of_row + 2)),
          axes(r, {PerHead ? 1 : heads, page_tokens, dim}, true), layout{page_tokens, axes.size,
                                                                         axes.strides[1],
                                                                         PerHead ? 0 : axes.strides[0],
                                                                         std::ssize(order)},
          memory(memory_of<T>(v, axes.size * layout.pages, [&](index_t h, index_t t, index_t d) {
              const index_t row = PerHead ? first_row + h : first_row;
              const index_t page = order[static_cast<std::size_t>(row * pages_of_row + t / page_tokens)];
              return page * axes.size + axes.at(PerHead ? 0 : h, t % page_tokens, d);
          })) {
        for (index_t row = 0; row <= first_row + row_count; ++row) {
            indptr.push_back(static_cast<std::int32_t>(row * pages_of_row));
        }
        last_page.assign(static_cast<std::size_t>(first_row + row_count),
                         static_cast<std::int32_t>(tokens - (pages_of_row - 1) * page_tokens));
    }
    [[nodiscard]] auto rows() const {
        using source = std::conditional_t<PerHead, paged_head_rows<T>, paged_rows<T>>;
        const page_table table{indptr, order, last_page};
        return source(memory.data() + axes.origin, layout, table, 1, heads, dim);
    }
};
template <class T>
using in_shared_pages = in_pages<T, false>;
template <class T>
using in_head_pages = in_pages<T, true>;

template <class T>
struct in_one_row {
    std::vector<std::int32_t> offsets{0};
    std::vector<T> memory;
    index_t dim;

    in_one_row(support::random&, const view& v)
        : memory(memory_of<T>(
              v, v.extent(0) * v.extent(1) * v.extent(2),
              [&](index_t h, index_t t, index_t d) { return (h * v.extent(1) + t) * v.extent(2) + d; })),
          dim(v.extent(2)) {
        for (index_t h = 1; h <= v.extent(0); ++h) {
            offsets.push_back(static_cast<std::int32_t>(h * v.extent(1)));
        }
    }
    [[nodiscard]] ragged<const T> rows() const { return {memory.data(), offsets, dim}; }
};

// ---- What is asked of each --------------------------------------------------------------------------------

struct expectation {
    trace planned;
    std::vector<float> kept_keys, kept_values;
};

template <class V>
std::vector<float> kept_rows(const V& v, const keep_plan& plan) {
    std::vector<float> kept(static_cast<std::size_t>(plan.total_tokens() * extent(v, 2)));
    REQUIRE(gather(v, plan, std::span(kept)).ok());
    return kept;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

template <class Inputs>
trace planned(const Inputs& in, const eviction_request& request) {
    const trace t = run(ada_criticalkv(), in, request);
    REQUIRE(t.answer.ok());
    return t;
}

// Cut where it lies, the front of each head is what the plan kept, and no byte beside the rows has changed.
template <class T>
bool is_cut_in_place(in_strides<T>& keys, in_strides<T>& values, const keep_plan& plan,
                     const expectation& expected) {
    in_strides<T>* const both[] = {&keys, &values};
    const std::vector<float>* const kept[] = {&expected.kept_keys, &expected.kept_values};
    const std::vector<T> before[] = {keys.memory, values.memory};
    if (!compact_in_place(keys.rows(), values.rows(), plan).ok()) { return false; }
    for (std::size_t i = 0; i < 2; ++i) {
        in_strides<T>& s = *both[i];
        std::vector<bool> is_row(s.memory.size());
        std::size_t next = 0;
        for (index_t h = 0; h < s.extents[0]; ++h) {
            for (index_t t = 0; t < s.extents[1]; ++t) {
                for (index_t d = 0; d < s.extents[2]; ++d) {
                    const auto at = static_cast<std::size_t>(s.axes.at(h, t, d));
                    is_row[at] = true;
                    if (t < plan.kept_tokens(h) && to_float(s.memory[at]) != (*kept[i])[next++]) {
                        return false;
                    }
                }
            }
        }
        for (std::size_t at = 0; at < is_row.size(); ++at) {
            if (!is_row[at] && std::memcmp(&s.memory[at], &before[i][at], sizeof(T)) != 0) { return false; }
        }
    }
    return true;
}

template <template <class> class Layout, class T>
bool is_the_same(support::random& r, const layer_data& layer, const eviction_request& request,
                 const expectation& expected) {
    Layout<T> keys(r, layer.keys()), values(r, layer.values());
    in_strides<float> queries(r, layer.queries()), projection(r, layer.projection());
    const trace t = planned(kvtrim::layer(keys.rows(), values.rows())
                                .with_queries(queries.rows())
                                .with_output_projection(projection.rows()),
                            request);
    bool same = t.plan == expected.planned.plan && same_bits(t.importance, expected.planned.importance) &&
                same_bits(t.attention, expected.planned.attention) &&
                same_bits(kept_rows(keys.rows(), t.plan), expected.kept_keys) &&
                same_bits(kept_rows(values.rows(), t.plan), expected.kept_values);
    if constexpr (std::is_same_v<Layout<T>, in_strides<T>>) {
        same = same && is_cut_in_place(keys, values, t.plan, expected);
    }
    return same;
}

// `each` random layouts of a layer whose numbers are of T; counts those that are not the same.
template <class T>
int differences(support::random& r, layer_data layer, const eviction_request& request, int each) {
    for (auto* floats : {&layer.k, &layer.v}) {
        for (float& x : *floats) { x = to_float(element_traits<T>::from_float(x)); }
    }
    expectation expected{planned(layer.inputs(), request), {}, {}};
    expected.kept_keys = kept_rows(layer.keys(), expected.planned.plan);
    expected.kept_values = kept_rows(layer.values(), expected.planned.plan);
    constexpr auto all = [] {
        using check =
            bool (*)(support::random&, const layer_data&, const eviction_request&, const expectation&);
        if constexpr (std::is_same_v<T, float> || std::is_same_v<T, bf16>) {
            return std::array<check, 6>{is_the_same<in_strides, T>,    is_the_same<in_part_filled, T>,
                                        is_the_same<in_slots, T>,      is_the_same<in_shared_pages, T>,
                                        is_the_same<in_head_pages, T>, is_the_same<in_one_row, T>};
        } else { // how an element is read is not the layout's
            return std::array<check, 1>{is_the_same<in_strides, T>};
        }
    }();
    int different = 0;
    for (int i = 0; i < each; ++i) {
        const std::size_t kind = r.chance(0.4) ? 0 : r.bits() % all.size();
        if (all[kind](r, layer, request, expected)) { continue; }
        ++different;
        UNSCOPED_INFO("layout " << i << " of the layer, kind " << kind);
    }
    return different;
}

index_t wanted_layouts() {
    const char* const asked = std::getenv("KVTRIM_LAYOUTS");
    return asked != nullptr ? std::atoll(asked) : 600;
}

} // namespace

TEST_CASE("caches in random layouts are planned and cut as contiguous ones, to the bit",
          "[properties][layout][random_layouts]") {
    const cpu_level_guard level(level_of_float_sums());
    constexpr int each = 12;
    const index_t wanted = wanted_layouts();
    const auto start = std::chrono::steady_clock::now();
    index_t done = 0, different = 0;
    support::random r(425);
    std::vector<float> sinks;
    for (std::uint64_t seed = 0; done < wanted; ++seed) {
        const index_t tokens = r.between(1, 70);
        const layer_shape shape{.kv_heads = r.between(1, 4),
                                .group = r.between(1, 3),
                                .tokens = tokens,
                                .head_dim = r.one_of({1, 3, 8, 16, 17, 33}),
                                .value_dim = r.one_of({1, 5, 8, 16}),
                                .hidden = r.between(1, 20),
                                .queries = r.between(1, std::min<index_t>(tokens, 9))};
        const layer_data layer = random_layer(shape, 425000 + seed);
        eviction_request request = random_request(r, shape, sinks);
        const index_t budget = random_budget(r, layer.inputs(), request.protect);
        if (budget == 0) { continue; }
        request.budget = over_all_heads(budget);
        CAPTURE(seed, budget, shape.kv_heads, shape.group, shape.tokens, shape.head_dim, shape.value_dim);
        int wrong = 0;
        switch (seed % 6) {
        case 0:
            wrong = differences<f16>(r, layer, request, each);
            break;
        case 1:
            wrong = differences<double>(r, layer, request, each);
            break;
        case 2:
        case 3:
            wrong = differences<bf16>(r, layer, request, each);
            break;
        default:
            wrong = differences<float>(r, layer, request, each);
        }
        CHECK(wrong == 0);
        done += each;
        different += wrong;
    }
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    std::printf("%lld random layouts in %.1f s, %lld not as the contiguous one\n",
                static_cast<long long>(done), seconds.count(), static_cast<long long>(different));
}
