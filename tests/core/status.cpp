// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/core/status.hpp>

#include "support/catch.hpp"

#include <string>
#include <type_traits>

namespace {

using namespace kvtrim;

static_assert(status{}.ok() && status{}.code() == errc::ok && status{}.needed() == 0);
static_assert(!status{errc::plan_mismatch, "no"}.ok());
static_assert(std::is_trivially_copyable_v<status>);
static_assert(sizeof(index_t) == 8 && std::is_signed_v<index_t>);

} // namespace

TEST_CASE("status: it carries a code, a text and the number that would have been enough", "[core]") {
    const status s{errc::workspace_too_small, "more", 42};
    CHECK_FALSE(s.ok());
    CHECK(s.code() == errc::workspace_too_small);
    CHECK(std::string(s.what()) == "more");
    CHECK(s.needed() == 42);
    CHECK(status(errc::budget_zero, "none").needed() == 0);
}

TEST_CASE("status: success has a text too", "[core]") {
    CHECK(std::string(status{}.what()) == "ok");
}
