// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

namespace kvtrim::loops::KVTRIM_TARGET {

using namespace kernels::KVTRIM_TARGET;

// Has no loop of its own either: that of multiply_panel() is taken, where the table has the target.
void products_bf16(const bf16* values, index_t tokens, const bf16* packed, float* scratch, float* norms) {
    add_l1<tiles>(values, 128, tokens, packed, 128, 4096, scratch, norms);
}

} // namespace kvtrim::loops::KVTRIM_TARGET
