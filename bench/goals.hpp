// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// What the suite must hold, and aims for. A goal is a quotient of two times, so that it outlives a slow minute:
//
//   value = time of `over` / time of `under`
//
// Both name rows. `limit` alone is that of the other row, "limit of ROW" of any; "16 * ROW" is a multiple. Under
// `workspace` the value is the extra memory of `over` in MiB.
// Holds where value <= must (at_most) or value >= must (at_least).
// A goal whose rows did not run, for lack of AMX or of a peer, is not judged.

#include <array>
#include <string_view>

namespace bench {

enum class sense { at_most, at_least };

struct goal {
    std::string_view unit;
    std::string_view over;
    std::string_view under;
    sense direction;
    double must;                    // 0: none
    double aim;                     // 0: none
    std::string_view on_level = ""; // judged only where the machine's level is this one
};

inline constexpr std::string_view limit = "limit", workspace = "workspace";

// The rows of 32768 tokens and one thread, unless their name says otherwise.
inline constexpr std::string_view snapkv_f32 = "score_f32/snapkv/tokens:32768/threads:1";
inline constexpr std::string_view snapkv_bf16 = "score_bf16/snapkv/tokens:32768/threads:1";
inline constexpr std::string_view snapkv_portable = "score_f32_portable/snapkv/tokens:32768/threads:1";
inline constexpr std::string_view defensive_f32 = "score_f32/defensive/tokens:32768/threads:1";
inline constexpr std::string_view defensive_bf16 = "score_bf16/defensive/tokens:32768/threads:1";
inline constexpr std::string_view norms_f32 = "norm/exact_l1_f32/tokens:32768/threads:1";
inline constexpr std::string_view norms_bf16 = "norm/exact_l1_bf16/tokens:32768/threads:1";
inline constexpr std::string_view gram_f32 = "norm/gram_l2_f32/tokens:32768/threads:1";
inline constexpr std::string_view dense_f32 = "prefill/dense_f32/tokens:32768/threads:1";
inline constexpr std::string_view dense_bf16 = "prefill/dense_bf16/tokens:32768/threads:1";

// clang-format off
inline constexpr auto goals = std::to_array<goal>({
    {"SnapKV score, bf16, AMX", snapkv_bf16, limit, sense::at_most, 4.5, 3, "amx"},
    {"SnapKV score, bf16, AMX, against torch", "torch/score_bf16/snapkv/tokens:32768", snapkv_bf16, sense::at_least, 30, 0, "amx"},
    {"SnapKV score, f32", snapkv_f32, limit, sense::at_most, 1.8, 1.4},
    {"SnapKV score, f32, against torch", "torch/score_f32/snapkv/tokens:32768", snapkv_f32, sense::at_least, 7, 0},
    {"SnapKV score, portable, against the machine's f32 limit", snapkv_portable, "limit of score_f32/snapkv/tokens:32768/threads:1", sense::at_most, 3, 0},
    {"SnapKV score, portable, against its own level's limit", snapkv_portable, limit, sense::at_most, 3, 0},
    {"DefensiveKV score against own SnapKV score, f32", defensive_f32, snapkv_f32, sense::at_most, 1.4, 1.2},
    {"a third party's mean against the same by the library, f32", "score_f32/custom_mean/tokens:32768", "score_f32/unpooled_mean/tokens:32768", sense::at_most, 1.05, 1},
    {"DefensiveKV score against own SnapKV score, bf16", defensive_bf16, snapkv_bf16, sense::at_most, 1.4, 1.2},
    {"CriticalKV norms, bf16, AMX", norms_bf16, limit, sense::at_most, 2.2, 1.5, "amx"},
    {"CriticalKV norms, bf16, AMX, against tiled torch", "torch/norm/exact_l1_tiled_bf16/tokens:32768", norms_bf16, sense::at_least, 8, 0, "amx"},
    {"CriticalKV norms, f32", norms_f32, limit, sense::at_most, 1.75, 1.25},
    {"Gram norms against exact, f32", norms_f32, gram_f32, sense::at_least, 15, 0},
    {"Ada-KV selection of 20 %", "allocate/adaptive/tokens:32768", limit, sense::at_most, 5, 3},
    {"Ada-KV selection of 20 %, against torch", "torch/allocate/adaptive/tokens:32768", "allocate/adaptive/tokens:32768", sense::at_least, 35, 0},
    {"gather, bf16", "compact/gather_bf16/tokens:32768", limit, sense::at_most, 1.7, 1.2},
    {"gather, f32", "compact/gather_f32/tokens:32768", limit, sense::at_most, 1.7, 1.2},
    {"compaction in place, bf16", "compact/in_place_bf16/tokens:32768", limit, sense::at_most, 1.7, 1.2},
    {"compaction in place, f32", "compact/in_place_f32/tokens:32768", limit, sense::at_most, 1.7, 1.2},
    {"decode attention, bf16, 131072 tokens", "decode/attention_bf16/tokens:131072", limit, sense::at_most, 1.5, 1.2},
    {"dense prefill, share of the peak, bf16, AMX", limit, dense_bf16, sense::at_least, 0.30, 0.45, "amx"},
    {"dense prefill, share of the peak, f32", limit, dense_f32, sense::at_least, 0.52, 0.65},
    {"policy snapkv, share of dense prefill at the machine's level", "policy/snapkv/tokens:32768", dense_bf16, sense::at_most, 0.02, 0},
    {"policy ada_snapkv, share of dense prefill at the machine's level", "policy/ada_snapkv/tokens:32768", dense_bf16, sense::at_most, 0.02, 0},
    {"policy criticalkv (Gram), share of dense prefill at the machine's level", "policy/criticalkv_gram/tokens:32768", dense_bf16, sense::at_most, 0.02, 0},
    {"policy ada_criticalkv (Gram), share of dense prefill at the machine's level", "policy/ada_criticalkv_gram/tokens:32768", dense_bf16, sense::at_most, 0.02, 0},
    {"policy defensivekv (Gram), share of dense prefill at the machine's level", "policy/defensivekv_gram/tokens:32768", dense_bf16, sense::at_most, 0.02, 0},
    {"policy criticalkv (exact), share of dense prefill at the machine's level", "policy/criticalkv_exact/tokens:32768", dense_bf16, sense::at_most, 0, 0},
    {"extra memory of scoring, f32, 131072 tokens, MiB", "score_f32/snapkv/tokens:131072/threads:1", workspace, sense::at_most, 64, 0},
    {"extra memory of worst-case scoring, f32, 131072 tokens, MiB", "score_f32/defensive/tokens:131072/threads:1", workspace, sense::at_most, 64, 0},
    {"SnapKV score in pages of 16 (NHD) against contiguous, bf16", "source/snapkv_paged_nhd/tokens:32768", "source/snapkv_contiguous/tokens:32768", sense::at_most, 1.3, 0},
    {"SnapKV score in pages of 16 (HND) against contiguous, bf16", "source/snapkv_paged_hnd/tokens:32768", "source/snapkv_contiguous/tokens:32768", sense::at_most, 1.3, 0},
    {"SnapKV score of q8_0 against contiguous bf16", "source/snapkv_q8_0/tokens:32768", "source/snapkv_contiguous/tokens:32768", sense::at_most, 1.3, 0, "avx512"},
    {"SnapKV score, f32: 131072 over 16 times 8192 tokens", "score_f32/snapkv/tokens:131072/threads:1", "16 * score_f32/snapkv/tokens:8192/threads:1", sense::at_most, 1.3, 0},
    {"SnapKV score, bf16: 131072 over 16 times 8192 tokens", "score_bf16/snapkv/tokens:131072/threads:1", "16 * score_bf16/snapkv/tokens:8192/threads:1", sense::at_most, 1.3, 0},
    {"SnapKV score, f16: 131072 over 16 times 8192 tokens", "score_f16/snapkv/tokens:131072/threads:1", "16 * score_f16/snapkv/tokens:8192/threads:1", sense::at_most, 1.3, 0},
    {"DefensiveKV score, bf16: 131072 over 16 times 8192 tokens", "score_bf16/defensive/tokens:131072/threads:1", "16 * score_bf16/defensive/tokens:8192/threads:1", sense::at_most, 1.3, 0},
    {"CriticalKV norms, f32: 131072 over 16 times 8192 tokens", "norm/exact_l1_f32/tokens:131072/threads:1", "16 * norm/exact_l1_f32/tokens:8192/threads:1", sense::at_most, 1.3, 0},
    {"Ada-KV selection: 131072 over 16 times 8192 tokens", "allocate/adaptive/tokens:131072", "16 * allocate/adaptive/tokens:8192", sense::at_most, 1.3, 0},
    {"compaction in place, bf16: 131072 over 16 times 8192 tokens", "compact/in_place_bf16/tokens:131072", "16 * compact/in_place_bf16/tokens:8192", sense::at_most, 1.3, 0},
    {"two threads: SnapKV score, f32", snapkv_f32, "score_f32/snapkv/tokens:32768/threads:2", sense::at_least, 1.85, 0},
    {"two threads: SnapKV score, bf16", snapkv_bf16, "score_bf16/snapkv/tokens:32768/threads:2", sense::at_least, 1.85, 0},
    {"two threads: DefensiveKV score, f32", defensive_f32, "score_f32/defensive/tokens:32768/threads:2", sense::at_least, 1.85, 0},
    {"two threads: CriticalKV norms, f32", norms_f32, "norm/exact_l1_f32/tokens:32768/threads:2", sense::at_least, 1.85, 0},
    {"two threads: CriticalKV norms, bf16", norms_bf16, "norm/exact_l1_bf16/tokens:32768/threads:2", sense::at_least, 1.85, 0},
    {"two threads: Gram norms, f32", gram_f32, "norm/gram_l2_f32/tokens:32768/threads:2", sense::at_least, 1.85, 0},
    {"two threads: dense prefill, f32", dense_f32, "prefill/dense_f32/tokens:32768/threads:2", sense::at_least, 1.85, 0},
    {"two threads: dense prefill, bf16", dense_bf16, "prefill/dense_bf16/tokens:32768/threads:2", sense::at_least, 1.85, 0},
});
// clang-format on

} // namespace bench
