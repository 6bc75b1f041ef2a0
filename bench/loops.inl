// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

namespace kvtrim::loops::KVTRIM_TARGET {

using namespace kernels;
using namespace kernels::KVTRIM_TARGET;

// products_*: multiply-adds; exponentials_*: exponentials; ordered_*: floats as integers of their order; read_*, written_*: floats
// that a loop reads or writes.

KVTRIM_LOOP void products_logits(const matrix_in& keys, const float* queries, index_t head_dim,
                                 const panel_out& out) {
    multiply<false, product_vectors>(keys, queries, head_dim, out, 0, product_rows(product_vectors));
}
// Has no loop of its own: that of fold_products(), which is not inlined, is taken.
void products_norms(const matrix_in& values, const float* panel, index_t head_dim, float* sums) {
    fold_products<fold::absolute, product_rows(product_vectors)>(values, panel, head_dim, 0, panel_columns, 0,
                                                                 sums);
}
KVTRIM_LOOP void products_values(const matrix_in& values, const float* weights, index_t keys,
                                 const panel_out& out) {
    multiply<true, product_vectors>(values, weights, keys, out, 0, product_rows(product_vectors));
}

#define KVTRIM_DECODE(Element, of_keys, of_values)                                                           \
    KVTRIM_LOOP void of_keys(const Element* const* rows, index_t head_dim, const float* queries,             \
                             float* logits) {                                                                \
        decode_logits(rows, 0, head_dim, queries, logits);                                                   \
    }                                                                                                        \
    KVTRIM_LOOP void of_values(const decode_tile& tile, element_rows<Element> values, index_t keys) {        \
        add_decode_values<true>(tile, values, 0, keys, keys);                                                \
    }
KVTRIM_DECODE(float, products_decode_keys_float, products_decode_values_float)
KVTRIM_DECODE(bf16, products_decode_keys_bf16, products_decode_values_bf16)
KVTRIM_DECODE(f16, products_decode_keys_f16, products_decode_values_f16)
#undef KVTRIM_DECODE
KVTRIM_LOOP void exponentials_decode(const decode_tile& tile, index_t keys) {
    make_decode_weights(tile, keys);
}

KVTRIM_LOOP void products_dots(const float* rows, index_t stride, index_t length, const float* other,
                               float* out) {
    for (index_t i = 0; i < 64; ++i) {
        const auto step = [&](floats sum, index_t d, auto some) __attribute__((always_inline)) {
            return fma(some.load(rows + i * stride + d), some.load(other + d), sum);
        };
        out[i] = sum_of_elements<true>(length, step);
    }
}

KVTRIM_LOOP void read_maximum(const highest_step& step) {
    step.run<4>(0, all_lanes{});
}
KVTRIM_LOOP void exponentials_sums(const exponentials_step& step) {
    step.run<exponential_vectors>(0, all_lanes{});
}
KVTRIM_LOOP void exponentials_attention(const attention_step& step) {
    step.run<exponential_vectors>(0, all_lanes{});
}
KVTRIM_LOOP void read_row_sums(const float* attention, index_t tokens, index_t rows, float* sums) {
    add_row_sums(attention, tokens, rows, 0, rows, sums);
}
KVTRIM_LOOP void written_eviction_errors(const eviction_step& step) {
    step.run<4>(0, all_lanes{});
}
KVTRIM_LOOP void exponentials_query_tile(query_tile& tile, const key_tile& keys, const logit_rules& rules,
                                         query_range queries) {
    tile.attend(keys, {.scale = rules.scale}, queries);
}
KVTRIM_LOOP void exponentials_soft_cap(float* logits, index_t count, const logit_cap& cap) {
    cap_logits(logits, count, cap);
}

KVTRIM_LOOP void ordered_histogram(std::span<const float> row, const key_range& range,
                                   key_histogram& histogram) {
    kernels::KVTRIM_TARGET::count_keys(row, range, histogram);
}
KVTRIM_LOOP void ordered_comparison(std::span<const float> row, std::uint32_t cut, above_and_equal& out) {
    out = kernels::KVTRIM_TARGET::compare(row, cut);
}
KVTRIM_LOOP std::int32_t* ordered_selection(std::span<const float> row, top_k_cut& cut, std::int32_t* out) {
    return kernels::KVTRIM_TARGET::write_above(row, cut, 0, out);
}

#define KVTRIM_WIDEN(Element, of_element)                                                                    \
    KVTRIM_LOOP void of_element(const Element* from, index_t count, float* to) {                             \
        kernels::KVTRIM_TARGET::widen_row(from, count, to);                                                  \
    }
KVTRIM_WIDEN(f16, written_widen_f16)
KVTRIM_WIDEN(bf16, written_widen_bf16)
KVTRIM_WIDEN(f8_e5m2, written_widen_f8_e5m2)
KVTRIM_WIDEN(f8_e4m3, written_widen_f8_e4m3)
#undef KVTRIM_WIDEN
KVTRIM_LOOP void written_q8_0(const block_q8_0* blocks, index_t count, float* to) {
    decode(blocks, count, to);
}
KVTRIM_LOOP void written_q4_0(const block_q4_0* blocks, index_t count, float* to) {
    decode(blocks, count, to);
}
KVTRIM_LOOP void read_narrow_f16(const float* from, index_t count, f16* to) {
    kernels::KVTRIM_TARGET::narrow_row(from, count, to);
}
KVTRIM_LOOP void read_narrow_bf16(const float* from, index_t count, bf16* to) {
    kernels::KVTRIM_TARGET::narrow_row(from, count, to);
}

KVTRIM_LOOP void written_rotate_halves(turn_row a, turn_row b, index_t pairs, float* row) {
    rotate<false>(a, b, pairs, row);
}
KVTRIM_LOOP void written_rotate_pairs(turn_row a, turn_row b, index_t pairs, float* row) {
    rotate<true>(a, b, pairs, row);
}

} // namespace kvtrim::loops::KVTRIM_TARGET
