// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// ggml's CPU flash attention (f16 keys and values, f32 queries), which reads keys and values once per query head: one
// decoded token over a whole layer, and the prefill segment that prefill.cpp measures.
// Checked: the first query head against a loop in double.

#include "../layer.hpp"
#include "peers.hpp"

#include <ggml-cpu.h>
#include <ggml.h>

#include <cmath>
#include <cstring>
#include <stdexcept>

namespace bench {

namespace {

// Attention of queries [heads * group, queries, head_dim], the last of which sees all `tokens` keys.
class flash_attention {
  public:
    flash_attention(index_t kv_heads_used, index_t tokens, index_t queries)
        : tokens_(tokens), queries_(queries), heads_(kv_heads_used * group),
          context_(ggml_init({.mem_size = bytes_needed(), .mem_buffer = nullptr, .no_alloc = false})) {
        q_ = ggml_new_tensor_3d(context_, GGML_TYPE_F32, head_dim, queries, heads_);
        k_ = ggml_new_tensor_3d(context_, GGML_TYPE_F16, head_dim, tokens, kv_heads_used);
        v_ = ggml_new_tensor_3d(context_, GGML_TYPE_F16, head_dim, tokens, kv_heads_used);
        fill<float>(q_, 3);
        fill<kvtrim::f16>(k_, 1);
        fill<kvtrim::f16>(v_, 2);
        if (queries > 1) { mask_ = causal_mask(); }
        out_ = ggml_flash_attn_ext(context_, q_, k_, v_, mask_,
                                   1.0f / std::sqrt(static_cast<float>(head_dim)), 0, 0);
        graph_ = ggml_new_graph(context_);
        ggml_build_forward_expand(graph_, out_);
    }
    ~flash_attention() { ggml_free(context_); }
    flash_attention(const flash_attention&) = delete;
    flash_attention& operator=(const flash_attention&) = delete;

    void run() {
        ggml_cplan plan = ggml_graph_plan(graph_, 1, nullptr);
        work_.resize(plan.work_size);
        plan.work_data = work_.data();
        if (ggml_graph_compute(graph_, &plan) != GGML_STATUS_SUCCESS) {
            throw std::runtime_error("ggml failed");
        }
    }

    // The last query of head 0; out_ is [head_dim, heads, queries] in ggml's order, the first dimension innermost.
    [[nodiscard]] bool is_right() const {
        const auto* q = static_cast<const float*>(q_->data) + (queries_ - 1) * head_dim;
        const auto* k = static_cast<const kvtrim::f16*>(k_->data);
        const auto* v = static_cast<const kvtrim::f16*>(v_->data);
        const auto read = [](kvtrim::f16 x) {
            return static_cast<double>(kvtrim::element_traits<kvtrim::f16>::to_float(x));
        };
        double sum = 0, expected[head_dim] = {};
        for (index_t t = 0; t < tokens_; ++t) {
            double logit = 0;
            for (index_t d = 0; d < head_dim; ++d) {
                logit += static_cast<double>(q[d]) * read(k[t * head_dim + d]);
            }
            const double weight = std::exp(logit / std::sqrt(static_cast<double>(head_dim)));
            sum += weight;
            for (index_t d = 0; d < head_dim; ++d) { expected[d] += weight * read(v[t * head_dim + d]); }
        }
        const auto* out = static_cast<const float*>(out_->data) + (queries_ - 1) * heads_ * head_dim;
        double distance = 0;
        for (index_t d = 0; d < head_dim; ++d) {
            distance = std::max(distance, std::abs(static_cast<double>(out[d]) - expected[d] / sum));
        }
        return distance < 2e-3;
    }

  private:
    [[nodiscard]] std::size_t bytes_needed() const {
        const index_t floats = 2 * heads_ * queries_ * head_dim; // queries and output
        const index_t halves = 2 * heads_ / group * tokens_ * head_dim + tokens_ * queries_;
        return static_cast<std::size_t>(4 * floats + 2 * halves) + (4 << 20);
    }
    template <class T>
    static void fill(ggml_tensor* to, std::uint32_t seed) {
        const auto elements = random_elements<T>(ggml_nelements(to), seed);
        std::memcpy(to->data, elements.data(), elements.size() * sizeof(T));
    }
    [[nodiscard]] ggml_tensor* causal_mask() {
        ggml_tensor* mask = ggml_new_tensor_2d(context_, GGML_TYPE_F16, tokens_, queries_);
        auto* row = static_cast<kvtrim::f16*>(mask->data);
        for (index_t i = 0; i < queries_; ++i, row += tokens_) {
            const index_t visible = tokens_ - queries_ + i + 1;
            std::fill(row, row + visible, kvtrim::element_traits<kvtrim::f16>::from_float(0));
            std::fill(row + visible, row + tokens_,
                      kvtrim::element_traits<kvtrim::f16>::from_float(-INFINITY));
        }
        return mask;
    }

    index_t tokens_, queries_, heads_;
    ggml_context* context_;
    ggml_tensor *q_ = nullptr, *k_ = nullptr, *v_ = nullptr, *mask_ = nullptr, *out_ = nullptr;
    ggml_cgraph* graph_ = nullptr;
    std::vector<std::uint8_t> work_;
};

void measure(benchmark::State& state, flash_attention& attention, double factor, row_facts facts) {
    attention.run();
    if (!attention.is_right()) { return state.SkipWithError("ggml's attention differs from the loop's"); }
    for (auto _ : state) {
        scaled_iteration(state, factor, [&] { attention.run(); });
    }
    facts.level = "ggml's";
    describe(state, std::move(facts));
}

void decode(benchmark::State& state) {
    static std::map<index_t, std::unique_ptr<flash_attention>> made;
    auto& attention = made[state.range(0)];
    if (attention == nullptr) { attention = std::make_unique<flash_attention>(kv_heads, state.range(0), 1); }
    measure(state, *attention, 1,
            {.beside = "decode/attention_f16/tokens:" + std::to_string(state.range(0))});
}

// The same two KV heads and the same segment of 512 queries as prefill/dense_f32.
void prefill(benchmark::State& state) {
    constexpr index_t used_heads = 2, segment = 512;
    const index_t tokens = state.range(0), first = tokens / 2;
    static std::map<index_t, std::unique_ptr<flash_attention>> made;
    auto& attention = made[tokens];
    if (attention == nullptr) {
        attention = std::make_unique<flash_attention>(used_heads, first + segment, segment);
    }
    const auto pairs_of = [](index_t begin, index_t end) { // of queries [begin, end) and the keys they see
        return 0.5 * static_cast<double>((end - begin) * (begin + end + 1));
    };
    const double factor =
        static_cast<double>(kv_heads) / used_heads * pairs_of(0, tokens) / pairs_of(first, first + segment);
    measure(state, *attention, factor,
            {.note = "from the segment in the middle, 2 of 8 KV heads",
             .beside = "prefill/dense_f32/tokens:" + std::to_string(tokens) + "/threads:1"});
}

} // namespace

void add_ggml_rows() {
    const auto add = [](const char* name, auto* row, std::initializer_list<index_t> lengths) {
        auto* b = benchmark::RegisterBenchmark(name, row)->ArgName("tokens")->Unit(benchmark::kMillisecond);
        for (const index_t tokens : lengths) { b->Arg(tokens); }
        b->UseManualTime();
    };
    add("ggml/decode/flash_attn_f16", decode, {32768, 131072});
    add("ggml/prefill/flash_attn_f16", prefill, {8192, 32768});
}

} // namespace bench
