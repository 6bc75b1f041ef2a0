// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT
#pragma once

// One scorer over one layer, with the memory that every call of it writes.

#include "layer.hpp"

namespace bench {

// Importance of the candidates of inputs whose heads are equally long. The scorer must outlive it.
template <class Inputs, class Scorer>
class scoring {
  public:
    scoring(const Inputs& in, const kvtrim::eviction_request& request, const Scorer& scorer)
        : in_(in), request_(request), scorer_(scorer),
          columns_(kvtrim::candidates(request.protect, in.tokens(0)).size()),
          offsets_(even_offsets(in.kv_heads(), columns_)),
          importance_(static_cast<std::size_t>(in.kv_heads() * columns_)), attention_(importance_.size()),
          mass_(static_cast<std::size_t>(in.kv_heads())) {}

    [[nodiscard]] index_t workspace_bytes() const { return scorer_.workspace_bytes(in_, request_); }
    [[nodiscard]] kvtrim::status run(threads ex = {}) {
        static kvtrim::growing_workspace memory;
        kvtrim::workspace scratch = memory.of_bytes(workspace_bytes());
        const kvtrim::status s =
            scorer_.score(in_, request_, {offsets_, importance_, attention_, mass_}, scratch, ex);
        benchmark::DoNotOptimize(importance_.data());
        return s;
    }
    [[nodiscard]] const std::vector<float>& importance() const { return importance_; }

  private:
    Inputs in_;
    kvtrim::eviction_request request_;
    const Scorer& scorer_;
    index_t columns_;
    std::vector<index_t> offsets_;
    std::vector<float> importance_, attention_, mass_;
};

} // namespace bench
