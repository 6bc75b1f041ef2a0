// expect: kvtrim: rerotate_keys writes rows: pass a view of elements that are not const
// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/cache/ggml_rows.hpp>
#include <kvtrim/compact/rerotate_keys.hpp>

kvtrim::status turn(const kvtrim::ggml_rows<const kvtrim::block_q8_0>& keys, const kvtrim::rope& r,
                    const kvtrim::row_positions& from, kvtrim::workspace& memory) {
    return kvtrim::rerotate_keys(keys, r, from, memory);
}
