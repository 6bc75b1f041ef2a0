// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Prefetches the memory that a later step reads, spread evenly over the steps of the current computation.

#include <kvtrim/core/status.hpp>
#include <kvtrim/simd/prefetch.hpp>

#include <algorithm>

namespace KVTRIM_NAMESPACE::kernels {

/// Memory that will be read soon, to be prefetched by the current computation.
struct soon_read {
    const void* data = nullptr; ///< null: nothing to prefetch
    index_t bytes = 0;          ///< from data on
};

/// Prefetches such memory to the second level cache in even steps.
class even_prefetch {
  public:
    /// In `steps` calls of step(), more than 0.
    even_prefetch(const soon_read& next, index_t steps)
        : line_(static_cast<const char*>(next.data)), end_(line_ + next.bytes),
          step_bytes_((next.bytes / steps + line_bytes) / line_bytes * line_bytes) {}

    /// Prefetches the next lines.
    void step() {
        const char* const stop = line_ + std::min<index_t>(step_bytes_, end_ - line_);
        for (; line_ < stop; line_ += line_bytes) { simd::prefetch_to_l2(line_); }
    }

  private:
    static constexpr index_t line_bytes = 64;
    const char* line_;
    const char* end_;
    index_t step_bytes_;
};

} // namespace KVTRIM_NAMESPACE::kernels
