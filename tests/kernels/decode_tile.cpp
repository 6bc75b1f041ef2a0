// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/kernels/decode_tile.hpp>

#include "support/checks.hpp"
#include "support/cpu_levels.hpp"
#include "support/random_layer.hpp"

#include <cmath>
#include <vector>

using namespace kvtrim;
using namespace support;

namespace {

template <class T>
std::vector<T> normals(support::random& r, index_t count) {
    std::vector<T> values(static_cast<std::size_t>(count));
    for (T& x : values) { x = element_traits<T>::from_float(static_cast<float>(r.normal())); }
    return values;
}

template <class T>
double at(const std::vector<T>& rows, index_t i) {
    return static_cast<double>(element_traits<T>::to_float(rows[static_cast<std::size_t>(i)]));
}

// Random keys shown in tiles of any size, beside loops in double.
template <class Key, class Value>
void attends_like_loops(support::random& r, index_t head_dim, index_t value_dim) {
    const index_t keys = r.between(1, 150), count = r.between(1, 4), key_stride = head_dim + r.between(0, 3),
                  value_stride = value_dim + r.between(0, 3);
    const auto q = normals<float>(r, count * head_dim);
    const auto k = normals<Key>(r, keys * key_stride);
    const auto v = normals<Value>(r, keys * value_stride);
    const kernels::logit_rules rules{1.0f / std::sqrt(static_cast<float>(head_dim)),
                                     r.chance(0.3) ? 2.0f : 0.0f, 0};
    CAPTURE(head_dim, value_dim, keys, count, rules.soft_cap);

    const auto& steps = kernels::active_decode_kernels<Key, Value>();
    std::vector<double> own(
        static_cast<std::size_t>(kernels::decode_tile::own_floats(head_dim, value_dim) / 2));
    std::vector<float> shared(static_cast<std::size_t>(kernels::decode_tile::shared_floats()));
    const kernels::decode_tile tile(reinterpret_cast<float*>(own.data()), shared.data(), head_dim, value_dim);
    steps.begin(tile, q.data(), head_dim, count, rules);
    for (index_t t = 0; t < keys;) {
        const index_t shown = std::min(keys - t, r.between(1, 64)), ahead = std::min(keys - t - shown, shown);
        steps.attend(tile, {k.data() + t * key_stride, key_stride},
                     {v.data() + t * value_stride, value_stride}, shown, rules, ahead);
        t += shown;
    }
    std::vector<float> out(static_cast<std::size_t>(count * value_dim)),
        log_sum_exp(static_cast<std::size_t>(count));
    steps.finish(tile, count, out.data(), log_sum_exp.data());

    for (index_t i = 0; i < count; ++i) {
        oracle::row expected(static_cast<std::size_t>(value_dim), 0.0);
        double sum = 0;
        for (index_t t = 0; t < keys; ++t) {
            double logit = 0;
            for (index_t d = 0; d < head_dim; ++d) {
                logit += at(q, i * head_dim + d) * at(k, t * key_stride + d);
            }
            logit *= static_cast<double>(rules.scale);
            const auto cap = static_cast<double>(rules.soft_cap);
            const double weight = std::exp(cap > 0 ? cap * std::tanh(logit / cap) : logit);
            sum += weight;
            for (index_t d = 0; d < value_dim; ++d) {
                expected[static_cast<std::size_t>(d)] += weight * at(v, t * value_stride + d);
            }
        }
        for (double& x : expected) { x /= sum; }
        const std::span<const float> row(out.data() + i * value_dim, static_cast<std::size_t>(value_dim));
        CHECK(difference(row, expected, 2e-5, 2e-5) == "");
        CHECK(std::abs(static_cast<double>(log_sum_exp[static_cast<std::size_t>(i)]) - std::log(sum)) < 2e-5);
    }
}

} // namespace

TEST_CASE("decode_tile: attention of any elements, dimensions and tiles equals loops in double",
          "[kernels]") {
    at_each_cpu_level([] {
        support::random r(91);
        for (const index_t dim : {1, 7, 8, 15, 16, 31, 32, 33, 63, 64, 65, 80, 96, 128, 150}) {
            const index_t value_dim = r.chance(0.5) ? dim : r.between(1, 150);
            attends_like_loops<float, float>(r, dim, value_dim);
            attends_like_loops<f16, f16>(r, dim, value_dim);
            attends_like_loops<bf16, bf16>(r, dim, value_dim);
            attends_like_loops<bf16, float>(r, dim, value_dim);
            attends_like_loops<f16, bf16>(r, dim, value_dim);
        }
    });
}

TEST_CASE("decode_tile: a tile reads nothing behind the last element of its rows", "[kernels]") {
    at_each_cpu_level([] {
        support::random r(92);
        constexpr index_t dim = 5, keys = 3;
        const auto q = normals<float>(r, 4 * dim);
        std::vector<bf16> k = normals<bf16>(r, keys * dim), v = normals<bf16>(r, keys * dim);
        std::vector<std::vector<float>> results;
        for (const float behind : {0.0f, std::numeric_limits<float>::quiet_NaN()}) {
            k.resize(100, element_traits<bf16>::from_float(behind));
            v.resize(100, element_traits<bf16>::from_float(behind));
            std::vector<double> own(static_cast<std::size_t>(kernels::decode_tile::own_floats(dim, dim) / 2));
            std::vector<float> shared(static_cast<std::size_t>(kernels::decode_tile::shared_floats()));
            const kernels::decode_tile tile(reinterpret_cast<float*>(own.data()), shared.data(), dim, dim);
            const auto& steps = kernels::active_decode_kernels<bf16, bf16>();
            steps.begin(tile, q.data(), dim, 4, {1, 0, 0});
            steps.attend(tile, {k.data(), dim}, {v.data(), dim}, keys, {1, 0, 0}, 0);
            std::vector<float> out(4 * dim), log_sum_exp(4);
            steps.finish(tile, 4, out.data(), log_sum_exp.data());
            results.push_back(out);
            k.resize(keys * dim);
            v.resize(keys * dim);
        }
        CHECK(results[0] == results[1]);
    });
}
