// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#include "quality_report.hpp"

#include "load_model.hpp"
#include "tiny_model.hpp"

#include <support/catch.hpp>

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <set>

namespace {

using namespace lm;

// A file that goes with its owner.
class text_file {
  public:
    text_file(const std::string& name, const std::string& text)
        : path_((std::filesystem::temp_directory_path() / ("kvtrim_quality_" + name)).string()) {
        std::ofstream(path_) << text;
    }
    text_file(const text_file&) = delete;
    text_file& operator=(const text_file&) = delete;
    ~text_file() { std::remove(path_.c_str()); }
    [[nodiscard]] const std::string& path() const { return path_; }

  private:
    std::string path_;
};

// Paragraphs of sentences, each with a number of its own.
std::string paragraphs(const std::string& color) {
    std::string text;
    for (int i = 1000; i < 4000; ++i) {
        text += color + " #" + std::to_string(i) + "# is. Is it? As e.g. that " + color + "!\n";
    }
    return text;
}

// Numbers of the paragraphs that a text has something of.
std::set<std::string> numbers_of(const std::string& text) {
    std::set<std::string> numbers;
    for (std::size_t at = text.find('#'); at != text.npos; at = text.find('#', at + 1)) {
        if (at + 5 < text.size() && text[at + 5] == '#') { numbers.insert(text.substr(at + 1, 4)); }
    }
    return numbers;
}

struct world {
    gguf file = tiny::read(tiny::make_parts().bytes());
    tokenizer words{file};
    llama_model model = load_model(file);
    text_file choosing{"choosing.txt", paragraphs("Red")};
    text_file judging{"judging.txt", paragraphs("Blue")};
    std::unique_ptr<sample_source> source = text_source(words, choosing.path(), judging.path());
};

bool contains(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

TEST_CASE("A context has exactly as many tokens as were asked for, and every value that is asked about") {
    const world w;
    for (const std::string_view task : needle_tasks) {
        for (const needle_values values : w.source->values()) {
            for (const std::uint64_t seed : {0U, 1U, 1000U, 1001U}) {
                for (const index_t tokens : {600, 1024}) {
                    const needle_sample s = w.source->needles(task, values, tokens, seed);
                    CHECK(std::ssize(s.context) == tokens);
                    const std::string text = w.words.decode(s.context);
                    std::size_t asked = 0;
                    for (const asked_question& q : s.questions) {
                        for (const token_range& v : q.values) {
                            const std::span<const token_id> answer(q.answer);
                            const std::string value =
                                w.words.decode(answer.subspan(static_cast<std::size_t>(v.begin),
                                                              static_cast<std::size_t>(v.end - v.begin)));
                            CHECK(contains(text, " is:" + value + "."));
                            ++asked;
                        }
                    }
                    CHECK(asked == (task == "single" ? 1U : 4U));
                    CHECK(w.source->needles(task, values, tokens, seed).context == s.context);
                }
            }
        }
    }
    CHECK_THROWS_AS(w.source->needles("single", needle_values::numbers, 64, 0), std::invalid_argument);
    CHECK_THROWS_AS(w.source->needles("most", needle_values::numbers, 1024, 0), std::invalid_argument);
    CHECK_THROWS_AS(w.source->needles("chain", needle_values::numbers, 1024, 0), std::invalid_argument);
}

TEST_CASE("The demo's samples have every task, each with a question and its answer") {
    const auto source = recall_source();
    for (const std::string_view task : all_needle_tasks) {
        INFO(task);
        const needle_sample s = source->needles(task, needle_values::numbers, 512, 3);
        CHECK(std::ssize(s.context) == 512);
        REQUIRE_FALSE(s.questions.empty());
        for (const asked_question& q : s.questions) { CHECK(q.values.back().end == std::ssize(q.answer)); }
    }
}

TEST_CASE("One question for all keys is asked about the text with a question for each") {
    const world w;
    const needle_sample each = w.source->needles("multikey", needle_values::words, 1024, 3);
    const needle_sample all = w.source->needles("multiquery", needle_values::words, 1024, 3);
    CHECK(each.context == all.context);
    CHECK(each.questions.size() == 4);
    REQUIRE(all.questions.size() == 1);
    CHECK(all.questions[0].values.size() == 4);
}

TEST_CASE("The values of one key are asked in the order of the text") {
    const world w;
    for (std::uint64_t seed = 0; seed < 20; ++seed) {
        const needle_sample s = w.source->needles("multivalue", needle_values::words, 1024, seed);
        const std::string text = w.words.decode(s.context), answer = w.words.decode(s.questions.at(0).answer);
        std::size_t last = 0;
        for (const token_range& v : s.questions[0].values) {
            const std::span<const token_id> tokens(s.questions[0].answer);
            const std::size_t at =
                text.find(" is:" +
                          w.words.decode(tokens.subspan(static_cast<std::size_t>(v.begin),
                                                        static_cast<std::size_t>(v.end - v.begin))) +
                          ".");
            CHECK(at > last);
            last = at;
        }
    }
}

TEST_CASE("Samples that judge share no text, key or word with samples that choose") {
    const world w;
    std::set<std::string> chosen;
    const auto asked = [&](std::uint64_t seed) {
        const needle_sample s = w.source->needles("multikey", needle_values::words, 1024, seed);
        std::set<std::string> all;
        for (const asked_question& q : s.questions) {
            const std::string text = w.words.decode(q.question);
            const std::size_t at = text.find(" for ") + 5;
            all.insert(text.substr(at, text.find(' ', at) - at));
            all.insert(w.words.decode(q.answer));
        }
        CHECK(contains(w.words.decode(s.context), "Red") == (seed < first_judging_seed));
        CHECK(contains(w.words.decode(s.context), "Blue") == (seed >= first_judging_seed));
        return all;
    };
    for (std::uint64_t seed = 0; seed < 40; ++seed) { chosen.merge(asked(seed)); }
    for (std::uint64_t seed = 1000; seed < 1040; ++seed) {
        for (const std::string& name : asked(seed)) { CHECK_FALSE(chosen.contains(name)); }
    }
    CHECK_FALSE(contains(w.words.decode(w.source->text(100, 50, 3).context), "lue"));
    CHECK(std::ssize(w.source->text(100, 50, 1003).next) == 50);
}

TEST_CASE("Samples of different seeds have no text in common, nor with the text of a table") {
    const world w;
    const auto require_different = [&](std::uint64_t first_seed, const auto& text_of) {
        std::set<std::string> before = numbers_of(w.words.decode(w.source->calibration()));
        CHECK_FALSE(before.empty());
        for (std::uint64_t seed = first_seed; seed < first_seed + 16; ++seed) {
            const std::set<std::string> now = numbers_of(w.words.decode(text_of(seed)));
            CHECK(now.size() > 10);
            for (const std::string& number : now) { CHECK(before.insert(number).second); }
        }
    };
    for (const std::uint64_t first_seed : {std::uint64_t{0}, first_judging_seed}) {
        for (const std::string_view task : needle_tasks) {
            require_different(first_seed, [&](std::uint64_t seed) {
                return w.source->needles(task, needle_values::numbers, 1024, seed).context;
            });
        }
        require_different(first_seed, [&](std::uint64_t seed) {
            running_text text = w.source->text(1024, 256, seed);
            CHECK(std::ssize(text.context) == 1024);
            CHECK(std::ssize(text.next) == 256);
            text.context.insert(text.context.end(), text.next.begin(), text.next.end());
            return text.context;
        });
    }
    CHECK(std::ssize(w.source->calibration()) == calibration_tokens);
}

TEST_CASE("A seed that no text is left for is refused, before anything is measured") {
    const world w;
    const auto refused = [&](const auto& call) {
        try {
            call();
        } catch (const std::invalid_argument& error) { return std::string(error.what()); }
        return std::string();
    };
    const std::string long_text = refused([&] { (void)w.source->text(20'000, 1, 1500); });
    CHECK(contains(long_text, "kvtrim_quality_judging.txt has "));
    CHECK(contains(long_text, " texts of 20001 tokens that do not overlap, seeds 1000 to 100"));
    CHECK(contains(long_text, "there is none for seed 1500"));
    CHECK(contains(refused([&] { (void)w.source->text(10'000'000, 1, 3); }),
                   "choosing.txt has 0 texts of 10000001 tokens that do not overlap; there is none"));
    CHECK(contains(refused([&] { (void)w.source->needles("single", needle_values::words, 4096, 999); }),
                   "texts of 4096 tokens"));

    quality_request request{.policies = {"streaming_llm"},
                            .kept_ratios = {0.5},
                            .tasks = {"text"},
                            .values = {},
                            .question_seen = {},
                            .tokens = {1024},
                            .samples = 999,
                            .first_seed = 0};
    CHECK_THROWS_AS(
        measure_quality(w.model, *w.source, request,
                        [](index_t, index_t, const std::string&) { FAIL("the measurement began"); }),
        std::invalid_argument);

    const text_file small("small.txt", "Red.\n"); // of fewer tokens than a table is made from
    const auto source = text_source(w.words, small.path(), small.path());
    CHECK(contains(refused([&] { (void)source->calibration(); }), "fewer than 1024 tokens"));
    CHECK_THROWS_AS(source->text(2, 1, 0), std::invalid_argument);
}

TEST_CASE("A standard error is that of the mean, and of a ratio whose wholes differ") {
    const estimate mean = mean_of({1, 2, 3, 6});
    CHECK(mean.mean == Approx(3));
    CHECK(mean.standard_error == Approx(std::sqrt(14.0 / 3 / 4)));
    const estimate ratio = ratio_of({1, 2}, {2, 2});
    CHECK(ratio.mean == Approx(0.75));
    CHECK(ratio.standard_error == Approx(0.25));
    CHECK(ratio_of({0, 3}, {0, 4}).mean == Approx(0.75));
    CHECK(ratio_of({0, 3}, {0, 4}).standard_error == Approx(0)); // a sample without questions says nothing
    CHECK(ratio_of({}, {}).mean == 0);
    CHECK(mean_of({5}).standard_error == 0);
}

// Next-token distributions of the full cache, as mean KL against those of a forward pass that sees everything.
TEST_CASE("A cache that keeps everything loses nothing, one that keeps a tenth differs, more than one that "
          "keeps half") {
    const world w;
    quality_request request{.policies = {"streaming_llm", "h2o"},
                            .kept_ratios = {1, 0.5, 0.1},
                            .tasks = {"multikey", "text"},
                            .values = {needle_values::numbers},
                            .question_seen = {false, true},
                            .tokens = {512},
                            .samples = 2,
                            .first_seed = 7,
                            .next_tokens = 24,
                            .window_tokens = 16};
    index_t calls = 0, last = 0;
    const quality_results results =
        measure_quality(w.model, *w.source, request, [&](index_t done, index_t all, const std::string&) {
            ++calls;
            last = all - done;
        });
    CHECK(calls == 7);
    CHECK(last == 0);
    CHECK(check_whole_caches(results).empty());
    for (const std::string policy : {"streaming_llm", "h2o"}) {
        const auto cell = [&](double share) -> const quality_cell& {
            return results.cells.at({512, "text", "", false, policy, share});
        };
        REQUIRE(cell(1).kl.size() == 2);
        CHECK(mean_of(cell(1).kl).mean == 0);
        CHECK(mean_of(cell(0.1).kl).mean > mean_of(cell(0.5).kl).mean);
        CHECK(mean_of(cell(0.5).kl).mean > 0);
        for (const double e : cell(1).error_projected) { CHECK(e == 0); }
        for (const double e : cell(0.1).error) { CHECK((e > 0 && e < 2)); }
        for (const double rows : cell(0.5).kept_rows) { CHECK(rows == 256); }
        CHECK(std::ssize(cell(0.5).error) == w.model.config.layers * w.model.config.q_heads);
    }

    // The file says all of it.
    const text_file file("results.json", json_of(results, {"m", "t"}, request).dump());
    quality_results read;
    read_results(file.path(), read);
    CHECK(tables_of(read) == tables_of(results));
    CHECK(contains(tables_of(results), "| `streaming_llm` | 0.0000 ± 0.0000 |"));
    for (const std::string text : {R"({"kv_heads": 1, "rows": [{"tokens": "many"}]})",
                                   R"({"kv_heads": 0, "rows": []})", R"({"rows": []})", "no"}) {
        const text_file broken("broken.json", text);
        CHECK_THROWS_AS(read_results(broken.path(), read), std::runtime_error);
    }
}

// Without queries to score, what stays is known: the sinks and the newest rows.
TEST_CASE("A text in a cache that is cut again and again is predicted from the sinks and the newest rows") {
    const world w;
    quality_request request{.policies = {"streaming_llm", "h2o", "triattention", "expected_attention"},
                            .kept_ratios = {1, 0.25},
                            .tasks = {"live"},
                            .values = {},
                            .question_seen = {},
                            .tokens = {512},
                            .samples = 1,
                            .first_seed = 7,
                            .next_tokens = 2};
    const auto quiet = [](index_t, index_t, const std::string&) {};
    const quality_results results = measure_quality(w.model, *w.source, request, quiet);
    CHECK(check_whole_caches(results).empty());
    std::set<double> different;
    for (const std::string& policy : request.policies) {
        const quality_cell& cell = results.cells.at({512, "live", "", false, policy, 0.25});
        REQUIRE(cell.kl.size() == 1);
        CHECK(cell.kl.front() > 0);
        different.insert(cell.kl.front());
    }
    CHECK(different.size() == request.policies.size());
    CHECK(contains(tables_of(results), "### A text of 512 tokens in a cache that is cut every 64"));

    const std::vector<token_id> text = w.source->text(512, 2, 7).context;
    std::vector<kv_cache> whole, cut;
    for (index_t l = 0; l < w.model.config.layers; ++l) {
        for (std::vector<kv_cache>* caches : {&whole, &cut}) {
            caches->emplace_back(w.model.config.kv_heads, w.model.config.head_dim, cache_format::f32);
        }
    }
    double kl = 0;
    for (index_t i = 0; i < 512; i += 64) {
        for (kv_cache& cache : cut) {
            if (cache.rows(0) <= 128) { continue; }
            kvtrim::keep_plan plan;
            REQUIRE(plan.reset(std::vector<index_t>(static_cast<std::size_t>(cache.kv_heads()), 128)).ok());
            for (index_t h = 0; h < cache.kv_heads(); ++h) {
                const auto row = plan.writable_row(h);
                for (std::int32_t r = 0; r < 128; ++r) {
                    row[static_cast<std::size_t>(r)] = r < 4 ? r : r + 64;
                }
            }
            cache.cut(plan);
        }
        const auto tokens = std::span(text).subspan(static_cast<std::size_t>(i), 64);
        matrix p = decode(w.model, whole, tokens, i), q = decode(w.model, cut, tokens, i);
        log_softmax(p);
        log_softmax(q);
        if (i >= 256) { kl += mean_kl(p, q) / 4; }
    }
    CHECK(results.cells.at({512, "live", "", false, "streaming_llm", 0.25}).kl.front() ==
          Approx(kl).epsilon(1e-3));

    request.policies = {"replay"};
    CHECK_THROWS_AS(measure_quality(w.model, *w.source, request, quiet), std::invalid_argument);
}

TEST_CASE("A whole cache that lost something is found, and so is a check of nothing") {
    quality_results results;
    CHECK_FALSE(check_whole_caches(results).empty());
    results.cells[{512, "text", "", false, "snapkv", 1}].kl = {0, 0};
    CHECK(check_whole_caches(results).empty());
    results.cells[{512, "text", "", false, "snapkv", 1}].kl = {0, 1e-3};
    CHECK(contains(check_whole_caches(results), "snapkv"));
}

} // namespace
