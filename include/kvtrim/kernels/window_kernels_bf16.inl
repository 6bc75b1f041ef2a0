// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

namespace KVTRIM_NAMESPACE::kernels::KVTRIM_TARGET {

// Keys are read in place, `edge` at a time with all panels of queries, so that every key is read from memory once. The scale
// comes after the product, because scaled queries would have to be rounded.
template <class Tiles>
void logits(const bf16* keys, index_t key_stride, index_t tokens, const bf16* packed, index_t rows,
            index_t head_dim, float scale, float soft_cap, float* out, soon_read next) {
    even_prefetch soon(next, (tokens + edge - 1) / edge);
    const floats unit = broadcast(scale);
    Tiles::configure();
    for (index_t t = 0; t < tokens; t += edge) {
        soon.step();
        for (index_t r = 0; r < rows; r += edge) {
            sums_of_panel c;
            multiply_panel<Tiles>({keys, key_stride, tokens, head_dim}, t,
                                  packed + r * order::whole_steps(head_dim), c);
            float* const to = out + t * rows + r;
            const auto put = [&](index_t token, index_t column, floats x, auto some)
                                 KVTRIM_INLINED { some.store(to + token * rows + column, unit * x); };
            for_each_vector_of(c, std::min(edge, tokens - t), rows - r, put);
        }
    }
    Tiles::release();
    if (soft_cap > 0) { cap_logits(out, tokens * rows, {soft_cap}); }
}

// The steps of window_kernels with these products.
template <const auto& Steps>
inline constexpr auto with_logits = [] {
    auto steps = Steps;
    steps.pack_bf16_queries = pack_columns<order>;
    steps.bf16_logits = logits<tiles>;
    return steps;
}();

} // namespace KVTRIM_NAMESPACE::kernels::KVTRIM_TARGET
