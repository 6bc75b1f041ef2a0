#!/usr/bin/env bash
# The quickstart, and the conformance tool over the golden vectors, compiled with the single header alone.
#   single_header.sh CHECKOUT FOLDER COMPILER [flags of the compiler]
set -euo pipefail
checkout=$1 folder=$2 compiler=("${@:3}")
rm -rf "$folder"
mkdir -p "$folder/sources/tests"
python3 "$checkout/packaging/amalgamate.py" "$folder/kvtrim_single.hpp"
cp "$checkout"/examples/quickstart.cpp "$folder/sources"
cp -r "$checkout"/tests/conformance "$folder/sources/tests"
find "$folder/sources" -type f -exec sed -i '/#include <kvtrim\//d' {} +

compile() { # OPTIMISATION OUTPUT SOURCES
    "${compiler[@]}" -std=c++20 "$1" -Wall -Wextra -Werror -include "$folder/kvtrim_single.hpp" "${@:3}" -o "$2"
}
compile -O1 "$folder/quickstart" "$folder/sources/quickstart.cpp"
"$folder/quickstart"
# As one file: each file with the whole library would take as long again.
printf '#include "%s"\n' "$folder"/sources/tests/conformance/*.cpp >"$folder/sources/conformance.cpp"
compile -O0 "$folder/conformance" "$folder/sources/conformance.cpp"
"$folder/conformance" "$checkout/tests/golden"
