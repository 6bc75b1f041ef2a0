#!/usr/bin/env bash
# The other checks of this folder find what they are there for: of examples/CHECK.txt each example is a project of its own, which
# CHECK must refuse or accept as the line before it says.
#
#   === refused include/kvtrim/score/key_norm_score.hpp
#   ... the lines of that file; "each" instead of "refused": every line is an example, which CHECK must name
set -euo pipefail
cd "$(dirname "$0")"

project=$(mktemp -d)
mkdir -p "$project"/{include/kvtrim,src,examples,bench}
trap 'rm -rf "$project"' EXIT
failed=0 examples=0

complain() { echo "examples: $*" >&2; failed=1; }

# judge LIST LINE EXPECTED PATH: of the example at LINE, which was written to PATH; EXPECTED "each" is a refusal that names all lines.
judge() {
    local check=$PWD/${1/examples\//} answer=accepted report line
    report=$("${check%.txt}.sh" "$project" 2>&1) || answer=refused
    if [[ $3 == each ]]; then
        for ((line = 1; line <= $(wc -l <"$project/$4"); ++line)); do
            ((++examples))
            [[ $report == *"$4:$line:"* ]] || complain "$1:$(($2 + line)) is accepted"
        done
    else
        ((++examples))
        [[ $answer == "$3" ]] || complain "$1:$2 is $answer"
    fi
    rm "$project/$4"
}

for list in examples/*.txt; do
    expected='' path='' begin=0 line=0
    while IFS= read -r text; do
        ((++line))
        if [[ $text == '=== '* ]]; then
            [[ -z $path ]] || judge "$list" "$begin" "$expected" "$path"
            read -r _ expected path <<<"$text"
            begin=$line
            mkdir -p "$project/${path%/*}"
            : >"$project/$path"
        else
            printf '%s\n' "$text" >>"$project/$path"
        fi
    done <"$list"
    [[ -z $path ]] || judge "$list" "$begin" "$expected" "$path"
done
((examples > 0)) || complain "none found"
((failed)) || echo "examples: $examples judged as they should be"
exit "$failed"
