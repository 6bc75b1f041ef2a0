#!/usr/bin/env bash
# The other checks of this folder find what they are there for: of examples/CHECK.txt each example is a project of its own, which
# CHECK must refuse or accept as the line before it says.
#
#   === refused include/kvtrim/score/key_norm.hpp
#   ... the lines of that file
set -euo pipefail
cd "$(dirname "$0")"

project=$(mktemp -d)
trap 'rm -rf "$project"' EXIT
failed=0 examples=0

# judge LIST EXPECTED PATH LINE, with the file at PATH written
judge() {
    local check=$PWD/${1%.txt}.sh answer=accepted
    check=${check/examples\//}
    "$check" "$project" >/dev/null 2>&1 || answer=refused
    ((++examples))
    if [[ $answer != "$2" ]]; then
        echo "examples: $1:$4 is $answer" >&2
        failed=1
    fi
    rm "$project/$3"
}

for list in examples/*.txt; do
    expected='' path='' at=0 line=0
    while IFS= read -r text; do
        ((++line))
        if [[ $text == '=== '* ]]; then
            [[ -z $path ]] || judge "$list" "$expected" "$path" "$at"
            read -r _ expected path <<<"$text"
            at=$line
            mkdir -p "$project/include/kvtrim/"{kernels,simd} "$project/${path%/*}"
            : >"$project/$path"
        else
            printf '%s\n' "$text" >>"$project/$path"
        fi
    done <"$list"
    [[ -z $path ]] || judge "$list" "$expected" "$path" "$at"
done
((examples > 0)) || { echo "examples: none found" >&2; failed=1; }
((failed)) || echo "examples: $examples judged as they should be"
exit "$failed"
