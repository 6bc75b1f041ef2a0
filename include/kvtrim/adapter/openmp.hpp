// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// An executor (core/executor.hpp) on OpenMP's threads. Compile and link with OpenMP (CMake: OpenMP::OpenMP_CXX);
// without it, the calling thread does the work, with the same result.
//
// Each piece goes to the next free thread. The executor waits for all of them. Called from inside a parallel region it runs
// on the calling thread, unless nested parallelism is on.

#include <kvtrim/core/executor.hpp>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace KVTRIM_NAMESPACE {

/// Runs pieces of work on OpenMP's threads, each on the next free one.
struct openmp_executor {
    int threads = 0; ///< 0: omp_get_max_threads()

    /// Most threads that run at the same time; 1 without OpenMP.
    [[nodiscard]] index_t workers() const {
#if defined(_OPENMP)
        return threads > 0 ? threads : omp_get_max_threads();
#else
        return 1;
#endif
    }

    /// Calls fn(i) for i in [0, count) and returns when all calls have.
    template <class Fn>
    void operator()(index_t count, Fn&& fn) const {
#if defined(_OPENMP)
        const int team = static_cast<int>(workers());
#pragma omp parallel for schedule(dynamic, 1) num_threads(team)
#endif
        for (index_t i = 0; i < count; ++i) { fn(i); }
    }
};

} // namespace KVTRIM_NAMESPACE
