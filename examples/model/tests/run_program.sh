#!/usr/bin/env bash
# run_program.sh FOLDER [EMULATOR...] MODEL_TESTS MODEL_RUN: ./dev run on a tiny model of random weights, whose answers are noise but the same
# for the same cache.
set -euo pipefail
folder=$1
tests=("${@:2:$#-2}") run=("${@:2:$#-3}" "${@: -1}")
rm -rf "$folder"
mkdir -p "$folder"
RUN_PROGRAM_FOLDER=$folder "${tests[@]}" "[run program]" >/dev/null
cd "$folder"

fail() { echo "run_program: $*" >&2; exit 1; }
# The answers, and the megabytes of the caches that they came from, a line each: of the full cache and of the cut one.
ask() { "${run[@]}" --model tiny.gguf -f text.txt -p "hello?" --max-tokens 6 "$@" 2>/dev/null >out.txt || fail "$* ended with an error"; }
answer() { awk -v which="$1" '/^== /{ ++n; next } n == which && !/decode steps/ && NF { print }' out.txt; }
megabytes() { awk -v which="$1" '/^== /{ if (++n == which) { match($0, /[0-9.]+ MB/); print substr($0, RSTART, RLENGTH - 3) } }' out.txt; }

for policy in replay_afar defensivekv snapkv; do
    ask --policy "$policy" --keep 1
    [[ -n $(answer 1) && $(answer 1) == "$(answer 2)" && $(megabytes 1) == "$(megabytes 2)" ]] ||
        fail "$policy keeps everything and answers otherwise: $(<out.txt)"
done
ask --keep 0.25
grep -q '^== replay_afar, 25 % kept' out.txt || fail "not the default: $(<out.txt)"
awk -v full="$(megabytes 1)" -v cut="$(megabytes 2)" 'BEGIN { exit !(cut > 0 && cut < 0.4 * full) }' || fail "nothing was freed: $(<out.txt)"
ask --unseen --plain --cache q8_0 --keep 0.5

# A table is made once.
ask --policy profiled --table table.bin --keep 0.5
grep -q 'written to' out.txt || fail "no table was made: $(<out.txt)"
made=$(answer 2)
ask --policy profiled --table table.bin --keep 0.5
grep -q 'read from' out.txt && [[ $(answer 2) == "$made" ]] || fail "the table that was read is another: $(<out.txt)"

refuse() { # MESSAGE [options]
    ! "${run[@]}" --model tiny.gguf --max-tokens 6 "${@:2}" >out.txt 2>&1 || fail "not refused: ${*:2}"
    grep -q -- "$1" out.txt || fail "not refused with '$1': $(<out.txt)"
}
refuse "nothing to answer"
refuse "table.bin" -f text.txt -p "hello?" --policy snapkv --table table.bin
refuse "no_such" -f text.txt -p "hello?" --policy no_such
refuse "shares" -f text.txt -p "hello?" --policy snapkv_by_shares
head -c 20 table.bin >short.bin
refuse "short.bin" -f text.txt -p "hello?" --policy profiled --table short.bin
echo "run_program: in order"
