#!/usr/bin/env bash
# One level per folder: a header includes headers of its own folder and of lower levels, and no circle arises.
# Also checked: who may include Eigen, the length of a header, and how it begins.
set -euo pipefail
cd "${1:-$(dirname "$0")/../..}/include/kvtrim"

declare -A level=([core]=1 [simd]=2 [kernels]=3 [cache]=4 [plan]=5 [attention]=5 [aggregate]=5
    [score]=6 [allocate]=6 [rerank]=6 [compact]=6 [measure]=6 [prefill]=7 [decode]=7 [policy]=8 [adapter]=8)
max_lines=350

failed=0
fail() { printf 'include_levels: %s\n' "$*" >&2; failed=1; }

arrows=''
while IFS=: read -r file include; do
    target=${include#*<kvtrim/} target=${target%>*}
    from=${file%/*} to=${target%/*}
    [[ $target != version.hpp ]] || continue
    if [[ ! -f $target ]]; then
        fail "$file: no such header: $target"
    elif [[ -z ${level[$from]:-} || -z ${level[$to]:-} ]]; then
        fail "$file -> $target: a folder is not in the table of levels (tests/lint/include_levels.sh)"
    elif [[ $from != "$to" ]] && ((level[$from] <= level[$to])); then
        fail "$file: level ${level[$from]} must not include $target of level ${level[$to]}"
    fi
    arrows+="$file $target"$'\n'
done < <(grep -rE --include='*.hpp' --include='*.inl' '^[[:blank:]]*#[[:blank:]]*(include|define KVTRIM_BODY)[[:blank:]]*<kvtrim/' */)
tsort <<<"$arrows" >/dev/null || fail "headers include each other"

while read -r file; do fail "$file: open namespace KVTRIM_NAMESPACE (core/region.hpp)"; done < <(
    grep -rlE '^namespace kvtrim\b' .)
while read -r file; do fail "$file: write #include <kvtrim/...>"; done < <(grep -rl '^ *# *include "' .)
while read -r file; do fail "$file: Eigen is for adapter/eigen.hpp only"; done < <(
    grep -rl 'include <\(unsupported/\)\?Eigen/' . | grep -v '^./adapter/eigen.hpp$')

headers=0
while read -r file; do
    ((++headers))
    mapfile -t -n 3 begin <"$file"
    [[ ${begin[0]} == '// Copyright (c) kvtrim authors' && ${begin[1]} == '// SPDX-License-Identifier: MIT' ]] ||
        fail "$file: the two licence lines are missing"
    # A .inl file is included once for each target.
    [[ ${begin[2]} == '#pragma once' || $file == *.inl ]] || fail "$file: #pragma once must follow the licence"
    (($(wc -l <"$file") <= max_lines)) || fail "$file: more than $max_lines lines"
done < <(find . -name '*.hpp' -o -name '*.inl')
((headers > 0)) || fail "no headers found"
((failed)) || echo "include_levels: $headers headers in order"
exit "$failed"
