// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// All families of kernels that have a table, for compiled.hpp. Users of one family include its own header.

#include <kvtrim/kernels/ordered_bits.hpp>
#include <kvtrim/kernels/products.hpp>
#include <kvtrim/kernels/projection_ops.hpp>
#include <kvtrim/kernels/row_ops.hpp>
#include <kvtrim/kernels/window_ops.hpp>
