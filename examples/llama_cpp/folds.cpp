// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// What one token set for all layers and heads costs, by the scores and by how they are folded, beside what sets per layer, per
// (layer, head), and rows that compete would give: these are emulated, by hiding cells before each softmax.
// KL(full cache || cut cache) of the text behind a prompt: docs/engines/llama-cpp.md.

#include "engine.hpp"
#include "words.hpp"

#include <kvtrim/policy/baselines.hpp>
#include <kvtrim/policy/criticalkv.hpp>
#include <kvtrim/policy/defensivekv.hpp>
#include <kvtrim/policy/replay.hpp>
#include <kvtrim/policy/snapkv.hpp>

#include <CLI/CLI.hpp>
#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <numeric>

namespace {

using namespace llama_example;
using kvtrim::index_t;

constexpr index_t window = 32, sinks = 4, nearest = 64;
const kvtrim::protection protect{.sink_tokens = sinks, .window_tokens = window};

using row = std::vector<float>;                  // of candidates
using row_table = std::vector<std::vector<row>>; // [layer][head]
using marks = std::vector<bool>;                 // of candidates, those that stay
using mark_table = std::vector<std::vector<marks>>;

// ---- Scores ----

// The newest queries of all that were seen.
struct newest {
    std::vector<float> values;
    index_t heads, head_dim;

    explicit newest(const kvtrim::recent_queries<float>& all)
        : heads(all.q_heads()), head_dim(all.head_dim()) {
        values.resize(static_cast<std::size_t>(heads * window * head_dim));
        const auto from = all.view();
        for (index_t h = 0; h < heads; ++h) {
            kvtrim::load_rows(from, h, from.extent(1) - window, window,
                              values.data() + h * window * head_dim);
        }
    }
    [[nodiscard]] kvtrim::strided<const float, 3> view() const {
        return {values.data(), {heads, window, head_dim}};
    }
};

class scores_of_prompt {
  public:
    scores_of_prompt(const kvtrim::llama_graph& seen, std::span<const std::int32_t> cells)
        : seen_(seen), cells_(cells) {}

    template <class Policy>
    row_table by(const Policy& policy) {
        row_table all;
        for (const auto& [number, l] : seen_.layers()) {
            const newest queries(l.queries);
            const auto wo = l.output_projection();
            require(wo.validate());
            kvtrim::score_table scores;
            require(
                policy.score(l.inputs(cells_).with_queries(queries.view()).with_output_projection(wo.view()),
                             {.budget = {}, .protect = protect, .attention = l.attention}, scores, memory_));
            all.emplace_back();
            for (index_t g = 0; g < scores.rows(); ++g) {
                all.back().emplace_back(scores.row(g).begin(), scores.row(g).end());
            }
        }
        return all;
    }

    // What the prompt's own queries want of tokens at least `nearest` before them, by what outputs lose.
    row_table from_afar() {
        row_table all;
        for (const auto& [number, l] : seen_.layers()) {
            const auto wo = l.output_projection();
            require(wo.validate());
            const auto in = l.inputs(cells_).with_output_projection(wo.view());
            kvtrim::replay_scores scores(in.keys, kvtrim::token_loss::output_square_sum);
            require(scores.add_own(in, l.attention, nearest, memory_));
            kvtrim::score_table table;
            const auto policy = kvtrim::eviction_policy{kvtrim::replayed{nearest}, kvtrim::uniform{},
                                                        kvtrim::by_importance{}};
            require(policy.score(scores, {.budget = {}, .protect = protect}, table, memory_));
            all.emplace_back();
            for (index_t g = 0; g < table.rows(); ++g) {
                all.back().emplace_back(table.row(g).begin(), table.row(g).end());
            }
        }
        return all;
    }

  private:
    const kvtrim::llama_graph& seen_;
    std::span<const std::int32_t> cells_;
    kvtrim::growing_workspace memory_;
};

// The lengths (root mean square over the newest queries) of what each layer's attention adds to the residual stream, and of the
// stream behind it; as an engine's on_operation.
struct layer_lengths {
    std::vector<double> outputs, streams; // of each layer

    bool see(const ggml_tensor& t, bool ask) {
        const bool is_output = t.op == GGML_OP_MUL_MAT && std::strncmp(t.src[0]->name, "blk.", 4) == 0 &&
                               std::strstr(t.src[0]->name, ".attn_output.weight") != nullptr;
        const bool is_stream = t.op == GGML_OP_ADD && std::strncmp(t.name, "ffn_inp-", 8) == 0;
        if (ask || !(is_output || is_stream)) { return is_output || is_stream; }
        const auto layer = static_cast<std::size_t>(std::atoi(is_output ? t.src[0]->name + 4 : t.name + 8));
        const std::int64_t rows = std::min<std::int64_t>(t.ne[1], window), values = rows * t.ne[0];
        const float* x = static_cast<const float*>(t.data) + (t.ne[1] - rows) * t.ne[0];
        double squares = 0;
        for (std::int64_t i = 0; i < values; ++i) {
            squares += static_cast<double>(x[i]) * static_cast<double>(x[i]);
        }
        auto& to = is_output ? outputs : streams;
        to.resize(std::max(to.size(), layer + 1));
        to[layer] = std::sqrt(squares / static_cast<double>(rows));
        return true;
    }
};

// ---- Folds ----

marks best_of(const std::vector<double>& score, std::size_t budget) {
    std::vector<std::size_t> order(score.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return score[a] > score[b]; });
    marks stays(score.size());
    for (std::size_t i = 0; i < budget; ++i) { stays[order[i]] = true; }
    return stays;
}

double total(const std::vector<row>& rows) {
    double sum = 0;
    for (const row& r : rows) {
        sum = std::accumulate(r.begin(), r.end(), sum,
                              [](double s, float x) { return s + static_cast<double>(x); });
    }
    return sum;
}

enum class unit { as_is, per_row, per_layer };

// Sum over rows of the score, or its power, in units of the row's or layer's mean.
std::vector<double> summed(std::span<const std::vector<row>> layers, double power, unit in) {
    std::vector<double> sum(layers[0][0].size());
    for (const auto& heads : layers) {
        for (const row& r : heads) {
            const double by = in == unit::as_is ? 1 : in == unit::per_row ? total({r}) : total(heads);
            for (std::size_t c = 0; c < r.size(); ++c) {
                sum[c] += std::pow(static_cast<double>(r[c]) / by, power);
            }
        }
    }
    return sum;
}

// Each layer's scores in units of `by`.
row_table divided(row_table scores, const std::vector<double>& by) {
    for (std::size_t l = 0; l < scores.size(); ++l) {
        for (row& r : scores[l]) {
            for (float& x : r) { x = static_cast<float>(static_cast<double>(x) / by.at(l)); }
        }
    }
    return scores;
}

// The least score of each layer that would stay if its rows competed for their budgets.
std::vector<double> thresholds(const row_table& scores, std::size_t budget) {
    std::vector<double> least;
    for (const auto& heads : scores) {
        std::vector<float> all;
        for (const row& r : heads) { all.insert(all.end(), r.begin(), r.end()); }
        const std::size_t kept = std::clamp<std::size_t>(heads.size() * budget, 1, all.size()) - 1;
        std::nth_element(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(kept), all.end(),
                         std::greater<>{});
        least.push_back(static_cast<double>(all[kept]));
    }
    return least;
}

// In place of a score how many of its row it is not below.
row_table ranks(row_table scores) {
    for (auto& heads : scores) {
        for (row& r : heads) {
            row sorted = r;
            std::sort(sorted.begin(), sorted.end());
            for (float& x : r) {
                x = static_cast<float>(std::upper_bound(sorted.begin(), sorted.end(), x) - sorted.begin());
            }
        }
    }
    return scores;
}

// As parts of their sums.
std::vector<double> both(std::vector<double> a, const std::vector<double>& b) {
    const double of_a = std::accumulate(a.begin(), a.end(), 0.0),
                 of_b = std::accumulate(b.begin(), b.end(), 0.0);
    for (std::size_t c = 0; c < a.size(); ++c) { a[c] = a[c] / of_a + b[c] / of_b; }
    return a;
}

std::vector<double> largest(std::span<const std::vector<row>> layers) {
    std::vector<double> most(layers[0][0].size(), -std::numeric_limits<double>::infinity());
    for (const auto& heads : layers) {
        for (const row& r : heads) {
            for (std::size_t c = 0; c < r.size(); ++c) {
                most[c] = std::max(most[c], static_cast<double>(r[c]));
            }
        }
    }
    return most;
}

mark_table same_for_all(const row_table& like, const marks& set) {
    return {like.size(), std::vector<marks>(like[0].size(), set)};
}

// The best rows x budget of all rows together.
mark_table competing(const row_table& scores, std::size_t budget) {
    std::vector<float> all;
    for (const auto& heads : scores) {
        for (const row& r : heads) { all.insert(all.end(), r.begin(), r.end()); }
    }
    const std::size_t kept = scores.size() * scores[0].size() * budget;
    if (kept >= all.size()) { return same_for_all(scores, marks(scores[0][0].size(), true)); }
    std::nth_element(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(kept), all.end(),
                     std::greater<>{});
    mark_table stays(scores.size());
    for (std::size_t l = 0; l < scores.size(); ++l) {
        for (const row& r : scores[l]) {
            marks m(r.size());
            for (std::size_t c = 0; c < r.size(); ++c) { m[c] = r[c] > all[kept]; }
            stays[l].push_back(std::move(m));
        }
    }
    return stays;
}

// Rows that keep a token; of equally many the larger sum.
std::vector<double> votes(const row_table& scores, const mark_table& stays) {
    std::vector<double> count = summed(scores, 1, unit::per_row);
    const double most = *std::max_element(count.begin(), count.end());
    for (double& c : count) { c /= 2 * most; }
    for (const auto& heads : stays) {
        for (const marks& m : heads) {
            for (std::size_t c = 0; c < m.size(); ++c) { count[c] += m[c] ? 1 : 0; }
        }
    }
    return count;
}

mark_table best_of_each(const row_table& scores, std::size_t budget) {
    mark_table stays;
    for (const auto& heads : scores) {
        stays.emplace_back();
        for (const row& r : heads) { stays.back().push_back(best_of({r.begin(), r.end()}, budget)); }
    }
    return stays;
}

mark_table set_per_layer(const row_table& scores, std::size_t budget, double power) {
    mark_table stays;
    for (const auto& heads : scores) {
        stays.emplace_back(heads.size(), best_of(summed(std::span(&heads, 1), power, unit::as_is), budget));
    }
    return stays;
}

// ---- Measuring ----

struct outcome {
    std::string name;
    std::vector<double> kl = {}; // by share kept, summed over texts
    std::vector<std::vector<double>> of_text = {};
};

class measurer {
  public:
    measurer(engine& e, const std::vector<llama_token>& next, const std::vector<std::int32_t>& cells)
        : engine_(e), next_(next), cells_(cells), begin_(e.next_position()) {
        engine_.observes = false;
        decode([&](std::size_t, std::vector<float> log_p) { full_.push_back(std::move(log_p)); });
    }
    ~measurer() {
        engine_.on_operation = nullptr;
        engine_.observes = true;
    }
    measurer(const measurer&) = delete;
    measurer& operator=(const measurer&) = delete;

    double operator()(const mark_table& stays) {
        engine_.on_operation = [&](ggml_tensor& logits, bool ask) {
            const int l = kvtrim::llama_graph::layer_of_logits(logits);
            if (l < 0 || ask) { return l >= 0; }
            const auto& heads = stays[static_cast<std::size_t>(l)];
            const index_t group = logits.ne[2] / std::ssize(heads);
            for (index_t h = 0; h < logits.ne[2]; ++h) {
                const marks& m = heads[static_cast<std::size_t>(h / group)];
                for (index_t q = 0; q < logits.ne[1]; ++q) {
                    float* at = static_cast<float*>(logits.data) + (h * logits.ne[1] + q) * logits.ne[0];
                    for (std::size_t c = 0; c < m.size(); ++c) {
                        if (!m[c]) { at[cells_[c + sinks]] = -std::numeric_limits<float>::infinity(); }
                    }
                }
            }
            return true;
        };
        double sum = 0;
        decode([&](std::size_t i, const std::vector<float>& log_q) { sum += divergence(full_[i], log_q); });
        return sum / static_cast<double>(next_.size());
    }

  private:
    template <class Fn>
    void decode(Fn&& fn) {
        if (!engine_.decode(next_, 0, true)) { throw std::runtime_error("too few cells"); }
        for (std::size_t i = 0; i < next_.size(); ++i) {
            fn(i, log_probabilities(engine_.logits(static_cast<std::int32_t>(i))));
        }
        engine_.remove(0, begin_);
    }

    engine& engine_;
    const std::vector<llama_token>& next_;
    const std::vector<std::int32_t>& cells_;
    index_t begin_;
    std::vector<std::vector<float>> full_;
};

// Scores that are made when they are first asked for.
class lazy_scores {
  public:
    explicit lazy_scores(std::function<row_table()> make) : make_(std::move(make)) {}
    const row_table& operator()() {
        if (made_.empty()) { made_ = make_(); }
        return made_;
    }

  private:
    std::function<row_table()> make_;
    row_table made_;
};

// All ways to choose whose names hold one of `only`, or all.
void measure(measurer& kl, scores_of_prompt& prompt, const layer_lengths& lengths, index_t tokens,
             std::span<const double> keep, std::span<const std::string> only, std::vector<outcome>& out) {
    std::size_t next = 0;
    const auto candidates = static_cast<std::size_t>(kvtrim::candidates(protect, tokens).size());
    const auto budget_of = [&](double share) {
        return static_cast<std::size_t>(kvtrim::kept_tokens(tokens, share)) -
               (static_cast<std::size_t>(tokens) - candidates);
    };
    // stays_at(budget): the marks.
    const auto add = [&](const std::string& name, const auto& stays_at) {
        const auto is_in_name = [&](const std::string& part) { return name.find(part) != name.npos; };
        if (!only.empty() && std::none_of(only.begin(), only.end(), is_in_name)) { return; }
        if (next == out.size()) { out.push_back({name, std::vector<double>(keep.size())}); }
        out[next].of_text.emplace_back();
        fmt::print(stderr, "{:52}", name);
        for (std::size_t k = 0; k < keep.size(); ++k) {
            const double x = kl(stays_at(budget_of(keep[k])));
            out[next].kl[k] += x;
            out[next].of_text.back().push_back(x);
            fmt::print(stderr, "{:>11.4f}", x);
        }
        fmt::print(stderr, "\n");
        ++next;
    };
    // fold(rows, budget): a score for each token.
    const auto add_one_set = [&](const std::string& name, lazy_scores& scores, const auto& fold) {
        add(name + " | one set", [&](std::size_t budget) {
            return same_for_all(scores(), best_of(fold(scores(), budget), budget));
        });
    };
    const auto add_more_sets = [&](const std::string& name, lazy_scores& scores) {
        add(name + " | a set per layer",
            [&](std::size_t budget) { return set_per_layer(scores(), budget, 1); });
        add(name + " | a set per row", [&](std::size_t budget) { return best_of_each(scores(), budget); });
        add(name + " | all rows compete", [&](std::size_t budget) { return competing(scores(), budget); });
    };
    using enum unit;
    const auto sum = [](double power, unit in) {
        return [=](const row_table& rows, std::size_t) { return summed(rows, power, in); };
    };
    const auto relative_to = [](const std::vector<double>& by) {
        return [&](const row_table& rows, std::size_t) { return summed(divided(rows, by), 1, as_is); };
    };
    const std::size_t fifth = budget_of(0.2);
    const auto votes_of_all = [&](const row_table& rows, std::size_t) {
        return votes(rows, competing(rows, fifth));
    };
    const auto votes_of_each = [&](const row_table& rows, std::size_t) {
        return votes(rows, best_of_each(rows, fifth));
    };

    lazy_scores critical([&] { return prompt.by(kvtrim::criticalkv()); });
    lazy_scores defensive([&] { return prompt.by(kvtrim::defensivekv()); });
    lazy_scores mean([&] { return prompt.by(kvtrim::snapkv()); });
    lazy_scores worst([&] {
        return prompt.by(kvtrim::eviction_policy{kvtrim::window_attention<kvtrim::worst_case_attention>{},
                                                 kvtrim::uniform{}, kvtrim::by_importance{}});
    });
    lazy_scores drop([&] { return prompt.by(kvtrim::dropkv()); });
    lazy_scores afar([&] { return prompt.from_afar(); });
    lazy_scores recent([&] { return prompt.by(kvtrim::streaming_llm()); });
    lazy_scores random([&] { return prompt.by(kvtrim::random()); });

    add_one_set("criticalkv, sum", critical, sum(1, as_is));
    add_one_set("criticalkv, sum of squares", critical, sum(2, as_is));
    add_one_set("criticalkv, sum of layers' shares", critical, sum(1, per_layer));
    add_one_set("snapkv, sum", mean, sum(1, as_is));
    add_one_set("dropkv, sum", drop, sum(1, as_is));
    add_one_set("dropkv, sum of layers' shares", drop, sum(1, per_layer));
    add_one_set("afar, sum", afar, sum(1, as_is));
    add_one_set("afar, sum of layers' shares", afar, sum(1, per_layer));

    add_one_set("criticalkv, in units of the layers' thresholds", critical,
                [](const row_table& rows, std::size_t budget) {
                    return summed(divided(rows, thresholds(rows, budget)), 1, as_is);
                });
    add_one_set("criticalkv, sum of ranks", critical,
                [](const row_table& rows, std::size_t) { return summed(ranks(rows), 1, as_is); });
    add_one_set("criticalkv, relative to the layers' outputs", critical, relative_to(lengths.outputs));
    add_one_set("criticalkv, relative to the stream", critical, relative_to(lengths.streams));
    add_one_set("dropkv, relative to the layers' outputs", drop, relative_to(lengths.outputs));
    add_one_set("dropkv, relative to the stream", drop, relative_to(lengths.streams));
    add_one_set("afar, relative to the stream", afar, relative_to(lengths.streams));
    add_one_set("criticalkv and afar", critical, [&](const row_table& rows, std::size_t) {
        return both(summed(rows, 1, as_is), summed(afar(), 1, as_is));
    });
    add_one_set("criticalkv and afar, layers' shares", critical, [&](const row_table& rows, std::size_t) {
        return both(summed(rows, 1, per_layer), summed(afar(), 1, per_layer));
    });

    add_one_set("layer_defensivekv 0, votes at 20 %", defensive, votes_of_all);
    add_one_set("streaming_llm", recent, sum(1, as_is));
    add_one_set("dropkv, sum of squares", drop, sum(2, as_is));
    add_one_set("afar, votes of all rows at 20 %", afar, votes_of_all);
    add_more_sets("defensivekv", defensive);
    add_one_set("snapkv, largest", mean, [](const row_table& rows, std::size_t) { return largest(rows); });
    add_one_set("random", random, [](const row_table& rows, std::size_t) {
        return summed(std::span(rows).first(1), 1, as_is);
    });
    add_more_sets("afar", afar);
    add_one_set("defensivekv, sum", defensive, sum(1, as_is));
    add_one_set("worst-case attention, sum", worst, sum(1, as_is));
    add_one_set("snapkv, votes at 20 %", mean, votes_of_each);
    add_one_set("defensivekv, votes at 20 %", defensive, votes_of_each);
    add_one_set("dropkv, sum of roots", drop, sum(0.5, as_is));
    add_one_set("afar, sum of squares", afar, sum(2, as_is));
    add_one_set("afar, sum of roots", afar, sum(0.5, as_is));
}

struct text_of {
    std::string file;
    index_t number; // in its file
};

// A file of results, as docs/results/llama-folds-*.json.
void write_json(const std::string& to, const std::string& model, std::span<const double> keep, index_t tokens,
                index_t next, const std::vector<text_of>& texts, const std::vector<outcome>& all) {
    nlohmann::json rows;
    for (const outcome& o : all) {
        const std::size_t bar = o.name.find(" | ");
        for (std::size_t i = 0; i < texts.size(); ++i) {
            rows.push_back({{"fold", o.name.substr(0, bar)},
                            {"sets", o.name.substr(bar + 3)},
                            {"file", texts[i].file},
                            {"text", texts[i].number},
                            {"tokens", tokens},
                            {"next", next},
                            {"kl", o.of_text[i]}});
        }
    }
    std::ofstream out(to);
    out << nlohmann::json{{"model", model}, {"keep", keep}, {"folds", rows}}.dump(1) << "\n";
    if (!out) { throw std::runtime_error(to + ": cannot be written"); }
}

} // namespace

int main(int argc, char** argv) {
    std::string model, json;
    std::vector<std::string> files, only;
    std::vector<double> keep{0.5, 0.2};
    index_t tokens = 1024, next = 256, texts = 3, first = 0;
    CLI::App app{"One token set for all layers: what scores and folds cost, and what more sets would give"};
    app.add_option("-m,--model", model)->required()->check(CLI::ExistingFile);
    app.add_option("-f,--file", files, "texts, by turns")->required()->check(CLI::ExistingFile);
    app.add_option("--keep", keep, "shares that stay")->delimiter(',');
    app.add_option("--tokens", tokens, "of the prompt")->check(CLI::PositiveNumber)->capture_default_str();
    app.add_option("--next", next, "tokens that are predicted")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    app.add_option("--texts", texts)->check(CLI::PositiveNumber)->capture_default_str();
    app.add_option("--first", first, "number of the first text")
        ->check(CLI::NonNegativeNumber)
        ->capture_default_str();
    app.add_option("--only", only, "those whose names hold one of these");
    app.add_option("--json", json, "writes the results there too, after each text");
    CLI11_PARSE(app, argc, argv);
    try {
        const language_model words(model);
        std::vector<outcome> out;
        std::vector<text_of> measured;
        for (index_t i = first; i < first + texts; ++i) {
            const std::string& file = files[static_cast<std::size_t>(i) % files.size()];
            const std::string text = read_text(file);
            const std::size_t begin =
                static_cast<std::size_t>(i) / files.size() * static_cast<std::size_t>(tokens + next) * 8;
            if (begin >= text.size()) { throw std::runtime_error("the text is too short"); }
            auto all = words.tokens(
                std::string_view(text).substr(begin, static_cast<std::size_t>(tokens + next) * 8), true);
            if (std::ssize(all) < tokens + next) { throw std::runtime_error("the text is too short"); }
            all.resize(static_cast<std::size_t>(tokens + next));
            const std::vector<llama_token> behind(all.end() - next, all.end());
            all.resize(static_cast<std::size_t>(tokens));

            engine e(words.model.get(),
                     context_params(static_cast<std::uint32_t>(tokens + next), "f16", "f16", false), tokens);
            layer_lengths lengths;
            e.on_operation = [&](const ggml_tensor& t, bool ask) { return lengths.see(t, ask); };
            if (!e.decode(all)) { throw std::runtime_error("too few cells"); }
            std::vector<std::int32_t> room(static_cast<std::size_t>(e.seen().cells(0).cells()));
            kvtrim::cell_list list;
            require(e.seen().cells(0).list(0, room, list));
            const std::vector<std::int32_t> cells(list.cells.begin(), list.cells.end());
            scores_of_prompt prompt(e.seen(), cells);
            measurer kl(e, behind, cells);
            measure(kl, prompt, lengths, tokens, keep, only, out);
            measured.push_back({std::filesystem::path(file).filename().string(), i / std::ssize(files)});
            if (!json.empty()) { write_json(json, model, keep, tokens, next, measured, out); }
        }
        fmt::print("KL(full || cut), mean over {} texts of {} + {} tokens\n{:52}", texts, tokens, next, "");
        for (const double k : keep) { fmt::print("{:>9.0f} %", 100 * k); }
        for (const outcome& o : out) {
            fmt::print("\n{:52}", o.name);
            for (const double x : o.kl) { fmt::print("{:>11.4f}", x / static_cast<double>(texts)); }
        }
        fmt::print("\n");
        return 0;
    } catch (const std::exception& error) {
        fmt::print(stderr, "kvtrim-llama-folds: {}\n", error.what());
        return 1;
    }
}
