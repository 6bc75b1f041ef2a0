// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#include "calibrate.hpp"

#include "load_model.hpp"
#include "session.hpp"
#include "tiny_model.hpp"

#include <support/catch.hpp>

#include <array>
#include <filesystem>
#include <fstream>
#include <iterator>

namespace {

using namespace lm;

// A name in the folder for such, where there is nothing at first; what comes to be there goes with its owner.
class aid_file {
  public:
    explicit aid_file(const std::string& name)
        : path_(std::filesystem::temp_directory_path() / ("kvtrim_calibrate_" + name)) {
        std::filesystem::remove_all(path_);
    }
    aid_file(const aid_file&) = delete;
    aid_file& operator=(const aid_file&) = delete;
    ~aid_file() { std::filesystem::remove_all(path_); }

    [[nodiscard]] const std::filesystem::path& path() const { return path_; }
    [[nodiscard]] std::string bytes() const {
        std::ifstream in(path_, std::ios::binary);
        return {(std::istreambuf_iterator<char>(in)), {}};
    }
    void write(const std::string& bytes) const { std::ofstream(path_, std::ios::binary) << bytes; }

  private:
    std::filesystem::path path_;
};

template <class Call>
std::string thrown_by(Call&& call) {
    try {
        static_cast<void>(call());
    } catch (const std::runtime_error& error) { return error.what(); }
    return {};
}

std::vector<token_id> some_text() {
    return tiny::random_tokens(128);
}

std::vector<token_id> no_text() {
    throw std::logic_error("a text was asked for");
}

TEST_CASE("A model's table is made once, and then read from its file") {
    const llama_model model = load_model(tiny::read(tiny::make_parts().bytes()));
    const aid_file file("table");
    const model_table without = table_of(model, {}, some_text, {1, 2, 3});
    CHECK(without.origin == "made from 128 tokens");
    const model_table made = table_of(model, file.path(), some_text, {1, 2, 3});
    CHECK(made.origin == "made from 128 tokens and written to " + file.path().string());
    const model_table read = table_of(model, file.path(), no_text, {1, 2, 3});
    CHECK(read.origin == "read from " + file.path().string());
    for (const model_table* t : {&without, &read}) {
        CHECK(t->profile.prompts() == 1);
        CHECK(std::ranges::equal(t->profile.budgets().curves, made.profile.budgets().curves));
    }
    CHECK_FALSE(std::filesystem::exists(file.path().string() + ".partial"));
}

TEST_CASE("A table that is damaged, of other rows or nowhere is refused with its name, and stays as it is") {
    tiny::sizes other;
    other.layers = 3;
    const llama_model model = load_model(tiny::read(tiny::make_parts().bytes()));
    const llama_model deeper = load_model(tiny::read(tiny::make_parts(other).bytes()));
    const aid_file file("spoilt");
    static_cast<void>(table_of(model, file.path(), some_text, {}));
    const std::string whole = file.bytes(), name = file.path().string();
    CHECK(thrown_by([&] { return table_of(deeper, file.path(), no_text, {}); }) ==
          name + ": is a table of 4 rows, but the model has 6 (layers times KV heads)");
    CHECK(file.bytes() == whole);

    std::string changed = whole;
    changed[0] = static_cast<char>(changed[0] ^ 1);
    for (const std::string& bytes :
         {std::string(), whole.substr(0, whole.size() - 1), whole + "x", changed, std::string("a text")}) {
        file.write(bytes);
        CHECK(thrown_by([&] { return table_of(model, file.path(), no_text, {}); }) ==
              name + ": is no table of a model's rows, or a damaged one");
        CHECK(file.bytes() == bytes);
    }

    const std::filesystem::path folder = std::filesystem::temp_directory_path();
    CHECK(thrown_by([&] { return table_of(model, folder, no_text, {}); }) ==
          folder.string() + ": cannot be read");
    const std::filesystem::path nowhere = file.path() / "no" / "such";
    CHECK(thrown_by([&] { return table_of(model, nowhere, some_text, {}); }) ==
          nowhere.string() + ": cannot be written");
}

TEST_CASE("Shares from a file decide what each layer, or each KV head of it, keeps") {
    const llama_model model = load_model(tiny::read(tiny::make_parts().bytes()));
    const aid_file file("shares");
    constexpr index_t tokens = 204, safe = 4; // of each row 200 compete, of which a fifth stays on average
    for (const char* const name : {"snapkv_by_shares", "defensivekv_by_shares"}) {
        for (const auto& [text, kept] : std::vector<std::pair<const char*, std::array<index_t, 4>>>{
                 {"1\n3\n", {20, 20, 60, 60}},
                 {"0.1 0.3\n 0.5\t0.7", {10, 30, 50, 70}},
                 {"0 0\n0 2e-1\n", {0, 0, 0, 160}},
             }) {
            INFO(name << " " << text);
            file.write(text);
            const policy_aids aids{{}, nullptr, read_shares(file.path(), model.config)};
            session sequence(model, cache_format::f32, tokens, aids);
            static_cast<void>(sequence.prefill(tiny::random_tokens(tokens), safe));
            const auto plans = sequence.plan(
                policy_named(name), {.kept_ratio = 44.0 / tokens, .sink_tokens = 0, .window_tokens = safe});
            for (index_t r = 0; r < 4; ++r) {
                CHECK(plans[static_cast<std::size_t>(r / 2)].kept_tokens(r % 2) ==
                      safe + kept[static_cast<std::size_t>(r)]);
            }
        }
    }
}

TEST_CASE(
    "Shares that are missing, malformed, negative or of another count are refused with the file's name") {
    const llama_model model = load_model(tiny::read(tiny::make_parts().bytes()));
    const aid_file file("no_shares");
    const std::string name = file.path().string();
    const auto said = [&] { return thrown_by([&] { return read_shares(file.path(), model.config); }); };
    CHECK(said() == name + ": cannot be read");
    const std::string counts = " shares, but the model has 2 layers, and 4 KV heads in all of them";
    for (const auto& [text, message] : std::vector<std::pair<const char*, std::string>>{
             {"", "has 0" + counts},
             {"1 2 3", "has 3" + counts},
             {"1 2 3 4 5", "has 5" + counts},
             {"1 two", "'two' is not a number"},
             {"1,2", "'1,2' is not a number"},
             {"1 0x2", "'0x2' is not a number"},
             {"1 1e999", "'1e999' is not a number"},
             {"1 -2", "-2 is no share: negative or not finite"},
             {"nan 1", "nan is no share: negative or not finite"},
             {"1 inf", "inf is no share: negative or not finite"},
             {"0 0", "has no share above 0"},
         }) {
        file.write(text);
        INFO(text);
        CHECK(said() == name + ": " + message);
    }
}

TEST_CASE("What policies need is prepared for them, and a file that none of them reads is refused first") {
    const llama_model model = load_model(tiny::read(tiny::make_parts().bytes()));
    const aid_file table_file("aids_table"), shares_file("aids_shares");
    shares_file.write("1 2");
    const std::string table_name = table_file.path().string(), shares_name = shares_file.path().string();
    policy_aids aids{.replay_lead = {1, 2}};
    model_table table;
    const auto add = [&](const std::vector<std::string>& policies, const aid_files& files, const auto& text) {
        return thrown_by([&] {
            add_aids(aids, table, model, policies, files, text);
            return 0;
        });
    };
    CHECK(add({"snapkv"}, {}, no_text).empty());
    CHECK(add({"snapkv"}, {table_name, {}}, no_text) == table_name + ": no policy asked for takes a table");
    CHECK(add({"snapkv"}, {{}, shares_name}, no_text) == shares_name + ": no policy asked for takes shares");
    CHECK(add({"snapkv", "snapkv_by_shares"}, {}, no_text) ==
          "snapkv_by_shares takes the budgets from a file: --shares FILE");
    CHECK(aids.profile == nullptr);
    CHECK(aids.shares.empty());
    CHECK_FALSE(std::filesystem::exists(table_file.path()));

    CHECK(add({"profiled", "snapkv_by_shares"}, {table_name, shares_name}, some_text).empty());
    CHECK(aids.profile == &table.profile);
    CHECK(table.profile.rows() == 4);
    CHECK(aids.shares == std::vector<double>{1, 2});
    CHECK(std::filesystem::exists(table_file.path()));
    CHECK(add({"replay_threshold"}, {table_name, {}}, no_text).empty());
}

} // namespace
