// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/kernels/encode.hpp>

#include <kvtrim/core/fp8.hpp>

#include "support/checks.hpp"
#include "support/cpu_levels.hpp"

#include <array>
#include <cmath>
#include <cstring>
#include <vector>

using namespace kvtrim;

namespace {

// Rows of a model's keys, of one sign, of one value, with a lone large channel, tiny and huge ones, zeros.
std::vector<float> odd_row(support::random& r, index_t count) {
    std::vector<float> row(static_cast<std::size_t>(count));
    const double size = std::exp(r.uniform() * 20 - 12);
    const double shift = r.chance(0.3) ? 3 * r.normal() : 0;
    const bool constant = r.chance(0.05), zero = r.chance(0.05), one_sign = r.chance(0.2);
    for (float& x : row) {
        double value = constant ? 1 : r.normal() + shift;
        if (one_sign) { value = std::abs(value); }
        x = static_cast<float>(zero ? 0 : size * value);
    }
    if (r.chance(0.3)) { row[static_cast<std::size_t>(r.between(0, count - 1))] *= 30.0f; }
    return row;
}

// The largest error in steps; what float arithmetic may add beyond half of one is below 1e-4 of a step for 8 bits.
double worst_in_steps(const std::vector<float>& x, const std::vector<float>& decoded, float step) {
    double worst = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
        const double error = std::abs(static_cast<double>(decoded[i]) - static_cast<double>(x[i]));
        if (error > 0) { worst = std::max(worst, error / std::abs(static_cast<double>(step))); }
    }
    return worst;
}

template <class Block>
std::vector<float> encoded(const std::vector<float>& x, Block& block) {
    kernels::encode_blocks(x.data(), 1, &block);
    std::vector<float> decoded(32);
    kernels::decode_blocks(&block, 1, decoded.data());
    return decoded;
}

template <class Block>
void check_blocks(std::uint64_t seed) {
    support::random r(seed);
    double worst = 0;
    for (int i = 0; i < 4000; ++i) {
        const std::vector<float> x = odd_row(r, 32);
        Block block, again;
        const std::vector<float> decoded = encoded(x, block);
        worst = std::max(worst, worst_in_steps(x, decoded, to_float(block.scale)));
        static_cast<void>(encoded(decoded, again));
        if (again.scale.bits == block.scale.bits) { CHECK(again.codes == block.codes); }
    }
    CHECK(worst <= 0.5001);
    CHECK(worst > 0.45); // the bound is no larger than it has to be
}

} // namespace

TEST_CASE("encode_blocks, encode_row: every level writes the same bits", "[kernels][encode]") {
    support::random r(6);
    for (int n = 0; n < 200; ++n) {
        std::vector<float> x = odd_row(r, 96);
        if (r.chance(0.2)) {
            x[static_cast<std::size_t>(r.between(0, 95))] =
                r.one_of({std::nanf(""), std::numeric_limits<float>::infinity(), 3e38f, -0.0f, 1e-42f});
        }
        const index_t length = r.between(1, 96);
        const auto bits = [&] {
            std::array<block_q8_0, 3> eight{};
            std::array<block_q4_0, 3> four{};
            std::array<std::int8_t, 96> plain{}, shifted{};
            std::array<float, 3> numbers{};
            kernels::encode_blocks(x.data(), 3, eight.data());
            kernels::encode_blocks(x.data(), 3, four.data());
            kernels::encode_row(x.data(), length, plain.data(), {&numbers[0], nullptr, 0});
            kernels::encode_row(x.data(), length, shifted.data(), {&numbers[1], &numbers[2], 0});
            std::vector<unsigned char> all;
            const auto add = [&](const auto& list) {
                const auto size = all.size();
                all.resize(size + sizeof(list));
                std::memcpy(all.data() + size, list.data(), sizeof(list));
            };
            add(eight);
            add(four);
            add(plain);
            add(shifted);
            add(numbers);
            return all;
        };
        std::vector<unsigned char> expected;
        {
            const support::cpu_level_guard guard(cpu_level::portable);
            expected = bits();
        }
        CAPTURE(n, length);
        support::at_each_cpu_level([&] { CHECK(bits() == expected); });
    }
}

TEST_CASE("encode_blocks: the error is at most half a step of the new scale", "[kernels][encode]") {
    check_blocks<block_q8_0>(1);
    check_blocks<block_q4_0>(2);
}

TEST_CASE("encode_blocks: a block with its largest code keeps its bits", "[kernels][encode]") {
    support::random r(3);
    for (int i = 0; i < 500; ++i) {
        block_q8_0 eight, eight_again;
        block_q4_0 four, four_again;
        const auto scale =
            static_cast<std::uint16_t>(r.between(1, 0x6fff)); // a largest element that an f16 scale has
        eight.scale = {scale};
        four.scale = {static_cast<std::uint16_t>(scale | (r.chance(0.5) ? 0x8000 : 0))};
        for (auto& code : eight.codes) { code = static_cast<std::int8_t>(r.between(-127, 127)); }
        for (auto& code : four.codes) { code = static_cast<std::uint8_t>(r.bits() & 0xff); }
        eight.codes[static_cast<std::size_t>(r.between(0, 31))] = r.chance(0.5) ? 127 : -127;
        four.codes[3] = 0x70; // code -8 in the low half
        std::vector<float> x(32);
        kernels::decode_blocks(&eight, 1, x.data());
        static_cast<void>(encoded(x, eight_again));
        CHECK(eight_again.scale.bits == eight.scale.bits);
        CHECK(eight_again.codes == eight.codes);
        kernels::decode_blocks(&four, 1, x.data());
        static_cast<void>(encoded(x, four_again));
        CHECK(four_again.scale.bits == four.scale.bits);
        CHECK(four_again.codes == four.codes);
    }
}

TEST_CASE("encode_blocks: one element that is no number takes its block with it, and no other",
          "[kernels][encode][odd]") {
    for (const float odd : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                            -std::numeric_limits<float>::infinity()}) {
        std::vector<float> x(64, 0.5f), decoded(64);
        x[7] = odd;
        const auto check = [&]<class Block>(std::array<Block, 2> blocks) {
            kernels::encode_blocks(x.data(), 2, blocks.data());
            kernels::decode_blocks(blocks.data(), 2, decoded.data());
            for (std::size_t i = 0; i < 64; ++i) { CHECK(std::isnan(decoded[i]) == (i < 32)); }
        };
        check(std::array<block_q8_0, 2>{});
        check(std::array<block_q4_0, 2>{});
    }
    // Beyond the largest scale codes saturate, and no scale becomes infinite.
    std::vector<float> huge(32, -3e38f);
    block_q8_0 block;
    for (const float y : encoded(huge, block)) { CHECK(y == -127 * 65504.0f); }
}

TEST_CASE("encode_row: int8 rows with new scales, and zero points that are integers, are off by half a step "
          "at most",
          "[kernels][encode]") {
    support::random r(4);
    double worst_plain = 0, worst_zeros = 0;
    for (int i = 0; i < 4000; ++i) {
        const index_t count = r.between(1, 70);
        const std::vector<float> x = odd_row(r, count);
        std::vector<std::int8_t> codes(x.size());
        std::vector<float> decoded(x.size());
        float scale = 0, zero = 0;
        kernels::encode_row(x.data(), count, codes.data(), {&scale, nullptr, 0});
        kernels::scale_codes(codes.data(), count, {&scale, nullptr, 0}, decoded.data());
        worst_plain = std::max(worst_plain, worst_in_steps(x, decoded, scale));
        kernels::encode_row(x.data(), count, codes.data(), {&scale, &zero, 0});
        kernels::scale_codes(codes.data(), count, {&scale, &zero, 0}, decoded.data());
        CHECK(zero == std::nearbyint(zero));
        worst_zeros = std::max(worst_zeros, worst_in_steps(x, decoded, scale));
    }
    CHECK(worst_plain <= 0.5001);
    CHECK(worst_zeros <= 0.5005);
    CHECK(worst_zeros > 0.45);
}

TEST_CASE("encode_row: rows far from 0 use all codes where there is a zero point", "[kernels][encode]") {
    std::vector<float> x(33);
    for (std::size_t i = 0; i < x.size(); ++i) { x[i] = 100 + static_cast<float>(i) / 32; }
    std::vector<std::int8_t> codes(x.size());
    std::vector<float> decoded(x.size());
    float scale = 0, zero = 0;
    kernels::encode_row(x.data(), 33, codes.data(), {&scale, &zero, 0});
    kernels::scale_codes(codes.data(), 33, {&scale, &zero, 0}, decoded.data());
    CHECK(scale == Approx(1.0 / 254));
    for (std::size_t i = 0; i < x.size(); ++i) { CHECK(std::abs(decoded[i] - x[i]) <= 0.5 / 254 + 2e-5); }
}

TEST_CASE("encode_row: fp8 rows are off by half a unit in the last place of their codes",
          "[kernels][encode]") {
    support::random r(5);
    const auto check = [&]<class Code>(Code, double relative, double smallest) {
        double worst = 0;
        for (int i = 0; i < 1000; ++i) {
            const std::vector<float> x = odd_row(r, 40);
            std::vector<Code> codes(x.size());
            float scale = 0;
            kernels::encode_row(x.data(), 40, codes.data(), {&scale, nullptr, 0});
            for (std::size_t d = 0; d < x.size(); ++d) {
                const double error =
                    std::abs(static_cast<double>(scale) * static_cast<double>(to_float(codes[d])) -
                             static_cast<double>(x[d]));
                const double allowed = std::max(relative * std::abs(static_cast<double>(x[d])),
                                                smallest * static_cast<double>(scale));
                if (error > 0) { worst = std::max(worst, error / allowed); }
            }
        }
        CHECK(worst <= 1.0001);
    };
    check(f8_e4m3{}, 1.0 / 16, 1.0 / 1024); // of a subnormal 2^-9
    check(f8_e5m2{}, 1.0 / 8, 1.0 / 131072);
}

TEST_CASE("encode_with_scales: codes by scales that stay are the nearest ones, and saturate",
          "[kernels][encode]") {
    const std::vector<float> x{0,     0.5f, -0.26f, 0.24f,         31.75f,
                               32.5f, -32,  -40,    std::nanf(""), std::numeric_limits<float>::infinity()};
    const float scale = 0.25f, zero = 3, none = 0;
    std::vector<std::int8_t> codes(x.size());
    const auto count = std::ssize(x);
    kernels::encode_with_scales(x.data(), count, codes.data(), {&scale, nullptr, 0});
    CHECK(codes == std::vector<std::int8_t>{0, 2, -1, 1, 127, 127, -128, -128, 127, 127});
    kernels::encode_with_scales(x.data(), count, codes.data(), {&scale, &zero, 0});
    CHECK(codes == std::vector<std::int8_t>{3, 5, 2, 4, 127, 127, -125, -128, 127, 127});
    kernels::encode_with_scales(x.data(), 8, codes.data(), {&none, &zero, 0}); // decodes to 0 anyway
    CHECK(codes == std::vector<std::int8_t>{3, 3, 3, 3, 3, 3, 3, 3, 127, 127});
    const std::vector<float> scales{1, 2, 4}, y{8, 8, 8};
    codes.assign(3, 0);
    kernels::encode_with_scales(y.data(), 3, codes.data(), {scales.data(), nullptr, 1});
    CHECK(codes == std::vector<std::int8_t>{8, 4, 2});
}
