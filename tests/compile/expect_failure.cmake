# Run with -P: passes when COMPILER rejects SOURCE with a diagnostic that matches the regular expression
# (of CMake) on SOURCE's first line: `// expect: <regex>`. An accepted source fails, and so does another error.
# A second line `// flags: <flags>` adds to the command line.

file(STRINGS "${SOURCE}" first_line LIMIT_COUNT 1)
if(NOT first_line MATCHES "^// expect: (.+)$")
    message(FATAL_ERROR "${SOURCE}: the first line must be `// expect: <regex>`")
endif()
set(expected "${CMAKE_MATCH_1}")

file(STRINGS "${SOURCE}" flags_line LIMIT_COUNT 1 REGEX "^// flags: ")
string(REGEX REPLACE "^// flags: " "" own_flags "${flags_line}")
separate_arguments(own_flags)

list(TRANSFORM INCLUDES PREPEND "-I")
execute_process(
    COMMAND "${COMPILER}" -std=c++20 -fsyntax-only ${FLAGS} ${own_flags} ${INCLUDES} "${SOURCE}"
    RESULT_VARIABLE result
    OUTPUT_VARIABLE output
    ERROR_VARIABLE output
)

if(result EQUAL 0)
    message(FATAL_ERROR "${SOURCE} compiles, but must be rejected with: ${expected}")
endif()
if(NOT output MATCHES "${expected}")
    message(NOTICE "${output}")
    message(FATAL_ERROR "${SOURCE} is rejected, but not with: ${expected}")
endif()
