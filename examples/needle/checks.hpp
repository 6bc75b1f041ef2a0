// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Compares the model and the sample generator with recorded results of the training code.

#include "engine.hpp"

#include <filesystem>

namespace needle {

struct check_result {
    index_t samples = 0;           // recorded samples
    index_t differing_samples = 0; // where the generator makes something else
    index_t positions = 0;         // with a recorded arg max
    index_t differing_argmax = 0;
    float max_logit_error = 0; // over the recorded logits

    // Logit differences up to 1e-3 are rounding.
    [[nodiscard]] bool ok() const {
        return differing_samples == 0 && differing_argmax == 0 && max_logit_error <= 1e-3F;
    }
};

// Throws std::runtime_error if the file is missing or broken.
[[nodiscard]] check_result check_against(const std::filesystem::path& reference_json,
                                         const llama_model& model);

} // namespace needle
