// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// An engine that hands out scores per token and frees whole blocks, equally many in every layer (OpenVINO GenAI). kvtrim reads
// no key; what it returns are logical block indices, ascending.
#include <kvtrim/policy/blocks.hpp>

#include <cstdio>
#include <vector>

namespace {

using namespace kvtrim;

constexpr index_t layers = 4, block_tokens = 16, tokens = 300, kept_blocks = 8;
constexpr index_t blocks = (tokens + block_tokens - 1) / block_tokens; // the last one is partial

} // namespace

int main() {
    std::vector<float> scores(layers * blocks);
    const strided by_layer(scores.data(), {layers, blocks});
    for (index_t l = 0; l < layers; ++l) {
        std::vector<float> of_tokens(tokens, 0.01f);
        of_tokens[static_cast<std::size_t>(64 + 32 * l)] = 1; // one token that matters, in block 4 + 2 l
        const status scored =
            score_blocks(of_tokens, block_tokens, block_reduction::sum,
                         std::span(scores).subspan(static_cast<std::size_t>(l * blocks), blocks));
        if (!scored.ok()) { return std::puts(scored.what()), 1; }
    }
    const protection start_and_recent{.sink_tokens = 2, .window_tokens = 3}; // in blocks
    keep_plan plan;
    growing_workspace memory;
    workspace scratch = memory.of_bytes(plan_blocks_bytes(by_layer, kept_blocks, start_and_recent));
    const status s = plan_blocks(by_layer, kept_blocks, start_and_recent, plan, scratch);
    if (!s.ok()) { return std::puts(s.what()), 1; }

    bool is_right = plan.rows() == layers;
    for (index_t l = 0; l < layers; ++l) {
        std::vector<bool> is_evicted(blocks); // what the engine's block manager is told
        index_t freed = 0;
        const status listed = evicted_blocks(plan, l, blocks, [&](token_range range) {
            for (index_t b = range.begin; b < range.end; ++b) {
                is_evicted[static_cast<std::size_t>(b)] = true;
            }
            freed += range.size();
        });
        is_right = is_right && listed.ok() && freed == blocks - kept_blocks && !is_evicted[0] &&
                   !is_evicted[1] && !is_evicted[blocks - 1] && !is_evicted[blocks - 3] &&
                   !is_evicted[static_cast<std::size_t>(4 + 2 * l)];
    }
    std::printf("%d layers free %d of %d blocks each, %s\n", static_cast<int>(layers),
                static_cast<int>(blocks - kept_blocks), static_cast<int>(blocks),
                is_right ? "none that matters" : "WRONG");
    return is_right ? 0 : 1;
}
