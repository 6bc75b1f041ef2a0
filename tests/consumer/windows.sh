#!/usr/bin/env bash
# Windows, by MinGW's compiler: every header, the quickstart, the conformance tool; run by Wine where it is there, at every CPU level.
#   windows.sh CHECKOUT FOLDER COMPILER FOLDER_OF_NLOHMANN [WINE]
set -euo pipefail
checkout=$1 folder=$2 compiler=$3 nlohmann=$4 wine=${5:-}
rm -rf "$folder"
mkdir -p "$folder/others"
ln -s "$nlohmann/nlohmann" "$folder/others" # and nothing else of the build machine
compile() { "$compiler" -std=c++20 -O1 -static -Wall -Wextra -pedantic-errors -Werror -I"$checkout/include" "$@"; }

(cd "$checkout/include" && find kvtrim -name '*.hpp' ! -path '*/adapter/*' -printf '#include <%p>\n') >"$folder/all.cpp"
compile -fsyntax-only "$folder/all.cpp"
compile "$checkout/examples/quickstart.cpp" -o "$folder/quickstart.exe"
compile -isystem "$folder/others" "$checkout"/tests/conformance/*.cpp -o "$folder/conformance.exe"
[[ -n $wine ]] || exit 0

export WINEPREFIX=$folder/wine WINEDEBUG=-all
for level in portable avx2 avx512 amx; do # 77: a level that the machine does not have
    export KVTRIM_CPU_LEVEL=$level
    "$wine" "$folder/quickstart.exe"
    "$wine" "$folder/conformance.exe" "$checkout/tests/golden" || [[ $? == 77 ]]
done
"$wine" wineboot --shutdown >/dev/null 2>&1 || true
