// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/attention/kept_logits.hpp>

#include "support/checks.hpp"

using namespace kvtrim;
using support::counted_executor;

namespace {

// Floats that each KV head may keep, in a workspace of so many bytes.
template <class Executor>
std::vector<std::size_t> floats_kept(const kept_logits& logits, index_t heads, index_t bytes, Executor ex) {
    growing_workspace memory;
    workspace scratch = memory.of_bytes(bytes);
    std::vector<std::size_t> kept(static_cast<std::size_t>(heads));
    const auto take = [](workspace& own) { static_cast<void>(own.take<float>(100)); };
    const status s =
        logits.for_each_head(scratch, ex, take, [&](index_t g, std::span<float> floats, workspace& own) {
            kept[static_cast<std::size_t>(g)] = floats.size();
            take(own);
            CHECK(own.fits());
        });
    CHECK(s.ok());
    return kept;
}

} // namespace

TEST_CASE("kept_logits: all workers share one bound, so a serial call keeps as much as a wide one",
          "[attention]") {
    const support::layer_data layer =
        support::random_layer({.kv_heads = 4, .group = 2, .tokens = 1000, .head_dim = 4, .queries = 64}, 1);
    const auto in = layer.inputs();
    constexpr index_t bound = 65536; // floats
    const kept_logits logits(in, 0, bound * 4);
    const auto take = [](workspace& own) { static_cast<void>(own.take<float>(100)); };
    const auto bytes_of = [&](const auto& ex) { return logits.workspace_bytes(ex, take); };
    using sizes = std::vector<std::size_t>;
    const index_t serial = bytes_of(serial_executor{});
    CHECK(serial > bound * 4);
    CHECK(serial < bound * 4 + 1024);
    CHECK(floats_kept(logits, 4, serial, serial_executor{}) == sizes(4, bound));
    for (const int width : {2, 4}) {
        const counted_executor ex{width};
        const auto share = static_cast<std::size_t>(bound / width);
        CHECK(bytes_of(ex) >= serial);
        CHECK(bytes_of(ex) < serial + width * 1024);
        CHECK(floats_kept(logits, 4, bytes_of(ex), ex) == sizes(4, share));
        // What was sized for fewer workers runs so many, and for more runs all there are.
        CHECK(floats_kept(logits, 4, serial, ex) == sizes(4, bound));
        CHECK(floats_kept(logits, 4, bytes_of(ex), counted_executor{2}) == sizes(4, bound / 2));
        CHECK(floats_kept(logits, 4, bytes_of(ex), serial_executor{}) == sizes(4, bound));
    }
    CHECK(floats_kept(logits, 4, bytes_of(counted_executor{2}), counted_executor{4}) == sizes(4, bound / 2));
    workspace small({});
    serial_executor ex;
    const auto no_call = [](index_t, std::span<float>, workspace&) { CHECK(false); };
    CHECK(logits.for_each_head(small, ex, take, no_call).code() == errc::workspace_too_small);
}

TEST_CASE("kept_logits: no worker keeps more than a row group's, nor any without memory for it",
          "[attention]") {
    const support::layer_data layer =
        support::random_layer({.kv_heads = 2, .group = 2, .tokens = 500, .head_dim = 4, .queries = 80}, 1);
    const auto in = layer.inputs();
    using sizes = std::vector<std::size_t>;
    const auto kept = [&](index_t newest, index_t most_bytes) {
        const kept_logits logits(in, newest, most_bytes);
        return floats_kept(logits, 2, index_t{1} << 24, serial_executor{});
    };
    CHECK(kept(0, kept_logits::default_bytes) == sizes(2, 128 * 500)); // of 160 rows
    CHECK(kept(3, kept_logits::default_bytes) == sizes(2, 6 * 500));
    CHECK(kept(200, kept_logits::default_bytes) == sizes(2, 128 * 500));
    CHECK(kept(0, 0) == sizes(2, 0));
}
