// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// A layer in views of any strides over one buffer, a policy's plan for it, and every way to carry the plan out.
//
// Models: a plan is that of the same policy over contiguous copies of the views, keeps as many tokens as the budget says, and
// in each row those of the highest scores; what is carried out shows the elements that each view showed beforehand, read one by
// one. A view whose own elements share bytes, or keys and values that share some but do not move as one, must be refused where
// rows move; they may be read. A refused call changes nothing.

#include "input.hpp"

#include <kvtrim/compact/compact_in_place.hpp>
#include <kvtrim/compact/compact_to_flat.hpp>
#include <kvtrim/compact/project_to_shared.hpp>
#include <kvtrim/policy/baselines.hpp>
#include <kvtrim/policy/defensivekv.hpp>
#include <kvtrim/policy/rkv.hpp>
#include <kvtrim/policy/snapkv.hpp>
#include <kvtrim/rerank/chunked.hpp>
#include <kvtrim/rerank/shared.hpp>
#include <kvtrim/score/given_scores.hpp>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

using namespace kvtrim;

namespace {

constexpr index_t buffer_elements = 6000;

struct shape {
    index_t heads, tokens, length;
};

// A view that lies in the buffer; or one that is not valid.
template <class T>
strided<T, 3> view_in(fuzz::input& in, std::vector<std::remove_const_t<T>>& buffer, const shape& s) {
    const std::array<index_t, 3> extents{s.heads, s.tokens, s.length};
    std::array<std::size_t, 3> order{0, 1, 2}; // from the outermost
    constexpr std::array<std::size_t, 3> orders[] = {{0, 1, 2}, {1, 0, 2}, {0, 2, 1},
                                                     {2, 0, 1}, {1, 2, 0}, {2, 1, 0}};
    order = in.one_of(orders);
    std::array<index_t, 3> strides{};
    index_t next = 1;
    for (std::size_t i = 3; i-- > 0;) {
        strides[order[i]] = next;
        next = next * extents[order[i]] + in.between(0, 3) * (in.chance(64) ? 1 : 0);
    }
    if (in.chance(48)) { strides[static_cast<std::size_t>(in.between(0, 2))] = in.between(-40, 40); }
    index_t lowest = 0, highest = 0;
    for (std::size_t i = 0; i < 3; ++i) {
        if (in.chance(48)) { strides[i] = -strides[i]; }
        const index_t reach = strides[i] * std::max<index_t>(0, extents[i] - 1);
        (reach < 0 ? lowest : highest) += reach;
    }
    if (highest - lowest >= buffer_elements) { return {static_cast<T*>(nullptr), {0, 0, 0}}; }
    const index_t first = -lowest + in.between(0, buffer_elements - 1 - (highest - lowest));
    return {buffer.data() + first, extents, strides};
}

template <class T>
std::vector<std::remove_const_t<T>> shown(const strided<T, 3>& v) {
    std::vector<std::remove_const_t<T>> all;
    if (v.extent(1) == 0 || v.extent(2) == 0) { return all; } // of which the first may be any number
    for (index_t g = 0; g < v.extent(0); ++g) {
        for (index_t t = 0; t < v.extent(1); ++t) {
            for (index_t d = 0; d < v.extent(2); ++d) { all.push_back(v(g, t, d)); }
        }
    }
    return all;
}

// Places of all elements, in the order of shown().
template <class T>
std::vector<const T*> places(const strided<T, 3>& v) {
    std::vector<const T*> all;
    for (index_t g = 0; g < v.extent(0); ++g) {
        for (index_t t = 0; t < v.extent(1); ++t) {
            for (index_t d = 0; d < v.extent(2); ++d) { all.push_back(&v(g, t, d)); }
        }
    }
    return all;
}

template <class T>
bool is_unchanged_but_at(const std::vector<const T*>& moved, const std::vector<T>& now,
                         std::vector<T> before) {
    for (const T* p : moved) {
        const auto at = static_cast<std::size_t>(p - now.data());
        before[at] = now[at];
    }
    return std::memcmp(now.data(), before.data(), now.size() * sizeof(T)) == 0;
}

template <class T>
bool is_simple(const strided<T, 3>& v) {
    auto all = places(v);
    std::sort(all.begin(), all.end());
    return std::adjacent_find(all.begin(), all.end()) == all.end();
}

enum class sharing { apart, inside, mixed };

// How the rows of two views lie in each other; `inside`: each row of one in the other's row of the same head and token.
template <class T>
sharing sharing_of(const strided<T, 3>& a, const strided<T, 3>& b) {
    auto in_a = places(a);
    const auto in_b = places(b);
    std::sort(in_a.begin(), in_a.end());
    if (std::none_of(in_b.begin(), in_b.end(),
                     [&](const T* p) { return std::binary_search(in_a.begin(), in_a.end(), p); })) {
        return sharing::apart;
    }
    if (a.extent(0) != b.extent(0) || a.extent(1) != b.extent(1)) { return sharing::mixed; }
    const auto lies_in = [](const strided<T, 3>& inner, const strided<T, 3>& outer) {
        for (index_t g = 0; g < inner.extent(0); ++g) {
            for (index_t t = 0; t < inner.extent(1); ++t) {
                for (index_t d = 0; d < inner.extent(2); ++d) {
                    bool found = false;
                    for (index_t e = 0; e < outer.extent(2); ++e) {
                        found = found || &inner(g, t, d) == &outer(g, t, e);
                    }
                    if (!found) { return false; }
                }
            }
        }
        return true;
    };
    return lies_in(a, b) || lies_in(b, a) ? sharing::inside : sharing::mixed;
}

// Whether the view shows, in the first rows of each head, what the plan kept of `before`.
template <class T>
bool shows_kept(const strided<T, 3>& v, const std::vector<T>& before, const keep_plan& plan) {
    for (index_t g = 0; g < v.extent(0); ++g) {
        const auto kept = plan.row(g);
        for (std::size_t i = 0; i < kept.size(); ++i) {
            for (index_t d = 0; d < v.extent(2); ++d) {
                const auto old = static_cast<std::size_t>((g * v.extent(1) + kept[i]) * v.extent(2) + d);
                if (!fuzz::same_bits(v(g, static_cast<index_t>(i), d), before[old])) { return false; }
            }
        }
    }
    return true;
}

// A plan that a caller might fill: often one for this cache.
keep_plan any_plan(fuzz::input& in, index_t rows, index_t tokens) {
    keep_plan plan;
    std::vector<std::vector<std::int32_t>> kept(
        static_cast<std::size_t>(in.chance(12) ? in.between(0, 5) : rows));
    std::vector<index_t> counts;
    for (auto& row : kept) {
        fuzz::stream s(in.number<std::uint16_t>());
        const std::uint64_t share = in.byte();
        for (std::int32_t t = 0; t < tokens; ++t) {
            if ((s.bits() >> 20) % 256 <= share) { row.push_back(t); }
        }
        if (!row.empty() && in.chance(12)) {
            row[static_cast<std::size_t>(in.between(0, std::ssize(row) - 1))] = in.number<std::int32_t>();
        }
        counts.push_back(std::ssize(row));
    }
    FUZZ_CHECK(plan.reset(counts).ok());
    for (std::size_t r = 0; r < kept.size(); ++r) {
        std::copy(kept[r].begin(), kept[r].end(), plan.writable_row(static_cast<index_t>(r)).begin());
    }
    return plan;
}

bool fits(const keep_plan& plan, index_t heads, index_t tokens) {
    if (plan.rows() != heads) { return false; }
    for (index_t r = 0; r < plan.rows(); ++r) {
        index_t last = -1;
        for (const auto t : plan.row(r)) {
            if (t <= last || t >= tokens) { return false; }
            last = t;
        }
    }
    return true;
}

// fn(policy), one of many. `scores` are those that a policy may be given.
template <class T, class Fn>
void with_policy(fuzz::input& in, const strided<const T, 3>& scores, Fn&& fn) {
    constexpr pooling pools[] = {pooling::average, pooling::maximum, pooling::none};
    const mean_attention mean{.pool = in.one_of(pools),
                              .kernel_tokens = in.hostile(2 * in.between(0, 4) + 1, 8)};
    const strided<const T, 2> one_per_token(scores.data_handle(), {scores.extent(0), scores.extent(1)},
                                            {scores.stride(0), scores.stride(1)});
    switch (in.between(0, 11)) {
    case 0:
        return fn(snapkv(mean));
    case 1:
        return fn(ada_snapkv(mean, adaptive{.safeguard_ratio = static_cast<double>(in.value())}));
    case 2:
        return fn(defensivekv());
    case 3:
        return fn(streaming_llm());
    case 4:
        return fn(tova());
    case 5:
        return fn(key_norm());
    case 6:
        return fn(key_diff());
    case 7:
        return fn(kvtrim::random(in.number<std::uint32_t>()));
    case 8:
        return fn(eviction_policy{key_norm_score{}, uniform{},
                                  chunked{.chunk_tokens = in.hostile(in.between(1, 9))}});
    case 9:
        return fn(rkv());
    case 10:
        return fn(eviction_policy{given_scores{one_per_token}, uniform{}, by_importance{}});
    default:
        return fn(eviction_policy{window_attention{mean}, uniform{}, shared{}});
    }
}

// Tokens of a plan that was made: the whole budget, or what divides by the heads where all keep the same.
index_t expected_tokens(const eviction_request& r, index_t heads, index_t tokens, bool same_in_every_head) {
    const index_t all = heads * tokens, total = r.budget.total(heads);
    if (total >= all) { return all; }
    return same_in_every_head ? total - total % heads : total;
}

// The rows of the highest scores, NaN last and the earlier of equal ones first, in ascending order.
std::vector<std::int32_t> best_rows(const std::vector<float>& scores, std::size_t count, index_t first) {
    std::vector<std::int32_t> order(scores.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](std::int32_t i, std::int32_t j) {
        const float a = scores[static_cast<std::size_t>(i)], b = scores[static_cast<std::size_t>(j)];
        return a > b || (b != b && a == a);
    });
    order.resize(count);
    std::sort(order.begin(), order.end());
    for (auto& row : order) { row += static_cast<std::int32_t>(first); }
    return order;
}

// The score of a token where the formula is a line; else what the policy says of all of them.
template <class Policy, class Inputs>
std::vector<float> scores_of(const Policy& policy, const Inputs& inputs, const score_table& said,
                             index_t head, token_range free) {
    using scorer = decltype(Policy::scorer);
    std::vector<float> all;
    for (index_t t = free.begin; t < free.end; ++t) {
        if constexpr (std::is_same_v<scorer, key_norm_score>) {
            float squares = 0; // of multiples of 1/32: exact in any order
            for (index_t d = 0; d < inputs.head_dim(); ++d) {
                const float x = to_float(inputs.keys(head, t, d));
                squares += x * x;
            }
            all.push_back(-std::sqrt(squares));
        } else if constexpr (std::is_same_v<scorer, recency>) {
            all.push_back(static_cast<float>(t));
        } else if constexpr (requires { policy.scorer.scores; }) {
            all.push_back(to_float(policy.scorer.scores(head, t)));
        } else {
            all.push_back(said.row(head)[static_cast<std::size_t>(t - free.begin)]);
        }
    }
    return all;
}

// Checks which tokens a plan of these inputs kept.
template <class Policy, class Inputs>
void check_kept(const Policy& policy, const Inputs& inputs, const eviction_request& r,
                const keep_plan& plan) {
    using allocator = decltype(Policy::allocator);
    using reranker = decltype(Policy::reranker);
    const index_t heads = inputs.kv_heads(), tokens = inputs.longest_row();
    FUZZ_CHECK(fits(plan, heads, tokens));
    const index_t total = expected_tokens(r, heads, tokens, reranker::needs_uniform_budgets);
    FUZZ_CHECK(plan.total_tokens() == total);
    if (total == heads * tokens) { return; } // nothing was scored
    const token_range free = candidates(r.protect, tokens);
    growing_workspace memory;
    score_table said;
    FUZZ_CHECK(policy.score(inputs, r, said, memory).ok());
    for (index_t g = 0; g < heads; ++g) {
        const auto row = plan.row(g);
        const std::vector<std::int32_t> kept(std::ranges::lower_bound(row, free.begin),
                                             std::ranges::lower_bound(row, free.end));
        FUZZ_CHECK(std::ssize(row) - std::ssize(kept) == tokens - free.size()); // all that is protected
        if constexpr (allocator::is_uniform) {
            FUZZ_CHECK(std::ssize(row) == total / heads + (g < total % heads ? 1 : 0));
        }
        if constexpr (reranker::needs_uniform_budgets) { FUZZ_CHECK(std::ranges::equal(row, plan.row(0))); }
        if constexpr (std::is_same_v<reranker, by_importance>) {
            FUZZ_CHECK(kept == best_rows(scores_of(policy, inputs, said, g, free), kept.size(), free.begin));
        }
    }
}

template <class T>
void compact(fuzz::input& in, const keep_plan& planned) {
    std::vector<T> buffer(static_cast<std::size_t>(buffer_elements));
    fuzz::stream s(7);
    for (T& x : buffer) { x = element_traits<T>::from_float(static_cast<float>(s.bits() >> 48)); }
    const shape k{in.between(0, 4), in.between(0, 40), in.between(0, 9)};
    const shape v{in.chance(24) ? in.between(0, 4) : k.heads, in.chance(24) ? in.between(0, 40) : k.tokens,
                  in.between(0, 9)};
    const auto keys = view_in<T>(in, buffer, k);
    auto values = view_in<T>(in, buffer, v);
    const bool made_inside = in.chance(48) && keys.extent(2) > 1;
    if (made_inside) { // values in the keys' rows
        const index_t first = in.between(0, keys.extent(2) - 1);
        values = {keys.data_handle() + first * keys.stride(2),
                  {keys.extent(0), keys.extent(1), in.between(0, keys.extent(2) - first)},
                  {keys.stride(0), keys.stride(1), keys.stride(2)}};
    }
    const keep_plan plan = in.chance(64) ? planned : any_plan(in, keys.extent(0), keys.extent(1));
    const bool possible = fits(plan, keys.extent(0), keys.extent(1));
    const bool both_possible = possible && fits(plan, values.extent(0), values.extent(1));
    const auto old_buffer = buffer;
    const auto old_keys = shown(keys), old_values = shown(values);
    const auto is_unchanged = [&] {
        return std::memcmp(buffer.data(), old_buffer.data(), buffer.size() * sizeof(T)) == 0;
    };
    std::vector<const T*> moved = places(keys);

    std::vector<T> out(static_cast<std::size_t>(in.hostile(plan.total_tokens() * k.length) & 0x3fff));
    const status gathered = gather(keys, plan, std::span(out));
    FUZZ_CHECK(is_unchanged());
    if (gathered.ok()) {
        FUZZ_CHECK(possible);
        std::size_t next = 0;
        for (index_t g = 0; g < plan.rows(); ++g) {
            for (const auto t : plan.row(g)) {
                for (index_t d = 0; d < keys.extent(2); ++d) {
                    FUZZ_CHECK(fuzz::same_bits(
                        out[next++], old_keys[static_cast<std::size_t>((g * k.tokens + t) * k.length + d)]));
                }
            }
        }
    } else {
        FUZZ_CHECK(!possible || std::ssize(out) < plan.total_tokens() * keys.extent(2));
    }

    if (in.chance(128)) { // one tensor
        compaction_report report;
        const status answer = compact_in_place(keys, plan, &report);
        FUZZ_CHECK(answer.ok() == (possible && is_simple(keys)));
        if (!answer.ok()) {
            FUZZ_CHECK(is_unchanged());
            FUZZ_CHECK(answer.code() == (possible ? errc::views_overlap : errc::plan_mismatch));
            return;
        }
        FUZZ_CHECK(shows_kept(keys, old_keys, plan));
    } else { // both
        compaction_report report;
        const status answer = compact_in_place(keys, values, plan, &report);
        const sharing s_both = sharing_of(keys, values);
        const bool simple = is_simple(keys) && is_simple(values);
        if (!answer.ok()) {
            FUZZ_CHECK(is_unchanged());
            FUZZ_CHECK(!both_possible || !simple || (s_both != sharing::apart && !made_inside));
            FUZZ_CHECK(!both_possible || answer.code() == errc::views_overlap);
            return;
        }
        FUZZ_CHECK(both_possible && simple && s_both != sharing::mixed);
        FUZZ_CHECK(shows_kept(keys, old_keys, plan) && shows_kept(values, old_values, plan));
        for (const T* p : places(values)) { moved.push_back(p); }
    }
    FUZZ_CHECK(is_unchanged_but_at(moved, buffer, old_buffer));
}

// Whether the elements lie one behind the other, in the order of heads, tokens and channels.
template <class T>
bool is_contiguous(const strided<T, 3>& v) {
    const auto all = places(v);
    for (std::size_t i = 1; i < all.size(); ++i) {
        if (all[i] != all[0] + i) { return false; }
    }
    return true;
}

// Whether the elements from the first one on are what the plan kept of `before`.
template <class T>
bool begins_with_kept(const strided<T, 3>& v, const std::vector<T>& before, const keep_plan& plan) {
    const T* next = v.data_handle();
    for (index_t g = 0; g < plan.rows(); ++g) {
        for (const auto t : plan.row(g)) {
            for (index_t d = 0; d < v.extent(2); ++d) {
                const auto old = static_cast<std::size_t>((g * v.extent(1) + t) * v.extent(2) + d);
                if (!fuzz::same_bits(*next++, before[old])) { return false; }
            }
        }
    }
    return true;
}

// Caches compacted to the front of their buffer, which only one without strides can be.
void flatten(fuzz::input& in) {
    std::vector<float> buffer(static_cast<std::size_t>(buffer_elements));
    std::iota(buffer.begin(), buffer.end(), 0.0f);
    const shape s{in.between(1, 4), in.between(0, 30), in.between(0, 5)};
    const auto any_view = [&](index_t length) -> strided<float, 3> {
        if (in.chance(128)) { return view_in<float>(in, buffer, {s.heads, s.tokens, length}); }
        const index_t last = buffer_elements - s.heads * s.tokens * length;
        return {buffer.data() + in.between(0, last), {s.heads, s.tokens, length}};
    };
    const auto keys = any_view(s.length);
    const auto values = in.chance(24) ? keys : any_view(in.between(0, 5));
    const keep_plan plan = any_plan(in, s.heads, s.tokens);
    const auto can_be_flat = [&](const strided<float, 3>& v) {
        return fits(plan, v.extent(0), v.extent(1)) && is_contiguous(v);
    };
    const auto old = buffer, old_keys = shown(keys), old_values = shown(values);
    const bool both = in.chance(128);
    const status answer = both ? compact_to_flat(keys, values, plan) : compact_to_flat(keys, plan);
    const sharing s_both = sharing_of(keys, values);
    const bool same = s_both == sharing::inside && keys.extent(2) == values.extent(2) &&
                      keys.data_handle() == values.data_handle();
    const bool possible =
        can_be_flat(keys) && (!both || (can_be_flat(values) && (same || s_both == sharing::apart)));
    // Strides along an extent without elements may be refused or not.
    FUZZ_CHECK(answer.ok() == possible || (possible && (old_keys.empty() || (both && old_values.empty()))));
    if (!answer.ok()) {
        FUZZ_CHECK(buffer == old);
    } else {
        FUZZ_CHECK(begins_with_kept(keys, old_keys, plan) &&
                   (!both || begins_with_kept(values, old_values, plan)));
        auto moved = places(keys);
        for (const float* p : both ? places(values) : std::vector<const float*>{}) { moved.push_back(p); }
        FUZZ_CHECK(is_unchanged_but_at(moved, buffer, old));
    }
    if (!fits(plan, s.heads, s.tokens)) { return; }
    keep_plan shared, all;
    growing_workspace memory;
    workspace scratch = memory.of_bytes(project_to_shared_bytes(plan, s.tokens));
    const index_t kept = in.hostile(in.between(0, s.tokens));
    if (project_to_shared(plan, s.tokens, kept, shared, scratch).ok()) {
        for (index_t g = 0; g < s.heads; ++g) { FUZZ_CHECK(shared.kept_tokens(g) == kept); }
        FUZZ_CHECK(fits(shared, s.heads, s.tokens));
    }
    if (project_to_shared(plan, s.tokens, any_head, all, scratch).ok()) {
        std::set<std::int32_t> of_any(plan.kept().begin(), plan.kept().end());
        FUZZ_CHECK(std::ranges::equal(all.row(0), of_any));
    }
}

// Whether all elements of a view that is valid lie in the buffer.
template <class T>
bool lies_in(const strided<const T, 3>& v, const std::vector<T>& buffer) {
    __int128 first = v.data_handle() - buffer.data(), last = first;
    const auto [least, most] = std::minmax({v.extent(0), v.extent(1), v.extent(2)});
    if (least == 0) { return most <= buffer_elements; } // tables have memory for rows without elements
    for (std::size_t r = 0; r < 3; ++r) {
        const auto reach = static_cast<__int128>(v.extent(r) - 1) * v.stride(r);
        (reach < 0 ? first : last) += reach;
    }
    return first >= 0 && last < std::ssize(buffer);
}

template <class T>
void plan_and_compact(fuzz::input& in) {
    const index_t heads = in.between(0, 4), group = in.between(1, 3), tokens = in.between(0, 50),
                  dim = in.between(0, 9), queries = in.between(0, 12);
    std::vector<T> buffer;
    for (const float x : fuzz::values(in, buffer_elements)) {
        buffer.push_back(element_traits<T>::from_float(x));
    }
    // Memory is promised: an extent that the view accepts must not reach beyond it.
    const auto any_view = [&](const shape& s) {
        const strided<const T, 3> sound = view_in<const T>(in, buffer, s);
        if (!in.chance(12)) { return sound; }
        std::array<index_t, 3> odd{s.heads, s.tokens, s.length};
        index_t& one = odd[static_cast<std::size_t>(in.between(0, 2))];
        one = in.hostile(one, 255);
        const strided<const T, 3> view(sound.data_handle(), odd,
                                       {sound.stride(0), sound.stride(1), sound.stride(2)});
        // What may be read is read and copied: all of it in the buffer, and not the same row too often (stride 0).
        double elements = 1;
        for (const index_t extent : odd) { elements *= static_cast<double>(extent); }
        return view.validate().ok() && (!lies_in(view, buffer) || elements > 1 << 16) ? sound : view;
    };
    const auto k = any_view({heads, tokens, dim}), v = any_view({heads, tokens, dim}),
               q = any_view({heads * group, queries, dim}), w = any_view({heads * group, dim, 3}),
               any_scores = any_view({heads, tokens, 1});
    const strided<const T, 3> s = any_scores.extent(2) == 1
                                      ? any_scores
                                      : strided<const T, 3>(static_cast<const T*>(nullptr), {0, 0, 0});
    const eviction_request r = fuzz::request(in, heads, tokens, in.chance(64) ? in.between(0, 4) : queries);
    std::vector<T> copies[5];
    const auto copied = [&](const strided<const T, 3>& view, std::vector<T>& to) {
        to = shown(view);
        return strided<const T, 3>(to.data(), {view.extent(0), view.extent(1), view.extent(2)});
    };
    const auto inputs = layer(k, v).with_queries(q).with_output_projection(w);
    const auto contiguous = layer(copied(k, copies[0]), copied(v, copies[1]))
                                .with_queries(copied(q, copies[2]))
                                .with_output_projection(copied(w, copies[3]));
    const auto of_given = copied(s, copies[4]);
    fuzz::input same = in;
    keep_plan plan;
    with_policy(in, s, [&](const auto& policy) {
        growing_workspace memory;
        const index_t bytes = policy.workspace_bytes(inputs, r);
        workspace scratch = memory.of_bytes(bytes);
        const status answer = policy.plan(inputs, r, plan, scratch);
        FUZZ_CHECK(answer.code() != errc::workspace_too_small || bytes > index_t{1} << 56);
        if (!answer.ok()) {
            FUZZ_CHECK(plan == keep_plan{});
        } else {
            FUZZ_CHECK(inputs.validate().ok());
            check_kept(policy, inputs, r, plan);
            keep_plan again;
            workspace less = memory.of_bytes(bytes);
            FUZZ_CHECK(policy.plan(inputs, r, again, less).ok() && again == plan);
        }
        if (!inputs.validate().ok() || !s.validate().ok()) { return; }
        with_policy(same, of_given, [&](const auto& policy_again) {
            keep_plan of_copies;
            FUZZ_CHECK(policy_again.plan(contiguous, r, of_copies, memory).code() == answer.code());
            FUZZ_CHECK(of_copies == plan);
        });
    });
    compact<T>(in, plan);
}

} // namespace

void run(fuzz::input& in) {
    if (in.chance(128)) {
        plan_and_compact<f16>(in);
    } else {
        plan_and_compact<float>(in);
    }
    flatten(in);
}
