// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/base/layer.hpp>

#include <kvtrim/base/ragged.hpp>

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

TEST_CASE("layer: it holds the views it was given, and knows which", "[base]") {
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

TEST_CASE("layer: heads of a ragged cache have their own lengths", "[base]") {
    std::vector<float> memory(12);
    const std::vector<std::int32_t> ends{0, 1, 6};
    const auto in = layer(ragged<float>(memory.data(), ends, 2));
    CHECK(in.kv_heads() == 2);
    CHECK(in.tokens(0) == 1);
    CHECK(in.tokens(1) == 5);
    CHECK(in.longest_row() == 5);
}

TEST_CASE("layer: keys and values that disagree break its contract", "[base][contract]") {
    const std::vector<float> memory(1000);
    const view keys(memory.data(), {2, 10, 4});
    const auto violation = [&](index_t heads, index_t tokens) {
        return support::violation_of([&] { (void)layer(keys, view(memory.data(), {heads, tokens, 4})); });
    };
    CHECK(violation(1, 10) == "layer: keys and values must agree in kv_heads");
    CHECK(violation(2, 9) == "layer: keys and values must agree in tokens");
    CHECK(violation(2, 10).empty());
}

TEST_CASE("layer: ragged keys and values that disagree in one head break its contract", "[base][contract]") {
    std::vector<float> memory(64);
    const std::vector<std::int32_t> key_ends{0, 2, 7, 10};
    const std::vector<std::int32_t> value_ends{0, 2, 5, 10}; // as long in total, and the longest head too
    CHECK(support::violation_of([&] {
              (void)layer(ragged<float>(memory.data(), key_ends, 4),
                          ragged<float>(memory.data(), value_ends, 4));
          }) == "layer: keys and values must agree in tokens");
}
