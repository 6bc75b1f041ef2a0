// expect: kvtrim: gather needs an output of floats, or of the cache's own elements
// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/compact/compact_to_flat.hpp>

// Bits are copied: floats in the memory of doubles would be other numbers.
kvtrim::status widen(const kvtrim::ragged<float>& cache, const kvtrim::keep_plan& plan,
                     std::span<double> out) {
    return kvtrim::gather(cache, plan, out);
}
