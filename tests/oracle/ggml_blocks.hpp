// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Element i of a row in each of ggml's formats, byte by byte in double precision. Products and sums are exact there, so that the
// float is the rounded number itself.

#include <cmath>
#include <cstddef>
#include <limits>
#include <stdexcept>

namespace oracle {

inline double half_at(const unsigned char* bytes) {
    const int bits = bytes[0] + 256 * bytes[1];
    const int exponent = bits / 1024 % 32, fraction = bits % 1024;
    double x = exponent == 0   ? std::ldexp(fraction, -24)
               : exponent < 31 ? std::ldexp(1024 + fraction, exponent - 25)
               : fraction == 0 ? std::numeric_limits<double>::infinity()
                               : std::numeric_limits<double>::quiet_NaN();
    return bits >= 32768 ? -x : x;
}

struct ggml_format {
    int type;     // ggml's number
    int bytes;    // of an element or a block
    int elements; // of it
    int halves;   // 16-bit floats that begin a block: scale, and minimum
};

inline constexpr ggml_format f32{0, 4, 1, 0}, f16{1, 2, 1, 0}, bf16{30, 2, 1, 0};
inline constexpr ggml_format q4_0{2, 18, 32, 1}, q4_1{3, 20, 32, 2}, q5_0{6, 22, 32, 1}, q5_1{7, 24, 32, 2},
    q8_0{8, 34, 32, 1}, iq4_nl{20, 18, 32, 1};
inline constexpr ggml_format block_formats[] = {q4_0, q4_1, q5_0, q5_1, q8_0, iq4_nl};

// Element i < 32 of a block.
inline float element_of_block(const ggml_format& format, const unsigned char* block, int i) {
    const double d = half_at(block);
    const double m = format.halves == 2 ? half_at(block + 2) : 0;
    const unsigned char* codes = block + format.bytes - 16;
    const int four = i < 16 ? codes[i] % 16 : codes[i - 16] / 16;
    const auto five = [&] { return four + 16 * (codes[-4 + i / 8] >> (i % 8) & 1); };
    constexpr int values[] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    switch (format.type) {
    case 2:
        return static_cast<float>(d * (four - 8));
    case 3:
        return static_cast<float>(d * four + m);
    case 6:
        return static_cast<float>(d * (five() - 16));
    case 7:
        return static_cast<float>(d * five() + m);
    case 8:
        return static_cast<float>(d * (block[2 + i] < 128 ? block[2 + i] : block[2 + i] - 256));
    case 20:
        return static_cast<float>(d * values[four]);
    default:
        throw std::logic_error("no such format");
    }
}

inline float element_of_row(const ggml_format& format, const unsigned char* blocks, std::ptrdiff_t i) {
    return element_of_block(format, blocks + i / 32 * format.bytes, static_cast<int>(i % 32));
}

} // namespace oracle
