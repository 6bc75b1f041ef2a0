// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Threads for a piece of work: all of OpenMP's, or the caller's alone where waiting for others would cost more than they do.

#include <kvtrim/adapter/openmp.hpp>

namespace lm {

[[nodiscard]] inline kvtrim::openmp_executor threads_for(kvtrim::index_t multiplications) {
    constexpr kvtrim::index_t worth_sharing = 200'000;
    return {multiplications < worth_sharing ? 1 : 0};
}

} // namespace lm
