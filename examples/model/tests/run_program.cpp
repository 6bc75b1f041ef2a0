// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// What run_program.sh asks: a tiny model and a text, as files.

#include "tiny_model.hpp"

#include "support/catch.hpp"

#include <cstdlib>
#include <fstream>
#include <string>

TEST_CASE("A tiny model and a text are written for ./dev run's own test", "[.][run program]") {
    const char* const folder = std::getenv("RUN_PROGRAM_FOLDER");
    REQUIRE(folder != nullptr);
    std::string text;
    for (int i = 0; i < 60; ++i) { text += i % 7 == 0 ? "hello world. " : "hell or low "; }
    std::ofstream(folder + std::string("/text.txt")) << text << "\n";
    const std::string model = tiny::make_parts().bytes();
    std::ofstream out(folder + std::string("/tiny.gguf"), std::ios::binary);
    out << model;
    REQUIRE(out.good());
}
