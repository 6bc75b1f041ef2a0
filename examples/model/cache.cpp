// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#include "cache.hpp"

#include "policy_options.hpp"
#include "require.hpp"
#include "threads.hpp"

#include <kvtrim/compact/compact_in_place.hpp>
#include <kvtrim/decode/ragged_attention.hpp>
#include <kvtrim/kernels/convert.hpp>
#include <kvtrim/kernels/quant_blocks.hpp>
#include <kvtrim/prefill/block_sparse_attention.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

namespace lm {
namespace {

using kvtrim::block_q8_0;
using kvtrim::f16;

// Scratch of attention, which stays between calls.
kvtrim::growing_workspace& scratch() {
    static thread_local kvtrim::growing_workspace memory;
    return memory;
}

// The largest magnitude becomes 127.
void encode(const float* from, index_t count, block_q8_0* to) {
    for (index_t b = 0; b < count / 32; ++b, from += 32) {
        const float largest = Eigen::Map<const Eigen::Array<float, 32, 1>>(from).abs().maxCoeff();
        const float scale = largest / 127;
        const float inverse = scale > 0 ? 1 / scale : 0;
        to[b].scale = kvtrim::element_traits<f16>::from_float(scale);
        for (std::size_t i = 0; i < 32; ++i) {
            to[b].codes[i] = static_cast<std::int8_t>(std::lround(from[i] * inverse));
        }
    }
}

void write_row(cache_format format, const float* from, index_t count, std::byte* to) {
    switch (format) {
    case cache_format::f32:
        std::memcpy(to, from, static_cast<std::size_t>(count) * 4);
        break;
    case cache_format::f16:
        kvtrim::kernels::narrow(from, count, reinterpret_cast<f16*>(to));
        break;
    case cache_format::q8_0:
        encode(from, count, reinterpret_cast<block_q8_0*>(to));
        break;
    }
}

// Rows of a flat cache, to be moved as bytes.
struct byte_rows {
    std::byte* data;
    const kvtrim::flat_cache& table;
    index_t head_dim;
    index_t size; // of a row

    [[nodiscard]] index_t extent(std::size_t r) const { return r == 2 ? head_dim : table.extent(r); }
    [[nodiscard]] index_t rows(index_t head) const { return table.rows(head); }
    void move_row(index_t head, index_t from, index_t to) const {
        move(table.row(head, from), table.row(head, to), 1);
    }
    void move(index_t from, index_t to, index_t count) const {
        std::memmove(data + to * size, data + from * size, static_cast<std::size_t>(count * size));
    }
};

// Heads side by side: [q_heads, tokens, head_dim] inside the engine's own [tokens, q_heads * head_dim].
kvtrim::strided<float, 3> heads_of(matrix& attended, index_t q_heads) {
    const index_t head_dim = attended.cols() / q_heads;
    return {attended.data(), {q_heads, attended.rows(), head_dim}, {head_dim, attended.cols(), 1}};
}

template <class T>
kvtrim::strided<T, 3> heads_between(const kvtrim::strided<T, 3>& all, index_t first, index_t count) {
    return {all.data_handle() + first * all.stride(0),
            {count, all.extent(1), all.extent(2)},
            {all.stride(0), all.stride(1), all.stride(2)}};
}

// The newest queries over a cache in which every head has `rows` rows; attended [new, q_heads, head_dim].
template <class Queries, class Rows>
void attend_dense(const Queries& queries, const Rows& keys, const Rows& values, index_t rows,
                  const kvtrim::strided<float, 3>& attended) {
    constexpr index_t shared_out = 128; // a segment is what a thread takes
    const index_t count = kvtrim::extent(queries, 1), cached = rows - count;
    // A segment begins at a multiple of its length: the cached rows are one block if nothing finer fits.
    const index_t segment = cached % shared_out == 0 ? shared_out : cached;
    kvtrim::prune_plan plan;
    require(kvtrim::plan_dense({segment, segment, cached, rows}, kvtrim::extent(keys, 0), plan));
    const index_t work = kvtrim::extent(queries, 0) * count * rows * kvtrim::extent(keys, 2);
    require(kvtrim::block_sparse_attention(kvtrim::layer(keys, values).with_queries(queries), plan, {},
                                           attended, {}, scratch(), threads_for(work)));
}

template <class Queries, class Rows>
void attend_ragged(const Queries& queries, const Rows& keys, const Rows& values,
                   const kvtrim::strided<float, 3>& attended) {
    const index_t work = kvtrim::extent(queries, 0) * kvtrim::extent(queries, 1) * kvtrim::extent(keys, 1) *
                         kvtrim::extent(keys, 2);
    require(kvtrim::ragged_attention(kvtrim::layer(keys, values).with_queries(queries), {}, attended, {},
                                     scratch(), threads_for(work)));
}

} // namespace

std::string_view name_of(cache_format format) {
    return format == cache_format::f32 ? "f32" : format == cache_format::f16 ? "f16" : "q8_0";
}

index_t row_bytes(cache_format format, index_t head_dim) {
    return format == cache_format::f32   ? head_dim * 4
           : format == cache_format::f16 ? head_dim * 2
                                         : head_dim / 32 * static_cast<index_t>(sizeof(block_q8_0));
}

void cache_rows::load_rows(index_t head, index_t first, index_t count, float* tile) const {
    const index_t row =
        (table_ == nullptr ? head * head_stride_ + first_ : table_->row(first_head_ + head, 0)) + first;
    const std::byte* const from = data_ + row * row_bytes();
    const index_t elements = count * head_dim_;
    switch (format_) {
    case cache_format::f32:
        std::memcpy(tile, from, static_cast<std::size_t>(elements) * 4);
        break;
    case cache_format::f16:
        kvtrim::kernels::widen(reinterpret_cast<const f16*>(from), elements, tile);
        break;
    case cache_format::q8_0:
        kvtrim::kernels::decode_blocks(reinterpret_cast<const block_q8_0*>(from), elements / 32, tile);
        break;
    }
}

kv_cache::kv_cache(index_t kv_heads, index_t head_dim, cache_format format)
    : head_dim_(head_dim), format_(format), table_(kv_heads) {
    if (format == cache_format::q8_0 && head_dim % 32 != 0) {
        throw std::invalid_argument("a q8_0 cache needs heads of a multiple of 32 elements");
    }
}

kv_cache::kv_cache(const cache_rows& keys, const cache_rows& values, const kvtrim::keep_plan& plan,
                   cache_format format)
    : kv_cache(plan.rows(), keys.extent(2), format) {
    require(kvtrim::check_plan(keys, plan));
    require(kvtrim::check_plan(values, plan));
    table_ = kvtrim::flat_cache(plan);
    std::vector<float> row(static_cast<std::size_t>(head_dim_));
    for (const auto& [from, to] : {std::pair(&keys, &keys_), std::pair(&values, &values_)}) {
        to->resize(bytes_of(plan.total_tokens()));
        std::byte* next = to->data();
        for (index_t h = 0; h < plan.rows(); ++h) {
            for (const std::int32_t kept : plan.row(h)) {
                from->load_rows(h, kept, 1, row.data());
                write_row(format_, row.data(), head_dim_, next);
                next += bytes_of(1);
            }
        }
    }
}

index_t kv_cache::common_stride() const {
    if (kv_heads() < 2) { return std::max<index_t>(1, table_.capacity()); }
    const index_t stride = table_.row(1, 0) - table_.row(0, 0);
    for (index_t h = 1; h < kv_heads(); ++h) {
        if (rows(h) != rows(0) || table_.row(h, 0) != h * stride) { return 0; }
    }
    return stride;
}

void kv_cache::spread(index_t rows) {
    const std::size_t size = bytes_of(rows);
    if (size > keys_.size()) {
        keys_.resize(size);
        values_.resize(size);
    }
    require(table_.spread(rows, [&](index_t from, index_t to, index_t count) {
        for (page_memory* memory : {&keys_, &values_}) {
            byte_rows{memory->data(), table_, head_dim_, row_bytes(format_, head_dim_)}.move(from, to, count);
        }
    }));
    keys_.resize(size);
    values_.resize(size);
}

void kv_cache::reserve(index_t tokens) {
    if (table_.room() < tokens) { spread(std::max(table_.capacity(), total_rows() + tokens * kv_heads())); }
}

void kv_cache::append(const head_tensor& keys, const head_tensor& values) {
    const index_t count = keys.tokens();
    kvtrim::status done = table_.append(count);
    if (done.code() == kvtrim::errc::no_room) {
        spread(done.needed());
        done = table_.append(count);
    }
    require(done);
    for (const auto& [from, to] : {std::pair(&keys, &keys_), std::pair(&values, &values_)}) {
        for (index_t h = 0; h < kv_heads(); ++h) {
            const float* row = from->data() + h * count * head_dim_;
            for (index_t t = rows(h) - count; t < rows(h); ++t, row += head_dim_) {
                write_row(format_, row, head_dim_, to->data() + bytes_of(table_.row(h, t)));
            }
        }
    }
}

void kv_cache::cut(const kvtrim::keep_plan& plan, index_t room) {
    const index_t size = row_bytes(format_, head_dim_);
    require(kvtrim::compact_in_place(byte_rows{keys_.data(), table_, head_dim_, size},
                                     byte_rows{values_.data(), table_, head_dim_, size}, plan));
    require(table_.compact(plan));
    spread(total_rows() + room * kv_heads());
}

matrix kv_cache::attend(const head_tensor& queries) const {
    constexpr index_t few_queries = 8; // for more, products of matrices are worth their preparation
    const index_t count = queries.tokens();
    matrix all(count, queries.heads() * head_dim_);
    const auto attended = heads_of(all, queries.heads());
    const auto q = rows_of(queries);
    if (count <= few_queries) {
        attend_few(q, attended);
        return all;
    }
    // All heads at once where they are alike, else one after the other.
    const index_t group = queries.heads() / kv_heads(), stride = common_stride();
    const index_t heads = stride > 0 ? kv_heads() : 1;
    for (index_t h = 0; h < kv_heads(); h += heads) {
        const auto own_queries = heads_between(q, h * group, heads * group);
        const auto own_attended = heads_between(attended, h * group, heads * group);
        with_rows_of(h, heads, stride, [&](const auto& own_keys, const auto& own_values) {
            attend_dense(own_queries, own_keys, own_values, rows(h), own_attended);
        });
    }
    return all;
}

block_pruning::block_pruning(index_t budget_tokens, std::string_view options) {
    kvtrim::pruning_options& sizes = policy.options;
    sizes.segment_tokens = segment_tokens;
    sizes.budget_tokens = budget_tokens;
    sizes.dense_below_tokens = 0; // segments within the budget attend everything anyhow
    if (options.empty()) { return; }
    policy_options given(options);
    given.set("sink_blocks", sizes.sink_blocks);
    given.set("local_blocks", sizes.local_blocks);
    given.set("block_tokens", sizes.block_tokens);
    given.set("scale", policy.criticality.scale);
    given.require_known();
}

matrix kv_cache::attend(const head_tensor& queries, index_t layer, bool ends_prompt,
                        block_pruning& pruning) const {
    const index_t count = queries.tokens(), stride = common_stride();
    if (stride == 0) { throw std::invalid_argument("a pruned prefill needs a cache that was not cut"); }
    matrix all(count, queries.heads() * head_dim_);
    const kvtrim::prefill_chunk chunk{layer, rows(0) - count, ends_prompt};
    const auto q = rows_of(queries);
    with_rows_of(0, kv_heads(), stride, [&](const auto& own_keys, const auto& own_values) {
        const kvtrim::openmp_executor threads;
        require(pruning.policy.plan(q, own_keys, chunk, pruning.fusion, pruning.plan, scratch(), threads));
        require(kvtrim::block_sparse_attention(kvtrim::layer(own_keys, own_values).with_queries(q),
                                               pruning.plan, {}, heads_of(all, queries.heads()), {},
                                               scratch(), threads));
    });
    pruning.pairs += pruning.plan.planned_pairs();
    pruning.dense_pairs += pruning.plan.dense_pairs();
    return all;
}

template <class Use>
void kv_cache::with_rows_of(index_t first_head, index_t heads, index_t stride, const Use& use) const {
    if (format_ != cache_format::f32) {
        return use(keys().heads(first_head, heads), values().heads(first_head, heads));
    }
    const auto floats = [&](const page_memory& memory) {
        return kvtrim::strided<const float, 3>(
            reinterpret_cast<const float*>(memory.data()) + table_.row(first_head, 0) * head_dim_,
            {heads, rows(first_head), head_dim_}, {stride * head_dim_, head_dim_, 1});
    };
    use(floats(keys_), floats(values_));
}

void kv_cache::attend_few(const kvtrim::strided<const float, 3>& queries,
                          const kvtrim::strided<float, 3>& attended) const {
    const auto in_place = [&]<class T>(std::type_identity<T>) { // rows that attention reads where they lie
        const auto elements = [&](const page_memory& memory) {
            return kvtrim::flat_rows<const T>(reinterpret_cast<const T*>(memory.data()), table_, head_dim_);
        };
        attend_ragged(queries, elements(keys_), elements(values_), attended);
    };
    switch (format_) {
    case cache_format::f32:
        return in_place(std::type_identity<float>{});
    case cache_format::f16:
        return in_place(std::type_identity<f16>{});
    case cache_format::q8_0:
        return attend_ragged(queries, keys(), values(), attended);
    }
}

std::size_t kv_cache::bytes() const {
    return 2 * bytes_of(total_rows()) + table_.begins().size_bytes();
}

matrix dense_attention(const kvtrim::strided<const float, 3>& queries,
                       const kvtrim::strided<const float, 3>& keys,
                       const kvtrim::strided<const float, 3>& values) {
    matrix all(queries.extent(1), queries.extent(0) * queries.extent(2));
    attend_dense(queries, keys, values, keys.extent(1), heads_of(all, queries.extent(0)));
    return all;
}

kv_cache whole_cache(const attention_inputs& layer) {
    kv_cache cache(layer.keys.heads(), layer.keys.head_dim(), cache_format::f32);
    cache.append(layer.keys, layer.values);
    return cache;
}

matrix decode(const llama_model& model, std::span<kv_cache> caches, std::span<const token_id> tokens,
              index_t start_position, logit_rows rows) {
    if (std::ssize(caches) != model.config.layers) {
        throw std::invalid_argument("decode needs one cache per layer");
    }
    const auto attend = [&](index_t layer, const attention_inputs& inputs) {
        kv_cache& cache = caches[static_cast<std::size_t>(layer)];
        cache.append(inputs.keys, inputs.values);
        return cache.attend(inputs.queries);
    };
    return forward(model, tokens, start_position, attend, rows);
}

} // namespace lm
