// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// A framework's tensors through DLPack: a batch [batch, kv_heads, tokens, head_dim] of f16 comes in, each sequence is cut in
// the framework's own memory, and a narrower tensor over the same memory goes back. kvtrim never owns it.
#include "numbers.hpp"

#include <kvtrim/adapter/dlpack.hpp>
#include <kvtrim/compact/compact_in_place.hpp>
#include <kvtrim/policy/baselines.hpp>

#include <cstdio>
#include <numeric>
#include <utility>
#include <vector>

namespace {

// What torch.utils.dlpack.to_dlpack gives: a tensor with a deleter, here of 16-bit floats with numbered values.
struct framework_tensor {
    std::vector<kvtrim::f16> data;
    std::vector<std::int64_t> shape;
    DLManagedTensor managed = {};

    explicit framework_tensor(std::vector<std::int64_t> extents) : shape(std::move(extents)) {
        const auto count = std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>{});
        for (const float x : numbers(count, 1)) {
            data.push_back(kvtrim::element_traits<kvtrim::f16>::from_float(x));
        }
        managed.dl_tensor = {data.data(),
                             {kDLCPU, 0},
                             static_cast<int>(shape.size()),
                             {kDLFloat, 16, 1},
                             shape.data(),
                             nullptr,
                             0};
        managed.manager_ctx = this;
        managed.deleter = [](DLManagedTensor* self) {
            delete static_cast<framework_tensor*>(self->manager_ctx);
        };
    }
    framework_tensor(const framework_tensor&) = delete;
    framework_tensor& operator=(const framework_tensor&) = delete;
};

} // namespace

int main() {
    constexpr kvtrim::index_t batch = 2, kv_heads = 3, tokens = 100, head_dim = 8, kept = 25;
    DLManagedTensor* cache = &(new framework_tensor({batch, kv_heads, tokens, head_dim}))->managed;
    const auto* bytes = static_cast<const kvtrim::f16*>(cache->dl_tensor.data);
    const std::vector<kvtrim::f16> before(bytes, bytes + batch * kv_heads * tokens * head_dim);

    kvtrim::growing_workspace memory;
    bool is_right = true;
    for (kvtrim::index_t sequence = 0; sequence < batch; ++sequence) {
        kvtrim::strided<kvtrim::f16, 3> keys = kvtrim::no_tensor<kvtrim::f16>;
        kvtrim::keep_plan plan;
        kvtrim::status s = kvtrim::view_dlpack(cache->dl_tensor, keys, sequence);
        if (s.ok()) {
            s = kvtrim::key_diff().plan(kvtrim::layer(keys),
                                        {.budget = kvtrim::per_head(kept), .protect = {.sink_tokens = 4}},
                                        plan, memory);
        }
        if (s.ok()) { s = kvtrim::compact_in_place(keys, plan); }
        if (!s.ok()) { return std::puts(s.what()), 1; }
        for (kvtrim::index_t h = 0; h < kv_heads; ++h) {
            for (kvtrim::index_t i = 0; i < kept; ++i) {
                const auto t = plan.row(h)[static_cast<std::size_t>(i)];
                const auto first =
                    static_cast<std::size_t>(((sequence * kv_heads + h) * tokens + t) * head_dim);
                for (kvtrim::index_t d = 0; d < head_dim; ++d) {
                    is_right =
                        is_right && keys(h, i, d).bits == before[first + static_cast<std::size_t>(d)].bits;
                }
            }
        }
    }

    // What goes back: the same memory with the old strides and fewer tokens.
    std::int64_t shape[] = {batch, kv_heads, kept, head_dim};
    std::int64_t strides[] = {kv_heads * tokens * head_dim, tokens * head_dim, head_dim, 1};
    DLTensor narrower = cache->dl_tensor;
    narrower.shape = shape;
    narrower.strides = strides;
    kvtrim::strided<const kvtrim::f16, 3> last = kvtrim::no_tensor<const kvtrim::f16>;
    is_right = is_right && kvtrim::view_dlpack(narrower, last, batch - 1).ok() && last.extent(1) == kept;

    std::printf("%d of %d tokens stay in each sequence, in the framework's memory: %s\n",
                static_cast<int>(kept), static_cast<int>(tokens), is_right ? "right" : "WRONG");
    cache->deleter(cache);
    return is_right ? 0 : 1;
}
