// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Rows of any layout and element, known at run time only: one C++ type for all that a kvtrim_view says, so that every policy is
// compiled once and not once for each product of layouts and elements.
//
// It is a row source (cache/row_source.hpp) with all optional members; those that a layout does not have answer no at run time.
// Cost: a branch per tile of rows. As in cache/ggml_tensor_rows.hpp, bf16 is read where it lies, and f32 is copied to a tile.

#include "slots.hpp"

#include <kvtrim/cache/check_outputs.hpp>
#include <kvtrim/cache/indexed_rows.hpp>
#include <kvtrim/cache/paged_rows.hpp>
#include <kvtrim/cache/ragged.hpp>
#include <kvtrim/compact/compact_in_place.hpp>

namespace kvtrim::c {

class any_rows {
  public:
    using any_view =
        std::variant<ggml_tensor_rows, indexed_rows<ggml_tensor_rows>, ragged<float>, ragged<f16>,
                     ragged<bf16>, paged_rows<float, float>, paged_rows<f16, f16>, paged_rows<bf16, bf16>,
                     paged_head_rows<float, float>, paged_head_rows<f16, f16>, paged_head_rows<bf16, bf16>,
                     scaled<std::int8_t>, scaled<f8_e4m3>, scaled<f8_e5m2>, indexed_rows<scaled<std::int8_t>>,
                     indexed_rows<scaled<f8_e4m3>>, indexed_rows<scaled<f8_e5m2>>, pooled_rows>;

    /// What a C view says. Not valid, and empty: what the typed view refuses, and structs that are none.
    /// to_move: as rows that move in place, where there is a choice.
    [[nodiscard]] static any_rows of(const kvtrim_view* view, bool to_move = false);

    any_rows() = default;
    any_rows(const any_view& view) : view_(view) {} // NOLINT: a conversion
    /// Heads of which the first lengths[head] rows are filled.
    any_rows(const any_view& view, std::span<const index_t> lengths);
    [[nodiscard]] static any_rows invalid(const status& why) {
        any_rows rows;
        rows.validity_ = why;
        return rows;
    }

    template <class Fn>
    decltype(auto) visit(Fn&& fn) const {
        return std::visit(fn, view_);
    }

    [[nodiscard]] status validate() const {
        if (!validity_.ok()) { return validity_; }
        return visit([](const auto& v) { return kvtrim::validate(v); });
    }
    [[nodiscard]] index_t extent(std::size_t r) const {
        return !lengths_.empty() && r == 1
                   ? longest_
                   : visit([&](const auto& v) { return static_cast<index_t>(v.extent(r)); });
    }
    [[nodiscard]] index_t rows(index_t head) const {
        if (!lengths_.empty()) { return lengths_[static_cast<std::size_t>(head)]; }
        return visit([&](const auto& v) { return row_count(v, head); });
    }
    [[nodiscard]] index_t row_bytes() const {
        return visit([](const auto& v) { return v.row_bytes(); });
    }

    /// Of heads with rows of their own: a plan whose offsets they are cannot be written from them.
    [[nodiscard]] std::span<const std::int32_t> offsets() const {
        return visit([](const auto& v) -> std::span<const std::int32_t> {
            if constexpr (requires { v.offsets(); }) { return v.offsets(); }
            return {};
        });
    }

    // ---- Reading ----

    void load_rows(index_t head, index_t first, index_t count, float* tile) const {
        visit([&](const auto& v) { kvtrim::load_rows(v, head, first, count, tile); });
    }
    [[nodiscard]] element_rows<bf16> rows_in_place(index_t head, index_t first, index_t count) const {
        return visit([&](const auto& v) -> element_rows<bf16> {
            if constexpr (std::is_same_v<stored_element<std::remove_cvref_t<decltype(v)>>, bf16>) {
                return kvtrim::rows_in_place(v, head, first, count);
            }
            return {};
        });
    }
    [[nodiscard]] bool keeps_elements() const {
        return visit([](const auto& v) { return kvtrim::keeps<bf16>(v); });
    }
    void load_rows(index_t head, index_t first, index_t count, bf16* tile) const {
        visit([&](const auto& v) {
            if constexpr (std::is_same_v<stored_element<std::remove_cvref_t<decltype(v)>>, bf16>) {
                kvtrim::load_rows(v, head, first, count, tile);
            }
        });
    }

    // ---- Writing ----

    [[nodiscard]] bool writes_rows() const {
        return visit([](const auto& v) {
            if constexpr (requires { v.writes_rows(); }) { return v.writes_rows(); }
            return row_store<std::remove_cvref_t<decltype(v)>>;
        });
    }
    void store_rows(index_t head, index_t first, index_t count, const float* tile) const {
        visit([&](const auto& v) {
            if constexpr (row_store<std::remove_cvref_t<decltype(v)>>) {
                kvtrim::store_rows(v, head, first, count, tile);
            }
        });
    }
    [[nodiscard]] any_rows first_channels(index_t count) const {
        any_rows channels = *this;
        visit([&](const auto& v) { channels.view_ = kvtrim::first_channels(v, count); });
        return channels;
    }
    [[nodiscard]] std::span<const std::int32_t> written_places() const {
        return visit([](const auto& v) -> std::span<const std::int32_t> {
            if constexpr (requires { v.written_places(); }) { return v.written_places(); }
            return {};
        });
    }

    // ---- Moving ----

    /// Whether survivors can move to the first rows: memory whose row t is found by strides.
    [[nodiscard]] bool moves_rows() const {
        return visit([](const auto& v) {
            if constexpr (requires { v.moves_rows(); }) { return v.moves_rows(); }
            return movable_rows<std::remove_cvref_t<decltype(v)>>;
        });
    }
    status move_row(index_t head, index_t from, index_t to) const {
        return visit([&](const auto& v) -> status {
            if constexpr (movable_rows<std::remove_cvref_t<decltype(v)>>) {
                if constexpr (std::is_void_v<decltype(v.move_row(head, from, to))>) {
                    v.move_row(head, from, to);
                    return {};
                } else {
                    return v.move_row(head, from, to);
                }
            }
            return {errc::invalid_parameter, "rows of this layout do not move in place"};
        });
    }
    /// Through the typed view: rows move in one piece, transposed ones channel by channel.
    void move_survivors(const keep_plan& plan) const {
        visit([&](const auto& v) {
            if constexpr (std::is_same_v<std::remove_cvref_t<decltype(v)>, ggml_tensor_rows>) {
                v.visit([&](const auto& typed) { kvtrim::detail::move_survivors(typed, plan); });
            } else if constexpr (movable_rows<std::remove_cvref_t<decltype(v)>>) {
                kvtrim::detail::move_survivors(v, plan);
            }
        });
    }
    [[nodiscard]] bool heads_move_together() const {
        return visit([](const auto& v) { return kvtrim::detail::heads_move_together(v); });
    }

    [[nodiscard]] std::array<strided_bytes, 3> memory() const {
        return visit([](const auto& v) {
            std::array<strided_bytes, 3> all{};
            const auto known = memory_of(v);
            static_assert(known.size() <= all.size());
            std::copy(known.begin(), known.end(), all.begin());
            return all;
        });
    }
    [[nodiscard]] bool overlaps(const strided_bytes& other) const {
        return shares_bytes(lengths_, other) || visit([&](const auto& v) { return shares_bytes(v, other); });
    }
    [[nodiscard]] bool tables_overlap(const strided_bytes& other) const {
        return shares_bytes(lengths_, other) ||
               visit([&](const auto& v) { return tables_share_bytes(v, other); });
    }

  private:
    any_view view_ = ggml_tensor_rows{};
    std::span<const index_t> lengths_;
    index_t longest_ = 0;
    status validity_;
};

} // namespace kvtrim::c
