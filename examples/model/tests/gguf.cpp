// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#include "gguf.hpp"

#include "load_model.hpp"
#include "tiny_model.hpp"
#include "tokenizer.hpp"

#include <support/catch.hpp>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>

namespace {

using tiny::gguf_parts;
using tiny::read;

// What is said about a file that cannot be used; empty if it can.
std::string complaint(const std::string& bytes) {
    try {
        const lm::gguf file = read(bytes);
        static_cast<void>(lm::load_model(file));
        static_cast<void>(lm::tokenizer(file));
        return {};
    } catch (const std::runtime_error& error) { return error.what(); }
}

template <class Spoil>
std::string complaint_after(Spoil&& spoil) {
    gguf_parts parts = tiny::make_parts();
    spoil(parts);
    return complaint(parts.bytes());
}

bool says(const std::string& text, const std::string& part) {
    return text.starts_with("tiny.gguf: ") && text.find(part) != std::string::npos;
}

TEST_CASE("A GGUF file's values and tensors are read as they were written, from the disk too") {
    gguf_parts parts = tiny::make_parts();
    parts.set("some.number", tiny::f32, 2.5F);
    parts.set("some.count", tiny::u64, std::uint64_t{1} << 40);
    const auto path = std::filesystem::temp_directory_path() / "kvtrim_tiny_model_test.gguf";
    std::ofstream(path, std::ios::binary) << parts.bytes();
    const lm::gguf file(path);
    std::filesystem::remove(path);
    CHECK(file.text("general.architecture") == "llama");
    CHECK(file.number("some.number") == 2.5);
    CHECK(file.integer("some.count", 0, std::int64_t{1} << 41) == std::int64_t{1} << 40);
    CHECK(file.integer("no.such", 0, 9, 7) == 7);
    CHECK(file.texts("tokenizer.ggml.merges").at(2) == "he ll");
    for (const auto& [name, tensor] : parts.tensors) {
        const lm::matrix decoded = file.tensor(name, tensor.rows, tensor.columns).decoded();
        double largest = 0;
        for (lm::index_t i = 0; i < decoded.size(); ++i) {
            const double right = tensor.values[static_cast<std::size_t>(i)];
            largest = std::max(largest, std::abs(static_cast<double>(decoded.data()[i]) - right));
        }
        INFO(name);
        CHECK(largest < 1e-6);
    }
}

TEST_CASE("A file that is not there, or a folder, is said to be so") {
    CHECK_THROWS_WITH(lm::gguf("/no/such/file.gguf"), "/no/such/file.gguf: cannot be opened");
    CHECK_THROWS_AS(lm::gguf(std::filesystem::temp_directory_path()), std::runtime_error);
}

TEST_CASE("Version 2 is read like version 3") {
    CHECK(complaint_after([](auto& p) { p.version = 2; }).empty());
}

TEST_CASE("A GGUF file that ends early is refused, wherever it ends") {
    const std::string whole = tiny::make_parts().bytes();
    REQUIRE(complaint(whole).empty());
    for (std::size_t size = 0; size < whole.size(); size += size < 10000 ? 7 : 97) {
        INFO(size);
        REQUIRE(says(complaint(whole.substr(0, size)), ""));
    }
}

TEST_CASE("A GGUF file with a changed byte is read or refused, and nothing else happens") {
    const gguf_parts parts = tiny::make_parts();
    const std::string whole = parts.bytes();
    std::size_t data = 0;
    for (const auto& [name, tensor] : parts.tensors) { data += tensor.data.size(); }
    int refused = 0;
    for (std::size_t at = 0; at < whole.size() - data; ++at) {
        std::string spoilt = whole;
        constexpr unsigned changes[] = {0x01, 0x80, 0xFF};
        spoilt[at] = static_cast<char>(static_cast<unsigned char>(spoilt[at]) ^ changes[at % 3]);
        refused += complaint(spoilt).empty() ? 0 : 1;
    }
    CHECK(refused > 1000);
}

TEST_CASE("What is wrong with a GGUF file is said") {
    const auto with = [](const char* key, std::uint32_t value) {
        return complaint_after([&](auto& p) { p.set(key, tiny::u32, value); });
    };
    CHECK(says(complaint("GGML and more"), "is no GGUF file"));
    CHECK(says(complaint_after([](auto& p) { p.version = 1; }), "version 1"));
    CHECK(says(complaint_after([](auto& p) { p.version = 0x03000000; }), "big-endian"));
    CHECK(says(complaint_after([](auto& p) { p.set("general.architecture", "mamba"); }), "mamba"));
    CHECK(says(complaint_after([](auto& p) { p.remove("llama.block_count"); }), "has no llama.block_count"));
    CHECK(says(complaint_after([](auto& p) { p.set("llama.block_count", "two"); }), "not a whole number"));
    CHECK(says(with("llama.block_count", 3), "has no tensor blk.2."));
    CHECK(says(with("llama.block_count", 0), "not in [1, "));
    CHECK(says(with("llama.attention.head_count_kv", 3), "no groups"));
    CHECK(says(with("llama.attention.key_length", 16), "values of another length"));
    CHECK(says(with("llama.rope.dimension_count", 16), "a part of its heads"));
    CHECK(says(with("llama.expert_count", 8), "experts"));
    CHECK(says(with("general.alignment", 24), "alignment"));
    CHECK(says(complaint_after([](auto& p) { p.set("llama.rope.scaling.type", "yarn"); }), "scaled"));
    CHECK(says(complaint_after([](auto& p) { p.values.push_back(p.values.front()); }), "two values"));
    CHECK(says(complaint_after([](auto& p) { p.tensors.push_back(p.tensors.front()); }), "two tensors"));
    CHECK(says(complaint_after([](auto& p) { p.at("blk.0.attn_q.weight").type = 12; }), "ggml's type 12"));
    CHECK(says(complaint_after([](auto& p) { p.at("blk.0.attn_q.weight").rows = 64; }), "unexpected shape"));
    CHECK(says(complaint_after([](auto& p) { p.set("tokenizer.ggml.model", "llama"); }), "not byte-level"));
    CHECK(says(complaint_after([](auto& p) { p.set("tokenizer.ggml.pre", "llama-bpe"); }), "llama-bpe"));
    constexpr float nan = std::numeric_limits<float>::quiet_NaN();
    CHECK(
        says(complaint_after([&](auto& p) { p.set("llama.rope.freq_base", tiny::f32, nan); }), "not finite"));
}

TEST_CASE("A table of slower turns whose numbers are not positive and finite is refused") {
    tiny::sizes s;
    s.slower.assign(static_cast<std::size_t>(s.head_dim / 2), 2.0F);
    REQUIRE(complaint(tiny::make_parts(s).bytes()).empty());
    constexpr float infinity = std::numeric_limits<float>::infinity();
    for (const float bad :
         {0.0F, -0.0F, -1.0F, infinity, -infinity, std::numeric_limits<float>::quiet_NaN()}) {
        for (const std::size_t at : {std::size_t{0}, s.slower.size() - 1}) {
            tiny::sizes spoilt = s;
            spoilt.slower[at] = bad;
            INFO(bad << " at " << at);
            CHECK(says(complaint(tiny::make_parts(spoilt).bytes()), "rope_freqs.weight"));
        }
    }
}

TEST_CASE("Counts, lengths and offsets that no file can hold are refused before memory is asked for") {
    using tiny::bytes_out;
    const auto list = [](std::uint32_t type, std::uint64_t count) {
        return bytes_out{}.number<std::uint32_t>(tiny::array).number(type).number(count).data;
    };
    const auto with = [](const std::string& bytes) {
        return complaint_after([&](auto& p) { p.put("some.value", bytes); });
    };
    for (const std::uint64_t count : {~std::uint64_t{0}, std::uint64_t{1} << 61, std::uint64_t{1} << 32}) {
        CHECK(says(with(list(tiny::u32, count)), "ends within"));
        CHECK(says(with(list(tiny::string, count)), "ends within"));
        CHECK(says(with(bytes_out{}.number<std::uint32_t>(tiny::string).number(count).data), "ends within"));
        const auto far = [&](std::vector<std::uint64_t>& offsets) { offsets.back() = count / 32 * 32; };
        CHECK(says(complaint(tiny::make_parts().bytes(far)), "outside the file"));
        for (const auto& [at, what] : {std::pair(8, "tensors"), std::pair(16, "metadata")}) {
            std::string bytes = tiny::make_parts().bytes();
            std::memcpy(bytes.data() + at, &count, sizeof(count));
            CHECK(says(complaint(bytes), std::string("ends within its ") + what));
        }
    }
    CHECK(says(with(list(tiny::array, 1)), "array of arrays"));
    const auto odd = [](std::vector<std::uint64_t>& offsets) { offsets.back() += 2; };
    CHECK(says(complaint(tiny::make_parts().bytes(odd)), "not aligned"));
    for (const int bits : {31, 62, 63}) {
        gguf_parts parts = tiny::make_parts();
        parts.at("token_embd.weight").rows = static_cast<lm::index_t>(std::uint64_t{1} << bits);
        CHECK(says(complaint(parts.bytes()), "is no matrix"));
    }
}

} // namespace
