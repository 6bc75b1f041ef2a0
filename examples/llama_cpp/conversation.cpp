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

llama_context_params params_of(const options& chosen) {
    const auto sequences = static_cast<std::uint32_t>(std::max<index_t>(1, chosen.sequences));
    auto params = context_params(static_cast<std::uint32_t>(chosen.cells), chosen.type_k, chosen.type_v,
                                 chosen.flash_attention);
    params.n_seq_max = sequences;
    params.kv_unified = chosen.unified;
    if (!chosen.unified) { params.n_ctx *= sequences; }
    return params;
}

class conversation {
  public:
    conversation(const language_model& words, const options& chosen, bool cuts)
        : words_(words), chosen_(chosen), cuts_(cuts),
          engine_(words.model.get(), params_of(chosen), chosen.window), add_(scorer_of(chosen.policy)),
          speakers_(static_cast<std::size_t>(std::max<index_t>(1, chosen.sequences))) {}

    // Tokens enter the cache in chunks; where cells are too few, the sequence is cut first.
    void read(std::span<const llama_token> tokens, llama_seq_id sequence) {
        const auto start = clock::now();
        const auto chunk = static_cast<std::size_t>(
            chosen_.chunk > 0 ? chosen_.chunk : std::max<index_t>(1, std::ssize(tokens)));
        for (std::size_t at = 0; at < tokens.size(); at += chunk) {
            const auto part = tokens.subspan(at, std::min(chunk, tokens.size() - at));
            bool has_room = engine_.decode(part, sequence);
            if (!has_room && cuts_ && of(sequence).seen > 0) {
                cut(sequence, std::ssize(part));
                has_room = engine_.decode(part, sequence);
            }
            if (!has_room) {
                throw std::runtime_error(fmt::format(
                    "{} cells are too few for {} tokens more: --cells, or --chunk with a smaller --keep",
                    chosen_.cells, part.size()));
            }
            of(sequence).seen += std::ssize(part);
        }
        of(sequence).take(engine_.logits());
        fmt::print("read {} tokens, {:.0f} per second\n", tokens.size(),
                   static_cast<double>(tokens.size()) / since(start));
    }

    // Keeps the share of all tokens that the sequence has seen, not of those that an earlier cut left; fewer where `room` cells
    // would not be free else.
    void cut(llama_seq_id sequence, index_t room) {
        const kvtrim::cell_mirror& cells = engine_.seen().cells(sequence);
        const index_t used = cells.used(sequence), own = own_cells(sequence);
        const index_t shared = used - own; // other sequences use them too: they would not be free
        const index_t wanted = std::min(own, kvtrim::kept_tokens(of(sequence).seen, chosen_.keep));
        const index_t fits = std::max<index_t>(0, own + cells.free_cells() - room);
        if (fits < wanted) {
            fmt::print("{} of {} tokens seen would be kept, but the cells hold {}\n", wanted,
                       of(sequence).seen, fits);
        }
        cut_options how{.kept = shared + std::min(wanted, fits),
                        .protect = {.sink_tokens = chosen_.sinks,
                                    .pinned_tokens = shared,
                                    .window_tokens = chosen_.window},
                        .sequence = sequence};
        how.fold = chosen_.fold == "squares"   ? kvtrim::head_reduction::squares
                   : chosen_.fold == "sum"     ? kvtrim::head_reduction::sum
                   : chosen_.fold == "maximum" ? kvtrim::head_reduction::maximum
                                               : kvtrim::head_reduction::votes;
        how.close =
            chosen_.positions == "keep" ? kvtrim::closing::keep_positions : kvtrim::closing::towards_first;
        how.layers = {chosen_.layers.begin(), chosen_.layers.end()};
        how.moves_cells = chosen_.moves_cells && shared == 0; // what is saved and restored is shared no more
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
                   engine_.seen().cells(sequence).end_of_use());
    }

    // What sequence 0 has read is what all have read.
    void share() {
        shared_ = engine_.seen().cells(0).used(0);
        if (chosen_.unified) { of(0).seen = 0; } // from here on what it has for itself
        for (llama_seq_id s = 1; s < static_cast<llama_seq_id>(speakers_.size()); ++s) {
            engine_.copy(0, s);
            of(s).seen = of(0).seen;
        }
        fmt::print("{} sequences {} {} cells\n", speakers_.size(), chosen_.unified ? "share" : "have each",
                   shared_);
    }

    // All sequences from 0 on that are asked answer at once, each greedily, or of an answer that is given what the model makes of it.
    // observes: a later cut may need its queries.
    std::vector<answer> reply(std::size_t asked, std::span<const answer> given, bool observes) {
        std::vector<answer> made(asked);
        std::vector<bool> has_ended(asked);
        for (std::size_t s = 0; s < asked; ++s) {
            const auto sequence = static_cast<llama_seq_id>(s);
            made[s].seen = of(sequence).seen;
            made[s].cells = own_cells(sequence);
            if (!given.empty()) { continue; }
            of(sequence).before = of(sequence).next;
            of(sequence).seen_before = of(sequence).seen;
        }
        engine_.observes = observes;
        clock::time_point start = clock::now();
        std::size_t spoken = 0;
        while (true) {
            std::vector<llama_token> tokens;
            std::vector<llama_seq_id> sequences;
            for (std::size_t s = 0; s < asked; ++s) {
                const std::size_t count = made[s].tokens.size();
                const bool ends = given.empty()
                                      ? has_ended[s] || std::ssize(made[s].tokens) == chosen_.max_tokens
                                      : count == given[s].tokens.size();
                if (ends) { continue; }
                const std::vector<float>& next = speakers_[s].next;
                const llama_token token = given.empty() ? likeliest(next) : given[s].tokens[count];
                has_ended[s] = words_.is_end(token);
                made[s].log_probabilities.push_back(log_probabilities(next));
                made[s].tokens.push_back(token);
                tokens.push_back(token);
                sequences.push_back(static_cast<llama_seq_id>(s));
            }
            if (tokens.empty()) { break; }
            if (spoken == 0) { start = clock::now(); }
            spoken += tokens.size();
            if (given.empty() && chosen_.sequences == 0) {
                fmt::print("{}", words_.text(tokens[0]));
                std::fflush(stdout);
            }
            step(tokens, sequences);
        }
        engine_.observes = true;
        for (answer& a : made) { a.tokens_per_second = static_cast<double>(spoken) / since(start); }
        return made;
    }

    // Goes back to where the last reply of its own began.
    void forget_from(index_t position, llama_seq_id sequence) {
        engine_.remove(sequence, position);
        of(sequence).next = of(sequence).before;
        of(sequence).seen = of(sequence).seen_before;
    }
    [[nodiscard]] index_t position(llama_seq_id sequence) const { return engine_.next_position(sequence); }

  private:
    struct speaker {
        std::vector<float> next, before; // logits
        index_t seen = 0, seen_before = 0;
        void take(std::span<const float> logits) { next.assign(logits.begin(), logits.end()); }
    };
    [[nodiscard]] index_t own_cells(llama_seq_id sequence) {
        return engine_.seen().cells(sequence).used(sequence) - (chosen_.unified ? shared_ : 0);
    }
    speaker& of(llama_seq_id sequence) { return speakers_[static_cast<std::size_t>(sequence)]; }

    // A token of each of these sequences.
    void step(std::span<const llama_token> tokens, std::span<const llama_seq_id> sequences) {
        const std::size_t at_once = engine_.seen().has_windows() ? 1 : tokens.size();
        for (std::size_t at = 0; at < tokens.size(); at += at_once) {
            if (!engine_.decode(tokens.subspan(at, at_once), sequences.subspan(at, at_once))) {
                throw std::runtime_error("no cell is left for the answer: --cells");
            }
            for (std::size_t i = 0; i < at_once; ++i) {
                of(sequences[at + i]).take(engine_.logits(static_cast<std::int32_t>(i)));
                ++of(sequences[at + i]).seen;
            }
        }
    }

    const language_model& words_;
    const options& chosen_;
    bool cuts_;
    bool was_cut_ = false;
    index_t shared_ = 0; // cells that all sequences have, or had, in common
    engine engine_;
    add_scores add_;
    std::vector<speaker> speakers_; // of each sequence
};

} // namespace

std::vector<answer> converse(const language_model& words, const options& chosen,
                             const std::vector<answer>* full) {
    const bool cuts = full != nullptr || !chosen.compares;
    refuse_if(chosen.sequences > 0 && chosen.text_file.empty(), "sequences share a text: --file");
    refuse_if(chosen.sequences > kvtrim::cell_mirror::most_sequences,
              fmt::format("at most {} sequences", kvtrim::cell_mirror::most_sequences));
    fmt::print("\n== {}\n",
               cuts ? fmt::format("{}, {:g} % kept", chosen.policy, 100 * chosen.keep) : "full cache");
    conversation chat(words, chosen, cuts);
    std::vector<answer> answers;
    const std::string text = chosen.text_file.empty() ? "" : read_text(chosen.text_file) + "\n\n";
    const auto at_once = static_cast<std::size_t>(std::max<index_t>(1, chosen.sequences));
    for (std::size_t first = 0; first < chosen.questions.size(); first += at_once) {
        const std::size_t asked = std::min(at_once, chosen.questions.size() - first);
        const bool is_first = first == 0, is_last = first + asked == chosen.questions.size();
        for (std::size_t i = 0; i < asked; ++i) {
            const auto sequence = static_cast<llama_seq_id>(i);
            const std::string& question = chosen.questions[first + i];
            const std::string said = words.user_turn((is_first ? text : "") + question, is_first);
            const bool text_alone = is_first && (chosen.unseen || chosen.sequences > 0);
            const std::size_t at = text_alone ? said.rfind(question) : 0;
            if (at > 0 && i == 0) {
                chat.read(words.tokens(std::string_view(said).substr(0, at), true), 0);
                if (cuts) { chat.cut(0, 0); }
                if (chosen.sequences > 0) { chat.share(); }
            }
            chat.read(words.tokens(std::string_view(said).substr(at), is_first && at == 0), sequence);
            if (cuts && at == 0) { chat.cut(sequence, chosen.max_tokens); }
        }

        std::vector<index_t> begin;
        for (std::size_t i = 0; i < asked; ++i) {
            begin.push_back(chat.position(static_cast<llama_seq_id>(i)));
        }
        std::vector<answer> own = chat.reply(asked, {}, cuts && !is_last && full == nullptr);
        if (chosen.sequences > 0) {
            for (std::size_t i = 0; i < asked; ++i) {
                fmt::print("\n[sequence {}] {}\n", i, chosen.questions[first + i]);
                for (const llama_token t : own[i].tokens) { fmt::print("{}", words.text(t)); }
            }
        }
        std::size_t spoken = 0;
        for (const answer& a : own) { spoken += a.tokens.size(); }
        fmt::print("\n[{} tokens, {:.1f} per second]\n", spoken, own[0].tokens_per_second);
        if (full != nullptr) {
            for (std::size_t i = 0; i < asked; ++i) {
                chat.forget_from(begin[i], static_cast<llama_seq_id>(i));
            }
            const auto whole = std::span(*full).subspan(first, asked);
            const auto judged = chat.reply(asked, whole, !is_last);
            for (std::size_t i = 0; i < asked; ++i) {
                double sum = 0;
                for (std::size_t t = 0; t < whole[i].tokens.size(); ++t) {
                    sum += divergence(whole[i].log_probabilities[t], judged[i].log_probabilities[t]);
                }
                own[i].divergence = sum / static_cast<double>(whole[i].tokens.size());
                fmt::print("KL(full || cut) over the full cache's answer: {:.4f} per token\n",
                           own[i].divergence);
            }
        }
        std::move(own.begin(), own.end(), std::back_inserter(answers));
    }
    return answers;
}

} // namespace llama_example
