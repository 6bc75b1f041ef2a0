// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

#include <ggml.h>

namespace support {

// A context of ggml, whose tensors a test may spoil.
struct ggml_memory {
    ggml_context* c = ggml_init({1u << 20, nullptr, false});

    ggml_memory() = default;
    ggml_memory(const ggml_memory&) = delete;
    ggml_memory& operator=(const ggml_memory&) = delete;
    ~ggml_memory() { ggml_free(c); }
};

} // namespace support
