// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Saves a state as plain bytes and restores it: for a swapped-out request, another process, or a file.
//
//     std::vector<std::byte> bytes(saved_bytes(state));
//     status s = save(state, bytes);        // ... later, into any object of the same type:
//     s = restore(other, bytes);
//
// A fork (beam search, a shared prefix) needs none of this: states are values, copying one copies everything.
// A state says what it holds with two members, void write(memory_writer&) const and bool read(memory_reader&).
// Format: the state's numbers in the machine's own representation, without padding; for the same version of the library
// on the same kind of machine. restore() checks what it reads: bytes of another kind, cut short or with impossible
// numbers are bad input, and the state stays as it was.

#include <kvtrim/core/status.hpp>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

namespace KVTRIM_NAMESPACE {

/// Where a state writes its numbers. Beyond the end of the output it only counts bytes.
class memory_writer {
  public:
    /// Of an output that may be empty: bytes are then counted.
    explicit memory_writer(std::span<std::byte> out) : out_(out) {}

    /// Appends plain values.
    template <class T>
    void put(std::span<const T> values) {
        static_assert(std::is_trivially_copyable_v<T>, "kvtrim: only plain data is saved");
        const std::size_t size = values.size_bytes();
        if (size > 0 && bytes_ <= out_.size() && size <= out_.size() - bytes_) {
            std::memcpy(out_.data() + bytes_, values.data(), size);
        }
        bytes_ += size;
    }
    /// Appends one plain value.
    template <class T>
    void put(const T& value) {
        put(std::span<const T>(&value, 1));
    }
    /// Bytes put so far, whether they fitted or not.
    [[nodiscard]] index_t bytes() const { return static_cast<index_t>(bytes_); }

  private:
    std::span<std::byte> out_;
    std::size_t bytes_ = 0;
};

/// Where a state reads back what it wrote, in the same order.
class memory_reader {
  public:
    /// Of bytes that are not trusted.
    explicit memory_reader(std::span<const std::byte> in) : in_(in) {}

    /// Fills values with the next bytes. False, and nothing read, if there are too few.
    template <class T>
    [[nodiscard]] bool get(std::span<T> values) {
        const std::size_t size = values.size_bytes();
        if (size > in_.size()) { return false; }
        if (size > 0) { std::memcpy(values.data(), in_.data(), size); }
        in_ = in_.subspan(size);
        return true;
    }
    /// One value, likewise.
    template <class T>
    [[nodiscard]] bool get(T& value) {
        static_assert(std::is_trivially_copyable_v<T>, "kvtrim: only plain data is restored");
        return get(std::span<T>(&value, 1));
    }
    /// Whether rows * columns more elements of T are there: to be asked before memory is allocated for them.
    template <class T>
    [[nodiscard]] bool holds(index_t rows, index_t columns) const {
        const auto most = static_cast<index_t>(in_.size() / sizeof(T));
        return rows >= 0 && columns >= 0 && (columns == 0 || rows <= most / columns);
    }
    /// Whether all bytes were read.
    [[nodiscard]] bool at_end() const { return in_.empty(); }

  private:
    std::span<const std::byte> in_;
};

/// Bytes that save() writes for this state.
template <class State>
[[nodiscard]] index_t saved_bytes(const State& state) {
    memory_writer counting({});
    state.write(counting);
    return counting.bytes();
}

/// Writes a state to the first saved_bytes(state) bytes of `out`.
/// Returns errc::workspace_too_small (needed: bytes), with out unchanged.
template <class State>
[[nodiscard]] status save(const State& state, std::span<std::byte> out) {
    const index_t needed = saved_bytes(state);
    if (static_cast<index_t>(out.size()) < needed) {
        return {errc::workspace_too_small, "save: the output is too small; ask saved_bytes()", needed};
    }
    memory_writer writer(out);
    state.write(writer);
    return {};
}

/// Reads a state back.
/// Returns errc::invalid_parameter, with the state unchanged, unless `in` is all of a saved State and nothing else.
/// Cost: a copy of `state`, one of the bytes, and the checks. These are O(heads) where any number is possible (norms, sums,
/// queries). Where the numbers are a table that later calls index and order by (positions, when tokens came, scores that must
/// not be negative, curves that must fall), each of them is looked at once: that costs about what copying them does.
template <class State>
[[nodiscard]] status restore(State& state, std::span<const std::byte> in) {
    State restored = state;
    memory_reader reader(in);
    if (!restored.read(reader) || !reader.at_end()) {
        return {errc::invalid_parameter, "restore: these bytes are not a saved state of this kind"};
    }
    state = std::move(restored);
    return {};
}

} // namespace KVTRIM_NAMESPACE
