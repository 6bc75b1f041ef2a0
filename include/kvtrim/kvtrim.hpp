// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Everything but the adapters: include the header of one policy instead where compile time counts.

#include <kvtrim/allocate/blended.hpp>
#include <kvtrim/allocate/row_profile.hpp>
#include <kvtrim/allocate/whole_pages.hpp>
#include <kvtrim/base/filled.hpp>
#include <kvtrim/base/fp8.hpp>
#include <kvtrim/base/ragged.hpp>
#include <kvtrim/compact/flat.hpp>
#include <kvtrim/compact/flat_cache.hpp>
#include <kvtrim/compact/in_place.hpp>
#include <kvtrim/compact/move_rows.hpp>
#include <kvtrim/compact/page_moves.hpp>
#include <kvtrim/compact/rope_rerotation.hpp>
#include <kvtrim/compact/shared_cells.hpp>
#include <kvtrim/compact/shared_set.hpp>
#include <kvtrim/decode/close_up.hpp>
#include <kvtrim/decode/interval_policy.hpp>
#include <kvtrim/decode/ragged_attention.hpp>
#include <kvtrim/decode/recent_queries.hpp>
#include <kvtrim/decode/running_scores.hpp>
#include <kvtrim/decode/value_norms.hpp>
#include <kvtrim/measure/eviction_loss.hpp>
#include <kvtrim/model/batch.hpp>
#include <kvtrim/policy/baselines.hpp>
#include <kvtrim/policy/blocks.hpp>
#include <kvtrim/policy/consensuskv.hpp>
#include <kvtrim/policy/criticalkv.hpp>
#include <kvtrim/policy/critiprefill.hpp>
#include <kvtrim/policy/defensivekv.hpp>
#include <kvtrim/policy/expected_attention.hpp>
#include <kvtrim/policy/lagkv.hpp>
#include <kvtrim/policy/layers.hpp>
#include <kvtrim/policy/replay.hpp>
#include <kvtrim/policy/rkv.hpp>
#include <kvtrim/policy/snapkv.hpp>
#include <kvtrim/prefill/block_sparse_attention.hpp>
#include <kvtrim/score/combined_projection.hpp>
#include <kvtrim/score/padded.hpp>
#include <kvtrim/select/chunked.hpp>
#include <kvtrim/source/cells.hpp>
#include <kvtrim/source/ggml_blocks.hpp>
#include <kvtrim/source/ggml_tensor.hpp>
#include <kvtrim/source/indexed.hpp>
#include <kvtrim/source/latent.hpp>
#include <kvtrim/source/paged.hpp>
#include <kvtrim/source/scaled.hpp>
#include <kvtrim/version.hpp>
