// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// One call for the sequences of a batch, each with its own length, budget and policy.
//
//   alike        plan_batch(policy, inputs, requests, plans, answers, memory, executor)
//   of any kind  plan_batch(items, answers, memory, executor), items[i] = {policy, inputs, request, plan}
//
//   inputs, requests, plans, answers   [sequences]; a padded tensor [sequences, heads, tokens, head_dim] is a view per
//                                      sequence, of its own length
//
// answers[i] is what policy.plan() says of sequence i alone, and its plan is the same bit for bit: sequences share no
// scratch and no sums. A sequence that is refused keeps its plan and does not stop the others. Errors of the call itself
// (numbers of sequences that differ, too little workspace) are returned with no plan made and no answer given.
//
// Each worker takes one sequence at a time (core/for_each_item.hpp), those with the most scratch first: they are the
// longest, and if one of them started last, the other workers would wait for it. Inside a sequence the policy runs serially.
// Memory: per worker the workspace of the largest sequence, 16 bytes per sequence, and the tables of the plans.
// Compaction needs no such call: it has no scratch and is bound by memory bandwidth, so a loop over the sequences is enough.

#include <kvtrim/core/eviction_request.hpp>
#include <kvtrim/core/for_each_item.hpp>
#include <kvtrim/plan/keep_plan.hpp>
#include <kvtrim/plan/plan_best.hpp>

#include <algorithm>
#include <functional>
#include <type_traits>

namespace KVTRIM_NAMESPACE {

/// A sequence of a batch: refers to its policy, inputs and plan, which must outlive it. Nothing is allocated.
class batch_item {
  public:
    /// One layer; the policy is any with workspace_bytes(in, request) and plan(in, request, out, workspace).
    template <class Policy, class Inputs>
    batch_item(Policy&& policy, Inputs&& in, const eviction_request& request, keep_plan& out)
        : policy_(&policy), inputs_(&in), plans_(&out, 1), request_(request),
          bytes_(bytes_of_one<std::remove_cvref_t<Policy>, std::remove_cvref_t<Inputs>>),
          plan_(plan_one<std::remove_cvref_t<Policy>, std::remove_cvref_t<Inputs>>),
          reads_(reads_any<std::remove_cvref_t<Inputs>>) {
        static_assert(std::is_lvalue_reference_v<Policy> && std::is_lvalue_reference_v<Inputs>,
                      "kvtrim: a batch_item refers to its policy and inputs: pass variables that outlive it, "
                      "no temporaries; see policy/plan_batch.hpp");
    }
    /// All layers of a sequence under one budget (policy/layer_wise.hpp), a plan per layer; another number of plans is what
    /// the policy refuses.
    template <class Policy, class Inputs>
    batch_item(Policy&& policy, std::span<const Inputs> layers, const eviction_request& request,
               std::span<keep_plan> out)
        : policy_(&policy), inputs_(layers.data()), layers_(layers.size()), plans_(out), request_(request),
          bytes_(bytes_of_all<std::remove_cvref_t<Policy>, Inputs>),
          plan_(plan_all<std::remove_cvref_t<Policy>, Inputs>), reads_(reads_any<Inputs>) {
        static_assert(std::is_lvalue_reference_v<Policy>,
                      "kvtrim: a batch_item refers to its policy: pass a variable that outlives it, no "
                      "temporary; see policy/plan_batch.hpp");
    }

    [[nodiscard]] index_t workspace_bytes() const { return bytes_(*this); } ///< what the policy needs for it
    /// Plans it. Returns what the policy answers.
    [[nodiscard]] status plan(workspace& scratch) const { return plan_(*this, scratch); }
    [[nodiscard]] std::span<const keep_plan> plans() const { return plans_; } ///< what it writes
    /// Whether a ragged view of its inputs reads its offsets from this plan.
    [[nodiscard]] bool reads(const keep_plan& plan) const { return reads_(*this, plan); }

  private:
    template <class T>
    [[nodiscard]] static const T& as(const void* object) {
        return *static_cast<const T*>(object);
    }
    template <class Inputs>
    [[nodiscard]] std::span<const Inputs> layers() const {
        return {static_cast<const Inputs*>(inputs_), layers_};
    }

    template <class Policy, class Inputs>
    [[nodiscard]] static index_t bytes_of_one(const batch_item& i) {
        return as<Policy>(i.policy_).workspace_bytes(as<Inputs>(i.inputs_), i.request_);
    }
    template <class Policy, class Inputs>
    [[nodiscard]] static status plan_one(const batch_item& i, workspace& scratch) {
        return as<Policy>(i.policy_).plan(as<Inputs>(i.inputs_), i.request_, i.plans_.front(), scratch);
    }
    template <class Policy, class Inputs>
    [[nodiscard]] static index_t bytes_of_all(const batch_item& i) {
        return as<Policy>(i.policy_).workspace_bytes(i.layers<Inputs>(), i.request_);
    }
    template <class Policy, class Inputs>
    [[nodiscard]] static status plan_all(const batch_item& i, workspace& scratch) {
        return as<Policy>(i.policy_).plan(i.layers<Inputs>(), i.request_, i.plans_, scratch);
    }

    template <class Inputs>
    [[nodiscard]] static bool reads_any(const batch_item& i, const keep_plan& plan) {
        const auto layers = i.layers<Inputs>();
        return std::any_of(layers.begin(), layers.end(),
                           [&](const Inputs& in) { return reads_tables_of(in, plan); });
    }

    const void* policy_;
    const void* inputs_;
    std::size_t layers_ = 1;
    std::span<keep_plan> plans_;
    eviction_request request_;
    index_t (*bytes_)(const batch_item&);
    status (*plan_)(const batch_item&, workspace&);
    bool (*reads_)(const batch_item&, const keep_plan&);
};

namespace detail {

struct sized_sequence {
    index_t bytes; // of scratch
    index_t sequence;
};

// bytes_of(i) is the scratch of sequence i.
template <class BytesOf, class Executor>
[[nodiscard]] index_t batch_bytes(index_t sequences, BytesOf&& bytes_of, const Executor& ex) {
    index_t largest = 0;
    for (index_t i = 0; i < sequences; ++i) { largest = std::max(largest, bytes_of(i)); }
    workspace counting = workspace::counting();
    static_cast<void>(counting.take<sized_sequence>(sequences));
    static_cast<void>(counting.take<std::byte>(for_each_item_bytes(ex, sequences, largest)));
    return counting.needed_bytes();
}

// Checks that no two sequences write the same plan and none reads a plan that another writes; they run at the same time.
// plans_of(i): the plans that sequence i writes. reads(i, plan): whether it reads this one. A sequence that reads a plan of its
// own is refused by its policy. order [sequences] is scratch. O(sequences * log(sequences)), and sequences * plans where inputs
// can read plans.
template <class PlansOf, class Reads>
[[nodiscard]] status check_sequences(std::span<sized_sequence> order, PlansOf&& plans_of, Reads&& reads) {
    const auto begin_of = [&](const sized_sequence& s) { return plans_of(s.sequence).data(); };
    for (std::size_t i = 0; i < order.size(); ++i) { order[i] = {0, static_cast<index_t>(i)}; }
    std::sort(order.begin(), order.end(), [&](const sized_sequence& a, const sized_sequence& b) {
        return std::less<>{}(begin_of(a), begin_of(b));
    });
    const keep_plan* end = nullptr; // of the plans so far
    for (const sized_sequence& s : order) {
        const auto plans = plans_of(s.sequence);
        if (plans.empty()) { continue; }
        if (end != nullptr && std::less<>{}(plans.data(), end)) {
            return {errc::invalid_parameter, "plan_batch: two sequences have the same output plan"};
        }
        end = plans.data() + plans.size();
    }
    for (const sized_sequence& writer : order) {
        for (const keep_plan& plan : plans_of(writer.sequence)) {
            const bool is_read = std::any_of(order.begin(), order.end(), [&](const sized_sequence& reader) {
                return reader.sequence != writer.sequence && reads(reader.sequence, plan);
            });
            if (is_read) {
                return {errc::invalid_parameter,
                        "plan_batch: an output is a plan that a ragged view of another sequence reads"};
            }
        }
    }
    return {};
}

// plan(i, scratch) answers for sequence i; plans_of and reads as above.
template <class BytesOf, class Plan, class PlansOf, class Reads, class Executor>
[[nodiscard]] status plan_sequences(std::span<status> answers, BytesOf&& bytes_of, Plan&& plan,
                                    PlansOf&& plans_of, Reads&& reads, workspace& scratch, Executor& ex) {
    const index_t sequences = std::ssize(answers);
    const index_t bytes = batch_bytes(sequences, bytes_of, serial_executor{}); // enough for any
    if (!scratch.holds(bytes)) { return scratch.too_small(bytes); }
    if (sequences == 0) { return {}; }
    const workspace::frame frame(scratch);
    const auto order = scratch.take<sized_sequence>(sequences);
    if (const status s = check_sequences(order, plans_of, reads); !s.ok()) { return s; }
    for (index_t i = 0; i < sequences; ++i) { order[static_cast<std::size_t>(i)] = {bytes_of(i), i}; }
    std::sort(order.begin(), order.end(), [](const sized_sequence& a, const sized_sequence& b) {
        return a.bytes > b.bytes || (a.bytes == b.bytes && a.sequence < b.sequence);
    });
    const status done =
        for_each_item(sequences, order.front().bytes, scratch, ex, [&](index_t item, workspace& own) {
            const index_t i = order[static_cast<std::size_t>(item)].sequence;
            answers[static_cast<std::size_t>(i)] = plan(i, own);
        });
    if (!done.ok()) { return done; }
    const auto refused =
        std::find_if_not(answers.begin(), answers.end(), [](const status& a) { return a.ok(); });
    return refused == answers.end() ? status{} : *refused;
}

} // namespace detail

/// Bytes of workspace for plan_batch() at the full width of this executor; those for one worker are enough.
template <class Executor = serial_executor>
[[nodiscard]] index_t plan_batch_bytes(std::span<const batch_item> items, const Executor& ex = {}) {
    return detail::batch_bytes(
        std::ssize(items), [&](index_t i) { return items[static_cast<std::size_t>(i)].workspace_bytes(); },
        ex);
}
/// The same for sequences of one kind; 0 unless there is one request per sequence.
template <class Policy, class Inputs, class Executor = serial_executor>
[[nodiscard]] index_t plan_batch_bytes(const Policy& policy, std::span<const Inputs> inputs,
                                       std::span<const eviction_request> requests, const Executor& ex = {}) {
    if (requests.size() != inputs.size()) { return 0; }
    const auto bytes_of = [&](index_t i) {
        const auto at = static_cast<std::size_t>(i);
        return policy.workspace_bytes(inputs[at], requests[at]);
    };
    return detail::batch_bytes(std::ssize(inputs), bytes_of, ex);
}

/// Plans every sequence. Returns the answer of the first one that was refused, or ok: answers [sequences] has them all.
/// Returns invalid_parameter for another number of answers (needed: sequences), and for a plan that two sequences write, or one
/// writes and a ragged view of another reads; or workspace_too_small; with no plan made and no answer given.
template <class Executor = serial_executor>
[[nodiscard]] status plan_batch(std::span<const batch_item> items, std::span<status> answers,
                                workspace& scratch, Executor&& ex = {}) {
    if (answers.size() != items.size()) {
        return {errc::invalid_parameter, "plan_batch: there must be one answer per sequence",
                std::ssize(items)};
    }
    const auto at = [&](index_t i) -> const batch_item& { return items[static_cast<std::size_t>(i)]; };
    return detail::plan_sequences(
        answers, [&](index_t i) { return at(i).workspace_bytes(); },
        [&](index_t i, workspace& own) { return at(i).plan(own); }, [&](index_t i) { return at(i).plans(); },
        [&](index_t i, const keep_plan& plan) { return at(i).reads(plan); }, scratch, ex);
}

/// The same for sequences of one kind; invalid_parameter also for another number of requests or plans.
template <class Policy, class Inputs, class Executor = serial_executor>
[[nodiscard]] status plan_batch(const Policy& policy, std::span<const Inputs> inputs,
                                std::span<const eviction_request> requests, std::span<keep_plan> plans,
                                std::span<status> answers, workspace& scratch, Executor&& ex = {}) {
    if (requests.size() != inputs.size() || plans.size() != inputs.size() ||
        answers.size() != inputs.size()) {
        return {errc::invalid_parameter,
                "plan_batch: there must be one request, plan and answer per sequence", std::ssize(inputs)};
    }
    const auto at = [](index_t i) { return static_cast<std::size_t>(i); };
    return detail::plan_sequences(
        answers, [&](index_t i) { return policy.workspace_bytes(inputs[at(i)], requests[at(i)]); },
        [&](index_t i, workspace& own) {
            return policy.plan(inputs[at(i)], requests[at(i)], plans[at(i)], own);
        },
        [&](index_t i) { return std::span<const keep_plan>(plans).subspan(at(i), 1); },
        [&](index_t i, const keep_plan& plan) { return reads_tables_of(inputs[at(i)], plan); }, scratch, ex);
}

/// The same with a workspace that grows on first use and then stays.
template <class Executor = serial_executor>
[[nodiscard]] status plan_batch(std::span<const batch_item> items, std::span<status> answers,
                                growing_workspace& memory, Executor&& ex = {}) {
    workspace scratch = memory.of_bytes(plan_batch_bytes(items, ex));
    return plan_batch(items, answers, scratch, ex);
}
/// The same for sequences of one kind.
template <class Policy, class Inputs, class Executor = serial_executor>
[[nodiscard]] status plan_batch(const Policy& policy, std::span<const Inputs> inputs,
                                std::span<const eviction_request> requests, std::span<keep_plan> plans,
                                std::span<status> answers, growing_workspace& memory, Executor&& ex = {}) {
    workspace scratch = memory.of_bytes(plan_batch_bytes(policy, inputs, requests, ex));
    return plan_batch(policy, inputs, requests, plans, answers, scratch, ex);
}

} // namespace KVTRIM_NAMESPACE
