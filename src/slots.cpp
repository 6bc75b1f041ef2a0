// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Rows at strides, and blocks or codes that a table finds in a pool.
#include "c_api.hpp"

#include <kvtrim/cache/paged_rows.hpp>

namespace kvtrim::c {
namespace {

template <class Code>
slots slots_of_codes(const kvtrim_view& v) {
    constexpr index_t size = sizeof(float);
    const auto& s = v.scale_strides;
    if (v.strides[2] != 1) {
        return ggml_tensor_rows::invalid("view: the channels of 8-bit codes lie one after the other");
    }
    if (!whole_units({s[0], s[1], s[2]}, v.scales, size) || !whole_units({}, v.zeros, size)) {
        return ggml_tensor_rows::invalid(
            "view: scales and zeros are aligned floats, at strides of whole ones");
    }
    return scaled<Code>(static_cast<Code*>(v.data), {v.extents[0], v.extents[1], v.extents[2]},
                        {v.strides[0], v.strides[1]},
                        scale_table<float>{v.scales, {s[0] / size, s[1] / size, s[2] / size}, v.zeros});
}

template <class T>
T* shifted(T* data, index_t bytes) {
    return data == nullptr ? data : reinterpret_cast<T*>(reinterpret_cast<std::byte*>(data) + bytes);
}

} // namespace

bool whole_units(std::initializer_list<index_t> byte_strides, const void* data, index_t unit) {
    const bool whole = std::all_of(byte_strides.begin(), byte_strides.end(),
                                   [&](index_t stride) { return stride % unit == 0; });
    return whole && reinterpret_cast<std::uintptr_t>(data) % static_cast<std::uintptr_t>(unit) == 0;
}

slots slots_of(const kvtrim_view& v) {
    switch (v.element) {
    case KVTRIM_I8:
        return slots_of_codes<std::int8_t>(v);
    case KVTRIM_F8_E4M3:
        return slots_of_codes<f8_e4m3>(v);
    case KVTRIM_F8_E5M2:
        return slots_of_codes<f8_e5m2>(v);
    default:
        return ggml_tensor_rows(elements[v.element].ggml_type, v.data,
                                {v.extents[0], v.extents[1], v.extents[2]},
                                {v.strides[0], v.strides[1], v.strides[2]});
    }
}

pooled_rows::pooled_rows(const kvtrim_view& v) : v_(v), heads_(v.extents[0]) {
    const element_row& e = elements[v.element];
    if (v.extents[0] < 0 || v.extents[2] < 0 || v.extents[2] % e.values != 0) {
        validity_ = invalid("view: heads and channels must not be negative, channels be whole blocks");
    } else if (is_ragged()) {
        validity_ = check_ragged();
    } else {
        validity_ = check_pages();
    }
    if (validity_.ok() && e.ggml_type < 0) { validity_ = check_scales(); }
    if (validity_.ok() && heads_ > 0) {
        validity_ = std::visit([](const auto& rows) { return rows.validate(); }, slots_of_head(0));
    }
    if (!validity_.ok()) {
        v_.extents[0] = v_.extents[2] = 0;
        return;
    }
    for (index_t h = 0; h < heads_; ++h) { longest_ = std::max(longest_, rows(h)); }
}

status pooled_rows::check_ragged() {
    const element_row& e = elements[v_.element];
    const auto offsets = counted(v_.indptr, heads_ + 1);
    if (offsets.empty() || offsets.front() != 0 || !std::is_sorted(offsets.begin(), offsets.end())) {
        return {errc::invalid_table, "view: indptr [heads + 1] must start with 0, and not decrease"};
    }
    for (index_t h = 0; v_.lengths != nullptr && h < heads_; ++h) {
        if (v_.lengths[h] < 0 ||
            v_.lengths[h] > offsets[static_cast<std::size_t>(h + 1)] - offsets[static_cast<std::size_t>(h)]) {
            return invalid("view: a length must be between 0 and the rows there are");
        }
    }
    v_.pages = 1;
    v_.page_tokens = offsets.back();
    v_.page_stride = v_.scale_page_stride = v_.strides[0] = 0;
    v_.strides[1] = to_bytes(v_.extents[2] / e.values, e.bytes);
    v_.strides[2] = e.bytes;
    if (v_.data == nullptr && v_.page_tokens > 0 && v_.extents[2] > 0) {
        return invalid("view: data must not be null");
    }
    return memory_of_pages(0, 1, true)[0].validate();
}

status pooled_rows::check_pages() {
    const element_row& e = elements[v_.element];
    if (v_.strides[2] != e.bytes) { return invalid("view: channels of paged rows lie one after the other"); }
    if (const status s = valid_table(v_.indptr, v_.table_rows, v_.indices, v_.index_count, v_.last_page);
        !s.ok()) {
        return s;
    }
    table_ = table_of(v_.indptr, v_.table_rows, v_.indices, v_.index_count, v_.last_page);
    const bool own = v_.layout == KVTRIM_PAGED_PER_HEAD;
    if (own) { v_.strides[0] = v_.scale_strides[0] = 0; }
    const page_layout layout{.page_tokens = v_.page_tokens,
                             .page_stride = v_.page_stride,
                             .token_stride = v_.strides[1],
                             .head_stride = v_.strides[0],
                             .pages = v_.pages};
    const kvtrim::detail::table_rows read{own ? kvtrim::detail::first_row_of(v_.row, heads_) : v_.row,
                                          own ? heads_ : 1};
    const status s =
        kvtrim::detail::validate_paged(static_cast<const std::byte*>(v_.data), layout, table_, read, heads_,
                                       own ? 1 : heads_, to_bytes(v_.extents[2] / e.values, e.bytes));
    if (!s.ok()) { return s; }
    pages_ = kvtrim::detail::pages_of(table_, read);
    v_.pages = pages_.empty() ? 0 : index_t{*std::max_element(pages_.begin(), pages_.end())} + 1;
    return {};
}

status pooled_rows::check_scales() const {
    const auto& s = v_.scale_strides;
    const bool has_rows = v_.pages > 0 && v_.page_tokens > 0 && heads_ > 0 && v_.extents[2] > 0;
    if (v_.scales == nullptr && has_rows) { return invalid("view: codes need scales"); }
    if (v_.layout == KVTRIM_PAGED && s[1] != 0 && s[0] == 0 && heads_ > 1) {
        return invalid("view: a scale of one token belongs to one head");
    }
    if (!whole_units({s[0], s[1], s[2], v_.scale_page_stride}, v_.scales, sizeof(float))) {
        return invalid("view: scales and zeros are aligned floats, at strides of whole ones");
    }
    const auto all = memory_of_pages(0, v_.pages, true);
    const status scales = all[1].validate();
    return scales.ok() ? all[2].validate() : scales;
}

slots pooled_rows::slots_of_head(index_t head) const {
    kvtrim_view s = v_;
    s.data = shifted(static_cast<std::byte*>(v_.data), head * v_.strides[0]);
    s.scales = shifted(v_.scales, head * v_.scale_strides[0]);
    s.zeros = shifted(v_.zeros, head * v_.scale_strides[0]);
    s.extents[0] = v_.pages, s.extents[1] = v_.page_tokens;
    s.strides[0] = v_.page_stride;
    s.scale_strides[0] = v_.scale_page_stride;
    return slots_of(s);
}

index_t pooled_rows::row_bytes() const {
    return std::visit([](const auto& rows) { return rows.row_bytes(); }, slots_of_head(0));
}
bool pooled_rows::writes_rows() const {
    return std::visit(
        [](const auto& rows) {
            if constexpr (requires { rows.writes_rows(); }) { return rows.writes_rows(); }
            return true;
        },
        slots_of_head(0));
}
void pooled_rows::move_row(index_t head, index_t from, index_t to) const {
    from += v_.indptr[head], to += v_.indptr[head];
    std::visit(
        [&](const auto& rows) {
            if constexpr (std::is_same_v<std::remove_cvref_t<decltype(rows)>, ggml_tensor_rows>) {
                std::byte* const data = static_cast<std::byte*>(v_.data); // contiguous rows
                std::memmove(data + to * v_.strides[1], data + from * v_.strides[1],
                             static_cast<std::size_t>(v_.strides[1]));
            } else {
                rows.move_row(0, from, to);
            }
        },
        slots_of_head(head));
}
pooled_rows pooled_rows::first_channels(index_t count) const {
    pooled_rows channels = *this;
    channels.v_.extents[2] = std::visit(
        [&](const auto& rows) { return kvtrim::first_channels(rows, count).extent(2); }, slots_of_head(0));
    return channels;
}

std::array<strided_bytes, 3> pooled_rows::memory_of_pages(index_t first, index_t count, bool all) const {
    const element_row& e = elements[v_.element];
    const index_t heads = v_.layout == KVTRIM_PAGED ? heads_ : 1;
    const auto pages_from = [&](const void* data, index_t page_stride) {
        return static_cast<const std::byte*>(data) + (data == nullptr ? 0 : first * page_stride);
    };
    const auto table = [&](const float* floats) {
        strided_bytes bytes{
            .first = pages_from(floats, v_.scale_page_stride),
            .extents = {count, v_.page_tokens, is_ragged() && v_.scale_strides[0] != 0 ? heads_ : heads,
                        v_.scale_strides[2] == 0 ? 1 : v_.extents[2]},
            .strides = {v_.scale_page_stride, v_.scale_strides[1], v_.scale_strides[0], sizeof(float)},
            .bytes = sizeof(float),
            .table = v_.indptr};
        const bool is_read = e.ggml_type < 0 && floats != nullptr && (all || v_.scale_strides[1] != 0);
        if (!is_read) { bytes.extents[3] = 0; }
        return bytes;
    };
    return {strided_bytes{.first = pages_from(v_.data, v_.page_stride),
                          .extents = {count, v_.page_tokens, heads, v_.extents[2] / e.values},
                          .strides = {v_.page_stride, v_.strides[1], v_.strides[0], e.bytes},
                          .bytes = e.bytes,
                          .table = v_.indptr},
            table(v_.scales), table(v_.zeros)};
}

bool pooled_rows::overlaps(const strided_bytes& other) const {
    const auto any = [&](index_t first, index_t count) {
        const auto memory = memory_of_pages(first, count, true);
        return std::any_of(memory.begin(), memory.end(),
                           [&](const strided_bytes& m) { return overlap(m, other); });
    };
    if (tables_overlap(other)) { return true; }
    if (is_ragged()) { return any(0, 1); }
    return std::any_of(pages_.begin(), pages_.end(), [&](std::int32_t page) { return any(page, 1); });
}

bool pooled_rows::tables_overlap(const strided_bytes& other) const {
    const auto moved = memory(), read = memory_of_pages(0, v_.pages, true);
    for (std::size_t i = 1; i < read.size(); ++i) { // scales that rows share
        if (moved[i].empty() && overlap(read[i], other)) { return true; }
    }
    return overlap(bytes_of(pages_), other) || overlap(bytes_of(offsets()), other) ||
           (is_ragged() ? overlap(bytes_of(counted(v_.lengths, heads_)), other)
                        : overlap(bytes_of(table_.last_page_len), other));
}

} // namespace kvtrim::c
