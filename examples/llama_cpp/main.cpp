// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// llama.cpp answers questions about a text from a cache that kvtrim cuts, and, to compare, from the whole cache.

#include "engine.hpp"
#include "policies.hpp"
#include "words.hpp"

#include <CLI/CLI.hpp>
#include <fmt/core.h>

#include <chrono>
#include <exception>

namespace {

using namespace llama_example;
using kvtrim::index_t;
using clock = std::chrono::steady_clock;

struct options {
    std::string model, text_file, policy = "criticalkv", type_k = "f16", type_v = "f16", fold = "sum",
                                  positions = "keep";
    std::vector<std::string> questions;
    double keep = 0.5;
    index_t window = 32, sinks = 4, chunk = 0, cells = 4096, max_tokens = 64;
    std::vector<int> layers;
    bool flash_attention = false, moves_cells = true, compares = false, unseen = false;
};

double since(clock::time_point start) {
    return std::chrono::duration<double>(clock::now() - start).count();
}

// What an answer was made from, and how fast.
struct answer {
    std::vector<llama_token> tokens;
    std::vector<std::vector<float>> log_probabilities; // of each token, by what came before it
    double tokens_per_second = 0;
};

class conversation {
  public:
    conversation(const language_model& words, const options& chosen, bool cuts)
        : words_(words), chosen_(chosen), cuts_(cuts),
          engine_(words.model.get(),
                  context_params(static_cast<std::uint32_t>(chosen.cells), chosen.type_k, chosen.type_v,
                                 chosen.flash_attention),
                  chosen.window),
          add_(scorer_of(chosen.policy)) {}

    // Tokens enter the cache in chunks; where cells are too few, it is cut first.
    void read(std::span<const llama_token> tokens) {
        const auto start = clock::now();
        const auto chunk = static_cast<std::size_t>(
            chosen_.chunk > 0 ? chosen_.chunk : std::max<index_t>(1, std::ssize(tokens)));
        for (std::size_t at = 0; at < tokens.size(); at += chunk) {
            const auto part = tokens.subspan(at, std::min(chunk, tokens.size() - at));
            if (append(part)) { continue; }
            if (cuts_) { cut(); }
            if (!cuts_ || !append(part)) {
                throw std::runtime_error(fmt::format(
                    "{} cells are too few for {} tokens more: --cells, or --chunk with a smaller --keep",
                    chosen_.cells, part.size()));
            }
        }
        fmt::print("read {} tokens, {:.0f} per second\n", tokens.size(),
                   static_cast<double>(tokens.size()) / since(start));
    }

    void cut() {
        const index_t used = engine_.seen().cells(0).used(0);
        cut_options how{.kept = kvtrim::kept_tokens(used, chosen_.keep),
                        .protect = {.sink_tokens = chosen_.sinks, .window_tokens = chosen_.window}};
        how.fold = chosen_.fold == "sum"       ? kvtrim::head_reduction::sum
                   : chosen_.fold == "maximum" ? kvtrim::head_reduction::maximum
                                               : kvtrim::head_reduction::votes;
        how.close =
            chosen_.positions == "keep" ? kvtrim::closing::keep_positions : kvtrim::closing::towards_first;
        how.layers = chosen_.layers;
        how.moves_cells = chosen_.moves_cells;
        const auto start = clock::now();
        const cut_report done = engine_.cut(how, add_);
        fmt::print("cut: {} of {} cells freed in {:.1f} ms ({} removals, {} shifts); attention now reaches "
                   "to cell {}\n",
                   done.freed, used, 1e3 * since(start), done.removals, done.shifts,
                   engine_.seen().cells(0).end_of_use());
    }

    // Greedy, or of an answer that is given what the model makes of it. observes: a later cut may need its queries.
    answer reply(const std::vector<llama_token>* given, bool observes) {
        answer made;
        engine_.observes = observes;
        const std::vector<float> first = next_;
        clock::time_point start = clock::now();
        while (given != nullptr ? made.tokens.size() < given->size()
                                : std::ssize(made.tokens) < chosen_.max_tokens) {
            made.log_probabilities.push_back(log_probabilities(next_));
            const llama_token token = given != nullptr ? (*given)[made.tokens.size()] : likeliest(next_);
            made.tokens.push_back(token);
            if (given == nullptr) {
                fmt::print("{}", words_.text(token));
                std::fflush(stdout);
            }
            if (made.tokens.size() == 1) { start = clock::now(); }
            if (!append(std::span(&token, 1))) {
                throw std::runtime_error("no cell is left for the answer: --cells");
            }
            if (given == nullptr && words_.is_end(token)) { break; }
        }
        engine_.observes = true;
        made.tokens_per_second = static_cast<double>(made.tokens.size()) / since(start);
        if (given == nullptr) { before_ = first; }
        return made;
    }

    // Goes back to where the last reply of its own began.
    void forget_from(index_t position) {
        engine_.remove(0, position);
        next_ = before_;
    }
    [[nodiscard]] index_t position() const { return engine_.next_position(); }

  private:
    bool append(std::span<const llama_token> tokens) {
        if (!engine_.decode(tokens)) { return false; }
        next_.assign(engine_.logits().begin(), engine_.logits().end());
        return true;
    }

    const language_model& words_;
    const options& chosen_;
    bool cuts_;
    engine engine_;
    add_scores add_;
    std::vector<float> next_, before_; // logits
};

// Each turn: reads, cuts, answers. full: the answers of the whole cache, which take the place of one's own, so that both caches
// hold the same conversation.
std::vector<answer> converse(const language_model& words, const options& chosen,
                             const std::vector<answer>* full) {
    const bool cuts = full != nullptr || !chosen.compares;
    fmt::print("\n== {}\n",
               cuts ? fmt::format("{}, {:g} % kept", chosen.policy, 100 * chosen.keep) : "full cache");
    conversation chat(words, chosen, cuts);
    std::vector<answer> answers;
    const std::string text = chosen.text_file.empty() ? "" : read_text(chosen.text_file) + "\n\n";
    for (std::size_t turn = 0; turn < chosen.questions.size(); ++turn) {
        const std::string& question = chosen.questions[turn];
        const std::string said = words.user_turn((turn == 0 ? text : "") + question, turn == 0);
        const std::size_t asked = turn == 0 && chosen.unseen ? said.rfind(question) : 0;
        if (asked > 0) {
            chat.read(words.tokens(std::string_view(said).substr(0, asked), true));
            if (cuts) { chat.cut(); }
        }
        chat.read(words.tokens(std::string_view(said).substr(asked), turn == 0 && asked == 0));
        if (cuts && asked == 0) { chat.cut(); }

        const index_t begin = chat.position();
        const bool is_last = turn + 1 == chosen.questions.size();
        answers.push_back(chat.reply(nullptr, cuts && !is_last && full == nullptr));
        fmt::print("\n[{} tokens, {:.1f} per second]\n", answers.back().tokens.size(),
                   answers.back().tokens_per_second);
        if (full == nullptr) { continue; }
        chat.forget_from(begin);
        const answer& whole = (*full)[turn];
        const answer judged = chat.reply(&whole.tokens, !is_last);
        double sum = 0;
        for (std::size_t i = 0; i < whole.tokens.size(); ++i) {
            sum += divergence(whole.log_probabilities[i], judged.log_probabilities[i]);
        }
        fmt::print("KL(full || cut) over the full cache's answer: {:.4f} per token\n",
                   sum / static_cast<double>(whole.tokens.size()));
    }
    return answers;
}

} // namespace

int main(int argc, char** argv) {
    options chosen;
    std::string attention = "off", compaction = "state";
    CLI::App app{
        "llama.cpp answers from a cache that kvtrim cuts, and with --compare from the whole one first"};
    app.add_option("-m,--model", chosen.model, "a GGUF file")->required()->check(CLI::ExistingFile);
    app.add_option("-f,--file", chosen.text_file, "a text that the questions are about")
        ->check(CLI::ExistingFile);
    app.add_option("-p,--prompt", chosen.questions, "a question; several are turns of one conversation")
        ->required();
    app.add_option("--policy", chosen.policy)->check(CLI::IsMember(policy_names()))->capture_default_str();
    app.add_option("--keep", chosen.keep, "share of the cells that stays")
        ->check(CLI::Range(1e-6, 1.0))
        ->capture_default_str();
    app.add_option("--window", chosen.window, "newest tokens that stay and are observed")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    app.add_option("--sinks", chosen.sinks, "first tokens that stay")
        ->check(CLI::NonNegativeNumber)
        ->capture_default_str();
    app.add_option("--fold", chosen.fold, "how the scores of all heads and layers become one")
        ->check(CLI::IsMember({"sum", "maximum", "votes"}))
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
