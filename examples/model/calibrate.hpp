// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// What some policies need beside the prompt, made once for a model: the words before a replay, a table of how many tokens its rows
// need (kvtrim::row_profile) from a replay of any text, and shares of the budget from a file (kvtrim::layer_shares).

#include "session.hpp"
#include "tokenizer.hpp"

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace lm {

// "Repeat the previous context" in the model's tokens.
[[nodiscard]] std::vector<token_id> replay_lead(const tokenizer& words);

// Runs the text once, replays it, and makes a table of what the output loses.
[[nodiscard]] kvtrim::row_profile calibrate(const llama_model& model, std::span<const token_id> text,
                                            const std::vector<token_id>& lead);

struct model_table {
    kvtrim::row_profile profile;
    std::string
        origin; // "read from FILE", "made from 1024 tokens", "made from 1024 tokens and written to FILE"
};

// The model's table: from the file if it is there, else calibrate() of text(), which is written to the file unless its name is empty. A
// file is of this version of the library and this kind of machine, as all of kvtrim::save(). Throws std::runtime_error with
// the file's name if it cannot be read or written, is no such table, or one of another number of rows than the model's; a file that is
// there is never changed.
[[nodiscard]] model_table table_of(const llama_model& model, const std::filesystem::path& file,
                                   const std::function<std::vector<token_id>()>& text,
                                   const std::vector<token_id>& lead);

// Shares of the budget from a text file of numbers between blanks or line ends: one for each layer, or one for each KV head of each layer,
// a layer's heads side by side. Throws std::runtime_error with the file's name if it cannot be read, a word is no number, a
// number is negative or not finite, none is above 0, or there are not as many as the model has layers or rows.
[[nodiscard]] std::vector<double> read_shares(const std::filesystem::path& file, const model_config& model);

// Names of files, empty where there is none.
struct aid_files {
    std::string table;
    std::string shares;
};

// Adds to `aids` what the policies of these names need: table_of() the file, which comes to lie in `table` and must outlive them, and
// read_shares() of the file. Throws what these do, and std::runtime_error for a file that none of the policies reads or shares
// that are missing, before anything is computed.
void add_aids(policy_aids& aids, model_table& table, const llama_model& model,
              std::span<const std::string> policies, const aid_files& files,
              const std::function<std::vector<token_id>()>& text);

} // namespace lm
