file(REMOVE_RECURSE
  "CMakeFiles/consumer_of_kernels.dir/work/wt/dist/tests/consumer/main.cpp.o"
  "CMakeFiles/consumer_of_kernels.dir/work/wt/dist/tests/consumer/main.cpp.o.d"
  "consumer_of_kernels"
  "consumer_of_kernels.pdb"
)

# Per-language clean rules from dependency scanning.
foreach(lang CXX)
  include(CMakeFiles/consumer_of_kernels.dir/cmake_clean_${lang}.cmake OPTIONAL)
endforeach()
