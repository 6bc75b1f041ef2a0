// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// A few equal blocks of scratch for whoever comes first; who finds none free does without. For memory that makes work
// faster and does not change its result: it stays bounded on machines of many threads.

#include <kvtrim/base/status.hpp>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <span>

namespace kvtrim {

class scratch_slots {
  public:
    static constexpr index_t most_slots = 64;

    // Requires 0 <= slots <= most_slots and memory of slots * slot_floats.
    scratch_slots(std::span<float> memory, index_t slots, index_t slot_floats)
        : memory_(memory), slots_(slots), slot_floats_(slot_floats) {}

    // Holds a slot as long as it lives.
    class lease {
      public:
        explicit lease(scratch_slots& slots) : slots_(slots), slot_(slots.acquire()) {}
        lease(const lease&) = delete;
        lease& operator=(const lease&) = delete;
        ~lease() {
            if (slot_ < slots_.slots_) { slots_.used_.fetch_and(~bit(slot_), std::memory_order_release); }
        }
        // Empty if every slot was taken.
        [[nodiscard]] std::span<float> memory() const {
            if (slot_ >= slots_.slots_) { return {}; }
            const auto floats = static_cast<std::size_t>(slots_.slot_floats_);
            return slots_.memory_.subspan(static_cast<std::size_t>(slot_) * floats, floats);
        }

      private:
        scratch_slots& slots_;
        index_t slot_;
    };

  private:
    static constexpr std::uint64_t bit(index_t slot) { return std::uint64_t{1} << slot; }

    index_t acquire() {
        for (index_t s = 0; s < slots_; ++s) {
            if ((used_.fetch_or(bit(s), std::memory_order_acquire) & bit(s)) == 0) { return s; }
        }
        return slots_;
    }

    std::span<float> memory_;
    index_t slots_;
    index_t slot_floats_;
    std::atomic<std::uint64_t> used_ = 0;
};

} // namespace kvtrim
