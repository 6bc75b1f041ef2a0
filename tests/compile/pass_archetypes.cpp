// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// The smallest type that each contract asks for (plan/concepts.hpp, cache/row_source.hpp, core/element.hpp,
// core/executor.hpp) is enough for the whole library: what it lacks, the library must not need.

#include <kvtrim/kvtrim.hpp>

namespace archetype {

using namespace kvtrim;

// ---- Elements and views ---------------------------------------------------------------------------------------

// Not a number, not copyable into one, without a default value.
class element_type {
  public:
    explicit element_type(float x) : value_(x) {}

  private:
    friend struct kvtrim::element_traits<element_type>;
    float value_;
};

} // namespace archetype

template <>
struct kvtrim::element_traits<archetype::element_type> {
    static float to_float(const archetype::element_type& x) { return x.value_; }
};

namespace archetype {

// A tensor of computed elements: larger for newer tokens.
class view {
  public:
    view(index_t heads, index_t rows, index_t length) : heads_(heads), rows_(rows), length_(length) {}
    static constexpr std::size_t rank() { return 3; }
    [[nodiscard]] index_t extent(std::size_t r) const { return r == 0 ? heads_ : r == 1 ? rows_ : length_; }
    element_type operator()(index_t head, index_t row, index_t) const {
        return element_type(static_cast<float>(head + row));
    }

  private:
    index_t heads_, rows_, length_;
};

class source {
  public:
    source(index_t heads, index_t rows, index_t length) : heads_(heads), rows_(rows), length_(length) {}
    [[nodiscard]] index_t extent(std::size_t r) const { return r == 0 ? heads_ : r == 1 ? rows_ : length_; }
    void load_rows(index_t head, index_t first, index_t count, float* tile) const {
        for (index_t i = 0; i < count * length_; ++i) {
            tile[i] = static_cast<float>(head + first + i / length_);
        }
    }

  private:
    index_t heads_, rows_, length_;
};

// ---- Stages: without default constructor, so that nothing but the given value is used --------------------------

// Prefers tokens near `favourite`.
struct scorer {
    explicit scorer(index_t token) : favourite(token) {}

    static constexpr bool writes_attention = false;
    template <class Inputs, class Executor>
    status score(const Inputs& in, const eviction_request& request, const token_scores& out, workspace&,
                 Executor&) const {
        for (index_t g = 0; g < in.kv_heads(); ++g) {
            const token_range range = candidates(request.protect, in.tokens(g));
            for (index_t t = range.begin; t < range.end; ++t) {
                const index_t distance = t > favourite ? t - favourite : favourite - t;
                out.importance_rows().row(g)[static_cast<std::size_t>(t - range.begin)] =
                    -static_cast<float>(distance);
            }
        }
        return {};
    }

    index_t favourite;
};

// The maximum over the observed queries.
struct aggregator {
    explicit aggregator(float s) : scale(s) {}

    static constexpr bool writes_attention = false;
    status validate() const { return {}; }
    index_t halo() const { return 0; }
    index_t lanes(index_t) const { return 1; }
    void add(const attention_tile& tile, std::span<float> accumulators) const {
        for (index_t t = 0; t < tile.tokens; ++t) {
            float& lane = accumulators[static_cast<std::size_t>(tile.first + t)];
            for (index_t r = 0; r < tile.query_rows; ++r) { lane = std::max(lane, tile.column(t)[r]); }
        }
    }
    void finish(const attention_head&, std::span<float> accumulators, std::span<float> importance,
                std::span<float>) const {
        for (std::size_t c = 0; c < importance.size(); ++c) { importance[c] = scale * accumulators[c]; }
    }

    float scale;
};

// Fills one row after the other, beginning with the last.
struct allocator {
    explicit allocator(int) {}

    static constexpr bool is_uniform = false;
    status allocate(const score_rows& scores, index_t total, std::span<index_t> budgets, workspace&) const {
        for (index_t r = scores.rows(); r-- > 0;) {
            const index_t taken = std::min(total, scores.length(r));
            budgets[static_cast<std::size_t>(r)] = taken;
            total -= taken;
        }
        return {};
    }
};

struct reranker {
    explicit reranker(int) {}

    static constexpr bool allocate_by_attention = false;
    static constexpr bool needs_uniform_budgets = false;
};

// Prefers blocks whose largest key is large, whatever the queries.
struct estimator {
    explicit estimator(float f) : factor(f) {}

    index_t spare_floats(index_t, index_t, index_t) const { return 0; }
    void estimate(const bounds_rows& segments, const bounds_rows& blocks, float* out, float*) const {
        for (index_t i = 0; i < segments.blocks * blocks.blocks; ++i) {
            out[i] = factor * blocks.maximum[i % blocks.blocks * blocks.head_dim];
        }
    }

    float factor;
};

struct executor {
    template <class Fn>
    void operator()(index_t count, Fn&& fn) {
        for (index_t i = count; i-- > 0;) { fn(i); }
    }
};

} // namespace archetype

using inputs = kvtrim::layer_inputs<archetype::view, archetype::source, archetype::view, archetype::source>;

static_assert(kvtrim::element<archetype::element_type>);
static_assert(kvtrim::tensor_view<archetype::view, 3> && !kvtrim::strided_view<archetype::view, 3>);
static_assert(kvtrim::row_source<archetype::source> && kvtrim::cache_view<archetype::source>);
static_assert(kvtrim::token_scorer<archetype::scorer, inputs>);
static_assert(kvtrim::attention_aggregator<archetype::aggregator>);
static_assert(kvtrim::budget_allocator<archetype::allocator>);
static_assert(kvtrim::token_reranker<archetype::reranker>);
static_assert(kvtrim::block_estimator<archetype::estimator>);
static_assert(kvtrim::executor<archetype::executor>);

// Every stage alone with the library's others, and all together.
kvtrim::status plan_all(const inputs& in, const kvtrim::eviction_request& request, kvtrim::keep_plan& out,
                        kvtrim::workspace& scratch) {
    using namespace kvtrim;
    const archetype::scorer scorer(7);
    const archetype::allocator allocator(0);
    const archetype::reranker reranker(0);
    const window_attention attention{archetype::aggregator(1.0f)};
    for (const status s : {
             eviction_policy{scorer, uniform{}, by_importance{}}.plan(in, request, out, scratch),
             eviction_policy{attention, adaptive{}, two_stage{}}.plan(in, request, out, scratch),
             eviction_policy{projected_norm_weighted<archetype::scorer>{scorer}, allocator,
                             two_stage_by_mass{}}
                 .plan(in, request, out, scratch),
             eviction_policy{padded<archetype::scorer>{scorer, 2}, uniform{}, shared{}}.plan(in, request, out,
                                                                                             scratch),
             eviction_policy{key_norm_score{}, uniform{}, reranker}.plan(in, request, out, scratch),
             eviction_policy{attention, allocator, reranker}.plan(in, request, out, scratch,
                                                                  archetype::executor{}),
             snapkv().plan(in, request, out, scratch),
             criticalkv().plan(in, request, out, scratch),
             defensivekv().plan(in, request, out, scratch),
         }) {
        if (!s.ok()) { return s; }
    }
    return {};
}

kvtrim::status gather_both(const inputs& in, const kvtrim::keep_plan& plan, std::span<float> out) {
    if (const kvtrim::status s = kvtrim::gather(in.keys, plan, out); !s.ok()) { return s; }
    return kvtrim::gather(in.values, plan, out);
}

// A third party's estimator and allocator; keys, queries and values that can be read and no more.
kvtrim::status prefill(const inputs& in, kvtrim::layer_fusion& state, kvtrim::prune_plan& plan,
                       const kvtrim::strided<float, 3>& out, kvtrim::workspace& scratch) {
    using namespace kvtrim;
    const block_pruner<archetype::estimator, archetype::allocator> policy{
        .estimator = archetype::estimator(2), .allocator = archetype::allocator(0)};
    if (const status s = policy.plan(in.queries, in.keys, {}, state, plan, scratch, archetype::executor{});
        !s.ok()) {
        return s;
    }
    return block_sparse_attention(in, plan, {}, out, {}, scratch, archetype::executor{});
}
