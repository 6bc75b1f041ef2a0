// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// From a kvtrim_view to the typed view that it says: every number is checked here or by that view's constructor.
#include "any_rows.hpp"

#include "c_api.hpp"

namespace kvtrim::c {
namespace {

bool is_plain(int element) {
    return element == KVTRIM_F32 || element == KVTRIM_F16 || element == KVTRIM_BF16;
}

any_rows refuse(const char* why) {
    return any_rows::invalid({errc::invalid_parameter, why});
}

// Calls fn(T*) for a plain element.
template <class Fn>
any_rows with_plain(const kvtrim_view& v, Fn&& fn) {
    switch (v.element) {
    case KVTRIM_F32:
        return fn(static_cast<float*>(v.data));
    case KVTRIM_F16:
        return fn(static_cast<f16*>(v.data));
    default:
        return fn(static_cast<bf16*>(v.data));
    }
}

any_rows finish(const kvtrim_view& v, const auto& rows) {
    if (v.layout == KVTRIM_STRIDED) {
        if (v.lengths == nullptr) { return any_rows(any_rows::any_view(rows)); }
        return {any_rows::any_view(rows), counted(v.lengths, v.extents[0])};
    }
    if (v.index_count < 0 || (v.indices == nullptr && v.index_count > 0)) {
        return refuse("view: indices must be [index_count]");
    }
    return any_rows::any_view(indexed_rows(rows, counted(v.indices, v.index_count)));
}

any_rows of_strides(const kvtrim_view& v) {
    return std::visit([&](const auto& rows) { return finish(v, rows); }, slots_of(v));
}

any_rows of_pages(const kvtrim_view& v) {
    const index_t bytes = elements[v.element].bytes;
    if (v.strides[2] != bytes || !whole_units({v.strides[0], v.strides[1], v.page_stride}, v.data, bytes)) {
        return refuse("view: channels of paged rows lie one after the other, strides are whole elements");
    }
    const status s = valid_table(v.indptr, v.table_rows, v.indices, v.index_count, v.last_page);
    if (!s.ok()) { return any_rows::invalid(s); }
    const page_table table = table_of(v.indptr, v.table_rows, v.indices, v.index_count, v.last_page);
    const bool own = v.layout == KVTRIM_PAGED_PER_HEAD;
    return with_plain(v, [&](auto* pool) -> any_rows {
        using T = std::remove_pointer_t<decltype(pool)>;
        const page_layout layout{.page_tokens = v.page_tokens,
                                 .page_stride = v.page_stride / bytes,
                                 .token_stride = v.strides[1] / bytes,
                                 .head_stride = own ? 0 : v.strides[0] / bytes,
                                 .pages = v.pages};
        if (own) {
            return any_rows::any_view(
                paged_head_rows<T, T>(pool, layout, table, v.row, v.extents[0], v.extents[2]));
        }
        return any_rows::any_view(paged_rows<T, T>(pool, layout, table, v.row, v.extents[0], v.extents[2]));
    });
}

any_rows of_ragged(const kvtrim_view& v) {
    if (v.indptr == nullptr || v.extents[0] < 0) { return refuse("view: indptr must be [heads + 1]"); }
    if (!whole_units({}, v.data, elements[v.element].bytes)) { return refuse("view: data must be aligned"); }
    return with_plain(v, [&](auto* data) -> any_rows {
        return any_rows::any_view(ragged(data, counted(v.indptr, v.extents[0] + 1), v.extents[2]));
    });
}

} // namespace

any_rows::any_rows(const any_view& view, std::span<const index_t> lengths) : view_(view) {
    if (validity_ = validate(); !validity_.ok()) { return; }
    for (const index_t length : lengths) {
        if (length < 0 || length > extent(1)) {
            validity_ = {errc::invalid_parameter, "view: a length must be between 0 and the rows there are"};
            view_ = ggml_tensor_rows{};
            return;
        }
    }
    for (const index_t length : lengths) { longest_ = std::max(longest_, length); }
    lengths_ = lengths;
}

any_rows any_rows::of(const kvtrim_view* given, bool to_move) {
    kvtrim_view v = {};
    if (const status s = read_struct(given, v); !s.ok()) { return invalid(s); }
    if (v.element < 0 || v.element >= std::ssize(elements)) { return refuse("view: no such element"); }
    if (v.extents[0] > most_heads) {
        return invalid({errc::index_overflow, "view: at most 2^20 heads", most_heads});
    }
    switch (v.layout) {
    case KVTRIM_STRIDED:
    case KVTRIM_INDEXED:
        return of_strides(v);
    case KVTRIM_PAGED:
    case KVTRIM_PAGED_PER_HEAD:
        return is_plain(v.element) ? of_pages(v) : any_rows::any_view(pooled_rows(v));
    case KVTRIM_RAGGED:
        return is_plain(v.element) && v.lengths == nullptr && !to_move ? of_ragged(v)
                                                                       : any_rows::any_view(pooled_rows(v));
    default:
        return refuse("view: no such layout");
    }
}

} // namespace kvtrim::c

using namespace kvtrim;
using namespace kvtrim::c;

extern "C" {

void kvtrim_view_init(kvtrim_view* view, int32_t element, void* data, int64_t heads, int64_t rows,
                      int64_t channels) {
    if (view == nullptr) { return; }
    *view = {};
    view->size = sizeof(kvtrim_view);
    view->element = element;
    view->data = data;
    view->pages = -1;
    const index_t extents[] = {heads, rows, channels};
    std::copy_n(extents, 3, view->extents);
    if (element < 0 || element >= std::ssize(elements)) { return; }
    const element_row& e = elements[element];
    view->strides[2] = e.bytes;
    view->strides[1] = to_bytes(channels / e.values, e.bytes);
    view->strides[0] = to_bytes(rows, view->strides[1]); // what overflows is refused where the view is used
}

kvtrim_status kvtrim_view_validate(const kvtrim_view* view) {
    return guarded([&] { return any_rows::of(view).validate(); });
}

kvtrim_status kvtrim_view_read(const kvtrim_view* view, int64_t head, int64_t first, int64_t count,
                               float* out, int64_t out_count) {
    return guarded([&]() -> status {
        const any_rows rows = any_rows::of(view);
        if (const status s = rows.validate(); !s.ok()) { return s; }
        if (head < 0 || head >= rows.extent(0) || first < 0 || count < 0 || first > rows.rows(head) ||
            count > rows.rows(head) - first) {
            return {errc::invalid_parameter, "view_read: the view has no such rows"};
        }
        if (const index_t needed = count * rows.extent(2);
            out_count < needed || (out == nullptr && needed > 0)) {
            return {errc::no_room, "view_read: out must hold count * channels floats", needed};
        }
        const auto target = counted(out, count * rows.extent(2));
        if (const status s = check_outputs(std::array{bytes_of(target)}, rows); !s.ok()) { return s; }
        if (count > 0 && rows.extent(2) > 0) { rows.load_rows(head, first, count, out); }
        return {};
    });
}

} // extern "C"
