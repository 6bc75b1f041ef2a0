// expect: kvtrim: gather needs an output of floats, or of the cache's own elements
// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/compact/compact_to_flat.hpp>

// A row of floats has no bits to copy into one of half the size, and is not rounded behind the caller's back.
kvtrim::status narrow(const kvtrim::strided<float, 3>& cache, const kvtrim::keep_plan& plan,
                      std::span<kvtrim::f16> out) {
    return kvtrim::gather(cache, plan, out);
}
