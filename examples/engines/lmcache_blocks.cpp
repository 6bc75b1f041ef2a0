// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Token dropping beside LMCache: a server holds one request's cache in shared memory, as [blocks, 2, heads, block_tokens,
// head_dim] per layer, and the queries of its prompt as [tokens, q_heads * head_dim]; a process of its own decides which
// tokens stay, closes the blocks up in place and turns the keys to their new positions. The shorter cache is stored under
// the tokens that stayed, in whole chunks, so there is one token set for all layers, of a whole number of chunks.
#include "numbers.hpp"

#include <kvtrim/cache/paged_rows.hpp>
#include <kvtrim/compact/cell_scores.hpp>
#include <kvtrim/compact/move_rows.hpp>
#include <kvtrim/compact/plan_page_moves.hpp>
#include <kvtrim/compact/rerotate_keys.hpp>
#include <kvtrim/policy/snapkv.hpp>

#include <sys/mman.h>
#include <sys/wait.h>

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <string>
#include <vector>

namespace {

using namespace kvtrim;

constexpr index_t layers = 2, q_heads = 4, kv_heads = 2, head_dim = 32, block_tokens = 16, blocks = 24;
constexpr index_t chunk_tokens = 64, tokens = 320, window = 16;
constexpr index_t block_numbers = kv_heads * block_tokens * head_dim; // of K, and of V
constexpr index_t cache_numbers = blocks * 2 * block_numbers, query_numbers = tokens * q_heads * head_dim;

// Where the server keeps the request's tokens: 20 blocks, scattered.
std::vector<std::int32_t> request_blocks() {
    std::vector<std::int32_t> out;
    for (std::int32_t b = 0; b < tokens / block_tokens; ++b) { out.push_back((5 + 7 * b) % blocks); }
    return out;
}

// The hand-over: caches of all layers, their queries, and then the answer.
struct shared_memory {
    float caches[layers][cache_numbers];
    float queries[layers][query_numbers];
    index_t kept_count;
    std::int32_t kept[tokens]; // ordinals of the tokens that stay

    void fill() {
        for (std::uint32_t l = 0; l < layers; ++l) {
            std::ranges::copy(numbers(cache_numbers, l), caches[l]);
            std::ranges::copy(numbers(query_numbers, 10 + l), queries[l]);
        }
        kept_count = 0;
    }
    // Key (which = 0) or value (1) of a token.
    [[nodiscard]] const float* row(index_t l, int which, index_t head, index_t token) const {
        const std::int32_t block = request_blocks()[static_cast<std::size_t>(token / block_tokens)];
        return caches[l] + (2 * block + which) * block_numbers + head * block_tokens * head_dim +
               token % block_tokens * head_dim;
    }
};

std::vector<float> frequencies() {
    std::vector<float> out;
    for (index_t i = 0; i < head_dim / 2; ++i) {
        out.push_back(static_cast<float>(std::pow(10000.0, -2.0 * static_cast<double>(i) / head_dim)));
    }
    return out;
}

page_layout block_layout() {
    page_layout layout = hnd_pages(block_tokens, kv_heads, head_dim, blocks);
    layout.page_stride *= 2; // the other half of a block is V
    return layout;
}

// The tokens that stay: half of them, in whole chunks, by the sum of all layers' scores.
status choose(shared_memory& m, const page_table& table, keep_plan& out) {
    const cell_scores::request asked{.tokens = tokens,
                                     .kept_tokens = tokens / 2 / chunk_tokens * chunk_tokens,
                                     .protect = {.sink_tokens = 4, .window_tokens = window},
                                     .reduction = head_reduction::sum};
    growing_workspace fold_memory, memory;
    workspace fold_scratch = fold_memory.of_bytes(asked.workspace_bytes());
    cell_scores fold(asked, fold_scratch);
    status s = fold.validate();
    for (index_t l = 0; l < layers && s.ok(); ++l) {
        const page_layout layout = block_layout();
        const paged_rows<float> keys(m.caches[l], layout, table, 0, kv_heads, head_dim);
        const paged_rows<float> values(m.caches[l] + block_numbers, layout, table, 0, kv_heads, head_dim);
        // The newest queries, token-major as they were handed over.
        const strided queries(m.queries[l] + (tokens - window) * q_heads * head_dim,
                              {q_heads, window, head_dim}, {head_dim, q_heads * head_dim, 1});
        s = fold.add(snapkv(), layer(keys, values).with_queries(queries), {}, memory);
    }
    return s.ok() ? fold.plan(out) : s;
}

// The process that drops tokens.
status drop_tokens(shared_memory& m) {
    const auto indices = request_blocks();
    const std::int32_t indptr[] = {0, static_cast<std::int32_t>(indices.size())};
    const std::int32_t last_page_len[] = {block_tokens};
    const page_table table{indptr, indices, last_page_len};
    keep_plan plan;
    if (const status s = choose(m, table, plan); !s.ok()) { return s; }

    // In order, so that token i of the shorter cache stands in block i / block_tokens.
    const page_pool pool{.pages = blocks, .page_tokens = block_tokens};
    growing_workspace memory;
    workspace scratch = memory.of_bytes(plan_page_moves_bytes(table, pool));
    move_plan moves;
    status s = plan_page_moves(plan, table, pool, {.order = move_order::in_order}, moves, scratch);
    keep_plan of_heads; // the same tokens for every head: the positions that the keys are rotated to
    if (s.ok()) { s = of_heads.reset(std::vector<index_t>(kv_heads, plan.kept_tokens(0))); }
    for (index_t h = 0; h < of_heads.rows(); ++h) {
        std::ranges::copy(plan.row(0), of_heads.writable_row(h).begin());
    }
    const auto table_of_frequencies = frequencies();
    const rope turning{table_of_frequencies};
    for (index_t l = 0; l < layers && s.ok(); ++l) {
        const page_layout layout = block_layout();
        s = move_rows(paged_memory{m.caches[l], layout, kv_heads, head_dim},
                      paged_memory{m.caches[l] + block_numbers, layout, kv_heads, head_dim}, moves);
        if (!s.ok()) { break; }
        const paged_rows keys(m.caches[l], layout, moves.table(), 0, kv_heads, head_dim);
        workspace turn = memory.of_bytes(rerotate_keys_bytes(keys, turning));
        s = rerotate_keys(keys, turning, positions_of(of_heads), turn);
    }
    if (!s.ok()) { return s; }
    std::ranges::copy(plan.row(0), m.kept);
    m.kept_count = plan.kept_tokens(0);
    return {};
}

// Whether every row of the shorter cache is the token that it should be, its key turned to its new position.
bool holds_survivors(const shared_memory& before, const shared_memory& after) {
    double worst = 0;
    const auto turn = frequencies();
    for (index_t l = 0; l < layers; ++l) {
        for (index_t h = 0; h < kv_heads; ++h) {
            for (index_t i = 0; i < after.kept_count; ++i) {
                const index_t token = after.kept[i];
                const float *key = after.row(l, 0, h, i), *old_key = before.row(l, 0, h, token);
                for (index_t d = 0; d < head_dim / 2; ++d) {
                    const double angle = static_cast<double>(i - token) *
                                         static_cast<double>(turn[static_cast<std::size_t>(d)]);
                    const double x = static_cast<double>(old_key[d]),
                                 y = static_cast<double>(old_key[d + head_dim / 2]);
                    worst = std::max(
                        {worst,
                         std::abs(x * std::cos(angle) - y * std::sin(angle) - static_cast<double>(key[d])),
                         std::abs(x * std::sin(angle) + y * std::cos(angle) -
                                  static_cast<double>(key[d + head_dim / 2]))});
                }
                if (!std::equal(after.row(l, 1, h, i), after.row(l, 1, h, i) + head_dim,
                                before.row(l, 1, h, token))) {
                    return false;
                }
            }
        }
    }
    return worst < 1e-5 && after.kept_count % chunk_tokens == 0 && after.kept_count > 0;
}

} // namespace

int main() {
    const std::string name = "/kvtrim_" + std::to_string(getpid());
    const int file = shm_open(name.c_str(), O_CREAT | O_EXCL | O_RDWR, 0600);
    if (file < 0 || ftruncate(file, sizeof(shared_memory)) != 0) { return std::perror(name.c_str()), 1; }
    void* const mapped = mmap(nullptr, sizeof(shared_memory), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    shm_unlink(name.c_str());
    if (mapped == MAP_FAILED) { return std::perror("mmap"), 1; }
    auto* const shared = static_cast<shared_memory*>(mapped);
    shared->fill();
    const std::vector<shared_memory> before(1, *shared);

    const pid_t other = fork();
    if (other < 0) { return std::perror("fork"), 1; }
    if (other == 0) {
        const status s = drop_tokens(*shared);
        if (!s.ok()) { std::puts(s.what()); }
        std::fflush(stdout);
        _exit(s.ok() ? 0 : 1);
    }
    int answer = 0;
    if (waitpid(other, &answer, 0) != other || answer != 0) { return std::puts("no answer"), 1; }
    const bool is_right = holds_survivors(before[0], *shared);
    std::printf("%d of %d tokens stay, in whole chunks of %d, %s\n", static_cast<int>(shared->kept_count),
                static_cast<int>(tokens), static_cast<int>(chunk_tokens),
                is_right ? "keys at their new positions" : "WRONG");
    return is_right ? 0 : 1;
}
