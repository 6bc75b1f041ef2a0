// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// What a command line says of policies.

#include "calibrate.hpp"
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

// The options --table and --shares.
inline void add_aid_files(CLI::App& app, aid_files& files) {
    app.add_option(
        "--table", files.table,
        "of policies with a table of the model's rows (profiled..., replay_threshold): read from this "
        "file, or made and written there if there is none; without a file it is made each time");
    app.add_option("--shares", files.shares,
                   "of ..._by_shares: a text file of a number for each layer, or for each KV head of each "
                   "layer, in proportion to which the budget is dealt out");
}

} // namespace lm
