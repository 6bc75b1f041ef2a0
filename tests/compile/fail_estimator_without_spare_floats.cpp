// expect: kvtrim: the estimator needs estimate\(segments, blocks, out, spare\) and spare_floats\(segments, blocks, head_dim\)
// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/prefill/block_pruner.hpp>

struct half_an_estimator {
    void estimate(const kvtrim::bounds_rows&, const kvtrim::bounds_rows&, float*, float*) const {}
};

kvtrim::block_pruner<half_an_estimator> policy;
