// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// A program in C++, and in C (pkg_config.sh), that uses the C library.
#include <kvtrim_c.h>

int main(void) {
    kvtrim_policy* policy = NULL;
    const kvtrim_status s = kvtrim_policy_create("snapkv", "kernel_tokens=7", &policy);
    kvtrim_policy_destroy(policy);
    return s.code == KVTRIM_OK && kvtrim_api_version() == KVTRIM_C_API_VERSION ? 0 : 1;
}
