// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#include "quality_measure.hpp"

#include "../needle/live_sequence.hpp"
#include "seconds_since.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <optional>
#include <stdexcept>

namespace lm {
namespace {

index_t argmax(const matrix& logits, index_t row) {
    index_t best = 0;
    logits.row(row).maxCoeff(&best);
    return best;
}

double mean_nll(const matrix& log_q, std::span<const token_id> tokens) {
    double sum = 0;
    for (index_t r = 0; r + 1 < log_q.rows(); ++r) {
        sum -= static_cast<double>(log_q(r, tokens[static_cast<std::size_t>(r + 1)]));
    }
    return sum / static_cast<double>(log_q.rows() - 1);
}

void add_to(std::vector<double>& sums, const std::vector<double>& numbers) {
    sums.resize(numbers.size());
    for (std::size_t i = 0; i < sums.size(); ++i) { sums[i] += numbers[i]; }
}

class measurement {
  public:
    measurement(const llama_model& model, const quality_request& request, quality_results& results)
        : model_(model), request_(request), results_(results) {
        for (const std::string& name : request.policies) { policies_.push_back(&policy_named(name)); }
        const model_config& c = model.config;
        for (const layer_weights& layer : model.layers) {
            const matrix wo = layer.wo.decoded();
            for (index_t h = 0; h < c.q_heads; ++h) {
                const matrix part = wo.middleCols(h * c.head_dim, c.head_dim);
                head_projections_.emplace_back(c.d_model, c.head_dim,
                                               std::vector<float>(part.data(), part.data() + part.size()));
            }
        }
    }

    void needles(const needle_sample& sample, const quality_key& key) {
        prefilled& context = prefilled_context(sample.context);
        if (!key.question_seen) { return needles(sample.questions, context, key); }
        const std::vector<token_id>& question = sample.questions.front().question;
        const index_t tokens = std::ssize(sample.context) + std::ssize(question);
        prefilled whole{{}, context.sequence.fork(std::ssize(question)), {}, {}};
        whole.last = whole.sequence.prefill(question, observed_tokens(tokens));
        needles(std::span(sample.questions).first(1), whole, key);
    }

    void text(const running_text& sample, const quality_key& key) {
        prefilled& whole_context = prefilled_context(sample.context);
        const session& sequence = whole_context.sequence;

        // The full cache, and what its attention works on.
        std::vector<attention_inputs> next;
        std::vector<matrix> attended;
        matrix full;
        {
            std::vector<kv_cache> caches = sequence.copy();
            const auto attend = [&](index_t layer, attention_inputs inputs) {
                kv_cache& cache = caches[static_cast<std::size_t>(layer)];
                cache.append(inputs.keys, inputs.values);
                attended.push_back(cache.attend(inputs.queries));
                next.push_back(std::move(inputs));
                return attended.back();
            };
            full = forward(model_, sample.next, sequence.tokens(), attend, logit_rows::all);
        }
        log_softmax(full);
        norms whole_norms;
        for (std::size_t l = 0; l < attended.size(); ++l) {
            add_norms(l, attended[l], whole_norms.own, whole_norms.projected);
        }
        quality_cell& whole = cell_of(key, "full", 1);
        whole.kl.push_back(0);
        whole.nll.push_back(mean_nll(full, sample.next));

        each_cut(whole_context, key, [&](std::span<const kvtrim::keep_plan> plans, quality_cell& cell) {
            add_errors(sequence.copy(plans), next, attended, whole_norms, cell);
            std::vector<kv_cache> caches = sequence.copy(plans);
            matrix cut = decode(model_, caches, sample.next, sequence.tokens(), logit_rows::all);
            log_softmax(cut);
            cell.kl.push_back(mean_kl(full, cut));
            cell.nll.push_back(mean_nll(cut, sample.next));
            std::vector<double> rows;
            for (const kvtrim::keep_plan& plan : plans) {
                for (index_t h = 0; h < plan.rows(); ++h) {
                    rows.push_back(static_cast<double>(plan.kept_tokens(h)));
                }
            }
            add_to(cell.kept_rows, rows);
        });
    }

    void live(std::span<const token_id> text, const quality_key& key) {
        constexpr index_t interval = 64;
        const index_t first = std::ssize(text) / 2 / interval * interval;
        std::vector<matrix> full; // log p, an interval each
        const auto add = [&](quality_cell& cell, const std::string& policy, index_t budget) {
            const needle::cache_limit limit{budget + interval, interval, request_.window_tokens};
            needle::live_sequence sequence(model_, needle::live_policy_named(policy), limit);
            double kl = 0, nll = 0, count = 0;
            for (index_t i = 0; i + interval <= std::ssize(text); i += interval) {
                const auto tokens = text.subspan(static_cast<std::size_t>(i), interval);
                matrix logits = sequence.step(tokens, i < first ? logit_rows::none : logit_rows::all);
                if (i < first) { continue; }
                log_softmax(logits);
                const auto n = static_cast<std::size_t>((i - first) / interval);
                if (n == full.size()) { full.push_back(logits); }
                kl += mean_kl(full[n], logits);
                nll += mean_nll(logits, tokens);
                ++count;
            }
            cell.kl.push_back(kl / count);
            cell.nll.push_back(nll / count);
        };
        add(cell_of(key, "full", 1), "streaming_llm", std::ssize(text)); // of which nothing goes
        for (const named_policy* policy : policies_) {
            for (const double share : request_.kept_ratios) {
                add(cell_of(key, policy->name, share), policy->name,
                    kvtrim::kept_tokens(std::ssize(text), share));
            }
        }
    }

  private:
    // What was prefilled, and what each policy keeps of it.
    struct prefilled {
        std::vector<token_id> tokens;
        session sequence;
        matrix last; // its last token's logits
        std::map<std::pair<const named_policy*, double>, std::vector<kvtrim::keep_plan>> plans;
    };

    // The newest context stays, for the next sample that asks about the same one.
    prefilled& prefilled_context(const std::vector<token_id>& tokens) {
        if (!context_ || context_->tokens != tokens) {
            context_.reset(); // before there is another
            const index_t count = std::ssize(tokens);
            context_.emplace(
                prefilled{tokens, session(model_, request_.format, count, request_.aids), {}, {}});
            context_->last = context_->sequence.prefill(tokens, observed_tokens(count));
        }
        return *context_;
    }

    void needles(std::span<const asked_question> questions, prefilled& from, const quality_key& key) {
        const session& sequence = from.sequence;
        const matrix* const last = key.question_seen ? &from.last : nullptr;
        std::vector<std::vector<bool>> full;
        double right = 0, asked = 0;
        for (const asked_question& q : questions) {
            full.push_back(right_values(model_, sequence.copy(), sequence.tokens(), q, last));
            right += static_cast<double>(std::count(full.back().begin(), full.back().end(), true));
            asked += static_cast<double>(full.back().size());
        }
        quality_cell& whole = cell_of(key, "full", 1);
        whole.right.push_back(right);
        whole.asked.push_back(asked);

        each_cut(
            from, key,
            [&](std::span<const kvtrim::keep_plan> plans, quality_cell& cell) {
                double kept = 0;
                for (std::size_t i = 0; i < questions.size(); ++i) {
                    if (std::find(full[i].begin(), full[i].end(), true) == full[i].end()) { continue; }
                    const std::vector<bool> now =
                        right_values(model_, sequence.copy(plans), sequence.tokens(), questions[i], last);
                    for (std::size_t v = 0; v < now.size(); ++v) { kept += now[v] && full[i][v] ? 1 : 0; }
                }
                cell.right.push_back(kept);
                cell.asked.push_back(right);
            },
            right > 0);
    }

    struct norms { // [layers * q_heads]
        std::vector<double> own;
        std::vector<double> projected;
    };

    [[nodiscard]] index_t observed_tokens(index_t tokens) const {
        const bool whole = std::any_of(policies_.begin(), policies_.end(), [](const named_policy* p) {
            return p->queries == observed::whole_prompt;
        });
        return whole ? tokens : std::min(tokens, request_.window_tokens);
    }

    quality_cell& cell_of(quality_key key, const std::string& policy, double kept_ratio) {
        key.policy = policy;
        key.kept_ratio = kept_ratio;
        return results_.cells[key];
    }

    // use(plans, cell) for every policy and share; without plans where nothing would be learnt from them.
    template <class Use>
    void each_cut(prefilled& from, const quality_key& key, const Use& use, bool plans_matter = true) {
        if (plans_matter) { from.sequence.score_for(policies_); }
        for (const named_policy* policy : policies_) {
            for (const double share : request_.kept_ratios) {
                std::vector<kvtrim::keep_plan>& plans = from.plans[{policy, share}];
                if (plans_matter && plans.empty()) {
                    plans =
                        from.sequence.plan(*policy, {share, request_.sink_tokens, request_.window_tokens});
                }
                use(plans, cell_of(key, policy->name, share));
            }
        }
    }

    // Per query head, sum |x| of [tokens, q_heads * head_dim], and of x W_O's products with the head's part of W_O.
    void add_norms(std::size_t layer, const matrix& x, std::vector<double>& own,
                   std::vector<double>& projected) const {
        const model_config& c = model_.config;
        for (index_t h = 0; h < c.q_heads; ++h) {
            const matrix head = x.middleCols(h * c.head_dim, c.head_dim);
            own.push_back(static_cast<double>(head.lpNorm<1>()));
            const weight& wo =
                head_projections_[layer * static_cast<std::size_t>(c.q_heads) + static_cast<std::size_t>(h)];
            projected.push_back(static_cast<double>(wo.multiply(head).lpNorm<1>()));
        }
    }

    // Attention of the full cache's queries over the cut one.
    void add_errors(std::vector<kv_cache> caches, std::span<const attention_inputs> next,
                    std::span<const matrix> attended, const norms& full, quality_cell& cell) const {
        norms cut;
        for (std::size_t l = 0; l < caches.size(); ++l) {
            caches[l].append(next[l].keys, next[l].values);
            add_norms(l, caches[l].attend(next[l].queries) - attended[l], cut.own, cut.projected);
        }
        for (std::size_t i = 0; i < cut.own.size(); ++i) {
            cut.own[i] /= full.own[i];
            cut.projected[i] /= full.projected[i];
        }
        add_to(cell.error, cut.own);
        add_to(cell.error_projected, cut.projected);
    }

    std::vector<weight> head_projections_; // [layers * q_heads] of [d_model, head_dim]
    const llama_model& model_;
    const quality_request& request_;
    quality_results& results_;
    std::vector<const named_policy*> policies_;
    std::optional<prefilled> context_;
};

} // namespace

void log_softmax(matrix& logits) {
    for (index_t r = 0; r < logits.rows(); ++r) {
        auto row = logits.row(r).array();
        row -= row.maxCoeff();
        row -= std::log(row.exp().sum());
    }
}

double mean_kl(const matrix& log_p, const matrix& log_q) {
    double sum = 0;
    for (index_t r = 0; r < log_p.rows(); ++r) {
        const auto p = log_p.row(r).array(), q = log_q.row(r).array();
        sum += static_cast<double>((p.exp() * (p - q)).sum());
    }
    return sum / static_cast<double>(log_p.rows());
}

estimate mean_of(const std::vector<double>& numbers) {
    return ratio_of(numbers, std::vector<double>(numbers.size(), 1));
}

estimate ratio_of(const std::vector<double>& parts, const std::vector<double>& wholes) {
    double part = 0, whole = 0, squares = 0;
    for (std::size_t i = 0; i < parts.size(); ++i) {
        part += parts[i];
        whole += wholes[i];
    }
    if (whole == 0) { return {}; }
    const double mean = part / whole, samples = static_cast<double>(parts.size());
    for (std::size_t i = 0; i < parts.size(); ++i) {
        const double residual = parts[i] - mean * wholes[i];
        squares += residual * residual;
    }
    return {mean, samples < 2 ? 0 : std::sqrt(squares * samples / (samples - 1)) / whole};
}

std::vector<bool> right_values(const llama_model& model, std::vector<kv_cache> caches, index_t position,
                               const asked_question& q, const matrix* behind_question) {
    std::vector<token_id> tokens;
    if (behind_question == nullptr) { tokens = q.question; }
    // The row that predicts the answer's first token.
    const index_t first = std::ssize(tokens) - 1;
    tokens.insert(tokens.end(), q.answer.begin(), q.answer.end() - 1);
    matrix logits(0, 0);
    if (!tokens.empty()) { logits = decode(model, caches, tokens, position, logit_rows::all); }
    std::vector<bool> right;
    for (const token_range& value : q.values) {
        bool all = true;
        for (index_t i = value.begin; i < value.end; ++i) {
            const index_t found = first + i < 0 ? argmax(*behind_question, 0) : argmax(logits, first + i);
            all = all && found == q.answer[static_cast<std::size_t>(i)];
        }
        right.push_back(all);
    }
    return right;
}

quality_results measure_quality(const llama_model& model, const sample_source& source,
                                const quality_request& request, const quality_progress& progress) {
    const auto start = std::chrono::steady_clock::now();
    struct part {
        quality_key key;
        needle_values values;
    };
    const auto asks = [&](std::string_view task) {
        return std::find(request.tasks.begin(), request.tasks.end(), task) != request.tasks.end();
    };
    std::vector<part> parts;
    for (const index_t tokens : request.tokens) {
        if (asks("text")) {
            parts.push_back({{.tokens = tokens, .task = "text", .values = "", .policy = ""}, {}});
        }
        if (asks("live")) {
            if (request.sink_tokens != needle::live_sequence::sink_tokens) {
                throw std::invalid_argument("the task live has 4 sinks");
            }
            if (request.format != cache_format::f32) {
                throw std::invalid_argument("the task live has a cache of floats");
            }
            for (const std::string& name : request.policies) { (void)needle::live_policy_named(name); }
            parts.push_back({{.tokens = tokens, .task = "live", .values = "", .policy = ""}, {}});
        }
        // In an order in which samples of the same context are neighbours.
        for (const needle_values values : request.values) {
            const std::string name = values == needle_values::numbers ? "numbers" : "words";
            for (const std::string_view task : all_needle_tasks) {
                if (!asks(task)) { continue; }
                for (const bool seen : request.question_seen) {
                    parts.push_back({{.tokens = tokens,
                                      .task = std::string(task),
                                      .values = name,
                                      .question_seen = seen,
                                      .policy = ""},
                                     values});
                }
            }
        }
    }
    const auto last_seed = request.first_seed + static_cast<std::uint64_t>(request.samples - 1);
    for (const part& p : parts) { // a text that is not there is missed now, not after an hour
        if (!has_answers(p.key.task)) {
            (void)source.text(p.key.tokens, request.next_tokens, last_seed);
        } else {
            (void)source.needles(p.key.task, p.values, p.key.tokens, last_seed);
        }
    }
    quality_results results;
    results.kv_heads = model.config.kv_heads;
    measurement measure(model, request, results);
    const index_t all = std::ssize(parts) * request.samples;
    index_t done = 0;
    // Sample after sample, so that a run that is ended early has something of everything.
    for (index_t s = 0; s < request.samples; ++s) {
        const std::uint64_t seed = request.first_seed + static_cast<std::uint64_t>(s);
        for (const part& p : parts) {
            progress(done++, all,
                     p.key.task + (p.key.values.empty() ? "" : " of " + p.key.values) +
                         (!has_answers(p.key.task) ? ""
                          : p.key.question_seen    ? ", question seen"
                                                   : ", question unseen") +
                         ", " + std::to_string(p.key.tokens) + " tokens, seed " + std::to_string(seed));
            if (p.key.task == "text") {
                measure.text(source.text(p.key.tokens, request.next_tokens, seed), p.key);
            } else if (p.key.task == "live") {
                measure.live(source.text(p.key.tokens, request.next_tokens, seed).context, p.key);
            } else {
                measure.needles(source.needles(p.key.task, p.values, p.key.tokens, seed), p.key);
            }
        }
    }
    progress(all, all, "done");
    for (auto& [key, cell] : results.cells) {
        for (std::vector<double>* sums : {&cell.error, &cell.error_projected, &cell.kept_rows}) {
            for (double& sum : *sums) { sum /= static_cast<double>(cell.kl.size()); }
        }
    }
    results.seconds = seconds_since(start);
    return results;
}

} // namespace lm
