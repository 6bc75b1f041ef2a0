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

template <class Block>
void decode(const Block* blocks, index_t count, float* to) {
    for (index_t b = 0; b < count; ++b, to += 32) { decode_block(blocks[b], to); }
}

} // namespace KVTRIM_NAMESPACE::kernels::KVTRIM_TARGET
