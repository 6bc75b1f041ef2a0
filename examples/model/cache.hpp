// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// A layer's KV cache in which every KV head has its own number of rows, and attention over it.
//
// Rows lie in flat memory, head after head with room behind each (kvtrim::flat_cache), as f32, f16 or ggml's q8_0 blocks. New
// tokens get a row in every head; a cut keeps the rows that a plan names and gives the memory of the others back to the
// system. Keys keep the rotation of their original position, so evicting some does not move the others.

#include "mapped_memory.hpp"
#include "model.hpp"

#include <kvtrim/compact/flat_cache.hpp>
#include <kvtrim/policy/critiprefill.hpp>
#include <kvtrim/prefill/layer_fusion.hpp>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string_view>
#include <vector>

namespace lm {

enum class cache_format : std::uint8_t { f32, f16, q8_0 };

[[nodiscard]] std::string_view name_of(cache_format format);

// Requires head_dim to be a multiple of 32 for q8_0.
[[nodiscard]] index_t row_bytes(cache_format format, index_t head_dim);

// The keys or the values of a layer, of any format, as kvtrim reads and moves them (cache/row_source.hpp). What it is made of
// must outlive it.
class cache_rows {
  public:
    static constexpr index_t all = std::numeric_limits<index_t>::max();

    // The first rows of each head of a flat cache, at most `most`.
    cache_rows(cache_format format, const std::byte* data, const kvtrim::flat_cache& table, index_t head_dim,
               index_t most = all)
        : format_(format), data_(data), table_(&table), heads_(table.kv_heads()), rows_(most),
          head_dim_(head_dim) {}
    // Floats, `count` tokens from `first` on.
    cache_rows(const head_tensor& t, index_t first, index_t count)
        : format_(cache_format::f32), data_(reinterpret_cast<const std::byte*>(t.data())), heads_(t.heads()),
          first_(first), rows_(count), head_stride_(t.tokens()), head_dim_(t.head_dim()) {}

    // `count` heads from `first` on, of a flat cache.
    [[nodiscard]] cache_rows heads(index_t first, index_t count) const {
        cache_rows some = *this;
        some.first_head_ += first;
        some.heads_ = count;
        return some;
    }

    [[nodiscard]] index_t extent(std::size_t r) const {
        return r == 0 ? heads_ : r == 2 ? head_dim_ : longest();
    }
    [[nodiscard]] index_t rows(index_t head) const {
        return table_ == nullptr ? rows_ : std::min(rows_, table_->rows(first_head_ + head));
    }
    [[nodiscard]] index_t row_bytes() const { return lm::row_bytes(format_, head_dim_); }
    void load_rows(index_t head, index_t first, index_t count, float* tile) const;

  private:
    [[nodiscard]] index_t longest() const {
        index_t longest = 0;
        for (index_t h = 0; h < heads_; ++h) { longest = std::max(longest, rows(h)); }
        return longest;
    }

    cache_format format_;
    const std::byte* data_;
    const kvtrim::flat_cache* table_ = nullptr;
    index_t first_head_ = 0;
    index_t heads_;
    index_t first_ = 0;
    index_t rows_;
    index_t head_stride_ = 0; // in rows
    index_t head_dim_;
};

// A prefill whose tokens attend the critical blocks of the cache alone (CritiPrefill): what is asked for, and its state. A value
// for each prompt.
struct block_pruning {
    static constexpr index_t segment_tokens =
        512; // a chunk of the prompt is a multiple of it, but for the last one

    decltype(kvtrim::critiprefill()) policy = {}; // how blocks are chosen; its segments are those above
    kvtrim::layer_fusion fusion = {};
    kvtrim::prune_plan plan = {};
    double pairs = 0; // of queries and keys that were attended
    double dense_pairs = 0;

    // Options by name (policy_options.hpp) where they are not CritiPrefill's. budget_tokens: of cached tokens per KV head and
    // segment. Throws std::invalid_argument for what is no option or no value of one.
    explicit block_pruning(index_t budget_tokens, std::string_view options = {});
};

class kv_cache {
  public:
    // Throws std::invalid_argument for heads that the format does not take.
    kv_cache(index_t kv_heads, index_t head_dim, cache_format format);

    // The rows that a plan keeps. Throws std::invalid_argument unless it was made for keys and values of that shape.
    kv_cache(const cache_rows& keys, const cache_rows& values, const kvtrim::keep_plan& plan,
             cache_format format = cache_format::f32);

    [[nodiscard]] index_t kv_heads() const { return table_.kv_heads(); }
    [[nodiscard]] index_t rows(index_t kv_head) const { return table_.rows(kv_head); }
    [[nodiscard]] index_t total_rows() const { return table_.total_rows(); }

    // The first rows of each head, as a policy sees them. Valid until the cache changes.
    [[nodiscard]] cache_rows keys(index_t most = cache_rows::all) const { return view(keys_, most); }
    [[nodiscard]] cache_rows values(index_t most = cache_rows::all) const { return view(values_, most); }

    // Makes room for so many more tokens at once.
    void reserve(index_t tokens);

    // New tokens at the end of every head; keys and values [kv_heads, new_tokens, head_dim].
    void append(const head_tensor& keys, const head_tensor& values);

    // Keeps the rows that the plan names, with room for `room` tokens, and gives the others' memory back.
    // Throws std::invalid_argument unless the plan was made for this cache.
    void cut(const kvtrim::keep_plan& plan, index_t room = 0);

    // Attention of new tokens, which are already the last rows of every head, over all rows and, causally, themselves.
    // queries [q_heads, new_tokens, head_dim]; returns [new_tokens, q_heads * head_dim].
    [[nodiscard]] matrix attend(const head_tensor& queries) const;

    // The same, for a chunk of a prompt, over the blocks that `pruning` chooses. All heads must have all of the prompt's tokens so
    // far. Throws std::invalid_argument if kvtrim refuses, for example a budget below its protected blocks.
    [[nodiscard]] matrix attend(const head_tensor& queries, index_t layer, bool ends_prompt,
                                block_pruning& pruning) const;

    // Keys and values of the rows, and where each head's begin.
    [[nodiscard]] std::size_t bytes() const;
    // Memory that they take, with the room.
    [[nodiscard]] std::size_t held_bytes() const { return keys_.size() + values_.size(); }

  private:
    [[nodiscard]] cache_rows view(const page_memory& memory, index_t most) const {
        return {format_, memory.data(), table_, head_dim_, most};
    }
    [[nodiscard]] std::size_t bytes_of(index_t rows) const {
        return static_cast<std::size_t>(rows * row_bytes(format_, head_dim_));
    }
    // attend() for a few queries: queries and attended [q_heads, new_tokens, head_dim].
    void attend_few(const kvtrim::strided<const float, 3>& queries,
                    const kvtrim::strided<float, 3>& attended) const;
    // use(keys, values) for the rows of neighbouring heads that are alike, as attention over blocks reads them fastest.
    template <class Use>
    void with_rows_of(index_t first_head, index_t heads, index_t stride, const Use& use) const;
    // How far heads begin from each other, if all have as many rows and begin equally far; else 0.
    [[nodiscard]] index_t common_stride() const;
    // Divides memory of `rows` rows anew, more or less than there was.
    void spread(index_t rows);

    index_t head_dim_;
    cache_format format_;
    kvtrim::flat_cache table_;
    page_memory keys_;
    page_memory values_;
};

// Attention of the newest tokens of a cache in which every head has all of them: queries [q_heads, new, head_dim], keys and
// values [kv_heads, tokens, head_dim]. Returns [new, q_heads * head_dim].
[[nodiscard]] matrix dense_attention(const kvtrim::strided<const float, 3>& queries,
                                     const kvtrim::strided<const float, 3>& keys,
                                     const kvtrim::strided<const float, 3>& values);

// Everything stays.
[[nodiscard]] kv_cache whole_cache(const attention_inputs& layer);

// Runs new tokens at positions start_position .. and appends them to the caches, one per layer.
// Throws std::invalid_argument unless there is a cache per layer.
matrix decode(const llama_model& model, std::span<kv_cache> caches, std::span<const token_id> tokens,
              index_t start_position, logit_rows rows = logit_rows::all);

} // namespace lm
