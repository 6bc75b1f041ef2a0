// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Rows of a ggml tensor of any type that ggml can decode, known at run time, by ggml's own conversion: one C++ type for all
// tensors, read only. And W_O, decoded for CriticalKV and its kin.
//
//   ggml_any_rows            [kv_heads, tokens, head_dim] of one stream of a cache tensor, whose axes are named (adapter/ggml.hpp)
//   ggml_output_projection   W_O [q_heads, head_dim, hidden] as floats, from a weight [q_heads * head_dim, hidden] of any type
//
//     const kvtrim::ggml_any_rows keys(*k), values(*v, kvtrim::ggml_axes::transposed());
//     const auto in = kvtrim::layer(kvtrim::indexed_rows(keys, list.cells), kvtrim::indexed_rows(values, list.cells))
//                         .with_queries(queries);
//
// Where ggml_tensor_rows (cache/ggml_tensor_rows.hpp) decodes by kvtrim's own kernels, moves rows and holds nine types, this
// reads all of ggml's (q4_K, iq4_xs, ...) and compiles faster: see docs/engines/llama-cpp.md.
// Rotated values: caches of quantised V may hold R v instead of v, block by block of n channels (llama.cpp: a Hadamard matrix
// of 64, named attn_inp_v_rot), and the engine turns back what attention gives. Norms of v W_O are then norms of (R v) (R W_O),
// for an orthogonal R: rotate() makes R W_O. Keys need nothing, as queries are rotated with them.
// Cost: a call of ggml's conversion per row, of a transposed tensor per channel of a run of rows. Nothing allocates but W_O.

#include <kvtrim/adapter/ggml.hpp>

#include <algorithm>
#include <cstring>
#include <vector>

namespace KVTRIM_NAMESPACE {

namespace detail {

/// Whether ggml can turn rows of this type into floats.
[[nodiscard]] inline bool is_decodable(ggml_type type) {
    return type == GGML_TYPE_F32 ||
           (type >= 0 && type < GGML_TYPE_COUNT && ggml_get_type_traits(type)->to_float != nullptr);
}

inline void decode_ggml(ggml_type type, const void* from, float* to, index_t count) {
    if (type == GGML_TYPE_F32) {
        std::memcpy(to, from, static_cast<std::size_t>(count) * sizeof(float));
    } else {
        ggml_get_type_traits(type)->to_float(from, to, count);
    }
}

} // namespace detail

/// A row_source (cache/row_source.hpp) of one stream of a tensor. The tensor's memory must outlive it; the ggml_tensor need not.
class ggml_any_rows {
  public:
    /// No rows.
    ggml_any_rows() = default;

    /// stream: along axis 3. The view is empty, and validate() says why, for a stream that is not there, axes that are no
    /// permutation of 0, 1, 2, a type that ggml does not decode, blocks that are not along axis 0 or not whole, strides beyond
    /// what memory can hold, no data, or data that the CPU does not address.
    explicit ggml_any_rows(const ggml_tensor& tensor, ggml_axes axes = ggml_axes::attended(),
                           index_t stream = 0) {
        ggml_tensor one = tensor;
        one.ne[3] = 1;
        const char* problem = detail::problem_of(one);
        if (problem == nullptr) { problem = problem_of(tensor, axes, stream); }
        if (problem != nullptr) {
            validity_ = {errc::invalid_parameter, problem};
            return;
        }
        type_ = tensor.type;
        element_bytes_ = static_cast<index_t>(ggml_type_size(type_));
        data_ = static_cast<const char*>(tensor.data) + stream * static_cast<index_t>(tensor.nb[3]);
        const int order[] = {axes.head, axes.row, axes.element};
        for (std::size_t r = 0; r < 3; ++r) {
            extents_[r] = tensor.ne[order[r]];
            strides_[r] = static_cast<index_t>(tensor.nb[order[r]]);
        }
    }

    /// Ok, or why there are no rows.
    [[nodiscard]] status validate() const { return validity_; }
    /// {kv_heads, tokens, head_dim}[r].
    [[nodiscard]] index_t extent(std::size_t r) const { return extents_[r]; }

    /// Decodes rows [first, first + count) of a head to tile [count, head_dim].
    void load_rows(index_t head, index_t first, index_t count, float* tile) const {
        const char* from = data_ + head * strides_[0] + first * strides_[1];
        const index_t dim = extents_[2];
        if (ggml_blck_size(type_) > 1 || strides_[2] == element_bytes_) {
            for (index_t i = 0; i < count; ++i) {
                detail::decode_ggml(type_, from + i * strides_[1], tile + i * dim, dim);
            }
            return;
        }
        // Transposed: what lies together is a channel of neighbouring tokens.
        constexpr index_t most = 64;
        float channel[most];
        const index_t run = strides_[1] == element_bytes_ ? most : 1;
        for (index_t i = 0; i < count; i += run) {
            const index_t tokens = std::min(run, count - i);
            for (index_t d = 0; d < dim; ++d) {
                detail::decode_ggml(type_, from + i * strides_[1] + d * strides_[2], channel, tokens);
                for (index_t t = 0; t < tokens; ++t) { tile[(i + t) * dim + d] = channel[t]; }
            }
        }
    }

  private:
    [[nodiscard]] static const char* problem_of(const ggml_tensor& t, const ggml_axes& axes, index_t stream) {
        const int order[] = {axes.head, axes.row, axes.element};
        for (std::size_t r = 0; r < 3; ++r) {
            if (order[r] < 0 || order[r] > 2 || order[r] == order[(r + 1) % 3]) {
                return "ggml: axes must be a permutation of 0, 1, 2";
            }
        }
        if (stream < 0 || stream >= t.ne[3]) { return "ggml: the tensor has no such stream"; }
        if (!detail::is_decodable(t.type)) { return "ggml: rows of this type cannot be turned into floats"; }
        const index_t block = ggml_blck_size(t.type);
        if (block > 1 && axes.element != 0) { return "ggml: blocks lie along axis 0"; }
        if (block > 1 && (t.ne[0] % block != 0 || t.nb[0] != ggml_type_size(t.type))) {
            return "ggml: a row must be whole blocks that lie one after the other";
        }
        std::array<index_t, 4> extents{}, strides{};
        for (std::size_t i = 0; i < 4; ++i) {
            if (t.ne[i] < 0) { return "ggml: extents must not be negative"; }
            if (std::cmp_greater(t.nb[i], std::numeric_limits<index_t>::max())) {
                return "ggml: the tensor has strides beyond what memory can hold";
            }
            extents[i] = i == 0 ? t.ne[0] / block : t.ne[i];
            strides[i] = static_cast<index_t>(t.nb[i]);
        }
        // In bytes, the last block's own included, and as floats.
        const auto bytes = static_cast<std::size_t>(block) * sizeof(float);
        return detail::fits_in_memory(extents, strides, bytes, 1)
                   ? nullptr
                   : "ggml: extents or strides beyond what memory can hold";
    }

    const char* data_ = nullptr;
    std::array<index_t, 3> extents_{}, strides_{}; // bytes
    index_t element_bytes_ = 0;
    ggml_type type_ = GGML_TYPE_F32;
    status validity_;
};

/// W_O as floats, read once per model.
class ggml_output_projection {
  public:
    /// No weights.
    ggml_output_projection() = default;

    /// The view is empty, and validate() says why, for another weight than [q_heads * head_dim, hidden], or what ggml_any_rows
    /// refuses: among that, a weight in a buffer that the CPU does not address (llama.cpp: one repacked for faster products; load
    /// the model with use_extra_bufts = false).
    ggml_output_projection(const ggml_tensor& weight, index_t q_heads) : q_heads_(q_heads) {
        const ggml_any_rows rows(weight);
        validity_ = rows.validate();
        if (validity_.ok() && (rows.extent(0) != 1 || q_heads <= 0 || rows.extent(2) % q_heads != 0)) {
            validity_ = {errc::invalid_parameter, "ggml: W_O must be [q_heads * head_dim, hidden]"};
        }
        if (!validity_.ok()) {
            q_heads_ = 0;
            return;
        }
        hidden_ = rows.extent(1);
        inputs_ = rows.extent(2);
        values_.resize(static_cast<std::size_t>(hidden_ * inputs_));
        rows.load_rows(0, 0, hidden_, values_.data());
    }

    /// Empty, and validate() says `problem`, a string literal.
    [[nodiscard]] static ggml_output_projection invalid(const char* problem) {
        ggml_output_projection none;
        none.validity_ = {errc::invalid_parameter, problem};
        return none;
    }

    /// Why it is not valid, or ok.
    [[nodiscard]] status validate() const { return validity_; }

    /// [q_heads, head_dim, hidden], for with_output_projection().
    [[nodiscard]] strided<const float, 3> view() const {
        const index_t head_dim = q_heads_ > 0 ? inputs_ / q_heads_ : 0;
        return {values_.data(), std::array{q_heads_, head_dim, hidden_},
                std::array{head_dim, index_t{1}, inputs_}};
    }

    /// For a cache that holds R v, R [n, n] in rows: makes R W_O, for each n channels. Returns invalid_parameter where n does not
    /// divide the inputs or R has another size, with nothing changed.
    [[nodiscard]] status rotate(std::span<const float> r) {
        if (!validity_.ok()) { return validity_; }
        index_t n = 1;
        while (n * n < std::ssize(r)) { ++n; }
        if (n * n != std::ssize(r) || inputs_ % n != 0) {
            return {errc::invalid_parameter, "ggml: a rotation is [n, n], and n divides W_O's inputs"};
        }
        std::vector<float> turned(static_cast<std::size_t>(n));
        for (float* block = values_.data(); block != values_.data() + values_.size(); block += n) {
            for (index_t i = 0; i < n; ++i) {
                float sum = 0;
                for (index_t k = 0; k < n; ++k) { sum += r[static_cast<std::size_t>(i * n + k)] * block[k]; }
                turned[static_cast<std::size_t>(i)] = sum;
            }
            std::copy(turned.begin(), turned.end(), block);
        }
        return {};
    }

  private:
    std::vector<float> values_; // [hidden, q_heads * head_dim]
    index_t q_heads_ = 0, hidden_ = 0, inputs_ = 0;
    status validity_;
};

} // namespace KVTRIM_NAMESPACE
