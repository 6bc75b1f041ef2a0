// expect: kvtrim: compact_to_flat moves rows: pass a view of elements that are not const
// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/compact/compact_to_flat.hpp>

// The view that a plan was made from reads only.
kvtrim::status cut(const kvtrim::strided<const float, 3>& cache, const kvtrim::keep_plan& plan) {
    return kvtrim::compact_to_flat(cache, plan);
}
