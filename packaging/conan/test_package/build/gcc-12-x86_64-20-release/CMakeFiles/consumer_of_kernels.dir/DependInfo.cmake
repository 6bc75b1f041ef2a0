
# Consider dependencies only in project.
set(CMAKE_DEPENDS_IN_PROJECT_ONLY OFF)

# The set of languages for which implicit dependencies are needed:
set(CMAKE_DEPENDS_LANGUAGES
  )

# The set of dependency files which are needed:
set(CMAKE_DEPENDS_DEPENDENCY_FILES
  "/work/wt/dist/tests/consumer/main.cpp" "CMakeFiles/consumer_of_kernels.dir/work/wt/dist/tests/consumer/main.cpp.o" "gcc" "CMakeFiles/consumer_of_kernels.dir/work/wt/dist/tests/consumer/main.cpp.o.d"
  )

# Targets to which this target links.
set(CMAKE_TARGET_LINKED_INFO_FILES
  "/work/wt/dist/packaging/conan/test_package/build/gcc-12-x86_64-20-release/CMakeFiles/kvtrim_kernels.dir/DependInfo.cmake"
  )

# Fortran module output directory.
set(CMAKE_Fortran_TARGET_MODULE_DIR "")
