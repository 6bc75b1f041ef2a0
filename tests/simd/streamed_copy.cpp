// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/simd/streamed_copy.hpp>

#include "support/catch.hpp"

#include <algorithm>
#include <vector>

using namespace kvtrim;

namespace {

std::vector<unsigned char> counted_bytes(std::size_t count) {
    std::vector<unsigned char> bytes(count);
    for (std::size_t i = 0; i < count; ++i) { bytes[i] = static_cast<unsigned char>(i * 7 + i / 256); }
    return bytes;
}

} // namespace

TEST_CASE("streamed_copy: copies that many bytes and no more, to and from any address", "[simd]") {
    for (const std::size_t bytes : {0u, 64u, 128u, 4096u}) {
        for (const std::size_t begin : {0u, 1u, 16u, 24u}) {
            for (const std::size_t end : {0u, 8u, 16u, 33u}) {
                const std::vector<unsigned char> from = counted_bytes(bytes + 64);
                std::vector<unsigned char> to(bytes + 128, 0xee);
                simd::streamed_copy(from.data() + begin, to.data() + end, bytes);
                simd::finish_streamed_copies();
                CAPTURE(bytes, begin, end);
                std::vector<unsigned char> expected(bytes + 128, 0xee);
                std::copy_n(from.data() + begin, bytes, expected.data() + end);
                CHECK(to == expected);
            }
        }
    }
}

TEST_CASE("streamed_copy: a row moves towards the front over its own old place", "[simd]") {
    for (const std::size_t by : {1u, 16u, 48u, 64u, 100u, 192u}) {
        std::vector<unsigned char> bytes = counted_bytes(256 + by);
        const std::vector<unsigned char> expected(bytes.end() - 256, bytes.end());
        simd::streamed_copy(bytes.data() + by, bytes.data(), 256);
        simd::finish_streamed_copies();
        CAPTURE(by);
        CHECK(std::equal(expected.begin(), expected.end(), bytes.begin()));
    }
}
