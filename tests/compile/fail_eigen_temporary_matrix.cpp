// expect: kvtrim: this matrix is gone when its view is used: give it a name first
// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/adapter/eigen.hpp>

kvtrim::index_t heads() {
    return kvtrim::heads_in_rows(Eigen::MatrixXf(12, 12), 3).extent(0);
}
