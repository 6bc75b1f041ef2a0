// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// What must hold on a real model, on the demo's, and on small ones with sliding windows: kvtrim-llama-test MODEL.gguf TEXT DATA
// PROGRAM, where DATA is examples/needle/data and PROGRAM kvtrim-llama. Without them MODEL is Gemma 3 270M: what must hold on a
// real model with sliding windows. Exits with the number of what does not hold.

#include "conversation.hpp"
#include "policies.hpp"
#include "small_models.hpp"

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <random>
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

// KL. Quantised weights multiply activations that are rounded to eight bits, so that predictions from the same tokens in another
// order differ by rounding: by far less than by a set of tokens more or less.
double distance(const std::vector<float>& a, const std::vector<float>& b) {
    return divergence(log_probabilities(a), log_probabilities(b));
}
double rounding = 0;

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

// K and V of every layer that was seen, by position: all heads of a token.
std::map<std::int32_t, std::vector<float>> rows(engine& e, llama_seq_id sequence = 0) {
    std::map<std::int32_t, std::vector<float>> all;
    const auto& mirror = e.seen().cells(sequence);
    std::vector<std::int32_t> room(static_cast<std::size_t>(mirror.cells()));
    kvtrim::cell_list list;
    require(mirror.list(sequence, room, list));
    const auto add = [&](const auto& view) {
        std::vector<float> row(static_cast<std::size_t>(view.extent(2)));
        for (index_t h = 0; h < view.extent(0); ++h) {
            for (index_t t = 0; t < view.extent(1); ++t) {
                kvtrim::load_rows(view, h, t, 1, row.data());
                const auto cell = static_cast<std::size_t>(list.cells[static_cast<std::size_t>(t)]);
                auto& to = all[mirror.positions()[cell]];
                to.insert(to.end(), row.begin(), row.end());
            }
        }
    };
    for (const auto& [number, layer] : e.seen().layers()) {
        const auto in = layer.inputs(list.cells);
        require(in.validate());
        add(in.keys);
        add(in.values);
    }
    return all;
}

bool are_unchanged(engine& e, const std::map<std::int32_t, std::vector<float>>& before) {
    const auto now = rows(e);
    return !now.empty() && std::all_of(now.begin(), now.end(), [&](const auto& row) {
        const auto at = before.find(row.first);
        return at != before.end() && at->second == row.second;
    });
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

// Hides cells before each softmax by their positions, in these layers or in all.
template <class Hides>
std::function<bool(ggml_tensor&, bool)> hide(Hides hides, const kvtrim::cell_mirror& cells,
                                             std::set<int> layers = {}) {
    return [hides, &cells, layers](ggml_tensor& logits, bool ask) {
        const int layer = kvtrim::llama_graph::layer_of_logits(logits);
        if (layer < 0 || !(layers.empty() || layers.contains(layer))) { return false; }
        for (index_t row = 0; !ask && row < ggml_nrows(&logits); ++row) {
            float* at = static_cast<float*>(logits.data) + row * logits.ne[0];
            for (index_t c = 0; c < std::min<index_t>(cells.cells(), logits.ne[0]); ++c) {
                const std::int32_t p = cells.positions()[static_cast<std::size_t>(c)];
                if (p >= 0 && hides(p)) { at[c] = -std::numeric_limits<float>::infinity(); }
            }
        }
        return true;
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
    whole.on_operation =
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
    cut.on_operation = hide([&](std::int32_t p) { return some.contains(p); }, cut.seen().cells(0));
    const auto some_hidden = predictions(cut, next);
    cut.on_operation = nullptr;
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
        const auto all_rows = rows(e);
        e.cut({.kept = 100}, scorer_of("snapkv"));
        check(positions(e).size() == 100 && e.seen().cells(0).end_of_use() == 100,
              s.name() + ": half of the cells stay, at the front");
        check(are_unchanged(e, all_rows), s.name() + ": with their keys and values");
        const double floor = std::string_view(s.k) == "q4_0" ? 0.75 : 0.9;
        const double same = shared_part(plain, positions(e));
        check(same > floor, fmt::format("{}: {:.0f} % of them are those of f16", s.name(), 100 * same));
        const double critical = shared_part(plain_critical, kept_by(m, s, prompt, "criticalkv"));
        check(critical > floor,
              fmt::format("{}: with W_O, also of rotated values: {:.0f} %", s.name(), 100 * critical));
        const cut_options closed{.kept = 100, .close = kvtrim::closing::towards_first};
        if (s.k[0] == 'q' && e.seen().layers().begin()->second.queries.head_dim() % 64 != 0) {
            check_refused([&] { e.cut(closed, scorer_of("snapkv")); },
                          s.name() + ": positions close up, of heads that are no multiple of 64");
            continue;
        }
        engine holes(m.model.get(), s.params());
        holes.decode(prompt);
        e.cut(closed, scorer_of("snapkv"));
        check(e.next_position() == 100 && *positions(e).rbegin() == 99, s.name() + ": positions close up");
        check_refused([&] { e.move_cells(0); }, s.name() + ": cells move before their keys were turned");
        cut_options unmoved = closed;
        unmoved.moves_cells = false;
        holes.cut(unmoved, scorer_of("snapkv"));
        const double off = distance(predictions(holes, next), predictions(e, next));
        check(positions(holes) == positions(e) && off < 10 * rounding,
              fmt::format("{}: moved as with holes: {:.2g}", s.name(), off));
    }
}

// llama.cpp may be told not to rotate quantised keys and values. Its shift of such keys crashes.
void unrotated_caches_can_be_cut(const language_model& m, const tokens& text) {
    const tokens prompt = part(text, 0, 200);
    const setting s{"q8_0", "q8_0", true};
    const auto rotated = kept_by(m, s, prompt, "criticalkv");
    setenv("LLAMA_ATTN_ROT_DISABLE", "1", 1);
    try {
        engine e(m.model.get(), s.params());
        e.decode(prompt);
        check_refused(
            [&] { e.cut({.kept = 150, .close = kvtrim::closing::towards_first}, scorer_of("snapkv")); },
            "positions close up, of keys that were not rotated");
        check(positions(e).size() == prompt.size(), "and nothing was cut");
        e.cut({.kept = 100}, scorer_of("criticalkv"));
        const double same = shared_part(rotated, positions(e));
        check(same > 0.9, fmt::format("without rotation {:.0f} % of what stays is the same", 100 * same));
    } catch (...) {
        unsetenv("LLAMA_ATTN_ROT_DISABLE");
        throw;
    }
    unsetenv("LLAMA_ATTN_ROT_DISABLE");
}

void every_policy_cuts(const language_model& m, const tokens& text) {
    std::set<std::set<std::int32_t>> different;
    std::string wrong;
    for (const std::string& policy : policy_names()) {
        const auto kept = kept_by(m, {"f16", "f16", false}, part(text, 0, 200), policy);
        if (kept.size() != 100) { wrong += " " + policy; }
        different.insert(kept);
    }
    check(wrong.empty(), fmt::format("{} policies keep half of the cells{}", policy_names().size(), wrong));
    check(different.size() + 1 >= policy_names().size(),
          fmt::format("{} different halves", different.size()));
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

// Decoded by turns, or token by token in one batch, a sequence is what it is alone, and is cut by its own queries.
void each_sequence_is_as_alone(const language_model& m, const tokens& text) {
    const tokens shared = part(text, 0, 160), next = part(text, 400, 8);
    const std::vector<tokens> own{part(text, 200, 60), part(text, 600, 60)};
    const cut_options again{.kept = 90, .moves_cells = false};
    for (const bool fa : {false, true}) {
        const setting s{"f16", "f16", fa};
        std::vector<std::set<std::int32_t>> kept;
        std::vector<std::vector<float>> predicted;
        for (const tokens& o : own) {
            engine alone(m.model.get(), s.params());
            alone.decode(shared);
            alone.cut({.kept = 100}, scorer_of("snapkv"));
            alone.decode(o);
            predicted.push_back(predictions(alone, next));
            alone.cut(again, scorer_of("snapkv"));
            kept.push_back(positions(alone));
        }
        const double differ = shared_part(kept[0], kept[1]), apart = distance(predicted[0], predicted[1]);
        for (const bool unified : {true, false}) {
            for (const bool at_once : {true, false}) {
                auto params = s.params(unified ? 1024 : 2048);
                params.n_seq_max = 2;
                params.kv_unified = unified;
                engine e(m.model.get(), params);
                e.decode(shared);
                e.cut({.kept = 100}, scorer_of("snapkv"));
                e.copy(0, 1);
                if (!unified) {
                    check_refused([&] { e.cut({.kept = 60, .sequence = 1}, scorer_of("snapkv")); },
                                  "a copy that llama.cpp has not made yet");
                    check_refused([&] { e.copy(0, 2); }, "a stream that is not there");
                }
                const index_t free_before = e.seen().cells(1).free_cells();
                if (at_once) {
                    tokens mixed;
                    std::vector<llama_seq_id> of;
                    for (std::size_t i = 0; i < own[0].size(); ++i) {
                        for (const llama_seq_id q : {0, 1}) {
                            mixed.push_back(own[static_cast<std::size_t>(q)][i]);
                            of.push_back(q);
                        }
                    }
                    e.decode(mixed, of);
                } else {
                    e.decode(own[0], 0);
                    e.decode(own[1], 1);
                }
                const std::string name =
                    fmt::format("fa {}, {}, {}", fa ? "on" : "off", unified ? "shared cells" : "copied cells",
                                at_once ? "in one batch" : "one after the other");
                check(free_before - e.seen().cells(1).free_cells() == (unified ? 120 : 60),
                      name + ": each token takes one cell");
                double off = 0, least = 1;
                for (std::size_t q = 0; q < own.size(); ++q) {
                    const auto sequence = static_cast<llama_seq_id>(q);
                    off = std::max(off, distance(predicted[q], predictions(e, next, sequence)));
                    cut_options how = again;
                    how.sequence = sequence;
                    e.cut(how, scorer_of("snapkv"));
                    least = std::min(least, shared_part(kept[q], positions(e, sequence)));
                }
                // Shared cells are summed in another order, whose rounding each later token takes up.
                check(off < (unified ? 10 * rounding : rounding) && off < apart / 4,
                      fmt::format("{}: predictions as alone: {:.2g}, of the other {:.2g}", name, off, apart));
                check(differ < 1 && least > (1 + differ) / 2,
                      fmt::format("{}: cut by its own queries: {:.0f} % as alone, {:.0f} % as the other",
                                  name, 100 * least, 100 * differ));
            }
        }
    }
}

std::string words(const language_model& m, const tokens& text, std::size_t begin, std::size_t count) {
    std::string said;
    for (const llama_token t : part(text, begin, count)) { said += m.text(t); }
    return said;
}

// By every fold, layers and positions: chunks and moved cells change nothing, and each of the others does.
void options_go_together(const language_model& m, const tokens& text) {
    options o;
    o.questions = {words(m, text, 1, 240), words(m, text, 320, 40)};
    o.cells = 1024;
    o.max_tokens = 3;
    o.keep = 0.3;
    o.policy = "snapkv";
    o.window = 16;
    std::map<std::string, double> outcomes; // KL of the full cache's answer
    bool has_share = true;
    double worst = 0;
    o.compares = true;
    const auto full = converse(m, o, nullptr);
    for (const char* positions : {"keep", "close"}) {
        for (const char* fold : {"squares", "sum", "maximum", "votes"}) {
            for (const auto& layers : {std::vector<int>{}, {1}, {0, 2, 3}}) {
                o.positions = positions, o.fold = fold, o.layers = layers;
                for (const index_t chunk : {0, 100}) {
                    for (const bool moves : {true, false}) {
                        o.chunk = chunk, o.moves_cells = moves;
                        int turn = 0;
                        for (const answer& a : converse(m, o, &full)) {
                            const std::string name =
                                fmt::format("{} {} {} {}", positions, fold, layers.size(), ++turn);
                            const double first = outcomes.try_emplace(name, a.divergence).first->second;
                            worst = std::max(worst, std::abs(a.divergence - first) / first);
                            has_share = has_share && a.cells == kvtrim::kept_tokens(a.seen, o.keep);
                        }
                    }
                }
            }
        }
    }
    check(has_share, fmt::format("{} ways to cut keep the share of all tokens seen", 2 * outcomes.size()));
    check(worst < 0.02,
          fmt::format("in chunks or at once, moved or with holes KL is the same: {:.2g}", worst));
    int pairs = 0, differ = 0;
    for (auto a = outcomes.begin(); a != outcomes.end(); ++a) {
        for (auto b = std::next(a); b != outcomes.end(); ++b, ++pairs) {
            differ += std::abs(a->second - b->second) > 0.04 * std::max(a->second, b->second) ? 1 : 0;
        }
    }
    check(differ > pairs * 9 / 10,
          fmt::format("and another one by other folds, layers and positions: in {} of {} pairs", differ,
                      pairs));
}

// Where the cells are too few for a prompt it is cut as it comes, and still has the share of all in the end.
void the_share_is_of_all_tokens_seen(const language_model& m, const tokens& text) {
    options o;
    o.questions = {words(m, text, 1, 1200), words(m, text, 1200, 60)};
    o.cells = 512;
    o.chunk = 128;
    o.max_tokens = 4;
    o.policy = "snapkv";
    o.keep = 0.2;
    for (const auto& a : converse(m, o, nullptr)) {
        check(a.seen > 1100 && a.cells == kvtrim::kept_tokens(a.seen, 0.2),
              fmt::format("in 512 cells a fifth of {} tokens: {}", a.seen, a.cells));
    }
    o.keep = 0.5;
    const auto half = converse(m, o, nullptr);
    check(half[0].cells == 508 && half[1].cells == 508, "of a half what fits beside an answer");
    o.chunk = 0;
    check_refused([&] { converse(m, o, nullptr); }, "more tokens at once than cells");
}

// What the program prints for its options is what the same options give here.
void the_program_takes_options(const std::string& program, const std::string& model, const language_model& m,
                               const tokens& text, const std::string& file) {
    options o;
    o.model = model;
    o.text_file = file;
    std::ofstream(o.text_file) << words(m, text, 1, 200);
    o.questions = {"What is it about?", "And who is in it?"};
    o.policy = "dropkv", o.type_k = "q8_0", o.type_v = "q8_0", o.fold = "votes", o.positions = "close";
    o.keep = 0.4, o.window = 16, o.sinks = 2, o.chunk = 100, o.cells = 768, o.max_tokens = 4;
    o.layers = {0, 1, 5};
    o.flash_attention = true, o.moves_cells = false, o.compares = true, o.unseen = true;
    const auto output_of = [&](const std::string& more) {
        const std::string line = fmt::format("'{}' -m '{}' -f '{}' -p '{}' -p '{}' {} 2>&1", program, model,
                                             o.text_file, o.questions[0], o.questions[1], more);
        std::string all;
        FILE* output = popen(line.c_str(), "r");
        if (output == nullptr) { throw std::runtime_error(line); }
        for (int c = 0; (c = std::fgetc(output)) != EOF;) { all += static_cast<char>(c); }
        return std::pair{pclose(output), all};
    };
    const auto full = converse(m, o, nullptr);
    const auto cut = converse(m, o, &full);
    const auto [code, printed] =
        output_of("--policy dropkv --keep 0.4 --window 16 --sinks 2 --fold votes --layers 0,1,5 --compact "
                  "none --positions close --chunk 100 "
                  "--cells 768 --ctk q8_0 --ctv q8_0 --fa on --max-tokens 4 --unseen --compare");
    bool is_same = code == 0;
    for (const answer& a : cut) {
        is_same =
            is_same && printed.find(fmt::format("answer: {:.4f} per token", a.divergence)) != printed.npos;
    }
    check(is_same, "kvtrim-llama prints what its options give");
    const auto [sequences, dealt] =
        output_of("--sequences 2 --unified off --max-tokens 2 --keep 0.5 --cells 768");
    check(sequences == 0 && dealt.find("2 sequences have each") != dealt.npos, "also of two sequences");
    const auto [refused, why] = output_of("--sequences 2 --positions close --ctk q8_0 --cells 64");
    check(refused != 0 && why.find("kvtrim-llama: ") != why.npos, "and says what it cannot do");
    check(output_of("--policy h3o").first != 0, "an unknown policy");
    if (!is_same) { fmt::print("{}\n", printed); }
}

// The program's sequences answer as conversations of their own do.
void questions_share_a_text(const language_model& m, const tokens& text, const std::string& file) {
    std::ofstream(file) << words(m, text, 1, 300);
    options o;
    o.text_file = file;
    o.questions = {words(m, text, 320, 40), words(m, text, 400, 40), words(m, text, 500, 40)};
    o.cells = 1024;
    o.max_tokens = 12;
    o.policy = "snapkv";
    options alone = o;
    o.sequences = 2;
    alone.unseen = true;
    alone.questions = {o.questions[0], o.questions[2]};
    const auto first = converse(m, alone, nullptr);
    alone.questions = {o.questions[1]};
    const auto second = converse(m, alone, nullptr);
    const auto off = [](const answer& a, const answer& b) {
        return divergence(a.log_probabilities[0], b.log_probabilities[0]);
    };
    for (const bool unified : {true, false}) {
        o.unified = unified;
        const auto together = converse(m, o, nullptr);
        const double worst = std::max(off(first[0], together[0]), off(second[0], together[1])),
                     apart = off(first[0], together[1]);
        check(together.size() == 3 && worst < (unified ? 10 * rounding : rounding) && worst < apart / 10,
              fmt::format(
                  "{} cells: sequences answer as conversations of their own: {:.2g}, of the other {:.2g}",
                  unified ? "shared" : "copied", worst, apart));
        if (!unified) {
            check(off(first[1], together[2]) < 2 * rounding,
                  fmt::format("and so in the next turn: {:.2g}", off(first[1], together[2])));
        }
    }
    o.text_file.clear();
    check_refused([&] { converse(m, o, nullptr); }, "sequences without a text");
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
    check_refused([&] { e.cut({.kept = 60, .layers = {99}}, scorer_of("snapkv")); },
                  "a layer that is not there");
    check_refused([&] { e.copy(0, 64); }, "a sequence that cannot be");
    check(positions(e).size() == 100, "and nothing was cut");
}

// The figure of --compare, beside one from both logits.
void the_comparison_is_right(const language_model& m, const tokens& text) {
    options o;
    o.questions = {words(m, text, 1, 300)};
    o.cells = 1024;
    o.max_tokens = 12;
    o.compares = true;
    o.policy = "snapkv";
    o.keep = 1;
    const auto full = converse(m, o, nullptr);
    const double nothing_cut = converse(m, o, &full)[0].divergence;
    check(std::abs(nothing_cut) < 1e-6, fmt::format("KL is 0 where nothing is cut: {:.2g}", nothing_cut));
    o.keep = 0.3;
    const double compared = converse(m, o, &full)[0].divergence;

    const tokens prompt = m.tokens(m.user_turn(o.questions[0], true), true);
    const auto logits = [&](bool cuts) {
        engine e(m.model.get(), setting{"f16", "f16", false}.params());
        e.decode(prompt);
        std::vector<std::vector<float>> all{{e.logits().begin(), e.logits().end()}};
        if (cuts) { e.cut({.kept = kvtrim::kept_tokens(std::ssize(prompt), 0.3)}, scorer_of("snapkv")); }
        e.observes = false;
        for (const llama_token t : full[0].tokens) {
            e.decode(std::span(&t, 1));
            all.emplace_back(e.logits().begin(), e.logits().end());
        }
        return all;
    };
    const auto whole = logits(false), cut = logits(true);
    double sum = 0;
    for (std::size_t i = 0; i < full[0].tokens.size(); ++i) {
        double p_sum = 0, q_sum = 0, weighted = 0;
        for (std::size_t w = 0; w < whole[i].size(); ++w) {
            const double p = whole[i][w], q = cut[i][w];
            p_sum += std::exp(p), q_sum += std::exp(q), weighted += std::exp(p) * (p - q);
        }
        sum += weighted / p_sum - std::log(p_sum) + std::log(q_sum);
    }
    sum /= static_cast<double>(full[0].tokens.size());
    check(sum > 1e-4 && std::abs(sum - compared) < 1e-3 * sum + 1e-6,
          fmt::format("and else what both logits give: {:.5f}, {:.5f}", compared, sum));
}

// ---- The demo's model ----

bool answers(engine& e, const tokens& question, const tokens& answer) {
    e.observes = false;
    bool right = e.decode(question);
    for (const llama_token t : answer) {
        right = right && likeliest(e.logits()) == t;
        e.decode(std::span(&t, 1));
    }
    return right;
}

void the_demo_model_is_itself(const language_model& m, const nlohmann::json& reference) {
    for (const auto& r : reference.at("references")) {
        const auto all = r.at("tokens").get<tokens>(), best = r.at("argmax_all").get<tokens>();
        std::string text;
        for (const llama_token t : part(all, 1, all.size() - 1)) { text += m.text(t); }
        check(m.tokens(text, true) == all, "the demo's model: text becomes its tokens");
        engine e(m.model.get(), setting{"f32", "f32", false}.params(2048));
        e.decode(all, 0, true);
        std::size_t same = 0;
        for (std::size_t i = 0; i < all.size(); ++i) {
            same += likeliest(e.logits(static_cast<std::int32_t>(i))) == best[i] ? 1u : 0u;
        }
        // Where two tokens of filler are equally likely rounding may choose.
        check(same + 1 >= all.size(),
              fmt::format("{} of {} predictions are the recorded ones", same, all.size()));
    }
    int asked = 0, whole = 0, chosen = 0, at_random = 0;
    for (const auto& sample : reference.at("samples")) {
        const auto all = sample.at("tokens").get<tokens>();
        const auto at = sample.at("answer_at").get<std::vector<std::size_t>>();
        if (at.size() != 3) { continue; } // one question for a value
        const tokens prompt = part(all, 0, at[0]), answer = part(all, at[0], 3);
        const auto is_right = [&](const char* policy, double keep) {
            engine e(m.model.get(), setting{"f16", "f16", false}.params(2048), 16);
            // The last token is decoded behind the cut, which so has logits to answer from.
            e.decode(part(prompt, 0, prompt.size() - 1));
            e.cut({.kept = kvtrim::kept_tokens(std::ssize(prompt), keep),
                   .protect = {.sink_tokens = 1, .window_tokens = 16}},
                  scorer_of(policy));
            return answers(e, part(prompt, prompt.size() - 1, 1), answer);
        };
        ++asked;
        whole += is_right("snapkv", 1) ? 1 : 0;
        chosen += is_right("snapkv", 0.25) ? 1 : 0;
        at_random += is_right("random", 0.25) ? 1 : 0;
    }
    check(asked >= 6 && whole == asked,
          fmt::format("it answers {} of {} from the whole cache", whole, asked));
    check(chosen > at_random, fmt::format("from a quarter {} by snapkv, {} at random", chosen, at_random));
}

// ---- Sliding windows ----

void windows_lose_nothing(const std::string& file) {
    const setting plain{"f32", "f32", false};
    const tokens text = [] {
        std::vector<llama_token> made;
        for (std::uint32_t i = 0, x = 7; i < 1200; ++i) {
            x = 1664525u * x + 1013904223u;
            made.push_back(static_cast<llama_token>(x >> 25));
        }
        return made;
    }();
    const tokens next = part(text, 1100, 8);
    constexpr double exact = 1e-6;
    const auto params = [&](const setting& s, std::uint32_t sequences = 1) {
        auto p = s.params(2048);
        p.n_ubatch = 64;
        p.n_seq_max = sequences;
        return p;
    };
    { // all layers are heard
        write_window_model({}, file);
        const language_model m(file);
        engine whole(m.model.get(), params(plain)), cut(m.model.get(), params(plain));
        whole.decode(part(text, 0, 400));
        cut.decode(part(text, 0, 400));
        check(cut.seen().has_windows() && cut.seen().layers().size() == 2 && cut.seen().layers().contains(1),
              "sliding windows: the layers are seen that attend to all tokens");
        const auto full = predictions(whole, next), before = predictions(cut, next);
        check(distance(full, before) < exact, "what was forgotten leaves no trace");
        const auto all_rows = rows(cut);
        const auto report =
            cut.cut({.kept = 60, .protect = {.sink_tokens = 4, .window_tokens = 8}, .moves_cells = false},
                    scorer_of("snapkv"));
        const auto kept = positions(cut);
        check(report.freed == 340 && kept.size() == 60 && are_unchanged(cut, all_rows),
              "60 of 400 cells stay as they were");
        std::set<int> layers;
        for (const auto& [number, layer] : whole.seen().layers()) { layers.insert(number); }
        whole.on_operation =
            hide([&](std::int32_t p) { return p < 400 && !kept.contains(p); }, whole.seen().cells(0), layers);
        const auto hidden = predictions(whole, next), removed = predictions(cut, next);
        check(distance(hidden, removed) < exact && distance(full, removed) > 100 * exact,
              fmt::format("removed cells are as hidden in the layers without windows: {:.2g}, from the whole "
                          "cache {:.2g}",
                          distance(hidden, removed), distance(full, removed)));
        cut.move_cells(0);
        check(cut.seen().cells(0).end_of_use() == 60 && distance(removed, predictions(cut, next)) < exact,
              "moved cells too");
        check_refused(
            [&] { cut.cut({.kept = 40, .close = kvtrim::closing::towards_first}, scorer_of("snapkv")); },
            "positions that close up");
        cut.decode(part(text, 400, 500));
        check_refused([&] { cut.remove(0, 410); }, "to forget more than the window's cache remembers");
        check(cut.next_position() == 900, "and nothing was forgotten");
    }
    { // nothing but windows is heard: no cut is noticed
        write_window_model({.layers = 3, .silent_below = 2}, file);
        const language_model m(file);
        engine e(m.model.get(), params(plain));
        double worst = 0;
        for (std::size_t turn = 0; turn < 4; ++turn) {
            e.decode(part(text, turn * 150, 150));
            const auto before = predictions(e, next);
            e.cut({.kept = 20, .protect = {.sink_tokens = 2, .window_tokens = 4}}, scorer_of("snapkv"));
            worst = std::max(worst, distance(before, predictions(e, next)));
        }
        check(worst < exact && e.seen().cells(0).used(0) == 20,
              fmt::format("layers with windows keep what their windows need, four times: {:.2g}", worst));
    }
    // Keys and values depend on their own token alone: only the last layer, which attends to all tokens, is heard. So a fresh
    // cache with the kept tokens is the same; other tokens, removed again, hold their positions apart.
    write_window_model({.layers = 2, .silent_below = 1}, file);
    const language_model m(file);
    for (const setting& s : {plain, setting{"f16", "f16", true}, {"q8_0", "q8_0", true}}) {
        for (const bool moves : {true, false}) {
            engine e(m.model.get(), params(s));
            std::size_t at = 0;
            for (const std::size_t count : {400u, 100u, 250u}) {
                for (const std::size_t end = at + count; at < end; at += 50) { e.decode(part(text, at, 50)); }
                e.cut({.kept = 60, .protect = {.sink_tokens = 2, .window_tokens = 8}, .moves_cells = moves},
                      scorer_of("criticalkv"));
            }
            const auto kept = positions(e);
            engine fresh(m.model.get(), params(s));
            tokens others(at, 3);
            for (const auto p : kept) {
                others[static_cast<std::size_t>(p)] = text[static_cast<std::size_t>(p)];
            }
            fresh.decode(others);
            for (index_t p = 0; p < std::ssize(others); ++p) {
                if (!kept.contains(static_cast<std::int32_t>(p))) { fresh.remove(0, p, p + 1); }
            }
            const double off = distance(predictions(fresh, next), predictions(e, next));
            check(kept.size() == 60 && positions(fresh) == kept && e.next_position() == 750 &&
                      off < (s.k[0] == 'f' && s.k[1] == '3' ? exact : 1e-4),
                  fmt::format("{}, {}: after three cuts it predicts as from the kept tokens alone: {:.2g}",
                              s.name(), moves ? "moved" : "with holes", off));
        }
    }
    { // sequences
        auto p = params(plain, 2);
        engine e(m.model.get(), p);
        e.decode(part(text, 0, 100), 0);
        e.copy(0, 1);
        e.decode(part(text, 100, 100), 0);
        e.decode(part(text, 300, 100), 1);
        const auto before = predictions(e, next, 0);
        e.decode(part(text, 400, 1), 1);
        const auto report = e.cut({.kept = 150,
                                   .protect = {.sink_tokens = 4, .pinned_tokens = 100, .window_tokens = 8},
                                   .moves_cells = false,
                                   .sequence = 1},
                                  scorer_of("snapkv"));
        check(report.freed == 51 && distance(before, predictions(e, next, 0)) < exact,
              "with windows the other sequence of a shared prefix does not notice");
    }
    check_refused([&] { engine(m.model.get(), plain.params(512)); },
                  "fewer cells than windows and a micro-batch take");
    const tokens both = part(text, 0, 2);
    const std::vector<llama_seq_id> sequences{0, 1};
    check_refused([&] { engine(m.model.get(), params(plain, 2)).decode(both, sequences); },
                  "with windows two sequences in a batch of a unified cache");
    { // a stream each
        auto p = params(plain, 2);
        p.n_ctx *= 2;
        p.kv_unified = false;
        engine e(m.model.get(), p), alone(m.model.get(), params(plain));
        e.decode(both, sequences);
        e.decode(both, std::vector<llama_seq_id>{1, 0});
        alone.decode(tokens{both[0], both[1]});
        check(distance(predictions(alone, next), predictions(e, next, 0)) < exact,
              "with windows two sequences in a batch of a split cache");
    }
}

// ---- Latent attention ----

void latent_attention_is_refused(const std::string& file) {
    write_latent_model(file);
    const language_model m(file);
    for (const setting& s : {setting{"f16", "f16", false}, {"f16", "f16", true}}) {
        engine e(m.model.get(), s.params(512));
        check_refused([&] { e.decode(tokens{1, 2, 3}); }, s.name() + ": latent attention");
    }
}

// ---- A real model with sliding windows ----

void a_real_model_with_windows(const language_model& m, const tokens& text, const std::string& file) {
    const tokens prompt = part(text, 0, 900), next = part(text, 900, 8);
    { // hidden and removed
        const setting plain{"f16", "f16", false};
        engine whole(m.model.get(), plain.params(2048)), cut(m.model.get(), plain.params(2048));
        whole.decode(prompt);
        cut.decode(prompt);
        std::set<int> layers;
        for (const auto& [number, layer] : whole.seen().layers()) { layers.insert(number); }
        check(cut.seen().has_windows() && layers.size() == 3 && llama_model_n_swa(m.model.get()) == 512,
              "three layers attend to all tokens, the others to 512");
        const auto all_rows = rows(cut);
        const auto report = cut.cut({.kept = 270}, scorer_of("criticalkv"));
        const auto kept = positions(cut);
        check(report.freed == 630 && kept.size() == 270 && cut.seen().cells(0).end_of_use() == 270 &&
                  are_unchanged(cut, all_rows),
              "270 of 900 cells stay, at the front, with their keys and values");
        const auto full = predictions(whole, next);
        whole.on_operation =
            hide([&](std::int32_t p) { return p < 900 && !kept.contains(p); }, whole.seen().cells(0), layers);
        const auto hidden = predictions(whole, next), removed = predictions(cut, next);
        check(distance(hidden, removed) < rounding && distance(full, removed) > 2 * rounding,
              fmt::format("removed cells are as hidden in those layers: {:.2g}, from the whole cache {:.2g}",
                          distance(hidden, removed), distance(full, removed)));
        check_refused(
            [&] { cut.cut({.kept = 200, .close = kvtrim::closing::towards_first}, scorer_of("snapkv")); },
            "positions that close up");
        check_refused([&] { engine(m.model.get(), plain.params(512)); }, "fewer cells than the windows take");
    }
    options o;
    o.questions = {words(m, text, 1, 700), words(m, text, 750, 60)};
    o.cells = 2048;
    o.max_tokens = 8;
    o.compares = true;
    o.keep = 0.3;
    o.type_k = o.type_v = "q8_0";
    o.flash_attention = true;
    o.chunk = 256;
    const auto full = converse(m, o, nullptr);
    const auto cut = converse(m, o, &full);
    o.policy = "random";
    const auto at_random = converse(m, o, &full);
    o.policy = "criticalkv";
    for (std::size_t i = 0; i < cut.size(); ++i) {
        check(
            cut[i].cells == kvtrim::kept_tokens(cut[i].seen, 0.3) && cut[i].divergence < 0.5,
            fmt::format("two turns in chunks, of K and V in q8_0: {} of {} tokens, KL {:.4f} (random {:.4f})",
                        cut[i].cells, cut[i].seen, cut[i].divergence, at_random[i].divergence));
    }
    o.compares = false;
    o.cells = 1280;
    o.chunk = 128;
    o.questions = {words(m, text, 1, 1400)};
    const auto few = converse(m, o, nullptr);
    check(few[0].cells == kvtrim::kept_tokens(few[0].seen, 0.3),
          fmt::format("a prompt of more tokens than cells: {} of {}", few[0].cells, few[0].seen));
    o.text_file = file;
    std::ofstream(o.text_file) << words(m, text, 1, 640);
    o.questions = {words(m, text, 750, 40), words(m, text, 850, 40)};
    o.cells = 2048;
    for (const bool unified : {true, false}) {
        o.unified = unified;
        o.sequences = 0;
        o.unseen = true;
        auto alone = o;
        std::vector<answer> own;
        for (const auto& question : o.questions) {
            alone.questions = {question};
            own.push_back(converse(m, alone, nullptr)[0]);
        }
        o.sequences = 2;
        const auto together = converse(m, o, nullptr);
        double worst = 0;
        for (std::size_t i = 0; i < own.size(); ++i) {
            worst =
                std::max(worst, divergence(own[i].log_probabilities[0], together[i].log_probabilities[0]));
        }
        const double apart = divergence(own[0].log_probabilities[0], own[1].log_probabilities[0]);
        check(worst < apart / 10 && worst < 10 * rounding,
              fmt::format("two sequences with {} cells answer as alone: {:.2g}, the other {:.2g}",
                          unified ? "shared" : "copied", worst, apart));
    }
}

void all_of(const language_model& m, const tokens& text, const std::string& file, double largest_rounding) {
    rounding = largest_rounding;
    if (text.size() < 1600) { throw std::runtime_error("the text is too short"); }
    hidden_cells_are_as_removed(m, text);
    every_cache_can_be_cut(m, text);
    unrotated_caches_can_be_cut(m, text);
    every_policy_cuts(m, text);
    sequences_do_not_disturb_each_other(m, text);
    each_sequence_is_as_alone(m, text);
    questions_share_a_text(m, text, file + ".txt");
    a_conversation_goes_on(m, text);
    the_share_is_of_all_tokens_seen(m, text);
    what_cannot_be_done_is_said(m, text);
    the_comparison_is_right(m, text);
}

void the_demo_model(const std::string& data, const std::string& file) {
    fmt::print("\nThe demo's model\n");
    write_recall_model(data + "/recall.safetensors", file);
    const language_model m(file);
    const auto reference = nlohmann::json::parse(std::ifstream(data + "/reference.json"));
    the_demo_model_is_itself(m, reference);
    tokens text;
    for (const auto& s : reference.at("samples")) {
        const auto more = s.at("tokens").get<tokens>();
        text.insert(text.end(), more.begin(), more.end());
    }
    all_of(m, text, file, 1e-5);
    options_go_together(m, text);
}

} // namespace

int main(int argc, char** argv) {
    if (argc != 3 && argc != 5) {
        fmt::print(stderr, "kvtrim-llama-test MODEL.gguf TEXT [DATA PROGRAM]\n");
        return 2;
    }
    const std::string file = (std::filesystem::temp_directory_path() /
                              fmt::format("kvtrim-llama-test-{}.gguf", std::random_device{}()))
                                 .string();
    try {
        const language_model m(argv[1]);
        const tokens text = m.tokens(read_text(argv[2]).substr(0, 12000), true);
        if (argc == 3) {
            rounding = 2e-3;
            a_real_model_with_windows(m, text, file + ".txt");
        } else {
            windows_lose_nothing(file);
            latent_attention_is_refused(file);
            the_demo_model(argv[3], file);
            fmt::print("\n{}\n", argv[1]);
            all_of(m, text, file, 2e-3);
            the_program_takes_options(argv[4], argv[1], m, text, file + ".txt");
        }
    } catch (const std::exception& e) { check(false, e.what()); }
    std::filesystem::remove(file);
    std::filesystem::remove(file + ".txt");
    fmt::print("{} passed, {} failed\n", passed, failed);
    return failed;
}
