#!/usr/bin/env python3
# Copyright (c) kvtrim authors
# SPDX-License-Identifier: MIT
"""Follows docs/getting-started.md: its blocks, one behind the other, are a program that cuts a cache to a fifth.
getting_started.py COMPILER FOLDER"""

import pathlib
import re
import subprocess
import sys

import markdown

PROGRAM = """#include <kvtrim/kvtrim.hpp>
#include <cmath>
#include <cstdio>
#include <vector>
using kvtrim::index_t;
index_t q_heads = 8, kv_heads = 2, tokens = 1000, head_dim = 64, window = 32;
std::vector<std::uint16_t> k_memory, v_memory, q_memory;
static std::uint16_t bits(double x) { return kvtrim::element_traits<kvtrim::bf16>::from_float(static_cast<float>(x)).bits; }
static kvtrim::status follow(std::uint16_t* k, std::uint16_t* v, const std::uint16_t* q) {
%s
for (index_t g = 0; g < kv_heads; ++g) {  // a row says which token it was
    for (index_t i = 0; i < tokens; ++i) {
        const std::uint16_t is = k_memory[static_cast<std::size_t>((i * kv_heads + g) * head_dim)];
        if (is != bits(plan.row(g)[static_cast<std::size_t>(i)])) { return {kvtrim::errc::plan_mismatch, "a row is not where it should be"}; }
    }
}
return {};
}
int main() {
    for (index_t i = 0; i < tokens * kv_heads * head_dim; ++i) {
        const index_t token = i / (kv_heads * head_dim);
        k_memory.push_back(i %% head_dim == 0 ? bits(static_cast<double>(token)) : bits(std::sin(0.7 * static_cast<double>(i))));
        v_memory.push_back(bits(std::cos(0.3 * static_cast<double>(i))));
    }
    for (index_t i = 0; i < q_heads * window * head_dim; ++i) {
        q_memory.push_back(i %% head_dim == 0 ? bits(0) : bits(std::sin(0.7 * static_cast<double>(i %% 4096))));
    }
    const kvtrim::status s = follow(k_memory.data(), v_memory.data(), q_memory.data());
    std::printf("%%s: %%lld tokens, %%zu elements\\n", s.ok() ? "ok" : s.what(), static_cast<long long>(tokens), k_memory.size());
    return s.ok() && tokens == 200 && k_memory.size() == 200 * 2 * 64 && v_memory.size() == k_memory.size() ? 0 : 1;
}
"""

compiler, folder = sys.argv[1], pathlib.Path(sys.argv[2])
blocks = re.findall(r"^```cpp\n(.*?)^```", (markdown.ROOT / "docs/getting-started.md").read_text(), re.S | re.M)
source, program = folder / "getting_started.cpp", folder / "getting_started"
source.write_text(PROGRAM % "\n".join(blocks))
subprocess.run([compiler, "-std=c++20", "-O0", "-Wall", "-Wextra", "-Werror", f"-I{markdown.ROOT / 'include'}", source, "-o", program], check=True)
sys.exit(subprocess.run([program], check=False).returncode)
