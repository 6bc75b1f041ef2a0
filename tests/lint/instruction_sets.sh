#!/usr/bin/env bash
# Instruction sets are named in simd/ and kernels/ only: whoever is above them calls a kernel and does not know which one.
# In kernels/, which body is compiled for what is decided by simd/for_each_target.inl: a .inl file names none.
set -euo pipefail
cd "${1:-$(dirname "$0")/../..}/include/kvtrim"

# Macros of simd/region.hpp, macros of compilers, intrinsics with their types and headers, namespaces of targets, assembly.
names='KVTRIM_(HAS_(X86|NEON)|BASELINE|TARGET_|BEGIN_|CHOOSE)|__(SSE|AVX|AMX|FMA|F16C|ARM_|x86_64|i386|aarch64)'
names+='|\b_(mm|tile_|bzhi_|pext_|pdep_)[0-9a-z]*_|\b__m(128|256|512|mask)|\bv(ld|st|dup|add|get|cvt)[0-9a-z]*q?_[a-z]*[0-9]+\b'
names+='|__asm|\basm\b|__builtin_(ia32|cpu|arm|neon)|(x86|emm|xmm|imm|nmm|smm|tmm)intrin\.h|arm_(neon|sve)\.h|cpuid\.h'
names+='|\b(avx2|avx512|amx|neon|portable)::|target\('

failed=0
complain() { echo "instruction_sets: $1" >&2; failed=1; }
while IFS= read -r hit; do complain "$hit"; done < <(
    find . -name '*.hpp' -o -name '*.inl' | sed 's|^\./||' | grep -Ev '^(simd|kernels)/' | LC_ALL=C sort |
        xargs grep -HnE "$names" | grep -Ev '^[^:]+:[0-9]+: *(//|\*)')
while IFS= read -r hit; do complain "$hit"; done < <(
    grep -HnE "$names" kernels/*.inl | grep -Ev '^[^:]+:[0-9]+: *//')
((failed)) || echo "instruction_sets: none outside simd/ and kernels/, none in a body"
exit "$failed"
