// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The kernels of windows, products, projections, rows, bounds and selection, compiled once for a program that includes kvtrim in many
// files. Those that are made for an engine's elements (conversion, the decode tile) stay with the file that uses them.
//
// Define KVTRIM_COMPILED_KERNELS for all files, and include this header in exactly one of them; or, in CMake, link to
// kvtrim::kernels. Nothing else changes: the same functions are chosen at run time.

#include <kvtrim/kernels/all_kernels.hpp>

namespace KVTRIM_NAMESPACE::kernels {

template const window_kernels& window_kernels_of<float>(cpu_level);
template const window_kernels& window_kernels_of<bf16>(cpu_level);
template const projection_kernels& projection_kernels_of<void>(cpu_level);
template const product_kernels& product_kernels_of<void>(cpu_level);
template const row_kernels& row_kernels_of<void>(cpu_level);
template const bound_kernels& bound_kernels_of<void>(cpu_level);
template const selection_kernels& selection_kernels_of<void>(cpu_level);

} // namespace KVTRIM_NAMESPACE::kernels
