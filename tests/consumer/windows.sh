#!/usr/bin/env bash
# Windows, by MinGW's compiler: every header, the quickstart, the conformance tool; Wine runs the programs at one CPU level.
#   windows.sh build CHECKOUT FOLDER COMPILER FOLDER_OF_NLOHMANN
#   windows.sh run CHECKOUT FOLDER LEVEL [WINE]        what was built; exit status 77, a test that is skipped: no Wine, or no such level
set -euo pipefail
action=$1 checkout=$2 folder=$3

build() {
    local compiler=$1 nlohmann=$2
    rm -rf "$folder"
    mkdir -p "$folder/others"
    ln -s "$nlohmann/nlohmann" "$folder/others" # and nothing else of the build machine
    compile() { "$compiler" -std=c++20 -O1 -static -Wall -Wextra -pedantic-errors -Werror -I"$checkout/include" "$@"; }
    (cd "$checkout/include" && find kvtrim -name '*.hpp' ! -path '*/adapter/*' -printf '#include <%p>\n') >"$folder/all.cpp"
    compile -fsyntax-only "$folder/all.cpp"
    compile "$checkout/examples/quickstart.cpp" -o "$folder/quickstart.exe"
    compile -isystem "$folder/others" "$checkout"/tests/conformance/*.cpp -o "$folder/conformance.exe"
}

run() {
    local wine=${2:-} status=0
    export KVTRIM_CPU_LEVEL=$1 WINEPREFIX=$folder/wine WINEDEBUG=-all
    [[ -n $wine ]] || { echo "no Wine on this machine: not run"; exit 77; }
    # The tool refuses a level that the machine does not have; the quickstart would take a lower one.
    "$wine" "$folder/conformance.exe" "$checkout/tests/golden" || status=$?
    ((status != 0)) || "$wine" "$folder/quickstart.exe" || status=$?
    "$wine" wineboot --shutdown >/dev/null 2>&1 || true
    exit "$status"
}

"$action" "${@:4}"
