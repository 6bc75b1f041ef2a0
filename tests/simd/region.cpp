// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/simd/region.hpp>

#include <kvtrim/plan/keep_plan.hpp>

#include "support/catch.hpp"

#include <string>
#include <typeinfo>

TEST_CASE("names carry the version, and what the kernels are compiled for, so that copies of kvtrim share no "
          "function",
          "[simd]") {
    std::string tag = "v" + std::to_string(KVTRIM_VERSION_MAJOR) + "_" +
                      std::to_string(KVTRIM_VERSION_MINOR) + "_" + std::to_string(KVTRIM_VERSION_PATCH);
#if defined(KVTRIM_COMPILED_KERNELS)
    tag += "_compiled";
#elif defined(__AVX512F__)
    tag += "_avx512";
#elif defined(__AVX2__)
    tag += "_avx2";
#endif
    const std::string name = typeid(kvtrim::keep_plan).name(); // N6kvtrim6v0_2_09keep_planE
    CHECK(name.find(std::to_string(tag.size()) + tag) != std::string::npos);
}
