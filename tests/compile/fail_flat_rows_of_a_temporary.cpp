// expect: (use of deleted function|call to deleted).*flat_rows
// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/compact/flat_cache.hpp>

kvtrim::index_t heads(float* data) {
    return kvtrim::flat_rows<float>(data, kvtrim::flat_cache(2), 4).extent(0);
}
