// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// What a command line says of policies.

#include "policies.hpp"

#include <CLI/CLI.hpp>

namespace lm {

// Accepts what policy_named() takes.
[[nodiscard]] inline CLI::Validator is_policy() {
    std::string names;
    for (const named_policy& p : all_policies()) {
        names += (names.empty() ? "{" : ",") + p.name + (p.with_options ? "[:OPTION=VALUE...]" : "");
    }
    return {[](const std::string& text) {
                try {
                    static_cast<void>(policy_named(text));
                    return std::string();
                } catch (const std::invalid_argument& error) { return std::string(error.what()); }
            },
            names + "}"};
}

} // namespace lm
