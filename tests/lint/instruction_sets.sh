#!/usr/bin/env bash
# Who may name an instruction set, in code (comments and strings may):
#
#   simd/, core/region.hpp         anything
#   kernels/*amx*, *bfmmla*        anything: products that one instruction set alone has
#   kernels/*.hpp                  the choice among targets, KVTRIM_CHOOSE... of simd/choose.hpp, with amx:: and bfmmla:: and the
#                                  tables that these complete
#   bodies, *.inl, wherever        nothing: which target a body is compiled for is decided by simd/for_each_target.inl, and by
#                                  simd/for_each_bf16_target.inl for products of bf16
#   examples/, bench/              the choice among bodies of their own, KVTRIM_CHOOSE...; a level by a name that is read or
#                                  printed, or the portable one, which every machine has
#   all others, src/               nothing: they call a kernel and do not know which one
#
# A part of a name is hidden from this by ##, so that is refused too.
set -euo pipefail
cd "${1:-$(dirname "$0")/../..}"

# Macros of core/region.hpp and of compilers for a set or a processor; headers; questions to the processor; targets; assembly.
sets='KVTRIM_[A-Z0-9_]*(X86|NEON|AVX|AMX|SSE|SVE)|KVTRIM_(BEGIN|END|TARGET)_|##'
sets+='|\b__(SSE|SSSE|AVX|AMX|FMA|F16C|BMI|LZCNT|POPCNT|ADX|VAES|GFNI|PCLMUL|XSAVE|ARM|ALTIVEC|VSX)'
sets+='|\b_*(x86_64|amd64|i[36]86|aarch64|arm64|riscv|wasm|powerpc|ppc64|loongarch|s390x)|\b_M_(X64|IX86|AMD64|ARM)'
sets+='|(intrin|simd128|riscv_vector|altivec|cpuid|hwcap|auxv|arm_[a-z0-9]+|(avx|amx|neon)[a-z0-9]*)\.h\b'
sets+='|getauxval|HWCAP|cpuid|xgetbv|__builtin_(ia32|cpu|arm|neon|aarch64|altivec|wasm|riscv)'
sets+='|\btarget(_clones)? *\( *("|KVTRIM)|pragma.*(\btarget|attribute)|__asm|\basm\b'
# Intrinsics and types of x86, NEON, SVE, RVV and WASM.
sets+='|\b_mm|\b_(tile|bzhi|pext|pdep|blsr|tzcnt|lzcnt|popcnt|cvtsh|cvtss)_|\b__(m(64|128|256|512|mask)|v[0-9]+[sdhq][fiu]|tile)'
sets+='|\bv[a-z]+[0-9]*q?_([a-z0-9]+_)*(f|s|u|p|bf)(8|16|32|64)\b|\bv[a-z0-9]+q_'
sets+='|\bv(ml|fm|add|sub|mul|ld|st|dup|get|set|cvt|max|min|abs|neg|zip|uzp|trn|ext|sh|bsl|c[eglt]|and|orr|eor|mvn|rev)[a-z0-9]*q\b'
sets+='|\b(u?int|float|poly|bfloat)(8|16|32|64)x[0-9]+(x[0-9])?_t\b'
sets+='|\bsv(ld|st|mla|add|sub|mul|dup|while|ptrue|max|min|cnt|bool|b?float|u?int)[a-z0-9_]*_|\bv(float|u?int|bool)[0-9]+m'
sets+='|\bv128|\b[fiu](8x16|16x8|32x4|64x2)_'
targets='\b(portable|sse[0-9_]*|avx2|avx512[a-z0-9_]*|amx|neon|neon_bf16|bfmmla|sve2?|rvv)\b|KVTRIM_BASELINE'
choice='KVTRIM_CHOOSE|cpu_level|<kvtrim/[a-z]+/[a-z_0-9]*(amx|avx|neon|bfmmla)'

# FILE:LINE:code of each line of the files named on stdin.
code_of() {
    xargs -r awk '
        FNR == 1 { in_comment = 0 }
        {
            code = ""
            gsub(/'\''\\?"'\''/, "0")
            while ($0 != "") {
                if (in_comment) {
                    end = index($0, "*/")
                    $0 = end ? substr($0, end + 2) : ""
                    if (end) { in_comment = 0 }
                } else if (match($0, /\/\/|\/\*|"/)) {
                    begin = substr($0, RSTART, RLENGTH)
                    code = code substr($0, 1, RSTART - 1) (begin == "\"" ? "\"\"" : " ")
                    $0 = substr($0, RSTART + RLENGTH)
                    if (begin == "//") { $0 = "" }
                    if (begin == "/*") { in_comment = 1 }
                    if (begin == "\"") { $0 = match($0, /^([^"\\]|\\.)*"/) ? substr($0, RLENGTH + 1) : "" }
                } else {
                    code = code $0
                    $0 = ""
                }
            }
            if (code !~ /^ *$/) { print FILENAME ":" FNR ":" code }
        }'
}

failed=0
# check NAMES ALLOWED: complains of what NAMES matches in the files on stdin once ALLOWED is taken out.
check() {
    local list hit
    list=$(cat)
    [[ -n $list ]] || return 0
    while IFS= read -r hit; do
        echo "instruction_sets: $hit" >&2
        failed=1
    done < <(code_of <<<"$list" | sed -E "s/$2//g" | grep -E "^[^:]+:[0-9]+:.*($1)" || true)
}

headers=$(find include/kvtrim -name '*.hpp' -o -name '*.inl' | LC_ALL=C sort)
sources=$(find src -name '*.[ch]pp' -o -name '*.[ch]' | LC_ALL=C sort)
programs=$(find examples bench -name '*.[ch]pp' -o -name '*.[ch]' | LC_ALL=C sort)
bodies=$(find examples bench -name '*.inl' | LC_ALL=C sort)
in_kernels() { grep '^include/kvtrim/kernels/' <<<"$headers" || true; }
own='/(amx|bfmmla)_[a-z_]+\.hpp$|_(amx|bfmmla)\.hpp$'

check "$sets|$targets|$choice|KVTRIM_TARGET" '\bvalues_bf16\b' < <(
    grep -vE '^include/kvtrim/((simd|kernels)/|core/region\.hpp$)' <<<"$headers")
check "$sets|$targets" '\b(amx|bfmmla)::([a-z_]+<(avx512|neon)::)?' < <(
    in_kernels | grep '\.hpp$' | grep -vE "$own")
check "$sets|$targets|$choice" 'no exception' < <(
    { in_kernels; echo "$bodies"; } | grep '\.inl$')
# The C interface tells its caller the name of the level.
check "$sets|$targets|$choice|KVTRIM_TARGET" '\bkvtrim_cpu_level\b|name_of\(active_cpu_level\(\)\)|<kvtrim\/simd\/cpu_level\.hpp>' <<<"$sources"
own_bodies='\bKVTRIM_CHOOSE_PRODUCTS\([a-z_]+, amx::[a-z0-9_]+, bfmmla::[a-z0-9_]+'
check "$sets|$targets|KVTRIM_TARGET" "$own_bodies|\bcpu_level::portable\b[^:]" <<<"$programs"
[[ -n $headers$sources$programs$bodies ]] || { echo "instruction_sets: no files found" >&2; failed=1; }
((failed)) || echo "instruction_sets: none outside simd/ and kernels/, none in a body"
exit "$failed"
