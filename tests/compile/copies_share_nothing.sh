#!/usr/bin/env bash
# copies_share_nothing.sh NM INCLUDES COMPILER [FLAGS]: objects of one program that were compiled with different flags, as two libraries that
# both use kvtrim are, share no function of kvtrim: a linker would keep one of them for both.
set -euo pipefail
nm=$1 includes=$2
compiler=("${@:3}")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/use.cpp" <<'END'
#include <kvtrim/compact/compact_in_place.hpp>
kvtrim::status use(kvtrim::strided<float, 3> keys, const kvtrim::keep_plan& plan) { return compact_in_place(keys, plan); }
END
case $("${compiler[@]}" -dumpmachine) in
    x86_64*) machines=(-march=x86-64 -mavx -mavx2 -mavx512f -march=cascadelake -march=sapphirerapids) ;;
    aarch64*) machines=(-march=armv8-a -march=armv8.1-a -march=armv8.2-a+dotprod -march=armv8.2-a+bf16 -march=armv8.2-a+sve) ;;
    *) machines=() ;;
esac
count=0
for flags in "${machines[@]}"; do
    for kernels in "" -DKVTRIM_COMPILED_KERNELS; do
        # shellcheck disable=SC2086 # flags of several words
        "${compiler[@]}" -std=c++20 -O0 -I"$includes" $flags $kernels -c "$folder/use.cpp" -o "$folder/$count.o"
        "$nm" "$folder/$count.o" | awk '$2 ~ /^[WVu]$/ && $3 ~ /kvtrim/ { print $3 }' | sort -u >"$folder/$count.names"
        [[ -s $folder/$count.names ]] || { echo "no functions of kvtrim with $flags $kernels" >&2; exit 1; }
        count=$((count + 1))
    done
done
shared=$(sort "$folder"/*.names | uniq -d)
[[ -z $shared ]] || { echo "in objects of different flags:" >&2; c++filt <<<"$shared" >&2; exit 1; }
echo "$count objects of different flags share no function of kvtrim"
