// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include "support/cpu_levels.hpp"
#include "support/policy_oracle.hpp"

#include <kvtrim/policy/baselines.hpp>
#include <kvtrim/policy/criticalkv.hpp>
#include <kvtrim/policy/defensivekv.hpp>

using namespace kvtrim;
using namespace support;

namespace {

struct plans {
    std::vector<keep_plan> made;
    std::vector<std::vector<float>> scores;

    friend bool operator==(const plans&, const plans&) = default;
};

// Plans and scores, to the bit, of policies that read keys, queries, values and W_O in each of their ways.
template <class Keys, class Values, class Queries, class Projection>
plans plans_of(const Keys& k, const Values& v, const Queries& q, const Projection& w,
               const eviction_request& request) {
    const auto in = kvtrim::layer(k, v).with_queries(q).with_output_projection(w);
    plans result;
    const auto add = [&](const auto& policy) {
        const trace t = run(policy, in, request);
        REQUIRE(t.answer.ok());
        result.made.push_back(t.plan);
        result.scores.push_back(t.importance);
        result.scores.push_back(t.attention);
    };
    add(ada_snapkv());
    add(ada_criticalkv());
    add(defensivekv());
    add(key_norm());
    add(key_diff());
    return result;
}

plans plans_of(const layer_data& layer, const eviction_request& request) {
    return plans_of(layer.keys(), layer.values(), layer.queries(), layer.projection(), request);
}

// The layer with every number rounded to T.
template <class T>
layer_data rounded(layer_data layer) {
    for (auto* floats : {&layer.k, &layer.v, &layer.q, &layer.w}) {
        for (float& x : *floats) { x = to_float(element_traits<T>::from_float(x)); }
    }
    return layer;
}

template <class T>
void check_element_type() {
    for_random_layers(
        421, 12, [](const layer_data& any, const eviction_request& request, support::random& r) {
            const layer_data layer = rounded<T>(any);
            const auto order = r.one_of({layout::head_major, layout::token_major, layout::transposed});
            const auto k = store<T>(layer.keys(), order);
            const auto v = store<T>(layer.values(), order);
            const auto q = store<T>(layer.queries(), layout::head_major);
            const auto w = store<T>(layer.projection(), layout::head_major);
            CHECK(plans_of(k.get(), v.get(), q.get(), w.get(), request) == plans_of(layer, request));
        });
}

} // namespace

TEST_CASE("the memory order does not change a plan, nor a bit of a score", "[properties][layout]") {
    for_random_layers(422, 20,
                      [](const layer_data& layer, const eviction_request& request, support::random&) {
                          const plans expected = plans_of(layer, request);
                          for (const layout order :
                               {layout::token_major, layout::transposed, layout::reversed, layout::gapped}) {
                              const auto k = store(layer.keys(), order);
                              const auto v = store(layer.values(), order);
                              const auto q = store(layer.queries(), order);
                              const auto w = store(layer.projection(), order);
                              CAPTURE(static_cast<int>(order));
                              CHECK(plans_of(k.get(), v.get(), q.get(), w.get(), request) == expected);
                          }
                      });
}

TEST_CASE("an indexable view and a decoding row source give the plan of the strided view",
          "[properties][layout]") {
    for_random_layers(423, 15,
                      [](const layer_data& layer, const eviction_request& request, support::random&) {
                          const plans expected = plans_of(layer, request);
                          const generic_view k{layer.keys()};
                          const generic_view v{layer.values()};
                          const generic_view q{layer.queries()};
                          const generic_view w{layer.projection()};
                          CHECK(plans_of(k, v, q, w, request) == expected);
                          const decoding_source paged_k(layer.keys());
                          const decoding_source paged_v(layer.values());
                          const decoding_source paged_q(layer.queries());
                          CHECK(plans_of(paged_k, paged_v, paged_q, layer.projection(), request) == expected);
                      });
}

TEST_CASE("bf16, f16 and double caches give the plan of the floats they hold", "[properties][layout]") {
    const cpu_level_guard level(level_of_float_sums());
    check_element_type<bf16>();
    check_element_type<f16>();
    check_element_type<double>();
}

TEST_CASE("keys and values may be stored in different ways", "[properties][layout]") {
    for_random_layers(424, 10,
                      [](const layer_data& layer, const eviction_request& request, support::random&) {
                          const auto k = store(layer.keys(), layout::token_major);
                          const auto v = store(layer.values(), layout::transposed);
                          CHECK(plans_of(k.get(), v.get(), generic_view{layer.queries()}, layer.projection(),
                                         request) == plans_of(layer, request));
                      });
}
