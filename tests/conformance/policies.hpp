// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// What kvtrim computes for a golden case: the configuration that its parameters name, and the arrays it yields.

#include "golden_case.hpp"

#include <optional>

namespace conformance {

using results = std::map<std::string, std::vector<double>>;

// Why a case is not run, if it is not: the authors' own defects, or a policy that is not in the library yet.
std::optional<std::string> reason_to_skip(const golden_case& c);

// All arrays of the case as kvtrim computes them. Throws std::runtime_error on an unknown policy or variant, or
// where kvtrim answers with an error.
results run(const golden_case& c);

// For a case of CriticalKV: the share of kept tokens that the Gram form of the value norms keeps too.
std::optional<double> gram_agreement(const golden_case& c);

} // namespace conformance
