// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/cache/row_source.hpp>

#include "core/own_views.hpp"
#include "support/catch.hpp"

#include <limits>
#include <vector>

using namespace kvtrim;

static_assert(cache_view<strided<const float, 3>> && !row_source<strided<const float, 3>>);
static_assert(cache_view<own::indexable> && row_source<own::quantised> && cache_view<own::quantised>);
static_assert(!cache_view<strided<float, 2>> && !cache_view<std::vector<float>>);
static_assert(is_made_of<strided<const bf16, 3>, bf16> && !is_made_of<strided<const bf16, 3>, float>);
static_assert(is_made_of<own::mdspan_like<float>, float> && std::is_void_v<stored_element<own::indexable>> &&
              std::is_void_v<stored_element<own::quantised>> &&
              std::is_void_v<stored_element<own::scaled_mdspan<float>>>);

TEST_CASE("row_count: a source may have heads of different length", "[core]") {
    struct uneven {
        static index_t extent(std::size_t r) { return r == 0 ? 2 : r == 1 ? 5 : 1; }
        static index_t rows(index_t head) { return head == 0 ? 5 : 3; }
        static void load_rows(index_t, index_t, index_t, float*) {}
    };
    CHECK(row_count(uneven{}, 0) == 5);
    CHECK(row_count(uneven{}, 1) == 3);
    CHECK(extent(uneven{}, 1) == 5);
    CHECK(row_count(own::indexable{{2, 7, 1}}, 1) == 7);
}

namespace {

// A source that says only what it must.
struct told {
    std::array<index_t, 3> extents;

    [[nodiscard]] index_t extent(std::size_t r) const { return extents[r]; }
    void load_rows(index_t, index_t, index_t, float*) const { FAIL("rows were read"); }
};
struct told_rows : told {
    index_t of_last_head;

    [[nodiscard]] index_t rows(index_t head) const {
        return head + 1 == extents[0] ? of_last_head : extents[1];
    }
};

} // namespace

TEST_CASE("validate: a view that does not answer itself is asked for its extents, its rows and its memory",
          "[core][errors]") {
    constexpr index_t most = std::numeric_limits<index_t>::max();
    CHECK(validate(told{{2, 3, 4}}).ok());
    CHECK(validate(told{{2, 0, 4}}).ok());
    CHECK(validate(told{{2, -1, 4}}).code() == errc::invalid_parameter);
    CHECK(validate(told{{most, most, 4}}).code() == errc::invalid_parameter);
    CHECK(validate(told{{most, 0, most}}).code() == errc::invalid_parameter);
    CHECK(validate(told_rows{{{2, 3, 4}}, 3}).ok());
    CHECK(validate(told_rows{{{2, 3, 4}}, 0}).ok());
    CHECK(validate(told_rows{{{2, 3, 4}}, 4}).code() == errc::invalid_parameter);
    CHECK(validate(told_rows{{{2, 3, 4}}, -1}).code() == errc::invalid_parameter);

    std::vector<float> data(24);
    using mdspan = own::mdspan_like<const float>;
    CHECK(validate(mdspan{data.data(), {2, 3, 4}, {12, 4, 1}}).ok());
    CHECK(validate(mdspan{nullptr, {2, 0, 4}, {12, 4, 1}}).ok());
    CHECK(validate(mdspan{nullptr, {2, 3, 4}, {12, 4, 1}}).code() == errc::invalid_parameter);
    CHECK(validate(mdspan{data.data(), {2, -3, 4}, {12, 4, 1}}).code() == errc::invalid_parameter);
    CHECK(validate(own::indexable{{2, -3, 4}}).code() == errc::invalid_parameter);
    CHECK(validate(strided<float, 2>(nullptr, {2, 3})).code() == errc::invalid_parameter);
}
