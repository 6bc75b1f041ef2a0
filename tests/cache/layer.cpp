// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/cache/layer.hpp>

#include <kvtrim/cache/ragged.hpp>

#include "support/checks.hpp"

#include <type_traits>
#include <vector>

namespace {

using namespace kvtrim;
using view = strided<const float, 3>;

static_assert(!layer_inputs<view>::has_values && !layer_inputs<view>::has_queries);
static_assert(layer_inputs<view, view>::has_values && !layer_inputs<view, view>::has_output_projection);
static_assert(layer_inputs<view, not_given, view, view>::has_queries &&
              layer_inputs<view, not_given, view, view>::has_output_projection);

} // namespace

TEST_CASE("layer: it holds the views it was given, and knows which", "[core]") {
    const std::vector<float> memory(1000);
    const view keys(memory.data(), {2, 10, 4});
    const view values(memory.data() + 1, {2, 10, 6});
    const view queries(memory.data() + 2, {4, 3, 4});
    const view w_o(memory.data() + 3, {4, 6, 12});
    const auto in = layer(keys, values).with_queries(queries).with_output_projection(w_o);
    static_assert(std::is_same_v<decltype(in), const layer_inputs<view, view, view, view>>);
    CHECK(in.keys.data_handle() == memory.data());
    CHECK(in.values.data_handle() == memory.data() + 1);
    CHECK(in.queries.data_handle() == memory.data() + 2);
    CHECK(in.output_projection.data_handle() == memory.data() + 3);
    CHECK(in.kv_heads() == 2);
    CHECK(in.tokens(1) == 10);
    CHECK(in.longest_row() == 10);
    CHECK(in.head_dim() == 4); // of the keys; values may differ
    static_assert(!decltype(layer(keys))::has_values);
    CHECK(layer(keys).with_queries(queries).queries.extent(0) == 4);
}

TEST_CASE("layer: heads of a ragged cache have their own lengths", "[core]") {
    std::vector<float> memory(12);
    const std::vector<std::int32_t> ends{0, 1, 6};
    const auto in = layer(ragged<float>(memory.data(), ends, 2));
    CHECK(in.kv_heads() == 2);
    CHECK(in.tokens(0) == 1);
    CHECK(in.tokens(1) == 5);
    CHECK(in.longest_row() == 5);
}

TEST_CASE("layer: keys and values that disagree are refused", "[core][errors]") {
    const std::vector<float> memory(1000);
    const view keys(memory.data(), {2, 10, 4});
    const auto answer = [&](index_t heads, index_t tokens) {
        return layer(keys, view(memory.data(), {heads, tokens, 6})).validate();
    };
    CHECK(std::string(answer(1, 10).what()) == "layer: keys and values must agree in kv_heads");
    CHECK(answer(1, 10).needed() == 2);
    CHECK(std::string(answer(2, 9).what()) == "layer: keys and values must agree in tokens");
    CHECK(answer(2, 9).needed() == 10);
    CHECK(answer(2, 10).ok());
}

TEST_CASE("layer: ragged keys and values that disagree in one head are refused", "[core][errors]") {
    std::vector<float> memory(64);
    const std::vector<std::int32_t> key_ends{0, 2, 7, 10};
    const std::vector<std::int32_t> value_ends{0, 2, 5, 10}; // as long in total, and the longest head too
    const status s =
        layer(ragged<float>(memory.data(), key_ends, 4), ragged<float>(memory.data(), value_ends, 4))
            .validate();
    CHECK(std::string(s.what()) == "layer: keys and values must agree in tokens");
    CHECK(s.needed() == 5);
}

TEST_CASE("layer: queries and W_O of another layer are refused, also where one head alone differs",
          "[core][errors]") {
    const std::vector<float> memory(1000);
    const view keys(memory.data(), {2, 10, 4});
    const view values(memory.data(), {2, 10, 6});
    const view queries(memory.data(), {4, 3, 4});
    const auto with = [&](const auto& q, const auto& w_o) {
        return layer(keys, values).with_queries(q).with_output_projection(w_o).validate();
    };
    const auto w_of = [&](index_t q_heads, index_t value_dim) {
        return view(memory.data(), {q_heads, value_dim, 12});
    };
    CHECK(with(queries, w_of(4, 6)).ok());
    CHECK(with(view(memory.data(), {4, 3, 5}), w_of(4, 6)).needed() == 4);
    CHECK(std::string(with(queries, w_of(2, 6)).what()) ==
          "layer: W_O and the queries must agree in q_heads");
    CHECK(with(queries, w_of(3, 6)).code() == errc::heads_not_divisible);
    CHECK(with(view(memory.data(), {3, 3, 4}), w_of(4, 6)).code() == errc::heads_not_divisible);
    CHECK(with(queries, w_of(4, 4)).code() == errc::invalid_parameter);
    CHECK(with(queries, w_of(4, 4)).needed() == 6);
    CHECK(layer(keys, values).with_output_projection(w_of(2, 6)).validate().ok()); // no queries to agree with
    const std::vector<std::int32_t> query_ends{0, 3, 6, 8, 11}, w_ends{0, 6, 12, 17, 23};
    CHECK(with(ragged<const float>(memory.data(), query_ends, 4), w_of(4, 6)).code() == errc::rows_differ);
    CHECK(with(queries, ragged<const float>(memory.data(), w_ends, 12)).code() == errc::invalid_parameter);
}

TEST_CASE("layer: it answers what a view says of itself, whichever it is", "[core][errors]") {
    const std::vector<float> memory(1000);
    const view good(memory.data(), {2, 10, 4});
    constexpr auto bad = view::invalid("this one");
    const auto says = [](const auto& in) { return std::string(in.validate().what()); };
    CHECK(says(layer(bad)) == "this one");
    CHECK(says(layer(good, bad)) == "this one");
    CHECK(says(layer(good).with_queries(bad)) == "this one");
    CHECK(says(layer(good, good).with_output_projection(bad)) == "this one");
    CHECK(says(layer(good, good).with_queries(good)) == "ok");
}
