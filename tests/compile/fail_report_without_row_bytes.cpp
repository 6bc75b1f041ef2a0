// expect: kvtrim: compact_in_place reports bytes: give a cache that moves its own rows the member row_bytes\(\)
// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/compact/compact_in_place.hpp>

struct paged {
    kvtrim::index_t extent(std::size_t) const;
    void move_row(kvtrim::index_t, kvtrim::index_t, kvtrim::index_t) const;
};

kvtrim::status cut(const paged& cache, const kvtrim::keep_plan& plan, kvtrim::compaction_report& report) {
    return kvtrim::compact_in_place(cache, plan, &report);
}
