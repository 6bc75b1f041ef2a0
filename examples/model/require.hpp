// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// kvtrim answers with a status; the programs here end on one that is not ok.

#include <kvtrim/core/status.hpp>

#include <stdexcept>

namespace lm {

inline void require(const kvtrim::status& done) {
    if (!done.ok()) { throw std::runtime_error(done.what()); }
}

} // namespace lm
