// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Views, plans, allocation, selection and compaction come without Eigen and its compile time.

#include <kvtrim/allocate/adaptive.hpp>
#include <kvtrim/allocate/blended.hpp>
#include <kvtrim/allocate/uniform.hpp>
#include <kvtrim/allocate/whole_pages.hpp>
#include <kvtrim/cache/filled.hpp>
#include <kvtrim/cache/layer.hpp>
#include <kvtrim/cache/ragged.hpp>
#include <kvtrim/cache/row_range.hpp>
#include <kvtrim/compact/compact_in_place.hpp>
#include <kvtrim/compact/compact_to_flat.hpp>
#include <kvtrim/compact/edit_cells.hpp>
#include <kvtrim/compact/flat_cache.hpp>
#include <kvtrim/compact/move_rows.hpp>
#include <kvtrim/compact/plan_page_moves.hpp>
#include <kvtrim/compact/project_to_shared.hpp>
#include <kvtrim/decode/interval_policy.hpp>
#include <kvtrim/decode/recent_queries.hpp>
#include <kvtrim/policy/eviction_policy.hpp>
#include <kvtrim/policy/plan_pages.hpp>
#include <kvtrim/rerank/by_importance.hpp>
#include <kvtrim/rerank/chunked.hpp>
#include <kvtrim/rerank/shared.hpp>
#include <kvtrim/rerank/two_stage.hpp>
#include <kvtrim/score/padded.hpp>
#include <kvtrim/score/recency.hpp>

#if defined(EIGEN_WORLD_VERSION)
#error "a light header includes Eigen"
#endif

kvtrim::status plan_newest(const kvtrim::strided<const float, 3>& keys, kvtrim::keep_plan& out,
                           kvtrim::workspace& scratch) {
    const kvtrim::eviction_policy policy{kvtrim::recency{}, kvtrim::uniform{}, kvtrim::by_importance{}};
    return policy.plan(kvtrim::layer(keys), {.budget = kvtrim::per_head(10)}, out, scratch);
}
