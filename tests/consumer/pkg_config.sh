#!/usr/bin/env bash
# A C99 program against the installed library, by pkg-config alone: pkg_config.sh COMPILER PREFIX VERSION
set -euo pipefail
compiler=$1 prefix=$2 version=$3
source=$(dirname "$0")/c_library.cpp
PKG_CONFIG_PATH=$(dirname "$(find "$prefix" -name kvtrim_c.pc)")
export PKG_CONFIG_PATH
[[ $(pkg-config --modversion kvtrim_c) == "$version" ]]
flags=$(pkg-config --define-variable=prefix="$prefix" --cflags --libs kvtrim_c)
# Comments of C++ in the source are C99's; the flags are several words.
# shellcheck disable=SC2086
"$compiler" -std=c99 -Wall -Wextra -Wpedantic -Werror -x c "$source" -x none $flags -o "$prefix/c99_consumer"
LD_LIBRARY_PATH=$(pkg-config --define-variable=prefix="$prefix" --variable=libdir kvtrim_c) "$prefix/c99_consumer"
# Nothing but the interface is exported, under a name with the version of the interface.
library=$(find "$prefix" -name 'libkvtrim_c.so')
[[ $(readelf -d "$library") == *'libkvtrim_c.so.2]'* ]]
if nm -D --defined-only "$library" | grep -v ' A KVTRIM_2' | grep -v ' kvtrim_[a-z0-9_]*\(@@KVTRIM_2\)\?$'; then
    echo 'the library exports more than kvtrim_c.h declares' >&2
    exit 1
fi
