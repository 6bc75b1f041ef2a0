// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// A ggml tensor of any type, any bits in its blocks, any extents and strides.
//
// Model: element (head, token, d) by the formats' definition, byte by byte (tests/oracle/ggml_blocks.hpp). A valid view reads
// just that; compaction moves whole rows bit for bit and nothing else; a view that is not valid is empty.

#include "input.hpp"

#include "oracle/ggml_blocks.hpp"

#include <kvtrim/cache/ggml_tensor_rows.hpp>
#include <kvtrim/compact/compact_in_place.hpp>
#include <kvtrim/compact/compact_to_flat.hpp>

#include <algorithm>
#include <set>

using namespace kvtrim;

namespace {

constexpr index_t buffer_bytes = 1 << 14;

struct tensor {
    oracle::ggml_format format;
    std::array<index_t, 3> extents;
    std::array<index_t, 3> strides; // head, token, element; in bytes
    bool in_row;
    index_t first; // byte of element 0

    // The byte where the element, or its block, begins, and its number in the block.
    [[nodiscard]] std::pair<index_t, int> place(index_t h, index_t t, index_t d) const {
        const index_t e = in_row ? h * extents[2] + d : d;
        const index_t at = first + t * strides[1] + (in_row ? 0 : h * strides[0]);
        return format.elements == 1 ? std::pair{at + (in_row ? e * format.bytes : d * strides[2]), 0}
                                    : std::pair{at + e / format.elements * format.bytes,
                                                static_cast<int>(e % format.elements)};
    }
    [[nodiscard]] bool lies_in_buffer() const { // every corner does
        for (int corner = 0; corner < 8; ++corner) {
            std::array<index_t, 3> i{};
            for (std::size_t r = 0; r < 3; ++r) { i[r] = (corner >> r & 1) != 0 ? extents[r] - 1 : 0; }
            const index_t at = place(i[0], i[1], i[2]).first;
            if (at < 0 || at + format.bytes > buffer_bytes) { return false; }
        }
        return true;
    }
};

float element_at(const tensor& t, const std::vector<unsigned char>& bytes, index_t h, index_t i, index_t d) {
    const auto [at, number] = t.place(h, i, d);
    const unsigned char* const p = bytes.data() + at;
    if (t.format.elements > 1) { return oracle::element_of_block(t.format, p, number); }
    if (t.format.type == oracle::f16.type) { return static_cast<float>(oracle::half_at(p)); }
    std::uint32_t bits = 0;
    if (t.format.type == oracle::bf16.type) {
        bits = (p[0] + 256u * p[1]) << 16;
    } else {
        std::memcpy(&bits, p, 4);
    }
    return std::bit_cast<float>(bits);
}

bool same_float(float a, float b) {
    return (a != a && b != b) || fuzz::same_bits(a, b);
}

} // namespace

void run(fuzz::input& in) {
    constexpr oracle::ggml_format formats[] = {oracle::f32,  oracle::f16,  oracle::bf16,
                                               oracle::q4_0, oracle::q4_1, oracle::q5_0,
                                               oracle::q5_1, oracle::q8_0, oracle::iq4_nl};
    tensor t;
    t.format = in.one_of(formats);
    const index_t blocks = in.between(0, 3);
    const index_t heads = in.between(0, 3), tokens = in.between(0, 14);
    t.in_row = in.chance(64);
    const index_t dim = t.format.elements == 1 || t.in_row ? in.between(0, 40) : blocks * 32;
    t.extents = {heads, tokens, dim};
    const index_t row_elements = t.in_row ? heads * dim : dim;
    const index_t row = (row_elements + t.format.elements - 1) / t.format.elements * t.format.bytes;
    const index_t gap = in.chance(64) ? in.between(0, 10) : 0;
    if (in.chance(128)) { // token-major
        t.strides = {row + gap, (row + gap) * std::max<index_t>(1, heads), t.format.bytes};
    } else {
        t.strides = {(row + gap) * std::max<index_t>(1, tokens), row + gap, t.format.bytes};
    }
    if (t.in_row) { t.strides[1] = row + gap; }
    for (std::size_t r = 0; r < 3; ++r) {
        if (in.chance(10)) { t.extents[r] = in.hostile(t.extents[r], 255); }
        if (in.chance(10)) {
            t.strides[r] = in.chance(128) ? -t.strides[r] : in.hostile(in.between(-80, 80), 64);
        }
    }
    t.first = in.chance(200) ? 0 : in.between(0, buffer_bytes - 1);
    alignas(64) static unsigned char memory[buffer_bytes];
    fuzz::stream s(in.number<std::uint16_t>());
    for (unsigned char& b : memory) { b = static_cast<unsigned char>(s.bits() >> 40); }
    for (index_t chosen = in.between(0, 3); chosen > 0; --chosen) { memory[in.between(0, 255)] = in.byte(); }

    const int type = static_cast<int>(in.hostile(t.format.type, 4));
    const ggml_tensor_rows rows =
        t.in_row ? ggml_tensor_rows::heads_in_row(type, memory + t.first, t.extents, t.strides[1])
                 : ggml_tensor_rows(type, memory + t.first, t.extents, t.strides);
    if (!rows.validate().ok()) {
        FUZZ_CHECK(rows.extent(0) == 0 && rows.extent(1) == 0 && rows.extent(2) == 0);
        return;
    }
    FUZZ_CHECK(type == t.format.type || std::any_of(std::begin(formats), std::end(formats),
                                                    [&](const auto& f) { return f.type == type; }));
    if (type != t.format.type || rows.extent(0) * rows.extent(1) * rows.extent(2) == 0) { return; }
    // Memory is promised: views that leave it are not read.
    if (t.extents[0] > 1000 || t.extents[1] > 1000 || t.extents[2] > 1000) { return; }
    for (const index_t stride : t.strides) {
        if (stride > 100000 || stride < -100000) { return; }
    }
    if (!t.lies_in_buffer()) { return; }
    const std::vector<unsigned char> before(memory, memory + buffer_bytes);
    const auto read = [&](index_t h, index_t i) {
        std::vector<float> tile(static_cast<std::size_t>(rows.extent(2)));
        rows.load_rows(h, i, 1, tile.data());
        return tile;
    };
    for (index_t h = 0; h < rows.extent(0); ++h) {
        std::vector<float> all(static_cast<std::size_t>(rows.extent(1) * rows.extent(2)));
        rows.load_rows(h, 0, rows.extent(1), all.data());
        for (index_t i = 0; i < rows.extent(1); ++i) {
            for (index_t d = 0; d < rows.extent(2); ++d) {
                FUZZ_CHECK(same_float(all[static_cast<std::size_t>(i * rows.extent(2) + d)],
                                      element_at(t, before, h, i, d)));
            }
        }
    }

    // Each head keeps rows of its own, or the same as all.
    keep_plan plan;
    std::vector<std::vector<std::int32_t>> kept(static_cast<std::size_t>(rows.extent(0)));
    std::vector<index_t> counts;
    const bool same_for_all = in.chance(128);
    for (std::size_t h = 0; h < kept.size(); ++h) {
        fuzz::stream choice(h > 0 && same_for_all ? 0 : in.byte());
        if (h > 0 && same_for_all) {
            kept[h] = kept[0];
        } else {
            for (std::int32_t i = 0; i < rows.extent(1); ++i) {
                if ((choice.bits() >> 30) % 2 == 0) { kept[h].push_back(i); }
            }
        }
        counts.push_back(std::ssize(kept[h]));
    }
    FUZZ_CHECK(plan.reset(counts).ok());
    for (std::size_t h = 0; h < kept.size(); ++h) {
        std::ranges::copy(kept[h], plan.writable_row(static_cast<index_t>(h)).begin());
    }
    std::vector<float> gathered(static_cast<std::size_t>(plan.total_tokens() * rows.extent(2)));
    FUZZ_CHECK(gather(rows, plan, std::span(gathered)).ok());
    std::size_t next = 0;
    for (std::size_t h = 0; h < kept.size(); ++h) {
        for (const auto i : kept[h]) {
            for (const float x : read(static_cast<index_t>(h), i)) {
                FUZZ_CHECK(same_float(x, gathered[next++]));
            }
        }
    }
    const status answer = compact_in_place(rows, plan);
    if (!answer.ok()) {
        FUZZ_CHECK(std::equal(before.begin(), before.end(), memory));
        const bool differs =
            std::any_of(kept.begin(), kept.end(), [&](const auto& k) { return k != kept[0]; });
        FUZZ_CHECK((rows.heads_move_together() && differs) || answer.code() == errc::views_overlap);
        return;
    }
    std::set<index_t> row_bytes;
    for (index_t h = 0; h < rows.extent(0); ++h) {
        for (index_t i = 0; i < rows.extent(1); ++i) {
            for (index_t d = 0; d < rows.extent(2); ++d) {
                for (index_t b = 0; b < t.format.bytes; ++b) { row_bytes.insert(t.place(h, i, d).first + b); }
            }
        }
        for (std::size_t i = 0; i < kept[static_cast<std::size_t>(h)].size(); ++i) {
            const auto now = read(h, static_cast<index_t>(i));
            for (index_t d = 0; d < rows.extent(2); ++d) {
                const float was = element_at(t, before, h, kept[static_cast<std::size_t>(h)][i], d);
                FUZZ_CHECK(same_float(now[static_cast<std::size_t>(d)], was));
            }
        }
    }
    for (index_t b = 0; b < buffer_bytes; ++b) {
        FUZZ_CHECK(row_bytes.count(b) > 0 || memory[b] == before[static_cast<std::size_t>(b)]);
    }
}
