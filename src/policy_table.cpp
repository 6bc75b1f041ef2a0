// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

// The options there are, the table of all policies, and both as C sees them: described, and chosen by name.
#include "policies.hpp"

#include <charconv>
#include <cmath>
#include <string_view>

namespace kvtrim::c {
namespace {

constexpr double most_tokens = 1 << 30;

// In the order of `option`.
constexpr option_row option_rows[] = {
    {"kernel_tokens", KVTRIM_INTEGER, 1, 1 << 20, nullptr, "neighbours that are pooled; odd"},
    {"pooling", KVTRIM_CHOICE, 0, 2, "none|average|maximum", "how neighbours are pooled"},
    {"group", KVTRIM_CHOICE, 0, 2, "mean|maximum|sum", "how the query heads of a KV head are folded"},
    {"pooling_order", KVTRIM_CHOICE, 0, 1, "pool_then_group|group_then_pool", "which of both comes first"},
    {"safeguard_ratio", KVTRIM_REAL, 0, 1, nullptr, "share of an even budget that is safe in every row"},
    {"first_ratio", KVTRIM_REAL, 0, 1, nullptr,
     "share of the budget that attention alone takes, or takes at most"},
    {"epsilon", KVTRIM_REAL, 0, 1e30, nullptr, "added to a score before it is weighted by a value norm"},
    {"epsilon_relative", KVTRIM_INTEGER, 0, 1, nullptr, "1: epsilon is in units of the head's mean score"},
    {"attention_mass", KVTRIM_REAL, 0, 1, nullptr, "attention that pass one covers"},
    {"floor_weight", KVTRIM_REAL, 0, 1e30, nullptr, "share of the mean that floors the worst case"},
    {"norm_scope", KVTRIM_CHOICE, 0, 2, "raw|per_head|per_token", "how value norms are normalised"},
    {"lambda", KVTRIM_REAL, 0, 1e30, nullptr, "weight of the layer's sum"},
    {"importance_share", KVTRIM_REAL, 0, 1, nullptr, "lambda of R-KV: attention against repetition"},
    {"similar_above", KVTRIM_REAL, -1, 1, nullptr, "cosine from which on keys are similar"},
    {"search_tokens", KVTRIM_INTEGER, 0, most_tokens, nullptr, "newer tokens that are compared; 0: all"},
    {"lag", KVTRIM_INTEGER, 1, most_tokens, nullptr, "tokens of a partition"},
    {"cross_scoring", KVTRIM_INTEGER, 0, 1, nullptr,
     "1: the scores themselves, 0: their ranks in the partition"},
    {"future_positions", KVTRIM_INTEGER, 1, 1 << 20, nullptr,
     "positions over which the rotation is averaged"},
    {"use_covariance", KVTRIM_INTEGER, 0, 1, nullptr, "0: the mean query alone"},
    {"seed", KVTRIM_INTEGER, 0, 9007199254740992.0, nullptr, "equal seeds give equal plans"},
    {"gamma", KVTRIM_REAL, 0, 1e30, nullptr, "weight of the variance"},
    {"beta", KVTRIM_REAL, 1, 1e30, nullptr, "the last layer keeps about 1 / beta of an even share"},
    {"floor_ratio", KVTRIM_REAL, 0, 1, nullptr, "share of the budget that is spread evenly"},
    {"weight_by_kept_mass", KVTRIM_INTEGER, 0, 1, nullptr,
     "1: rows weigh what an even split would keep of them"},
    {"chunk_tokens", KVTRIM_INTEGER, 1, most_tokens, nullptr,
     "tokens that stay together; or the engine's page"},
    {"nearest", KVTRIM_INTEGER, 0, most_tokens, nullptr, "that of kvtrim_replay_add_own"},
    {"loss", KVTRIM_CHOICE, 0, 2, "attention_maximum|output_maximum|output_square_sum",
     "what a token is worth"},
    {"fold", KVTRIM_CHOICE, 0, 3, "sum|maximum|votes|squares", "how the heads are folded into one"},
    {"lifetime", KVTRIM_CHOICE, 0, 1, "ignored|normalised",
     "normalised: divided by the queries that saw a token"},
    {"threshold", KVTRIM_REAL, -3e38, 3e38, nullptr, "what scores above it stays"},
    {"next_position", KVTRIM_INTEGER, -1, 9007199254740992.0, nullptr,
     "of the next query; -1: the rows of the longest head, for a cache that was never cut"},
    {"octaves", KVTRIM_INTEGER, 1, 62, nullptr, "distances 1, 2, 4, ...: 17 end at 65536"},
};
static_assert(std::size(option_rows) == static_cast<std::size_t>(option::count));

// Writes a number, or the number of a choice. False for another text or a number outside the range.
bool read_value(const option_row& o, std::string_view text, double& out) {
    if (o.type == KVTRIM_CHOICE) {
        std::string_view choices = o.choices;
        for (double number = 0;; ++number) {
            const std::size_t end = std::min(choices.find('|'), choices.size());
            if (choices.substr(0, end) == text) {
                out = number;
                return true;
            }
            if (end == choices.size()) { return false; }
            choices.remove_prefix(end + 1);
        }
    }
    double value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    const bool is_number = error == std::errc{} && end == text.data() + text.size();
    if (!is_number || !(value >= o.lowest && value <= o.highest)) { return false; } // NaN is in no range
    if (o.type == KVTRIM_INTEGER && value != std::floor(value)) { return false; }
    out = value;
    return true;
}

status read_options(const policy_row& row, std::string_view text, settings& out) {
    constexpr std::string_view separators = " ,\t\n";
    const char* const begin = text.data();
    for (;;) {
        text.remove_prefix(std::min(text.find_first_not_of(separators), text.size()));
        if (text.empty()) { return {}; }
        const index_t where = text.data() - begin + 1;
        const std::string_view pair = text.substr(0, text.find_first_of(separators));
        text.remove_prefix(pair.size());
        const std::size_t equals = pair.find('=');
        if (equals == std::string_view::npos) {
            return {errc::invalid_parameter, "options are name=value", where};
        }
        const auto found = std::find_if(row.options.begin(), row.options.end(), [&](const option_default& o) {
            return row_of(o.which).name == pair.substr(0, equals);
        });
        if (found == row.options.end()) {
            return {errc::invalid_parameter, "this policy has no option of this name", where};
        }
        double& value = out.values[static_cast<int>(found->which)];
        if (!read_value(row_of(found->which), pair.substr(equals + 1), value)) {
            return {errc::invalid_parameter, "this option has no such value", where};
        }
    }
}

const policy_row* row_at(index_t index) {
    const bool exists = index >= 0 && index < std::ssize(policies());
    return exists ? &policies()[static_cast<std::size_t>(index)] : nullptr;
}

} // namespace

const option_row& row_of(option o) {
    return option_rows[static_cast<int>(o)];
}

const policy_rows& policies() {
    static const policy_rows all = [] {
        policy_rows rows = window_policies();
        for (policy_rows more : {value_policies(), layer_policies()}) {
            rows.insert(rows.end(), more.begin(), more.end());
        }
        return rows;
    }();
    return all;
}

} // namespace kvtrim::c

using namespace kvtrim;
using namespace kvtrim::c;

extern "C" {

int64_t kvtrim_policy_count(void) {
    int64_t count = 0;
    static_cast<void>(guarded([&]() -> status {
        count = std::ssize(policies());
        return {};
    }));
    return count;
}

kvtrim_status kvtrim_policy_describe(int64_t index, kvtrim_policy_info* info) {
    return guarded([&]() -> status {
        kvtrim_policy_info ignored = {};
        if (const status s = read_struct(info, ignored); !s.ok()) { return s; }
        const policy_row* row = row_at(index);
        if (row == nullptr) { return invalid("no policy has this index: ask kvtrim_policy_count"); }
        *info = {info->size, row->name, row->text, row->needs, static_cast<int32_t>(row->options.size())};
        return {};
    });
}

kvtrim_status kvtrim_policy_describe_option(int64_t index, int64_t option, kvtrim_option_info* info) {
    return guarded([&]() -> status {
        kvtrim_option_info ignored = {};
        if (const status s = read_struct(info, ignored); !s.ok()) { return s; }
        const policy_row* row = row_at(index);
        if (row == nullptr || option < 0 || option >= std::ssize(row->options)) {
            return invalid("no policy, or no option of it, has this index");
        }
        const option_default& chosen = row->options[static_cast<std::size_t>(option)];
        const option_row& o = row_of(chosen.which);
        *info = {info->size, o.name, o.text, o.choices, o.type, 0, chosen.value, o.lowest, o.highest};
        return {};
    });
}

kvtrim_status kvtrim_policy_create(const char* name, const char* options, kvtrim_policy** policy) {
    return guarded([&]() -> status {
        if (name == nullptr) { return invalid("the name of a policy must not be null"); }
        for (const policy_row& row : policies()) {
            if (std::string_view(row.name) != name) { continue; }
            settings chosen;
            for (const option_default& o : row.options) {
                chosen.values[static_cast<int>(o.which)] = o.value;
            }
            if (options != nullptr) {
                if (const status s = read_options(row, options, chosen); !s.ok()) { return s; }
            }
            return make(policy, &row, chosen);
        }
        return invalid("no policy has this name: kvtrim_policy_describe lists them");
    });
}
void kvtrim_policy_destroy(kvtrim_policy* policy) {
    delete policy;
}

} // extern "C"
