// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Models from files. Whatever is wrong with a file is thrown as std::runtime_error, with the file's name in the text.

#include "gguf.hpp"
#include "model.hpp"

#include <filesystem>

namespace lm {

// A model of the LLaMA architecture; its weights stay in the mapped file, as they are quantised, but for the rows of W_Q and
// W_K. These are stored in the order of interleaved pairs (2i, 2i + 1), and brought into that of half-split pairs
// (i, i + head_dim / 2), which the engine rotates and checkpoints elsewhere have.
[[nodiscard]] llama_model load_model(const gguf& file);

// The demo's model: f32, with its sizes in the metadata of a .safetensors file.
[[nodiscard]] llama_model load_safetensors(const std::filesystem::path& file);

} // namespace lm
