#!/usr/bin/env bash
# Extensions of GNU C++ stand in simd/, core/region.hpp, and the three named below in core/: what another compiler has to be ported to
# (docs/compatibility.md lists them). What the standard's own syntax can hide is found by -Wpedantic, with both compilers.
set -euo pipefail
cd "${1:-$(dirname "$0")/../..}/include/kvtrim"

names='__attribute(__)?\b|__builtin_|__int128|__restrict|__asm|\basm\b|__typeof|\btypeof\b|__extension__|_Pragma|__PRETTY_FUNCTION__'
names+='|__atomic_[a-z]|__sync_|\b_Float16\b|\[\[ *(using +)?_*(gnu|clang)_*\b|#\s*pragma\s+(GCC|clang)|__(bf16|fp16)\b|\bssize_t\b|\?:'
names+='|__(alignof|thread|inline|complex|const|volatile|signed|real|imag|label)(__)?\b|<(unistd|pthread|fcntl|dlfcn|sys/[a-z]+)\.h>'
failed=0
while IFS= read -r hit; do
    echo "extensions: $hit" >&2
    failed=1
done < <(find . -name '*.hpp' -o -name '*.inl' | sed 's|^\./||' | grep -v '^simd/\|^core/region.hpp$' | LC_ALL=C sort |
    xargs grep -HnE "$names" | grep -Ev '^[^:]+:[0-9]+: *//' |
    grep -Ev '^core/(for_each_item\.hpp:.*\b__atomic_fetch_add\(&next|element\.hpp:.*\b_Float16\b|math\.hpp:.* return __builtin_[a-z]+\()')
((failed)) || echo "extensions: none outside simd/ and core/region.hpp but the three of core/"
exit "$failed"
