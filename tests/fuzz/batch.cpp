// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Sequences of one batch, each with a request of its own, some of them impossible; in any order of work, with a workspace that
// may be too small.
//
// Model: each sequence planned alone. Plans and answers must be the same bit for bit, and a refused one keeps its plan.

#include "input.hpp"

#include <kvtrim/policy/baselines.hpp>
#include <kvtrim/policy/layers.hpp>
#include <kvtrim/policy/plan_batch.hpp>
#include <kvtrim/policy/snapkv.hpp>

using namespace kvtrim;

namespace {

keep_plan made_before() {
    keep_plan plan;
    const index_t count = 1;
    FUZZ_CHECK(plan.reset(std::span(&count, 1)).ok());
    plan.writable_row(0)[0] = 77;
    return plan;
}

using view = strided<const float, 3>;

struct sequence {
    std::vector<float> k, q;
    index_t heads, group, tokens, queries, dim;

    explicit sequence(fuzz::input& in)
        : heads(in.between(0, 3)), group(in.between(1, 2)), tokens(in.between(0, 40)),
          queries(in.between(0, 6)), dim(in.between(1, 5)) {
        k = fuzz::values(in, heads * tokens * dim);
        q = fuzz::values(in, heads * group * queries * dim);
    }
    [[nodiscard]] auto inputs() const {
        return layer(view(k.data(), {heads, tokens, dim}))
            .with_queries(view(q.data(), {heads * group, queries, dim}));
    }
};
using inputs = decltype(std::declval<const sequence&>().inputs());

// Runs items from the last to the first, as if by so many workers.
struct backwards {
    index_t workers;

    [[nodiscard]] index_t concurrency() const { return workers; }
    template <class Fn>
    void operator()(index_t count, Fn&& fn) const {
        for (index_t i = count; i-- > 0;) { fn(i); }
    }
};

} // namespace

void run(fuzz::input& in) {
    std::vector<sequence> sequences;
    std::vector<eviction_request> requests;
    for (index_t count = in.between(0, 5); count > 0; --count) {
        const sequence& s = sequences.emplace_back(in);
        requests.push_back(fuzz::request(in, s.heads, s.tokens, s.queries));
    }
    std::vector<inputs> all;
    for (const sequence& s : sequences) { all.push_back(s.inputs()); }
    const std::size_t n = all.size();
    const auto first = snapkv();
    const auto second = key_norm();
    const auto third = layer_ada_snapkv();

    // Alone.
    std::vector<keep_plan> expected(n, made_before());
    std::vector<status> answers_expected(n);
    std::vector<int> kind(n);
    growing_workspace memory;
    for (std::size_t i = 0; i < n; ++i) {
        kind[i] = static_cast<int>(in.between(0, 2));
        keep_plan plan = made_before();
        const std::span<const inputs> one(&all[i], 1);
        answers_expected[i] = kind[i] == 0   ? first.plan(all[i], requests[i], plan, memory)
                              : kind[i] == 1 ? second.plan(all[i], requests[i], plan, memory)
                                             : third.plan(one, requests[i], std::span(&plan, 1), memory);
        FUZZ_CHECK(answers_expected[i].ok() || plan == made_before());
        expected[i] = plan;
    }

    std::vector<keep_plan> plans(n, made_before());
    std::vector<status> answers(n);
    std::vector<batch_item> items;
    for (std::size_t i = 0; i < n; ++i) {
        if (kind[i] == 0) {
            items.emplace_back(first, all[i], requests[i], plans[i]);
        } else if (kind[i] == 1) {
            items.emplace_back(second, all[i], requests[i], plans[i]);
        } else {
            items.emplace_back(third, std::span<const inputs>(&all[i], 1), requests[i],
                               std::span(&plans[i], 1));
        }
    }
    const backwards ex{in.between(1, 4)};
    const index_t needed = plan_batch_bytes(std::span<const batch_item>(items), ex);
    if (in.chance(64) && needed > 0 && n > 0) { // too little
        workspace none(std::span<std::byte>{});
        const status s = plan_batch(std::span<const batch_item>(items), std::span(answers), none, ex);
        FUZZ_CHECK(s.code() == errc::workspace_too_small && s.needed() > 0);
        for (std::size_t i = 0; i < n; ++i) { FUZZ_CHECK(plans[i] == made_before() && answers[i].ok()); }
    }
    if (in.chance(32)) {
        std::vector<status> more(n + 1);
        FUZZ_CHECK(plan_batch(std::span<const batch_item>(items), std::span(more), memory, ex).code() ==
                   errc::invalid_parameter);
    }
    const status s = plan_batch(std::span<const batch_item>(items), std::span(answers), memory, ex);
    bool all_ok = true;
    for (std::size_t i = 0; i < n; ++i) {
        FUZZ_CHECK(answers[i] == answers_expected[i] && plans[i] == expected[i]);
        if (all_ok && !answers[i].ok()) { FUZZ_CHECK(s == answers[i]); }
        all_ok = all_ok && answers[i].ok();
    }
    FUZZ_CHECK(s.ok() == all_ok);

    // The same policy for all.
    std::vector<keep_plan> alike(n, made_before());
    std::vector<status> answers_alike(n);
    static_cast<void>(plan_batch(first, std::span<const inputs>(all),
                                 std::span<const eviction_request>(requests), std::span(alike),
                                 std::span(answers_alike), memory, ex));
    for (std::size_t i = 0; i < n; ++i) {
        if (kind[i] == 0) { FUZZ_CHECK(alike[i] == expected[i] && answers_alike[i] == answers_expected[i]); }
    }
}
