// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/score/projected_value_norms.hpp>

#include <kvtrim/cache/ragged.hpp>

#include "support/checks.hpp"
#include "support/cpu_levels.hpp"
#include "support/emulated_tiles.hpp"

#include <cmath>

using namespace kvtrim;
using namespace support;

namespace {

template <class Inputs>
score_memory norms_of(const Inputs& in, const protection& protect) {
    score_memory memory(in, protect);
    growing_workspace bytes;
    workspace scratch = bytes.of_bytes(projected_value_norms_bytes(in));
    serial_executor ex;
    const status s = projected_value_norms(in, protect, memory.importance_rows(), scratch, ex);
    CHECK(s.ok());
    return memory;
}

double largest(const oracle::matrix& norms) {
    double result = 0;
    for (const auto& head : norms) {
        for (const double x : head) { result = std::max(result, x); }
    }
    return result;
}

layer_data wide_group_layer() {
    return random_layer({.kv_heads = 2, .group = 3, .tokens = 30, .head_dim = 8, .value_dim = 8}, 2);
}

} // namespace

TEST_CASE("projected value norm: L1 and Gram L2 equal the norms of v W_O for random shapes",
          "[score][oracle]") {
    support::random r(21);
    std::vector<float> sinks;
    for (std::uint64_t seed = 0; seed < 60; ++seed) {
        layer_shape shape = random_shape(r);
        shape.hidden = r.one_of({1, 7, 31, 64, 255, 257, 400});
        shape.tokens = std::min<index_t>(shape.tokens, 280);
        shape.queries = 1;
        const layer_data layer = random_layer(shape, 2000 + seed);
        const eviction_request request = random_request(r, shape, sinks);
        const auto in = layer.inputs();
        const layer_oracle slow(in, request);
        CAPTURE(seed, shape.tokens, shape.value_dim, shape.hidden, shape.group);
        // Where v is nearly orthogonal to a narrow W_O digits cancel; the Gram form squares them first.
        const oracle::matrix expected = slow.norms();
        CHECK(difference(norms_of(in, request.protect).importance_rows(), expected, 1e-4,
                         1e-6 * largest(expected)) == "");

        const packed_projection packed(layer.projection());
        CHECK(norms_of(in.with_output_projection(packed.view()), request.protect).importance ==
              norms_of(in, request.protect).importance);

        const gram_projection gram(layer.projection());
        score_memory l2 = norms_of(in.with_output_projection(gram.view()), request.protect);
        const oracle::matrix expected_l2 = slow.norms(oracle::norm_kind::l2);
        const double cancelled = shape.hidden < 2 * shape.value_dim ? 1e-3 : 1e-6;
        CHECK(difference(l2.importance_rows(), expected_l2, 1e-4, cancelled * largest(expected_l2)) == "");
    }
}

TEST_CASE("projected value norm: W_O as a checkpoint stores it gives the same norms", "[score]") {
    const layer_data layer = wide_group_layer();
    const layer_shape& s = layer.shape;
    std::vector<float> stored(layer.w.size()); // [hidden, q_heads * head_dim]
    for (index_t h = 0; h < s.q_heads(); ++h) {
        for (index_t d = 0; d < s.value_dim; ++d) {
            for (index_t c = 0; c < s.hidden; ++c) {
                stored[static_cast<std::size_t>((c * s.q_heads() + h) * s.value_dim + d)] =
                    layer.projection()(h, d, c);
            }
        }
    }
    const view w(stored.data(), {s.q_heads(), s.value_dim, s.hidden},
                 {s.value_dim, 1, s.q_heads() * s.value_dim});
    CHECK(norms_of(layer.inputs().with_output_projection(w), {}).importance ==
          norms_of(layer.inputs(), {}).importance);
    const gram_projection of_stored(w), of_rows(layer.projection());
    CHECK(norms_of(layer.inputs().with_output_projection(of_stored.view()), {}).importance ==
          norms_of(layer.inputs().with_output_projection(of_rows.view()), {}).importance);
}

TEST_CASE("projected value norm: W_O packed at one level serves at another", "[score]") {
    const layer_data layer = wide_group_layer();
    for (const cpu_level packed_at : cpu_levels()) {
        const packed_projection packed = [&] {
            const cpu_level_guard guard(packed_at);
            return packed_projection(layer.projection());
        }();
        const std::vector<float> expected = [&] {
            const cpu_level_guard guard(packed_at);
            return norms_of(layer.inputs(), {}).importance;
        }();
        at_each_cpu_level([&] {
            CHECK(norms_of(layer.inputs().with_output_projection(packed.view()), {}).importance == expected);
        });
    }
}

TEST_CASE(
    "projected value norm: W_O of bf16 packed at any level gives values of floats the norms of its floats",
    "[score]") {
    for (const index_t value_dim : {7, 40, 64}) {
        layer_data layer =
            random_layer({.kv_heads = 2, .group = 2, .tokens = 50, .value_dim = value_dim, .hidden = 99}, 5);
        const layer_shape& s = layer.shape;
        std::vector<bf16> w;
        for (float& x : layer.w) { x = to_float(w.emplace_back(element_traits<bf16>::from_float(x))); }
        const strided<const bf16, 3> w_o(w.data(), {s.q_heads(), value_dim, s.hidden});
        CAPTURE(value_dim);
        at_each_cpu_level([&] {
            const packed_projection packed(w_o);
            CHECK((packed.view().packed_bf16 != nullptr) ==
                  (kernels::active_projection_kernels().pack_bf16 != nullptr));
            CHECK(norms_of(layer.inputs().with_output_projection(packed.view()), {}).importance ==
                  norms_of(layer.inputs(), {}).importance);
        });
    }
}

#if KVTRIM_HAS_X86
TEST_CASE("projected value norm: values and W_O of bf16 in AMX tiles give the norms of their floats",
          "[score]") {
    if (best_cpu_level() < cpu_level::avx512) {
        WARN("no AVX-512 on this machine: not tested");
        return;
    }
    const cpu_level_guard guard(cpu_level::avx512);
    kernels::projection_kernels tiles = kernels::projection_kernels_of(cpu_level::avx512);
    tiles.pack_bf16 = kernels::amx::pack_matrix;
    tiles.unpack_bf16 = kernels::unpack_matrix<kernels::amx::order>;
    tiles.add_bf16_l1 = kernels::amx::add_l1<emulated_tiles>;
    for (const index_t value_dim : {8, 40, 64}) {
        layer_data layer =
            random_layer({.kv_heads = 2, .group = 3, .tokens = 470, .value_dim = value_dim}, 3);
        const layer_shape& s = layer.shape;
        std::vector<bf16> v, w, channels(layer.v.size()); // values token by token, and channel by channel
        for (float& x : layer.v) { x = to_float(v.emplace_back(element_traits<bf16>::from_float(x))); }
        for (float& x : layer.w) { x = to_float(w.emplace_back(element_traits<bf16>::from_float(x))); }
        for (index_t i = 0; i < std::ssize(v); ++i) {
            const index_t g = i / (s.tokens * value_dim), t = i / value_dim % s.tokens, d = i % value_dim;
            channels[static_cast<std::size_t>((g * value_dim + d) * s.tokens + t)] =
                v[static_cast<std::size_t>(i)];
        }
        const strided<const bf16, 3> w_o(w.data(), {s.q_heads(), value_dim, s.hidden});
        const strided<const bf16, 3> values(v.data(), {s.kv_heads, s.tokens, value_dim});
        const strided<const bf16, 3> by_channel(channels.data(), {s.kv_heads, s.tokens, value_dim},
                                                {s.tokens * value_dim, 1, s.tokens});
        const auto in = kvtrim::layer(layer.keys(), values);
        const std::vector<float> expected = norms_of(layer.inputs(), {}).importance;
        const auto is_near = [&](const std::vector<float>& got) {
            bool near = got.size() == expected.size();
            for (std::size_t i = 0; near && i < got.size(); ++i) {
                near = std::abs(got[i] - expected[i]) <= 1e-5f * expected[i];
            }
            return near;
        };
        CAPTURE(value_dim);

        const packed_projection packed(w_o, tiles);
        CHECK(packed.view().packed_bf16 != nullptr);
        const std::vector<float> from_packed =
            norms_of(in.with_output_projection(packed.view()), {}).importance;
        CHECK(is_near(from_packed));
        CHECK(from_packed != expected); // another order of summation: they were computed in tiles

        const auto unprepared = in.with_output_projection(w_o);
        growing_workspace memory;
        workspace scratch = memory.of_bytes(detail::projected_norm_scratch::bytes(unprepared));
        const detail::projected_norm_scratch own(unprepared, scratch);
        std::vector<float> got(expected.size());
        for (index_t g = 0; g < s.kv_heads; ++g) {
            const auto tokens = static_cast<std::size_t>(s.tokens);
            detail::projected_norms_of_head(
                unprepared, g, {0, s.tokens}, own,
                std::span(got).subspan(static_cast<std::size_t>(g) * tokens, tokens), tiles);
        }
        CHECK(got == from_packed);

        // Values that are no rows of bf16 are multiplied by W_O as floats.
        CHECK(norms_of(layer.inputs().with_output_projection(packed.view()), {}).importance == expected);
        // Those whose channels are not neighbours are copied first.
        CHECK(norms_of(kvtrim::layer(layer.keys(), by_channel).with_output_projection(packed.view()), {})
                  .importance == from_packed);
        // So they are where W_O was packed as floats.
        const packed_projection floats(w_o);
        CHECK(floats.view().packed_bf16 == nullptr);
        CHECK(norms_of(in.with_output_projection(floats.view()), {}).importance == expected);
    }
}
#endif

TEST_CASE("projected value norm: a zero value has norm 0, a NaN value NaN, and others are not touched",
          "[score][odd]") {
    layer_data layer = wide_group_layer();
    const std::vector<float> before = norms_of(layer.inputs(), {}).importance;
    std::fill_n(layer.value(0, 5), 8, 0.0f);
    layer.value(0, 6)[2] = std::numeric_limits<float>::quiet_NaN();
    layer.value(1, 7)[2] = std::numeric_limits<float>::infinity();
    const gram_projection gram(layer.projection());
    const std::vector<float> l1 = norms_of(layer.inputs(), {}).importance;
    const std::vector<float> l2 = norms_of(layer.inputs().with_output_projection(gram.view()), {}).importance;
    CHECK(l1[5] == 0.0f);
    CHECK(l2[5] == 0.0f);
    CHECK(std::isnan(l1[6]));
    CHECK(std::isnan(l2[6]));
    CHECK(std::isinf(l1[37]));
    CHECK(l1[4] == before[4]);
    CHECK(l1[38] == before[38]);
}

TEST_CASE("projected value norm: bad input and a W_O of another layer are named", "[score][errors]") {
    const layer_data layer = wide_group_layer();
    const view five(layer.w.data(), {5, 8, 24});
    const view none(layer.w.data(), {0, 8, 24});
    const view narrow(layer.w.data(), {6, 7, 24});
    CHECK(validate_projection(layer.inputs()).ok());
    const auto without_queries = kvtrim::layer(layer.keys(), layer.values());
    const auto code = [&](const auto& w_o) {
        return validate_projection(without_queries.with_output_projection(w_o)).code();
    };
    CHECK(code(five) == errc::heads_not_divisible);
    CHECK(code(none) == errc::heads_not_divisible);
    const packed_projection packed_five(five);
    const gram_projection gram_five(five);
    CHECK(code(packed_five.view()) == errc::heads_not_divisible);
    CHECK(code(gram_five.view()) == errc::heads_not_divisible);
    const std::string expected = "layer: W_O must be [q_heads, head_dim, hidden] with the values' head_dim";
    const auto text = [&](const auto& w_o) {
        return std::string(validate_projection(layer.inputs().with_output_projection(w_o)).what());
    };
    CHECK(validate_projection(layer.inputs().with_output_projection(five)).code() ==
          errc::heads_not_divisible);
    const gram_projection gram(narrow);
    const packed_projection packed(narrow);
    CHECK(text(narrow) == expected);
    CHECK(text(gram.view()) == expected);
    CHECK(text(packed.view()) == expected);
}

TEST_CASE("prepared projections: a W_O that cannot be read gives an empty one that says why",
          "[score][errors]") {
    const layer_data layer = wide_group_layer();
    const std::vector<std::int32_t> ends{0, 8, 16, 20};
    const ragged<const float> uneven(layer.w.data(), ends, 24);
    const view missing(nullptr, {6, 8, 24});
    constexpr index_t huge = index_t{1} << 40;
    const view broadcast(layer.w.data(), {2, huge, 4}, {0, 0, 1}); // its Gram matrix has 2^80 elements
    const auto check = [&](const auto& prepared, errc code) {
        CHECK(prepared.validate().code() == code);
        CHECK(prepared.view().q_heads == 0);
        CHECK_FALSE(validate_projection(layer.inputs().with_output_projection(prepared.view())).ok());
    };
    check(gram_projection(uneven), errc::rows_differ);
    check(gram_projection(missing), errc::invalid_parameter);
    check(gram_projection(broadcast), errc::invalid_parameter);
    const packed_projection of_uneven(uneven), of_missing(missing), of_broadcast(broadcast);
    check(of_uneven, errc::rows_differ);
    check(of_missing, errc::invalid_parameter);
    check(of_broadcast, errc::invalid_parameter);
    const auto idle = [](index_t, auto&&) {};
    check(gram_projection(layer.projection(), idle), errc::invalid_parameter);
    const packed_projection not_packed(layer.projection(), kernels::active_projection_kernels(), idle);
    check(not_packed, errc::invalid_parameter);
    CHECK(gram_projection(layer.projection()).validate().ok());
    CHECK(packed_projection(layer.projection()).validate().ok());
    const auto text = [&](const auto& w_o) {
        return std::string(validate_projection(layer.inputs().with_output_projection(w_o)).what());
    };
    CHECK(text(gram_view{nullptr, 6, 8}) == "strided: data must not be null");
    for (const std::size_t r : {0u, 1u, 2u}) { CHECK(gram_view{}.extent(r) == 0); }
    CHECK(text(packed_view{layer.w.data(), nullptr, 6, 8, 24, nullptr}) ==
          "packed_view: the kernels that it was packed for are missing");
    const bf16 element{};
    const kernels::projection_kernels of_floats = kernels::projection_kernels_of(cpu_level::portable);
    CHECK(text(packed_view{nullptr, &element, 6, 8, 24, &of_floats}) ==
          "packed_view: its kernels do not pack bf16");
}

TEST_CASE("projected value norm: W_O of other query heads than the queries is refused", "[score][errors]") {
    const layer_data layer = wide_group_layer(); // six query heads for two KV heads
    const view four(layer.w.data(), {4, 8, 24});
    const gram_projection gram(four);
    const auto message = [](const auto& in) { return std::string(validate_projection(in).what()); };
    const std::string expected = "layer: W_O and the queries must agree in q_heads";
    CHECK(message(layer.inputs().with_output_projection(four)) == expected);
    CHECK(message(layer.inputs().with_output_projection(gram.view())) == expected);
    const auto without_queries = kvtrim::layer(layer.keys(), layer.values());
    CHECK(message(without_queries.with_output_projection(four)) == "ok");
}

TEST_CASE("projected value norm: what it refuses it does not write", "[score][errors]") {
    const layer_data layer = wide_group_layer();
    const auto in = layer.inputs();
    score_memory memory(in, {});
    serial_executor ex;
    std::vector<std::byte> bytes(static_cast<std::size_t>(projected_value_norms_bytes(in)) / 2);
    workspace small(bytes);
    const status s = projected_value_norms(in, {}, memory.importance_rows(), small, ex);
    CHECK(s.code() == errc::workspace_too_small);
    CHECK(s.needed() == projected_value_norms_bytes(in));
    growing_workspace enough;
    workspace scratch = enough.of_bytes(projected_value_norms_bytes(in));
    const view five(layer.w.data(), {5, 8, 24});
    const auto of_five = kvtrim::layer(layer.keys(), layer.values()).with_output_projection(five);
    CHECK(projected_value_norms(of_five, {}, memory.importance_rows(), scratch, ex).code() ==
          errc::heads_not_divisible);
    const std::vector<index_t> one_row{0, in.tokens(0)};
    CHECK(projected_value_norms(in, {}, {one_row, memory.importance}, scratch, ex).code() ==
          errc::invalid_table);
    CHECK(projected_value_norms(in, {.sink_tokens = 1}, memory.importance_rows(), scratch, ex).code() ==
          errc::invalid_table);
    CHECK(projected_value_norms(in, {.sink_tokens = -1}, memory.importance_rows(), scratch, ex).code() ==
          errc::invalid_parameter);
    CHECK(memory.is_untouched());
}

TEST_CASE(
    "newest value norms: tokens that a head lacks and an output of another shape are refused, with nothing "
    "written",
    "[score][errors]") {
    const layer_data layer = wide_group_layer();
    const auto in = layer.inputs();
    serial_executor ex;
    growing_workspace enough;
    workspace scratch = enough.of_bytes(projected_value_norms_bytes(in));
    const index_t tokens = in.tokens(0);
    std::vector<float> norms(static_cast<std::size_t>(2 * tokens + 2), -7);
    const auto code = [&](index_t count, const strided<float, 2>& out) {
        return newest_projected_value_norms(in, count, out, scratch, ex).code();
    };
    CHECK(code(tokens + 1, {norms.data(), {index_t{2}, tokens + 1}}) == errc::invalid_parameter);
    CHECK(code(-1, {norms.data(), {2, -1}}) == errc::invalid_parameter);
    CHECK(code(2, {norms.data(), {1, 2}}) == errc::invalid_parameter);
    CHECK(code(2, {norms.data(), {2, 3}}) == errc::invalid_parameter);
    CHECK(code(2, {norms.data(), {2, 2}, {1, 2}}) == errc::invalid_parameter);
    CHECK(code(2, {nullptr, {2, 2}}) == errc::invalid_parameter);
    CHECK(norms == std::vector<float>(norms.size(), -7));
    CHECK(code(2, {norms.data(), {2, 2}}) == errc::ok);
}
