// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// One token set for all heads and layers, and the edits of an engine that cuts its cache by positions.
#include "policies.hpp"

#include <kvtrim/compact/edit_cells.hpp>

struct kvtrim_cells {
    kvtrim_cells(const kvtrim::cell_scores::request& r, const kvtrim::attention_options& a)
        : sink_logits(a.sink_logits.begin(), a.sink_logits.end()), attention(a),
          scratch(memory.of_bytes(r.workspace_bytes())), state(r, scratch) {
        attention.sink_logits = sink_logits; // the request's need not outlive its call
    }

    std::vector<float> sink_logits;
    kvtrim::attention_options attention;
    kvtrim::growing_workspace memory;
    kvtrim::workspace scratch;
    kvtrim::cell_scores state;
};

namespace kvtrim::c {
namespace {

/// What cell_scores asks of a policy.
struct scored_call {
    [[nodiscard]] status score(const call& in, const eviction_request& r, score_table& out,
                               growing_workspace& memory, const any_executor& ex) const {
        return in.policy->score(0, r, out, memory, ex);
    }
};

status read_edit(const kvtrim_cell_edit* given, kvtrim_cell_edit& out) {
    if (const status s = read_struct(given, out); !s.ok()) { return s; }
    if (out.close < KVTRIM_KEEP_POSITIONS || out.close > KVTRIM_TOWARDS_HORIZON) {
        return invalid("edit_cells: no such closing");
    }
    return valid_counted(out.positions, out.position_count, "edit_cells: positions [position_count]");
}

} // namespace
} // namespace kvtrim::c

using namespace kvtrim;
using namespace kvtrim::c;

extern "C" {

kvtrim_status kvtrim_cells_create(const kvtrim_request* request, int64_t tokens, int32_t fold,
                                  kvtrim_cells** cells) {
    return guarded([&]() -> status {
        c::request asked;
        if (const status s = read_request(request, asked); !s.ok()) { return s; }
        if (fold < KVTRIM_FOLD_SUM || fold > KVTRIM_FOLD_SQUARES) { return invalid("cells: no such fold"); }
        const cell_scores::request r{.tokens = tokens,
                                     .kept_tokens = asked.value.budget.tokens,
                                     .protect = asked.value.protect,
                                     .reduction = static_cast<head_reduction>(fold)};
        if (const status s = r.validate(); !s.ok()) { return s; }
        return make(cells, r, asked.value.attention);
    });
}
void kvtrim_cells_destroy(kvtrim_cells* cells) {
    delete cells;
}

kvtrim_status kvtrim_cells_add(kvtrim_cells* cells, const kvtrim_policy* policy, const kvtrim_layer* layer,
                               kvtrim_context* context) {
    return guarded([&]() -> status {
        if (cells == nullptr || context == nullptr) { return no_handle(); }
        constexpr double share = 1; // which no score reads
        kvtrim_request plain = {};
        kvtrim_request_init(&plain);
        plain.budget_tokens = 1; // the cells' own request is used
        plain.layer_shares = &share;
        plain.layer_shares_count = 1;
        call in;
        if (const status s = c::read_call(policy, layer, 1, &plain, in); !s.ok()) { return s; }
        return cells->state.add(scored_call{}, in, cells->attention, context->memory, context->executor);
    });
}

kvtrim_status kvtrim_cells_plan(const kvtrim_cells* cells, kvtrim_plan* plan) {
    return guarded(
        [&] { return cells == nullptr || plan == nullptr ? no_handle() : cells->state.plan(plan->table); });
}

kvtrim_status kvtrim_edit_cells(const kvtrim_plan* plan, kvtrim_cell_edit* edit, int64_t* out,
                                int64_t out_count, int64_t* needed) {
    return guarded([&]() -> status {
        if (plan == nullptr) { return no_handle(); }
        kvtrim_cell_edit e = {};
        if (const status s = read_edit(edit, e); !s.ok()) { return s; }
        if (plan->table.rows() != 1) {
            return {errc::plan_mismatch, "one token set for all heads is a plan of one row", 1};
        }
        cell_edit_options options{.close = static_cast<closing>(e.close)};
        if (e.horizon >= 0) { options.horizon = e.horizon; }
        std::vector<index_t> calls;
        const auto add = [&](index_t begin, index_t end, index_t delta) {
            calls.insert(calls.end(), {begin, end, delta});
        };
        cell_edit_report report;
        const status s = edit_cells(
            plan->table.row(0), counted(e.positions, e.position_count), options,
            [&](const token_range& gone) { add(gone.begin, gone.end, 0); },
            [&](const position_shift& moved) { add(moved.begin, moved.end, moved.delta); }, &report);
        if (!s.ok()) { return s; }
        const status written = write_list(std::span<const index_t>(calls), out, out_count, needed);
        if (!written.ok()) { return written; }
        edit->kept_cells = report.kept_cells;
        edit->shared_cells = report.shared_cells;
        return {};
    });
}

kvtrim_status kvtrim_plan_whole_positions(const kvtrim_plan* plan, const int32_t* positions,
                                          int64_t position_count, kvtrim_plan* out) {
    return guarded([&]() -> status {
        if (plan == nullptr || out == nullptr) { return no_handle(); }
        const status s = valid_counted(positions, position_count, "positions [position_count]");
        return s.ok() ? keep_whole_positions(plan->table, counted(positions, position_count), out->table) : s;
    });
}

} // extern "C"
