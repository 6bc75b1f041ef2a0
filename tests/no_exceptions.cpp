// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Built with -fno-exceptions -fno-rtti in every configuration.

#include <kvtrim/version.hpp>

int main() {
    return 0;
}
