// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/cache/cell_mirror.hpp>

#include "support/catch.hpp"
#include "support/random_layer.hpp"

#include <limits>
#include <map>
#include <set>
#include <vector>

namespace {

using namespace kvtrim;
using int32s = std::vector<std::int32_t>;
using int64s = std::vector<std::int64_t>;

int32s listed(const cell_mirror& m, int sequence) {
    int32s room(static_cast<std::size_t>(m.cells()));
    cell_list list;
    REQUIRE(m.list(sequence, room, list).ok());
    return {list.cells.begin(), list.cells.end()};
}

// Cells 0 to 5 of sequence 0 at positions 0 to 5, of which sequence 1 shares the first three.
cell_mirror shared_prefix(index_t cells = 8) {
    cell_mirror m(cells);
    REQUIRE(m.fill(int64s{0, 1, 2}, int32s{0, 1, 2}, 0).ok());
    REQUIRE(m.copy(0, 1).ok());
    REQUIRE(m.fill(int64s{3, 4, 5}, int32s{3, 4, 5}, 0).ok());
    return m;
}

} // namespace

TEST_CASE("cell_mirror: what is filled, copied, removed and shifted is listed in the order of the sequence",
          "[cache]") {
    cell_mirror m = shared_prefix();
    CHECK(listed(m, 0) == int32s{0, 1, 2, 3, 4, 5});
    CHECK(listed(m, 1) == int32s{0, 1, 2});
    CHECK(m.use(0, 2) == cell_use::shared);
    CHECK(m.use(0, 3) == cell_use::owned);
    CHECK(m.use(1, 3) == cell_use::not_used);
    CHECK(m.end_of_use() == 6);

    REQUIRE(m.remove(0, 1, 5).ok());
    CHECK(listed(m, 0) == int32s{0, 5});
    CHECK(listed(m, 1) == int32s{0, 1, 2});
    CHECK(m.positions()[3] == -1);
    REQUIRE(m.shift(0, 5, 6, -4).ok());
    CHECK(m.positions()[5] == 1);
    REQUIRE(m.fill(int64s{7, 3}, int32s{2, 3}, 0).ok());
    CHECK(listed(m, 0) == int32s{0, 5, 7, 3});
    REQUIRE(m.remove(0, 2, -1).ok());
    CHECK(m.used(0) == 2);
    CHECK(m.free_cells() == m.cells() - 4); // 0, 1, 2 and 5 are in use
    CHECK(m.end_of_use() == 6);
}

TEST_CASE("cell_mirror: cells whose keys an engine has still to turn are not restored", "[cache]") {
    cell_mirror m(6);
    const std::int64_t cells[] = {2, 3, 4}, next[] = {5};
    const std::int32_t positions[] = {0, 1, 2}, position[] = {2};
    REQUIRE(m.fill(cells, positions, 0).ok());
    REQUIRE(m.remove(0, 0, 1).ok());
    REQUIRE(m.shift(0, 1, 3, 0).ok());
    REQUIRE(m.shift(0, 7, 9, -1).ok()); // no cell is there
    CHECK(cell_mirror(m).restore(0).ok());
    REQUIRE(m.shift(0, 1, 3, -1).ok());
    const cell_mirror before = m;
    CHECK(m.restore(0).code() == errc::invalid_parameter);
    CHECK(m == before);
    REQUIRE(m.fill({}, {}, 0).ok());
    CHECK(m.restore(0).code() == errc::invalid_parameter);
    REQUIRE(m.fill(next, position, 0).ok());
    REQUIRE(m.restore(0).ok());
    CHECK(m.end_of_use() == 3);
}

TEST_CASE("cell_mirror: a restored sequence is in the first free cells, shared ones come back as copies",
          "[cache]") {
    cell_mirror m = shared_prefix();
    REQUIRE(m.remove(0, 3, 5).ok());
    REQUIRE(m.restore(0).ok());
    CHECK(listed(m, 1) == int32s{0, 1, 2});
    CHECK(listed(m, 0) == int32s{3, 4, 5, 6});
    CHECK(m.positions()[6] == 5);
    CHECK(m.use(0, 3) == cell_use::owned);

    cell_mirror full = shared_prefix(6);
    const cell_mirror before = full;
    CHECK(full.restore(0).code() == errc::no_room);
    CHECK(full.restore(0).needed() == 6);
    CHECK(full == before);
}

TEST_CASE("cell_mirror: follows a model of positions by sequence through random calls", "[cache]") {
    support::random r(5);
    constexpr int sequences = 3;
    for (int round = 0; round < 50; ++round) {
        const index_t cells = r.between(1, 40);
        cell_mirror m(cells);
        std::map<index_t, std::pair<std::int32_t, std::set<int>>> held; // cell: position, sequences
        for (int step = 0; step < 30; ++step) {
            const int s = static_cast<int>(r.between(0, sequences - 1));
            const auto a = r.between(0, 20), b = r.between(-1, 20);
            switch (r.between(0, 2)) {
            case 0: {
                const index_t cell = r.between(0, cells - 1);
                REQUIRE(m.fill(int64s{cell}, int32s{static_cast<std::int32_t>(a)}, s).ok());
                held[cell] = {static_cast<std::int32_t>(a), {s}};
                break;
            }
            case 1: {
                REQUIRE(m.remove(s, a, b).ok());
                for (auto at = held.begin(); at != held.end();) {
                    const index_t p = at->second.first;
                    if (p >= a && (b < 0 || p < b)) { at->second.second.erase(s); }
                    at = at->second.second.empty() ? held.erase(at) : std::next(at);
                }
                break;
            }
            default: {
                const int to = (s + 1) % sequences;
                REQUIRE(m.copy(s, to).ok());
                for (auto& [cell, content] : held) {
                    if (content.second.contains(s)) { content.second.insert(to); }
                }
            }
            }
            for (index_t c = 0; c < cells; ++c) {
                const bool is_held = held.contains(c);
                CHECK(m.positions()[static_cast<std::size_t>(c)] == (is_held ? held[c].first : -1));
                for (int q = 0; q < sequences; ++q) {
                    const bool has = is_held && held[c].second.contains(q);
                    CHECK((m.use(q, c) != cell_use::not_used) == has);
                    CHECK((m.use(q, c) == cell_use::shared) == (has && held[c].second.size() > 1));
                }
            }
        }
    }
}

TEST_CASE("cell_mirror: sequences, cells and positions that cannot be change nothing", "[cache]") {
    CHECK(cell_mirror(-1).validate().code() == errc::invalid_parameter);
    CHECK(cell_mirror(index_t{1} << 31).validate().code() == errc::invalid_parameter);
    CHECK(cell_mirror(-1).cells() == 0);
    cell_mirror m = shared_prefix();
    const cell_mirror before = m;
    constexpr std::int64_t far = std::numeric_limits<std::int64_t>::max();
    for (const int sequence : {-1, 64, std::numeric_limits<int>::min()}) {
        CHECK(m.fill(int64s{1}, int32s{1}, sequence).code() == errc::invalid_parameter);
        CHECK(m.remove(sequence, 0, -1).code() == errc::invalid_parameter);
        CHECK(m.shift(sequence, 0, -1, 1).code() == errc::invalid_parameter);
        CHECK(m.copy(0, sequence).code() == errc::invalid_parameter);
        CHECK(m.copy(sequence, 0).code() == errc::invalid_parameter);
        CHECK(m.restore(sequence).code() == errc::invalid_parameter);
        CHECK(m.use(sequence, 0) == cell_use::not_used);
        int32s room(8);
        cell_list list;
        CHECK(m.list(sequence, room, list).code() == errc::invalid_parameter);
    }
    CHECK(m.use(0, -1) == cell_use::not_used);
    CHECK(m.use(0, far) == cell_use::not_used);
    CHECK(m.fill(int64s{1, 2}, int32s{1}, 0).code() == errc::invalid_parameter);
    CHECK(m.fill(int64s{6, 8}, int32s{1, 2}, 0).code() == errc::invalid_table);
    CHECK(m.fill(int64s{6, far}, int32s{1, 2}, 0).code() == errc::invalid_table);
    CHECK(m.fill(int64s{6, 7}, int32s{1, -1}, 0).code() == errc::invalid_table);
    CHECK(m.shift(0, 0, -1, -1).code() == errc::invalid_table);
    CHECK(m.shift(0, 0, -1, std::numeric_limits<index_t>::max()).code() == errc::invalid_table);
    CHECK(m.shift(0, 0, -1, std::numeric_limits<index_t>::min()).code() == errc::invalid_table);
    CHECK(m == before);
}
