#!/usr/bin/env bash
# The version in include/kvtrim/version.hpp agrees with the newest release in CHANGELOG.md and with every
# find_package(kvtrim X.Y) in the documents.
set -euo pipefail
cd "${1:-$(dirname "$0")/../..}"

part() { awk -v name="KVTRIM_VERSION_$1" '$1 == "#define" && $2 == name { print $3 }' include/kvtrim/version.hpp; }
version="$(part MAJOR).$(part MINOR).$(part PATCH)"
failed=0
fail() { echo "version: $*" >&2; failed=1; }

[[ $version =~ ^[0-9]+\.[0-9]+\.[0-9]+$ ]] || fail "include/kvtrim/version.hpp is not readable: '$version'"

# Keep-a-Changelog headings: `## [0.1.0] - 2026-01-31`, with or without the brackets; [Unreleased] is skipped.
if [[ -e CHANGELOG.md ]]; then
    newest=$(awk '/^## \[?[0-9]/ { gsub(/[][]/, "", $2); print $2; exit }' CHANGELOG.md)
    [[ -z $newest || $newest == "$version" ]] ||
        fail "CHANGELOG.md's newest release is $newest, version.hpp says $version"
fi

for file in README.md CONTRIBUTING.md docs/*.md docs/engines/*.md; do
    [[ -e $file ]] || continue
    while read -r named; do
        [[ $version == "$named" || $version == "$named".* ]] ||
            fail "$file says find_package(kvtrim $named), version.hpp says $version"
    done < <(grep -oE 'find_package\(kvtrim [0-9.]+' "$file" | awk '{ print $2 }')
done

((failed == 0)) && echo "version: $version everywhere"
exit "$failed"
