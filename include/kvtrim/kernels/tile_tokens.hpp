// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Sizes of tiles, chosen so that the operand that products read repeatedly stays in the second level cache.

#include <kvtrim/core/status.hpp>

#include <algorithm>

namespace KVTRIM_NAMESPACE::kernels {

/// Most query rows of a tile.
inline constexpr index_t tile_query_rows = 128;

/// Most tokens of a tile.
inline constexpr index_t most_tile_tokens = 256;

/// Tokens of a tile: 96 KiB of keys, between 16 and most_tile_tokens.
[[nodiscard]] constexpr index_t tile_tokens(index_t head_dim) {
    constexpr index_t tile_floats = 24 * 1024;
    return std::clamp<index_t>(tile_floats / std::max<index_t>(1, head_dim) / 16 * 16, 16, most_tile_tokens);
}

/// Columns of W_O that one product covers.
[[nodiscard]] constexpr index_t tile_hidden(index_t head_dim) {
    return tile_tokens(head_dim);
}

} // namespace KVTRIM_NAMESPACE::kernels
