// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim_c.h>

int main() {
    return kvtrim_api_version() == KVTRIM_C_API_VERSION ? 0 : 1;
}
