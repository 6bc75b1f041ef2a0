// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include "support/named_policies.hpp"
#include "support/policy_oracle.hpp"

using namespace kvtrim;
using namespace support;

namespace {

void check_same(const trace& serial, const trace& other) {
    CHECK(other.answer.ok());
    CHECK(other.plan == serial.plan);
    CHECK(other.importance == serial.importance);
    CHECK(other.attention == serial.attention);
    CHECK(other.protected_mass == serial.protected_mass);
    CHECK(other.budgets == serial.budgets);
}

} // namespace

TEST_CASE("neither the number of threads nor the order of the heads changes a bit", "[properties][threads]") {
    for_random_layers(
        431, 10, [](const layer_data& layer, const eviction_request& request, support::random& r) {
            for (const named_policy& policy : named_policies()) {
                const trace serial = policy(layer.inputs(), request);
                CAPTURE(policy.name);
                check_same(serial, policy.run(layer.inputs(), request, thread_executor{2}));
                check_same(serial, policy.run(layer.inputs(), request, thread_executor{5}));
                check_same(serial, policy.run(layer.inputs(), request, shuffling_executor{r.bits()}));
            }
        });
}
