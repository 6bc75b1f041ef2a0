// expect: (use of deleted function|call to deleted (member )?function).*view
// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

#include <kvtrim/decode/recent_queries.hpp>

kvtrim::index_t count() {
    return kvtrim::recent_queries<>(8, 32, 64).view().extent(1);
}
