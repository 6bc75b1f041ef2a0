// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// The C API (kvtrim_c.h). Element types are known at run time only, so that every policy is compiled once: rows come
// through any_rows, which widens them, and not through the pointer paths that know their element.
#include <kvtrim_c.h>

#include <kvtrim/compact/compact_in_place.hpp>
#include <kvtrim/policy/baselines.hpp>
#include <kvtrim/policy/criticalkv.hpp>
#include <kvtrim/policy/defensivekv.hpp>
#include <kvtrim/version.hpp>

#include <cmath>
#include <new>
#include <string_view>

#define KVTRIM_TEXT_OF(x) #x
#define KVTRIM_TEXT(x) KVTRIM_TEXT_OF(x)

using kvtrim::errc;
using kvtrim::index_t;
using kvtrim::status;

namespace {

enum class kind {
    snapkv,
    ada_snapkv,
    criticalkv,
    ada_criticalkv,
    defensivekv,
    tova,
    key_norm,
    streaming_llm
};

constexpr std::string_view names[] = {"snapkv",      "ada_snapkv", "criticalkv", "ada_criticalkv",
                                      "defensivekv", "tova",       "key_norm",   "streaming_llm"};

template <class T>
kvtrim::strided<T, 3> typed(const kvtrim_tensor& t) {
    return {static_cast<T*>(t.data),
            {t.extents[0], t.extents[1], t.extents[2]},
            {t.strides[0], t.strides[1], t.strides[2]}};
}

// A row_source over a tensor of any of the C API's elements.
struct any_rows {
    kvtrim_tensor tensor;

    [[nodiscard]] index_t extent(std::size_t r) const { return tensor.extents[r]; }
    void load_rows(index_t head, index_t first, index_t count, float* tile) const {
        switch (tensor.dtype) {
        case KVTRIM_F32:
            return kvtrim::load_rows(typed<const float>(tensor), head, first, count, tile);
        case KVTRIM_F16:
            return kvtrim::load_rows(typed<const kvtrim::f16>(tensor), head, first, count, tile);
        default:
            return kvtrim::load_rows(typed<const kvtrim::bf16>(tensor), head, first, count, tile);
        }
    }
};

kvtrim_code code_of(errc code) {
    switch (code) {
    case errc::ok:
        return KVTRIM_OK;
    case errc::budget_zero:
        return KVTRIM_BUDGET_ZERO;
    case errc::budget_below_protection:
        return KVTRIM_BUDGET_BELOW_PROTECTION;
    case errc::window_exceeds_tokens:
        return KVTRIM_WINDOW_EXCEEDS_TOKENS;
    case errc::heads_not_divisible:
        return KVTRIM_HEADS_NOT_DIVISIBLE;
    case errc::ratio_out_of_range:
        return KVTRIM_RATIO_OUT_OF_RANGE;
    case errc::invalid_parameter:
        return KVTRIM_INVALID_PARAMETER;
    case errc::plan_mismatch:
        return KVTRIM_PLAN_MISMATCH;
    case errc::index_overflow:
        return KVTRIM_INDEX_OVERFLOW;
    case errc::workspace_too_small:
        return KVTRIM_WORKSPACE_TOO_SMALL;
    case errc::views_overlap:
        return KVTRIM_VIEWS_OVERLAP;
    default:
        return KVTRIM_FAILED;
    }
}

kvtrim_code answer(kvtrim_code code, index_t needed, const char* text, kvtrim_error* error) {
    if (error != nullptr) { *error = {code, needed, text}; }
    return code;
}
kvtrim_code answer(const status& s, kvtrim_error* error) {
    return answer(code_of(s.code()), s.needed(), s.what(), error);
}
status invalid(const char* text) {
    return {errc::invalid_parameter, text};
}

// Runs fn() -> status; nothing but an allocation throws in the library.
template <class Fn>
kvtrim_code guarded(kvtrim_error* error, Fn&& fn) {
#if defined(__cpp_exceptions)
    try {
        return answer(fn(), error);
    } catch (const std::bad_alloc&) {
        return answer(KVTRIM_OUT_OF_MEMORY, 0, "out of memory", error);
    } catch (...) { return answer(KVTRIM_FAILED, 0, "an unexpected failure", error); }
#else
    return answer(fn(), error); // built so, an allocation that fails ends the program
#endif
}

// Calls fn(view) with a view of the tensor's element; bits are bits, so that both halves are one case where they only move.
template <class Fn>
status with_elements(const kvtrim_tensor& t, Fn&& fn) {
    return t.dtype == KVTRIM_F32 ? fn(typed<float>(t)) : fn(typed<kvtrim::bf16>(t));
}

status valid_tensor(const kvtrim_tensor& t) {
    constexpr index_t most = std::numeric_limits<std::int32_t>::max();
    constexpr index_t most_heads = index_t{1} << 20; // loops over heads end
    if (t.extents[0] > most_heads || t.extents[1] > most || t.extents[2] > most) {
        return invalid("a tensor has at most 2^20 heads, and 2^31 - 1 rows and elements of a row");
    }
    if (t.dtype != KVTRIM_F32 && t.dtype != KVTRIM_F16 && t.dtype != KVTRIM_BF16) {
        return invalid("a tensor's dtype must be KVTRIM_F32, KVTRIM_F16 or KVTRIM_BF16");
    }
    return with_elements(t, [](const auto& view) { return view.validate(); });
}

bool is_given(const kvtrim_tensor& t) {
    return t.data != nullptr;
}

bool needs_queries(kind k) {
    return k != kind::key_norm && k != kind::streaming_llm;
}
bool needs_projection(kind k) {
    return k == kind::criticalkv || k == kind::ada_criticalkv || k == kind::defensivekv;
}

status valid_layer(kind k, const kvtrim_layer& in) {
    if (const status s = valid_tensor(in.keys); !s.ok()) { return s; }
    if (needs_queries(k)) {
        if (!is_given(in.queries)) { return invalid("this policy needs queries"); }
        if (const status s = valid_tensor(in.queries); !s.ok()) { return s; }
        if (in.queries.extents[2] != in.keys.extents[2]) {
            return invalid("queries and keys must agree in head_dim");
        }
    }
    if (needs_projection(k)) {
        if (!is_given(in.values) || !is_given(in.output_projection)) {
            return invalid("this policy needs values and the output projection");
        }
        if (const status s = valid_tensor(in.values); !s.ok()) { return s; }
        if (const status s = valid_tensor(in.output_projection); !s.ok()) { return s; }
        if (in.values.extents[0] != in.keys.extents[0] || in.values.extents[1] != in.keys.extents[1]) {
            return invalid("keys and values must agree in kv_heads and tokens");
        }
        if (in.output_projection.extents[0] != in.queries.extents[0] ||
            in.output_projection.extents[1] != in.values.extents[2]) {
            return invalid("the output projection must be [q_heads, value_dim, hidden]");
        }
    }
    return {};
}

status valid_request(const kvtrim_request& r) {
    if (r.size < sizeof(kvtrim_request)) { return invalid("a request starts from kvtrim_request_init"); }
    if (r.sink_logits_count < 0 || (r.sink_logits == nullptr && r.sink_logits_count != 0)) {
        return invalid("sink_logits_count must be the number of sink_logits");
    }
    return {};
}

kvtrim::eviction_request request_of(const kvtrim_request& r) {
    return {.budget = kvtrim::per_head(r.budget_tokens),
            .protect = {.sink_tokens = r.sink_tokens,
                        .pinned_tokens = r.pinned_tokens,
                        .window_tokens = r.window_tokens,
                        .rollback_tokens = r.rollback_tokens},
            .attention = {.scale = r.scale,
                          .soft_cap = r.soft_cap,
                          .sliding_window = r.sliding_window,
                          .sink_logits = {r.sink_logits, static_cast<std::size_t>(r.sink_logits_count)}}};
}

} // namespace

struct kvtrim_policy {
    kind which;
    kvtrim::mean_attention attention = {};
    kvtrim::worst_case_attention worst_case = {};
    double safeguard_ratio = 0.2;
    double first_ratio = 0.5;
    double attention_mass = 0.9;
};

struct kvtrim_plan {
    kvtrim::keep_plan table;
};

namespace {

// Calls fn(policy, inputs, request) with kvtrim's own types, once everything is valid.
template <class Fn>
status dispatch(const kvtrim_policy* p, const kvtrim_layer* layer, const kvtrim_request* request, Fn&& fn) {
    if (p == nullptr || layer == nullptr || request == nullptr) {
        return invalid("policy, layer and request must not be null");
    }
    if (const status s = valid_layer(p->which, *layer); !s.ok()) { return s; }
    if (const status s = valid_request(*request); !s.ok()) { return s; }
    const kvtrim::eviction_request r = request_of(*request);
    const auto keys = kvtrim::layer(any_rows{layer->keys});
    const auto attended = keys.with_queries(any_rows{layer->queries});
    const auto projected = [&] {
        return kvtrim::layer(any_rows{layer->keys}, any_rows{layer->values})
            .with_queries(any_rows{layer->queries})
            .with_output_projection(any_rows{layer->output_projection});
    };
    const kvtrim::adaptive adaptive{.safeguard_ratio = p->safeguard_ratio};
    const kvtrim::criticalkv_config critical{.attention = p->attention, .first_ratio = p->first_ratio};
    switch (p->which) {
    case kind::snapkv:
        return fn(kvtrim::snapkv(p->attention), attended, r);
    case kind::ada_snapkv:
        return fn(kvtrim::ada_snapkv(p->attention, adaptive), attended, r);
    case kind::criticalkv:
        return fn(kvtrim::criticalkv(critical), projected(), r);
    case kind::ada_criticalkv:
        return fn(kvtrim::ada_criticalkv(critical, adaptive), projected(), r);
    case kind::defensivekv:
        return fn(kvtrim::defensivekv({.attention = p->worst_case,
                                       .attention_mass = p->attention_mass,
                                       .first_at_most = p->first_ratio,
                                       .safeguard_ratio = p->safeguard_ratio}),
                  projected(), r);
    case kind::tova:
        return fn(kvtrim::tova(), attended, r);
    case kind::key_norm:
        return fn(kvtrim::key_norm(), keys, r);
    case kind::streaming_llm:
        break;
    }
    return fn(kvtrim::streaming_llm(), keys, r);
}

} // namespace

extern "C" {

int32_t kvtrim_api_version(void) {
    return KVTRIM_C_API_VERSION;
}
const char* kvtrim_version(void) {
    return KVTRIM_TEXT(KVTRIM_VERSION_MAJOR) "." KVTRIM_TEXT(KVTRIM_VERSION_MINOR) "." KVTRIM_TEXT(
        KVTRIM_VERSION_PATCH);
}
const char* kvtrim_cpu_level(void) {
    return kvtrim::name_of(kvtrim::active_cpu_level());
}

kvtrim_code kvtrim_policy_create(const char* name, kvtrim_policy** policy, kvtrim_error* error) {
    return guarded(error, [&]() -> status {
        if (name == nullptr || policy == nullptr) { return invalid("name and policy must not be null"); }
        for (std::size_t i = 0; i < std::size(names); ++i) {
            if (names[i] != name) { continue; }
            kvtrim_policy made{.which = static_cast<kind>(i)};
            if (made.which == kind::defensivekv) { made.safeguard_ratio = 0; }
            *policy = new kvtrim_policy(made);
            return {};
        }
        return invalid("no policy has this name");
    });
}

void kvtrim_policy_destroy(kvtrim_policy* policy) {
    delete policy;
}

kvtrim_code kvtrim_policy_set(kvtrim_policy* policy, const char* key, double value, kvtrim_error* error) {
    return guarded(error, [&]() -> status {
        if (policy == nullptr || key == nullptr) { return invalid("policy and key must not be null"); }
        if (!std::isfinite(value)) { return invalid("an option must be finite"); }
        const std::string_view option = key;
        if (option == "kernel_tokens" || option == "pooling") {
            const double most = option == "pooling" ? 2 : 1 << 20;
            if (value < 0 || value > most || value != std::floor(value)) {
                return invalid("this option must be a whole number in its range");
            }
            if (option == "pooling") {
                policy->attention.pool = static_cast<kvtrim::pooling>(static_cast<int>(value));
            } else {
                policy->attention.kernel_tokens = static_cast<index_t>(value);
                policy->worst_case.kernel_tokens = static_cast<index_t>(value);
            }
        } else if (option == "safeguard_ratio") {
            policy->safeguard_ratio = value;
        } else if (option == "first_ratio") {
            policy->first_ratio = value;
        } else if (option == "attention_mass") {
            policy->attention_mass = value;
        } else if (option == "floor_weight") {
            if (std::abs(value) > std::numeric_limits<float>::max()) {
                return invalid("this option is a float");
            }
            policy->worst_case.floor_weight = static_cast<float>(value);
        } else {
            return invalid("no option has this key");
        }
        return {};
    });
}

void kvtrim_request_init(kvtrim_request* request) {
    if (request == nullptr) { return; }
    *request = {};
    request->size = sizeof(kvtrim_request);
}

kvtrim_code kvtrim_workspace_bytes(const kvtrim_policy* policy, const kvtrim_layer* layer,
                                   const kvtrim_request* request, int64_t* bytes, kvtrim_error* error) {
    return guarded(error, [&]() -> status {
        if (bytes == nullptr) { return invalid("bytes must not be null"); }
        return dispatch(policy, layer, request, [&](const auto& p, const auto& in, const auto& r) -> status {
            if (const status s = p.validate(in, r); !s.ok()) { return s; }
            *bytes = p.workspace_bytes(in, r);
            return {};
        });
    });
}

kvtrim_code kvtrim_plan_layer(const kvtrim_policy* policy, const kvtrim_layer* layer,
                              const kvtrim_request* request, kvtrim_plan* plan, void* workspace,
                              int64_t workspace_bytes, kvtrim_error* error) {
    return guarded(error, [&]() -> status {
        if (plan == nullptr || workspace_bytes < 0 || (workspace == nullptr && workspace_bytes > 0)) {
            return invalid("plan must not be null, and workspace must have its bytes");
        }
        return dispatch(policy, layer, request, [&](const auto& p, const auto& in, const auto& r) {
            kvtrim::workspace scratch(
                {static_cast<std::byte*>(workspace), static_cast<std::size_t>(workspace_bytes)});
            return p.plan(in, r, plan->table, scratch);
        });
    });
}

kvtrim_code kvtrim_plan_create(kvtrim_plan** plan, kvtrim_error* error) {
    return guarded(error, [&]() -> status {
        if (plan == nullptr) { return invalid("plan must not be null"); }
        *plan = new kvtrim_plan;
        return {};
    });
}

void kvtrim_plan_destroy(kvtrim_plan* plan) {
    delete plan;
}

int64_t kvtrim_plan_rows(const kvtrim_plan* plan) {
    return plan == nullptr ? 0 : plan->table.rows();
}
const int32_t* kvtrim_plan_offsets(const kvtrim_plan* plan) {
    return plan == nullptr ? nullptr : plan->table.offsets().data();
}
const int32_t* kvtrim_plan_kept(const kvtrim_plan* plan) {
    return plan == nullptr ? nullptr : plan->table.kept().data();
}

kvtrim_code kvtrim_compact_in_place(const kvtrim_tensor* keys, const kvtrim_tensor* values,
                                    const kvtrim_plan* plan, kvtrim_error* error) {
    return guarded(error, [&]() -> status {
        if (keys == nullptr || plan == nullptr) { return invalid("keys and plan must not be null"); }
        for (const kvtrim_tensor* t : {keys, values}) {
            if (t == nullptr) { continue; }
            if (const status s = valid_tensor(*t); !s.ok()) { return s; }
        }
        return with_elements(*keys, [&](const auto& k) {
            if (values == nullptr) { return kvtrim::compact_in_place(k, plan->table); }
            return with_elements(*values,
                                 [&](const auto& v) { return kvtrim::compact_in_place(k, v, plan->table); });
        });
    });
}

} // extern "C"
