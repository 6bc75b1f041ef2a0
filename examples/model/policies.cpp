// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#include "policies.hpp"

#include "cache.hpp"
#include "require.hpp"
#include "seconds_since.hpp"

#include <kvtrim/adapter/eigen.hpp>
#include <kvtrim/kvtrim.hpp>

#include <chrono>
#include <map>
#include <stdexcept>

namespace lm {
namespace {

// The attention layer as kvtrim sees it: the engine's own memory, no copies.
auto inputs_of(const layer_prompt& p, observed wanted) {
    const kvtrim::strided<const float, 3>& q = p.queries;
    const index_t count = wanted == observed::window ? p.window_tokens : p.tokens;
    if (q.extent(1) < count) { throw std::invalid_argument("a policy that was given too few queries"); }
    const kvtrim::strided<const float, 3> newest(q.data_handle() + (q.extent(1) - count) * q.stride(1),
                                                 {q.extent(0), count, q.extent(2)},
                                                 {q.stride(0), q.stride(1), q.stride(2)});
    return kvtrim::layer(p.keys, p.values)
        .with_queries(newest)
        .with_output_projection(kvtrim::output_projection(p.wo, p.config.q_heads));
}

head_tensor copied(const kvtrim::strided<const float, 3>& from) {
    head_tensor to(from.extent(0), from.extent(1), from.extent(2));
    for (index_t h = 0; h < to.heads(); ++h) {
        kvtrim::load_rows(from, h, 0, to.tokens(), to.head(h).data());
    }
    return to;
}

// Plans one layer, or all at once, and adds the time between the stages.
template <class Policy, class Inputs, class Plans>
void run(const Policy& policy, const Inputs& in, const kvtrim::eviction_request& request,
         kvtrim::growing_workspace& memory, Plans&& plans, stage_seconds& seconds) {
    using clock = std::chrono::steady_clock;
    auto last = clock::now();
    const auto lap = [&](const kvtrim::plan_progress& at) {
        const auto now = clock::now();
        double& stage = at.stage == kvtrim::plan_stage::scored      ? seconds.score
                        : at.stage == kvtrim::plan_stage::allocated ? seconds.allocate
                                                                    : seconds.select;
        stage += std::chrono::duration<double>(now - last).count();
        last = now;
    };
    require(policy.plan(in, request, plans, memory, kvtrim::serial_executor{}, lap));
}

template <class Policy>
named_policy named(std::string name, const Policy& policy, observed queries = observed::window) {
    return {.name = std::move(name),
            .queries = queries,
            .plan = [policy, queries](std::span<const layer_prompt> layers,
                                      const kvtrim::eviction_request& request,
                                      kvtrim::growing_workspace& memory, std::span<kvtrim::keep_plan> plans,
                                      stage_seconds& seconds) {
                for (std::size_t l = 0; l < layers.size(); ++l) {
                    run(policy, inputs_of(layers[l], queries), request, memory, plans[l], seconds);
                }
            }};
}

// CriticalKV with the Gram form of the value norm.
named_policy critical_gram() {
    return {.name = "criticalkv_gram",
            .needs_gram = true,
            .plan = [](std::span<const layer_prompt> layers, const kvtrim::eviction_request& request,
                       kvtrim::growing_workspace& memory, std::span<kvtrim::keep_plan> plans,
                       stage_seconds& seconds) {
                for (std::size_t l = 0; l < layers.size(); ++l) {
                    const layer_prompt& p = layers[l];
                    const kvtrim::gram_view gram{p.gram.data(), p.config.q_heads, p.config.head_dim};
                    run(kvtrim::criticalkv(), inputs_of(p, observed::window).with_output_projection(gram),
                        request, memory, plans[l], seconds);
                }
            }};
}

// The model's rotation, as kvtrim describes it.
std::vector<float> frequencies_of(const model_config& config) {
    return {config.frequencies.begin(), config.frequencies.end()};
}

// With what the whole prompt's queries are like before their rotation, which an engine gathers during the prefill: not in the
// times. begin(config, rope) is an empty object that gathers them.
template <class Begin, class MakePolicy>
named_policy of_queries_before_rope(std::string name, const Begin& begin, const MakePolicy& make) {
    return {.name = std::move(name),
            .queries = observed::whole_prompt,
            .plan = [begin, make](std::span<const layer_prompt> layers,
                                  const kvtrim::eviction_request& request, kvtrim::growing_workspace& memory,
                                  std::span<kvtrim::keep_plan> plans, stage_seconds& seconds) {
                const model_config& config = layers.front().config;
                const rope_table rotation = make_rope_table(config, 0, layers.front().tokens);
                const std::vector<float> frequencies = frequencies_of(config);
                const kvtrim::rope rope{.inverse_frequencies = frequencies};
                for (std::size_t l = 0; l < layers.size(); ++l) {
                    const layer_prompt& p = layers[l];
                    const head_tensor queries =
                        before_rotation(copied(inputs_of(p, observed::whole_prompt).queries), rotation);
                    auto gathered = begin(config, rope);
                    kvtrim::workspace scratch = memory.of_bytes(gathered.workspace_bytes());
                    require(gathered.add(rows_of(queries), scratch));
                    run(make(gathered, rope), inputs_of(p, observed::window), request, memory, plans[l],
                        seconds);
                }
            }};
}

named_policy key_diff_before_rope() {
    return {.name = "key_diff_before_rope",
            .plan = [](std::span<const layer_prompt> layers, const kvtrim::eviction_request& request,
                       kvtrim::growing_workspace& memory, std::span<kvtrim::keep_plan> plans,
                       stage_seconds& seconds) {
                const std::vector<float> frequencies = frequencies_of(layers.front().config);
                for (std::size_t l = 0; l < layers.size(); ++l) {
                    run(kvtrim::key_diff_before_rope({.inverse_frequencies = frequencies}),
                        inputs_of(layers[l], observed::window), request, memory, plans[l], seconds);
                }
            }};
}

// Its partitions are those of the prompt's caller.
named_policy lagkv() {
    return {.name = "lagkv",
            .plan = [](std::span<const layer_prompt> layers, const kvtrim::eviction_request& request,
                       kvtrim::growing_workspace& memory, std::span<kvtrim::keep_plan> plans,
                       stage_seconds& seconds) {
                for (std::size_t l = 0; l < layers.size(); ++l) {
                    run(kvtrim::lagkv(layers[l].lag), inputs_of(layers[l], observed::window), request, memory,
                        plans[l], seconds);
                }
            }};
}

// ---- Budgets over layers ----

using layer_inputs = decltype(inputs_of(std::declval<const layer_prompt&>(), observed::window));

std::vector<layer_inputs> inputs_of(std::span<const layer_prompt> layers) {
    std::vector<layer_inputs> inputs;
    for (const layer_prompt& p : layers) { inputs.push_back(inputs_of(p, observed::window)); }
    return inputs;
}

// Keys and values of layers [0, l) as they are after the pushes so far, and layer l whole: what a cascade holds.
template <class Policy>
double cascade_peak(const Policy& policy, std::span<const layer_prompt> layers,
                    const kvtrim::eviction_request& request, kvtrim::growing_workspace& memory) {
    const auto inputs = inputs_of(layers);
    const auto count = static_cast<kvtrim::index_t>(layers.size());
    const kvtrim::protection& protect = request.protect;
    auto cascade = policy.begin(inputs.front(), request, count);
    std::vector<kv_cache> caches;
    double peak = 0;
    for (kvtrim::index_t l = 0; l < count; ++l) {
        const auto& in = inputs[static_cast<std::size_t>(l)];
        kvtrim::keep_plan plan;
        double held = 0;
        for (const kv_cache& cache : caches) { held += static_cast<double>(cache.bytes()); }
        held += static_cast<double>(2 * in.kv_heads() * in.longest_row() * in.head_dim()) * sizeof(float);
        peak = std::max(peak, held);
        require(policy.push(in, request, count, cascade, memory));
        require(cascade.plan(l, protect.prefix(), protect.suffix(), plan));
        caches.emplace_back(in.keys, in.values, plan);
        for (kvtrim::index_t k = 0; k < l; ++k) {
            if (!cascade.changed(k)) { continue; }
            require(cascade.plan(k, protect.prefix(), protect.suffix(), plan));
            caches[static_cast<std::size_t>(k)].cut(plan);
        }
    }
    return peak;
}

// What make(first layer) returns plans for all layers.
template <class MakePolicy>
named_policy made_for_layers(std::string name, const MakePolicy& make) {
    return {.name = std::move(name),
            .plan = [make](std::span<const layer_prompt> layers, const kvtrim::eviction_request& request,
                           kvtrim::growing_workspace& memory, std::span<kvtrim::keep_plan> plans,
                           stage_seconds& seconds) {
                const auto inputs = inputs_of(layers);
                run(make(layers.front()), std::span<const layer_inputs>(inputs), request, memory, plans,
                    seconds);
            }};
}

template <class Policy>
named_policy named_over_layers(std::string name, const Policy& policy) {
    return made_for_layers(std::move(name), [policy](const layer_prompt&) { return policy; });
}

// One whose cascade can run layer by layer.
template <class Policy>
named_policy layer_wise(std::string name, const Policy& policy) {
    named_policy named = named_over_layers(std::move(name), policy);
    named.cascade_peak_bytes =
        [policy](std::span<const layer_prompt> layers, const kvtrim::eviction_request& request,
                 kvtrim::growing_workspace& memory) { return cascade_peak(policy, layers, request, memory); };
    return named;
}

// Shares of the budget by how each layer's attention is spread; measuring them counts as allocation.
named_policy cake_policy() {
    return {.name = "cake",
            .plan = [](std::span<const layer_prompt> layers, const kvtrim::eviction_request& request,
                       kvtrim::growing_workspace& memory, std::span<kvtrim::keep_plan> plans,
                       stage_seconds& seconds) {
                const auto start = std::chrono::steady_clock::now();
                const auto inputs = inputs_of(layers);
                std::vector<double> shares(layers.size());
                for (std::size_t l = 0; l < layers.size(); ++l) {
                    require(kvtrim::layer_preference{}.measure(inputs[l], request, shares[l], memory));
                }
                seconds.allocate += seconds_since(start);
                run(kvtrim::cake(shares), std::span<const layer_inputs>(inputs), request, memory, plans,
                    seconds);
            }};
}

// ---- From the scores of a pass over the prompt, or with a table of the model ----

// Policies over all layers whose inputs are the scores of a pass: make(first layer, request).
template <class MakePolicy>
named_policy of_pass(std::string name, scoring_pass pass, kvtrim::token_loss loss, const MakePolicy& make,
                     bool needs_profile = false) {
    return {.name = std::move(name),
            .queries = pass == scoring_pass::own || pass == scoring_pass::both ? observed::whole_prompt
                                                                               : observed::window,
            .needs_gram = loss != kvtrim::token_loss::attention_maximum,
            .plan =
                [make](std::span<const layer_prompt> layers, const kvtrim::eviction_request& request,
                       kvtrim::growing_workspace& memory, std::span<kvtrim::keep_plan> plans,
                       stage_seconds& seconds) {
                    std::vector<kvtrim::replay_scores> scores;
                    for (const layer_prompt& p : layers) { scores.push_back(*p.scored); }
                    run(make(layers.front(), request), std::span<const kvtrim::replay_scores>(scores),
                        request, memory, plans, seconds);
                },
            .pass = pass,
            .loss = loss,
            .needs_profile = needs_profile};
}

// Each layer by itself, with the layer's share of the budget, which is every layer's.
template <class Policy>
struct each_alone {
    Policy policy;

    template <class Inputs, class Executor, class Progress>
    [[nodiscard]] kvtrim::status plan(std::span<const Inputs> layers, const kvtrim::eviction_request& request,
                                      std::span<kvtrim::keep_plan> plans, kvtrim::growing_workspace& memory,
                                      Executor&& ex, const Progress& progress) const {
        for (std::size_t l = 0; l < layers.size(); ++l) {
            const kvtrim::status done = policy.plan(layers[l], request, plans[l], memory, ex, progress);
            if (!done.ok()) { return done; }
        }
        return {};
    }
};
template <class Policy>
each_alone(Policy) -> each_alone<Policy>;

// What a token's score is multiplied by: the norm of its value, in the layer's output.
kvtrim::replay_scores times_value_norms(const layer_prompt& p, kvtrim::growing_workspace& memory) {
    kvtrim::projected_norms norms(p.config.kv_heads, p.tokens);
    require(norms.append(inputs_of(p, observed::window), p.tokens, memory));
    kvtrim::replay_scores weighed = *p.scored;
    require(weighed.weigh(norms.view().rows));
    return weighed;
}

// KVzip's replay: which rows compete, what a row's score is, which rows a softmax is over.
named_policy replay_policy(policy_options& given) {
    enum class competing { model, layer, head } rows = competing::model;
    kvtrim::token_loss loss = kvtrim::token_loss::attention_maximum;
    bool over_part = false, value_norms = false;
    given.set("rows", rows,
              {{"model", competing::model}, {"layer", competing::layer}, {"head", competing::head}});
    given.set("loss", loss,
              {{"attention", kvtrim::token_loss::attention_maximum},
               {"output", kvtrim::token_loss::output_maximum},
               {"output_squares", kvtrim::token_loss::output_square_sum}});
    given.set("softmax", over_part, {{"cache", false}, {"part", true}});
    given.set("value_norms", value_norms, {{"0", false}, {"1", true}});
    const auto of = [=](const auto& policy) {
        return of_pass("replay", scoring_pass::replay, loss,
                       [policy](const layer_prompt&, const kvtrim::eviction_request&) { return policy; });
    };
    named_policy made = rows == competing::model   ? of(kvtrim::layer_replay())
                        : rows == competing::layer ? of(each_alone{kvtrim::replay()})
                                                   : of(each_alone{kvtrim::replay_uniform()});
    made.softmax_over_part = over_part;
    if (value_norms) {
        made.plan = [plan = made.plan](std::span<const layer_prompt> layers,
                                       const kvtrim::eviction_request& request,
                                       kvtrim::growing_workspace& memory, std::span<kvtrim::keep_plan> plans,
                                       stage_seconds& seconds) {
            std::vector<kvtrim::replay_scores> weighed;
            for (const layer_prompt& p : layers) { weighed.push_back(times_value_norms(p, memory)); }
            std::vector<layer_prompt> prompts(layers.begin(), layers.end());
            for (std::size_t l = 0; l < prompts.size(); ++l) { prompts[l].scored = &weighed[l]; }
            plan(prompts, request, memory, plans, seconds);
        };
    }
    return made;
}

// The budgets of the model's table, and any scorer inside each row.
template <class Scorer>
named_policy profiled_policy(std::string name, const Scorer& scorer) {
    named_policy named = made_for_layers(std::move(name), [scorer](const layer_prompt& p) {
        return kvtrim::layer_wise{
            kvtrim::eviction_policy{scorer, p.profile->budgets(), kvtrim::by_importance{}}};
    });
    named.needs_profile = true;
    return named;
}

// The budgets of a table of shares, and the scores of any policy for one layer.
template <class Policy>
named_policy by_shares(std::string name, const Policy& policy) {
    named_policy named = made_for_layers(std::move(name), [policy](const layer_prompt& p) {
        return kvtrim::with_layer_shares(policy, p.shares);
    });
    named.needs_shares = true;
    return named;
}

// DropKV over all layers, whose W_O is divided by the length of the stream that each layer adds to.
named_policy layer_dropkv(std::string name, kvtrim::token_loss loss, double safeguard_ratio) {
    return {.name = std::move(name),
            .needs_gram = true,
            .plan = [loss, safeguard_ratio](std::span<const layer_prompt> layers,
                                            const kvtrim::eviction_request& request,
                                            kvtrim::growing_workspace& memory,
                                            std::span<kvtrim::keep_plan> plans, stage_seconds& seconds) {
                const model_config& c = layers.front().config;
                std::vector<std::vector<float>> grams;
                using inputs = decltype(inputs_of(layers.front(), observed::window)
                                            .with_output_projection(kvtrim::gram_view{}));
                std::vector<inputs> all;
                for (const layer_prompt& p : layers) {
                    grams.emplace_back(p.gram.begin(), p.gram.end());
                    for (float& x : grams.back()) { x *= p.stream_power; }
                    all.push_back(inputs_of(p, observed::window)
                                      .with_output_projection(
                                          kvtrim::gram_view{grams.back().data(), c.q_heads, c.head_dim}));
                }
                run(kvtrim::layer_dropkv({.loss = loss}, safeguard_ratio), std::span<const inputs>(all),
                    request, memory, plans, seconds);
            }};
}

// ---- Options by name ----

// make(options) is the policy, with what was given.
template <class Make>
named_policy having_options(const Make& make) {
    policy_options none;
    named_policy made = make(none);
    made.with_options = make;
    return made;
}

kvtrim::mean_attention attention_of(policy_options& given, kvtrim::mean_attention a = {}) {
    given.set("kernel_tokens", a.kernel_tokens);
    given.set("pool", a.pool,
              {{"none", kvtrim::pooling::none},
               {"average", kvtrim::pooling::average},
               {"maximum", kvtrim::pooling::maximum}});
    return a;
}

kvtrim::criticalkv_config critical_of(policy_options& given) {
    kvtrim::criticalkv_config c{.attention = attention_of(given)};
    given.set("first_ratio", c.first_ratio);
    given.set("epsilon", c.epsilon);
    given.set("epsilon_relative", c.epsilon_relative, {{"0", false}, {"1", true}});
    return c;
}

kvtrim::defensivekv_config defensive_of(policy_options& given, kvtrim::defensivekv_config c) {
    given.set("kernel_tokens", c.attention.kernel_tokens);
    given.set("floor_weight", c.attention.floor_weight);
    given.set("attention_mass", c.attention_mass);
    given.set("first_at_most", c.first_at_most);
    given.set("safeguard_ratio", c.safeguard_ratio);
    return c;
}

double safeguard_of(policy_options& given, double ratio) {
    given.set("safeguard_ratio", ratio);
    return ratio;
}

} // namespace

const std::vector<named_policy>& all_policies() {
    using kvtrim::eviction_request;
    using kvtrim::token_loss;
    const auto by_all_rows = [](const layer_prompt&, const eviction_request&) {
        return kvtrim::layer_replay();
    };
    // Above what the model's table gives for the share that is asked for: how much of a prompt stays is the prompt's own.
    const auto by_threshold = [](const layer_prompt& p, const eviction_request& r) {
        const index_t safe = r.protect.prefix() + r.protect.suffix();
        const double share = static_cast<double>(r.budget.tokens - safe) /
                             static_cast<double>(std::max<index_t>(1, p.tokens - safe));
        return kvtrim::layer_wise{kvtrim::eviction_policy{
            kvtrim::replayed{}, kvtrim::above_threshold{p.profile->budgets().threshold_of(share)},
            kvtrim::by_importance{}}};
    };
    static const std::vector<named_policy> policies{
        having_options([](policy_options& o) { return named("snapkv", kvtrim::snapkv(attention_of(o))); }),
        having_options([](policy_options& o) {
            return named("ada_snapkv",
                         kvtrim::ada_snapkv(attention_of(o),
                                            kvtrim::adaptive{.safeguard_ratio = safeguard_of(
                                                                 o, kvtrim::adaptive{}.safeguard_ratio)}));
        }),
        having_options(
            [](policy_options& o) { return named("criticalkv", kvtrim::criticalkv(critical_of(o))); }),
        critical_gram(),
        having_options([](policy_options& o) {
            return named("ada_criticalkv", kvtrim::ada_criticalkv(critical_of(o)));
        }),
        having_options(
            [](policy_options& o) { return named("defensivekv", kvtrim::defensivekv(defensive_of(o, {}))); }),
        having_options([](policy_options& o) {
            kvtrim::consensuskv_config c{.attention = attention_of(o)};
            o.set("lambda", c.lambda);
            return named("consensuskv", kvtrim::consensuskv(c));
        }),
        named("consensuskv_shared", kvtrim::consensuskv_shared()),
        having_options([](policy_options& o) {
            return layer_wise(
                "layer_ada_snapkv",
                kvtrim::layer_ada_snapkv(attention_of(o), safeguard_of(o, kvtrim::layer_safeguard_ratio)));
        }),
        having_options([](policy_options& o) {
            return layer_wise("layer_defensivekv",
                              kvtrim::layer_defensivekv(
                                  defensive_of(o, {.safeguard_ratio = kvtrim::layer_safeguard_ratio})));
        }),
        named_over_layers("pyramidkv", kvtrim::pyramidkv()),
        cake_policy(),
        named("tova", kvtrim::tova()),
        named("h2o", kvtrim::h2o(), observed::whole_prompt),
        of_queries_before_rope(
            "expected_attention",
            [](const model_config& c, const kvtrim::rope&) {
                return kvtrim::query_statistics(c.q_heads, c.head_dim);
            },
            [](const kvtrim::query_statistics& s, const kvtrim::rope& r) {
                return kvtrim::expected_attention(s, r);
            }),
        of_queries_before_rope(
            "triattention",
            [](const model_config& c, const kvtrim::rope& r) {
                return kvtrim::query_pair_means(c.q_heads, c.head_dim, r);
            },
            [](const kvtrim::query_pair_means& m, const kvtrim::rope& r) {
                return kvtrim::triattention(m, r);
            }),
        having_options([](policy_options& o) {
            kvtrim::rkv_config c;
            o.set("search_tokens", c.search_tokens);
            return named("rkv", kvtrim::rkv(c));
        }),
        lagkv(),
        named("streaming_llm", kvtrim::streaming_llm()),
        named("key_norm", kvtrim::key_norm()),
        named("key_diff", kvtrim::key_diff()),
        key_diff_before_rope(),
        named("random", kvtrim::random()),
        having_options(
            [](policy_options& o) { return named("dropkv", kvtrim::dropkv({}, safeguard_of(o, 0))); }),
        having_options([](policy_options& o) {
            return layer_dropkv("layer_dropkv", token_loss::output_square_sum, safeguard_of(o, 0));
        }),
        having_options(replay_policy),
        of_pass("replay_output", scoring_pass::replay, token_loss::output_square_sum, by_all_rows),
        having_options([=](policy_options& o) {
            named_policy p =
                of_pass("replay_afar", scoring_pass::both, token_loss::output_square_sum, by_all_rows);
            o.set("nearest", p.nearest);
            o.set("weight", p.own_weight);
            return p;
        }),
        of_pass("replay_threshold", scoring_pass::replay, token_loss::output_square_sum, by_threshold, true),
        having_options([](policy_options& o) {
            index_t nearest = afar_tokens;
            o.set("nearest", nearest);
            const double safeguard = safeguard_of(o, 0);
            named_policy p = of_pass("layer_afar", scoring_pass::own, token_loss::output_square_sum,
                                     [=](const layer_prompt&, const eviction_request&) {
                                         return kvtrim::layer_afar(nearest, safeguard);
                                     });
            p.nearest = nearest;
            return p;
        }),
        having_options([](policy_options& o) {
            index_t nearest = afar_tokens;
            o.set("nearest", nearest);
            named_policy p = of_pass(
                "profiled", scoring_pass::own, token_loss::output_square_sum,
                [=](const layer_prompt& prompt, const eviction_request&) {
                    return kvtrim::profiled(prompt.profile->budgets(), nearest);
                },
                true);
            p.nearest = nearest;
            return p;
        }),
        profiled_policy("profiled_key_diff", kvtrim::key_diff_score{}),
        profiled_policy("profiled_random", kvtrim::random_score{}),
        having_options(
            [](policy_options& o) { return by_shares("snapkv_by_shares", kvtrim::snapkv(attention_of(o))); }),
        having_options([](policy_options& o) {
            return by_shares("defensivekv_by_shares", kvtrim::defensivekv(defensive_of(o, {})));
        }),
    };
    return policies;
}

const named_policy& policy_named(const std::string& text) {
    static std::map<std::string, named_policy> variants;
    const std::size_t colon = text.find(':');
    const std::string name = text.substr(0, colon);
    for (const named_policy& p : all_policies()) {
        if (p.name != name) { continue; }
        if (colon == text.npos) { return p; }
        if (!p.with_options) { throw std::invalid_argument(name + " has no options"); }
        const auto [at, is_new] = variants.try_emplace(text);
        if (!is_new) { return at->second; }
        try {
            policy_options given(std::string_view(text).substr(colon + 1));
            named_policy made = p.with_options(given);
            given.require_known();
            made.name = text;
            return at->second = std::move(made);
        } catch (const std::invalid_argument& error) {
            variants.erase(at);
            throw std::invalid_argument(name + ": " + error.what());
        }
    }
    throw std::invalid_argument("unknown policy " + name);
}

} // namespace lm
