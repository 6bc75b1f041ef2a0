// expect: (use of deleted function|call to deleted function).*positions_of
// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/compact/rerotate_keys.hpp>

kvtrim::index_t heads() {
    return kvtrim::positions_of(kvtrim::keep_plan{}).heads();
}
