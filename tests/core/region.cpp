// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/core/region.hpp>

#include <kvtrim/plan/keep_plan.hpp>

#include "support/catch.hpp"

#include <string>
#include <typeinfo>

#define SPELLED_(tag) #tag
#define SPELLED(tag) SPELLED_(tag)

TEST_CASE("names carry the version, what their file is compiled for, and whether kernels are compiled apart",
          "[core]") {
    const std::string tag = SPELLED(KVTRIM_NAMESPACE_TAG);
    const std::string name = typeid(kvtrim::keep_plan).name(); // N6kvtrim6v0_2_09keep_planE
    CHECK(name.find(std::to_string(tag.size()) + tag) != std::string::npos);
    CHECK(tag.starts_with("v" + std::to_string(KVTRIM_VERSION_MAJOR) + "_" +
                          std::to_string(KVTRIM_VERSION_MINOR) + "_" + std::to_string(KVTRIM_VERSION_PATCH)));
#if defined(__AVX512F__)
    CHECK(tag.find("_avx512") != std::string::npos);
#elif defined(__AVX2__)
    CHECK(tag.find("_avx2") != std::string::npos);
#endif
#if defined(KVTRIM_COMPILED_KERNELS)
    CHECK(tag.ends_with("_compiled"));
#else
    CHECK(!tag.ends_with("_compiled"));
#endif
}
