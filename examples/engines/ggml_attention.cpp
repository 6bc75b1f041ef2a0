// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Decode attention in ggml over a cache that kvtrim compacted in ggml's own memory, beside kvtrim's attention over the
// same survivors: with ggml_flash_attn_ext in f16 and in q8_0, and with ggml_mul_mat and ggml_soft_max_ext over a transposed V.
#include <kvtrim/adapter/ggml.hpp>
#include <kvtrim/compact/compact_in_place.hpp>
#include <kvtrim/decode/ragged_attention.hpp>
#include <kvtrim/policy/snapkv.hpp>

#include <ggml-cpu.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

namespace {

using namespace kvtrim;

constexpr index_t q_heads = 8, kv_heads = 2, tokens = 512, head_dim = 64, window = 16, kept = 128;
const float scale = 1 / std::sqrt(static_cast<float>(head_dim));

void fill(const auto& view, std::uint32_t seed) {
    using value = std::remove_cvref_t<decltype(view(0, 0, 0))>;
    for (index_t h = 0; h < view.extent(0); ++h) {
        for (index_t t = 0; t < view.extent(1); ++t) {
            for (index_t d = 0; d < view.extent(2); ++d) {
                seed = seed * 1664525u + 1013904223u;
                view(h, t, d) =
                    element_traits<value>::from_float(static_cast<float>(seed >> 8) / 8388608 - 1);
            }
        }
    }
}

void compute(ggml_context* context, ggml_tensor* out) {
    ggml_cgraph* graph = ggml_new_graph(context);
    ggml_build_forward_expand(graph, out);
    ggml_graph_compute_with_ctx(context, graph, 1);
}

// The first `kept` tokens of a cache whose tokens are axis `axis`.
ggml_tensor* survivors(ggml_context* context, ggml_tensor* cache, int axis) {
    int64_t ne[] = {cache->ne[0], cache->ne[1], cache->ne[2]};
    ne[axis] = kept;
    return ggml_view_3d(context, cache, ne[0], ne[1], ne[2], cache->nb[1], cache->nb[2], 0);
}

// What ggml wrote, [head_dim, q_heads] from flash attention, against kvtrim's [q_heads, 1, head_dim].
float distance(const ggml_tensor* got, const std::vector<float>& expected) {
    const auto* values = static_cast<const float*>(got->data);
    float worst = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
        worst = std::max(worst, std::abs(values[i] - expected[i]));
    }
    return worst;
}

// The cache and queries of a case: [head_dim, tokens, kv_heads], V also transposed.
struct tensors {
    ggml_tensor *k, *v, *observed, *q;

    tensors(ggml_context* c, ggml_type type, bool is_transposed)
        : k(ggml_new_tensor_3d(c, type, head_dim, tokens, kv_heads)),
          v(is_transposed ? ggml_new_tensor_3d(c, type, tokens, head_dim, kv_heads)
                          : ggml_new_tensor_3d(c, type, head_dim, tokens, kv_heads)),
          observed(ggml_new_tensor_3d(c, GGML_TYPE_F32, head_dim, window, q_heads)),
          q(ggml_new_tensor_3d(c, GGML_TYPE_F32, head_dim, 1, q_heads)) {}
};

// Cuts the cache and compares ggml's attention over it with kvtrim's over the survivors, read before they move.
template <class Cache>
status cut_and_compare(ggml_context* context, const tensors& t, const Cache& keys, const Cache& values,
                       bool is_transposed, float& worst) {
    strided<float, 3> queries{nullptr, {0, 0, 0}}, query = queries;
    if (const status s = view_ggml(*t.observed, queries); !s.ok()) { return s; }
    if (const status s = view_ggml(*t.q, query); !s.ok()) { return s; }
    fill(queries, 3);
    fill(query, 4);

    // An operator over one tensor needs heads of one length: snapkv, not ada_snapkv.
    const eviction_request request{.budget = per_head(kept),
                                   .protect = {.sink_tokens = 4, .window_tokens = window}};
    keep_plan plan;
    growing_workspace memory;
    if (const status s = snapkv().plan(layer(keys).with_queries(queries), request, plan, memory); !s.ok()) {
        return s;
    }

    std::vector<float> own_k(static_cast<std::size_t>(kv_heads * kept * head_dim)), own_v(own_k.size());
    for (index_t h = 0; h < kv_heads; ++h) {
        for (index_t i = 0; i < kept; ++i) {
            const index_t token = plan.row(h)[static_cast<std::size_t>(i)];
            const index_t at = (h * kept + i) * head_dim;
            load_rows(keys, h, token, 1, own_k.data() + at);
            load_rows(values, h, token, 1, own_v.data() + at);
        }
    }
    const strided own_keys(own_k.data(), {kv_heads, kept, head_dim});
    const strided own_values(own_v.data(), {kv_heads, kept, head_dim});
    std::vector<float> expected(static_cast<std::size_t>(q_heads * head_dim));
    const strided out(expected.data(), {q_heads, 1, head_dim});
    const auto survivors_of_both = layer(own_keys, own_values).with_queries(query);
    if (const status s = ragged_attention(survivors_of_both, {}, out, {}, memory); !s.ok()) { return s; }

    if (const status s = compact_in_place(keys, values, plan); !s.ok()) { return s; }
    ggml_tensor* few_k = survivors(context, t.k, 1);
    ggml_tensor* few_v = survivors(context, t.v, is_transposed ? 0 : 1);
    ggml_tensor* got = nullptr;
    if (is_transposed) {
        ggml_tensor* logits = ggml_mul_mat(context, few_k, t.q);
        got = ggml_mul_mat(context, few_v, ggml_soft_max_ext(context, logits, nullptr, scale, 0));
    } else {
        got = ggml_flash_attn_ext(context, t.q, few_k, few_v, nullptr, scale, 0, 0);
    }
    compute(context, got);
    worst = distance(got, expected);
    return {};
}

status run_f16(ggml_context* context, bool is_transposed, float& worst) {
    const tensors t(context, GGML_TYPE_F16, is_transposed);
    strided<f16, 3> keys{nullptr, {0, 0, 0}}, values = keys;
    const ggml_axes v_axes = is_transposed ? ggml_axes::transposed() : ggml_axes::attended();
    if (const status s = view_ggml(*t.k, keys); !s.ok()) { return s; }
    if (const status s = view_ggml(*t.v, values, v_axes); !s.ok()) { return s; }
    fill(keys, 1);
    fill(values, 2);
    return cut_and_compare(context, t, keys, values, is_transposed, worst);
}

status run_q8_0(ggml_context* context, float& worst) {
    const tensors t(context, GGML_TYPE_Q8_0, false);
    ggml_rows<block_q8_0> keys(nullptr, {0, 0, 0}, {0, 0}), values = keys;
    if (const status s = view_ggml(*t.k, keys); !s.ok()) { return s; }
    if (const status s = view_ggml(*t.v, values); !s.ok()) { return s; }
    std::uint32_t seed = 1;
    for (ggml_tensor* tensor : {t.k, t.v}) {
        std::vector<float> floats(static_cast<std::size_t>(kv_heads * tokens * head_dim));
        fill(strided(floats.data(), {kv_heads, tokens, head_dim}), seed++);
        ggml_quantize_chunk(GGML_TYPE_Q8_0, floats.data(), tensor->data, 0, kv_heads * tokens, head_dim,
                            nullptr);
    }
    return cut_and_compare(context, t, keys, values, false, worst);
}

} // namespace

int main() {
    ggml_cpu_init();
    constexpr float tolerance = 2e-3f; // ggml sums f16 values in f16, and rounds queries to blocks for q8_0
    const char* const names[] = {"flash_attn_ext, f16", "mul_mat, transposed V, f16", "flash_attn_ext, q8_0"};
    bool all_equal = true;
    for (int i = 0; i < 3; ++i) {
        ggml_context* context = ggml_init({16u << 20, nullptr, false});
        float worst = 0;
        const status s = i < 2 ? run_f16(context, i == 1, worst) : run_q8_0(context, worst);
        ggml_free(context);
        if (!s.ok()) { return std::puts(s.what()), 1; }
        std::printf("%s: %d of %d tokens, at most %.2g from kvtrim's attention\n", names[i],
                    static_cast<int>(kept), static_cast<int>(tokens), static_cast<double>(worst));
        all_equal = all_equal && worst < tolerance;
    }
    return all_equal ? 0 : 1;
}
