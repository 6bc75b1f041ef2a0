// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Each primitive of a target through memory: included once per target by tests/simd/simd.cpp.

namespace probes::KVTRIM_TARGET {

using namespace kvtrim;
using namespace kvtrim::simd::KVTRIM_TARGET;

// Elements without a store of their own would become slow, not wrong: kernels/convert.inl goes one by one then.
template <class Element>
concept stored = requires(Element* to, floats x) {
    store(to, x);
};
static_assert(stored<float> && stored<bf16> && stored<f16>);

// out [lanes] = fn(x [lanes]) of the vectors that begin there.
template <class Fn>
std::vector<float> of(const std::vector<float>& in, Fn fn) {
    std::vector<float> out(in.size());
    for (index_t i = 0; i + lanes <= std::ssize(in); i += lanes) {
        store(out.data() + i, fn(load(in.data() + i)));
    }
    return out;
}

inline std::vector<float> powers(const std::vector<float>& in) {
    return of(
        in, [&](floats x) __attribute__((always_inline)) { return exp2(x); });
}
inline std::vector<float> minima(const std::vector<float>& in, float other) {
    return of(
        in, [&](floats x) __attribute__((always_inline)) { return min(x, broadcast(other)); });
}
inline std::vector<float> maxima(const std::vector<float>& in, float other) {
    return of(
        in, [&](floats x) __attribute__((always_inline)) { return max(x, broadcast(other)); });
}
inline std::vector<float> magnitudes(const std::vector<float>& in) {
    return of(
        in, [&](floats x) __attribute__((always_inline)) { return absolute(x); });
}
// 1 where x > other, else 0, whatever x
inline std::vector<float> comparisons(const std::vector<float>& in, float other) {
    return of(
        in, [&](floats x) __attribute__((always_inline)) {
            const mask m = greater(x, broadcast(other));
            const floats one = keep(m, broadcast(1.0f)), same = select(m, broadcast(1.0f), broadcast(0.0f));
            return any(m) || sum_of_lanes(one) == 0 ? one * same + keep(m, x) * broadcast(0.0f)
                                                    : broadcast(-1.0f);
        });
}
// {sum, highest} of the first vector
inline std::vector<float> folds(const std::vector<float>& in) {
    return {sum_of_lanes(load(in.data())), highest_of_lanes(load(in.data()))};
}
// The first `count` elements through first_lanes, between values that must stay.
inline std::vector<float> first_of(const std::vector<float>& in, index_t count) {
    std::vector<float> out(static_cast<std::size_t>(2 * lanes), -1.0f);
    const first_lanes some(count);
    some.store(out.data(), some.load(in.data()));
    store(out.data() + lanes, some.keep(load(in.data())));
    out.push_back(static_cast<float>(some.count()));
    return out;
}
inline std::vector<float> unzipped(const std::vector<float>& in) {
    std::vector<float> out(static_cast<std::size_t>(4 * lanes));
    const floats a = load(in.data()), b = load(in.data() + lanes);
    const floats even = even_lanes(a, b), odd = odd_lanes(a, b);
    store(out.data(), even);
    store(out.data() + lanes, odd);
    store(out.data() + 2 * lanes, zip_low(even, odd));
    store(out.data() + 3 * lanes, zip_high(even, odd));
    return out;
}
inline std::vector<float> products_of(const std::vector<double>& in) {
    std::vector<float> out(static_cast<std::size_t>(lanes));
    store(out.data(), round_products(in.data(), in.data() + 1, in.data() + 2, in.data() + 3, -1.0));
    return out;
}
// Codes minus 8 of the low halves, and of the high ones.
inline std::vector<float> nibbles_of(const std::vector<std::uint8_t>& in) {
    std::vector<float> out(32);
    registers<32 / lanes> codes;
    load_nibbles(in.data(), codes);
    for (index_t i = 0; i < 32 / lanes; ++i) { store(out.data() + i * lanes, codes[i]); }
    return out;
}

inline std::vector<std::uint32_t> orders_of(const std::vector<float>& in) {
    std::vector<std::uint32_t> out(in.size());
    for (std::size_t i = 0; i + lanes <= in.size(); i += lanes) {
        const uints bits = in_order_of_size(load(in.data() + i));
        __builtin_memcpy(out.data() + i, &bits, sizeof(bits));
    }
    return out;
}
// {lanes where a <= b, where a == b, one more than a where a <= b ...} of the first vectors
inline std::vector<std::uint32_t> compared(const std::vector<std::uint32_t>& a,
                                           const std::vector<std::uint32_t>& b) {
    const uints x = load(a.data()), y = load(b.data());
    std::vector<std::uint32_t> out(static_cast<std::size_t>(2 + lanes));
    out[0] = lanes_of(at_most(x, y));
    out[1] = lanes_of(equal(x, y));
    const uints more = add_one(at_most(x, y), x);
    __builtin_memcpy(out.data() + 2, &more, sizeof(more));
    return out;
}
// What pack() and pack_only() write and where they end; behind their end the second leaves what was there.
inline std::vector<std::int32_t> packed_of(const std::vector<std::uint32_t>& in, unsigned chosen) {
    std::vector<std::int32_t> out(static_cast<std::size_t>(2 * lanes) + 2, -1);
    std::vector<std::uint32_t> spilled(static_cast<std::size_t>(lanes) + 1);
    const auto* const end = pack_only(out.data(), chosen, load(in.data()));
    const auto* const other = pack(spilled.data(), chosen, load(in.data()));
    out.back() = static_cast<std::int32_t>(end - out.data());
    const bool same = other - spilled.data() == end - out.data() &&
                      std::equal(out.data(), out.data() + out.back(), spilled.data(),
                                 [](auto a, auto b) { return static_cast<std::uint32_t>(a) == b; });
    if (!same) { out.back() = -1; }
    return out;
}

inline constexpr table probe_table{orders_of, compared, packed_of,   lanes,       powers,
                                   minima,    maxima,   magnitudes,  comparisons, folds,
                                   first_of,  unzipped, products_of, nibbles_of};

} // namespace probes::KVTRIM_TARGET
