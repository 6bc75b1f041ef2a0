// expect: kvtrim: workspace holds plain data only
// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/core/workspace.hpp>

#include <string>

std::size_t take(kvtrim::workspace& scratch) {
    return scratch.take<std::string>(3).size();
}
