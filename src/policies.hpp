// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The table of policies: a row has a name, what it reads, its options with their defaults, and a function that makes it. Names,
// options, help and dispatch all come from it.
//
//     row<with_queries>("snapkv", "...", {{option::kernel_tokens, 5}, ...},
//                       [](const settings& s, const call_state&) { return snapkv(s.mean()); })
//
// The function's type is a parameter of row(): each row compiles the policy once, over any_rows.

#include "c_api.hpp"
#include "saved_tables.hpp"

#include <kvtrim/allocate/row_profile.hpp>
#include <kvtrim/decode/running_scores.hpp>
#include <kvtrim/policy/layer_wise.hpp>

#include <memory>

struct kvtrim_running {
    kvtrim::running_scores state;
};
struct kvtrim_statistics {
    kvtrim::c::saved_statistics state;
};
struct kvtrim_means {
    kvtrim::c::saved_means state;
};
struct kvtrim_profile {
    kvtrim::row_profile state;
};

namespace kvtrim::c {

// ---- Options ----

enum class option : int {
    kernel_tokens,
    pooling,
    group,
    pooling_order,
    safeguard_ratio,
    first_ratio,
    epsilon,
    epsilon_relative,
    attention_mass,
    floor_weight,
    norm_scope,
    lambda,
    importance_share,
    similar_above,
    search_tokens,
    lag,
    cross_scoring,
    future_positions,
    use_covariance,
    seed,
    gamma,
    beta,
    floor_ratio,
    weight_by_kept_mass,
    chunk_tokens,
    nearest,
    loss,
    fold,
    lifetime,
    threshold,
    next_position,
    octaves,
    count,
};

/// What an option is, whichever policy has it.
struct option_row {
    const char* name;
    int type; // KVTRIM_INTEGER, ...
    double lowest;
    double highest;
    const char* choices; // "a|b|c" of a CHOICE
    const char* text;
};
[[nodiscard]] const option_row& row_of(option o);

struct option_default {
    option which;
    double value;
};

/// The values of all options; those that a policy does not have are not read.
struct settings {
    double values[static_cast<int>(option::count)] = {};

    [[nodiscard]] double real(option o) const { return values[static_cast<int>(o)]; }
    [[nodiscard]] float single(option o) const { return static_cast<float>(real(o)); }
    [[nodiscard]] index_t whole(option o) const { return static_cast<index_t>(real(o)); }
    [[nodiscard]] bool flag(option o) const { return real(o) != 0; }
    template <class Enum>
    [[nodiscard]] Enum choice(option o) const {
        return static_cast<Enum>(whole(o));
    }
    [[nodiscard]] mean_attention mean() const {
        return {.pool = choice<pooling>(option::pooling),
                .kernel_tokens = whole(option::kernel_tokens),
                .group = choice<group_reduction>(option::group),
                .order = choice<pooling_order>(option::pooling_order)};
    }
};

// ---- What a policy does with a call ----

/// Objects of the layer and the request that a policy refers to.
struct call_state {
    const query_statistics* statistics = nullptr;
    kvtrim::rope rope = {};
    const query_pair_means* means = nullptr;
    const running_scores* running = nullptr;
    std::span<const double> layer_shares = {};
    profiled_budgets profile = {};
};

/// The engine's own scores, which stand as keys of one channel.
struct own_scores {
    static constexpr bool writes_attention = false;

    template <class Inputs>
    [[nodiscard]] status validate(const Inputs& in, const eviction_request&) const {
        return in.head_dim() == 1 || in.kv_heads() == 0
                   ? status{}
                   : invalid("layer: scores must be [kv_heads, tokens, 1]");
    }
    template <class Inputs, executor Executor>
    [[nodiscard]] status score(const Inputs& in, const eviction_request& request, const token_scores& out,
                               workspace&, Executor&) const {
        if (const status s = validate_scoring(*this, in, request, out); !s.ok()) { return s; }
        for (index_t g = 0; g < in.kv_heads(); ++g) {
            const token_range range = candidates(request.protect, in.tokens(g));
            if (range.size() == 0) { continue; }
            in.keys.load_rows(g, range.begin, range.size(), out.importance_rows().row(g).data());
        }
        return {};
    }
};

/// The state of a replay as the inputs of a policy: it is never copied.
struct replay_ref {
    const replay_scores* state;

    operator const replay_scores&() const { return *state; } // NOLINT: a conversion
    [[nodiscard]] status validate() const { return state->validate(); }
    [[nodiscard]] index_t kv_heads() const { return state->kv_heads(); }
    [[nodiscard]] index_t tokens(index_t g) const { return state->tokens(g); }
    [[nodiscard]] index_t longest_row() const { return state->longest_row(); }
    [[nodiscard]] index_t shortest_row() const {
        index_t shortest = longest_row();
        for (index_t g = 0; g < kv_heads(); ++g) { shortest = std::min(shortest, tokens(g)); }
        return shortest;
    }
};

template <>
inline replay_ref inputs_of<replay_ref>(const layer_parts& in) {
    return {&in.given.replay->state};
}

/// A policy made for one call, over the layers of it, of which there is at least one.
class bound_policy {
  public:
    virtual ~bound_policy() = default;
    [[nodiscard]] virtual index_t kv_heads() const = 0;
    [[nodiscard]] virtual index_t bytes(const eviction_request& r, const any_executor& ex) const = 0;
    [[nodiscard]] virtual status plan(const eviction_request& r, std::span<keep_plan> out, workspace& scratch,
                                      const any_executor& ex) const = 0;
    /// Of one of the layers.
    [[nodiscard]] virtual status score(index_t layer, const eviction_request& r, score_table& out,
                                       growing_workspace& memory, const any_executor& ex) const = 0;
    [[nodiscard]] virtual layer_cascade begin(const eviction_request& r, index_t layers) const = 0;
    [[nodiscard]] virtual status push(const eviction_request& r, index_t layers, layer_cascade& cascade,
                                      growing_workspace& memory, const any_executor& ex) const = 0;
};

template <class T>
inline constexpr bool takes_layers = false;
template <class S, class A, class R>
inline constexpr bool takes_layers<layer_wise<S, A, R>> = true;
template <class T>
inline constexpr bool takes_cascade = false;
template <class S, class R>
inline constexpr bool takes_cascade<layer_wise<S, adaptive, R>> = can_be_cascaded<R>;

template <class Inputs, class Policy>
class bound final : public bound_policy {
  public:
    bound(Policy policy, std::vector<Inputs> in) : policy_(std::move(policy)), in_(std::move(in)) {}

    index_t kv_heads() const override { return in_[0].kv_heads(); }
    index_t bytes(const eviction_request& r, const any_executor& ex) const override {
        if constexpr (takes_layers<Policy>) {
            return policy_.workspace_bytes(all(), r, ex);
        } else {
            return in_.size() == 1 ? policy_.workspace_bytes(in_[0], r, ex) : 0;
        }
    }
    status plan(const eviction_request& r, std::span<keep_plan> out, workspace& scratch,
                const any_executor& ex) const override {
        if constexpr (takes_layers<Policy>) {
            return policy_.plan(all(), r, out, scratch, ex);
        } else {
            if (in_.size() != 1 || out.size() != 1) {
                return {errc::invalid_parameter, "this policy plans one layer at a time", 1};
            }
            return policy_.plan(in_[0], r, out[0], scratch, ex);
        }
    }
    status score(index_t layer, const eviction_request& r, score_table& out, growing_workspace& memory,
                 const any_executor& ex) const override {
        const Inputs& in = in_[static_cast<std::size_t>(layer)];
        if constexpr (takes_layers<Policy>) {
            return policy_.policy.score(in, r, out, memory, ex);
        } else {
            return policy_.score(in, r, out, memory, ex);
        }
    }
    layer_cascade begin(const eviction_request& r, index_t layers) const override {
        if constexpr (takes_cascade<Policy>) {
            return policy_.begin(in_[0], r, layers);
        } else {
            return layer_cascade::invalid(no_cascade());
        }
    }
    status push(const eviction_request& r, index_t layers, layer_cascade& cascade, growing_workspace& memory,
                const any_executor& ex) const override {
        if constexpr (takes_cascade<Policy>) {
            return policy_.push(in_[0], r, layers, cascade, memory, ex);
        } else {
            return no_cascade();
        }
    }

  private:
    [[nodiscard]] static status no_cascade() {
        return invalid("this policy has no cascade: see KVTRIM_TAKES_CASCADE");
    }
    [[nodiscard]] std::span<const Inputs> all() const { return in_; }

    Policy policy_;
    std::vector<Inputs> in_;
};

// ---- Rows of the table ----

using bind_function = std::unique_ptr<bound_policy> (*)(const settings&, const call_state&,
                                                        std::span<const layer_parts>);

struct policy_row {
    const char* name;
    const char* text;
    int needs; // KVTRIM_NEEDS_..., KVTRIM_TAKES_...
    std::vector<option_default> options;
    bind_function bind;
    bool reads_output_projection = false; // where it is given

    /// What a call reads of its layers, by what the first of them gives.
    [[nodiscard]] int wanted(const kvtrim_layer& first) const {
        if ((needs & KVTRIM_TAKES_NORMS) != 0 && first.norms != nullptr) {
            return (needs & ~KVTRIM_NEEDS_OUTPUT_PROJECTION) | needs_norms;
        }
        const bool reads = reads_output_projection && first.output_projection != nullptr;
        return needs | (reads ? KVTRIM_NEEDS_OUTPUT_PROJECTION : 0);
    }
};

template <class Make>
using policy_of = decltype(Make{}(settings{}, call_state{}));

template <class Inputs, class Make>
[[nodiscard]] std::unique_ptr<bound_policy> bind_to(const settings& s, const call_state& state,
                                                    std::span<const layer_parts> layers) {
    std::vector<Inputs> in;
    in.reserve(layers.size());
    for (const layer_parts& l : layers) { in.push_back(inputs_of<Inputs>(l)); }
    return std::make_unique<bound<Inputs, policy_of<Make>>>(Make{}(s, state), std::move(in));
}

/// `needs` beside the views of Inputs.
template <class Inputs, class Make>
[[nodiscard]] policy_row row(const char* name, const char* text, std::vector<option_default> options, Make,
                             int needs = 0) {
    if constexpr (std::is_same_v<Inputs, replay_ref>) {
        needs |= KVTRIM_NEEDS_REPLAY;
    } else {
        needs |= (Inputs::has_values ? KVTRIM_NEEDS_VALUES : 0) |
                 (Inputs::has_queries ? KVTRIM_NEEDS_QUERIES : 0) |
                 (Inputs::has_output_projection ? KVTRIM_NEEDS_OUTPUT_PROJECTION : 0);
    }
    needs |= (takes_layers<policy_of<Make>> ? KVTRIM_TAKES_LAYERS : 0) |
             (takes_cascade<policy_of<Make>> ? KVTRIM_TAKES_CASCADE : 0);
    return {name, text, needs, std::move(options), bind_to<Inputs, Make>};
}

/// A policy of values behind W_O, or of their norms where the layers give them.
template <class Make>
[[nodiscard]] policy_row row_of_norms(const char* name, const char* text, std::vector<option_default> options,
                                      Make make) {
    policy_row made = row<with_all>(name, text, std::move(options), make, KVTRIM_TAKES_NORMS);
    made.bind = [](const settings& s, const call_state& state, std::span<const layer_parts> layers) {
        return layers[0].given.norms != nullptr ? bind_to<with_norms, Make>(s, state, layers)
                                                : bind_to<with_all, Make>(s, state, layers);
    };
    return made;
}

/// A policy of outputs: behind W_O where the layers give it, else before it.
template <class Make>
[[nodiscard]] policy_row row_of_outputs(const char* name, const char* text,
                                        std::vector<option_default> options, Make make) {
    policy_row made = row<with_both>(name, text, std::move(options), make);
    made.bind = [](const settings& s, const call_state& state, std::span<const layer_parts> layers) {
        return layers[0].given.output_projection != nullptr ? bind_to<with_all, Make>(s, state, layers)
                                                            : bind_to<with_both, Make>(s, state, layers);
    };
    made.reads_output_projection = true;
    return made;
}

using policy_rows = std::vector<policy_row>;
[[nodiscard]] policy_rows window_policies(); // policies_window.cpp
[[nodiscard]] policy_rows value_policies();  // policies_value.cpp
[[nodiscard]] policy_rows layer_policies();  // policies_layers.cpp
[[nodiscard]] const policy_rows& policies(); // policy_table.cpp: all of them

/// A policy of the table over the layers of one call.
struct call {
    std::vector<layer_parts> layers;
    request asked;
    std::unique_ptr<bound_policy> policy;
};
[[nodiscard]] status read_call(const kvtrim_policy* policy, const kvtrim_layer* layers, index_t count,
                               const kvtrim_request* request, call& out);

} // namespace kvtrim::c

struct kvtrim_policy {
    const kvtrim::c::policy_row* row;
    kvtrim::c::settings settings;
};
