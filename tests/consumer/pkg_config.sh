#!/usr/bin/env bash
# A C99 program against the installed library, by pkg-config alone: pkg_config.sh COMPILER PREFIX VERSION
set -euo pipefail
compiler=$1 prefix=$2 version=$3
source=$(dirname "$0")/c_library.cpp
PKG_CONFIG_PATH=$(dirname "$(find "$prefix" -name kvtrim_c.pc)")
export PKG_CONFIG_PATH
[[ $(pkg-config --modversion kvtrim_c) == "$version" ]]
flags=$(pkg-config --cflags --libs kvtrim_c)
# Comments of C++ in the source are C99's; the flags are several words.
# shellcheck disable=SC2086
"$compiler" -std=c99 -Wall -Wextra -Wpedantic -Werror -x c "$source" -x none $flags -o "$prefix/c99_consumer"
LD_LIBRARY_PATH=$(pkg-config --variable=libdir kvtrim_c) "$prefix/c99_consumer"
# What is exported is what the header declares, and the SONAME has the version of the interface.
library=$(find "$prefix" -name 'libkvtrim_c.so')
header=$(find "$prefix" -name 'kvtrim_c.h')
[[ $(readelf -d "$library") == *'libkvtrim_c.so.2]'* ]]
exported=$(nm -D --defined-only "$library" | awk '$2 != "A" { sub(/@.*/, "", $3); print $3 }' | sort)
declared=$(grep -oE '^KVTRIM_API [a-z0-9_ *]*kvtrim_[a-z0-9_]+\(' "$header" | grep -oE 'kvtrim_[a-z0-9_]+\(' | tr -d '(' | sort)
diff <(echo "$declared") <(echo "$exported")
