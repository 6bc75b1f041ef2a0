// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// kvtrim's policies by name, as what an engine of cells asks of them: the scores of a layer.

#include "engine.hpp"

#include <string>
#include <vector>

namespace llama_example {

[[nodiscard]] std::vector<std::string> policy_names();

// Throws std::runtime_error for an unknown name.
[[nodiscard]] add_scores scorer_of(const std::string& policy);

} // namespace llama_example
