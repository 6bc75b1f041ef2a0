// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#define CATCH_CONFIG_RUNNER // version 2: this file holds the implementation

#include "catch.hpp"

int main(int argc, char** argv) {
    return Catch::Session().run(argc, argv);
}
