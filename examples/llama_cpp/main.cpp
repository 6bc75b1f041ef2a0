// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// llama.cpp answers questions about a text from a cache that kvtrim cuts, and, to compare, from the whole cache.

#include "conversation.hpp"
#include "policies.hpp"

#include <CLI/CLI.hpp>
#include <fmt/core.h>

#include <exception>

using namespace llama_example;

int main(int argc, char** argv) {
    options chosen;
    std::string attention = "off", compaction = "state", unified = "on";
    CLI::App app{
        "llama.cpp answers from a cache that kvtrim cuts, and with --compare from the whole one first"};
    app.add_option("-m,--model", chosen.model, "a GGUF file")->required()->check(CLI::ExistingFile);
    app.add_option("-f,--file", chosen.text_file, "a text that the questions are about")
        ->check(CLI::ExistingFile);
    app.add_option("-p,--prompt", chosen.questions,
                   "a question; several are turns of one conversation, or of --sequences")
        ->required();
    app.add_option("--sequences", chosen.sequences,
                   "sequences that share the text, which is cut before they are asked; questions are dealt "
                   "to them by turns, "
                   "and they answer together. 0: one conversation")
        ->check(CLI::NonNegativeNumber)
        ->capture_default_str();
    app.add_option("--unified", unified,
                   "on: sequences share the cells of the text; off: each has --cells of its own, and a copy "
                   "of the text")
        ->check(CLI::IsMember({"on", "off"}))
        ->capture_default_str();
    app.add_option("--policy", chosen.policy)->check(CLI::IsMember(policy_names()))->capture_default_str();
    app.add_option("--keep", chosen.keep, "share that stays, of all tokens that a sequence has seen")
        ->check(CLI::Range(1e-6, 1.0))
        ->capture_default_str();
    app.add_option("--window", chosen.window, "newest tokens that stay and are observed")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    app.add_option("--sinks", chosen.sinks, "first tokens that stay")
        ->check(CLI::NonNegativeNumber)
        ->capture_default_str();
    app.add_option("--fold", chosen.fold, "how the scores of all heads and layers become one")
        ->check(CLI::IsMember({"squares", "sum", "maximum", "votes"}))
        ->capture_default_str();
    app.add_option("--layers", chosen.layers, "layers whose scores count, as 0,1,2; none: all")
        ->delimiter(',');
    app.add_option("--compact", compaction,
                   "state: move the cells that stay to the front, by saving and restoring; none: leave holes")
        ->check(CLI::IsMember({"state", "none"}))
        ->capture_default_str();
    app.add_option("--positions", chosen.positions, "keep them, or close the gaps")
        ->check(CLI::IsMember({"keep", "close"}))
        ->capture_default_str();
    app.add_option("--chunk", chosen.chunk, "tokens that enter the cache at once; 0: all")
        ->check(CLI::NonNegativeNumber)
        ->capture_default_str();
    app.add_option("--cells", chosen.cells, "cells of the cache")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    app.add_option("--ctk", chosen.type_k, "type of K")->capture_default_str();
    app.add_option("--ctv", chosen.type_v, "type of V")->capture_default_str();
    app.add_option("--fa", attention, "flash attention")
        ->check(CLI::IsMember({"on", "off"}))
        ->capture_default_str();
    app.add_option("--max-tokens", chosen.max_tokens, "length of an answer")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    app.add_flag("--unseen", chosen.unseen, "the first cut comes before the question, not behind it");
    app.add_flag("--compare", chosen.compares, "answer from the whole cache first");
    CLI11_PARSE(app, argc, argv);
    chosen.flash_attention = attention == "on";
    chosen.moves_cells = compaction == "state";
    chosen.unified = unified == "on";
    try {
        const language_model words(chosen.model);
        std::vector<answer> full;
        if (chosen.compares) { full = converse(words, chosen, nullptr); }
        converse(words, chosen, chosen.compares ? &full : nullptr);
        return 0;
    } catch (const std::exception& error) {
        fmt::print(stderr, "kvtrim-llama: {}\n", error.what());
        return 1;
    }
}
