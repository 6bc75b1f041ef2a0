// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#include "checks.hpp"

#include "samples.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <fstream>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

namespace needle {
namespace {

using nlohmann::json;

constexpr index_t first_value_symbol = 80;

// Remembers the largest difference to the recorded logits of tokens first_token .. .
void compare(const json& recorded, const row_vector& logits, index_t first_token, check_result& result) {
    index_t token = first_token;
    for (const json& value : recorded) {
        const float error = std::abs(logits(token++) - value.get<float>());
        result.max_logit_error = std::max(result.max_logit_error,
                                          std::isnan(error) ? std::numeric_limits<float>::infinity() : error);
    }
}

void check_sample(const json& recorded, check_result& result) {
    const flat_sample made =
        flatten(make_sample(parse_task(recorded.at("task").get<std::string>()),
                            recorded.at("length").get<index_t>(), recorded.at("index").get<index_t>()));
    const bool same = made.tokens == recorded.at("tokens").get<std::vector<token_id>>() &&
                      (!recorded.contains("answer_at") ||
                       made.answer_positions == recorded.at("answer_at").get<std::vector<index_t>>());
    ++result.samples;
    result.differing_samples += same ? 0 : 1;
}

void check_logits(const json& recorded, const llama_model& model, check_result& result) {
    const auto tokens = recorded.at("tokens").get<std::vector<token_id>>();
    const auto argmax = recorded.at("argmax_all").get<std::vector<index_t>>();
    const matrix logits = prefill(model, tokens, logit_rows::all).logits;
    for (std::size_t position = 0; position < tokens.size(); ++position) {
        index_t best = 0;
        logits.row(static_cast<index_t>(position)).maxCoeff(&best);
        ++result.positions;
        result.differing_argmax += best == argmax.at(position) ? 0 : 1;
    }
    for (const json& row : recorded.at("rows")) {
        const row_vector computed = logits.row(row.at("position").get<index_t>());
        compare(row.at("logits_first_8"), computed, 0, result);
        compare(row.at("logits_values"), computed, first_value_symbol, result);
    }
}

} // namespace

check_result check_against(const std::filesystem::path& reference_json, const llama_model& model) {
    std::ifstream file(reference_json);
    if (!file) { throw std::runtime_error(reference_json.string() + ": cannot be opened"); }
    check_result result;
    try {
        const json reference = json::parse(file);
        for (const json& recorded : reference.at("samples")) { check_sample(recorded, result); }
        for (const json& recorded : reference.at("references")) {
            check_sample(recorded, result);
            check_logits(recorded, model, result);
        }
    } catch (const json::exception& broken) {
        throw std::runtime_error(reference_json.string() + ": " + broken.what());
    }
    return result;
}

} // namespace needle
