// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

namespace KVTRIM_NAMESPACE::kernels::KVTRIM_TARGET {

using namespace simd::KVTRIM_TARGET;

// Rounds to nearest, as kernels::to_code(); NaN becomes `highest`.
KVTRIM_INLINE ints to_codes(floats x, float lowest, float highest) {
    const floats inside = max(min(x, broadcast(highest)), broadcast(lowest));
    return reinterpret_cast<ints>(inside + broadcast(code_aligner)) -
           std::bit_cast<std::int32_t>(code_aligner);
}

inline value_range range_of(const float* x, index_t count) {
    floats low = broadcast(0.0f), high = low, odd = low; // x - x is 0, or NaN for infinities and NaNs
    for_each_vector(count, [&](index_t i, auto some) KVTRIM_INLINED {
        const floats v = some.load(x + i);
        low = min(v, low);
        high = max(v, high);
        odd = odd + (v - v);
    });
    return {-highest_of_lanes(broadcast(0.0f) - low), highest_of_lanes(high), sum_of_lanes(odd) == 0};
}

inline void encode_block(const float* x, block_q8_0& to) {
    const float inverse = start_block(range_of(x, 32), to);
    KVTRIM_UNROLL
    for (index_t i = 0; i < 32; i += lanes) {
        store_low_bytes(to.codes.data() + i, to_codes(load(x + i) * broadcast(inverse), -127, 127));
    }
}

inline void encode_block(const float* x, block_q4_0& to) {
    const float inverse = start_block(range_of(x, 32), to);
    KVTRIM_UNROLL
    for (index_t i = 0; i < 16; i += lanes) {
        const ints low = to_codes(load(x + i) * broadcast(inverse), -8, 7) + 8;
        const ints high = to_codes(load(x + 16 + i) * broadcast(inverse), -8, 7) + 8;
        store_low_bytes(to.codes.data() + i, low | high << 4);
    }
}

template <class Block>
void encode_all(const float* x, index_t count, Block* blocks) {
    for (index_t b = 0; b < count; ++b) { encode_block(x + b * Block::elements, blocks[b]); }
}

// codes [count] = x * inverse.
inline void encode_codes(const float* x, index_t count, float inverse, std::int8_t* codes) {
    index_t i = 0;
    for (; i + lanes <= count; i += lanes) {
        store_low_bytes(codes + i, to_codes(load(x + i) * broadcast(inverse), -128, 127));
    }
    for (; i < count; ++i) { codes[i] = static_cast<std::int8_t>(to_code(x[i] * inverse, -128, 127)); }
}

} // namespace KVTRIM_NAMESPACE::kernels::KVTRIM_TARGET
