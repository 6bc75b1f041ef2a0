// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#include "model.hpp"
#include "calibrate.hpp"

#include "cache.hpp"
#include "load_model.hpp"
#include "session.hpp"
#include "tiny_model.hpp"

#include <support/catch.hpp>
#include <support/cpu_levels.hpp>

#include <cmath>

namespace {

using namespace lm;

// Of logits and the oracle's rows from `first` on.
double largest_difference(const matrix& logits, const tiny::rows& right, std::size_t first = 0) {
    double largest = 0;
    for (index_t t = 0; t < logits.rows(); ++t) {
        const auto& row = right[first + static_cast<std::size_t>(t)];
        REQUIRE(std::ssize(row) == logits.cols());
        for (index_t i = 0; i < logits.cols(); ++i) {
            const double difference = static_cast<double>(logits(t, i)) - row[static_cast<std::size_t>(i)];
            largest = std::max(largest, std::abs(difference));
        }
    }
    return largest;
}

// What the rounding of a format may change in this model's logits.
constexpr std::pair<cache_format, double> formats[] = {
    {cache_format::f32, 3e-4}, {cache_format::f16, 2e-2}, {cache_format::q8_0, 4e-1}};

std::vector<kv_cache> empty_caches(const llama_model& model, cache_format format) {
    std::vector<kv_cache> caches;
    for (index_t l = 0; l < model.config.layers; ++l) {
        caches.emplace_back(model.config.kv_heads, model.config.head_dim, format);
    }
    return caches;
}

TEST_CASE("Products with a weight are those of its decoded rows: every format, number of tokens and level") {
    std::mt19937 random(5);
    for (const std::uint32_t type : {0U, 1U, 2U, 3U, 8U}) {
        const tiny::tensor t = tiny::random_tensor(type, 75, 96, random);
        tiny::gguf_parts parts;
        parts.tensors.emplace_back("w", t);
        const weight w = tiny::read(parts.bytes()).tensor("w", 75, 96);
        for (const index_t tokens : {1, 3, 4, 13, 48, 49, 63}) {
            matrix x(tokens, 96);
            for (index_t i = 0; i < x.size(); ++i) {
                x.data()[i] = static_cast<float>(random() % 1000U) / 1000.0F - 0.5F;
            }
            const Eigen::Map<const Eigen::MatrixXd> columns(t.values.data(), 96, 75); // W^T
            const Eigen::MatrixXd right = x.cast<double>() * columns;
            support::at_each_cpu_level([&] {
                INFO("type " << type << ", tokens " << tokens);
                CHECK((w.multiply(x).cast<double>() - right).cwiseAbs().maxCoeff() < 2e-5);
            });
        }
    }
}

TEST_CASE("Logits of a model from GGUF are those of naive loops") {
    tiny::sizes grouped, rich;
    rich.kv_heads = rich.q_heads;
    rich.head = "output";
    for (index_t i = 0; i < rich.head_dim / 2; ++i) {
        rich.slower.push_back(1.0F + 0.25F * static_cast<float>(i));
    }
    for (const tiny::sizes& s : {grouped, rich}) {
        auto parts = tiny::make_parts(s);
        const llama_model model = load_model(tiny::read(parts.bytes()));
        const auto tokens = tiny::random_tokens(60);
        const tiny::rows right = tiny::naive_logits(parts, s, tokens);
        support::at_each_cpu_level(
            [&] { CHECK(largest_difference(prefill(model, tokens, logit_rows::all).logits, right) < 2e-4); });
    }
}

TEST_CASE("A prompt in chunks gives the logits of the prompt in one piece, in every format of the cache") {
    const tiny::sizes s;
    auto parts = tiny::make_parts(s);
    const llama_model model = load_model(tiny::read(parts.bytes()));
    const auto tokens = tiny::random_tokens(300);
    const tiny::rows right = tiny::naive_logits(parts, s, tokens);
    for (const auto& [format, bound] : formats) {
        for (const std::size_t chunk : {1U, 5U, 100U, 128U}) {
            auto caches = empty_caches(model, format);
            double largest = 0;
            for (std::size_t at = 0; at < tokens.size(); at += chunk) {
                const auto part = std::span(tokens).subspan(at, std::min(chunk, tokens.size() - at));
                const matrix logits = decode(model, caches, part, static_cast<index_t>(at));
                largest = std::max(largest, largest_difference(logits, right, at));
            }
            INFO(name_of(format) << " in chunks of " << chunk << ": " << largest);
            CHECK(largest < bound);
        }
    }
}

TEST_CASE("Tokens that cannot be run are refused") {
    const llama_model model = load_model(tiny::read(tiny::make_parts().bytes()));
    CHECK_THROWS_AS(prefill(model, std::vector<token_id>{-1}), std::out_of_range);
    CHECK_THROWS_AS(prefill(model, std::vector<token_id>{100000}), std::out_of_range);
    CHECK_THROWS_AS(prefill(model, std::vector<token_id>{}), std::invalid_argument);
}

// ---- Cuts ----

// Keeps about 1 / (2 + h) of head h.
kvtrim::keep_plan random_plan(index_t heads, index_t tokens, std::mt19937& random) {
    std::vector<std::vector<std::int32_t>> kept(static_cast<std::size_t>(heads));
    std::vector<kvtrim::index_t> counts;
    for (std::size_t h = 0; h < kept.size(); ++h) {
        for (std::int32_t t = 0; t < tokens; ++t) {
            if (random() % (2U + h) == 0) { kept[h].push_back(t); }
        }
        counts.push_back(std::ssize(kept[h]));
    }
    kvtrim::keep_plan plan;
    REQUIRE(plan.reset(counts).ok());
    for (std::size_t h = 0; h < kept.size(); ++h) {
        std::copy(kept[h].begin(), kept[h].end(), plan.writable_row(static_cast<index_t>(h)).begin());
    }
    return plan;
}

TEST_CASE("Decoding over caches that were cut is masked attention over the full ones, head by head") {
    const tiny::sizes s;
    auto parts = tiny::make_parts(s);
    const llama_model model = load_model(tiny::read(parts.bytes()));
    const auto tokens = tiny::random_tokens(230);
    constexpr index_t prompt = 200;
    for (const auto& [format, bound] : formats) {
        std::mt19937 random(11);
        auto caches = empty_caches(model, format);
        static_cast<void>(decode(model, caches, std::span(tokens).first(prompt), 0));
        std::vector<kvtrim::keep_plan> plans;
        for (kv_cache& cache : caches) {
            plans.push_back(random_plan(s.kv_heads, prompt, random));
            cache.cut(plans.back(), plans.size() == 1 ? 0 : 40);
            CHECK(cache.total_rows() == plans.back().total_tokens());
        }
        const auto sees = [&](index_t layer, index_t head, index_t query, index_t key) {
            const auto row = plans[static_cast<std::size_t>(layer)].row(head);
            return query < prompt || key >= prompt ||
                   std::binary_search(row.begin(), row.end(), static_cast<std::int32_t>(key));
        };
        const tiny::rows right = tiny::naive_logits(parts, s, tokens, sees);
        std::size_t at = prompt;
        for (const std::size_t count : {1U, 1U, 3U, 25U}) {
            const auto part = std::span(tokens).subspan(at, count);
            const matrix logits = decode(model, caches, part, static_cast<index_t>(at));
            const double difference = largest_difference(logits, right, at);
            INFO(name_of(format) << ", " << count << " tokens: " << difference);
            CHECK(difference < bound);
            at += count;
        }
    }
}

TEST_CASE("A plan for another cache is refused and changes nothing") {
    kv_cache cache(2, 32, cache_format::f16);
    const head_tensor rows(2, 10, 32);
    cache.append(rows, rows);
    std::mt19937 random(1);
    CHECK_THROWS_AS(cache.cut(random_plan(3, 10, random)), std::runtime_error);
    CHECK_THROWS_AS(cache.cut(random_plan(2, 100, random)), std::runtime_error);
    CHECK(cache.total_rows() == 20);
    CHECK_THROWS_AS(kv_cache(2, 48, cache_format::q8_0), std::invalid_argument);
}

TEST_CASE("What a cut frees is the system's again") {
    kv_cache cache(4, 64, cache_format::f32);
    cache.reserve(16384);
    {
        const head_tensor rows(4, 16384, 64);
        cache.append(rows, rows);
    }
    const std::size_t before = resident_bytes(), held = cache.held_bytes();
    CHECK(held == std::size_t{2} * 4 * 16384 * 64 * 4);
    const std::vector<kvtrim::index_t> counts(4, 100);
    kvtrim::keep_plan plan;
    REQUIRE(plan.reset(counts).ok());
    for (index_t h = 0; h < 4; ++h) {
        for (std::int32_t i = 0; i < 100; ++i) { plan.writable_row(h)[static_cast<std::size_t>(i)] = 5 * i; }
    }
    cache.cut(plan, 16);
    CHECK(cache.held_bytes() == std::size_t{2} * 4 * (100 + 16) * 64 * 4);
    if (before > 0) { CHECK(before - resident_bytes() > held - 2'000'000); }
}

TEST_CASE("Every policy cuts a session to its share, and the session runs on") {
    const llama_model model = load_model(tiny::read(tiny::make_parts().bytes()));
    const auto tokens = tiny::random_tokens(256);
    const std::vector<token_id> further{5, 6}, lead{1, 2, 3};
    const kvtrim::row_profile profile = calibrate(model, tiny::random_tokens(128), lead);
    CHECK(profile.rows() == model.config.layers * model.config.kv_heads);
    const policy_aids aids{lead, &profile, {0.5, 2}};
    for (const named_policy& policy : all_policies()) {
        INFO(policy.name);
        const index_t observed_tokens = policy.queries == observed::whole_prompt ? 256 : 32;
        session sequence(model, cache_format::f16, 300, aids);
        static_cast<void>(sequence.prefill(tokens, observed_tokens));
        const auto whole = static_cast<double>(sequence.cache_bytes());
        const matrix before = sequence.step(further);
        sequence.cut(sequence.plan(policy, {.kept_ratio = 0.5}), 8);
        CHECK(sequence.tokens() == 256);
        CHECK(static_cast<double>(sequence.cache_bytes()) <= 0.51 * whole);
        CHECK(sequence.step(further).allFinite());

        session all(model, cache_format::f16, 0, aids); // whose room grows
        static_cast<void>(all.prefill(tokens, observed_tokens));
        all.cut(all.plan(policy, {.kept_ratio = 1.0}));
        CHECK(static_cast<double>(all.cache_bytes()) == whole);
        CHECK((all.step(further) - before).cwiseAbs().maxCoeff() < 1e-5F);
    }
}

TEST_CASE("A replay in parts scores every row, and leaves the sequence as it was") {
    const llama_model model = load_model(tiny::read(tiny::make_parts().bytes()));
    const auto tokens = tiny::random_tokens(700); // more than a part
    session sequence(model, cache_format::f32, 800, {{1, 2, 3}, nullptr});
    const matrix logits = sequence.prefill(tokens, 700);
    const std::size_t bytes = sequence.cache_bytes();
    for (const scoring_pass pass : {scoring_pass::replay, scoring_pass::own}) {
        const kvtrim::token_loss loss = kvtrim::token_loss::attention_maximum;
        const auto scores = sequence.score(pass, {&loss, 1}).front();
        CHECK(sequence.cache_bytes() == bytes);
        for (const kvtrim::replay_scores& layer : scores) {
            for (index_t h = 0; h < layer.kv_heads(); ++h) {
                for (index_t t = 0; t < 700; ++t) {
                    // Nobody looks at the newest rows from afar.
                    const bool seen = pass == scoring_pass::replay || t + afar_tokens < 700;
                    CHECK((layer.score(h, t) > 0) == seen);
                }
            }
        }
    }
    const std::vector<token_id> further{5, 6};
    CHECK(sequence.step(further).allFinite());
    CHECK_THROWS(sequence.plan(policy_named("profiled_key_diff"), {})); // without a table
    CHECK_THROWS(sequence.plan(policy_named("snapkv_by_shares"), {}));  // without shares
}

bool are_equal(const std::vector<kvtrim::keep_plan>& one, const std::vector<kvtrim::keep_plan>& other) {
    return std::equal(one.begin(), one.end(), other.begin(), other.end(), [](const auto& a, const auto& b) {
        return std::ranges::equal(a.offsets(), b.offsets()) && std::ranges::equal(a.kept(), b.kept());
    });
}

TEST_CASE("A policy with an option by name plans as one whose config has it") {
    const llama_model model = load_model(tiny::read(tiny::make_parts().bytes()));
    const kvtrim::row_profile profile = calibrate(model, tiny::random_tokens(128), {});
    session sequence(model, cache_format::f32, 256, {{}, &profile});
    static_cast<void>(sequence.prefill(tiny::random_tokens(256), 256));
    const cut_request half{.kept_ratio = 0.5};
    const auto plans = [&](const char* text) { return sequence.plan(policy_named(text), half); };
    // Each of the defaults by name, then another value.
    for (const auto& [plain, same, other] : std::vector<std::array<const char*, 3>>{
             {"snapkv", "snapkv:kernel_tokens=5:pool=average", "snapkv:pool=none"},
             {"ada_snapkv", "ada_snapkv:safeguard_ratio=0.2", "ada_snapkv:safeguard_ratio=1"},
             {"criticalkv", "criticalkv:epsilon=1e-4:epsilon_relative=0", "criticalkv:epsilon=1"},
             {"defensivekv", "defensivekv:first_at_most=0.5", "defensivekv:first_at_most=1"},
             {"layer_defensivekv", "layer_defensivekv:safeguard_ratio=0.7",
              "layer_defensivekv:safeguard_ratio=1"},
             {"consensuskv", "consensuskv:lambda=1", "consensuskv:lambda=0"},
             {"layer_afar", "layer_afar:nearest=32:safeguard_ratio=0", "layer_afar:nearest=8"},
             {"profiled", "profiled:nearest=32", "profiled:nearest=8"},
             {"replay_afar", "replay_afar:nearest=32:weight=2", "replay_afar:weight=0"},
             {"replay_output", "replay_afar:weight=0", "replay_afar:nearest=8"},
             {"replay_output", "replay:loss=output_squares", "replay:loss=output"},
             {"replay", "replay:rows=model:loss=attention", "replay:rows=layer"},
             {"replay:rows=layer", "replay:softmax=cache:rows=layer", "replay:rows=head"},
             {"replay", "replay:value_norms=0", "replay:value_norms=1"},
             // A prompt of one part.
             {"replay:value_norms=1", "replay:softmax=part:value_norms=1", "replay"},
         }) {
        INFO(other);
        CHECK(policy_named(other).name == other);
        CHECK(are_equal(plans(same), plans(plain)));
        CHECK_FALSE(are_equal(plans(other), plans(plain)));
    }
    CHECK(&policy_named("snapkv:pool=none") == &policy_named("snapkv:pool=none"));
    CHECK_THROWS(plans("snapkv:kernel_tokens=4")); // kvtrim refuses
}

TEST_CASE("What is no option, no value or no policy is refused with its name") {
    for (const auto& [text, message] : std::vector<std::pair<const char*, const char*>>{
             {"no_policy:pool=none", "unknown policy no_policy"},
             {"random:seed=1", "random has no options"},
             {"snapkv:", "snapkv: '' is not option=value"},
             {"snapkv:pool=none:", "snapkv: '' is not option=value"},
             {"snapkv:pool", "snapkv: 'pool' is not option=value"},
             {"snapkv:=3", "snapkv: '=3' is not option=value"},
             {"snapkv:kernel=3", "snapkv: no option 'kernel'; there is kernel_tokens, pool"},
             {"snapkv:kernel_tokens=3.5", "snapkv: kernel_tokens=3.5 is not a number"},
             {"snapkv:kernel_tokens=", "snapkv: kernel_tokens= is not a number"},
             {"snapkv:pool=max", "snapkv: pool=max is not one of none, average, maximum"},
             {"snapkv:pool=none:pool=none", "snapkv: pool is given twice"},
         }) {
        INFO(text);
        std::string said; // twice: what was refused is not remembered
        for (int i = 0; i < 2; ++i) {
            try {
                static_cast<void>(policy_named(text));
            } catch (const std::invalid_argument& error) { said = error.what(); }
            CHECK(said == message);
            said.clear();
        }
    }
}

TEST_CASE("Options of a pruned prefill go by name, and what is none is refused") {
    const block_pruning plain(256), chosen(256, "sink_blocks=0:local_blocks=2:scale=1:block_tokens=16");
    CHECK(plain.policy.options.budget_tokens == 256);
    CHECK(plain.policy.options.sink_blocks == kvtrim::pruning_options{}.sink_blocks);
    CHECK(chosen.policy.options.sink_blocks == 0);
    CHECK(chosen.policy.options.local_blocks == 2);
    CHECK(chosen.policy.options.block_tokens == 16);
    CHECK(chosen.policy.criticality.scale == 1);
    CHECK_THROWS(block_pruning(256, "sinks=1"));
    CHECK_THROWS(block_pruning(256, "scale=much"));
}

TEST_CASE("One replay for two losses scores as one for each") {
    const llama_model model = load_model(tiny::read(tiny::make_parts().bytes()));
    session sequence(model, cache_format::f32, 600, {{1, 2, 3}, nullptr});
    static_cast<void>(sequence.prefill(tiny::random_tokens(600), 1));
    const std::array both{kvtrim::token_loss::attention_maximum, kvtrim::token_loss::output_square_sum};
    const auto together = sequence.score(scoring_pass::replay, both);
    for (std::size_t i = 0; i < both.size(); ++i) {
        const auto alone = sequence.score(scoring_pass::replay, {&both[i], 1}).front();
        for (std::size_t l = 0; l < alone.size(); ++l) {
            for (index_t t = 0; t < 600; ++t) { CHECK(together[i][l].score(0, t) == alone[l].score(0, t)); }
        }
    }
    // Over two parts each row competes with its own part's alone.
    const auto of_parts = sequence.score(scoring_pass::replay, {both.data(), 1}, afar_tokens, true).front();
    double over_cache = 0, over_part = 0;
    for (index_t t = 512; t < 600; ++t) { // the second, of 88 rows
        over_cache += static_cast<double>(together[0].front().score(0, t));
        over_part += static_cast<double>(of_parts.front().score(0, t));
    }
    CHECK(over_part > 1.5 * over_cache);
}

TEST_CASE("A fork that goes on from a prompt is the sequence of both in one piece, plans included") {
    const llama_model model = load_model(tiny::read(tiny::make_parts().bytes()));
    const auto tokens = tiny::random_tokens(300);
    const std::span<const token_id> first(tokens.data(), 290), rest(tokens.data() + 290, 10);
    const std::vector<token_id> further{5, 6}, lead{1, 2, 3};
    for (const char* const name : {"snapkv", "h2o", "layer_afar", "replay", "replay_afar"}) {
        INFO(name);
        const named_policy& policy = policy_named(name);
        const index_t observed = policy.queries == observed::whole_prompt ? 300 : 32;
        session whole(model, cache_format::f32, 300, {lead, nullptr}),
            part(model, cache_format::f32, 0, {lead, nullptr});
        const matrix logits = whole.prefill(tokens, observed);
        static_cast<void>(part.prefill(first, observed));
        const std::size_t bytes = part.cache_bytes();
        session fork = part.fork(10);
        CHECK((fork.prefill(rest, observed) - logits).cwiseAbs().maxCoeff() < 1e-5F);
        CHECK(fork.tokens() == 300);
        CHECK(are_equal(fork.plan(policy, {.kept_ratio = 0.5}), whole.plan(policy, {.kept_ratio = 0.5})));
        CHECK(part.tokens() == 290);
        CHECK(part.cache_bytes() == bytes);
        // Queries of tokens that were run since then are nobody's: only what follows is observed.
        static_cast<void>(fork.step(further));
        static_cast<void>(fork.prefill(rest, observed));
        if (observed == 300) { CHECK_THROWS(fork.plan(policy, {.kept_ratio = 0.5})); }
    }
}

} // namespace
