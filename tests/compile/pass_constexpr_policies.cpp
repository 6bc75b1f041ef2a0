// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// Named policies are constants, configured by field name; stages without state take no room.

#include <kvtrim/kvtrim.hpp>

#include <type_traits>

using namespace kvtrim;

inline constexpr auto plain = snapkv();
inline constexpr auto wide = snapkv({.pool = pooling::maximum, .kernel_tokens = 7});
inline constexpr auto ada = ada_snapkv({.kernel_tokens = 7}, adaptive{.safeguard_ratio = 0.5});
inline constexpr auto critical = criticalkv({.first_ratio = 0.25, .epsilon = 1e-3f});
inline constexpr auto ada_critical = ada_criticalkv({}, blended{});
inline constexpr auto defensive = defensivekv({.attention_mass = 0.8});
inline constexpr auto several = std::is_same_v<decltype(streaming_llm()), decltype(h2o())>;

static_assert(wide.scorer.aggregator.kernel_tokens == 7 && plain.scorer.aggregator.kernel_tokens == 5);
static_assert(ada.allocator.safeguard_ratio == 0.5);
static_assert(critical.reranker.first_ratio == 0.25 && critical.scorer.epsilon == 1e-3f);
static_assert(defensive.reranker.attention_mass == 0.8 && !several);
static_assert(sizeof(streaming_llm()) == 1 && sizeof(key_norm()) == 1);
static_assert(std::is_trivially_copyable_v<decltype(defensivekv())>);
