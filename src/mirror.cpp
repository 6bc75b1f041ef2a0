// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Cells: those of a sequence in a table of positions, and a mirror of what an engine does with its cells.
#include "c_api.hpp"

#include <kvtrim/cache/cell_mirror.hpp>

struct kvtrim_mirror {
    kvtrim::cell_mirror state;
};

namespace kvtrim::c {
namespace {

// list(room, cells, options) -> status.
template <class Fn>
status write_cells(int32_t skip_shared, int32_t* cells, index_t room, index_t* listed, index_t* shared_prefix,
                   Fn&& list) {
    if (room < 0 || listed == nullptr || (cells == nullptr && room > 0)) {
        return invalid("list_cells: cells [room], listed");
    }
    cell_list found;
    if (const status s =
            list(counted(cells, room), found, cell_list_options{.skip_shared = skip_shared != 0});
        !s.ok()) {
        return s;
    }
    *listed = std::ssize(found.cells);
    if (shared_prefix != nullptr) { *shared_prefix = found.shared_prefix; }
    return {};
}

} // namespace
} // namespace kvtrim::c

using namespace kvtrim;
using namespace kvtrim::c;

extern "C" {

kvtrim_status kvtrim_list_cells(const int32_t* positions, const int32_t* uses, int64_t cell_count,
                                int32_t skip_shared, int32_t* cells, int64_t room, int64_t* listed,
                                int64_t* shared_prefix) {
    return guarded([&]() -> status {
        if (cell_count < 0 || (cell_count > 0 && (positions == nullptr || uses == nullptr))) {
            return invalid("list_cells: positions and uses [cell_count]");
        }
        const auto use = counted(uses, cell_count);
        if (std::any_of(use.begin(), use.end(), [](int32_t u) { return u < 0 || u > 2; })) {
            return {errc::invalid_table, "list_cells: a use is 0, 1 or 2"};
        }
        return write_cells(
            skip_shared, cells, room, listed, shared_prefix,
            [&](std::span<int32_t> out, cell_list& found, const cell_list_options& options) {
                return list_cells(
                    counted(positions, cell_count),
                    [&](index_t cell) { return static_cast<cell_use>(use[static_cast<std::size_t>(cell)]); },
                    out, found, options);
            });
    });
}

kvtrim_status kvtrim_mirror_create(int64_t cells, kvtrim_mirror** mirror) {
    return guarded([&] { return make_valid(mirror, cell_mirror(cells)); });
}
void kvtrim_mirror_destroy(kvtrim_mirror* mirror) {
    delete mirror;
}
kvtrim_status kvtrim_mirror_fill(kvtrim_mirror* mirror, int32_t sequence, const int64_t* cells,
                                 const int32_t* positions, int64_t count) {
    return guarded([&]() -> status {
        if (mirror == nullptr) { return no_handle(); }
        for (const status s : {valid_counted(cells, count, "mirror_fill: cells [count]"),
                               valid_counted(positions, count, "mirror_fill: positions [count]")}) {
            if (!s.ok()) { return s; }
        }
        return mirror->state.fill(counted(cells, count), counted(positions, count), sequence);
    });
}
kvtrim_status kvtrim_mirror_remove(kvtrim_mirror* mirror, int32_t sequence, int64_t begin, int64_t end) {
    return guarded(
        [&] { return mirror == nullptr ? no_handle() : mirror->state.remove(sequence, begin, end); });
}
kvtrim_status kvtrim_mirror_shift(kvtrim_mirror* mirror, int32_t sequence, int64_t begin, int64_t end,
                                  int64_t delta) {
    return guarded(
        [&] { return mirror == nullptr ? no_handle() : mirror->state.shift(sequence, begin, end, delta); });
}
kvtrim_status kvtrim_mirror_copy(kvtrim_mirror* mirror, int32_t from, int32_t to) {
    return guarded([&] { return mirror == nullptr ? no_handle() : mirror->state.copy(from, to); });
}
kvtrim_status kvtrim_mirror_restore(kvtrim_mirror* mirror, int32_t sequence) {
    return guarded([&] { return mirror == nullptr ? no_handle() : mirror->state.restore(sequence); });
}
kvtrim_status kvtrim_mirror_list(const kvtrim_mirror* mirror, int32_t sequence, int32_t skip_shared,
                                 int32_t* cells, int64_t room, int64_t* listed, int64_t* shared_prefix) {
    return guarded([&]() -> status {
        if (mirror == nullptr) { return no_handle(); }
        return write_cells(skip_shared, cells, room, listed, shared_prefix,
                           [&](std::span<int32_t> out, cell_list& found, const cell_list_options& options) {
                               return mirror->state.list(sequence, out, found, options);
                           });
    });
}
kvtrim_ints kvtrim_mirror_positions(const kvtrim_mirror* mirror) {
    return mirror == nullptr ? kvtrim_ints{} : ints(mirror->state.positions());
}
int64_t kvtrim_mirror_used(const kvtrim_mirror* mirror, int32_t sequence) {
    return mirror == nullptr ? 0 : mirror->state.used(sequence);
}
int64_t kvtrim_mirror_end_of_use(const kvtrim_mirror* mirror) {
    return mirror == nullptr ? 0 : mirror->state.end_of_use();
}

} // extern "C"
