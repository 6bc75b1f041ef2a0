#!/usr/bin/env bash
# A test that a machine cannot run says so and returns before it checks anything: ctest then counts it as skipped, and one that
# both checks and warns could neither be seen to fail nor to be skipped.
#
#   TEST_CASE("...") {
#       if (!runs_here()) { return; }               directly behind the line that opens the test
#
#   WARN("no ... on this machine: not tested");     such a helper, or a test that has checked nothing yet
#   return;                                         directly behind it
#
# A test that returns in another way before it has checked anything is refused: it would count as passed.
set -euo pipefail
cd "${1:-$(dirname "$0")/../..}/tests"

find . \( -name '*.cpp' -o -name '*.hpp' \) -print0 | LC_ALL=C sort -z | xargs -0 awk '
    function complain(what) { printf "skipped_tests: %s:%d: %s\n", FILENAME, FNR, what > "/dev/stderr"; failed = 1 }
    FNR == 1 { in_test = is_header = has_checked = warns = opens = 0; warning = ""; files++ }
    /^(TEMPLATE_)?TEST_CASE/ { in_test = is_header = 1; has_checked = 0 }
    /^}/ { in_test = has_checked = 0 }
    { sub(/ *\/\/.*/, "") }
    /^ *$/ { next }

    warns { warns = 0; if ($0 ~ /^ *return( false)?;$/) { next } complain("no return directly behind a warning") }
    in_test && !has_checked && !/runs_/ && /^(    if \(.*\{ return; \}|        return;)$/ {
        complain("returns before it has checked anything, without a warning")
    }
    /\(![a-z:]*runs_[a-z0-9_]+\(/ {
        if (!opens || $0 !~ /^    if \(!(support::)?runs_[a-z0-9_]+\(\)\) \{ return; \}$/) {
            complain("asks what runs here elsewhere than at the beginning of a test")
        }
    }
    !is_header && /(CHECK|REQUIRE)[A-Z_]*\(/ { has_checked = 1 }
    opens || is_header { opens = 0 }
    is_header && /\{$/ { opens = 1; is_header = 0 }

    /(^|[^A-Z_])WARN\(/ { warning = "begun" }
    warning != "" {
        warning = warning $0
        if (/;$/) {
            if (warning ~ /not tested/) {
                warns = 1
                if (has_checked) { complain("a test that has checked something warns that it does not") }
            }
            warning = ""
        }
    }
    END {
        if (files == 0) { complain("no tests found") }
        if (!failed) { print "skipped_tests: each says so before it checks anything" }
        exit failed
    }'
