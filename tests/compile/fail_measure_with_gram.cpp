// expect: kvtrim: measure_eviction needs W_O itself, a view
// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/measure/eviction_loss.hpp>
#include <kvtrim/score/projected_value_norms.hpp>

kvtrim::status measure(const kvtrim::strided<const float, 3>& view, const kvtrim::keep_plan& plan,
                       kvtrim::eviction_loss& loss) {
    const auto in = kvtrim::layer(view, view).with_queries(view).with_output_projection(kvtrim::gram_view{});
    return kvtrim::measure_eviction(in, {}, plan, loss);
}
