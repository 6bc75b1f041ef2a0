file(REMOVE_RECURSE
  "CMakeFiles/kvtrim_kernels.dir/root/.conan2/p/b/kvtrib590792c82efe/p/share/cmake/kvtrim/kvtrim_kernels.cpp.o"
  "CMakeFiles/kvtrim_kernels.dir/root/.conan2/p/b/kvtrib590792c82efe/p/share/cmake/kvtrim/kvtrim_kernels.cpp.o.d"
  "libkvtrim_kernels.a"
  "libkvtrim_kernels.pdb"
)

# Per-language clean rules from dependency scanning.
foreach(lang CXX)
  include(CMakeFiles/kvtrim_kernels.dir/cmake_clean_${lang}.cmake OPTIONAL)
endforeach()
