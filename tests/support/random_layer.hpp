// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Seeded attention layers whose attention looks like a model's, the same layer in other memory layouts, and
// executors that try to change a result.
//
// Structure: attention sinks on the first tokens, heavy hitters that every query wants, keys that one single query
// wants, neighbours that resemble each other, peaky heads next to flat ones, log-normal value norms.

#include "oracle/reference.hpp"

#include <kvtrim/cache/layer.hpp>
#include <kvtrim/cache/ragged.hpp>
#include <kvtrim/core/eviction_request.hpp>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <thread>
#include <vector>

namespace support {

using kvtrim::index_t;
using view = kvtrim::strided<const float, 3>;

// SplitMix64: the same numbers with every compiler and standard library.
class random {
  public:
    explicit random(std::uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}

    std::uint64_t bits() {
        std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return z ^ (z >> 31);
    }
    // [0, 1)
    double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }
    double normal() {
        double total = -6;
        for (int i = 0; i < 12; ++i) { total += uniform(); }
        return total;
    }
    std::vector<float> normals(index_t count) {
        std::vector<float> values(static_cast<std::size_t>(count));
        for (float& x : values) { x = static_cast<float>(normal()); }
        return values;
    }
    // [low, high], both included
    index_t between(index_t low, index_t high) {
        return low + static_cast<index_t>(bits() % static_cast<std::uint64_t>(high - low + 1));
    }
    bool chance(double probability) { return uniform() < probability; }
    template <class T, std::size_t N>
    T one_of(const T (&choices)[N]) {
        return choices[bits() % N];
    }

  private:
    std::uint64_t state_;
};

struct layer_shape {
    index_t kv_heads = 2;
    index_t group = 2; // query heads per KV head
    index_t tokens = 100;
    index_t head_dim = 16;
    index_t value_dim = 16;
    index_t hidden = 24;
    index_t queries = 8;

    [[nodiscard]] index_t q_heads() const { return kv_heads * group; }
};

inline std::vector<float> zeros(index_t count) {
    return std::vector<float>(static_cast<std::size_t>(count), 0.0f);
}

// One layer, head-major.
struct layer_data {
    layer_shape shape;
    std::vector<float> k, v, q, w;

    [[nodiscard]] view keys() const { return view(k.data(), {shape.kv_heads, shape.tokens, shape.head_dim}); }
    [[nodiscard]] view values() const {
        return view(v.data(), {shape.kv_heads, shape.tokens, shape.value_dim});
    }
    [[nodiscard]] view queries() const {
        return view(q.data(), {shape.q_heads(), shape.queries, shape.head_dim});
    }
    [[nodiscard]] view projection() const {
        return view(w.data(), {shape.q_heads(), shape.value_dim, shape.hidden});
    }
    [[nodiscard]] auto inputs() const {
        return kvtrim::layer(keys(), values()).with_queries(queries()).with_output_projection(projection());
    }

    [[nodiscard]] float* key(index_t head, index_t token) {
        return k.data() + (head * shape.tokens + token) * shape.head_dim;
    }
    [[nodiscard]] float* value(index_t head, index_t token) {
        return v.data() + (head * shape.tokens + token) * shape.value_dim;
    }
};

using inputs = decltype(std::declval<const layer_data&>().inputs());

inline layer_data random_layer(const layer_shape& shape, std::uint64_t seed) {
    random r(seed);
    layer_data layer{shape, zeros(shape.kv_heads * shape.tokens * shape.head_dim),
                     zeros(shape.kv_heads * shape.tokens * shape.value_dim),
                     zeros(shape.q_heads() * shape.queries * shape.head_dim),
                     zeros(shape.q_heads() * shape.value_dim * shape.hidden)};
    const auto dim = static_cast<std::size_t>(shape.head_dim);
    const double unit = 1.0 / std::sqrt(static_cast<double>(shape.head_dim));
    for (index_t g = 0; g < shape.kv_heads; ++g) {
        std::vector<double> wanted(dim); // the direction that every query of the head looks in
        for (double& x : wanted) { x = r.normal(); }
        const double temperature = r.one_of({0.2, 0.7, 1.0, 1.6});
        for (index_t h = g * shape.group; h < (g + 1) * shape.group; ++h) {
            for (index_t i = 0; i < shape.queries; ++i) {
                float* query = layer.q.data() + (h * shape.queries + i) * shape.head_dim;
                for (std::size_t d = 0; d < dim; ++d) {
                    query[d] = static_cast<float>(temperature * (0.6 * wanted[d] + 0.8 * r.normal()));
                }
            }
        }
        std::vector<double> drifting(dim, 0.0); // neighbours resemble each other
        for (index_t t = 0; t < shape.tokens; ++t) {
            const double pull = t < 2 ? 4.0 : r.chance(0.03) ? 2.5 : 0.0;
            const bool one_query = shape.queries > 0 && r.chance(0.03);
            const index_t fan = one_query ? r.between(0, shape.group * shape.queries - 1) : 0;
            const float* asked = layer.q.data() + (g * shape.group * shape.queries + fan) * shape.head_dim;
            float* key = layer.key(g, t);
            for (std::size_t d = 0; d < dim; ++d) {
                drifting[d] = 0.8 * drifting[d] + 0.6 * r.normal();
                const double special = one_query ? 3.0 * static_cast<double>(asked[d]) : 0.0;
                key[d] = static_cast<float>(drifting[d] + unit * (pull * wanted[d] + special));
            }
            const double size = std::exp(r.normal());
            float* value = layer.value(g, t);
            for (index_t d = 0; d < shape.value_dim; ++d) {
                value[d] = static_cast<float>(size * r.normal());
            }
        }
    }
    for (float& x : layer.w) { x = static_cast<float>(0.3 * r.normal()); }
    return layer;
}

// Two KV heads, four query heads and four queries over 40 tokens: enough where the shape does not matter.
inline layer_data small_layer(index_t value_dim = 8) {
    return random_layer(
        {.kv_heads = 2, .group = 2, .tokens = 40, .head_dim = 8, .value_dim = value_dim, .queries = 4}, 1);
}

// Shapes around the borders that matter: tiles of tokens, blocks of query rows, odd sizes.
inline layer_shape random_shape(random& r) {
    layer_shape s;
    s.kv_heads = r.between(1, 4);
    s.group = r.one_of({1, 2, 4, 7});
    s.head_dim = r.one_of({8, 16, 20, 33, 64, 128});
    s.value_dim = r.chance(0.7) ? s.head_dim : r.one_of({8, 12, 40});
    s.hidden = r.chance(0.9) ? r.between(8, 48) : 300;
    s.tokens = r.chance(0.5) ? r.between(1, 80) : r.chance(0.2) ? r.between(254, 258) : r.between(60, 600);
    s.queries = std::min(s.tokens, r.chance(0.3) ? r.between(1, 3) : r.between(1, s.tokens > 200 ? 24 : 64));
    return s;
}

// ---- The same numbers for the oracle ----------------------------------------------------------------------

template <class View>
oracle::tensor to_oracle(const View& v) {
    oracle::tensor result;
    for (index_t h = 0; h < kvtrim::extent(v, 0); ++h) {
        oracle::matrix rows;
        for (index_t i = 0; i < kvtrim::row_count(v, h); ++i) {
            std::vector<float> floats(static_cast<std::size_t>(kvtrim::extent(v, 2)));
            kvtrim::load_rows(v, h, i, 1, floats.data());
            rows.emplace_back(floats.begin(), floats.end());
        }
        result.push_back(rows);
    }
    return result;
}

inline oracle::attention_setup to_oracle(const kvtrim::eviction_request& request) {
    const auto& a = request.attention;
    return {static_cast<double>(a.scale), static_cast<double>(a.soft_cap),
            static_cast<std::size_t>(a.sliding_window),
            oracle::row(a.sink_logits.begin(), a.sink_logits.end()),
            static_cast<std::size_t>(request.protect.rollback_tokens)};
}

inline oracle::protection to_oracle(const kvtrim::protection& p) {
    return {static_cast<std::size_t>(std::max(p.sink_tokens, p.pinned_tokens)),
            static_cast<std::size_t>(p.window_tokens + p.rollback_tokens)};
}

// A layer and its attention as the oracle sees them.
struct layer_oracle {
    oracle::tensor keys, values, queries, w_o, attention;
    oracle::attention_setup setup;
    oracle::protection protect;
    std::size_t group = 1;

    template <class Inputs>
    layer_oracle(const Inputs& in, const kvtrim::eviction_request& request)
        : keys(to_oracle(in.keys)), values(to_oracle(in.values)), queries(to_oracle(in.queries)),
          w_o(to_oracle(in.output_projection)), setup(to_oracle(request)),
          protect(to_oracle(request.protect)), group(queries.size() / keys.size()) {
        attention = oracle::attention(queries, keys, setup);
    }

    [[nodiscard]] oracle::token_set candidates(std::size_t head) const {
        return oracle::candidates(protect, keys[head].size());
    }
    [[nodiscard]] std::size_t heads() const { return keys.size(); }
    // The part of `budget` tokens in total that is left for candidates.
    [[nodiscard]] std::size_t total(index_t budget) const {
        std::size_t spent = 0;
        for (std::size_t g = 0; g < heads(); ++g) { spent += keys[g].size() - candidates(g).size(); }
        if (static_cast<std::size_t>(budget) < spent) { throw std::logic_error("a budget below protection"); }
        return static_cast<std::size_t>(budget) - spent;
    }

    [[nodiscard]] oracle::matrix snapkv(const oracle::snapkv_setup& s = {}) const {
        oracle::matrix result;
        for (std::size_t g = 0; g < heads(); ++g) {
            result.push_back(oracle::snapkv_scores(attention, group, g, candidates(g), s, setup));
        }
        return result;
    }
    // Projected value norms of the candidates.
    [[nodiscard]] oracle::matrix norms(oracle::norm_kind kind = oracle::norm_kind::l1) const {
        oracle::matrix result;
        for (std::size_t g = 0; g < heads(); ++g) {
            result.push_back(oracle::at(oracle::projected_norms(values, w_o, g, kind), candidates(g)));
        }
        return result;
    }
};

// ---- Random requests --------------------------------------------------------------------------------------

// Any mixture of protected ranges and attention options that the layer allows, without a budget. The sink logits
// live in `sink_logits`.
inline kvtrim::eviction_request random_request(random& r, const layer_shape& s,
                                               std::vector<float>& sink_logits) {
    kvtrim::eviction_request request{};
    auto& p = request.protect;
    p.rollback_tokens = r.chance(0.3) ? std::min<index_t>(r.between(0, 5), s.tokens - s.queries) : 0;
    p.window_tokens = r.chance(0.7) ? s.queries : r.between(0, s.queries);
    p.sink_tokens = r.chance(0.5) ? r.between(0, 4) : 0;
    p.pinned_tokens = r.chance(0.2) ? r.between(0, 12) : 0;
    auto& a = request.attention;
    a.scale = r.chance(0.3) ? static_cast<float>(0.05 + 0.2 * r.uniform()) : 0.0f;
    a.soft_cap = r.chance(0.3) ? static_cast<float>(2 + 20 * r.uniform()) : 0.0f;
    a.sliding_window = r.chance(0.3) ? r.between(1, s.tokens + 2) : 0;
    sink_logits.clear();
    if (r.chance(0.3)) {
        for (index_t h = 0; h < s.q_heads(); ++h) {
            sink_logits.push_back(static_cast<float>(2 * r.normal()));
        }
    }
    a.sink_logits = sink_logits;
    return request;
}

// The protected tokens of all heads together.
template <class Inputs>
index_t protected_tokens(const Inputs& in, const kvtrim::protection& p) {
    index_t count = 0;
    for (index_t g = 0; g < in.kv_heads(); ++g) {
        count += in.tokens(g) - kvtrim::candidates(p, in.tokens(g)).size();
    }
    return count;
}

// A budget over all heads between the protected tokens and one short of everything; 0 if there is none.
template <class Inputs>
index_t random_budget(random& r, const Inputs& in, const kvtrim::protection& p) {
    index_t all = 0;
    for (index_t g = 0; g < in.kv_heads(); ++g) { all += in.tokens(g); }
    const index_t least = std::max<index_t>(1, protected_tokens(in, p));
    return least > all - 1 ? 0 : r.between(least, all - 1);
}

// ---- Layouts ----------------------------------------------------------------------------------------------

// Owns the elements of a strided view in some memory order.
template <class T>
struct stored {
    std::vector<T> elements;
    std::array<index_t, 3> extents;
    std::array<index_t, 3> strides;
    index_t origin = 0;

    [[nodiscard]] kvtrim::strided<const T, 3> get() const {
        return {elements.data() + origin, extents, strides};
    }
};

enum class layout { head_major, token_major, transposed, reversed, gapped };

// A copy in another memory order: [heads, rows, dim], [rows, heads, dim], [heads, dim, rows], rows backwards, or
// rows with unused elements between them.
template <class T = float>
stored<T> store(const view& v, layout order) {
    const index_t heads = v.extent(0);
    const index_t rows = v.extent(1);
    const index_t dim = v.extent(2);
    stored<T> s{{}, {heads, rows, dim}, {rows * dim, dim, 1}, 0};
    switch (order) {
    case layout::head_major:
        break;
    case layout::token_major:
        s.strides = {dim, heads * dim, 1};
        break;
    case layout::transposed:
        s.strides = {rows * dim, 1, rows};
        break;
    case layout::reversed:
        s.strides = {rows * dim, -dim, 1};
        s.origin = std::max<index_t>(0, rows - 1) * dim;
        break;
    case layout::gapped:
        s.strides = {rows * (dim + 3) + 1, dim + 3, 1};
        break;
    }
    s.elements.resize(static_cast<std::size_t>(heads * (rows * (dim + 3) + 1)));
    for (index_t h = 0; h < heads; ++h) {
        for (index_t i = 0; i < rows; ++i) {
            for (index_t d = 0; d < dim; ++d) {
                const index_t place = s.origin + h * s.strides[0] + i * s.strides[1] + d * s.strides[2];
                s.elements[static_cast<std::size_t>(place)] =
                    kvtrim::element_traits<T>::from_float(v(h, i, d));
            }
        }
    }
    return s;
}

// Indexable and nothing more: the generic path.
struct generic_view {
    view inner;

    static constexpr std::size_t rank() { return 3; }
    [[nodiscard]] index_t extent(std::size_t r) const { return inner.extent(r); }
    [[nodiscard]] float operator()(index_t h, index_t i, index_t d) const { return inner(h, i, d); }
};

// Rows that must be decoded, found through an index: a paged or quantised cache.
class decoding_source {
  public:
    explicit decoding_source(const view& v) : extents_{v.extent(0), v.extent(1), v.extent(2)} {
        for (index_t h = 0; h < extents_[0]; ++h) {
            for (index_t i = extents_[1]; i-- > 0;) { // rows lie backwards in memory
                for (index_t d = 0; d < extents_[2]; ++d) { encoded_.push_back(-v(h, i, d)); }
            }
        }
    }
    [[nodiscard]] index_t extent(std::size_t r) const { return extents_[r]; }
    void load_rows(index_t head, index_t first, index_t count, float* tile) const {
        for (index_t i = first; i < first + count; ++i) {
            const index_t place = (head * extents_[1] + extents_[1] - 1 - i) * extents_[2];
            for (index_t d = 0; d < extents_[2]; ++d) {
                *tile++ = -encoded_[static_cast<std::size_t>(place + d)];
            }
        }
    }

  private:
    std::array<index_t, 3> extents_;
    std::vector<float> encoded_;
};

// A cache of heads with different lengths, cut out of a layer: head g keeps its first lengths[g] tokens.
struct ragged_cache {
    std::vector<std::int32_t> offsets;
    std::vector<float> elements;
    index_t dim;

    ragged_cache(const view& v, const std::vector<index_t>& lengths) : offsets{0}, dim(v.extent(2)) {
        for (std::size_t g = 0; g < lengths.size(); ++g) {
            offsets.push_back(offsets.back() + static_cast<std::int32_t>(lengths[g]));
            for (index_t t = 0; t < lengths[g]; ++t) {
                for (index_t d = 0; d < dim; ++d) { elements.push_back(v(static_cast<index_t>(g), t, d)); }
            }
        }
    }
    [[nodiscard]] kvtrim::ragged<const float> get() const { return {elements.data(), offsets, dim}; }
};

// ---- Executors --------------------------------------------------------------------------------------------

// One thread for each of `threads`, which take the next piece as they become free.
struct thread_executor {
    int threads = 4;

    template <class Fn>
    void operator()(index_t count, Fn&& fn) const {
        std::atomic<index_t> next{0};
        std::vector<std::thread> pool;
        for (int i = 0; i < threads; ++i) {
            pool.emplace_back([&] {
                for (index_t piece = next++; piece < count; piece = next++) { fn(piece); }
            });
        }
        for (std::thread& t : pool) { t.join(); }
    }
};

// Says how many calls it runs at once.
struct counted_executor {
    int count;

    [[nodiscard]] int workers() const { return count; }
    template <class Fn>
    void operator()(index_t calls, Fn&& fn) const {
        thread_executor{count}(calls, fn);
    }
};

// One thread, pieces in a random order.
struct shuffling_executor {
    std::uint64_t seed = 0;

    template <class Fn>
    void operator()(index_t count, Fn&& fn) const {
        random r(seed);
        std::vector<index_t> order;
        for (index_t i = 0; i < count; ++i) { order.push_back(i); }
        for (std::size_t i = order.size(); i > 1; --i) { std::swap(order[i - 1], order[r.bits() % i]); }
        for (const index_t i : order) { fn(i); }
    }
};

// Inverse frequencies of RoPE with base 10000.
inline std::vector<float> rope_frequencies(index_t pairs) {
    std::vector<float> table;
    for (index_t i = 0; i < pairs; ++i) {
        table.push_back(
            static_cast<float>(std::pow(1e4, -static_cast<double>(i) / static_cast<double>(pairs))));
    }
    return table;
}

} // namespace support
