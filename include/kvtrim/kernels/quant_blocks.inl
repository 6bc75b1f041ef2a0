// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

namespace KVTRIM_NAMESPACE::kernels::KVTRIM_TARGET {

using namespace simd::KVTRIM_TARGET;

KVTRIM_INLINE void decode_block(const block_q8_0& block, float* to) {
    const floats scale = broadcast(block.scale);
    KVTRIM_UNROLL
    for (index_t i = 0; i < 32; i += lanes) { store(to + i, scale * load(block.codes.data() + i)); }
}

KVTRIM_INLINE void decode_block(const block_q4_0& block, float* to) {
    const floats scale = broadcast(block.scale);
    registers<32 / lanes> codes;
    load_nibbles(block.codes.data(), codes);
    KVTRIM_UNROLL
    for (index_t i = 0; i < 32 / lanes; ++i) { store(to + i * lanes, scale * codes[i]); }
}

// low, high: of elements 0 to 15 and 16 to 31.
KVTRIM_INLINE void take_halves(const std::array<std::uint8_t, 16>& bytes, sixteen_bytes& low,
                               sixteen_bytes& high) {
    const sixteen_bytes both = load_sixteen(bytes.data());
    low = both & 15;
    high = (both >> 4) & 15;
}

// 16 where a bit of two bytes is set, else 0.
KVTRIM_INLINE sixteen_bytes fifth_bits(std::uint8_t first, std::uint8_t second) {
    const auto a = static_cast<std::int8_t>(first), b = static_cast<std::int8_t>(second);
    const sixteen_bytes spread = {a, a, a, a, a, a, a, a, b, b, b, b, b, b, b, b};
    const sixteen_bytes own_bit = {1, 2, 4, 8, 16, 32, 64, -128, 1, 2, 4, 8, 16, 32, 64, -128};
    return ((spread & own_bit) != 0) & 16;
}

// codes [32]: the integers that the scale multiplies.
template <class Block>
KVTRIM_INLINE void take_codes(const Block& block, std::int8_t* codes) {
    sixteen_bytes low, high;
    take_halves(block.codes, low, high);
    if constexpr (requires { block.high_bits; }) {
        low |= fifth_bits(block.high_bits[0], block.high_bits[1]);
        high |= fifth_bits(block.high_bits[2], block.high_bits[3]);
    }
    if constexpr (std::is_same_v<Block, block_q5_0>) { low -= 16, high -= 16; }
    store(codes, low);
    store(codes + 16, high);
    if constexpr (std::is_same_v<Block, block_iq4_nl>) { look_up(iq4_nl_values.data(), codes); }
}

template <class Block>
KVTRIM_INLINE void decode_block(const Block& block, float* to) {
    std::int8_t codes[32];
    take_codes(block, codes);
    const floats scale = broadcast(block.scale);
    floats minimum = broadcast(-0.0f); // changes no number, not even -0
    if constexpr (requires { block.minimum; }) { minimum = broadcast(block.minimum); }
    KVTRIM_UNROLL
    for (index_t i = 0; i < 32; i += lanes) { store(to + i, fma(scale, load(codes + i), minimum)); }
}

template <class Block>
void decode(const Block* blocks, index_t count, float* to) {
    for (index_t b = 0; b < count; ++b, to += 32) { decode_block(blocks[b], to); }
}

} // namespace KVTRIM_NAMESPACE::kernels::KVTRIM_TARGET
