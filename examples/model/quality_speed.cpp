// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#include "quality_speed.hpp"

#include "seconds_since.hpp"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <functional>
#include <numeric>
#include <stdexcept>

namespace lm {
namespace {

class stopwatch {
  public:
    [[nodiscard]] double seconds() const { return seconds_since(start_); }
    [[nodiscard]] double processor_seconds() const {
        return static_cast<double>(std::clock() - clock_) / CLOCKS_PER_SEC;
    }

  private:
    std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
    std::clock_t clock_ = std::clock();
};

// Rows of the cache that an earlier plan has left, for a plan of the whole one.
std::vector<kvtrim::keep_plan> within(const std::vector<kvtrim::keep_plan>& plans,
                                      const std::vector<kvtrim::keep_plan>& earlier) {
    std::vector<kvtrim::keep_plan> inner(plans.size());
    for (std::size_t l = 0; l < plans.size(); ++l) {
        std::vector<std::vector<std::int32_t>> rows;
        std::vector<kvtrim::index_t> counts;
        for (index_t h = 0; h < plans[l].rows(); ++h) {
            const auto left = earlier[l].row(h);
            std::vector<std::int32_t>& row = rows.emplace_back();
            for (const std::int32_t kept : plans[l].row(h)) {
                const auto at = std::lower_bound(left.begin(), left.end(), kept);
                if (at != left.end() && *at == kept) {
                    row.push_back(static_cast<std::int32_t>(at - left.begin()));
                }
            }
            counts.push_back(std::ssize(row));
        }
        if (!inner[l].reset(counts).ok()) { throw std::bad_alloc(); }
        for (index_t h = 0; h < plans[l].rows(); ++h) {
            std::copy(rows[static_cast<std::size_t>(h)].begin(), rows[static_cast<std::size_t>(h)].end(),
                      inner[l].writable_row(h).begin());
        }
    }
    return inner;
}

decode_speed time_decoding(session& sequence, std::span<const token_id> next, index_t steps) {
    decode_speed row;
    (void)sequence.step(next.first(1)); // memory of this size is touched for the first time
    const stopwatch time;
    for (index_t i = 1; i <= steps; ++i) {
        (void)sequence.step(next.subspan(static_cast<std::size_t>(i % std::ssize(next)), 1));
    }
    row.tokens_per_second = static_cast<double>(steps) / time.seconds();
    row.processor_seconds = time.processor_seconds() / static_cast<double>(steps);
    row.cache_bytes = sequence.cache_bytes();
    row.resident_bytes = resident_bytes();
    return row;
}

// Values of a sample's questions that are right after a prefill.
std::vector<bool> answers(const llama_model& model, const needle_sample& sample,
                          const quality_request& request, block_pruning* pruning) {
    session sequence(model, request.format, std::ssize(sample.context));
    (void)sequence.prefill(sample.context, 1, {}, pruning);
    std::vector<bool> all;
    for (const asked_question& q : sample.questions) {
        const std::vector<bool> right = right_values(model, sequence.copy(), sequence.tokens(), q);
        all.insert(all.end(), right.begin(), right.end());
    }
    return all;
}

void ask(const speed_peer& peer, const running_text& text, index_t steps, peer_speed& row) {
    std::string name = (std::filesystem::temp_directory_path() / "kvtrim-XXXXXX").string();
    const int made = mkstemp(name.data());
    if (made < 0) { throw std::runtime_error(name + ": cannot be written"); }
    ::close(made);
    std::ofstream out(name);
    for (const auto* tokens : {&text.context, &text.next}) {
        for (const token_id token : *tokens) { out << token << '\n'; }
    }
    out.close();
    const std::string command = fmt::format("{} --tokens '{}' --prompt {} --steps {}", peer.command, name,
                                            text.context.size(), steps);
    std::string answer;
    FILE* const pipe = popen(command.c_str(), "r");
    char part[256];
    while (pipe != nullptr && std::fgets(part, sizeof part, pipe) != nullptr) { answer += part; }
    const int failed = pipe == nullptr ? -1 : pclose(pipe);
    std::filesystem::remove(name);
    if (failed != 0) { throw std::runtime_error(command + ": failed"); }
    const nlohmann::json said = nlohmann::json::parse(answer);
    row.seconds.push_back(said.at("first_token_seconds"));
    row.tokens_per_second.push_back(said.at("tokens_per_second"));
    row.resident_bytes = said.at("resident_bytes");
}

} // namespace

speed_results measure_speed(const llama_model& model, const sample_source& source,
                            const quality_request& samples, const speed_request& request,
                            const quality_progress& progress) {
    speed_results results;
    std::vector<std::pair<index_t, std::string>> every{{0, ""}}; // budget and options
    for (const std::string& options : request.prefill_options) {
        for (const index_t budget : request.prefill_budgets) { every.emplace_back(budget, options); }
    }
    for (const auto& [budget, options] : every) { (void)block_pruning(budget, options); } // refused now
    const auto prefills =
        std::ssize(samples.tokens) * samples.samples * (std::ssize(every) + std::ssize(request.peers));
    index_t done = 0;
    for (const index_t tokens : samples.tokens) {
        const auto first_row = results.prefill.size();
        for (const auto& [budget, options] : every) {
            results.prefill.push_back({.tokens = tokens,
                                       .budget_tokens = budget,
                                       .options = options,
                                       .seconds = {},
                                       .processor_seconds = {},
                                       .kl = {},
                                       .right = {},
                                       .asked = {}});
        }
        const auto first_peer = results.peers.size();
        for (const speed_peer& peer : request.peers) {
            results.peers.push_back(
                {.name = peer.name, .tokens = tokens, .seconds = {}, .tokens_per_second = {}});
        }
        for (index_t s = 0; s < samples.samples; ++s) {
            const running_text text =
                source.text(tokens, samples.next_tokens, samples.first_seed + static_cast<std::uint64_t>(s));
            const needle_sample needles = source.needles("multikey", needle_values::numbers, tokens,
                                                         samples.first_seed + static_cast<std::uint64_t>(s));
            matrix dense;
            std::vector<bool> dense_answers;
            for (std::size_t b = 0; b < every.size(); ++b) {
                prefill_speed& row = results.prefill[first_row + b];
                const auto& [budget, options] = every[b];
                progress(done++, prefills,
                         fmt::format("prefill of {} tokens, {} {}", tokens,
                                     budget == 0 ? "dense" : fmt::format("budget {}", budget), options));
                block_pruning pruning(budget, options), same = pruning;
                session sequence(model, samples.format, tokens + request.decode_steps + 1);
                const stopwatch time;
                (void)sequence.prefill(text.context, samples.window_tokens, {},
                                       budget == 0 ? nullptr : &pruning);
                row.seconds.push_back(time.seconds());
                row.processor_seconds.push_back(time.processor_seconds());
                {
                    std::vector<kv_cache> caches = sequence.copy();
                    matrix logits = decode(model, caches, text.next, tokens, logit_rows::all);
                    log_softmax(logits);
                    if (budget == 0) { dense = logits; }
                    row.kl.push_back(mean_kl(dense, logits));
                }
                const std::vector<bool> now = answers(model, needles, samples, budget == 0 ? nullptr : &same);
                if (budget == 0) { dense_answers = now; }
                double right = 0;
                for (std::size_t v = 0; v < now.size(); ++v) { right += now[v] && dense_answers[v] ? 1 : 0; }
                row.right.push_back(right);
                row.asked.push_back(budget == 0 ? static_cast<double>(now.size())
                                                : results.prefill[first_row].right.back());
                if (budget > 0) { row.pairs_share = pruning.pairs / pruning.dense_pairs; }
                if (budget > 0 || s > 0 || request.decode_steps == 0) { continue; }

                std::vector<double> shares = samples.kept_ratios;
                std::sort(shares.begin(), shares.end(), std::greater<>());
                std::vector<std::vector<kvtrim::keep_plan>> plans;
                for (const double share : shares) {
                    plans.push_back(sequence.plan(policy_named("snapkv"),
                                                  {share, samples.sink_tokens, samples.window_tokens}));
                }
                const auto measure = [&](double share) {
                    progress(done, prefills,
                             fmt::format("decoding with {:g} % of {} tokens", share * 100, tokens));
                    results.decode.push_back(time_decoding(sequence, text.next, request.decode_steps));
                    results.decode.back().tokens = tokens;
                    results.decode.back().kept_ratio = share;
                };
                measure(1);
                for (std::size_t k = 0; k < shares.size(); ++k) {
                    sequence.cut(k == 0 ? plans[0] : within(plans[k], plans[k - 1]),
                                 request.decode_steps + 1);
                    measure(shares[k]);
                }
            }
            for (std::size_t i = 0; i < request.peers.size(); ++i) {
                progress(done++, prefills, fmt::format("{}, {} tokens", request.peers[i].name, tokens));
                ask(request.peers[i], text, request.decode_steps, results.peers[first_peer + i]);
            }
        }
    }
    progress(done, prefills, "done");
    return results;
}

nlohmann::json json_of(const speed_results& results) {
    nlohmann::json prefill = nlohmann::json::array(), decode = prefill, peers = prefill;
    for (const prefill_speed& row : results.prefill) {
        prefill.push_back({{"tokens", row.tokens},
                           {"budget_tokens", row.budget_tokens},
                           {"options", row.options},
                           {"pairs_share", row.pairs_share},
                           {"seconds", row.seconds},
                           {"processor_seconds", row.processor_seconds},
                           {"kl", row.kl},
                           {"right", row.right},
                           {"asked", row.asked}});
    }
    for (const decode_speed& row : results.decode) {
        decode.push_back({{"tokens", row.tokens},
                          {"kept_ratio", row.kept_ratio},
                          {"tokens_per_second", row.tokens_per_second},
                          {"processor_seconds_per_token", row.processor_seconds},
                          {"cache_bytes", row.cache_bytes},
                          {"resident_bytes", row.resident_bytes}});
    }
    for (const peer_speed& row : results.peers) {
        peers.push_back({{"name", row.name},
                         {"tokens", row.tokens},
                         {"seconds", row.seconds},
                         {"tokens_per_second", row.tokens_per_second},
                         {"resident_bytes", row.resident_bytes}});
    }
    return {{"prefill", prefill}, {"decode", decode}, {"peers", peers}};
}

std::string tables_of(const speed_results& results) {
    std::string out = "| prompt | prefill budget | pairs | first token | processor time | KL of the next "
                      "tokens | needles |\n"
                      "|---|---|---|---|---|---|---|\n";
    for (const prefill_speed& row : results.prefill) {
        out += fmt::format(
            "| {} | {} | {:.1f} % | {:.2f} s | {:.2f} s | {:.4f} ± {:.4f} | {:.0f} of {:.0f} |\n", row.tokens,
            row.budget_tokens == 0 ? "dense" : fmt::format("{} {}", row.budget_tokens, row.options),
            100 * row.pairs_share, mean_of(row.seconds).mean, mean_of(row.processor_seconds).mean,
            mean_of(row.kl).mean, mean_of(row.kl).standard_error,
            std::accumulate(row.right.begin(), row.right.end(), 0.0),
            std::accumulate(row.asked.begin(), row.asked.end(), 0.0));
    }
    if (results.decode.empty()) { return out; }
    out += "\n| prompt | kept | tokens per second | processor time per token | cache | process "
           "|\n|---|---|---|---|---|---|\n";
    for (const decode_speed& row : results.decode) {
        out += fmt::format("| {} | {:g} % | {:.1f} | {:.1f} ms | {:.1f} MB | {:.1f} MB |\n", row.tokens,
                           100 * row.kept_ratio, row.tokens_per_second, 1e3 * row.processor_seconds,
                           1e-6 * static_cast<double>(row.cache_bytes),
                           1e-6 * static_cast<double>(row.resident_bytes));
    }
    if (results.peers.empty()) { return out; }
    out += "\n| peer, whole cache | prompt | first token | tokens per second | process "
           "|\n|---|---|---|---|---|\n";
    for (const peer_speed& row : results.peers) {
        out += fmt::format("| {} | {} | {:.2f} s | {:.1f} | {:.1f} MB |\n", row.name, row.tokens,
                           mean_of(row.seconds).mean, mean_of(row.tokens_per_second).mean,
                           1e-6 * static_cast<double>(row.resident_bytes));
    }
    return out;
}

} // namespace lm
