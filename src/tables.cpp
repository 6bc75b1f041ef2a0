// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Plans and pages in the tables of engines: page scores, block tables, removed ranges, sources of moves.
#include "c_api.hpp"

#include <kvtrim/compact/write_move_sources.hpp>
#include <kvtrim/policy/plan_pages.hpp>

using namespace kvtrim;
using namespace kvtrim::c;

extern "C" {

kvtrim_status kvtrim_plan_removed(const kvtrim_plan* plan, int64_t row, int64_t tokens, int64_t* out,
                                  int64_t out_count, int64_t* needed) {
    return guarded([&]() -> status {
        if (plan == nullptr) { return no_handle(); }
        std::vector<index_t> ranges;
        const status s = evicted_pages(plan->table, row, tokens, [&](const token_range& gone) {
            ranges.insert(ranges.end(), {gone.begin, gone.end});
        });
        return s.ok() ? write_list(std::span<const index_t>(ranges), out, out_count, needed) : s;
    });
}

kvtrim_status kvtrim_score_pages(const float* tokens, int64_t token_count, int64_t page_tokens,
                                 int32_t reduction, float* pages, int64_t page_count) {
    return guarded([&]() -> status {
        for (const status s : {valid_counted(tokens, token_count, "score_pages: tokens [token_count]"),
                               valid_counted(pages, page_count, "score_pages: pages [page_count]")}) {
            if (!s.ok()) { return s; }
        }
        if (reduction < KVTRIM_PAGE_SUM || reduction > KVTRIM_PAGE_MAXIMUM) {
            return invalid("score_pages: no such reduction");
        }
        return score_pages(counted(tokens, token_count), page_tokens, static_cast<page_reduction>(reduction),
                           counted(pages, page_count));
    });
}

kvtrim_status kvtrim_expand_pages(const kvtrim_plan* plan, int64_t page_tokens, int64_t tokens,
                                  kvtrim_plan* out, kvtrim_context* context) {
    return guarded([&]() -> status {
        if (plan == nullptr || out == nullptr || context == nullptr) { return no_handle(); }
        workspace scratch = context->memory.of_bytes(expand_pages_bytes(plan->table));
        return expand_pages(plan->table, page_tokens, tokens, out->table, scratch);
    });
}

kvtrim_status kvtrim_page_table(const int32_t* pages, int64_t requests, int64_t most_pages,
                                const int32_t* tokens, int64_t page_tokens, int32_t* indptr, int32_t* indices,
                                int64_t index_count, int32_t* last_page, int64_t* needed) {
    return guarded([&]() -> status {
        constexpr index_t most = std::numeric_limits<std::int32_t>::max();
        if (requests < 0 || requests >= most || most_pages < 0 || most_pages > most || indptr == nullptr ||
            needed == nullptr) {
            return invalid("page_table: counts of 32 bits, indptr [requests + 1], needed");
        }
        for (const status s :
             {valid_counted(pages, requests * most_pages, "page_table: pages [requests, most_pages]"),
              valid_counted(tokens, requests, "page_table: tokens [requests]"),
              valid_counted(last_page, requests, "page_table: last_page [requests]"),
              valid_counted(indices, index_count, "page_table: indices [index_count]")}) {
            if (!s.ok()) { return s; }
        }
        const block_table blocks{counted(pages, requests * most_pages), most_pages,
                                 counted(tokens, requests)};
        const std::array outputs{std::span(indptr, static_cast<std::size_t>(requests + 1)),
                                 counted(indices, index_count), counted(last_page, requests)};
        if (const status s =
                check_outputs(std::array{bytes_of(outputs[0]), bytes_of(outputs[1]), bytes_of(outputs[2])},
                              blocks.pages, blocks.tokens);
            !s.ok()) {
            return s;
        }
        page_table made;
        const status s = write_page_table(blocks, page_tokens, outputs[0], outputs[1], outputs[2], made);
        const bool no_room = s.code() == errc::invalid_table && s.needed() > 0;
        if (s.ok()) { *needed = std::ssize(made.indices); }
        if (no_room) { *needed = s.needed(); }
        return no_room ? status{errc::no_room, s.what(), s.needed()} : s;
    });
}

kvtrim_status kvtrim_move_sources(const kvtrim_plan* const* plans, int64_t plan_count,
                                  const int64_t* first_destinations, int32_t* offsets, int32_t* sources,
                                  int64_t source_count, int64_t* columns) {
    return guarded([&]() -> status {
        if (plan_count < 0 || plan_count > most_heads || offsets == nullptr || columns == nullptr) {
            return invalid("move_sources: at most 2^20 plans, offsets [plan_count + 1], columns");
        }
        for (const status s :
             {valid_counted(plans, plan_count, "move_sources: plans [plan_count]"),
              valid_counted(first_destinations, plan_count, "move_sources: first_destinations [plan_count]"),
              valid_counted(sources, source_count, "move_sources: sources [source_count]")}) {
            if (!s.ok()) { return s; }
        }
        std::vector<keep_plan> tables;
        for (const kvtrim_plan* plan : counted(plans, plan_count)) {
            if (plan == nullptr) { return no_handle(); }
            tables.push_back(plan->table);
        }
        const auto firsts = counted(first_destinations, plan_count);
        const std::span begins(offsets, static_cast<std::size_t>(plan_count + 1));
        const index_t width = move_source_columns(tables, firsts);
        const index_t heads = tables.empty() ? 0 : tables[0].rows();
        std::vector<std::int32_t> own_offsets(begins.size()), own(static_cast<std::size_t>(heads * width));
        if (const status s = write_move_sources(tables, firsts, own_offsets, own); !s.ok()) { return s; }
        *columns = width;
        if (source_count < heads * width) {
            return {errc::no_room, "move_sources: needed: kv_heads times columns", heads * width};
        }
        const auto out = counted(sources, source_count);
        if (const status s = check_outputs(std::array{bytes_of(begins), bytes_of(out)}, firsts); !s.ok()) {
            return s;
        }
        std::copy(own_offsets.begin(), own_offsets.end(), begins.begin());
        for (index_t h = 0; h < heads; ++h) {
            std::copy_n(own.begin() + h * width, width, out.begin() + h * (source_count / heads));
        }
        return {};
    });
}

} // extern "C"
