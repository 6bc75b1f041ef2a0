// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// The rows limit/...: rates that one and two threads reach together, over which the suite divides the work of all others.

#include "limits.hpp"
#include "row.hpp"

#include <cstring>
#include <unistd.h>

namespace bench {

namespace {

constexpr index_t stream_floats = index_t{1} << 28; // 1 GiB, beyond any cache

// Written once, so that its pages are there.
std::vector<float>& stream() {
    static std::vector<float> memory(static_cast<std::size_t>(stream_floats), 1.0f);
    return memory;
}

// 16 MiB a thread, beyond the second level cache, or half of a last-level cache that is too small for it.
index_t cached_floats(index_t thread_count) {
    const long last_level = sysconf(_SC_LEVEL3_CACHE_SIZE);
    const index_t bytes =
        std::min<index_t>(16 << 20, last_level > 0 ? last_level / 2 / thread_count : 4 << 20);
    return bytes / 1024 * 256;
}

// fn(thread) on each of range(0) threads; each does `amount`.
template <class Fn>
void limit(benchmark::State& state, double amount, const char* unit, std::string level, Fn&& fn) {
    const threads all{state.range(0)};
    const auto run = [&] { all(all.count, fn); };
    run();
    for (auto _ : state) { run(); }
    describe(state, {.threads = all.count,
                     .amount = amount * static_cast<double>(all.count),
                     .unit = unit,
                     .level = std::move(level)});
}

void read(benchmark::State& state) {
    const index_t each = stream_floats / state.range(0);
    limit(state, 4.0 * static_cast<double>(each), "bytes", "",
          [&](index_t thread) { read_all(stream().data() + thread * each, each); });
}

void read_cached(benchmark::State& state) {
    const index_t each = cached_floats(state.range(0));
    constexpr int times = 16;
    limit(state, 4.0 * times * static_cast<double>(each), "bytes", "", [&](index_t thread) {
        for (int i = 0; i < times; ++i) { read_all(stream().data() + thread * each, each); }
    });
}

// Bytes read and written, the first half of the stream to the second.
void copy(benchmark::State& state) {
    const index_t each = stream_floats / 2 / state.range(0);
    limit(state, 2.0 * 4.0 * static_cast<double>(each), "bytes", "", [&](index_t thread) {
        float* const from = stream().data() + thread * each;
        std::memcpy(from + stream_floats / 2, from, static_cast<std::size_t>(each) * sizeof(float));
    });
}

void one_and_two_threads(benchmark::internal::Benchmark* b) {
    b->ArgName("threads")->Arg(1)->Arg(2)->Unit(benchmark::kMillisecond)->UseRealTime();
}

// The row limit/<what>_<level>.
void add_level_limit(const std::string& what, const level_limit& of, const char* unit) {
    const std::string level = kvtrim::name_of(of.level);
    const auto row = [=, loop = of.loop](benchmark::State& state) {
        limit(state, loop.per_step * static_cast<double>(loop.steps), unit, level,
              [&](index_t) { loop.run(loop.steps); });
    };
    benchmark::RegisterBenchmark(("limit/" + what + "_" + level).c_str(), row)->Apply(one_and_two_threads);
}

BENCHMARK(read)->Name("limit/read")->Apply(one_and_two_threads);
BENCHMARK(read_cached)->Name("limit/read_cached")->Apply(one_and_two_threads);
BENCHMARK(copy)->Name("limit/copy")->Apply(one_and_two_threads);

} // namespace

void add_limit_rows() {
    for (const level_limit& of : product_limits()) { add_level_limit("products", of, "flops"); }
    add_level_limit("exp", exponential_limit(), "exponentials");
}

} // namespace bench
