// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// What all files of the C interface share: answers, structs of any version, counted pointers, and the objects behind handles.
// Of a handle or a struct nothing is read before it was found not to be null.

#include "any_rows.hpp"

#include <kvtrim/cache/layer.hpp>
#include <kvtrim/cache/rope.hpp>
#include <kvtrim/core/eviction_request.hpp>
#include <kvtrim/core/executor.hpp>
#include <kvtrim/core/save.hpp>
#include <kvtrim/core/workspace.hpp>
#include <kvtrim/decode/projected_norms.hpp>
#include <kvtrim/plan/score_table.hpp>
#include <kvtrim/score/replay_scores.hpp>

#include <cstddef>
#include <cstring>
#include <new>
#include <stdexcept>

// ---- The objects behind handles ----

struct kvtrim_plan {
    kvtrim::keep_plan table;
};
struct kvtrim_scores {
    kvtrim::score_table table;
};
struct kvtrim_replay {
    kvtrim::replay_scores state;
};
struct kvtrim_norms {
    kvtrim::projected_norms state;
};
struct kvtrim_projection {
    std::variant<kvtrim::packed_projection, kvtrim::gram_projection> state;
};

namespace kvtrim::c {

/// The engine's threads, or the calling one.
struct any_executor {
    kvtrim_executor given = {};

    [[nodiscard]] index_t workers() const { return given.run == nullptr ? 1 : given.workers; }
    template <class Fn>
    void operator()(index_t count, Fn&& fn) const {
        if (given.run == nullptr || count <= 1) {
            for (index_t i = 0; i < count; ++i) { fn(i); }
            return;
        }
        using function = std::remove_reference_t<Fn>;
        given.run(
            given.user, count, [](void* task, index_t i) { (*static_cast<function*>(task))(i); },
            const_cast<void*>(static_cast<const void*>(&fn)));
    }
};

} // namespace kvtrim::c

struct kvtrim_context {
    kvtrim::c::any_executor executor;
    kvtrim::growing_workspace memory;
};

namespace kvtrim::c {

// ---- Answers ----

static_assert(KVTRIM_VIEWS_OVERLAP == static_cast<int>(errc::views_overlap) &&
              KVTRIM_PLAN_MISMATCH == static_cast<int>(errc::plan_mismatch) &&
              KVTRIM_INVALID_PARAMETER == static_cast<int>(errc::invalid_parameter) &&
              KVTRIM_NO_ROOM == static_cast<int>(errc::no_room));

[[nodiscard]] inline kvtrim_status answer(const status& s) {
    return {static_cast<int32_t>(s.code()), 0, s.needed(), s.what()};
}
[[nodiscard]] inline status invalid(const char* why) {
    return {errc::invalid_parameter, why};
}

[[nodiscard]] inline status no_handle() {
    return invalid("a handle or an output of this call must not be null");
}

/// Runs fn() -> status; nothing but an allocation throws in the library.
template <class Fn>
kvtrim_status guarded(Fn&& fn) {
#if defined(__cpp_exceptions)
    try {
        return answer(fn());
    } catch (const std::bad_alloc&) {
        return {KVTRIM_OUT_OF_MEMORY, 0, 0, "out of memory"};
    } catch (const std::length_error&) { // of a vector: more than memory can hold
        return {KVTRIM_OUT_OF_MEMORY, 0, 0, "out of memory"};
    } catch (...) { return {KVTRIM_FAILED, 0, 0, "an unexpected failure"}; }
#else
    return answer(fn()); // built so, an allocation that fails ends the program
#endif
}

/// *out = new Object{args...}, and nothing if that fails or its state is not valid.
template <class Handle, class... Args>
status make(Handle** out, Args&&... args) {
    if (out == nullptr) { return invalid("the pointer to the new object must not be null"); }
    *out = new Handle{std::forward<Args>(args)...};
    return {};
}

// ---- Structs and counted pointers ----

/// Bytes of a struct before members were added at its end; sizeof where none were.
template <class Struct>
inline constexpr std::size_t first_size = sizeof(Struct);
template <>
inline constexpr std::size_t first_size<kvtrim_view> = offsetof(kvtrim_view, scale_page_stride);
template <>
inline constexpr std::size_t first_size<kvtrim_layer> = offsetof(kvtrim_layer, scores);
template <>
inline constexpr std::size_t first_size<kvtrim_request> = offsetof(kvtrim_request, profile);

/// Copies a struct of this, the first or a later version; members that it does not have are 0.
template <class Struct>
[[nodiscard]] status read_struct(const Struct* given, Struct& out) {
    if (given == nullptr) { return invalid("a struct that this call needs is null"); }
    if (given->size < sizeof(Struct) && given->size != first_size<Struct>) {
        return invalid("size must be sizeof the struct: start from its _init(), or set it");
    }
    out = {};
    std::memcpy(&out, given, std::min(given->size, sizeof(Struct)));
    return {};
}

/// Struct i of an array whose structs are all as long as the first says, which was read.
template <class Struct>
[[nodiscard]] const Struct* struct_at(const Struct* first, index_t i) {
    const auto* const bytes = reinterpret_cast<const std::byte*>(first);
    return reinterpret_cast<const Struct*>(bytes + i * static_cast<index_t>(first->size));
}
/// Reads it.
template <class Struct>
[[nodiscard]] status read_struct_at(const Struct* first, index_t i, Struct& out) {
    if (i == 0) { return read_struct(first, out); }
    constexpr std::size_t most = 4096; // of any version
    const bool of_array =
        first->size <= most && first->size % alignof(Struct) == 0 && struct_at(first, i)->size == first->size;
    return of_array ? read_struct(struct_at(first, i), out)
                    : invalid("structs of an array have one size: sizeof the struct");
}

template <class T>
[[nodiscard]] std::span<T> counted(T* data, index_t count) {
    return data == nullptr || count <= 0 ? std::span<T>{}
                                         : std::span<T>(data, static_cast<std::size_t>(count));
}
template <class T>
[[nodiscard]] status valid_counted(const T* data, index_t count, const char* why) {
    return count < 0 || (data == nullptr && count > 0) ? invalid(why) : status{};
}

[[nodiscard]] inline kvtrim_ints ints(std::span<const std::int32_t> list) {
    return {list.data(), std::ssize(list)};
}

[[nodiscard]] inline page_table table_of(const int32_t* indptr, index_t rows, const int32_t* indices,
                                         index_t index_count, const int32_t* last_page) {
    return {counted(indptr, rows + 1), counted(indices, index_count), counted(last_page, rows)};
}
[[nodiscard]] inline status valid_table(const int32_t* indptr, index_t rows, const int32_t* indices,
                                        index_t index_count, const int32_t* last_page) {
    constexpr index_t most = std::numeric_limits<std::int32_t>::max();
    const bool fits = 0 <= rows && rows < most && indptr != nullptr && (last_page != nullptr || rows == 0) &&
                      0 <= index_count && (indices != nullptr || index_count == 0);
    return fits ? status{}
                : status{errc::invalid_table, "page table: indptr [rows + 1], indices and last_page [rows]"};
}

// ---- Requests and ropes ----

struct request {
    eviction_request value;
    std::span<const double> layer_shares;
    const kvtrim_profile* profile = nullptr;
};
[[nodiscard]] status read_request(const kvtrim_request* given, request& out);
[[nodiscard]] status read_rope(const kvtrim_rope* given, rope& out);

// ---- Layers ----

using keys_only = layer_inputs<any_rows>;
using with_values = layer_inputs<any_rows, any_rows>;
using with_queries = layer_inputs<any_rows, not_given, any_rows>;
using with_both = layer_inputs<any_rows, any_rows, any_rows>;
using with_all = layer_inputs<any_rows, any_rows, any_rows, any_rows>;
using with_norms = layer_inputs<any_rows, any_rows, any_rows, known_norms>;

/// A layer whose struct was read, and its views. Those that are not `wanted` (KVTRIM_NEEDS_..., needs_norms) stay empty. Scores that
/// are wanted stand as keys of one channel.
struct layer_parts {
    kvtrim_layer given = {};
    any_rows keys, values, queries, output_projection;
};
inline constexpr int needs_norms = 1 << 30;
/// Policies that read a rope.
inline constexpr int needs_any_rope = KVTRIM_NEEDS_ROPE | KVTRIM_NEEDS_STATISTICS | KVTRIM_NEEDS_MEANS;
/// Layer l of an array.
[[nodiscard]] status read_layer(const kvtrim_layer* first, int wanted, layer_parts& out, index_t l = 0);

/// The inputs of a policy that reads these parts.
template <class Inputs>
[[nodiscard]] Inputs inputs_of(const layer_parts& in) {
    Inputs made{in.keys, {}, {}, {}};
    if constexpr (Inputs::has_values) { made.values = in.values; }
    if constexpr (Inputs::has_queries) { made.queries = in.queries; }
    if constexpr (Inputs::has_output_projection) { made.output_projection = in.output_projection; }
    return made;
}
template <>
[[nodiscard]] inline with_norms inputs_of<with_norms>(const layer_parts& in) {
    return {in.keys, in.values, in.queries, in.given.norms->state.view()};
}

/// A strided output of floats or halves: calls fn(strided<T, 3>).
template <class Fn>
[[nodiscard]] status with_output(const kvtrim_view* out, Fn&& fn) {
    const any_rows rows = any_rows::of(out);
    if (const status s = rows.validate(); !s.ok()) { return s; }
    return rows.visit([&](const auto& v) -> status {
        if constexpr (std::is_same_v<std::remove_cvref_t<decltype(v)>, ggml_tensor_rows>) {
            if (const auto* f = v.template as<strided<float, 3>>()) { return fn(*f); }
            if (const auto* h = v.template as<strided<f16, 3>>()) { return fn(*h); }
            if (const auto* b = v.template as<strided<bf16, 3>>()) { return fn(*b); }
        }
        return invalid("an output is STRIDED, of f32, f16 or bf16");
    });
}

/// Heads of a state that a caller makes.
[[nodiscard]] inline status valid_heads(index_t heads) {
    if (heads >= 0 && heads <= most_heads) { return {}; }
    return {errc::invalid_parameter, "heads must not be negative, and at most 2^20", most_heads};
}
/// Channels of queries that a caller keeps: more would only take memory.
inline constexpr index_t most_channels = index_t{1} << 24;
[[nodiscard]] inline status valid_queries(index_t q_heads, index_t head_dim) {
    if (const status s = valid_heads(q_heads); !s.ok()) { return s; }
    if (head_dim >= 0 && head_dim <= most_channels) { return {}; }
    return {errc::invalid_parameter, "head_dim must not be negative, and at most 2^24", most_channels};
}
/// *out = a new object of a state that says of itself that it is valid.
template <class Handle, class State>
status make_valid(Handle** out, State state) {
    const status s = state.validate();
    return s.ok() ? make(out, std::move(state)) : s;
}

/// Lists of numbers with room for them: *needed, and the numbers if they fit.
template <class T>
[[nodiscard]] status write_list(std::span<const T> list, T* out, index_t out_count, index_t* needed) {
    if (needed == nullptr || out_count < 0 || (out == nullptr && out_count > 0)) {
        return invalid("a list: needed must not be null, out must have its numbers");
    }
    *needed = std::ssize(list);
    if (out_count < *needed) { return {errc::no_room, "the output is too small", *needed}; }
    std::copy(list.begin(), list.end(), out);
    return {};
}

/// Writes a state: *needed, and the bytes if they fit.
template <class State>
[[nodiscard]] status save_state(const State& state, void* out, index_t out_bytes, index_t* needed) {
    if (needed == nullptr || out_bytes < 0 || (out == nullptr && out_bytes > 0)) {
        return invalid("save: needed must not be null, out must have its bytes");
    }
    *needed = saved_bytes(state);
    if (out_bytes < *needed) { return {errc::no_room, "save: the output is too small", *needed}; }
    return save(state, std::span(static_cast<std::byte*>(out), static_cast<std::size_t>(out_bytes)));
}
template <class State>
[[nodiscard]] status restore_state(State& state, const void* bytes, index_t count) {
    if (count < 0 || bytes == nullptr) { return invalid("restore: bytes must not be null"); }
    return restore(state, std::span(static_cast<const std::byte*>(bytes), static_cast<std::size_t>(count)));
}

} // namespace kvtrim::c
