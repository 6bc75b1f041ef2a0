// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/decode/ragged_attention.hpp>

#include <kvtrim/cache/filled.hpp>
#include <kvtrim/cache/ragged.hpp>

#include "core/own_views.hpp"
#include "support/checks.hpp"
#include "support/cpu_levels.hpp"
#include "support/special_floats.hpp"

#include <cmath>
#include <limits>
#include <string>
#include <vector>

using namespace kvtrim;
using namespace support;

namespace {

constexpr double nothing = -std::numeric_limits<double>::infinity();

layer_data make_layer(const layer_shape& shape, std::uint64_t seed) {
    layer_data layer = random_layer(shape, seed);
    float largest = 1e-6f;
    for (const float x : layer.v) { largest = std::max(largest, std::abs(x)); }
    for (float& x : layer.v) { x /= largest; } // so that errors are relative to 1
    return layer;
}

struct expected_row {
    oracle::row out;
    double log_sum_exp;
};

// Query i of m sees the first rows - (m - 1 - i) rows, of these the newest `sliding_window`, and of these the ones that
// sees(kv head, row) names.
template <class Inputs, class Sees>
expected_row expected_of(const Inputs& in, const attention_options& o, index_t h, index_t i, Sees&& sees) {
    const index_t g = h / (extent(in.queries, 0) / in.kv_heads());
    const auto keys = to_oracle(in.keys)[static_cast<std::size_t>(g)];
    const auto values = to_oracle(in.values)[static_cast<std::size_t>(g)];
    const auto query = to_oracle(in.queries)[static_cast<std::size_t>(h)][static_cast<std::size_t>(i)];
    const index_t end = in.tokens(g) - (extent(in.queries, 1) - 1 - i);
    const double scale =
        o.scale > 0 ? static_cast<double>(o.scale) : 1 / std::sqrt(static_cast<double>(in.head_dim()));
    const auto cap = static_cast<double>(o.soft_cap);
    const double sink =
        o.sink_logits.empty() ? nothing : static_cast<double>(o.sink_logits[static_cast<std::size_t>(h)]);
    oracle::row logits;
    double highest = sink;
    for (index_t t = 0; t < end; ++t) {
        const bool hidden = (o.sliding_window > 0 && t < end - o.sliding_window) || !sees(g, t);
        const double logit = scale * oracle::dot(query, keys[static_cast<std::size_t>(t)]);
        logits.push_back(hidden || std::isnan(logit) ? nothing
                         : cap > 0                   ? cap * std::tanh(logit / cap)
                                                     : logit);
        highest = std::max(highest, logits.back());
    }
    expected_row row{oracle::row(static_cast<std::size_t>(extent(in.values, 2)), 0.0), nothing};
    if (highest == nothing) { return row; }
    double sum = std::exp(sink - highest);
    for (std::size_t t = 0; t < logits.size(); ++t) {
        const double weight = std::exp(logits[t] - highest);
        sum += weight;
        for (std::size_t d = 0; d < row.out.size() && weight > 0; ++d) {
            row.out[d] += weight * values[t][d];
        }
    }
    for (double& x : row.out) { x /= sum; }
    row.log_sum_exp = highest + std::log(sum);
    return row;
}

struct result {
    std::vector<float> out; // [q_heads, queries, value_dim]
    std::vector<float> log_sum_exp;

    friend bool operator==(const result&, const result&) = default;
};

// With exactly the workspace that is asked for.
template <class Inputs, class Executor = serial_executor>
result attend(const Inputs& in, const attention_options& o, Executor ex = {}) {
    const std::array<index_t, 3> extents{extent(in.queries, 0), extent(in.queries, 1), extent(in.values, 2)};
    result r{zeros(extents[0] * extents[1] * extents[2]), zeros(extents[0] * extents[1])};
    std::vector<std::byte> memory(static_cast<std::size_t>(ragged_attention_bytes(in, o, ex)));
    workspace scratch(memory);
    REQUIRE(
        ragged_attention(in, o, strided<float, 3>(r.out.data(), extents), r.log_sum_exp, scratch, ex).ok());
    return r;
}

template <class Inputs, class Sees>
std::string difference_from(const Inputs& in, const attention_options& o, const result& got, Sees&& sees) {
    const auto dim = static_cast<std::size_t>(extent(in.values, 2));
    for (index_t h = 0; h < extent(in.queries, 0); ++h) {
        for (index_t i = 0; i < extent(in.queries, 1); ++i) {
            const expected_row expected = expected_of(in, o, h, i, sees);
            const auto row = static_cast<std::size_t>(h * extent(in.queries, 1) + i);
            const std::string at = "head " + std::to_string(h) + ", query " + std::to_string(i) + ", ";
            const std::span<const float> out = std::span(got.out).subspan(row * dim, dim);
            if (const auto text = difference(out, expected.out, 0, 1e-5); !text.empty()) { return at + text; }
            const float lse = got.log_sum_exp[row];
            if (static_cast<double>(lse) == expected.log_sum_exp) { continue; }
            const auto text = difference({&lse, 1}, {expected.log_sum_exp}, 2e-5, 2e-5);
            if (!text.empty()) { return at + "log-sum-exp, " + text; }
        }
    }
    return {};
}

template <class Inputs>
std::string checked(const Inputs& in, const attention_options& o = {}) {
    return difference_from(in, o, attend(in, o), [](index_t, index_t) { return true; });
}

attention_options random_options(support::random& r, const layer_shape& s, std::vector<float>& sinks) {
    attention_options o;
    o.scale = r.chance(0.3) ? static_cast<float>(0.05 + 0.3 * r.uniform()) : 0.0f;
    o.soft_cap = r.chance(0.3) ? static_cast<float>(1 + 30 * r.uniform()) : 0.0f;
    o.sliding_window = r.chance(0.3) ? r.between(1, s.tokens + 5) : 0;
    sinks.clear();
    for (index_t h = 0; r.chance(0.999) && h < s.q_heads(); ++h) {
        sinks.push_back(static_cast<float>(2 * r.normal()));
    }
    if (std::ssize(sinks) == s.q_heads() && r.chance(0.4)) { o.sink_logits = sinks; }
    return o;
}

// Rows of the first lengths[g] tokens of each head, head after head.
template <class T>
std::vector<T> flat_rows(const view& v, std::span<const index_t> lengths) {
    std::vector<T> rows;
    for (index_t g = 0; g < v.extent(0); ++g) {
        for (index_t t = 0; t < lengths[static_cast<std::size_t>(g)]; ++t) {
            for (index_t d = 0; d < v.extent(2); ++d) {
                rows.push_back(element_traits<T>::from_float(v(g, t, d)));
            }
        }
    }
    return rows;
}

std::vector<std::int32_t> offsets_of(std::span<const index_t> lengths) {
    std::vector<std::int32_t> offsets{0};
    for (const index_t n : lengths) { offsets.push_back(offsets.back() + static_cast<std::int32_t>(n)); }
    return offsets;
}

} // namespace

TEST_CASE("ragged_attention: random shapes, lengths and options equal the oracle within 1e-5", "[decode]") {
    support::random r(231);
    for (int n = 0; n < 40; ++n) {
        const index_t tokens = r.chance(0.5) ? r.between(1, 70) : r.between(120, 300);
        const layer_data layer = make_layer({.kv_heads = r.between(1, 3),
                                             .group = r.one_of({1, 2, 3, 4, 5, 8, 9}),
                                             .tokens = tokens,
                                             .head_dim = r.one_of({4, 16, 33, 64, 80, 128}),
                                             .value_dim = r.one_of({3, 16, 32, 40, 64, 100, 128}),
                                             .queries = r.one_of({1, 1, 1, 2, 3, 7})},
                                            r.bits());
        std::vector<index_t> lengths;
        for (index_t g = 0; g < layer.shape.kv_heads; ++g) {
            lengths.push_back(r.chance(0.1)   ? 0
                              : r.chance(0.2) ? std::min<index_t>(tokens, 2)
                                              : r.between(1, tokens));
        }
        std::vector<float> sinks;
        const attention_options o = random_options(r, layer.shape, sinks);
        CAPTURE(n, tokens, lengths, layer.shape.group, layer.shape.head_dim, layer.shape.value_dim,
                layer.shape.queries, o.sliding_window, o.soft_cap);
        const auto k = store<float>(layer.keys(), r.one_of({layout::head_major, layout::token_major}));
        const auto v = store<bf16>(layer.values(), layout::gapped);
        const auto offsets = offsets_of(lengths);
        const auto flat_k = flat_rows<f16>(layer.keys(), lengths);
        const auto flat_v = flat_rows<float>(layer.values(), lengths);
        at_each_cpu_level([&] {
            CHECK(checked(kvtrim::layer(filled<const float>(k.get(), lengths),
                                        filled<const bf16>(v.get(), lengths))
                              .with_queries(layer.queries()),
                          o) == "");
            CHECK(checked(kvtrim::layer(ragged<const f16>(flat_k.data(), offsets, layer.shape.head_dim),
                                        ragged<const float>(flat_v.data(), offsets, layer.shape.value_dim))
                              .with_queries(layer.queries()),
                          o) == "");
        });
    }
}

TEST_CASE("ragged_attention: any memory order, decoded sources, and outputs in any order and element",
          "[decode]") {
    support::random r(232);
    const layer_data layer = make_layer(
        {.kv_heads = 2, .group = 4, .tokens = 150, .head_dim = 40, .value_dim = 72, .queries = 2}, r.bits());
    const view k = layer.keys(), v = layer.values(), q = layer.queries();
    at_each_cpu_level([&] {
        for (const layout order :
             {layout::head_major, layout::token_major, layout::transposed, layout::reversed}) {
            CAPTURE(static_cast<int>(order));
            const auto sk = store<bf16>(k, order), sv = store<bf16>(v, order), sq = store<bf16>(q, order);
            const auto in = kvtrim::layer(sk.get(), sv.get()).with_queries(sq.get());
            CHECK(checked(in) == "");
            const result expected = attend(in, {});
            auto out = store<bf16>(view(expected.out.data(), {8, 2, 72}), order);
            const std::vector<bf16> all = out.elements;
            for (bf16& x : out.elements) { x = {0}; }
            growing_workspace memory;
            const strided<bf16, 3> to(out.elements.data() + out.origin, out.extents, out.strides);
            REQUIRE(ragged_attention(in, {}, to, {}, memory).ok());
            const bool same = std::equal(all.begin(), all.end(), out.elements.begin(),
                                         [](bf16 a, bf16 b) { return a.bits == b.bits; });
            CHECK(same);
        }
        CHECK(
            checked(kvtrim::layer(own::quantised(k), decoding_source(v)).with_queries(decoding_source(q))) ==
            "");
    });
}

TEST_CASE("ragged_attention: parts of long rows, the same bits for any executor", "[decode]") {
    const index_t part = detail::decode_parts::most_rows;
    const layer_data layer = make_layer(
        {.kv_heads = 3, .group = 2, .tokens = 2 * part + 70, .head_dim = 8, .value_dim = 4, .queries = 2}, 3);
    const std::vector<index_t> lengths{2 * part + 70, part + 1, 50};
    const auto at = [&](const view& rows) { return filled<const float>(rows, lengths); };
    const auto in = kvtrim::layer(at(layer.keys()), at(layer.values())).with_queries(layer.queries());
    for (const index_t window : {index_t{0}, part + 5}) {
        const attention_options o{.sliding_window = window};
        at_each_cpu_level([&] {
            const result serial = attend(in, o);
            const auto all = [](index_t, index_t) { return true; };
            CHECK(difference_from(in, o, serial, all) == "");
            CHECK(attend(in, o, thread_executor{3}) == serial);
            CHECK(attend(in, o, counted_executor{2}) == serial);
            CHECK(attend(in, o, shuffling_executor{7}) == serial);
        });
    }
}

TEST_CASE("ragged_attention: a cut cache gives masked attention over the whole one", "[decode]") {
    support::random r(234);
    const layer_data layer = make_layer(
        {.kv_heads = 3, .group = 4, .tokens = 200, .head_dim = 64, .value_dim = 64, .queries = 1}, 5);
    std::vector<std::vector<bool>> kept(3, std::vector<bool>(200));
    std::vector<index_t> lengths;
    std::vector<float> k, v;
    for (index_t g = 0; g < 3; ++g) {
        lengths.push_back(0);
        for (index_t t = 0; t < 200; ++t) {
            if (!r.chance(0.1 + 0.2 * static_cast<double>(g)) && t != 199) { continue; }
            kept[static_cast<std::size_t>(g)][static_cast<std::size_t>(t)] = true;
            ++lengths.back();
            for (index_t d = 0; d < 64; ++d) {
                k.push_back(layer.keys()(g, t, d)), v.push_back(layer.values()(g, t, d));
            }
        }
    }
    const auto offsets = offsets_of(lengths);
    const auto whole = kvtrim::layer(layer.keys(), layer.values()).with_queries(layer.queries());
    const auto cut = kvtrim::layer(ragged<float>(k.data(), offsets, 64), ragged<float>(v.data(), offsets, 64))
                         .with_queries(layer.queries());
    at_each_cpu_level([&] {
        CHECK(difference_from(whole, {}, attend(cut, {}), [&](index_t g, index_t t) {
                  return kept[static_cast<std::size_t>(g)][static_cast<std::size_t>(t)];
              }) == "");
    });
}

TEST_CASE("ragged_attention: rows that a query does not see change none of its bits", "[decode]") {
    layer_data layer = make_layer(
        {.kv_heads = 1, .group = 5, .tokens = 140, .head_dim = 16, .value_dim = 16, .queries = 3}, 6);
    const attention_options o{.sliding_window = 100};
    at_each_cpu_level([&] {
        const auto run = [&](const layer_data& of) {
            return attend(kvtrim::layer(of.keys(), of.values()).with_queries(of.queries()), o);
        };
        const result before = run(layer);
        for (const index_t odd :
             {index_t{38}, index_t{139}}) { // seen by the first query only, by the last only
            layer_data other = layer;
            std::fill_n(other.key(0, odd), 16, not_a_number);
            std::fill_n(other.value(0, odd), 16, not_a_number);
            const result after = run(other);
            CAPTURE(odd);
            for (std::size_t row = 0; row < 15; ++row) {
                const bool sees = row % 3 == (odd == 38 ? 0 : 2);
                const auto first = static_cast<std::ptrdiff_t>(16 * row);
                const bool same = std::equal(before.out.begin() + first, before.out.begin() + first + 16,
                                             after.out.begin() + first);
                CHECK(same == !sees);
            }
        }
    });
}

TEST_CASE("ragged_attention: a key that is no number counts for nothing, large logits stay finite",
          "[decode]") {
    layer_data layer = make_layer(
        {.kv_heads = 1, .group = 4, .tokens = 130, .head_dim = 16, .value_dim = 16, .queries = 1}, 7);
    layer.key(0, 70)[3] = not_a_number;
    const auto in = kvtrim::layer(layer.keys(), layer.values()).with_queries(layer.queries());
    at_each_cpu_level([&] {
        CHECK(checked(in) == "");
        CHECK(checked(in, {.scale = 300}) == "");
        CHECK(checked(in, {.scale = 300, .soft_cap = 200}) == "");
    });
}

TEST_CASE("ragged_attention: a query without rows has its sink, and without one nothing", "[decode]") {
    const layer_data layer =
        make_layer({.kv_heads = 1, .group = 2, .tokens = 1, .head_dim = 8, .value_dim = 8, .queries = 1}, 8);
    const std::vector<index_t> none{0};
    const auto in =
        kvtrim::layer(filled<const float>(layer.keys(), none), filled<const float>(layer.values(), none))
            .with_queries(layer.queries());
    const std::vector<float> sinks{0.5f, -std::numeric_limits<float>::infinity()};
    at_each_cpu_level([&] {
        const result got = attend(in, {.sink_logits = sinks});
        CHECK(got.out == zeros(16));
        CHECK(got.log_sum_exp == sinks);
    });
}

TEST_CASE("ragged_attention: each refusal has its code and writes nothing", "[decode]") {
    const layer_data layer =
        make_layer({.kv_heads = 2, .group = 2, .tokens = 9, .head_dim = 8, .value_dim = 4, .queries = 1}, 9);
    const auto in = kvtrim::layer(layer.keys(), layer.values()).with_queries(layer.queries());
    const view three(layer.q.data(), {3, 1, 8});
    std::vector<float> out(16, -7.5f), lse(4, -7.5f);
    const strided<float, 3> to(out.data(), {4, 1, 4});
    growing_workspace memory;
    CHECK(ragged_attention(in, {.scale = -1}, to, lse, memory).code() == errc::invalid_parameter);
    CHECK(ragged_attention(in.with_queries(three), {}, strided<float, 3>(out.data(), {3, 1, 4}), {}, memory)
              .code() == errc::heads_not_divisible);
    const auto refuses = [&](const auto& inputs, const strided<float, 3>& output, std::span<float> sums) {
        return ragged_attention(inputs, {}, output, sums, memory).code() == errc::invalid_parameter;
    };
    CHECK(refuses(in, strided<float, 3>(out.data(), {4, 1, 3}), lse));
    CHECK(refuses(in, strided<float, 3>(out.data(), {3, 1, 4}), lse));
    CHECK(refuses(in, strided<float, 3>(out.data(), {4, 2, 4}), lse));
    CHECK(refuses(in, strided<float, 3>(out.data(), {4, -1, 4}), lse));
    CHECK(refuses(in, strided<float, 3>(nullptr, {4, 1, 4}), lse));
    CHECK(refuses(in, to, std::span(lse).first(3)));
    CHECK(ragged_attention(in, {}, to, std::span(lse).first(3), memory).needed() == 4);
    const std::vector<float> sinks(4, -1.0f);
    CHECK(ragged_attention(in, {.sink_logits = sinks}, to, lse, memory).ok());
    std::fill(out.begin(), out.end(), -7.5f);
    std::fill(lse.begin(), lse.end(), -7.5f);
    CHECK(ragged_attention(in, {.sink_logits = std::span(lse).first(2)}, to, {}, memory).code() ==
          errc::invalid_parameter);
    // Layers that do not belong together, and views that are none.
    const auto with = [&](const view& keys, const view& values, const view& queries) {
        const auto wrong = kvtrim::layer(keys, values).with_queries(queries);
        CHECK(ragged_attention_bytes(wrong, {}) == 0);
        return wrong;
    };
    const view k = layer.keys(), v = layer.values(), q = layer.queries();
    CHECK(refuses(with(k, v, view(layer.q.data(), {4, 1, 4})), to, lse));
    CHECK(refuses(with(k, view(layer.v.data(), {2, 8, 4}), q), to, lse));
    CHECK(refuses(with(k, view(layer.v.data(), {1, 9, 4}), q), to, lse));
    CHECK(refuses(with(view(nullptr, {2, 9, 8}), v, q), to, lse));
    CHECK(refuses(with(view(layer.k.data(), {2, -9, 8}), v, q), to, lse));
    workspace small({});
    const status s = ragged_attention(in, {}, to, lse, small);
    CHECK(s.code() == errc::workspace_too_small);
    CHECK(s.needed() == ragged_attention_bytes(in, {}));
    CHECK(out == std::vector<float>(16, -7.5f));
    CHECK(lse == std::vector<float>(4, -7.5f));
    const view no_queries(layer.q.data(), {4, 0, 8});
    CHECK(ragged_attention(in.with_queries(no_queries), {}, strided<float, 3>(nullptr, {4, 0, 4}), {}, small)
              .ok());
}
