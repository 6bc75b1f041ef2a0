// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#include "parity_plans.hpp"

#include "cache.hpp"
#include "require.hpp"

#include <kvtrim/kvtrim.hpp>

#include <algorithm>
#include <numeric>
#include <utility>

namespace lm {
namespace {

using kept_rows = std::vector<std::vector<index_t>>;

// Rows of a plan for tokens from `first` on, behind those that are there.
void append(const kvtrim::keep_plan& plan, index_t first, kept_rows& rows) {
    for (index_t h = 0; h < plan.rows(); ++h) {
        auto& row = rows.emplace_back();
        for (const auto token : plan.row(h)) { row.push_back(first + token); }
    }
}

// Keys and values, and the newest queries.
auto inputs_of(const attention_inputs& in, index_t queries) {
    const index_t tokens = in.keys.tokens();
    return kvtrim::layer(cache_rows(in.keys, 0, tokens), cache_rows(in.values, 0, tokens))
        .with_queries(rows_of(in.queries, tokens - queries, queries));
}

template <class Policy, class Inputs>
kept_rows each_layer(const Policy& policy, const std::vector<Inputs>& layers,
                     const kvtrim::eviction_request& request) {
    kept_rows rows;
    kvtrim::growing_workspace memory;
    for (const Inputs& in : layers) {
        kvtrim::keep_plan plan;
        require(policy.plan(in, request, plan, memory));
        append(plan, 0, rows);
    }
    return rows;
}

template <class Policy, class Inputs>
kept_rows all_layers(const Policy& policy, const std::vector<Inputs>& layers,
                     const kvtrim::eviction_request& request) {
    kept_rows rows;
    kvtrim::growing_workspace memory;
    std::vector<kvtrim::keep_plan> plans(layers.size());
    require(policy.plan(std::span<const Inputs>(layers), request, std::span(plans), memory));
    for (const kvtrim::keep_plan& plan : plans) { append(plan, 0, rows); }
    return rows;
}

kept_rows in_chunks(std::span<const attention_inputs> layers, index_t chunk_tokens, double share) {
    kept_rows rows;
    kvtrim::growing_workspace memory;
    for (const attention_inputs& in : layers) {
        kept_rows whole(static_cast<std::size_t>(in.keys.heads()));
        for (index_t first = 0; first < in.keys.tokens(); first += chunk_tokens) {
            const index_t count = std::min(chunk_tokens, in.keys.tokens() - first);
            kvtrim::keep_plan plan;
            require(kvtrim::key_diff().plan(kvtrim::layer(cache_rows(in.keys, first, count)),
                                            {.budget = kvtrim::per_head(kvtrim::kept_tokens(count, share))},
                                            plan, memory));
            kept_rows chunk;
            append(plan, first, chunk);
            for (std::size_t h = 0; h < whole.size(); ++h) {
                whole[h].insert(whole[h].end(), chunk[h].begin(), chunk[h].end());
            }
        }
        rows.insert(rows.end(), whole.begin(), whole.end());
    }
    return rows;
}

kept_rows in_blocks(std::span<const attention_inputs> layers, index_t block_tokens, index_t kept) {
    kept_rows rows;
    kvtrim::growing_workspace memory;
    for (const attention_inputs& in : layers) {
        kept_rows held(static_cast<std::size_t>(in.keys.heads()),
                       std::vector<index_t>(static_cast<std::size_t>(kept)));
        for (auto& row : held) { std::iota(row.begin(), row.end(), 0); }
        for (index_t first = kept; first < in.keys.tokens(); first += block_tokens) {
            const index_t count = std::min(block_tokens, in.keys.tokens() - first);
            head_tensor keys(in.keys.heads(), kept + count, in.keys.head_dim());
            for (index_t h = 0; h < keys.heads(); ++h) {
                auto& row = held[static_cast<std::size_t>(h)];
                for (index_t t = first; t < first + count; ++t) { row.push_back(t); }
                for (index_t r = 0; r < keys.tokens(); ++r) {
                    keys.head(h).row(r) = in.keys.head(h).row(row[static_cast<std::size_t>(r)]);
                }
            }
            kvtrim::keep_plan plan;
            require(kvtrim::key_diff().plan(kvtrim::layer(cache_rows(keys, 0, keys.tokens())),
                                            {.budget = kvtrim::per_head(kept)}, plan, memory));
            for (index_t h = 0; h < keys.heads(); ++h) {
                auto& row = held[static_cast<std::size_t>(h)];
                std::size_t next = 0;
                for (const auto r : plan.row(h)) { row[next++] = row[static_cast<std::size_t>(r)]; }
                row.resize(next);
            }
        }
        rows.insert(rows.end(), held.begin(), held.end());
    }
    return rows;
}

// A table as one would read it from a file: from half of an even share to one and a half.
std::vector<double> uneven_shares(index_t rows) {
    std::vector<double> shares;
    for (index_t r = 0; r < rows; ++r) {
        shares.push_back(0.5 + static_cast<double>(r * 37 % rows) / static_cast<double>(rows - 1));
    }
    return shares;
}

std::vector<kvtrim::replay_scores> replayed_scores(std::span<const attention_inputs> layers,
                                                   std::span<const replayed_part> replays, bool only_part,
                                                   index_t sink_tokens) {
    std::vector<kvtrim::replay_scores> scores;
    kvtrim::growing_workspace memory;
    for (std::size_t l = 0; l < layers.size(); ++l) {
        scores.emplace_back(layers[l].keys.heads(), layers[l].keys.tokens());
        for (const replayed_part& part : replays) {
            kv_cache cache = whole_cache(layers[l]);
            cache.append(part.layers[l].keys, part.layers[l].values);
            const kvtrim::replay_part seen =
                only_part ? kvtrim::replay_part{{part.first, part.first + part.count}, sink_tokens}
                          : kvtrim::replay_part{};
            require(scores.back().add(
                kvtrim::layer(cache.keys(), cache.values()).with_queries(rows_of(part.layers[l].queries)), {},
                memory, seen));
        }
    }
    return scores;
}

} // namespace

std::vector<replayed_part> replay_prompt(const llama_model& model, const std::vector<token_id>& prompt,
                                         std::span<const attention_inputs> layers,
                                         const std::vector<token_id>& lead) {
    std::vector<replayed_part> parts;
    const auto replay = [&](index_t first, index_t count) {
        std::vector<token_id> fed = lead;
        fed.insert(fed.end(), prompt.begin() + first, prompt.begin() + first + count);
        replayed_part& part = parts.emplace_back(replayed_part{first, count, {}});
        const auto attend = [&](index_t layer, attention_inputs inputs) {
            kv_cache cache = whole_cache(layers[static_cast<std::size_t>(layer)]);
            cache.append(inputs.keys, inputs.values);
            matrix attended = cache.attend(inputs.queries);
            part.layers.push_back(std::move(inputs));
            return attended;
        };
        forward(model, fed, std::ssize(prompt), attend, logit_rows::none);
    };
    const index_t tokens = std::ssize(prompt), part_tokens = 512;
    replay(0, tokens);
    for (index_t first = 0; first < tokens; first += part_tokens) {
        replay(first, std::min(part_tokens, tokens - first));
    }
    return parts;
}

std::vector<parity_plan> parity_plans(const model_config& config, std::span<const attention_inputs> layers,
                                      std::span<const replayed_part> replays,
                                      const quality_request& request) {
    const index_t tokens = layers.front().keys.tokens(), window = request.window_tokens;
    const auto by_window = [](const auto& allocator, const auto& reranker) {
        return kvtrim::eviction_policy{kvtrim::window_attention{kvtrim::mean_attention{}}, allocator,
                                       reranker};
    };
    const auto replay_scores = [&](std::span<const replayed_part> parts, bool only_part) {
        return replayed_scores(layers, parts, only_part, request.sink_tokens);
    };
    const std::pair<const char*, std::vector<kvtrim::replay_scores>> replayed[] = {
        {"replay", replay_scores(replays.first(1), false)},
        {"replay_in_parts", replay_scores(replays.subspan(1), false)},
        {"replay_of_parts", replay_scores(replays.subspan(1), true)}};
    const std::vector<double> shares = uneven_shares(config.layers * config.kv_heads);
    std::vector<decltype(inputs_of(layers.front(), window))> windows, prompts;
    for (const attention_inputs& in : layers) {
        windows.push_back(inputs_of(in, window));
        prompts.push_back(inputs_of(in, tokens));
    }

    std::vector<parity_plan> plans;
    for (const double share : request.kept_ratios) {
        const index_t kept = kvtrim::kept_tokens(tokens, share);
        const kvtrim::eviction_request cut{.budget = kvtrim::per_head(kept),
                                           .protect = {.window_tokens = window}};
        kvtrim::eviction_request with_sinks = cut;
        with_sinks.protect.sink_tokens = request.sink_tokens;
        const auto add = [&](std::string policy, const kvtrim::eviction_request& by, kept_rows rows) {
            plans.push_back(
                {policy, share, by.protect.sink_tokens, by.protect.window_tokens, std::move(rows)});
        };
        add("observed_attention", cut, each_layer(kvtrim::observed_attention(), prompts, cut));
        add("chunked", cut, each_layer(by_window(kvtrim::uniform{}, kvtrim::chunked{}), windows, cut));
        add("key_diff_in_blocks", {}, in_blocks(layers, 128, kept));
        add("key_diff_in_chunks", {}, in_chunks(layers, 1024, share));
        add("snapkv_by_shares", cut,
            all_layers(kvtrim::with_layer_shares(kvtrim::snapkv(), shares), windows, cut));
        plans.back().shares = shares;
        // Attention in units of what a token would have if all had the same.
        const auto threshold = static_cast<float>(0.05 / share / static_cast<double>(tokens));
        kvtrim::eviction_request unbounded = cut;
        unbounded.budget = kvtrim::per_head(tokens);
        add("snapkv_above_threshold", unbounded,
            each_layer(by_window(kvtrim::above_threshold{threshold}, kvtrim::by_importance{}), windows,
                       unbounded));
        plans.back().threshold = static_cast<double>(threshold);
        for (const auto& [name, scores] : replayed) {
            add(name, with_sinks, each_layer(kvtrim::replay(), scores, with_sinks));
            add("layer_" + std::string(name), with_sinks,
                all_layers(kvtrim::layer_replay(), scores, with_sinks));
        }
    }
    return plans;
}

} // namespace lm
