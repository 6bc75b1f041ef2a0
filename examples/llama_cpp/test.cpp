// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// What must hold on a real model: kvtrim-llama-test MODEL.gguf TEXT. Prints what does not, and exits with their number.

#include "engine.hpp"
#include "policies.hpp"
#include "words.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <set>

namespace {

using namespace llama_example;
using kvtrim::index_t;
using tokens = std::vector<llama_token>;

int passed = 0, failed = 0;

void check(bool holds, const std::string& sentence) {
    fmt::print("{}: {}\n", holds ? "ok" : "FAILED", sentence);
    std::fflush(stdout);
    ++(holds ? passed : failed);
}

template <class Fn>
void check_refused(Fn&& fn, const std::string& sentence) {
    try {
        fn();
        check(false, sentence + ", but it was not refused");
    } catch (const std::exception& e) { check(true, sentence + ": " + e.what()); }
}

struct setting {
    const char* k;
    const char* v;
    bool flash_attention;

    [[nodiscard]] std::string name() const {
        return fmt::format("K {}, V {}, fa {}", k, v, flash_attention ? "on" : "off");
    }
    [[nodiscard]] llama_context_params params(std::uint32_t cells = 1024) const {
        return context_params(cells, k, v, flash_attention);
    }
};

tokens part(const tokens& all, std::size_t begin, std::size_t count) {
    return {all.begin() + static_cast<std::ptrdiff_t>(begin),
            all.begin() + static_cast<std::ptrdiff_t>(begin + count)};
}

// The logits behind `next`, which is forgotten again.
std::vector<float> predictions(engine& e, const tokens& next, llama_seq_id sequence = 0) {
    const index_t begin = e.next_position(sequence);
    e.observes = false;
    const bool decoded = e.decode(next, sequence);
    e.observes = true;
    if (!decoded) { throw std::runtime_error("no room for a few tokens"); }
    std::vector<float> made(e.logits().begin(), e.logits().end());
    e.remove(sequence, begin);
    return made;
}

// KL. Weights multiply activations that are rounded to eight bits, so that predictions from the same tokens in another order differ
// by rounding: by far less than by a set of tokens more or less.
double distance(const std::vector<float>& a, const std::vector<float>& b) {
    return divergence(log_probabilities(a), log_probabilities(b));
}
constexpr double rounding = 2e-3;

std::set<std::int32_t> positions(engine& e, llama_seq_id sequence = 0) {
    std::set<std::int32_t> all;
    const auto& cells = e.seen().cells(sequence);
    for (index_t c = 0; c < cells.cells(); ++c) {
        if (cells.use(sequence, c) != kvtrim::cell_use::not_used) {
            all.insert(cells.positions()[static_cast<std::size_t>(c)]);
        }
    }
    return all;
}

double shared_part(const std::set<std::int32_t>& a, const std::set<std::int32_t>& b) {
    const auto common = std::count_if(a.begin(), a.end(), [&](auto p) { return b.contains(p); });
    return static_cast<double>(common) / static_cast<double>(std::max(a.size(), b.size()));
}

std::set<std::int32_t> kept_by(const language_model& m, const setting& s, const tokens& prompt,
                               const std::string& policy) {
    engine e(m.model.get(), s.params());
    e.decode(prompt);
    e.cut({.kept = std::ssize(prompt) / 2}, scorer_of(policy));
    return positions(e);
}

// Hides cells before each softmax by their positions.
template <class Hides>
std::function<void(int, ggml_tensor&)> hide(Hides hides, const kvtrim::cell_mirror& cells) {
    return [hides, &cells](int, ggml_tensor& logits) {
        for (index_t row = 0; row < ggml_nrows(&logits); ++row) {
            float* at = static_cast<float*>(logits.data) + row * logits.ne[0];
            for (index_t c = 0; c < std::min<index_t>(cells.cells(), logits.ne[0]); ++c) {
                const std::int32_t p = cells.positions()[static_cast<std::size_t>(c)];
                if (p >= 0 && hides(p)) { at[c] = -std::numeric_limits<float>::infinity(); }
            }
        }
    };
}

// A cut by seq_rm is the whole cache with the same cells hidden before each softmax; where cells moved, too.
void hidden_cells_are_as_removed(const language_model& m, const tokens& text) {
    const setting plain{"f16", "f16", false};
    const tokens prompt = part(text, 0, 400), next = part(text, 400, 8);
    engine whole(m.model.get(), plain.params()), cut(m.model.get(), plain.params());
    whole.decode(prompt);
    cut.decode(prompt);
    const auto report = cut.cut({.kept = 80, .moves_cells = false}, scorer_of("snapkv"));
    const auto kept = positions(cut);
    check(report.freed == 320 && kept.size() == 80 && kept.contains(0) && kept.contains(399),
          "80 of 400 cells stay, the first and the newest among them");

    const auto full = predictions(whole, next);
    whole.on_logits =
        hide([&](std::int32_t p) { return p < 400 && !kept.contains(p); }, whole.seen().cells(0));
    const auto hidden = predictions(whole, next), removed = predictions(cut, next);
    check(distance(hidden, removed) < rounding,
          fmt::format("removed cells are as hidden ones: {:.2g}", distance(hidden, removed)));
    check(distance(full, removed) > 2 * rounding,
          fmt::format("and unlike the whole cache: {:.2g}", distance(full, removed)));

    const auto end_before = cut.seen().cells(0).end_of_use();
    cut.move_cells(0);
    check(end_before > 300 && cut.seen().cells(0).end_of_use() == 80, "cells that moved are the first ones");
    const auto moved = predictions(cut, next);
    check(distance(moved, removed) < rounding,
          fmt::format("moved cells are as before: {:.2g}", distance(moved, removed)));

    // The mirror knows where they went: hiding cells by it is removing their positions.
    const std::set<std::int32_t> some(std::next(kept.begin(), 8), std::next(kept.begin(), 44));
    cut.on_logits = hide([&](std::int32_t p) { return some.contains(p); }, cut.seen().cells(0));
    const auto some_hidden = predictions(cut, next);
    cut.on_logits = nullptr;
    for (const std::int32_t p : some) { cut.remove(0, p, p + 1); }
    const auto some_removed = predictions(cut, next);
    // Of what a mirror that has lost its cells would be off by, sums in another order may make a tenth.
    check(distance(some_removed, moved) > 2 * rounding &&
              distance(some_hidden, some_removed) < distance(some_removed, moved) / 10,
          fmt::format("the mirror follows cells that move: {:.2g} of {:.2g}",
                      distance(some_hidden, some_removed), distance(some_removed, moved)));
}

// Cuts in every form of the cache.
void every_cache_can_be_cut(const language_model& m, const tokens& text) {
    const tokens prompt = part(text, 0, 200), next = part(text, 200, 8);
    const auto plain = kept_by(m, {"f16", "f16", false}, prompt, "snapkv");
    const auto plain_critical = kept_by(m, {"f16", "f16", false}, prompt, "criticalkv");
    for (const setting s : {setting{"f16", "f16", true},
                            {"q8_0", "f16", false},
                            {"q8_0", "q8_0", true},
                            {"q4_0", "q4_0", true}}) {
        engine e(m.model.get(), s.params());
        e.decode(prompt);
        const auto before = predictions(e, next);
        e.cut({.kept = std::ssize(prompt)}, scorer_of("snapkv"));
        check(positions(e).size() == prompt.size() && distance(before, predictions(e, next)) < rounding,
              s.name() + ": a cut that keeps all changes nothing");
        e.cut({.kept = 100}, scorer_of("snapkv"));
        check(positions(e).size() == 100 && e.seen().cells(0).end_of_use() == 100,
              s.name() + ": half of the cells stay, at the front");
        const double floor = std::string_view(s.k) == "q4_0" ? 0.75 : 0.9;
        const double same = shared_part(plain, positions(e));
        check(same > floor, fmt::format("{}: {:.0f} % of them are those of f16", s.name(), 100 * same));
        const double critical = shared_part(plain_critical, kept_by(m, s, prompt, "criticalkv"));
        check(critical > floor,
              fmt::format("{}: with W_O, also of rotated values: {:.0f} %", s.name(), 100 * critical));
        e.cut({.kept = 100, .close = kvtrim::closing::towards_first}, scorer_of("snapkv"));
        check(e.next_position() == 100 && *positions(e).rbegin() == 99, s.name() + ": positions close up");
        check(std::isfinite(predictions(e, next)[0]), s.name() + ": and it goes on");
    }
}

void sequences_do_not_disturb_each_other(const language_model& m, const tokens& text) {
    const setting plain{"f16", "f16", false};
    const tokens shared = part(text, 0, 200), own = part(text, 200, 200), other = part(text, 600, 150),
                 next = part(text, 400, 8);
    { // one prefix, unified
        auto params = plain.params();
        params.n_seq_max = 2;
        engine e(m.model.get(), params);
        e.decode(shared, 0);
        e.copy(0, 1);
        e.decode(other, 0);
        e.decode(own, 1);
        const auto before = predictions(e, next, 0);
        e.decode(part(text, 400, 1), 1); // what is newest is the sequence's own
        const auto report = e.cut({.kept = 300,
                                   .protect = {.sink_tokens = 4, .pinned_tokens = 200, .window_tokens = 32},
                                   .moves_cells = false,
                                   .sequence = 1},
                                  scorer_of("snapkv"));
        check(report.freed == 101 && positions(e, 1).size() == 300 && positions(e, 0).size() == 350,
              "of a shared prefix nothing is freed, of the sequence's own cells 101");
        check(distance(before, predictions(e, next, 0)) < rounding, "the other sequence does not notice");
    }
    { // cells of their own
        auto params = plain.params(2048);
        params.n_seq_max = 2;
        params.kv_unified = false;
        engine split(m.model.get(), params), alone(m.model.get(), plain.params());
        split.decode(shared, 0);
        split.decode(own, 1);
        alone.decode(own, 0);
        split.cut({.kept = 100, .sequence = 1}, scorer_of("snapkv"));
        alone.cut({.kept = 100}, scorer_of("snapkv"));
        check(positions(split, 1) == positions(alone, 0),
              "in a split cache a sequence keeps what it keeps alone");
        check(positions(split, 0).size() == 200, "and the other one all of its cells");
        check(distance(predictions(split, next, 1), predictions(alone, next, 0)) < rounding,
              "and predicts the same");
    }
}

void a_conversation_goes_on(const language_model& m, const tokens& text) {
    const setting plain{"f16", "f16", true};
    { // turns
        engine e(m.model.get(), plain.params());
        for (std::size_t turn = 0; turn < 4; ++turn) {
            e.decode(part(text, turn * 300, 300));
            e.cut({.kept = 200}, scorer_of("snapkv"));
        }
        check(positions(e).size() == 200 && e.next_position() == 1200,
              "after four turns 200 cells stand for 1200 tokens");
        check(e.seen().layers().begin()->second.queries.held() == 32, "with the window's queries");
    }
    { // more tokens than cells
        engine e(m.model.get(), plain.params(512));
        bool fits = true;
        for (std::size_t at = 0; at < 1536; at += 128) {
            if (e.seen().cells(0).used(0) > 256) { e.cut({.kept = 256}, scorer_of("snapkv")); }
            fits = fits && e.decode(part(text, at, 128));
        }
        check(fits && e.next_position() == 1536,
              "a prompt of 1536 tokens passes through 512 cells in chunks");
        check(!e.decode(part(text, 0, 512)), "and what does not fit is said");
    }
}

void what_cannot_be_done_is_said(const language_model& m, const tokens& text) {
    check_refused([] { static_cast<void>(context_params(512, "f16", "q8_0", false)); },
                  "quantised V without flash attention");
    check_refused([] { static_cast<void>(context_params(512, "f12", "f16", false)); }, "an unknown type");
    check_refused([] { static_cast<void>(scorer_of("h3o")); }, "an unknown policy");
    engine e(m.model.get(), setting{"f16", "f16", false}.params());
    e.decode(part(text, 0, 100));
    check_refused([&] { e.cut({.kept = 30}, scorer_of("snapkv")); }, "a budget below what is protected");
    check_refused([&] { e.copy(0, 64); }, "a sequence that cannot be");
    check(positions(e).size() == 100, "and nothing was cut");
}

} // namespace

int main(int argc, char** argv) {
    if (argc != 3) {
        fmt::print(stderr, "kvtrim-llama-test MODEL.gguf TEXT\n");
        return 2;
    }
    try {
        const language_model m(argv[1]);
        const tokens text = m.tokens(read_text(argv[2]).substr(0, 12000), true);
        if (text.size() < 1600) { throw std::runtime_error("the text is too short"); }
        hidden_cells_are_as_removed(m, text);
        every_cache_can_be_cut(m, text);
        sequences_do_not_disturb_each_other(m, text);
        a_conversation_goes_on(m, text);
        what_cannot_be_done_is_said(m, text);
    } catch (const std::exception& e) { check(false, e.what()); }
    fmt::print("{} passed, {} failed\n", passed, failed);
    return failed;
}
