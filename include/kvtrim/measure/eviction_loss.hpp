// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// What a plan costs the layer's output, for the given queries: kept attention mass, output error before and after
// W_O, and Ada-KV's upper bound on it.
//
//   F[h, i], E[h, i]     sum over the kept, the evicted t of A[h, i, t]
//   S[h, i]              the sink logit's part of the softmax, 0 without one:  F + E + S = 1
//   D[h, i] = y - y' = sum_t A v - sum_kept (A / (F + S)) v                      error of the head's output
//           = sum_evicted A v - E / (F + S) * sum_kept A v                       as computed: no cancellation
//   error[h]             mean over i of || D[h, i] ||_1
//   error_projected[h]   mean over i of || D[h, i] W_O[h] ||_1
//   layer_error          mean over i of || sum over h of D[h, i] W_O[h] ||_1
//   layer_bound          2 C sum over h of mean E[h],   C = max over h, t of || v[t] W_O[h] ||_1
//
// layer_error <= layer_bound always: the coefficients of D sum to E + E F / (F + S) <= 2 E in absolute value.
// Source: Ada-KV, arXiv:2407.11550, Theorem 3.1 (bound) and Sec. 3 (its minimiser); kept mass as in SnapKV.
// Departures: C is the largest L1 norm of a projected value row, which is what the proof uses. A sink stays in the
// denominator when tokens leave it.
// This is a measuring tool: it allocates, and W_O costs 2 * q_heads * (tokens + queries) * head_dim * hidden.
// Numerics: products float, sums over queries double; E, F and S are each summed, not taken from 1. A query whose kept
// mass is 0 contributes || y ||.

#include <kvtrim/attention/attention_rows.hpp>
#include <kvtrim/cache/read_rows.hpp>
#include <kvtrim/kernels/product_kernels.hpp>
#include <kvtrim/kernels/row_kernels.hpp>
#include <kvtrim/plan/keep_plan.hpp>

#include <cmath>
#include <type_traits>
#include <vector>

namespace KVTRIM_NAMESPACE {

/// What measure_eviction() found; symbols as above.
struct eviction_loss {
    std::vector<double> kept_mass;       ///< [q_heads] F, mean over the queries
    std::vector<double> evicted_mass;    ///< [q_heads] E, mean over the queries
    std::vector<double> error;           ///< [q_heads] mean L1 error of the head's output
    std::vector<double> error_projected; ///< [q_heads]; empty without W_O
    double layer_error = 0;              ///< 0 without W_O
    double layer_bound = 0;              ///< 0 without W_O, or where it was skipped
};

/// Whether layer_bound is computed: it projects every cached value, which costs far more than the rest where queries are
/// few.
enum class loss_bound : std::uint8_t { measured, skipped };

/// Ada-KV's bound on the mean L1 error of a layer's output. evicted_mass [q_heads]: mean E; largest_projected_norm: C.
[[nodiscard]] inline double ada_kv_loss_bound(std::span<const double> evicted_mass,
                                              double largest_projected_norm) {
    double evicted = 0;
    for (const double mass : evicted_mass) { evicted += mass; }
    return 2.0 * largest_projected_norm * evicted;
}

namespace detail {

// Outputs of one row group, split into what the kept and the evicted tokens contribute.
template <class Inputs>
class split_outputs {
  public:
    explicit split_outputs(const Inputs& in)
        : in_(in), value_dim_(extent(in.values, 2)), values_(static_cast<std::size_t>(256 * value_dim_)),
          kept_tile_(256 * kernels::tile_query_rows),
          kept_(static_cast<std::size_t>(kernels::tile_query_rows * value_dim_)), evicted_(kept_.size()),
          kept_mass_(kernels::tile_query_rows), evicted_mass_(kernels::tile_query_rows),
          sink_mass_(kernels::tile_query_rows) {}

    // is_kept [tokens of the head]
    void run(attention_rows<Inputs>& rows, index_t kv_head, const std::vector<char>& is_kept) {
        for (auto* sums : {&kept_, &evicted_}) { std::fill(sums->begin(), sums->end(), 0.0f); }
        for (auto* sums : {&kept_mass_, &evicted_mass_}) { std::fill(sums->begin(), sums->end(), 0.0); }
        const index_t count_rows = rows.current_rows();
        for (index_t r = 0; r < count_rows; ++r) {
            sink_mass_[static_cast<std::size_t>(r)] = rows.sink_mass(r);
        }
        for (index_t t = 0; t < rows.visible_end(); t += rows.tile_tokens()) {
            const index_t count = std::min(rows.tile_tokens(), rows.visible_end() - t);
            float* evicted = rows.attention(t, count);
            for (index_t i = 0; i < count; ++i) {
                float* const kept = kept_tile_.data() + i * count_rows;
                float* const other = evicted + i * count_rows;
                const bool keep = is_kept[static_cast<std::size_t>(t + i)] != 0;
                if (keep) { std::copy_n(other, count_rows, kept); }
                std::fill_n(keep ? other : kept, count_rows, 0.0f);
            }
            kernels::add_over_tokens(kept_tile_.data(), count, count_rows, kept_mass_.data());
            kernels::add_over_tokens(evicted, count, count_rows, evicted_mass_.data());
            const float_rows v = read_rows(in_.values, kv_head, t, count, values_.data());
            kernels::add_weighted_values(kept_tile_.data(), count, count_rows, v.data, v.stride, value_dim_,
                                         kept_.data());
            kernels::add_weighted_values(evicted, count, count_rows, v.data, v.stride, value_dim_,
                                         evicted_.data());
        }
    }

    [[nodiscard]] double kept_mass(index_t row) const { return kept_mass_[static_cast<std::size_t>(row)]; }
    [[nodiscard]] double evicted_mass(index_t row) const {
        return evicted_mass_[static_cast<std::size_t>(row)];
    }
    // D of one row into out [value_dim]; its L1 norm is returned.
    double difference(index_t row, float* out) const {
        const auto r = static_cast<std::size_t>(row);
        const double remaining = kept_mass_[r] + sink_mass_[r];
        const double ratio = remaining > 0 ? evicted_mass_[r] / remaining : 0.0;
        double norm = 0;
        for (index_t d = 0; d < value_dim_; ++d) {
            const auto i = r * static_cast<std::size_t>(value_dim_) + static_cast<std::size_t>(d);
            out[d] =
                static_cast<float>(static_cast<double>(evicted_[i]) - ratio * static_cast<double>(kept_[i]));
            norm += std::abs(static_cast<double>(out[d]));
        }
        return norm;
    }

  private:
    const Inputs& in_;
    index_t value_dim_;
    std::vector<float> values_;
    std::vector<float> kept_tile_;
    std::vector<float> kept_;
    std::vector<float> evicted_;
    std::vector<double> kept_mass_;
    std::vector<double> evicted_mass_;
    std::vector<double> sink_mass_;
};

// error_projected, layer_error and layer_bound from the differences [q_heads, queries, value_dim].
template <class Inputs>
void measure_projected(const Inputs& in, index_t queries, const std::vector<float>& differences,
                       loss_bound bound, eviction_loss& loss) {
    const index_t q_heads = extent(in.queries, 0);
    const index_t value_dim = extent(in.values, 2);
    const index_t hidden =
        value_dim == 0 ? 0 : extent(in.output_projection, 2); // rows of no channels project to 0
    const index_t step = kernels::tile_hidden(value_dim);
    std::vector<float> w_o(static_cast<std::size_t>(value_dim * hidden));
    std::vector<float> values(static_cast<std::size_t>(256 * value_dim));
    std::vector<float> product(static_cast<std::size_t>(std::max<index_t>(256, queries) * step));
    std::vector<float> norms(static_cast<std::size_t>(std::max<index_t>(256, queries)));
    std::vector<float> layer(static_cast<std::size_t>(queries * hidden), 0.0f);
    float largest = 0;
    for (index_t h = 0; h < q_heads; ++h) {
        const index_t kv_head = h / (q_heads / in.kv_heads());
        const float_rows w = read_rows(in.output_projection, h, 0, value_dim, w_o.data());
        const float* d = differences.data() + h * queries * value_dim;
        const auto add_norms = [&](const float_rows& rows, index_t count) {
            std::fill(norms.begin(), norms.end(), 0.0f);
            for (index_t c = 0; c < hidden; c += step) {
                const index_t columns = std::min(step, hidden - c);
                kernels::active_product_kernels().multiply({rows.data, rows.stride, 1}, count,
                                                           {w.data + c, w.stride, 1}, value_dim, columns,
                                                           product.data(), columns);
                kernels::active_row_kernels().add_absolute(product.data(), columns, count, columns,
                                                           norms.data());
            }
        };
        add_norms({d, value_dim}, queries);
        double sum = 0;
        for (index_t i = 0; i < queries; ++i) {
            sum += static_cast<double>(norms[static_cast<std::size_t>(i)]);
        }
        loss.error_projected.push_back(sum / static_cast<double>(queries));
        kernels::add_products(d, value_dim, queries, w.data, w.stride, value_dim, hidden, layer.data());
        if (bound == loss_bound::skipped) { continue; }
        for (index_t t = 0; t < in.tokens(kv_head); t += 256) {
            const index_t count = std::min<index_t>(256, in.tokens(kv_head) - t);
            add_norms(read_rows(in.values, kv_head, t, count, values.data()), count);
            for (index_t i = 0; i < count; ++i) {
                largest = std::max(largest, norms[static_cast<std::size_t>(i)]);
            }
        }
    }
    for (const float x : layer) { loss.layer_error += std::abs(static_cast<double>(x)); }
    loss.layer_error /= static_cast<double>(queries);
    if (bound == loss_bound::skipped) { return; }
    loss.layer_bound = ada_kv_loss_bound(loss.evicted_mass, static_cast<double>(largest));
}

} // namespace detail

/// Measures the loss of `plan` for the queries in `in`; a request supplies the attention options and the
/// rollback tail. Needs values and queries; W_O where its figures are wanted, which then must be
/// [q_heads, head_dim, hidden] with the queries' q_heads and the values' head_dim.
/// Returns what in.validate() (invalid_parameter for another W_O) and validate_attention() say, index_overflow (needed:
/// tokens) or plan_mismatch, with `loss` unchanged.
template <class Inputs>
[[nodiscard]] status measure_eviction(const Inputs& in, const eviction_request& request,
                                      const keep_plan& plan, eviction_loss& loss,
                                      loss_bound bound = loss_bound::measured) {
    static_assert(Inputs::has_values && Inputs::has_queries,
                  "kvtrim: measure_eviction needs layer(keys, values).with_queries(queries)");
    using output_projection = std::remove_cvref_t<decltype(in.output_projection)>;
    static_assert(!Inputs::has_output_projection || cache_view<output_projection>,
                  "kvtrim: measure_eviction needs W_O itself, a view [q_heads, head_dim, hidden]: the Gram "
                  "matrices of a gram_view do not give the output back; see cache/layer.hpp");
    if (const status s = validate_attention(in, request); !s.ok()) { return s; }
    if (in.longest_row() > std::numeric_limits<keep_plan::table_index>::max()) {
        return {errc::index_overflow, "a plan addresses at most 2^31 - 1 tokens per head", in.longest_row()};
    }
    if (plan.rows() != in.kv_heads() || !plan.check_invariants([&](index_t g) { return in.tokens(g); })) {
        return {errc::plan_mismatch, "the plan was made for another cache"};
    }
    workspace counting = workspace::counting();
    static_cast<void>(attention_rows(in, request, 0, 0, 0, counting));
    growing_workspace memory;
    const index_t queries = extent(in.queries, 1);
    const index_t q_heads = extent(in.queries, 0);
    const index_t value_dim = extent(in.values, 2);
    eviction_loss result;
    result.kept_mass.assign(static_cast<std::size_t>(q_heads), 0.0);
    result.evicted_mass = result.error = result.kept_mass;
    std::vector<float> differences(static_cast<std::size_t>(q_heads * queries * value_dim));
    detail::split_outputs outputs(in);
    for (index_t g = 0; g < in.kv_heads(); ++g) {
        std::vector<char> is_kept(static_cast<std::size_t>(in.tokens(g)), 0);
        for (const auto token : plan.row(g)) { is_kept[static_cast<std::size_t>(token)] = 1; }
        workspace scratch = memory.of_bytes(counting.needed_bytes());
        attention_rows rows(in, request, g, 0, 0, scratch);
        for (index_t first = 0; first < rows.rows(); first += kernels::tile_query_rows) {
            rows.begin_row_group(first, std::min(kernels::tile_query_rows, rows.rows() - first));
            outputs.run(rows, g, is_kept);
            for (index_t r = 0; r < rows.current_rows(); ++r) {
                const index_t flat = g * rows.rows() + first + r; // q_head * queries + query
                const auto h = static_cast<std::size_t>(flat / queries);
                const double share = 1.0 / static_cast<double>(queries);
                result.kept_mass[h] += share * std::min(1.0, outputs.kept_mass(r));
                result.evicted_mass[h] += share * std::min(1.0, outputs.evicted_mass(r));
                result.error[h] += share * outputs.difference(r, differences.data() + flat * value_dim);
            }
        }
    }
    if constexpr (Inputs::has_output_projection) {
        detail::measure_projected(in, queries, differences, bound, result);
    }
    loss = std::move(result);
    return {};
}

} // namespace KVTRIM_NAMESPACE
