// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/score/combine_projections.hpp>

#include <kvtrim/cache/ragged.hpp>

#include "support/catch.hpp"
#include "support/checks.hpp"

#include <cmath>
#include <vector>

namespace {

using namespace kvtrim;

std::vector<float> random_floats(index_t count, support::random& r) {
    std::vector<float> out;
    for (index_t i = 0; i < count; ++i) { out.push_back(static_cast<float>(r.normal())); }
    return out;
}

template <class T, class Executor>
std::vector<T> combine(const support::view& w_uv, const support::view& w_o, Executor ex) {
    std::vector<T> out(static_cast<std::size_t>(extent(w_o, 0) * extent(w_uv, 1) * extent(w_o, 2)));
    workspace none(std::span<std::byte>{});
    CHECK(combine_projections(w_uv, w_o, std::span(out), none, ex).code() == errc::workspace_too_small);
    growing_workspace memory;
    workspace scratch = memory.of_bytes(combine_projections_bytes(w_o, ex));
    REQUIRE(combine_projections(w_uv, w_o, std::span(out), scratch, ex).ok());
    return out;
}

} // namespace

TEST_CASE("combine_projections: the product of each head, from any strides, for any number of workers",
          "[score]") {
    support::random r(1);
    for (const index_t value_dim : {10, 130}) {
        const index_t q_heads = 3, latent_dim = 70, hidden = 300;
        const std::vector<float> up = random_floats(q_heads * latent_dim * value_dim, r);
        const std::vector<float> out = random_floats(q_heads * value_dim * hidden, r);
        const support::view w_uv(up.data(), {q_heads, latent_dim, value_dim});
        // As torch keeps it: [hidden, q_heads * value_dim].
        const support::view w_o(out.data(), {q_heads, value_dim, hidden},
                                {value_dim, 1, q_heads * value_dim});
        const auto wide = combine<float>(w_uv, w_o, serial_executor{});
        CHECK(combine<float>(w_uv, w_o, support::thread_executor{3}) == wide);
        const auto narrow = combine<bf16>(w_uv, w_o, serial_executor{});
        std::size_t i = 0;
        int wrong = 0;
        for (index_t h = 0; h < q_heads; ++h) {
            for (index_t l = 0; l < latent_dim; ++l) {
                for (index_t c = 0; c < hidden; ++c, ++i) {
                    double sum = 0;
                    for (index_t d = 0; d < value_dim; ++d) {
                        sum += static_cast<double>(w_uv(h, l, d)) * static_cast<double>(w_o(h, d, c));
                    }
                    const bool right = std::abs(static_cast<double>(wide[i]) - sum) < 1e-4 &&
                                       narrow[i].bits == element_traits<bf16>::from_float(wide[i]).bits;
                    wrong += right ? 0 : 1;
                }
            }
        }
        CHECK(wrong == 0);
    }
}

TEST_CASE("combine_projections: matrices that do not fit are refused, with nothing written",
          "[score][errors]") {
    const std::vector<float> data(2 * 4 * 6);
    std::vector<float> out(2 * 4 * 6, -7);
    growing_workspace memory;
    serial_executor ex;
    const support::view w_o(data.data(), {2, 3, 6});
    workspace scratch = memory.of_bytes(combine_projections_bytes(w_o, ex));
    const auto answer = [&](const auto& w_uv, std::size_t room) {
        const status s = combine_projections(w_uv, w_o, std::span(out).first(room), scratch, ex);
        if (!s.ok()) { CHECK(out == std::vector<float>(2 * 4 * 6, -7)); }
        return s;
    };
    CHECK(answer(support::view(data.data(), {2, 4, 3}), 47).code() == errc::no_room);
    CHECK(answer(support::view(data.data(), {2, 4, 3}), 47).needed() == 48);
    CHECK(answer(support::view(data.data(), {1, 4, 3}), 48).code() == errc::invalid_parameter);
    CHECK(answer(support::view(data.data(), {2, 4, 2}), 48).code() == errc::invalid_parameter);
    CHECK(answer(support::view(nullptr, {2, 4, 3}), 48).code() == errc::invalid_parameter);
    const std::vector<std::int32_t> ends{0, 4, 7};
    CHECK(answer(ragged<const float>(data.data(), ends, 3), 48).code() == errc::invalid_parameter);
    constexpr index_t huge = index_t{1} << 50;
    const support::view broadcast(data.data(), {2, huge, 3}, {0, 0, 1});
    CHECK(answer(broadcast, 48).code() == errc::no_room); // 2 * huge * 6 elements of output
    CHECK(answer(support::view(data.data(), {2, 0, 3}), 0).ok());
    CHECK(answer(support::view(data.data(), {2, 4, 3}), 48).ok());
}
