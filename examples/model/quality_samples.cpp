// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#include "quality_samples.hpp"

#include "../needle/samples.hpp"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <utility>

namespace lm {
namespace {

std::string file_name(const std::string& path) {
    return path.substr(path.find_last_of('/') + 1);
}

// SplitMix64. The standard's distributions differ between libraries.
class draws {
  public:
    draws(std::uint64_t seed, std::string_view purpose) : state_(seed) {
        for (const char c : purpose) { state_ = (*this)() ^ static_cast<unsigned char>(c); }
    }
    std::uint64_t operator()() {
        std::uint64_t z = state_ += 0x9E3779B97F4A7C15U;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9U;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBU;
        return z ^ (z >> 31);
    }
    std::size_t below(std::size_t end) { return static_cast<std::size_t>((*this)() % end); }

    // `count` different numbers below `end`.
    std::vector<std::size_t> different(std::size_t count, std::size_t end) {
        std::vector<std::size_t> chosen;
        while (chosen.size() < count) {
            const std::size_t next = below(end);
            if (std::find(chosen.begin(), chosen.end(), next) == chosen.end()) { chosen.push_back(next); }
        }
        return chosen;
    }

    // The numbers below `end` in an order of chance.
    std::vector<std::size_t> shuffled(std::size_t end) {
        std::vector<std::size_t> order(end);
        std::iota(order.begin(), order.end(), std::size_t{0});
        for (std::size_t i = end; i > 1; --i) { std::swap(order[i - 1], order[below(i)]); }
        return order;
    }

  private:
    std::uint64_t state_;
};

// The first half is for choosing, the second for judging.
constexpr std::array<std::string_view, 32> keys{
    "acorn",  "barley",  "compass", "dolphin", "ember",   "fiddle", "glacier", "harvest",
    "island", "jasmine", "kettle",  "lagoon",  "maple",   "nectar", "orchard", "parcel",
    "quartz", "ribbon",  "saddle",  "thistle", "uncle",   "velvet", "willow",  "yarrow",
    "anvil",  "beacon",  "cedar",   "drum",    "feather", "gravel", "hammock", "ivory"};
constexpr std::array<std::string_view, 64> word_values{
    "apple",    "bottle", "candle", "desert", "engine", "forest",  "garden",  "hammer", "insect", "jacket",
    "kitchen",  "ladder", "mirror", "nickel", "office", "palace",  "quarter", "river",  "school", "temple",
    "umbrella", "valley", "window", "yellow", "zebra",  "arrow",   "bridge",  "castle", "doctor", "eagle",
    "flower",   "guitar", "helmet", "icicle", "jewel",  "kitten",  "letter",  "market", "nutmeg", "ocean",
    "pencil",   "queen",  "rocket", "silver", "ticket", "uniform", "village", "wagon",  "carpet", "dragon",
    "finger",   "ghost",  "honey",  "iron",   "jungle", "lemon",   "monkey",  "onion",  "piano",  "rabbit",
    "spider",   "tunnel", "walnut", "basket"};

constexpr std::size_t needles_of_many = 4;

void append(std::vector<token_id>& to, const std::vector<token_id>& tokens) {
    to.insert(to.end(), tokens.begin(), tokens.end());
}

std::string joined(const std::vector<std::string>& names) {
    std::string all;
    for (std::size_t i = 0; i < names.size(); ++i) {
        all += (i == 0 ? "" : i + 1 < names.size() ? ", " : ", and ") + names[i];
    }
    return all;
}

std::vector<std::string> read_lines(const std::string& name) {
    std::ifstream in(name);
    std::vector<std::string> lines;
    for (std::string line; std::getline(in, line);) {
        if (!line.empty()) { lines.push_back(std::move(line)); }
    }
    if (lines.empty()) { throw std::runtime_error(name + ": no text can be read"); }
    return lines;
}

std::vector<std::string> sentences_of(const std::string& paragraph) {
    std::vector<std::string> sentences;
    std::size_t begin = 0;
    while (begin < paragraph.size()) {
        std::size_t end = paragraph.find_first_of(".!?", begin);
        while (end != std::string::npos && end + 1 < paragraph.size() && paragraph[end + 1] != ' ') {
            end = paragraph.find_first_of(".!?", end + 1);
        }
        end = end == std::string::npos ? paragraph.size() : end + 1;
        sentences.push_back(paragraph.substr(begin, end - begin));
        begin = paragraph.find_first_not_of(' ', end);
    }
    return sentences;
}

// Tokens of a book, [paragraph][piece]: a piece is the whole paragraph, or a sentence of it.
using token_pieces = std::vector<std::vector<std::vector<token_id>>>;

// Paragraphs from `first` on at which stretches of at least so many tokens begin, one behind the other.
std::vector<std::size_t> stretches_of(const token_pieces& book, std::size_t first, index_t tokens) {
    std::vector<std::size_t> starts;
    std::size_t start = first;
    index_t length = 0;
    for (std::size_t p = first; p < book.size(); ++p) {
        for (const std::vector<token_id>& piece : book[p]) { length += std::ssize(piece); }
        if (length < tokens) { continue; }
        starts.push_back(start);
        start = p + 1;
        length = 0;
    }
    return starts;
}

class texts final : public sample_source {
  public:
    texts(const tokenizer& words, const std::string& choosing, const std::string& judging)
        : words_(words), description_(file_name(choosing) + " below seed 1000, else " + file_name(judging)),
          files_{file_name(choosing), file_name(judging)}, paragraphs_{read_lines(choosing),
                                                                       read_lines(judging)} {}

    std::vector<needle_values> values() const override {
        return {needle_values::numbers, needle_values::words};
    }

    needle_sample needles(std::string_view task, needle_values values, index_t tokens,
                          std::uint64_t seed) const override {
        const bool is_single = task == "single", has_one_key = is_single || task == "multivalue";
        if (std::find(needle_tasks.begin(), needle_tasks.end(), task) == needle_tasks.end()) {
            throw std::invalid_argument("no task " + std::string(task));
        }
        const std::string_view text_of =
            task == "multiquery" ? "multikey" : task; // the same text, asked otherwise
        draws draw(seed, std::string(text_of) + (values == needle_values::numbers ? " numbers" : " words"));
        const std::size_t half = half_of(seed);
        const std::string kind = values == needle_values::numbers ? "number" : "word";
        const std::size_t count = is_single ? 1 : needles_of_many;

        std::vector<std::string> key_of, value_of;
        for (const std::size_t k : draw.different(has_one_key ? 1 : count, keys.size() / 2)) {
            key_of.emplace_back(keys[k + half * keys.size() / 2]);
        }
        const std::vector<std::string> asked_keys = key_of;
        key_of.resize(count, key_of.front());
        const std::size_t most = values == needle_values::numbers ? 9'000'000 : word_values.size() / 2;
        for (const std::size_t v : draw.different(count, most)) {
            value_of.push_back(values == needle_values::numbers
                                   ? std::to_string(1'000'000 + v)
                                   : std::string(word_values[v + half * word_values.size() / 2]));
        }

        needle_sample made;
        const std::size_t start = stretch(sentences, seed, tokens, text_of);
        made.context = context_of(key_of, value_of, kind, tokens, half, start, draw);
        const auto asked = [&](const std::vector<std::string>& whose,
                               const std::vector<std::string>& answers) {
            const bool one = answers.size() == 1;
            const std::string what = "he special magic " + kind + (one ? "" : "s") + " for " + joined(whose) +
                                     " mentioned in the provided text";
            asked_question q;
            q.question = words_.encode((one ? "\nWhat is t" : "\nWhat are all t") + what + "? T" + what +
                                       (one ? " is:" : " are:"));
            for (std::size_t i = 0; i < answers.size(); ++i) {
                if (i > 0) { append(q.answer, words_.encode(i + 1 < answers.size() ? "," : ", and")); }
                const index_t begin = std::ssize(q.answer);
                append(q.answer, words_.encode(" " + answers[i]));
                q.values.push_back({begin, std::ssize(q.answer)});
            }
            return q;
        };
        if (task == "multikey") {
            for (std::size_t i = 0; i < count; ++i) {
                made.questions.push_back(asked({key_of[i]}, {value_of[i]}));
            }
        } else {
            made.questions.push_back(asked(asked_keys, value_of));
        }
        return made;
    }

    running_text text(index_t tokens, index_t next_tokens, std::uint64_t seed) const override {
        const std::size_t start = stretch(whole_paragraphs, seed, tokens + next_tokens, "running text");
        std::vector<token_id> all = tokens_from(half_of(seed), start, tokens + next_tokens);
        const auto middle = all.begin() + tokens;
        return {{all.begin(), middle}, {middle, middle + next_tokens}};
    }

    std::vector<token_id> calibration() const override { return tokens_from(0, 0, calibration_tokens); }

    std::string description() const override { return description_; }

  private:
    enum piece_kind : std::size_t { whole_paragraphs, sentences };

    static std::size_t half_of(std::uint64_t seed) { return seed < first_judging_seed ? 0 : 1; }

    // Made when it is first asked for.
    const token_pieces& pieces(piece_kind kind, std::size_t half) const {
        std::optional<token_pieces>& made = pieces_[kind][half];
        if (made) { return *made; }
        made.emplace();
        for (const std::string& paragraph : paragraphs_[half]) {
            made->emplace_back();
            if (kind == whole_paragraphs) {
                made->back().push_back(words_.encode(paragraph + "\n"));
                continue;
            }
            for (const std::string& sentence : sentences_of(paragraph)) {
                made->back().push_back(words_.encode(" " + sentence));
            }
        }
        return *made;
    }

    // The paragraph at which the seed's stretch of so many tokens begins. Seeds of one purpose and length have no token in common,
    // and none of calibration()'s.
    std::size_t stretch(piece_kind kind, std::uint64_t seed, index_t tokens, std::string_view purpose) const {
        const std::size_t half = half_of(seed);
        const std::vector<std::size_t> calibrating =
            stretches_of(pieces(whole_paragraphs, half), 0, calibration_tokens);
        const std::vector<std::size_t> starts = stretches_of(
            pieces(kind, half), calibrating.size() < 2 ? paragraphs_[half].size() : calibrating[1], tokens);
        const std::uint64_t first_seed = half == 0 ? 0 : first_judging_seed;
        if (seed - first_seed >= starts.size()) {
            std::string message = files_[half] + " has " + std::to_string(starts.size()) + " texts of " +
                                  std::to_string(tokens) + " tokens that do not overlap";
            if (!starts.empty()) {
                message += ", seeds " + std::to_string(first_seed) + " to " +
                           std::to_string(first_seed + starts.size() - 1);
            }
            throw std::invalid_argument(message + "; there is none for seed " + std::to_string(seed));
        }
        return starts[draws(first_seed, purpose).shuffled(starts.size())[seed - first_seed]];
    }

    std::vector<token_id> tokens_from(std::size_t half, std::size_t paragraph, index_t tokens) const {
        const token_pieces& book = pieces(whole_paragraphs, half);
        std::vector<token_id> all;
        for (std::size_t p = paragraph; p < book.size() && std::ssize(all) < tokens; ++p) {
            append(all, book[p].front());
        }
        if (std::ssize(all) < tokens) {
            throw std::invalid_argument(files_[half] + " has fewer than " + std::to_string(tokens) +
                                        " tokens");
        }
        all.resize(static_cast<std::size_t>(tokens));
        return all;
    }

    // The first value of a key that has several comes first in the text.
    std::vector<token_id> context_of(const std::vector<std::string>& key_of,
                                     const std::vector<std::string>& value_of, const std::string& kind,
                                     index_t tokens, std::size_t half, std::size_t start, draws& draw) const {
        const std::string head = key_of.size() == 1
                                     ? "A special magic " + kind +
                                           " is hidden within the following text. Make sure to "
                                           "memorize it. I will quiz you about the " +
                                           kind + " afterwards.\n"
                                     : "Some special magic " + kind +
                                           "s are hidden within the following text. Make "
                                           "sure to memorize them. I will quiz you about the " +
                                           kind + "s afterwards.\n";
        std::vector<token_id> context = words_.encode(head);
        std::vector<std::vector<token_id>> needles;
        index_t room = tokens - std::ssize(context);
        for (std::size_t i = 0; i < key_of.size(); ++i) {
            needles.push_back(words_.encode(" One of the special magic " + kind + "s for " + key_of[i] +
                                            " is: " + value_of[i] + "."));
            room -= std::ssize(needles.back());
        }
        if (room < 1) { throw std::invalid_argument("a context too short for its needles"); }

        std::vector<std::vector<token_id>> filler;
        const token_pieces& from = pieces(sentences, half);
        for (std::size_t p = start; room > 0; ++p) {
            for (std::vector<token_id> encoded : from[p]) {
                if (std::ssize(encoded) > room) { encoded.resize(static_cast<std::size_t>(room)); }
                room -= std::ssize(encoded);
                filler.push_back(std::move(encoded));
                if (room == 0) { break; }
            }
        }
        // Not behind the last sentence, which may be cut short.
        std::vector<std::size_t> places;
        for (std::size_t i = 0; i < needles.size(); ++i) { places.push_back(draw.below(filler.size())); }
        std::sort(places.begin(), places.end());
        // A random order, so that the first question is not about the first needle always; one key keeps that of its values.
        std::vector<std::size_t> order = draw.different(needles.size(), needles.size());
        if (std::all_of(key_of.begin(), key_of.end(), [&](const auto& k) { return k == key_of.front(); })) {
            std::sort(order.begin(), order.end());
        }
        std::size_t next = 0;
        for (std::size_t f = 0; f < filler.size(); ++f) {
            for (; next < places.size() && places[next] == f; ++next) {
                append(context, needles[order[next]]);
            }
            append(context, filler[f]);
        }
        return context;
    }

    const tokenizer& words_;
    std::string description_;
    std::array<std::string, 2> files_;
    std::array<std::vector<std::string>, 2> paragraphs_;
    mutable std::array<std::array<std::optional<token_pieces>, 2>, 2> pieces_; // by kind and half
};

class recall final : public sample_source {
  public:
    std::vector<needle_values> values() const override { return {needle_values::numbers}; }

    needle_sample needles(std::string_view task, needle_values values, index_t tokens,
                          std::uint64_t seed) const override {
        if (values != needle_values::numbers) { throw std::invalid_argument("this model has no words"); }
        const needle::sample from = needle::make_sample(needle::parse_task(task), tokens, index_of(seed));
        needle_sample made{from.haystack, {}};
        for (const needle::turn& t : from.turns) {
            made.questions.push_back({t.question, t.answer, {{0, std::ssize(t.answer)}}});
        }
        // Its model has learned to answer one question after the other.
        for (std::size_t i = 1; i < made.questions.size(); ++i) {
            std::vector<token_id> before = made.questions[i - 1].question;
            append(before, made.questions[i - 1].answer);
            append(before, made.questions[i].question);
            made.questions[i].question = std::move(before);
        }
        return made;
    }

    running_text text(index_t tokens, index_t next_tokens, std::uint64_t seed) const override {
        const needle::sample from = needle::make_sample(needle::task_kind::dense, tokens, index_of(seed));
        running_text made{from.haystack, {}};
        for (const needle::turn& t : needle::ask_every_needle(from, next_tokens, seed)) {
            append(made.next, t.question);
            append(made.next, t.answer);
        }
        made.next.resize(static_cast<std::size_t>(next_tokens));
        return made;
    }

    std::vector<token_id> calibration() const override {
        return text(calibration_tokens, 2, calibration_seed).context;
    }

    std::string description() const override { return "the demo's samples"; }

  private:
    static constexpr std::uint64_t calibration_seed = 977; // with which no measure begins

    static index_t index_of(std::uint64_t seed) { return static_cast<index_t>(seed); }
};

} // namespace

std::unique_ptr<sample_source> text_source(const tokenizer& words, const std::string& choosing_file,
                                           const std::string& judging_file) {
    return std::make_unique<texts>(words, choosing_file, judging_file);
}

std::unique_ptr<sample_source> recall_source() {
    return std::make_unique<recall>();
}

} // namespace lm
