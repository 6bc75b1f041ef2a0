// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The library's plain tables of queries as states that save themselves (core/save.hpp). Their fields are public and checked by
// validate(); here they become bytes, and are read back within what there is.

#include "c_api.hpp"

#include <kvtrim/core/save.hpp>
#include <kvtrim/score/query_pair_means.hpp>
#include <kvtrim/score/query_statistics.hpp>

namespace kvtrim::c {

/// Reads rows * columns numbers into a list, if so many are there.
template <class T>
[[nodiscard]] bool read_list(memory_reader& in, index_t rows, index_t columns, std::vector<T>& out) {
    if (!in.holds<T>(rows, columns)) { return false; }
    out.resize(static_cast<std::size_t>(rows * columns));
    return in.get(std::span(out));
}

struct saved_statistics : query_statistics {
    using query_statistics::query_statistics;

    void write(memory_writer& out) const {
        out.put(tag);
        for (const index_t number : {q_heads, head_dim, skip_positions, positions}) { out.put(number); }
        out.put(std::span<const index_t>(counts));
        out.put(std::span<const double>(means));
        out.put(std::span<const float>(co_moments));
    }
    [[nodiscard]] bool read(memory_reader& in) {
        std::uint32_t kind = 0;
        if (!in.get(kind) || kind != tag || !in.get(q_heads) || !in.get(head_dim) ||
            !in.get(skip_positions) || !in.get(positions) || !valid_queries(q_heads, head_dim).ok()) {
            return false;
        }
        return read_list(in, q_heads, 1, counts) && read_list(in, q_heads, head_dim, means) &&
               read_list(in, q_heads * head_dim, head_dim, co_moments) && validate().ok();
    }

  private:
    static constexpr std::uint32_t tag = 0x30535154;
};

struct saved_means : query_pair_means {
    using query_pair_means::query_pair_means;

    void write(memory_writer& out) const {
        out.put(tag);
        out.put(static_cast<std::uint32_t>(pairing));
        for (const index_t number : {q_heads, head_dim, pairs}) { out.put(number); }
        out.put(std::span<const index_t>(counts));
        out.put(std::span<const double>(sums));
        out.put(std::span<const double>(length_sums));
    }
    [[nodiscard]] bool read(memory_reader& in) {
        std::uint32_t kind = 0, pairs_of = 0;
        if (!in.get(kind) || kind != tag || !in.get(pairs_of) || pairs_of > 1 || !in.get(q_heads) ||
            !in.get(head_dim) || !in.get(pairs) || !valid_queries(q_heads, head_dim).ok()) {
            return false;
        }
        pairing = static_cast<rope_pairing>(pairs_of);
        return read_list(in, q_heads, 1, counts) && read_list(in, q_heads, head_dim, sums) &&
               read_list(in, q_heads, pairs, length_sums) && validate().ok();
    }

  private:
    static constexpr std::uint32_t tag = 0x30504d54;
};

} // namespace kvtrim::c
