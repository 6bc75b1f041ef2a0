#!/usr/bin/env bash
# The version in include/kvtrim/version.hpp agrees with the newest release in CHANGELOG.md and with every
# find_package(kvtrim X.Y), in the documents, the recipes and the workflows; CITATION.cff and the vcpkg port have it in full.
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

released=$(awk -v version="$version" '$1 == "##" && $2 == "[" version "]" { print $4 }' CHANGELOG.md)
in_full() { # FILE TEXT
    [[ ! -e $1 ]] || grep -qF -- "$2" "$1" || fail "$1 does not say $2"
}
in_full CITATION.cff "version: $version"
in_full CITATION.cff "date-released: $released"
in_full packaging/vcpkg/kvtrim/vcpkg.json "\"version-semver\": \"$version\""
in_full .github/workflows/windows.yml "-DKVTRIM_VERSION=${version%.*}\""

for file in README.md CONTRIBUTING.md docs/*.md docs/engines/*.md packaging/conan/test_package/CMakeLists.txt; do
    [[ -e $file ]] || continue
    while read -r named; do
        [[ $version == "$named" || $version == "$named".* ]] ||
            fail "$file says find_package(kvtrim $named), version.hpp says $version"
    done < <(grep -oE 'find_package\(kvtrim [0-9.]+' "$file" | awk '{ print $2 }')
done

((failed == 0)) && echo "version: $version everywhere"
exit "$failed"
