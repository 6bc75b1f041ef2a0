// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// What a row of the suite is: a Google Benchmark that says with describe() what work it does.
//
//   void my_row(benchmark::State& state) {
//       const auto& data = shared_layer<float>(state.range(0));
//       if (!is_right(compute(data))) { return state.SkipWithError("wrong"); } // a small layer will do
//       for (auto _ : state) { check(state, compute(data)); }
//       describe(state, {.stages = {{.flops = 1e9, .read_bytes = 1e6}}});
//   }
//   BENCHMARK(my_row)->Name("stage/my_row_f32")->Apply(token_counts);
//
// The suite runs it in rounds, and sets its median against the limit: the time that the machine needs for the same work
// at the rates measured by the rows limit/... in the same rounds (limits.hpp). What a row must hold is a line in goals.hpp.

#include "limits.hpp"

#include <kvtrim/core/element.hpp>
#include <kvtrim/core/executor.hpp>
#include <kvtrim/core/status.hpp>
#include <kvtrim/simd/cpu_level.hpp>

#include <benchmark/benchmark.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

namespace bench {

using kvtrim::index_t;

// ---- What a row says about itself --------------------------------------------------------------

// The least work that one stage has to do. Its limit is the longest of its parts, which can overlap; a row's limit is the
// sum over its stages, which can not.
struct work {
    double flops = 0;        // in f32, at the peak of the row's level
    double bf16_flops = 0;   // in products of bf16 that the row's level has
    double read_bytes = 0;   // from memory
    double cached_bytes = 0; // read from the last-level cache
    double copied_bytes = 0; // read and written

    // Half of the heads measured: twice the work.
    friend work operator*(double factor, work w) {
        for (double* part : {&w.flops, &w.bf16_flops, &w.read_bytes, &w.cached_bytes, &w.copied_bytes}) {
            *part *= factor;
        }
        return w;
    }
};

struct row_facts {
    std::vector<work> stages = {};
    index_t threads = 1;
    double workspace_bytes = -1; // extra memory, where the row has any to tell
    std::string note = {};       // for example what was sampled
    std::string beside = {};     // of a peer's row: the row of ours that does the same
    double amount = 0;           // of the rows limit/...: what one iteration does, in units of `unit`
    std::string unit = {};
    std::string level = {}; // describe() fills it in
};

// Of the row that ran last; the suite reads and clears it. Google Benchmark runs one row at a time.
inline row_facts last_row;

inline void describe(benchmark::State& state, row_facts facts) {
    const auto rate = [&](const char* name, double per_iteration) {
        if (per_iteration > 0) {
            state.counters[name] = {per_iteration, benchmark::Counter::kIsIterationInvariantRate};
        }
    };
    double flops = 0, bytes = 0;
    for (const work& w : facts.stages) {
        flops += w.flops + w.bf16_flops;
        bytes += w.read_bytes + w.cached_bytes + w.copied_bytes;
    }
    rate("flops", flops);
    rate("bytes", bytes);
    if (facts.amount > 0) { rate(facts.unit.c_str(), facts.amount); }
    if (facts.workspace_bytes >= 0) { state.counters["workspace"] = facts.workspace_bytes; }
    if (!facts.note.empty()) { state.SetLabel(facts.note); }
    if (facts.level.empty()) { facts.level = kvtrim::name_of(kvtrim::active_cpu_level()); }
    last_row = std::move(facts);
}

// Products of elements T: of bf16 as they are where the level in force multiplies them, else in f32.
template <class T>
work products(double flops, double read_bytes) {
    const bool in_bf16 = std::is_same_v<T, kvtrim::bf16> && multiplies_bf16(kvtrim::active_cpu_level());
    return {.flops = in_bf16 ? 0 : flops, .bf16_flops = in_bf16 ? flops : 0, .read_bytes = read_bytes};
}

// ---- What a row does ---------------------------------------------------------------------------

inline void check(benchmark::State& state, const kvtrim::status& s) {
    if (!s.ok()) { state.SkipWithError(s.what()); }
}

// Runs the row at no higher level than `highest` as long as it lives.
class at_level {
  public:
    explicit at_level(kvtrim::cpu_level highest) { kvtrim::set_cpu_level(std::min(highest, before_)); }
    ~at_level() { kvtrim::set_cpu_level(before_); }
    at_level(const at_level&) = delete;
    at_level& operator=(const at_level&) = delete;

  private:
    kvtrim::cpu_level before_ = kvtrim::active_cpu_level();
};

// An executor that starts its threads anew in each call, as the simplest engine would.
struct threads {
    index_t count = 1;

    [[nodiscard]] index_t workers() const { return count; }
    template <class Fn>
    void operator()(index_t calls, Fn&& fn) const {
        std::atomic<index_t> next = 0;
        const auto work_off = [&] {
            for (index_t i = next++; i < calls; i = next++) { fn(i); }
        };
        std::vector<std::jthread> others;
        for (index_t t = 1; t < std::min(count, calls); ++t) { others.emplace_back(work_off); }
        work_off();
    }
};

template <class Fn>
double seconds_of(Fn&& fn) {
    const auto start = std::chrono::steady_clock::now();
    fn();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Runs one iteration of a row that would take too long: fn() does a share of the work, 1 / factor, and the time that the
// row shows is factor times fn()'s. Belongs to UseManualTime(); the row's note says what was measured.
template <class Fn>
void scaled_iteration(benchmark::State& state, double factor, Fn&& fn) {
    state.SetIterationTime(factor * seconds_of(fn));
}

// ---- Which arguments a row gets ----------------------------------------------------------------

inline void token_counts(benchmark::internal::Benchmark* b) {
    b->ArgName("tokens")->Arg(8192)->Arg(32768)->Arg(131072)->Unit(benchmark::kMillisecond)->UseRealTime();
}

inline void scaled_token_counts(benchmark::internal::Benchmark* b) {
    b->ArgName("tokens")->Arg(8192)->Arg(32768)->Arg(131072)->Unit(benchmark::kMillisecond)->UseManualTime();
}

inline void token_and_thread_counts(benchmark::internal::Benchmark* b) {
    b->ArgNames({"tokens", "threads"})->Unit(benchmark::kMillisecond)->UseRealTime();
    b->Args({8192, 1})->Args({32768, 1})->Args({131072, 1})->Args({32768, 2});
}

inline void scaled_token_and_thread_counts(benchmark::internal::Benchmark* b) {
    b->ArgNames({"tokens", "threads"})->Unit(benchmark::kMillisecond)->UseManualTime();
    b->Args({8192, 1})->Args({32768, 1})->Args({131072, 1})->Args({32768, 2});
}

} // namespace bench
