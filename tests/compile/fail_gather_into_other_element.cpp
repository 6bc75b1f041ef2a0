// expect: kvtrim: gather needs an output of the cache's own element type
// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/compact/compact_to_flat.hpp>

kvtrim::status widen(const kvtrim::strided<kvtrim::f16, 3>& cache, const kvtrim::keep_plan& plan,
                     std::span<float> out) {
    return kvtrim::gather(cache, plan, out);
}
