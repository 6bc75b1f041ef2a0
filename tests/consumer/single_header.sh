#!/usr/bin/env bash
# The quickstart runs with the single header alone, and the policies of the conformance tool compile with it; the golden vectors are
# compared with the headers that it is made of.
#   single_header.sh CHECKOUT FOLDER COMPILER [flags of the compiler]
set -euo pipefail
checkout=$1 folder=$2 compiler=("${@:3}")
rm -rf "$folder"
mkdir -p "$folder/sources/tests"
python3 "$checkout/packaging/amalgamate.py" "$folder/kvtrim_single.hpp"
cp "$checkout"/examples/quickstart.cpp "$folder/sources"
cp -r "$checkout"/tests/conformance "$folder/sources/tests"
find "$folder/sources" -type f -exec sed -i '/#include <kvtrim\//d' {} +

compile() { "${compiler[@]}" -std=c++20 -O0 -Wall -Wextra -Werror -include "$folder/kvtrim_single.hpp" "$@"; }
compile "$folder/sources/quickstart.cpp" -o "$folder/quickstart"
"$folder/quickstart"
compile -fsyntax-only "$folder/sources/tests/conformance/policies.cpp"
