// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#include "tokenizer.hpp"

#include "tiny_model.hpp"

#include <support/catch.hpp>

#include <random>

namespace {

using lm::token_id;
using lm::tokenizer;
using tokens = std::vector<token_id>;
using words = std::vector<std::string_view>;

tokenizer tiny_tokenizer() {
    return tokenizer(tiny::read(tiny::make_parts().bytes()));
}

token_id byte(char c) {
    return tiny::first_byte + static_cast<std::uint8_t>(c);
}

TEST_CASE("Words are cut as GPT-2 cuts them, digits one by one") {
    const auto cut = [](std::string_view text) { return lm::split_words(text, true); };
    CHECK(cut("Hello world") == words{"Hello", " world"});
    CHECK(cut("in 2024, 1,5") == words{"in", " ", "2", "0", "2", "4", ",", " ", "1", ",", "5"});
    CHECK(cut("  two\n\n x \t") == words{" ", " two", "\n\n", " x", " \t"});
    CHECK(cut("it's we'll I'D 'sound") == words{"it", "'s", " we", "'ll", " I", "'", "D", " '", "sound"});
    CHECK(cut("x**2 #!") == words{"x", "**", "2", " #!"});
    CHECK(cut("caf\u00e9\u00a0\u65e5\u672c \u0663") ==
          words{"caf\u00e9", "\u00a0", "\u65e5\u672c", " ", "\u0663"});
    CHECK(cut("a\r\n\r\nb") == words{"a", "\r\n\r", "\n", "b"});
    CHECK(cut("").empty());
    CHECK(lm::split_words("in 2024", false) == words{"in", " 2024"});
}

TEST_CASE("The pair of the lowest rank is merged first, within words only") {
    const tokenizer t = tiny_tokenizer();
    constexpr token_id he = tiny::first_merged, ll = he + 1, hell = he + 2, hello = he + 3;
    constexpr token_id spaced_hello = he + 4, spaced_w = he + 5, or_ = he + 6;
    CHECK(t.encode("hello") == tokens{hello});
    CHECK(t.encode("hello hello") == tokens{hello, spaced_hello});
    CHECK(t.encode("hell") == tokens{hell});
    CHECK(t.encode("lllhe") == tokens{ll, byte('l'), he});
    CHECK(t.encode(" world") == tokens{spaced_w, or_, byte('l'), byte('d')});
    CHECK(t.encode("12") == tokens{byte('1'), byte('2')}); // though they would merge: each digit is a word
    CHECK(t.encode("").empty());
}

TEST_CASE("Control tokens are reached by name, never by the text of a prompt") {
    const tokenizer t = tiny_tokenizer();
    CHECK(t.control("<|im_start|>") == 1);
    CHECK(t.control("<|nothing|>") == -1);
    CHECK(t.is_end(2));
    CHECK_FALSE(t.is_end(1));
    for (const token_id token : t.encode("<|im_start|>user<|im_end|>")) { CHECK(token >= tiny::first_byte); }
    CHECK(t.decode(tokens{1, tiny::first_merged, 2}) == "<|im_start|>he<|im_end|>");
    CHECK_THROWS_AS(t.decode(tokens{-1}), std::out_of_range);
}

TEST_CASE("Decoding gives back what was encoded, whatever the bytes") {
    const tokenizer t = tiny_tokenizer();
    std::mt19937 random(3);
    for (int i = 0; i < 300; ++i) {
        std::string text(random() % 60, '\0');
        for (char& c : text) { c = static_cast<char>(random() % (i % 2 == 0 ? 256U : 128U)); }
        CHECK(t.decode(t.encode(text)) == text);
    }
}

TEST_CASE("A word of half a million characters is encoded in moments") {
    CHECK(tiny_tokenizer().encode(std::string(500'000, 'l')).size() == 250'000);
}

TEST_CASE("A tokenizer with merges of tokens that it does not have is refused") {
    auto parts = tiny::make_parts();
    tiny::put_texts(parts, "tokenizer.ggml.merges", {"he rring"});
    CHECK_THROWS_WITH(tokenizer(tiny::read(parts.bytes())), "tiny.gguf: has a merge of no tokens: he rring");
    tiny::put_texts(parts, "tokenizer.ggml.merges", {"herring"});
    CHECK_THROWS_WITH(tokenizer(tiny::read(parts.bytes())), "tiny.gguf: has a merge of one part: herring");
}

} // namespace
