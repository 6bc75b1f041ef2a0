// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include "input.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    fuzz::input in(std::span(data, size));
    run(in);
    return 0;
}
