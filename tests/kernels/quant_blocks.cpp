// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/kernels/quant_blocks.hpp>

#include "support/catch.hpp"
#include "support/cpu_levels.hpp"
#include "support/ggml_cache.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

namespace {

using namespace kvtrim;

// Zeros of either sign are different numbers here; all NaN are one.
bool is_same_number(float a, float b) {
    return std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b) ||
           (std::isnan(a) && std::isnan(b));
}

// Blocks with all codes, for every 7th scale of 16 bits; minimums of all kinds beside them.
template <class Block>
std::vector<unsigned char> all_scales() {
    constexpr oracle::ggml_format format = support::format_of<Block>();
    std::vector<unsigned char> bytes;
    support::random r(1);
    for (unsigned scale = 0; scale < 65536; scale += 7) {
        std::vector<unsigned char> block(static_cast<std::size_t>(format.bytes));
        for (unsigned char& byte : block) { byte = static_cast<unsigned char>(r.bits() & 0xffu); }
        block[0] = static_cast<unsigned char>(scale & 0xffu);
        block[1] = static_cast<unsigned char>(scale >> 8);
        bytes.insert(bytes.end(), block.begin(), block.end());
    }
    return bytes;
}

} // namespace

TEMPLATE_TEST_CASE("quant_blocks: every scale and minimum decodes to the rounded number, at every level",
                   "[kernels]", block_q4_0, block_q4_1, block_q5_0, block_q5_1, block_q8_0, block_iq4_nl) {
    constexpr oracle::ggml_format format = support::format_of<TestType>();
    const std::vector<unsigned char> bytes = all_scales<TestType>();
    const auto blocks = static_cast<index_t>(bytes.size()) / format.bytes;
    std::vector<float> expected;
    for (index_t i = 0; i < 32 * blocks; ++i) {
        expected.push_back(oracle::element_of_row(format, bytes.data(), i));
    }
    support::at_each_cpu_level([&] {
        std::vector<float> got(expected.size());
        kernels::decode_blocks(reinterpret_cast<const TestType*>(bytes.data()), blocks, got.data());
        CHECK(std::equal(got.begin(), got.end(), expected.begin(), is_same_number));
    });
}

TEMPLATE_TEST_CASE("quant_blocks: a slice is the elements between any two, and nothing is written beside it",
                   "[kernels]", block_q4_0, block_q5_1) {
    support::random r(2);
    constexpr oracle::ggml_format format = support::format_of<TestType>();
    std::vector<unsigned char> bytes(static_cast<std::size_t>(4 * format.bytes));
    support::fill_blocks(format, bytes, r);
    for (index_t skip = 0; skip < 128; ++skip) {
        for (index_t count = 0; skip + count <= 128; ++count) {
            std::vector<float> got(static_cast<std::size_t>(count) + 1, 0.25f), expected;
            for (index_t i = 0; i < count; ++i) {
                expected.push_back(oracle::element_of_row(format, bytes.data(), skip + i));
            }
            expected.push_back(0.25f);
            // Only the blocks that are read are there.
            const std::vector<unsigned char> owned(bytes.begin() + skip / 32 * format.bytes,
                                                   bytes.begin() + (skip + count + 31) / 32 * format.bytes);
            kernels::decode_slice(reinterpret_cast<const TestType*>(owned.data()), skip % 32, count,
                                  got.data());
            REQUIRE(got == expected);
        }
    }
}
