// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// The version of this copy of kvtrim; CMakeLists.txt and the installed package read it from here.

#define KVTRIM_VERSION_MAJOR 0
#define KVTRIM_VERSION_MINOR 2
#define KVTRIM_VERSION_PATCH 0
