// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// A layer in views of any strides over one buffer, a policy's plan for it, and every way to carry the plan out.
//
// Model: the elements that each view shows beforehand, read one by one. A view whose own elements share bytes, or keys and
// values that share some but do not move as one, must be refused, and a refused call changes nothing.

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

#include <algorithm>
#include <map>
#include <set>

using namespace kvtrim;

namespace {

constexpr index_t buffer_elements = 6000;

struct shape {
    index_t heads, tokens, length;
};

// A view that lies in the buffer; or one that is not valid.
template <class T>
strided<T, 3> view_in(fuzz::input& in, std::vector<T>& buffer, const shape& s) {
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
std::vector<T> shown(const strided<T, 3>& v) {
    std::vector<T> all;
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
bool is_simple(const strided<T, 3>& v) {
    const auto all = places(v);
    return std::set<const T*>(all.begin(), all.end()).size() == all.size();
}

enum class sharing { apart, inside, mixed };

// How the rows of two views lie in each other; `inside`: each row of one in the other's row of the same head and token.
template <class T>
sharing sharing_of(const strided<T, 3>& a, const strided<T, 3>& b) {
    const auto in_a = places(a), in_b = places(b);
    const std::set<const T*> set_a(in_a.begin(), in_a.end());
    if (std::none_of(in_b.begin(), in_b.end(), [&](const T* p) { return set_a.count(p) > 0; })) {
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

// fn(policy, window that it needs): one of many.
template <class Fn>
void with_policy(fuzz::input& in, Fn&& fn) {
    constexpr pooling pools[] = {pooling::average, pooling::maximum, pooling::none};
    const mean_attention mean{.pool = in.one_of(pools),
                              .kernel_tokens = in.hostile(2 * in.between(0, 4) + 1, 8)};
    switch (in.between(0, 9)) {
    case 0:
        return fn(snapkv(mean), true);
    case 1:
        return fn(ada_snapkv(mean, adaptive{.safeguard_ratio = static_cast<double>(in.value())}), true);
    case 2:
        return fn(defensivekv(), true);
    case 3:
        return fn(streaming_llm(), false);
    case 4:
        return fn(tova(), true);
    case 5:
        return fn(key_norm(), false);
    case 6:
        return fn(key_diff(), false);
    case 7:
        return fn(kvtrim::random(in.number<std::uint32_t>()), false);
    case 8:
        return fn(eviction_policy{key_norm_score{}, uniform{},
                                  chunked{.chunk_tokens = in.hostile(in.between(1, 9))}},
                  false);
    default:
        return fn(eviction_policy{window_attention{mean}, uniform{}, shared{}}, true);
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
    std::set<const T*> may_change;
    for (const T* p : places(keys)) { may_change.insert(p); }

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
        for (const T* p : places(values)) { may_change.insert(p); }
    }
    for (std::size_t i = 0; i < buffer.size(); ++i) {
        FUZZ_CHECK(may_change.count(buffer.data() + i) > 0 || fuzz::same_bits(buffer[i], old_buffer[i]));
    }
}

// The same cache without strides, compacted to the front of its buffer.
void flatten(fuzz::input& in) {
    const shape s{in.between(1, 4), in.between(0, 30), in.between(0, 5)};
    std::vector<float> buffer = fuzz::values(in, s.heads * s.tokens * s.length + 8);
    const strided cache(buffer.data(), {s.heads, s.tokens, s.length});
    const auto old = shown(cache);
    const keep_plan plan = any_plan(in, s.heads, s.tokens);
    const status answer = compact_to_flat(cache, plan);
    FUZZ_CHECK(answer.ok() == fits(plan, s.heads, s.tokens));
    if (!answer.ok()) { return; }
    std::size_t next = 0;
    for (index_t g = 0; g < s.heads; ++g) {
        for (const auto t : plan.row(g)) {
            for (index_t d = 0; d < s.length; ++d) {
                FUZZ_CHECK(fuzz::same_bits(buffer[next++],
                                           old[static_cast<std::size_t>((g * s.tokens + t) * s.length + d)]));
            }
        }
    }
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

} // namespace

void run(fuzz::input& in) {
    const index_t kv_heads = in.between(0, 4), group = in.between(1, 3), tokens = in.between(0, 50),
                  dim = in.between(0, 9);
    const index_t queries = in.between(0, 12);
    const auto k = fuzz::values(in, kv_heads * tokens * dim);
    const auto v = fuzz::values(in, kv_heads * tokens * dim);
    const auto q = fuzz::values(in, kv_heads * group * queries * dim);
    const auto w = fuzz::values(in, kv_heads * group * dim * 3);
    const auto hostile_view = [&](const std::vector<float>& data, const std::array<index_t, 3>& extents) {
        std::array<index_t, 3> odd = extents;
        if (in.chance(24)) { odd[static_cast<std::size_t>(in.between(0, 2))] = in.hostile(-1, 255); }
        // Memory is promised: an extent that the view accepts must not be larger.
        strided<const float, 3> view(data.data(), odd);
        return view.validate().ok() && odd[0] * odd[1] * odd[2] > std::ssize(data)
                   ? strided<const float, 3>(data.data(), extents)
                   : view;
    };
    keep_plan plan;
    with_policy(in, [&](const auto& policy, bool needs_window) {
        const auto inputs =
            layer(hostile_view(k, {kv_heads, tokens, dim}), hostile_view(v, {kv_heads, tokens, dim}))
                .with_queries(hostile_view(q, {kv_heads * group, queries, dim}))
                .with_output_projection(hostile_view(w, {kv_heads * group, dim, 3}));
        const eviction_request r =
            fuzz::request(in, kv_heads, tokens, needs_window ? queries : in.between(0, 4));
        growing_workspace memory;
        const index_t bytes = policy.workspace_bytes(inputs, r);
        workspace scratch = memory.of_bytes(bytes);
        const status answer = policy.plan(inputs, r, plan, scratch);
        FUZZ_CHECK(answer.code() != errc::workspace_too_small || bytes > index_t{1} << 56);
        if (!answer.ok()) {
            FUZZ_CHECK(plan == keep_plan{});
            return;
        }
        FUZZ_CHECK(inputs.validate().ok());
        FUZZ_CHECK(fits(plan, inputs.kv_heads(), inputs.longest_row()));
        const index_t all = inputs.kv_heads() * inputs.longest_row();
        FUZZ_CHECK(plan.total_tokens() <=
                       std::min(all, std::max(r.budget.total(inputs.kv_heads()), index_t{0})) ||
                   plan.total_tokens() == all);
        const token_range free = candidates(r.protect, inputs.longest_row());
        for (index_t g = 0; g < plan.rows(); ++g) {
            index_t outside = 0;
            for (const auto t : plan.row(g)) { outside += t < free.begin || t >= free.end ? 1 : 0; }
            FUZZ_CHECK(outside == inputs.longest_row() - free.size());
        }
        keep_plan again;
        workspace less = memory.of_bytes(bytes);
        FUZZ_CHECK(policy.plan(inputs, r, again, less).ok() && again == plan);
    });
    if (in.chance(128)) {
        compact<float>(in, plan);
    } else {
        compact<f16>(in, plan);
    }
    flatten(in);
}
