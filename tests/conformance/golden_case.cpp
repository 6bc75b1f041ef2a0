// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include "golden_case.hpp"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <iterator>
#include <sstream>
#include <stdexcept>

namespace conformance {
namespace {

namespace fs = std::filesystem;

std::string read_file(const fs::path& file) {
    std::ifstream in(file, std::ios::binary);
    if (!in) { throw std::runtime_error("cannot read " + file.string()); }
    return {std::istreambuf_iterator<char>(in), {}};
}

nlohmann::json read_json(const fs::path& file) {
    try {
        return nlohmann::json::parse(read_file(file));
    } catch (const nlohmann::json::exception& e) {
        throw std::runtime_error(file.string() + ": " + e.what());
    }
}

std::vector<std::string> words(const std::string& text) {
    std::istringstream in(text);
    return {std::istream_iterator<std::string>(in), {}};
}

template <class T>
std::vector<double> widen(const char* bytes, std::size_t count) {
    std::vector<T> raw(count);
    std::memcpy(raw.data(), bytes, count * sizeof(T));
    return {raw.begin(), raw.end()};
}

layer_data load_layer(const fs::path& folder) {
    const nlohmann::json parameters = read_json(folder / "inputs.json");
    layer_data layer;
    layer.q_heads = parameters.at("q_heads");
    layer.kv_heads = parameters.at("kv_heads");
    layer.tokens = parameters.at("n");
    layer.head_dim = parameters.at("d");
    layer.hidden = parameters.at("hidden");
    layer.window = parameters.at("window");
    for (const std::string& name : words(parameters.at("arrays"))) {
        const array loaded = load_npy(folder / (name + ".npy"));
        layer.arrays[name].assign(loaded.values.begin(), loaded.values.end());
    }
    return layer;
}

} // namespace

array load_npy(const fs::path& file) {
    const std::string bytes = read_file(file);
    const auto broken = [&](const char* why) { return std::runtime_error(file.string() + ": " + why); };
    if (bytes.size() < 10 || bytes.compare(0, 6, "\x93NUMPY") != 0 || bytes[6] != 1) {
        throw broken("not a .npy file of version 1.0");
    }
    const auto header_bytes = static_cast<std::size_t>(static_cast<unsigned char>(bytes[8])) +
                              256u * static_cast<std::size_t>(static_cast<unsigned char>(bytes[9]));
    if (bytes.size() < 10 + header_bytes) { throw broken("the header is cut off"); }
    const std::string header = bytes.substr(10, header_bytes);
    const std::size_t open = header.find('(', header.find("'shape':"));
    const std::size_t close = header.find(')', open);
    if (header.find("'fortran_order': False") == std::string::npos || close == std::string::npos) {
        throw broken("expected C order and a shape");
    }
    array result;
    std::size_t count = 1;
    std::string dimensions = header.substr(open + 1, close - open - 1);
    for (char& c : dimensions) { c = c == ',' ? ' ' : c; }
    for (const std::string& extent : words(dimensions)) {
        result.shape.push_back(std::stoll(extent));
        count *= static_cast<std::size_t>(result.shape.back());
    }
    if (bytes.size() != 10 + header_bytes + 4 * count) { throw broken("the size does not fit the shape"); }
    const char* data = bytes.data() + 10 + header_bytes;
    result.integral = header.find("'<i4'") != std::string::npos;
    if (!result.integral && header.find("'<f4'") == std::string::npos) {
        throw broken("neither <f4 nor <i4");
    }
    result.values = result.integral ? widen<std::int32_t>(data, count) : widen<float>(data, count);
    return result;
}

const float* layer_data::operator[](const std::string& name) const {
    const auto found = arrays.find(name);
    if (found == arrays.end()) { throw std::runtime_error("the input set has no array " + name); }
    return found->second.data();
}

golden_case load_case(const fs::path& directory, const std::string& name) {
    golden_case result;
    result.name = name;
    const fs::path folder = directory / "cases" / name;
    result.parameters = read_json(folder / "case.json");
    for (const std::string& set : words(result.text("inputs", ""))) {
        result.layers.push_back(load_layer(directory / "inputs" / set));
    }
    for (const std::string& wanted : words(result.text("arrays", ""))) {
        result.expected[wanted] = load_npy(folder / (wanted + ".npy"));
    }
    return result;
}

std::vector<std::string> case_names(const fs::path& directory) {
    if (fs::exists(directory / "index.txt") || !fs::exists(directory / "cases")) {
        return words(read_file(directory / "index.txt"));
    }
    std::vector<std::string> names; // no index: every case there is
    for (const auto& entry : fs::directory_iterator(directory / "cases")) {
        names.push_back(entry.path().filename().string());
    }
    std::sort(names.begin(), names.end());
    return names;
}

} // namespace conformance
