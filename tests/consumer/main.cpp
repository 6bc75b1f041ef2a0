// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#if __has_include(<kvtrim/kvtrim.hpp>)
#include <kvtrim/kvtrim.hpp>
#endif
#include <kvtrim/version.hpp>

#include <cstdio>

int main() {
    std::printf("kvtrim %d.%d.%d\n", KVTRIM_VERSION_MAJOR, KVTRIM_VERSION_MINOR, KVTRIM_VERSION_PATCH);
}
