// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The families of kernels that are the same for every engine's elements, for compiled.hpp. Users of one family include its own header.

#include <kvtrim/kernels/bound_kernels.hpp>
#include <kvtrim/kernels/product_kernels.hpp>
#include <kvtrim/kernels/projection_kernels.hpp>
#include <kvtrim/kernels/row_kernels.hpp>
#include <kvtrim/kernels/selection_kernels.hpp>
#include <kvtrim/kernels/window_kernels.hpp>
