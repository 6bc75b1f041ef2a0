// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Everything but the adapters: include the header of one policy instead where compile time counts.

#include <kvtrim/allocate/above_threshold.hpp>
#include <kvtrim/allocate/blended.hpp>
#include <kvtrim/allocate/row_profile.hpp>
#include <kvtrim/allocate/whole_pages.hpp>
#include <kvtrim/cache/filled.hpp>
#include <kvtrim/cache/ggml_rows.hpp>
#include <kvtrim/cache/ggml_tensor_rows.hpp>
#include <kvtrim/cache/indexed_rows.hpp>
#include <kvtrim/cache/latent_cache.hpp>
#include <kvtrim/cache/list_cells.hpp>
#include <kvtrim/cache/paged_rows.hpp>
#include <kvtrim/cache/ragged.hpp>
#include <kvtrim/cache/row_reader.hpp>
#include <kvtrim/cache/scaled_rows.hpp>
#include <kvtrim/compact/compact_in_place.hpp>
#include <kvtrim/compact/compact_to_flat.hpp>
#include <kvtrim/compact/flat_cache.hpp>
#include <kvtrim/compact/move_rows.hpp>
#include <kvtrim/compact/plan_page_moves.hpp>
#include <kvtrim/compact/project_to_shared.hpp>
#include <kvtrim/compact/rerotate_keys.hpp>
#include <kvtrim/compact/shared_cells.hpp>
#include <kvtrim/compact/write_move_sources.hpp>
#include <kvtrim/core/fp8.hpp>
#include <kvtrim/decode/close_up.hpp>
#include <kvtrim/decode/interval_policy.hpp>
#include <kvtrim/decode/projected_norms.hpp>
#include <kvtrim/decode/ragged_attention.hpp>
#include <kvtrim/decode/recent_queries.hpp>
#include <kvtrim/decode/running_scores.hpp>
#include <kvtrim/measure/eviction_loss.hpp>
#include <kvtrim/policy/baselines.hpp>
#include <kvtrim/policy/batch.hpp>
#include <kvtrim/policy/consensuskv.hpp>
#include <kvtrim/policy/criticalkv.hpp>
#include <kvtrim/policy/critiprefill.hpp>
#include <kvtrim/policy/defensivekv.hpp>
#include <kvtrim/policy/expected_attention.hpp>
#include <kvtrim/policy/lagkv.hpp>
#include <kvtrim/policy/layers.hpp>
#include <kvtrim/policy/page_eviction.hpp>
#include <kvtrim/policy/replay.hpp>
#include <kvtrim/policy/rkv.hpp>
#include <kvtrim/policy/snapkv.hpp>
#include <kvtrim/policy/triattention.hpp>
#include <kvtrim/prefill/block_sparse_attention.hpp>
#include <kvtrim/rerank/chunked.hpp>
#include <kvtrim/score/combine_projections.hpp>
#include <kvtrim/score/padded.hpp>
#include <kvtrim/score/query_pair_means.hpp>
#include <kvtrim/score/trig_series_score.hpp>
#include <kvtrim/version.hpp>
