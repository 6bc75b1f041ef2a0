// expect: kvtrim: this matrix is gone when its view is used: give it a name first
// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/adapter/eigen.hpp>

kvtrim::index_t heads(const Eigen::MatrixXf& m) {
    return kvtrim::heads_in_rows(Eigen::Ref<const Eigen::MatrixXf>(m), 3).extent(0);
}
