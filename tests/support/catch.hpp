// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// Catch2 under either of its spellings: version 3, or the single header of version 2.

#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
using Catch::Approx;
#else
#include <catch2/catch.hpp>
#endif
