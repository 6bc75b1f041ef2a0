# Runs NEEDLE (behind an emulator, where there is one) with ARGUMENTS; passes if it fails with MESSAGE on stderr and prints nothing else.

execute_process(COMMAND ${NEEDLE} ${ARGUMENTS}
    RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE errors
)
string(FIND "${errors}" "${MESSAGE}" found)
if(result EQUAL 0 OR found EQUAL -1 OR NOT output STREQUAL "")
    message(FATAL_ERROR "exit ${result}, expected: ${MESSAGE}\n${output}${errors}")
endif()
