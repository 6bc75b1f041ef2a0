// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Members of a policy's config by name, as in "defensivekv:first_at_most=0.3:kernel_tokens=7".

#include <algorithm>
#include <charconv>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lm {

class policy_options {
  public:
    policy_options() = default; // none
    // "option=value:option=value". Throws std::invalid_argument, as all that follows does.
    explicit policy_options(std::string_view given) {
        for (std::size_t end = 0; end != given.npos; given.remove_prefix(end == given.npos ? 0 : end + 1)) {
            end = given.find(':');
            const std::string_view one = given.substr(0, end);
            const std::size_t equals = one.find('=');
            if (equals == 0 || equals == one.npos) {
                throw std::invalid_argument("'" + std::string(one) + "' is not option=value");
            }
            const std::string_view name = one.substr(0, equals);
            if (has(name)) { throw std::invalid_argument(std::string(name) + " is given twice"); }
            given_.emplace_back(name, one.substr(equals + 1));
        }
    }

    // Sets the member if the option was given, and makes the option known.
    template <class Number>
    void set(std::string_view option, Number& member) {
        const std::string* const text = value_of(option);
        if (text == nullptr) { return; }
        const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), member);
        if (error != std::errc{} || end != text->data() + text->size()) { fail(option, *text, "a number"); }
    }
    template <class Choice>
    void set(std::string_view option, Choice& member,
             std::initializer_list<std::pair<std::string_view, Choice>> choices) {
        const std::string* const text = value_of(option);
        if (text == nullptr) { return; }
        std::string names;
        for (const auto& [name, choice] : choices) {
            if (*text == name) {
                member = choice;
                return;
            }
            names += (names.empty() ? "" : ", ") + std::string(name);
        }
        fail(option, *text, "one of " + names);
    }

    // Whether every option that was given is one that a set() asked for.
    void require_known() const {
        for (const auto& [name, value] : given_) {
            if (std::find(known_.begin(), known_.end(), name) != known_.end()) { continue; }
            std::string names;
            for (const std::string& k : known_) { names += (names.empty() ? "" : ", ") + k; }
            throw std::invalid_argument("no option '" + name + "'; there " +
                                        (names.empty() ? "are none" : "is " + names));
        }
    }

  private:
    [[nodiscard]] bool has(std::string_view option) const {
        return std::any_of(given_.begin(), given_.end(), [&](const auto& g) { return g.first == option; });
    }
    [[nodiscard]] const std::string* value_of(std::string_view option) {
        known_.emplace_back(option);
        for (const auto& [name, value] : given_) {
            if (name == option) { return &value; }
        }
        return nullptr;
    }
    [[noreturn]] static void fail(std::string_view option, const std::string& value,
                                  const std::string& wanted) {
        throw std::invalid_argument(std::string(option) + "=" + value + " is not " + wanted);
    }

    std::vector<std::pair<std::string, std::string>> given_;
    std::vector<std::string> known_;
};

} // namespace lm
