// expect: (use of deleted function|call to deleted).*kept
// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/plan/keep_plan.hpp>

void read(std::span<const std::int32_t>);

void read_kept() {
    read(kvtrim::keep_plan{}.kept());
}
