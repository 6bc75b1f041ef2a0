// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/cache/latent_cache.hpp>
#include <kvtrim/compact/compact_in_place.hpp>
#include <kvtrim/compact/rerotate_keys.hpp>
#include <kvtrim/policy/criticalkv.hpp>
#include <kvtrim/score/combine_projections.hpp>

#include "support/checks.hpp"
#include "support/cpu_levels.hpp"

#include <cmath>
#include <vector>

namespace {

using namespace kvtrim;

std::vector<float> random_floats(index_t count, double size, support::random& r) {
    std::vector<float> out;
    for (index_t i = 0; i < count; ++i) { out.push_back(static_cast<float>(size * r.normal())); }
    return out;
}

constexpr index_t q_heads = 4, tokens = 120, latent = 40, nope = 12, rope_dim = 8, value_dim = 10,
                  hidden = 70, queries = 8, row = latent + rope_dim, token_stride = row + 3;

// One MLA layer twice: latent rows, and the keys and values of each query head that they stand for.
struct mla_layer {
    latent_layout layout;
    std::vector<float> rows, absorbed, w_uv;
    support::layer_data explicit_heads;

    mla_layer(bool rotary_first, std::uint64_t seed)
        : layout{row, {rotary_first ? rope_dim : 0, latent}, {rotary_first ? 0 : latent, rope_dim}},
          explicit_heads{{.kv_heads = q_heads,
                          .group = 1,
                          .tokens = tokens,
                          .head_dim = nope + rope_dim,
                          .value_dim = value_dim,
                          .hidden = hidden,
                          .queries = queries},
                         {},
                         {},
                         {},
                         {}} {
        support::random r(seed);
        rows = random_floats(tokens * token_stride, 1, r);
        w_uv = random_floats(q_heads * latent * value_dim, 0.2, r);
        explicit_heads.w = random_floats(q_heads * value_dim * hidden, 0.2, r);
        explicit_heads.q = random_floats(q_heads * queries * (nope + rope_dim), 1, r);
        const std::vector<float> w_uk = random_floats(q_heads * latent * nope, 0.3, r);
        for (index_t h = 0; h < q_heads; ++h) {
            for (index_t t = 0; t < tokens; ++t) {
                add_products(h, t, w_uk, nope, explicit_heads.k);
                for (index_t d = 0; d < rope_dim; ++d) {
                    explicit_heads.k.push_back(at(t, layout.rotary.begin + d));
                }
                add_products(h, t, w_uv, value_dim, explicit_heads.v);
            }
            for (index_t i = 0; i < queries; ++i) { absorb(h, i, w_uk); }
        }
    }

    [[nodiscard]] latent_cache<float> cache() { return {rows.data(), tokens, token_stride, layout}; }
    [[nodiscard]] float at(index_t t, index_t channel) const {
        return rows[static_cast<std::size_t>(t * token_stride + channel)];
    }
    [[nodiscard]] strided<const float, 3> query_view() const {
        return {absorbed.data(), {q_heads, queries, row}};
    }
    [[nodiscard]] strided<const float, 3> up() const { return {w_uv.data(), {q_heads, latent, value_dim}}; }

  private:
    // to += the row c(t) * w[h], w [q_heads, latent, columns]
    void add_products(index_t h, index_t t, const std::vector<float>& w, index_t columns,
                      std::vector<float>& to) const {
        for (index_t d = 0; d < columns; ++d) {
            double sum = 0;
            for (index_t l = 0; l < latent; ++l) {
                sum += static_cast<double>(at(t, layout.latent.begin + l)) *
                       static_cast<double>(w[static_cast<std::size_t>((h * latent + l) * columns + d)]);
            }
            to.push_back(static_cast<float>(sum));
        }
    }
    void absorb(index_t h, index_t i, const std::vector<float>& w_uk) {
        const float* q = explicit_heads.q.data() + (h * queries + i) * (nope + rope_dim);
        std::vector<float> to(row);
        for (index_t l = 0; l < latent; ++l) {
            double sum = 0;
            for (index_t d = 0; d < nope; ++d) {
                sum += static_cast<double>(q[d]) *
                       static_cast<double>(w_uk[static_cast<std::size_t>((h * latent + l) * nope + d)]);
            }
            to[static_cast<std::size_t>(layout.latent.begin + l)] = static_cast<float>(sum);
        }
        std::copy_n(q + nope, rope_dim, to.begin() + layout.rotary.begin);
        absorbed.insert(absorbed.end(), to.begin(), to.end());
    }
};

std::vector<float> combined(const mla_layer& layer) {
    std::vector<float> out(static_cast<std::size_t>(q_heads * latent * hidden));
    growing_workspace memory;
    serial_executor ex;
    const auto w_o = layer.explicit_heads.projection();
    workspace scratch = memory.of_bytes(combine_projections_bytes(w_o, ex));
    REQUIRE(combine_projections(layer.up(), w_o, std::span(out), scratch, ex).ok());
    return out;
}

// Mean over the query heads of a table with a row for each.
oracle::matrix mean_row(const oracle::matrix& heads) {
    oracle::row mean(heads[0].size(), 0.0);
    for (const auto& head : heads) {
        for (std::size_t i = 0; i < head.size(); ++i) {
            mean[i] += head[i] / static_cast<double>(heads.size());
        }
    }
    return {mean};
}

} // namespace

TEST_CASE("latent_cache: criticalkv over latent rows is criticalkv over the heads that they stand for",
          "[cache][oracle]") {
    for (const bool rotary_first : {false, true}) {
        mla_layer layer(rotary_first, 5);
        const latent_cache<float> cache = layer.cache();
        eviction_request request{.budget = per_head(40),
                                 .protect = {.sink_tokens = 2, .window_tokens = queries}};
        const support::layer_oracle slow(layer.explicit_heads.inputs(), request);
        const oracle::matrix attention = mean_row(slow.snapkv({.kernel = 5}));
        const oracle::matrix norms = mean_row(slow.norms());
        request.attention.scale = 1.0f / std::sqrt(static_cast<float>(nope + rope_dim));

        const std::vector<float> w = combined(layer);
        const strided<const float, 3> w_o(w.data(), {q_heads, latent, hidden});
        const auto in = kvtrim::layer(cache.keys(), cache.values()).with_queries(layer.query_view());
        const packed_projection packed(w_o);
        const gram_projection gram(w_o);
        support::at_each_cpu_level([&] {
            auto exact = support::run(criticalkv(), in.with_output_projection(w_o), request);
            REQUIRE(exact.answer.ok());
            CHECK(support::difference(exact.attention_rows(), attention) == "");
            CHECK(support::difference(exact.importance_rows(), oracle::weighted(attention, norms, 1e-4)) ==
                  "");
            auto prepared = support::run(criticalkv(), in.with_output_projection(packed.view()), request);
            CHECK(support::difference(prepared.importance_rows(), oracle::weighted(attention, norms, 1e-4)) ==
                  "");
            auto l2 = support::run(criticalkv(), in.with_output_projection(gram.view()), request);
            const oracle::matrix l2_norms = mean_row(slow.norms(oracle::norm_kind::l2));
            CHECK(support::difference(l2.importance_rows(), oracle::weighted(attention, l2_norms, 1e-4)) ==
                  "");
        });
    }
}

TEST_CASE("latent_cache: rows are cut once for keys and values, and only the rotary part is turned",
          "[cache]") {
    for (const bool rotary_first : {false, true}) {
        mla_layer layer(rotary_first, 7);
        const mla_layer before = layer;
        const latent_cache<float> cache = layer.cache();
        const keep_plan plan = support::plan_of({{0, 1, 5, 50, 119}});
        REQUIRE(compact_in_place(cache.keys(), plan).ok());
        const std::vector<float> frequencies{1.0f, 0.5f, 0.1f, 0.01f};
        const rope turn{frequencies};
        growing_workspace memory;
        workspace scratch = memory.of_bytes(rerotate_keys_bytes(cache.rotary(), turn));
        REQUIRE(rerotate_keys(cache.rotary(), turn, positions_of(plan), scratch).ok());
        for (index_t i = 0; i < 5; ++i) {
            const index_t from = plan.row(0)[static_cast<std::size_t>(i)];
            for (index_t l = 0; l < latent; ++l) {
                REQUIRE(cache.values()(0, i, l) == before.at(from, layer.layout.latent.begin + l));
            }
            for (index_t p = 0; p < 4; ++p) {
                const index_t x_channel = layer.layout.rotary.begin + p;
                const double angle = static_cast<double>(i - from) *
                                     static_cast<double>(frequencies[static_cast<std::size_t>(p)]);
                const double x = static_cast<double>(before.at(from, x_channel));
                const double y = static_cast<double>(before.at(from, x_channel + 4));
                CHECK(static_cast<double>(cache.rotary()(0, i, p)) ==
                      Approx(x * std::cos(angle) - y * std::sin(angle)).margin(1e-6));
                CHECK(static_cast<double>(cache.rotary()(0, i, p + 4)) ==
                      Approx(y * std::cos(angle) + x * std::sin(angle)).margin(1e-6));
            }
        }
        CHECK(cache.keys()(0, 30, 1) == before.at(30, 1));
    }
}

TEST_CASE("latent_cache: parts outside the row or over each other give empty views that say why",
          "[cache][errors]") {
    std::vector<float> data(40);
    constexpr index_t most = std::numeric_limits<index_t>::max();
    const auto answer = [](const latent_cache<float>& cache) {
        const status s = cache.validate();
        for (const auto& view : {cache.keys(), cache.values(), cache.rotary()}) {
            CHECK(view.validate() == s);
            CHECK((s.ok() || view.extent(1) == 0));
        }
        CHECK(kvtrim::layer(cache.keys(), cache.values()).validate() == s);
        return std::string(s.what());
    };
    const auto with = [&](channel_range latent_part, channel_range rotary_part) {
        return answer(latent_cache<float>(data.data(), 4, 10, {10, latent_part, rotary_part}));
    };
    CHECK(with({0, 7}, {7, 3}) == "ok");
    CHECK(with({3, 7}, {0, 3}) == "ok");
    CHECK(with({0, 10}, {10, 0}) == "ok");
    const std::string inside = "latent_cache: both parts must lie inside the row";
    CHECK(with({0, 7}, {8, 3}) == inside);
    CHECK(with({-1, 7}, {8, 2}) == inside);
    CHECK(with({0, -1}, {8, 2}) == inside);
    CHECK(with({0, 7}, {most, most}) == inside);
    CHECK(with({0, 7}, {6, 3}) == "latent_cache: the latent and the rotary part must not overlap");
    CHECK(answer(latent_cache<float>(data.data(), 4, 10, {-10, {0, 0}, {0, 0}})) == inside);
    CHECK(answer(latent_cache<float>(data.data(), -4, 10, {10, {0, 7}, {7, 3}})) ==
          "strided: extents must not be negative");
    CHECK(answer(latent_cache<float>(nullptr, 4, 10, {10, {0, 7}, {7, 3}})) ==
          "strided: data must not be null");
    CHECK(latent_cache<float>(nullptr, 0, 0, {10, {0, 7}, {7, 3}}).keys().extent(2) == 10);
}
