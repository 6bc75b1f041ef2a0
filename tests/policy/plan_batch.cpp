// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/policy/plan_batch.hpp>

#include "support/named_policies.hpp"

#include <kvtrim/compact/compact_to_flat.hpp>
#include <kvtrim/policy/baselines.hpp>
#include <kvtrim/policy/criticalkv.hpp>
#include <kvtrim/policy/defensivekv.hpp>
#include <kvtrim/policy/layers.hpp>
#include <kvtrim/rerank/chunked.hpp>

#include <deque>
#include <numeric>

using namespace kvtrim;
using namespace support;

namespace {

// A sequence of a batch: its own shape, budget and protection.
struct sequence {
    layer_data layer;
    std::vector<float> sink_logits;
    eviction_request request;
};

sequence random_sequence(support::random& r) {
    const index_t tokens = r.chance(0.1) ? 0 : r.between(1, 300);
    const layer_shape shape{.kv_heads = r.between(1, 3),
                            .group = r.between(1, 2),
                            .tokens = tokens,
                            .head_dim = 16,
                            .value_dim = 16,
                            .hidden = 20,
                            .queries = std::min<index_t>(tokens, r.between(1, 8))};
    sequence s{random_layer(shape, r.bits()), {}, {}};
    s.request = random_request(r, shape, s.sink_logits);
    s.request.budget =
        r.chance(0.5) ? per_head(r.between(0, tokens + 5)) : over_all_heads(r.between(1, 3 * tokens + 1));
    return s;
}

std::deque<sequence> random_sequences(support::random& r, index_t count) {
    std::deque<sequence> all;
    while (std::ssize(all) < count) { all.push_back(random_sequence(r)); }
    return all;
}

std::vector<inputs> inputs_of(const std::deque<sequence>& sequences) {
    std::vector<inputs> all;
    for (const sequence& s : sequences) { all.push_back(s.layer.inputs()); }
    return all;
}

std::vector<eviction_request> requests_of(const std::deque<sequence>& sequences) {
    std::vector<eviction_request> all;
    for (const sequence& s : sequences) { all.push_back(s.request); }
    return all;
}

struct result {
    status answer; // of the call
    std::vector<status> answers;
    std::vector<keep_plan> plans;

    explicit result(std::size_t sequences)
        : answers(sequences, status(errc::rows_differ, "as before")), plans(sequences, made_before()) {}
};

// What each sequence gets alone.
template <class PolicyOf>
result one_by_one(const PolicyOf& policy_of, const std::vector<inputs>& in,
                  const std::vector<eviction_request>& requests) {
    result r(in.size());
    growing_workspace memory;
    for (std::size_t i = 0; i < in.size(); ++i) {
        workspace scratch = memory.of_bytes(policy_of(i).workspace_bytes(in[i], requests[i]));
        r.answers[i] = policy_of(i).plan(in[i], requests[i], r.plans[i], scratch);
        if (r.answer.ok()) { r.answer = r.answers[i]; }
    }
    return r;
}

bool same(const status& a, const status& b) {
    return a.code() == b.code() && a.needed() == b.needed() && std::string(a.what()) == b.what();
}

void check_same(const result& got, const result& expected) {
    CHECK(same(got.answer, expected.answer));
    for (std::size_t i = 0; i < expected.plans.size(); ++i) {
        CAPTURE(i);
        CHECK(same(got.answers[i], expected.answers[i]));
        CHECK(got.plans[i] == expected.plans[i]);
    }
}

// The items in the order `order`, in exactly the memory they ask for, which is dirty.
template <class PolicyOf, class Executor>
result in_one_call(const PolicyOf& policy_of, const std::vector<inputs>& in,
                   const std::vector<eviction_request>& requests, const std::vector<std::size_t>& order,
                   Executor ex) {
    result r(in.size());
    std::vector<batch_item> items;
    for (const std::size_t i : order) { items.emplace_back(policy_of(i), in[i], requests[i], r.plans[i]); }
    std::vector<std::byte> bytes(static_cast<std::size_t>(plan_batch_bytes(items, ex)), std::byte{0xff});
    workspace scratch(bytes);
    std::vector<status> answers(in.size());
    r.answer = plan_batch(items, answers, scratch, ex);
    for (std::size_t i = 0; i < order.size(); ++i) { r.answers[order[i]] = answers[i]; }
    return r;
}

} // namespace

TEST_CASE("plan_batch: any mixture of lengths, budgets and policies is what each sequence gets alone",
          "[policy][batch]") {
    support::random r(811);
    int refused = 0, planned = 0;
    for (int turn = 0; turn < 3; ++turn) {
        const auto sequences = random_sequences(r, 2 * std::ssize(named_policies()));
        const auto in = inputs_of(sequences);
        const auto requests = requests_of(sequences);
        const auto policy_of = [](std::size_t i) -> const named_policy& {
            return named_policies()[i % named_policies().size()];
        };
        std::vector<std::size_t> order(in.size());
        std::iota(order.begin(), order.end(), std::size_t{0});
        const result expected = one_by_one(policy_of, in, requests);
        for (const status& s : expected.answers) { ++(s.ok() ? planned : refused); }

        check_same(in_one_call(policy_of, in, requests, order, serial_executor{}), expected);
        for (const int workers : {2, 3, 8}) {
            CAPTURE(turn, workers);
            check_same(in_one_call(policy_of, in, requests, order, counted_executor{workers}), expected);
        }
        check_same(in_one_call(policy_of, in, requests, order, shuffling_executor{r.bits()}), expected);
        for (std::size_t i = order.size(); i > 1; --i) { std::swap(order[i - 1], order[r.bits() % i]); }
        result shuffled = in_one_call(policy_of, in, requests, order, counted_executor{2});
        const auto first = std::find_if(order.begin(), order.end(),
                                        [&](std::size_t i) { return !expected.answers[i].ok(); });
        CHECK(same(shuffled.answer, first == order.end() ? status{} : expected.answers[*first]));
        shuffled.answer = expected.answer;
        check_same(shuffled, expected);
    }
    CHECK(planned > 60);
    CHECK(refused > 10);
}

TEST_CASE("plan_batch: sequences of one kind are what each gets alone", "[policy][batch]") {
    support::random r(812);
    const auto check = [&](const auto& policy) {
        const auto sequences = random_sequences(r, 12);
        const auto in = inputs_of(sequences);
        const auto requests = requests_of(sequences);
        using policy_type = std::remove_cvref_t<decltype(policy)>;
        const result expected =
            one_by_one([&](std::size_t) -> const policy_type& { return policy; }, in, requests);
        growing_workspace memory;
        const auto check_with = [&](auto ex) {
            result got(in.size());
            got.answer =
                plan_batch(policy, std::span<const inputs>(in), requests, got.plans, got.answers, memory, ex);
            check_same(got, expected);
        };
        check_with(serial_executor{});
        check_with(counted_executor{2});
        check_with(counted_executor{3});
        check_with(counted_executor{8});
        check_with(thread_executor{2}); // as many workers as the machine has threads
        check_with(shuffling_executor{r.bits()});
    };
    check(snapkv());
    check(ada_criticalkv());
    check(defensivekv());
    check(key_norm());
    check(streaming_llm());
    check(tova());
}

TEST_CASE("plan_batch: views of other kinds and whole models are items like any other", "[policy][batch]") {
    const auto data = random_layer({.tokens = 120}, 91);
    const eviction_request request{.budget = per_head(30), .protect = {.window_tokens = 8}};
    const auto plain = data.inputs();
    const auto decoded =
        layer(decoding_source(data.keys()), decoding_source(data.values())).with_queries(data.queries());
    const ragged_cache short_keys(data.keys(), {120, 50});
    const auto cut = layer(short_keys.get()).with_queries(data.queries());
    const std::vector<layer_data> owned{data, random_layer({.tokens = 120}, 92)};
    const std::vector<inputs> model{owned[0].inputs(), owned[1].inputs()};
    const auto ada = ada_snapkv();
    const auto all_layers = layer_ada_snapkv();

    std::vector<keep_plan> expected(5), got(5);
    growing_workspace memory;
    REQUIRE(ada.plan(plain, request, expected[0], memory).ok());
    REQUIRE(ada.plan(decoded, request, expected[1], memory).ok());
    REQUIRE(ada.plan(cut, request, expected[2], memory).ok());
    REQUIRE(all_layers.plan(std::span<const inputs>(model), request, std::span(expected).subspan(3), memory)
                .ok());

    const std::vector<batch_item> items{
        {ada, plain, request, got[0]},
        {ada, decoded, request, got[1]},
        {ada, cut, request, got[2]},
        {all_layers, std::span<const inputs>(model), request, std::span(got).subspan(3)}};
    std::vector<status> answers(items.size());
    CHECK(plan_batch(items, answers, memory, counted_executor{3}).ok());
    CHECK(got == expected);
    CHECK(got[0] == got[1]);
    CHECK(got[2] != got[0]);
}

TEST_CASE("plan_batch: a sequence of NaN and infinities changes no plan but its own", "[policy][batch]") {
    support::random r(813);
    const auto policy_of = [](std::size_t i) -> const named_policy& {
        return named_policies()[i % named_policies().size()];
    };
    auto sequences = random_sequences(r, std::ssize(named_policies()));
    const auto requests = requests_of(sequences);
    const result expected = one_by_one(policy_of, inputs_of(sequences), requests);
    const float poisons[] = {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                             -std::numeric_limits<float>::infinity()};
    std::vector<std::size_t> order(sequences.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    for (std::size_t broken = 0; broken < sequences.size(); ++broken) {
        const layer_data before = sequences[broken].layer;
        layer_data& layer = sequences[broken].layer;
        for (auto* values : {&layer.k, &layer.v, &layer.q}) {
            for (float& x : *values) { x = r.one_of(poisons); }
        }
        result got = in_one_call(policy_of, inputs_of(sequences), requests, order, counted_executor{2});
        layer = before;
        CAPTURE(broken);
        CHECK(same(got.answers[broken], expected.answers[broken])); // odd data are no error
        got.plans[broken] = expected.plans[broken];
        check_same(got, expected);
    }
}

TEST_CASE("plan_batch: who is refused gets the reason and keeps its plan, the first one is the answer",
          "[policy][batch]") {
    const auto data = random_layer({.tokens = 40, .queries = 8}, 93);
    const auto in = data.inputs();
    const auto short_data = random_layer({.tokens = 6, .queries = 6}, 94);
    const auto few_tokens = layer(short_data.keys()).with_queries(data.queries()); // 8 queries of 6 tokens
    const auto snap = snapkv();
    const auto keys_alone = key_norm();
    const auto later = chunked{.chunk_tokens = 0};
    const eviction_policy broken{window_attention{mean_attention{}}, uniform{}, later};
    const eviction_request good{.budget = per_head(20), .protect = {.window_tokens = 4}};
    std::vector<keep_plan> plans(6, made_before());
    const std::vector<batch_item> items{
        {snap, in, good, plans[0]},
        {keys_alone, in, {.budget = per_head(0)}, plans[1]},
        {snap, few_tokens, {.budget = per_head(3)}, plans[2]},
        {keys_alone, in, {.budget = per_head(3), .protect = {.window_tokens = 4}}, plans[3]},
        {broken, in, good, plans[4]},
        {keys_alone, in, good, plans[5]}};
    growing_workspace memory;
    for (const int workers : {1, 2, 8}) {
        std::fill(plans.begin(), plans.end(), made_before());
        std::vector<status> answers(items.size());
        const status s = plan_batch(items, answers, memory, counted_executor{workers});
        CHECK(s.code() == errc::budget_zero);
        CHECK(answers[0].ok());
        CHECK(answers[1].code() == errc::budget_zero);
        CHECK(answers[2].code() == errc::window_exceeds_tokens);
        CHECK(answers[3].code() == errc::budget_below_protection);
        CHECK(answers[3].needed() == 8);
        CHECK(answers[4].code() == errc::invalid_parameter);
        CHECK(answers[5].ok());
        for (const std::size_t i : {1u, 2u, 3u, 4u}) { CHECK(plans[i] == made_before()); }
        for (const std::size_t i : {0u, 5u}) { CHECK(plans[i].total_tokens() == 40); }
    }
}

TEST_CASE("plan_batch: an empty batch is ok and needs nothing", "[policy][batch]") {
    workspace nothing({});
    const auto policy = key_norm();
    CHECK(plan_batch_bytes({}) == 0);
    CHECK(plan_batch_bytes(policy, std::span<const inputs>{}, {}, counted_executor{8}) == 0);
    CHECK(plan_batch({}, {}, nothing).ok());
    CHECK(plan_batch(policy, std::span<const inputs>{}, {}, {}, {}, nothing, counted_executor{8}).ok());
}

TEST_CASE("plan_batch: a workspace that is too small plans nothing, answers nothing and says what is enough",
          "[policy][batch]") {
    const auto data = random_layer({.tokens = 90}, 95);
    const auto in = data.inputs();
    const auto policy = snapkv();
    const eviction_request request{.budget = per_head(20), .protect = {.window_tokens = 8}};
    std::vector<keep_plan> plans(3, made_before());
    const std::vector<batch_item> items{
        {policy, in, request, plans[0]}, {policy, in, request, plans[1]}, {policy, in, request, plans[2]}};
    std::vector<status> answers(3, status(errc::rows_differ, "as before"));
    const counted_executor ex{2};
    const index_t wide = plan_batch_bytes(items, ex),
                  bytes = plan_batch_bytes(items); // of one worker: enough
    CHECK(wide > 2 * items[0].workspace_bytes());
    CHECK(wide < 3 * items[0].workspace_bytes());
    CHECK(bytes < wide);
    std::vector<std::byte> memory(static_cast<std::size_t>(bytes) + 64);
    std::byte* const aligned =
        memory.data() + (-reinterpret_cast<std::uintptr_t>(memory.data()) % workspace::alignment_bytes);
    const auto answer = [&](index_t size) {
        workspace scratch({aligned, static_cast<std::size_t>(size)});
        return plan_batch(items, answers, scratch, ex);
    };
    for (const index_t size : {index_t{0}, index_t{64}, bytes - workspace::alignment_bytes - 1}) {
        const status s = answer(size);
        CHECK(s.code() == errc::workspace_too_small);
        CHECK(s.needed() == bytes);
        for (const status& a : answers) { CHECK(a.code() == errc::rows_differ); }
        for (const keep_plan& p : plans) { CHECK(p == made_before()); }
    }
    CHECK(answer(bytes - workspace::alignment_bytes).ok());
    CHECK(plans[0].total_tokens() == 40);
    CHECK(plans[1] == plans[0]);
}

TEST_CASE("plan_batch: what it took is given back", "[policy][batch]") {
    const auto data = random_layer({.tokens = 50}, 96);
    const auto in = data.inputs();
    const auto policy = key_norm();
    keep_plan plan;
    const std::vector<batch_item> items{{policy, in, {.budget = per_head(9)}, plan}};
    status answer;
    std::vector<std::byte> memory(static_cast<std::size_t>(plan_batch_bytes(items)));
    workspace scratch(memory);
    for (int turn = 0; turn < 3; ++turn) { CHECK(plan_batch(items, {&answer, 1}, scratch).ok()); }
}

TEST_CASE("plan_batch: numbers of sequences that differ are answered by the call, with no plan made and no "
          "answer given",
          "[policy][batch][errors]") {
    const auto data = random_layer({.tokens = 20}, 97);
    const std::vector<inputs> in{data.inputs(), data.inputs()};
    const std::vector<eviction_request> requests(3, {.budget = per_head(5)});
    std::vector<keep_plan> plans(3, made_before());
    std::vector<status> answers(3, status(errc::rows_differ, "as before"));
    const auto policy = key_norm();
    growing_workspace memory;
    const auto refused = [&](const status& s, index_t sequences) {
        for (const keep_plan& p : plans) { CHECK(p == made_before()); }
        for (const status& a : answers) { CHECK(a.code() == errc::rows_differ); }
        return s.code() == errc::invalid_parameter && s.needed() == sequences;
    };
    const auto answer = [&](std::size_t a, std::size_t b, std::size_t c) {
        return plan_batch(policy, std::span<const inputs>(in), std::span(requests).first(a),
                          std::span(plans).first(b), std::span(answers).first(c), memory);
    };
    for (const std::size_t other : {0u, 1u, 3u}) {
        CHECK(refused(answer(other, 2, 2), 2));
        CHECK(refused(answer(2, other, 2), 2));
        CHECK(refused(answer(2, 2, other), 2));
        CHECK(plan_batch_bytes(policy, std::span<const inputs>(in), std::span(requests).first(other)) == 0);
    }
    const std::vector<batch_item> items{{policy, in[0], requests[0], plans[0]}};
    CHECK(refused(plan_batch(items, answers, memory), 1));
    CHECK(refused(plan_batch(items, {}, memory), 1));
    CHECK(answer(2, 2, 2).ok());
}

TEST_CASE("plan_batch: a sequence with another number of plans than layers is refused, and stops no other",
          "[policy][batch][errors]") {
    const auto data = random_layer({.tokens = 20}, 97);
    const std::vector<inputs> in{data.inputs(), data.inputs()};
    const eviction_request request{.budget = per_head(5)};
    const auto all_layers = layer_ada_snapkv();
    for (const std::size_t count : {0u, 1u, 3u}) {
        std::vector<keep_plan> plans(3, made_before()), others(2, made_before());
        const std::vector<batch_item> items{
            {all_layers, std::span<const inputs>(in), request, std::span(plans).first(count)},
            {all_layers, std::span<const inputs>(in), request, std::span(others)}};
        std::vector<status> answers(2);
        growing_workspace memory;
        CHECK(plan_batch(items, answers, memory).code() == errc::invalid_parameter);
        CHECK(answers[0].needed() == 2); // plans
        CHECK(answers[1].ok());
        for (const keep_plan& p : plans) { CHECK(p == made_before()); }
        for (const keep_plan& p : others) { CHECK_FALSE(p == made_before()); }
    }
}

TEST_CASE("plan_batch: a plan that two sequences write is refused, as one or inside the plans of a model",
          "[policy][batch]") {
    const auto policy = ada_snapkv();
    const auto model = layer_ada_snapkv();
    const layer_shape shape{.kv_heads = 2, .tokens = 50, .head_dim = 16, .value_dim = 16, .queries = 4};
    const layer_data layer = random_layer(shape, 5);
    const std::vector<inputs> in(4, layer.inputs());
    const eviction_request request{.budget = per_head(10)};
    std::vector<keep_plan> plans(6, made_before());
    const auto before = plans;
    growing_workspace memory;
    const auto all = std::span<keep_plan>(plans);
    const auto layers = std::span<const inputs>(in);
    const auto answer_of = [&](const std::vector<batch_item>& items) {
        std::vector<status> answers(items.size(), status(errc::rows_differ, "as before"));
        const status s = plan_batch(items, answers, memory);
        if (s.code() == errc::invalid_parameter) {
            CHECK(plans == before);
            for (const status& a : answers) { CHECK(a.code() == errc::rows_differ); }
        }
        plans = before;
        return s.code();
    };
    const auto one = [&](std::size_t plan) { return batch_item(policy, in[0], request, plans[plan]); };
    const auto many = [&](std::size_t first, std::size_t count) {
        return batch_item(model, layers.first(count), request, all.subspan(first, count));
    };
    CHECK(answer_of({one(0), one(1), one(0)}) == errc::invalid_parameter);
    CHECK(answer_of({one(2), many(1, 3)}) == errc::invalid_parameter);
    CHECK(answer_of({many(3, 2), many(0, 4)}) == errc::invalid_parameter);
    CHECK(answer_of({many(0, 4), one(3), one(5)}) == errc::invalid_parameter);
    CHECK(answer_of({one(0), many(1, 3), one(4), many(5, 0), many(4, 0)}) == errc::ok);
    CHECK(answer_of({many(2, 2), one(4), many(0, 2)}) == errc::ok);
}

TEST_CASE("plan_batch: a plan that another sequence's ragged cache reads is refused as an output",
          "[policy][batch]") {
    const auto policy = streaming_llm();
    std::vector<float> data(2 * 40 * 8, 1.0f);
    std::vector<keep_plan> plans(3);
    for (keep_plan& p : plans) { REQUIRE(p.reset(std::vector<index_t>{40, 40}).ok()); }
    const auto before = plans;
    const auto cut = [&](std::size_t plan) { return flat_view(data.data(), plans[plan], 8); };
    const auto plain = strided<float, 3>(data.data(), {2, 40, 8});
    using cache = ragged<float>;
    const std::vector<layer_inputs<cache, cache>> in{layer(cut(2), cut(2)), layer(cut(0), cut(0))};
    const auto whole = layer(plain, plain);
    const eviction_request request{.budget = per_head(10)};
    const std::vector<eviction_request> requests(2, request);
    std::vector<status> answers(2, status(errc::rows_differ, "as before"));
    growing_workspace memory;

    // The second reads plan 0, which the first writes.
    CHECK(plan_batch(policy, std::span(in), std::span(requests), std::span(plans).first(2), answers, memory)
              .code() == errc::invalid_parameter);
    const std::vector<batch_item> items{{policy, in[1], request, plans[1]},
                                        {policy, whole, request, plans[0]}};
    CHECK(plan_batch(items, answers, memory).code() == errc::invalid_parameter);
    // Values that read a plan count like keys.
    const auto mixed = layer(plain, cut(0));
    const std::vector<batch_item> by_values{{policy, mixed, request, plans[1]},
                                            {policy, whole, request, plans[0]}};
    CHECK(plan_batch(by_values, answers, memory).code() == errc::invalid_parameter);
    CHECK(plans == before);
    CHECK(answers[0].code() == errc::rows_differ);
    // A plan of its own is the policy's to refuse, and stops no other sequence.
    const std::vector<batch_item> own{{policy, in[1], request, plans[0]}, {policy, whole, request, plans[1]}};
    CHECK(plan_batch(own, answers, memory).code() == errc::invalid_parameter);
    CHECK(answers[0].code() == errc::invalid_parameter);
    CHECK(answers[1].ok());
    CHECK(plans[0] == before[0]);
    // Plans that nobody reads.
    CHECK(plan_batch(std::vector<batch_item>{{policy, in[1], request, plans[1]}}, std::span(answers).first(1),
                     memory)
              .ok());
}
