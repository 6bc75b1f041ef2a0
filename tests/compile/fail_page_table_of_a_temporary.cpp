// expect: (use of deleted function|call to deleted).*table
// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/plan/move_plan.hpp>

void read(const kvtrim::page_table&);

void read_table() {
    read(kvtrim::move_plan{}.table());
}
