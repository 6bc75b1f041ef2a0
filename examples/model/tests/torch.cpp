// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// The engine against transformers on torch, whose logits of 2048 tokens are in data/torch_logits.txt (torch_logits.py made them). Run
// by name, example.model.torch, where the weights are: SmolLM2 of `./dev run`.

#include "load_model.hpp"
#include "session.hpp"
#include "tokenizer.hpp"

#include <support/catch.hpp>

#include <array>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <string>

namespace {

using namespace lm;

std::optional<std::string> weights() {
    const char* const cache = std::getenv("XDG_CACHE_HOME");
    const char* const home = std::getenv("HOME");
    const std::filesystem::path folder = cache != nullptr  ? std::filesystem::path(cache)
                                         : home != nullptr ? std::filesystem::path(home) / ".cache"
                                                           : std::filesystem::path();
    const auto file = folder / "kvtrim" / "SmolLM2-135M-Instruct.Q4_1.gguf";
    if (std::filesystem::exists(file)) { return file.string(); }
    WARN("no weights: " << file.string() << " is not there, ./dev run fetches it");
    return std::nullopt;
}

// What torch says behind a token.
struct torch_row {
    token_id token = 0;
    index_t likeliest = 0;
    double largest = 0;
    double lead = 0; // over the second
    double log_sum = 0;
    std::array<double, 4> some{}; // logits of entries (position * 7919 + j * 12289) mod vocabulary
};

std::vector<torch_row> torch_rows() {
    std::ifstream in(MODEL_TESTS_DIR "/data/torch_logits.txt");
    std::vector<torch_row> rows;
    for (torch_row r; in >> r.token >> r.likeliest >> r.largest >> r.lead >> r.log_sum >> r.some[0] >>
                      r.some[1] >> r.some[2] >> r.some[3];) {
        rows.push_back(r);
    }
    REQUIRE(rows.size() == 2048);
    return rows;
}

TEST_CASE("Logits of SmolLM2 are those of torch, from a cache of every format", "[.torch]") {
    const auto file = weights();
    if (!file) { return; }
    const gguf from(*file);
    const llama_model model = load_model(from);
    const std::vector<torch_row> right = torch_rows();

    std::vector<token_id> tokens;
    for (const torch_row& r : right) { tokens.push_back(r.token); }
    std::ifstream in(MODEL_DATA_DIR "/beagle.txt", std::ios::binary);
    const std::string text((std::istreambuf_iterator<char>(in)), {});
    const std::vector<token_id> own = tokenizer(from).encode(text.substr(0, 16384));
    REQUIRE(own.size() >= tokens.size());
    CHECK(std::equal(tokens.begin(), tokens.end(), own.begin()));

    // The largest difference of a logit, and the most positions with another likeliest token; torch has a cache of floats.
    struct expected {
        cache_format format;
        double bound;
        index_t others;
    };
    for (const expected& e : {expected{cache_format::f32, 1e-3, 0}, expected{cache_format::f16, 0.15, 4},
                              expected{cache_format::q8_0, 1.5, 40}}) {
        std::vector<kv_cache> caches;
        for (index_t l = 0; l < model.config.layers; ++l) {
            caches.emplace_back(model.config.kv_heads, model.config.head_dim, e.format);
        }
        double largest = 0;
        index_t others = 0, clearly_others = 0;
        for (std::size_t at = 0; at < tokens.size(); at += 512) {
            const matrix logits =
                decode(model, caches, std::span(tokens).subspan(at, 512), static_cast<index_t>(at));
            for (index_t t = 0; t < logits.rows(); ++t) {
                const std::size_t position = at + static_cast<std::size_t>(t);
                const torch_row& r = right[position];
                const auto row = logits.row(t).cast<double>().array();
                index_t likeliest = 0;
                logits.row(t).maxCoeff(&likeliest);
                // Where torch's own second is as near as that, either may be first.
                if (likeliest != r.likeliest) {
                    ++others;
                    clearly_others += r.lead > 2 * e.bound ? 1 : 0;
                }
                const double top = row(r.likeliest);
                const double sum = top + std::log((row - top).exp().sum());
                largest = std::max({largest, std::abs(top - r.largest), std::abs(sum - r.log_sum)});
                for (std::size_t j = 0; j < r.some.size(); ++j) {
                    const auto v = (position * 7919 + j * 12289) % static_cast<std::size_t>(logits.cols());
                    largest = std::max(largest, std::abs(row(static_cast<index_t>(v)) - r.some[j]));
                }
            }
        }
        INFO(name_of(e.format) << ": largest difference " << largest << ", another likeliest token at "
                               << others);
        CHECK(largest < e.bound);
        CHECK(others <= e.others);
        CHECK(clearly_others == 0);
    }
}

} // namespace
