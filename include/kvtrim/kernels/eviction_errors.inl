// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

namespace kvtrim::kernels::KVTRIM_TARGET {

using namespace simd::KVTRIM_TARGET;

struct eviction_step {
    float* attention;
    const float* products;
    index_t tokens, rows, begin;
    const float* squares;
    const float* outputs;

    template <index_t Vectors, class Lanes>
    void run(index_t first, Lanes some) const {
        const floats one = broadcast(1.0f), least = broadcast(0x1p-8f), none = broadcast(0.0f);
        registers<Vectors> output;
        KVTRIM_UNROLL
        for (index_t v = 0; v < Vectors; ++v) { output[v] = some.load(outputs + begin + first + lanes * v); }
        for (index_t t = 0; t < tokens; ++t) {
            const floats square = broadcast(squares[t]);
            KVTRIM_UNROLL
            for (index_t v = 0; v < Vectors; ++v) {
                const index_t at = t * rows + begin + first + lanes * v;
                const floats p = some.load(attention + at), rest = max(one - p, least);
                const floats product = some.load(products + at);
                const floats distance = max((square - product) + (output[v] - product), none);
                const floats ratio = p / rest, error = ratio * ratio * distance;
                const floats loss = select(greater(rest, least), error, p * p * square);
                some.store(attention + at, max(loss, none));
            }
        }
    }
};

inline void eviction_errors(float* attention, const float* products, index_t tokens, index_t rows,
                            index_t begin, index_t end, const float* squares, const float* outputs) {
    for_all_rows<4>(end - begin, eviction_step{attention, products, tokens, rows, begin, squares, outputs});
}

} // namespace kvtrim::kernels::KVTRIM_TARGET
