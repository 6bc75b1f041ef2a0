// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

namespace KVTRIM_NAMESPACE::kernels::KVTRIM_TARGET {

using namespace simd::KVTRIM_TARGET;

template <bool Interleaved>
void rotate(turn_row a, turn_row b, index_t pairs, float* row) {
    const index_t next = Interleaved ? 1 : pairs, step = Interleaved ? 2 : 1;
    index_t i = 0;
    for (; i + lanes <= pairs; i += lanes) {
        const floats c = round_products(a.cosine + i, b.cosine + i, a.sine + i, b.sine + i, -1.0);
        const floats s = round_products(a.sine + i, b.cosine + i, a.cosine + i, b.sine + i, 1.0);
        float* const first = row + i * step;
        float* const second = first + (Interleaved ? lanes : pairs);
        floats x = load(first), y = load(second);
        if constexpr (Interleaved) {
            const floats even = even_lanes(x, y), odd = odd_lanes(x, y);
            x = even;
            y = odd;
        }
        const floats u = x * c - y * s, v = y * c + x * s;
        store(first, Interleaved ? zip_low(u, v) : u);
        store(second, Interleaved ? zip_high(u, v) : v);
    }
    for (; i < pairs; ++i) {
        const auto c = static_cast<float>(a.cosine[i] * b.cosine[i] - a.sine[i] * b.sine[i]);
        const auto s = static_cast<float>(a.sine[i] * b.cosine[i] + a.cosine[i] * b.sine[i]);
        const float x = row[i * step], y = row[i * step + next];
        row[i * step] = x * c - y * s;
        row[i * step + next] = y * c + x * s;
    }
}

} // namespace KVTRIM_NAMESPACE::kernels::KVTRIM_TARGET
