
# Consider dependencies only in project.
set(CMAKE_DEPENDS_IN_PROJECT_ONLY OFF)

# The set of languages for which implicit dependencies are needed:
set(CMAKE_DEPENDS_LANGUAGES
  )

# The set of dependency files which are needed:
set(CMAKE_DEPENDS_DEPENDENCY_FILES
  "/root/.conan2/p/b/kvtrib590792c82efe/p/share/cmake/kvtrim/kvtrim_kernels.cpp" "CMakeFiles/kvtrim_kernels.dir/root/.conan2/p/b/kvtrib590792c82efe/p/share/cmake/kvtrim/kvtrim_kernels.cpp.o" "gcc" "CMakeFiles/kvtrim_kernels.dir/root/.conan2/p/b/kvtrib590792c82efe/p/share/cmake/kvtrim/kvtrim_kernels.cpp.o.d"
  )

# Targets to which this target links.
set(CMAKE_TARGET_LINKED_INFO_FILES
  )

# Fortran module output directory.
set(CMAKE_Fortran_TARGET_MODULE_DIR "")
