#!/usr/bin/env bash
# A header includes only headers of lower levels, so there are no cycles and every layer can be read alone.
# Also checked: who may include Eigen, the length of a header, and how it begins.
set -euo pipefail

# The first matching pattern (of a path below include/kvtrim/, whole path) gives the level. Files of one level
# do not include each other; a decimal puts a file above its neighbours.
levels='
version\.hpp                                    0
config\.hpp                                     0

base/(status|element)\.hpp                      1
base/saturated\.hpp                             1.2
base/fp8\.hpp                                   1.5
base/token_scores\.hpp                          2.1
base/row_source\.hpp                            2.2
base/(layer|filled|for_each_item)\.hpp          2.4
base/observers\.hpp                             2.6
base/(ragged|row_range)\.hpp                    3.2
base/[^/]+\.hpp                                 2

simd/region\.hpp                                0.5
simd/cpu\.hpp                                   1
simd/choose\.hpp                                1.2
simd/(common|four_lanes|copied_parts)\.inl      1.6
simd/(portable|neon|avx2)\.hpp                       2
simd/avx512\.hpp                                2.1
simd/simd\.hpp                                  2.2
simd/for_each_target\.inl                       2.2
kernels/[^/]+\.inl                              2.5
kernels/panel_product\.hpp                      2.6
kernels/amx_tiles\.hpp                          2.6
kernels/amx_blocks\.hpp                         2.8
kernels/ordered_bits\.hpp                       2.9
kernels/(widen|narrow|blocks|scaled_codes|rotate)\.hpp 3
kernels/(rows|projection_ops_amx|row_ops|products)\.hpp 3.1
kernels/window_ops_amx\.hpp                     3.2
kernels/(window_ops|projection_ops)\.hpp        3.3
kernels/tile_ops\.hpp                           3.35
kernels/query_tile_amx\.hpp                     3.1
kernels/query_tiles\.hpp                        3.2
kernels/block_formats\.hpp                      3.1
kernels/encode\.hpp                             3.2
kernels/dispatch\.hpp                           3.45
kernels/compiled\.hpp                           3.47
kernels/[^/]+\.hpp                              3
math/(attention_rows|top_mass)\.hpp             3.5
math/[^/]+\.hpp                                 3
plan/(move_plan|row_positions)\.hpp             3.1
plan/[^/]+\.hpp                                 3

aggregate/attention_tile\.hpp                   3.8
source/ggml_tensor\.hpp                         3.95
source/[^/]+\.hpp                               3.9
policy/(concepts|candidate_rows|score_table)\.hpp 4
policy/pipeline\.hpp                            5.9
aggregate/[^/]+\.hpp                            4.5
score/(value_weighted|layer_preference|value_norm|expected_attention|redundancy)\.hpp 5.5
score/prepared_projection\.hpp                   4.5
score/replay\.hpp                                5.5
score/replayed\.hpp                              5.6
score/[^/]+\.hpp                                5
allocate/layer_shares\.hpp                      5.2
allocate/[^/]+\.hpp                             5
select/row_fold\.hpp                            4.9
select/chunked\.hpp                             5.5
select/[^/]+\.hpp                               5
compact/(check_plan|overlap|page_fates|rotate_rows)\.hpp 4.9
compact/shared_cells\.hpp                       5.2
compact/[^/]+\.hpp                              5
prefill/(block_bounds|layer_fusion|pruning_options)\.hpp 4
prefill/(criticality|load_tile)\.hpp            5
prefill/[^/]+\.hpp                              5.5

decode/(token_rows|attention_parts)\.hpp         5
decode/cache_positions\.hpp                      5.5
decode/[^/]+\.hpp                               6
model/layer_wise\.hpp                           6.2
model/[^/]+\.hpp                                6
measure/[^/]+\.hpp                              6
policy/eviction_policy\.hpp                     6
policy/snapkv\.hpp                              6.5
policy/(layers|replay)\.hpp                     7.5
policy/[^/]+\.hpp                               7
adapter/[^/]+\.hpp                              7
kvtrim\.hpp                                     8
'
eigen_allowed='^adapter/eigen[.]hpp$'
max_lines=350

cd "${1:-$(dirname "$0")/../..}/include/kvtrim"
find . -name '*.hpp' -o -name '*.inl' | sed 's|^\./||' | LC_ALL=C sort |
    LEVELS=$levels EIGEN_ALLOWED=$eigen_allowed awk -v max_lines="$max_lines" '
function fail(text) { print "include_levels: " text > "/dev/stderr"; failed = 1 }

function level(path,    i) {
    for (i = 1; i <= patterns; ++i) if (path ~ pattern[i]) return level_of[i]
    return -1
}

function check_include(path, line, own_level, number,    target) {
    sub(/^[ \t]*#[ \t]*include[ \t]*/, "", line)
    if (line ~ /^[<"](unsupported\/)?Eigen\// && path !~ ENVIRON["EIGEN_ALLOWED"])
        fail(path ":" number ": Eigen is for adapter/eigen.hpp only")
    if (line !~ /^<kvtrim\//) {
        if (line ~ /^"/) fail(path ":" number ": write #include <kvtrim/...>, not " line)
        return
    }
    target = line
    sub(/^<kvtrim\//, "", target)
    sub(/>.*$/, "", target)
    if (!(target in known)) fail(path ":" number ": no such header: " target)
    else if (level(target) >= own_level)
        fail(path ":" number ": level " own_level " must not include " target " of level " level(target))
}

BEGIN {
    rows = split(ENVIRON["LEVELS"], row, "\n")
    for (i = 1; i <= rows; ++i) {
        if (split(row[i], field, " ") != 2) continue
        pattern[++patterns] = "^" field[1] "$"
        level_of[patterns] = field[2] + 0
    }
}

{ path_of[++headers] = $0; known[$0] = 1 }

END {
    for (h = 1; h <= headers; ++h) {
        path = path_of[h]
        own_level = level(path)
        if (own_level < 0) { fail(path ": not in the table of levels (tests/lint/include_levels.sh)"); continue }
        number = 0; guard = ""
        while ((getline line < path) > 0) {
            ++number
            if (number == 1 && line != "// Copyright (c) kvtrim authors") fail(path ":1: copyright line expected")
            if (number == 2 && line != "// SPDX-License-Identifier: MIT") fail(path ":2: SPDX line expected")
            if (number > 2 && guard == "" && line != "") guard = line
            if (line ~ /^[ \t]*#[ \t]*include/) check_include(path, line, own_level, number)
        }
        close(path)
        # A .inl file is included once for each target.
        if ((guard == "#pragma once") == (path ~ /[.]inl$/)) fail(path ": #pragma once must follow the two licence lines")
        if (number > max_lines) fail(path ": " number " lines, at most " max_lines " are allowed")
    }
    if (headers == 0) fail("no headers found")
    if (!failed) print "include_levels: " headers " headers in order"
    exit failed
}'
