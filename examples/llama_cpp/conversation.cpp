// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#include "conversation.hpp"

#include "policies.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cstdio>

namespace llama_example {
namespace {

using clock = std::chrono::steady_clock;

double since(clock::time_point start) {
    return std::chrono::duration<double>(clock::now() - start).count();
}

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
        how.layers = {chosen_.layers.begin(), chosen_.layers.end()};
        how.moves_cells = chosen_.moves_cells;
        // In later turns few cells may be left; a first cut that leaves less than is protected is refused.
        if (was_cut_ && how.kept < how.protect.prefix() + how.protect.suffix()) {
            fmt::print("not cut: {} of {} cells would be less than is protected\n", how.kept, used);
            return;
        }
        const auto start = clock::now();
        const cut_report done = engine_.cut(how, add_);
        was_cut_ = true;
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
    bool was_cut_ = false;
    engine engine_;
    add_scores add_;
    std::vector<float> next_, before_; // logits
};

} // namespace

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
        answers.back().divergence = sum / static_cast<double>(whole.tokens.size());
        fmt::print("KL(full || cut) over the full cache's answer: {:.4f} per token\n",
                   answers.back().divergence);
    }
    return answers;
}

} // namespace llama_example
