// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Golden cases on disk: flat JSON parameters, .npy arrays, attention layers as inputs. The format is described in
// tests/golden/README.md.

#include <nlohmann/json.hpp>

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace conformance {

// An array of numbers; integers are exact in double.
struct array {
    std::vector<std::int64_t> shape;
    std::vector<double> values;
    bool integral = false;
};

// A missing file, a broken header or a wrong size throws std::runtime_error with the path.
array load_npy(const std::filesystem::path& file);

// One attention layer; arrays that the input set does not have are empty.
struct layer_data {
    std::int64_t q_heads = 0, kv_heads = 0, tokens = 0, head_dim = 0, hidden = 0, window = 0;
    std::map<std::string, std::vector<float>> arrays;

    const float* operator[](const std::string& name) const; // throws if the set lacks it
};

struct golden_case {
    std::string name;
    nlohmann::json parameters;
    std::vector<layer_data> layers; // one per input set
    std::map<std::string, array> expected;

    // The parameter, or `fallback` where the case does not give it.
    template <class T>
    T get(const char* key, T fallback) const {
        return parameters.value(key, fallback);
    }
    std::string text(const char* key, const char* fallback) const { return get<std::string>(key, fallback); }
    // A parameter that the policy cannot do without.
    template <class T>
    T need(const char* key) const {
        return parameters.at(key).get<T>();
    }
};

golden_case load_case(const std::filesystem::path& directory, const std::string& name);

std::vector<std::string> case_names(const std::filesystem::path& directory);

} // namespace conformance
