// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Rows of others, run in the same rounds as ours: peer/<row>. Each names the row of ours that does the same.

#include <string>

namespace bench {

// Starts `command` (torch_reference.py --serve PREFIX) and adds a row for each one that it offers. Throws
// std::runtime_error where it does not start.
void add_torch_rows(const std::string& command);

// ggml's CPU flash attention, where CMake found ggml; else nothing.
void add_ggml_rows();

// A small layer and kvtrim's results on it as plain binary, for torch_reference.py --check. Returns an exit code.
int write_reference_data(const std::string& folder);

} // namespace bench
