// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Plans, scores and batches: calls of a policy of the table.
#include "policies.hpp"

#include <kvtrim/compact/project_to_shared.hpp>
#include <kvtrim/policy/plan_batch.hpp>

namespace kvtrim::c {

status read_call(const kvtrim_policy* policy, const kvtrim_layer* layers, index_t count,
                 const kvtrim_request* request, call& out) {
    if (policy == nullptr) { return invalid("the policy must not be null"); }
    if (layers == nullptr || count < 1 || count > most_heads) {
        return invalid("layers [layer_count]: there must be at least one");
    }
    if (const status s = read_request(request, out.asked); !s.ok()) { return s; }
    const policy_row& row = *policy->row;
    if ((row.needs & KVTRIM_TAKES_LAYERS) == 0 && count != 1) {
        return {errc::invalid_parameter, "this policy plans one layer at a time", 1};
    }
    kvtrim_layer first = {};
    if (const status s = read_struct(layers, first); !s.ok()) { return s; }
    if ((row.needs & KVTRIM_NEEDS_PROFILE) != 0 && out.asked.profile == nullptr) {
        return invalid("this policy needs request.profile");
    }
    out.layers.resize(static_cast<std::size_t>(count));
    for (index_t l = 0; l < count; ++l) { // what the first gives, every layer must
        layer_parts& in = out.layers[static_cast<std::size_t>(l)];
        if (const status s = read_layer(layers, row.wanted(first), in, l); !s.ok()) { return s; }
    }
    call_state state{.layer_shares = out.asked.layer_shares};
    const index_t shares = std::ssize(state.layer_shares);
    if ((row.needs & KVTRIM_NEEDS_LAYER_SHARES) != 0 && shares != count &&
        shares != saturated_product(count, extent(out.layers[0].keys, 0))) {
        return {errc::invalid_parameter, "this policy needs request.layer_shares [layers], or of each head",
                count};
    }
    if ((row.needs & KVTRIM_NEEDS_PROFILE) != 0) { state.profile = out.asked.profile->state.budgets(); }
    if ((row.needs & needs_any_rope) != 0) {
        if (const status s = read_rope(first.rope, state.rope); !s.ok()) { return s; }
    }
    if ((row.needs & KVTRIM_NEEDS_MEANS) != 0) { state.means = &first.means->state; }
    if ((row.needs & KVTRIM_NEEDS_RUNNING) != 0) { state.running = &first.running->state; }
    if ((row.needs & KVTRIM_NEEDS_STATISTICS) != 0) { state.statistics = &first.statistics->state; }
    out.policy = row.bind(policy->settings, state, out.layers);
    return {};
}

namespace {

/// The plans of a call in one piece, as the library writes them: taken from their handles, and put back.
class borrowed_plans {
  public:
    explicit borrowed_plans(std::span<kvtrim_plan* const> handles)
        : handles_(handles), tables_(handles.size()) {
        swap();
    }
    borrowed_plans(const borrowed_plans&) = delete;
    borrowed_plans& operator=(const borrowed_plans&) = delete;
    ~borrowed_plans() { swap(); }
    [[nodiscard]] std::span<keep_plan> tables() { return tables_; }

  private:
    void swap() {
        for (std::size_t i = 0; i < handles_.size(); ++i) { std::swap(handles_[i]->table, tables_[i]); }
    }

    std::span<kvtrim_plan* const> handles_;
    std::vector<keep_plan> tables_;
};

status valid_plans(kvtrim_plan* const* plans, index_t count, index_t layers) {
    if (plans == nullptr || count != layers) {
        return {errc::invalid_parameter, "plans [plan_count]: one for each layer", layers};
    }
    std::vector<const kvtrim_plan*> sorted(plans, plans + count);
    std::sort(sorted.begin(), sorted.end(), std::less<>{});
    if (sorted.front() == nullptr) { return invalid("a plan must not be null"); }
    const bool twice = std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end();
    return twice ? invalid("plans must differ") : status{};
}

status read_planned_call(const kvtrim_policy* policy, const kvtrim_layer* layers, index_t count,
                         const kvtrim_request* request, kvtrim_plan* const* plans, index_t plan_count,
                         call& out) {
    if (const status s = c::read_call(policy, layers, count, request, out); !s.ok()) { return s; }
    return valid_plans(plans, plan_count, count);
}

/// What plan_batch() asks of a policy, where every sequence has its own.
struct policy_of_call {
    using inputs = std::pair<const call*, std::span<kvtrim_plan* const>>;

    [[nodiscard]] index_t workspace_bytes(const inputs& in, const eviction_request& r) const {
        return in.first->policy->bytes(r, {});
    }
    [[nodiscard]] status plan(const inputs& in, const eviction_request& r, keep_plan&,
                              workspace& scratch) const {
        borrowed_plans plans(in.second);
        return in.first->policy->plan(r, plans.tables(), scratch, {});
    }
};

} // namespace
} // namespace kvtrim::c

using namespace kvtrim;
using namespace kvtrim::c;

extern "C" {

kvtrim_status kvtrim_plan_create(kvtrim_plan** plan) {
    return guarded([&] { return make(plan); });
}
void kvtrim_plan_destroy(kvtrim_plan* plan) {
    delete plan;
}
int64_t kvtrim_plan_rows(const kvtrim_plan* plan) {
    return plan == nullptr ? 0 : plan->table.rows();
}
const int32_t* kvtrim_plan_offsets(const kvtrim_plan* plan) {
    return plan == nullptr ? nullptr : plan->table.offsets().data();
}
const int32_t* kvtrim_plan_kept(const kvtrim_plan* plan) {
    return plan == nullptr ? nullptr : plan->table.kept().data();
}

kvtrim_status kvtrim_plan_assign(kvtrim_plan* plan, const int32_t* offsets, int64_t rows,
                                 const int32_t* kept) {
    return guarded([&]() -> status {
        if (plan == nullptr || offsets == nullptr || rows < 0 || rows > most_heads) {
            return invalid("plan_assign: plan, offsets [rows + 1]");
        }
        const auto begins = counted(offsets, rows + 1);
        if (begins.front() != 0 || !std::is_sorted(begins.begin(), begins.end()) ||
            (kept == nullptr && begins.back() > 0)) {
            return {errc::invalid_table,
                    "plan_assign: offsets start at 0 and do not decrease, kept [offsets[rows]]"};
        }
        std::vector<index_t> counts;
        for (std::size_t h = 1; h < begins.size(); ++h) { counts.push_back(begins[h] - begins[h - 1]); }
        keep_plan made;
        if (const status s = made.reset(counts); !s.ok()) { return s; }
        for (index_t h = 0; h < rows; ++h) {
            std::copy_n(kept + offsets[h], counts[static_cast<std::size_t>(h)], made.writable_row(h).begin());
        }
        if (!made.check_invariants([](index_t) { return std::numeric_limits<index_t>::max(); })) {
            return {errc::invalid_table, "plan_assign: kept rows ascend from 0 on"};
        }
        plan->table = std::move(made);
        return {};
    });
}

kvtrim_status kvtrim_plan_share(const kvtrim_plan* plan, int64_t tokens, int64_t kept_tokens,
                                kvtrim_plan* out, kvtrim_context* context) {
    return guarded([&]() -> status {
        if (plan == nullptr || out == nullptr || context == nullptr) {
            return invalid("plan_share: plan, out and context must not be null");
        }
        constexpr index_t most = std::numeric_limits<std::int32_t>::max();
        if (tokens > most) {
            return {errc::index_overflow, "plan_share: a cache has at most 2^31 - 1 rows", most};
        }
        workspace scratch = context->memory.of_bytes(project_to_shared_bytes(plan->table, tokens));
        return kept_tokens == 0 ? project_to_shared(plan->table, tokens, any_head, out->table, scratch)
                                : project_to_shared(plan->table, tokens, kept_tokens, out->table, scratch);
    });
}

kvtrim_status kvtrim_plan_layers(const kvtrim_policy* policy, const kvtrim_layer* layers, int64_t layer_count,
                                 const kvtrim_request* request, kvtrim_plan* const* plans, int64_t plan_count,
                                 kvtrim_context* context) {
    return guarded([&]() -> status {
        if (context == nullptr) { return invalid("the context must not be null"); }
        call in;
        const status s = read_planned_call(policy, layers, layer_count, request, plans, plan_count, in);
        if (!s.ok()) { return s; }
        const any_executor& ex = context->executor;
        workspace scratch = context->memory.of_bytes(in.policy->bytes(in.asked.value, ex));
        borrowed_plans out(std::span(plans, static_cast<std::size_t>(plan_count)));
        return in.policy->plan(in.asked.value, out.tables(), scratch, ex);
    });
}

kvtrim_status kvtrim_plan_batch(kvtrim_batch_item* items, int64_t count, kvtrim_context* context) {
    return guarded([&]() -> status {
        if (context == nullptr || count < 0 || count > most_heads || (items == nullptr && count > 0)) {
            return invalid("plan_batch: items [count], and a context");
        }
        const auto all = counted(items, count);
        std::vector<kvtrim_plan*> every_plan;
        for (const kvtrim_batch_item& item : all) {
            if (item.size < sizeof(item)) { return invalid("plan_batch: size must be sizeof the item"); }
            // Other counts are refused where the item is read.
            if (item.plans != nullptr && item.plan_count == item.layer_count && 0 < item.plan_count &&
                item.plan_count <= most_heads) {
                every_plan.insert(every_plan.end(), item.plans, item.plans + item.plan_count);
            }
        }
        std::sort(every_plan.begin(), every_plan.end(), std::less<>{});
        if (std::adjacent_find(every_plan.begin(), every_plan.end()) != every_plan.end()) {
            return invalid("plan_batch: sequences must not share plans");
        }
        const policy_of_call policy;
        std::vector<call> calls(all.size());
        std::vector<policy_of_call::inputs> inputs(all.size());
        std::vector<batch_item> batch;
        std::vector<std::size_t> planned;          // the items in the batch
        std::vector<keep_plan> unused(all.size()); // a batch wants a plan of each sequence
        for (std::size_t i = 0; i < all.size(); ++i) {
            kvtrim_batch_item& item = all[i];
            const status s = read_planned_call(item.policy, item.layers, item.layer_count, item.request,
                                               item.plans, item.plan_count, calls[i]);
            item.answer = answer(s);
            if (!s.ok()) { continue; }
            inputs[i] = {&calls[i], std::span(item.plans, static_cast<std::size_t>(item.plan_count))};
            batch.emplace_back(policy, inputs[i], calls[i].asked.value, unused[i]);
            planned.push_back(i);
        }
        for (const call& c : calls) {
            if (std::any_of(every_plan.begin(), every_plan.end(), [&](const kvtrim_plan* plan) {
                    return plan != nullptr &&
                           std::any_of(c.layers.begin(), c.layers.end(), [&](const layer_parts& l) {
                               return reads_tables_of(inputs_of<with_both>(l), plan->table);
                           });
                })) {
                return invalid("plan_batch: a view of one sequence reads the plan of another, or its own");
            }
        }
        std::vector<status> answers(batch.size());
        const status s = plan_batch(batch, answers, context->memory, context->executor);
        const bool none_planned =
            !s.ok() && std::all_of(answers.begin(), answers.end(), [](const status& a) { return a.ok(); });
        for (std::size_t b = 0; b < planned.size(); ++b) {
            all[planned[b]].answer = answer(none_planned ? s : answers[b]);
        }
        for (const kvtrim_batch_item& item : all) {
            if (item.answer.code != KVTRIM_OK) {
                return {static_cast<errc>(item.answer.code), item.answer.text, item.answer.needed};
            }
        }
        return s;
    });
}

kvtrim_status kvtrim_scores_create(kvtrim_scores** scores) {
    return guarded([&] { return make(scores); });
}
void kvtrim_scores_destroy(kvtrim_scores* scores) {
    delete scores;
}
int64_t kvtrim_scores_rows(const kvtrim_scores* scores) {
    return scores == nullptr ? 0 : scores->table.rows();
}
const int64_t* kvtrim_scores_offsets(const kvtrim_scores* scores) {
    return scores == nullptr ? nullptr : scores->table.offsets().data();
}
const float* kvtrim_scores_importance(const kvtrim_scores* scores) {
    return scores == nullptr ? nullptr : scores->table.importance().data();
}

kvtrim_status kvtrim_score_layer(const kvtrim_policy* policy, const kvtrim_layer* layer,
                                 const kvtrim_request* request, kvtrim_scores* scores,
                                 kvtrim_context* context) {
    return guarded([&]() -> status {
        if (scores == nullptr || context == nullptr) {
            return invalid("scores and context must not be null");
        }
        call in;
        if (const status s = c::read_call(policy, layer, 1, request, in); !s.ok()) { return s; }
        return in.policy->score(0, in.asked.value, scores->table, context->memory, context->executor);
    });
}

} // extern "C"
