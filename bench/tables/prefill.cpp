// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// CritiPrefill against dense attention, one layer of the Llama-3.1-8B shape: ./dev table prefill
//
// Measured on two of the eight KV heads (eight query heads). Attention runs on a few segments spread over the
// prompt, dense and sparse by turns, the median of the repetitions each; a segment costs in proportion to its query-key
// pairs, so the rate per pair gives the whole layer. Estimate and plan run on the whole prompt.
// The data are synthetic: spans of 64 tokens share a topic, queries look for the topics of their segment, and the first
// tokens are an attention sink. Kept mass and error say how an estimate ranks such blocks, not what a model keeps.
// One table per element and number of threads; where attention multiplies bf16 as they are (AMX), bf16 is measured unless other
// elements are asked for, and the speed of these products alone is printed beside.

#include "limits.hpp"

#include <kvtrim/policy/critiprefill.hpp>
#include <kvtrim/prefill/block_sparse_attention.hpp>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include <chrono>
#include <cmath>
#include <random>
#include <thread>
#include <type_traits>
#include <vector>

namespace {

using kvtrim::index_t;

constexpr index_t kv_heads = 2;
constexpr index_t group = 4;
constexpr index_t q_heads = kv_heads * group;
constexpr index_t head_dim = 128;
constexpr double layer_share = 4; // eight KV heads in the layer

struct thread_executor {
    index_t threads;
    [[nodiscard]] index_t workers() const { return threads; }
    template <class Fn>
    void operator()(index_t count, Fn&& fn) const {
        std::vector<std::jthread> pool;
        for (index_t i = 1; i < count; ++i) {
            pool.emplace_back([&fn, i] { fn(i); });
        }
        if (count > 0) { fn(index_t{0}); }
    }
};

template <class T>
struct prompt {
    index_t tokens;
    std::vector<T> q, k, v;

    explicit prompt(index_t n) : tokens(n), q(floats(q_heads)), k(floats(kv_heads)), v(floats(kv_heads)) {
        std::mt19937 random(7);
        std::normal_distribution<float> normal;
        constexpr std::size_t topics = 64, span = 64, looked_for = 3, dim = head_dim;
        std::vector<float> topic((topics + 1) * dim); // the last one is the sink's
        for (float& x : topic) { x = normal(random); }
        std::vector<std::size_t> topic_of(static_cast<std::size_t>(n) / span + 1);
        for (auto& t : topic_of) { t = random() % topics; }
        const auto set = [](T& to, float x) { to = kvtrim::element_traits<T>::from_float(x); };
        const auto count = static_cast<std::size_t>(n);
        for (std::size_t h = 0; h < kv_heads; ++h) {
            for (std::size_t t = 0; t < count; ++t) {
                const std::size_t own = t < 4 ? topics : topic_of[t / span];
                for (std::size_t d = 0; d < dim; ++d) {
                    const std::size_t i = (h * count + t) * dim + d;
                    set(k[i], 0.7f * topic[own * dim + d] + 0.7f * normal(random));
                    set(v[i], normal(random));
                }
            }
        }
        for (std::size_t h = 0; h < q_heads; ++h) {
            std::size_t wanted[looked_for] = {};
            for (std::size_t t = 0; t < count; ++t) {
                if (t % 256 == 0) { // neighbours look for the same topics, one of them their own
                    for (auto& w : wanted) { w = topic_of[random() % (t / span + 1)]; }
                    wanted[0] = topic_of[t / span];
                }
                const std::size_t own = wanted[random() % looked_for];
                for (std::size_t d = 0; d < dim; ++d) {
                    set(q[(h * count + t) * dim + d],
                        0.9f * topic[own * dim + d] + 0.4f * topic[topics * dim + d] + 0.5f * normal(random));
                }
            }
        }
    }

    [[nodiscard]] kvtrim::strided<const T, 3> queries() const {
        return {q.data(), {q_heads, tokens, head_dim}};
    }
    [[nodiscard]] kvtrim::strided<const T, 3> queries(index_t first, index_t count) const {
        return {q.data() + first * head_dim, {q_heads, count, head_dim}, {tokens * head_dim, head_dim, 1}};
    }
    [[nodiscard]] kvtrim::strided<const T, 3> keys() const {
        return {k.data(), {kv_heads, tokens, head_dim}};
    }
    [[nodiscard]] kvtrim::strided<const T, 3> values() const {
        return {v.data(), {kv_heads, tokens, head_dim}};
    }

  private:
    [[nodiscard]] std::size_t floats(index_t heads) const {
        return static_cast<std::size_t>(heads * tokens * head_dim);
    }
};

void require(const kvtrim::status& s) {
    if (!s.ok()) { throw std::runtime_error(s.what()); }
}

template <class Fn>
double seconds(Fn&& fn) {
    const auto start = std::chrono::steady_clock::now();
    fn();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> x) {
    const auto middle = x.begin() + static_cast<std::ptrdiff_t>(x.size() / 2);
    std::nth_element(x.begin(), middle, x.end());
    return *middle;
}

// Half the distance between the quartiles over the median.
double spread(std::vector<double> x) {
    std::sort(x.begin(), x.end());
    const std::size_t quarter = x.size() / 4;
    return (x[x.size() - 1 - quarter] - x[quarter]) / 2 / median(x);
}

struct setup {
    index_t repetitions = 5;
    index_t samples = 5;
    index_t threads = 1;
};

// One segment, dense and sparse by turns.
struct segment_times {
    double dense_pairs = 0, sparse_pairs = 0;
    std::vector<double> dense, sparse;
    double kept_mass = 0, error = 0;
};

template <class T>
segment_times measure_segment(const prompt<T>& data, const kvtrim::prune_plan& plan, index_t segment,
                              const setup& s) {
    const kvtrim::segment_grid whole = plan.grid();
    kvtrim::segment_grid grid = whole;
    grid.first_token = whole.begin(segment);
    grid.end_token = whole.end(segment);
    kvtrim::prune_plan dense, sparse;
    require(kvtrim::plan_dense(grid, kv_heads, dense));
    std::vector<index_t> counts;
    for (index_t g = 0; g < kv_heads; ++g) {
        counts.push_back(static_cast<index_t>(plan.row(g, segment).size()));
    }
    require(sparse.reset(grid, kv_heads, counts));
    for (index_t g = 0; g < kv_heads; ++g) {
        std::copy(plan.row(g, segment).begin(), plan.row(g, segment).end(),
                  sparse.writable_row(g, 0).begin());
    }
    const auto in =
        kvtrim::layer(data.keys(), data.values()).with_queries(data.queries(grid.first_token, grid.tokens()));
    const auto rows = static_cast<std::size_t>(q_heads * grid.tokens());
    std::vector<float> dense_out(rows * head_dim), sparse_out(dense_out), dense_lse(rows), sparse_lse(rows);
    const auto view = [&](std::vector<float>& out) {
        return kvtrim::strided<float, 3>(out.data(), {q_heads, grid.tokens(), head_dim});
    };
    kvtrim::growing_workspace memory;
    thread_executor ex{s.threads};
    segment_times times;
    times.dense_pairs = dense.planned_pairs();
    times.sparse_pairs = sparse.planned_pairs();
    for (index_t r = 0; r < s.repetitions; ++r) {
        times.dense.push_back(seconds([&] {
            require(kvtrim::block_sparse_attention(in, dense, {}, view(dense_out), dense_lse, memory, ex));
        }));
        times.sparse.push_back(seconds([&] {
            require(kvtrim::block_sparse_attention(in, sparse, {}, view(sparse_out), sparse_lse, memory, ex));
        }));
    }
    for (std::size_t i = 0; i < rows; ++i) {
        times.kept_mass +=
            std::exp(static_cast<double>(sparse_lse[i] - dense_lse[i])) / static_cast<double>(rows);
    }
    double distance = 0, norm = 0;
    for (std::size_t i = 0; i < dense_out.size(); ++i) {
        distance += std::abs(static_cast<double>(sparse_out[i] - dense_out[i]));
        norm += std::abs(static_cast<double>(dense_out[i]));
    }
    times.error = distance / norm;
    return times;
}

// Bounds and logits of every pruned segment, as the policy computes them.
template <class T, class Policy>
double estimate_seconds(const prompt<T>& data, const Policy& policy, const kvtrim::prefill_chunk& chunk,
                        const thread_executor& ex) {
    constexpr index_t panel = 8;
    const kvtrim::segment_grid grid = kvtrim::grid_of(policy.options, chunk, data.tokens);
    const kvtrim::segment_range pruned = kvtrim::pruned_segments(policy.options, chunk, grid);
    if (pruned.begin >= pruned.end) {
        throw std::runtime_error(
            fmt::format("a prompt of {} tokens is too short: no segment is pruned", data.tokens));
    }
    const index_t blocks = grid.allowed_blocks(pruned.end - 1);
    const auto floats = [](index_t count) { return std::vector<float>(static_cast<std::size_t>(count)); };
    auto q_high = floats(q_heads * grid.segments() * head_dim), q_low = q_high;
    auto k_high = floats(kv_heads * blocks * head_dim), k_low = k_high;
    const kvtrim::block_bounds queries{q_high, q_low, grid.segments(), head_dim};
    const kvtrim::block_bounds keys{k_high, k_low, blocks, head_dim};
    const index_t spare = kvtrim::block_logits_floats(policy.estimator, panel, blocks, head_dim);
    auto logits = floats(ex.threads * panel * blocks), spares = floats(ex.threads * spare);
    kvtrim::growing_workspace memory;
    kvtrim::workspace scratch = memory.of_bytes(1 << 24);
    return seconds([&] {
        require(kvtrim::compute_block_bounds(data.keys(), blocks * grid.block_tokens, grid.block_tokens, 0,
                                             keys, scratch, ex));
        require(kvtrim::compute_block_bounds(data.queries(), data.tokens, grid.segment_tokens, pruned.begin,
                                             queries, scratch, ex));
        ex(ex.threads, [&](index_t worker) {
            for (index_t s = pruned.begin + worker * panel; s < pruned.end; s += ex.threads * panel) {
                const index_t end = std::min(s + panel, pruned.end);
                for (index_t g = 0; g < kv_heads; ++g) {
                    kvtrim::block_logits(policy.estimator, policy.criticality, queries, keys, group, g, s,
                                         end - s, grid.allowed_blocks(end - 1),
                                         logits.data() + worker * panel * blocks,
                                         spares.data() + worker * spare);
                }
            }
        });
    });
}

template <class T, class Policy>
void measure(const prompt<T>& data, const Policy& policy, const char* name, const setup& s) {
    kvtrim::growing_workspace memory;
    kvtrim::layer_fusion state;
    kvtrim::prune_plan plan, dense;
    const kvtrim::prefill_chunk chunk{.layer = 1};
    thread_executor ex{s.threads};
    std::vector<double> estimate_times, plan_times;
    for (index_t r = 0; r < s.repetitions; ++r) {
        estimate_times.push_back(estimate_seconds(data, policy, chunk, ex));
        plan_times.push_back(seconds(
            [&] { require(policy.plan(data.queries(), data.keys(), chunk, state, plan, memory, ex)); }));
    }
    const kvtrim::segment_grid& grid = plan.grid();
    const kvtrim::segment_range pruned = kvtrim::pruned_segments(policy.options, chunk, grid);
    double dense_pairs = 0, sparse_pairs = 0, dense_time = 0, sparse_time = 0, mass = 0, error = 0;
    std::vector<double> dense_rates, sparse_rates;
    const index_t samples = std::min(s.samples, pruned.end - pruned.begin);
    for (index_t i = 0; i < samples; ++i) { // in the middle of equal parts
        const index_t segment = pruned.begin + (2 * i + 1) * (pruned.end - pruned.begin) / (2 * samples);
        const segment_times t = measure_segment(data, plan, segment, s);
        dense_pairs += t.dense_pairs;
        sparse_pairs += t.sparse_pairs;
        dense_time += median(t.dense);
        sparse_time += median(t.sparse);
        for (const double x : t.dense) { dense_rates.push_back(x / t.dense_pairs); }
        for (const double x : t.sparse) { sparse_rates.push_back(x / t.sparse_pairs); }
        mass += t.kept_mass / static_cast<double>(samples);
        error += t.error / static_cast<double>(samples);
    }
    const double dense_rate = dense_time / dense_pairs;
    const double sparse_rate = sparse_time / sparse_pairs;
    double pruned_pairs = 0, whole_pairs = 0; // of all rows that are pruned, and of all others
    for (index_t g = 0; g < kv_heads; ++g) {
        for (index_t seg = 0; seg < grid.segments(); ++seg) {
            const auto queries = static_cast<double>(grid.segment_size(seg));
            const double pairs = queries * static_cast<double>(plan.row(g, seg).size()) *
                                     static_cast<double>(grid.block_tokens) +
                                 queries * (queries + 1) / 2;
            (pruned.begin <= seg && seg < pruned.end ? pruned_pairs : whole_pairs) += pairs;
        }
    }
    const double dense_layer = layer_share * plan.dense_pairs() * dense_rate;
    const double sparse_layer = layer_share * (pruned_pairs * sparse_rate + whole_pairs * dense_rate);
    const double plan_layer = layer_share * median(plan_times);
    const double estimate_layer = layer_share * std::min(median(estimate_times), median(plan_times));
    const double gflops = 4e-9 * head_dim * group / dense_rate;
    const double bound = plan.dense_pairs() / plan.planned_pairs();
    const auto cell = [](double x, double relative_spread) {
        return fmt::format("{:.2f} ± {:.0f} %", x, 100 * relative_spread);
    };
    fmt::print("| {} | {} | {} | {} | {:.0f} | {} | {:.1f} | {} | {:.2f} | {:.2f} | {:.3f} | {:.2f} | {:.2f} "
               "% | {:.3f} | {:.3f} |\n",
               name, data.tokens, policy.options.budget_tokens, cell(dense_layer, spread(dense_rates)),
               gflops, cell(1e3 * estimate_layer, spread(estimate_times)),
               1e3 * (plan_layer - estimate_layer), cell(sparse_layer, spread(sparse_rates)),
               dense_layer / sparse_layer, bound, dense_layer / sparse_layer / bound,
               dense_layer / (sparse_layer + plan_layer), 100 * plan_layer / sparse_layer, mass, error);
    std::fflush(stdout);
}

template <class T>
void run(const std::vector<index_t>& lengths, const std::vector<index_t>& budgets, const setup& s) {
    for (const index_t tokens : lengths) {
        const prompt<T> data(tokens);
        for (const index_t budget : budgets) {
            const kvtrim::pruning_options options{.budget_tokens = budget};
            measure(data, kvtrim::critiprefill(options), "critiprefill", s);
            measure(data, kvtrim::critiprefill_bound(options), "critiprefill_bound", s);
            measure(data, kvtrim::ada_critiprefill(options), "ada_critiprefill", s);
        }
    }
}

// Whether attention multiplies bf16 as they are, and not widened to floats.
bool multiplies_bf16() {
    return kvtrim::kernels::with_bf16_query_tile(
        []<class Tile>() { return std::is_same_v<typename Tile::element, kvtrim::bf16>; });
}

// The best level's products alone, GFLOP/s of one thread.
double peak_gflops() {
    const bench::register_loop loop = bench::product_limits().back().loop;
    std::vector<double> times;
    for (int r = 0; r < 11; ++r) {
        times.push_back(seconds([&] { loop.run(loop.steps); }));
    }
    return 1e-9 * static_cast<double>(loop.steps) * loop.per_step / median(times);
}

// One table.
void print_table(const std::string& element, const std::vector<index_t>& lengths,
                 const std::vector<index_t>& budgets, const setup& s) {
    fmt::print("{}, {} thread{}, CPU level {}; seconds per layer, median ± half the interquartile range\n",
               element, s.threads, s.threads == 1 ? "" : "s", kvtrim::name_of(kvtrim::active_cpu_level()));
    if (element == "bf16" && multiplies_bf16()) {
        fmt::print("products of bf16 alone: {:.0f} GFLOP/s a thread\n", peak_gflops());
    }
    fmt::print(
        "\n| policy | tokens | budget | dense s | GFLOP/s | estimate ms | plan ms | sparse s | speed-up "
        "| bound "
        "| of bound | with plan | overhead | kept mass | error |\n"
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n");
    if (element == "f32") { run<float>(lengths, budgets, s); }
    if (element == "f16") { run<kvtrim::f16>(lengths, budgets, s); }
    if (element == "bf16") { run<kvtrim::bf16>(lengths, budgets, s); }
    fmt::print("\n");
}

} // namespace

int main(int argc, char** argv) try {
    CLI::App app{
        "CritiPrefill against dense attention, one layer of the Llama-3.1-8B shape, as a Markdown table"};
    std::vector<index_t> lengths{8192, 16384, 32768, 65536, 131072};
    std::vector<index_t> budgets{1024, 2048, 4096};
    std::vector<std::string> elements{"f32"};
    if (multiplies_bf16()) { elements.emplace_back("bf16"); }
    std::vector<index_t> threads{1};
    setup s;
    app.add_option("--tokens", lengths, "prompt lengths")->delimiter(',')->capture_default_str();
    app.add_option("--budgets", budgets, "tokens per KV head and segment")
        ->delimiter(',')
        ->capture_default_str();
    app.add_option("--element", elements, "of queries, keys and values")
        ->delimiter(',')
        ->check(CLI::IsMember({"f32", "f16", "bf16"}))
        ->capture_default_str();
    app.add_option("--threads", threads,
                   "for example 1,2: one table each; more than two find no work in a segment")
        ->delimiter(',')
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    app.add_option("--samples", s.samples, "segments measured")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    app.add_option("--repetitions", s.repetitions)->check(CLI::PositiveNumber)->capture_default_str();
    CLI11_PARSE(app, argc, argv);
    for (const std::string& element : elements) {
        for (const index_t count : threads) {
            s.threads = count;
            print_table(element, lengths, budgets, s);
        }
    }
    return 0;
} catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
}
