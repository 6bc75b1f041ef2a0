// expect: kvtrim: gather needs an output of floats, or of the cache's own elements
// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/compact/compact_to_flat.hpp>

struct paged {
    kvtrim::index_t extent(std::size_t) const;
    void load_rows(kvtrim::index_t, kvtrim::index_t, kvtrim::index_t, float*) const;
};

kvtrim::status narrow(const paged& cache, const kvtrim::keep_plan& plan, std::span<kvtrim::f16> out) {
    return kvtrim::gather(cache, plan, out);
}
