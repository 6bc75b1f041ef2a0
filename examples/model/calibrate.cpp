// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#include "calibrate.hpp"

#include "read_file.hpp"

#include <kvtrim/policy/replay.hpp>

#include <charconv>
#include <cmath>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <system_error>

namespace lm {
namespace {

[[noreturn]] void fail(const std::filesystem::path& file, const std::string& what) {
    throw std::runtime_error(file.string() + ": " + what);
}

// Under another name first, so that what was interrupted is no table.
void write_all(const std::filesystem::path& file, std::span<const std::byte> bytes) {
    std::filesystem::path partial = file;
    partial += ".partial";
    std::ofstream out(partial, std::ios::binary);
    out.write(reinterpret_cast<const char*>(bytes.data()), std::ssize(bytes));
    out.close();
    std::error_code failed;
    if (out) { std::filesystem::rename(partial, file, failed); }
    if (out && !failed) { return; }
    std::filesystem::remove(partial, failed);
    fail(file, "cannot be written");
}

} // namespace

std::vector<token_id> replay_lead(const tokenizer& words) {
    return words.encode("\n\nRepeat the previous context exactly.\n");
}

kvtrim::row_profile calibrate(const llama_model& model, std::span<const token_id> text,
                              const std::vector<token_id>& lead) {
    session sequence(model, cache_format::f32, std::ssize(text), {lead, nullptr});
    (void)sequence.prefill(text, 1);
    const kvtrim::token_loss loss = kvtrim::token_loss::output_square_sum;
    const session::layer_scores scores = sequence.score(scoring_pass::replay, {&loss, 1}).front();
    kvtrim::row_profile profile;
    kvtrim::status added;
    kvtrim::growing_workspace memory;
    std::vector<kvtrim::keep_plan> plans(scores.size());
    // The first and the newest tokens stay in any cut.
    const kvtrim::eviction_request request{
        .budget = kvtrim::per_head(std::ssize(text) / 2),
        .protect = {.sink_tokens = 4, .window_tokens = std::min<index_t>(32, std::ssize(text) / 4)}};
    const kvtrim::status planned = kvtrim::layer_replay().plan(
        std::span<const kvtrim::replay_scores>(scores), request, std::span<kvtrim::keep_plan>(plans), memory,
        kvtrim::serial_executor{}, [&](const kvtrim::plan_progress& at) {
            if (at.stage == kvtrim::plan_stage::scored) { added = profile.add(at.scores.importance_rows()); }
        });
    for (const kvtrim::status& s : {planned, added}) {
        if (!s.ok()) { throw std::runtime_error(s.what()); }
    }
    return profile;
}

model_table table_of(const llama_model& model, const std::filesystem::path& file,
                     const std::function<std::vector<token_id>()>& text, const std::vector<token_id>& lead) {
    model_table table;
    if (!file.empty() && std::filesystem::exists(file)) {
        const std::string bytes = read_file(file);
        if (!kvtrim::restore(table.profile, std::as_bytes(std::span(bytes))).ok()) {
            fail(file, "is no table of a model's rows, or a damaged one");
        }
        const index_t rows = model.config.layers * model.config.kv_heads;
        if (table.profile.rows() != rows) {
            fail(file, "is a table of " + std::to_string(table.profile.rows()) + " rows, but the model has " +
                           std::to_string(rows) + " (layers times KV heads)");
        }
        table.origin = "read from " + file.string();
        return table;
    }
    const std::vector<token_id> tokens = text();
    table.profile = calibrate(model, tokens, lead);
    table.origin = "made from " + std::to_string(tokens.size()) + " tokens";
    if (file.empty()) { return table; }
    std::vector<std::byte> bytes(static_cast<std::size_t>(kvtrim::saved_bytes(table.profile)));
    if (const kvtrim::status saved = kvtrim::save(table.profile, bytes); !saved.ok()) {
        throw std::runtime_error(saved.what());
    }
    write_all(file, bytes);
    table.origin += " and written to " + file.string();
    return table;
}

std::vector<double> read_shares(const std::filesystem::path& file, const model_config& model) {
    std::istringstream words(read_file(file));
    std::vector<double> shares;
    bool is_any_positive = false;
    for (std::string word; words >> word;) {
        double share = 0;
        const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), share);
        if (error != std::errc{} || end != word.data() + word.size()) {
            fail(file, "'" + word + "' is not a number");
        }
        if (!std::isfinite(share) || share < 0) { fail(file, word + " is no share: negative or not finite"); }
        is_any_positive = is_any_positive || share > 0;
        shares.push_back(share);
    }
    const index_t rows = model.layers * model.kv_heads;
    if (std::ssize(shares) != model.layers && std::ssize(shares) != rows) {
        fail(file, "has " + std::to_string(shares.size()) + " shares, but the model has " +
                       std::to_string(model.layers) + " layers, and " + std::to_string(rows) +
                       " KV heads in all of them");
    }
    if (!is_any_positive) { fail(file, "has no share above 0"); }
    return shares;
}

void add_aids(policy_aids& aids, model_table& table, const llama_model& model,
              std::span<const std::string> policies, const aid_files& files,
              const std::function<std::vector<token_id>()>& text) {
    bool needs_table = false, needs_shares = false;
    for (const std::string& name : policies) {
        const named_policy& p = policy_named(name);
        needs_table = needs_table || p.needs_profile;
        needs_shares = needs_shares || p.needs_shares;
        if (p.needs_shares && files.shares.empty()) {
            throw std::runtime_error(name + " takes the budgets from a file: --shares FILE");
        }
    }
    if (!needs_shares && !files.shares.empty()) { fail(files.shares, "no policy asked for takes shares"); }
    if (!needs_table && !files.table.empty()) { fail(files.table, "no policy asked for takes a table"); }
    if (needs_shares) { aids.shares = read_shares(files.shares, model.config); }
    if (needs_table) {
        table = table_of(model, files.table, text, aids.replay_lead);
        aids.profile = &table.profile;
    }
}

} // namespace lm
