// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#include "safetensors.hpp"

#include <nlohmann/json.hpp>

#include <bit>
#include <charconv>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <system_error>

namespace lm {

static_assert(std::endian::native == std::endian::little, "the file's numbers are little-endian");

safetensors::safetensors(const std::filesystem::path& file) : file_(file.string()) {
    std::error_code error;
    const std::uintmax_t file_bytes = std::filesystem::file_size(file, error);
    std::ifstream in(file, std::ios::binary);
    if (error || !in) { fail("cannot be opened"); }

    std::uint64_t header_bytes = 0;
    if (file_bytes < sizeof(header_bytes)) { fail("is too short to be a safetensors file"); }
    char length[sizeof(header_bytes)];
    in.read(length, sizeof(length));
    std::memcpy(&header_bytes, length, sizeof(length));
    if (header_bytes > file_bytes - sizeof(header_bytes)) { fail("ends within its header"); }

    std::string header(static_cast<std::size_t>(header_bytes), '\0');
    in.read(header.data(), static_cast<std::streamsize>(header.size()));
    data_.resize(static_cast<std::size_t>(file_bytes - sizeof(header_bytes) - header_bytes));
    in.read(data_.data(), static_cast<std::streamsize>(data_.size()));
    if (!in) { fail("cannot be read"); }
    parse_header(header);
}

void safetensors::parse_header(const std::string& text) {
    try {
        const nlohmann::json header = nlohmann::json::parse(text);
        for (const auto& [name, value] : header.items()) {
            if (name == "__metadata__") {
                metadata_ = value.get<std::map<std::string, std::string>>();
                continue;
            }
            const auto& offsets = value.at("data_offsets");
            entries_[name] = {.dtype = value.at("dtype").get<std::string>(),
                              .shape = value.at("shape").get<std::vector<std::int64_t>>(),
                              .begin = offsets.at(0).get<std::size_t>(),
                              .end = offsets.at(1).get<std::size_t>()};
        }
    } catch (const nlohmann::json::exception& broken) {
        fail(std::string("has a broken header: ") + broken.what());
    }
}

std::vector<float> safetensors::tensor(const std::string& name,
                                       const std::vector<std::int64_t>& shape) const {
    const auto found = entries_.find(name);
    if (found == entries_.end()) { fail("has no tensor " + name); }
    const entry& tensor = found->second;
    if (tensor.dtype != "F32") { fail("tensor " + name + " is " + tensor.dtype + ", not F32"); }
    if (tensor.shape != shape) { fail("tensor " + name + " has an unexpected shape"); }
    if (tensor.begin > tensor.end || tensor.end > data_.size()) {
        fail("tensor " + name + " lies outside the file");
    }

    std::size_t elements = 1;
    for (const std::int64_t extent : shape) { elements *= static_cast<std::size_t>(extent); }
    if (tensor.end - tensor.begin != elements * sizeof(float)) {
        fail("tensor " + name + " has a length that does not fit its shape");
    }
    std::vector<float> values(elements);
    std::memcpy(values.data(), data_.data() + tensor.begin, tensor.end - tensor.begin);
    return values;
}

double safetensors::metadata_number(const std::string& name) const {
    const auto found = metadata_.find(name);
    if (found == metadata_.end()) { fail("has no metadata " + name); }
    const std::string& text = found->second;
    double number = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (error != std::errc{} || end != text.data() + text.size()) {
        fail("metadata " + name + " is not a number: " + text);
    }
    return number;
}

void safetensors::fail(const std::string& what) const {
    throw std::runtime_error(file_ + ": " + what);
}

} // namespace lm
