// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// An engine that hands out scores per token and frees whole pages, equally many in every layer (OpenVINO GenAI). kvtrim reads
// no key; what it returns are logical page indices, ascending.
#include <kvtrim/policy/plan_pages.hpp>

#include <cstdio>
#include <vector>

namespace {

using namespace kvtrim;

constexpr index_t layers = 4, page_tokens = 16, tokens = 300, kept_pages = 8;
constexpr index_t pages = (tokens + page_tokens - 1) / page_tokens; // the last one is partial

} // namespace

int main() {
    std::vector<float> scores(layers * pages);
    const strided by_layer(scores.data(), {layers, pages});
    for (index_t l = 0; l < layers; ++l) {
        std::vector<float> of_tokens(tokens, 0.01f);
        of_tokens[static_cast<std::size_t>(64 + 32 * l)] = 1; // one token that matters, in page 4 + 2 l
        const status scored =
            score_pages(of_tokens, page_tokens, page_reduction::sum,
                        std::span(scores).subspan(static_cast<std::size_t>(l * pages), pages));
        if (!scored.ok()) { return std::puts(scored.what()), 1; }
    }
    const protection start_and_recent{.sink_tokens = 2, .window_tokens = 3}; // in pages
    keep_plan plan;
    growing_workspace memory;
    workspace scratch = memory.of_bytes(plan_pages_bytes(by_layer, kept_pages, start_and_recent));
    const status s = plan_pages(by_layer, kept_pages, start_and_recent, plan, scratch);
    if (!s.ok()) { return std::puts(s.what()), 1; }

    bool is_right = plan.rows() == layers;
    for (index_t l = 0; l < layers; ++l) {
        std::vector<bool> is_evicted(pages); // what the engine's page manager is told
        index_t freed = 0;
        const status listed = evicted_pages(plan, l, pages, [&](token_range range) {
            for (index_t b = range.begin; b < range.end; ++b) {
                is_evicted[static_cast<std::size_t>(b)] = true;
            }
            freed += range.size();
        });
        is_right = is_right && listed.ok() && freed == pages - kept_pages && !is_evicted[0] &&
                   !is_evicted[1] && !is_evicted[pages - 1] && !is_evicted[pages - 3] &&
                   !is_evicted[static_cast<std::size_t>(4 + 2 * l)];
    }
    std::printf("%d layers free %d of %d pages each, %s\n", static_cast<int>(layers),
                static_cast<int>(pages - kept_pages), static_cast<int>(pages),
                is_right ? "none that matters" : "WRONG");
    return is_right ? 0 : 1;
}
