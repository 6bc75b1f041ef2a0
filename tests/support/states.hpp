// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// What the tests of a cache's life have in common: saved states, and numbers that arrive over time.

#include "support/checks.hpp"

#include <kvtrim/core/save.hpp>

namespace support {

template <class State>
std::vector<std::byte> bytes_of(const State& state) {
    std::vector<std::byte> bytes(static_cast<std::size_t>(kvtrim::saved_bytes(state)));
    if (!kvtrim::save(state, bytes).ok()) { throw std::logic_error("save failed"); }
    return bytes;
}

// Every shortened form of the bytes is refused, and every one with a byte or a number changed in its first `header` bytes is
// refused or restored to a state that can be used: use(state) does so. A number is 8 bytes after the tag of 4 that `tagged`
// states begin with.
template <class State, class Use>
void check_damaged_bytes(const State& state, State other, std::size_t header, bool tagged, Use&& use) {
    const auto bytes = bytes_of(state);
    for (std::size_t cut = 0; cut < bytes.size(); ++cut) {
        CHECK(kvtrim::restore(other, std::span(bytes).first(cut)).code() == kvtrim::errc::invalid_parameter);
    }
    for (std::size_t i = 0; i < std::min(header, bytes.size()); ++i) {
        for (const std::byte damage : {std::byte{0x01}, std::byte{0x80}, std::byte{0xff}}) {
            auto damaged = bytes;
            damaged[i] ^= damage;
            if (kvtrim::restore(other, damaged).ok()) {
                CHECK(bytes_of(other).size() == damaged.size());
                use(other);
            }
        }
    }
    constexpr index_t most = std::numeric_limits<index_t>::max();
    for (std::size_t i = tagged ? 4 : 0; i + 8 <= std::min(header, bytes.size()); i += 8) {
        for (const index_t hostile : {index_t{-1}, -most - 1, most, most / 2 + 1, most / 4, index_t{1} << 40,
                                      index_t{1} << 32, (index_t{1} << 31) - 1, index_t{0}, index_t{7}}) {
            auto damaged = bytes;
            std::memcpy(damaged.data() + i, &hostile, sizeof hostile);
            if (kvtrim::restore(other, damaged).ok()) {
                CHECK(bytes_of(other).size() == damaged.size());
                use(other);
            }
        }
    }
}

template <class State>
void check_damaged_bytes(const State& state, State other, std::size_t header) {
    check_damaged_bytes(state, std::move(other), header, true, [](State&) {});
}

// Queries [first, first + count) of all heads.
inline kvtrim::strided<const float, 3> query_slice(const layer_data& layer, index_t first, index_t count) {
    const auto all = layer.queries();
    return {all.data_handle() + first * all.stride(1),
            {all.extent(0), count, all.extent(2)},
            {all.stride(0), all.stride(1), all.stride(2)}};
}

// The first `tokens` tokens of a layer, without queries.
inline auto prefix_inputs(const layer_data& layer, index_t tokens) {
    const auto cut = [&](const view& v) {
        return view(v.data_handle(), {v.extent(0), tokens, v.extent(2)},
                    {v.stride(0), v.stride(1), v.stride(2)});
    };
    return kvtrim::layer(cut(layer.keys()), cut(layer.values())).with_output_projection(layer.projection());
}

} // namespace support
