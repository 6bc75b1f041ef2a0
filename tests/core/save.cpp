// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/core/save.hpp>

#include "support/checks.hpp"

using namespace kvtrim;

namespace {

// The smallest state: a count and as many numbers.
struct counted_floats {
    std::vector<float> values;

    void write(memory_writer& out) const {
        out.put(static_cast<index_t>(values.size()));
        out.put(std::span<const float>(values));
    }
    [[nodiscard]] bool read(memory_reader& in) {
        index_t count = 0;
        if (!in.get(count) || !in.holds<float>(count, 1)) { return false; }
        values.resize(static_cast<std::size_t>(count));
        return in.get(std::span(values));
    }
};

std::vector<std::byte> saved(const counted_floats& state) {
    std::vector<std::byte> bytes(static_cast<std::size_t>(saved_bytes(state)));
    REQUIRE(save(state, bytes).ok());
    return bytes;
}

} // namespace

TEST_CASE("plain memory: a restored state is the saved one", "[core]") {
    for (const std::vector<float>& values : {std::vector<float>{}, {1}, {1, -2, 3e30f}}) {
        const auto bytes = saved({values});
        CHECK(bytes.size() == 8 + 4 * values.size());
        counted_floats other{{9, 9}};
        REQUIRE(restore(other, bytes).ok());
        CHECK(other.values == values);
    }
}

TEST_CASE("plain memory: a short output is told what it needs and left alone", "[core]") {
    std::vector<std::byte> bytes(11, std::byte{7});
    const status s = save(counted_floats{{1}}, bytes);
    CHECK(s.code() == errc::workspace_too_small);
    CHECK(s.needed() == 12);
    CHECK(bytes == std::vector<std::byte>(11, std::byte{7}));
}

TEST_CASE("plain memory: bytes that were cut, extended or invented are refused, the state stays", "[core]") {
    const auto bytes = saved({{1, 2, 3}});
    counted_floats state{{4}};
    for (std::size_t cut = 0; cut < bytes.size(); ++cut) {
        CHECK(restore(state, std::span(bytes).first(cut)).code() == errc::invalid_parameter);
    }
    auto longer = bytes;
    longer.push_back({});
    CHECK(restore(state, longer).code() == errc::invalid_parameter);
    for (const index_t invented : {index_t{-1}, index_t{4}, std::numeric_limits<index_t>::max()}) {
        auto other = bytes;
        std::memcpy(other.data(), &invented, sizeof invented);
        CHECK(restore(state, other).code() == errc::invalid_parameter);
    }
    CHECK(state.values == std::vector<float>{4});
}

TEST_CASE("plain memory: rows times columns are counted without overflow", "[core]") {
    const std::vector<std::byte> bytes(64);
    const memory_reader reader(bytes);
    constexpr index_t most = std::numeric_limits<index_t>::max();
    CHECK(reader.holds<float>(4, 4));
    CHECK_FALSE(reader.holds<float>(4, 5));
    CHECK_FALSE(reader.holds<float>(most, most));
    CHECK(reader.holds<float>(most, 0));
    CHECK_FALSE(reader.holds<float>(-1, 1));
    CHECK_FALSE(reader.holds<float>(1, -1));
}
