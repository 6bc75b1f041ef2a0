CMakeFiles/consumer_of_kernels.dir/work/wt/dist/tests/consumer/main.cpp.o: \
 /work/wt/dist/tests/consumer/main.cpp /usr/include/stdc-predef.h \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/kvtrim.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/allocate/blended.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/allocate/round_to_total.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/core/workspace.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/core/status.hpp \
 /usr/include/c++/12/cstdint \
 /usr/include/x86_64-linux-gnu/c++/12/bits/c++config.h \
 /usr/include/x86_64-linux-gnu/c++/12/bits/os_defines.h \
 /usr/include/features.h /usr/include/features-time64.h \
 /usr/include/x86_64-linux-gnu/bits/wordsize.h \
 /usr/include/x86_64-linux-gnu/bits/timesize.h \
 /usr/include/x86_64-linux-gnu/sys/cdefs.h \
 /usr/include/x86_64-linux-gnu/bits/long-double.h \
 /usr/include/x86_64-linux-gnu/gnu/stubs.h \
 /usr/include/x86_64-linux-gnu/gnu/stubs-64.h \
 /usr/include/x86_64-linux-gnu/c++/12/bits/cpu_defines.h \
 /usr/include/c++/12/pstl/pstl_config.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/stdint.h /usr/include/stdint.h \
 /usr/include/x86_64-linux-gnu/bits/libc-header-start.h \
 /usr/include/x86_64-linux-gnu/bits/types.h \
 /usr/include/x86_64-linux-gnu/bits/typesizes.h \
 /usr/include/x86_64-linux-gnu/bits/time64.h \
 /usr/include/x86_64-linux-gnu/bits/wchar.h \
 /usr/include/x86_64-linux-gnu/bits/stdint-intn.h \
 /usr/include/x86_64-linux-gnu/bits/stdint-uintn.h \
 /usr/include/c++/12/algorithm /usr/include/c++/12/bits/stl_algobase.h \
 /usr/include/c++/12/bits/functexcept.h \
 /usr/include/c++/12/bits/exception_defines.h \
 /usr/include/c++/12/bits/cpp_type_traits.h \
 /usr/include/c++/12/ext/type_traits.h \
 /usr/include/c++/12/ext/numeric_traits.h \
 /usr/include/c++/12/bits/stl_pair.h /usr/include/c++/12/type_traits \
 /usr/include/c++/12/bits/move.h /usr/include/c++/12/bits/utility.h \
 /usr/include/c++/12/compare /usr/include/c++/12/concepts \
 /usr/include/c++/12/bits/stl_iterator_base_types.h \
 /usr/include/c++/12/bits/iterator_concepts.h \
 /usr/include/c++/12/bits/ptr_traits.h \
 /usr/include/c++/12/bits/ranges_cmp.h \
 /usr/include/c++/12/bits/stl_iterator_base_funcs.h \
 /usr/include/c++/12/bits/concept_check.h \
 /usr/include/c++/12/debug/assertions.h \
 /usr/include/c++/12/bits/stl_iterator.h /usr/include/c++/12/new \
 /usr/include/c++/12/bits/exception.h \
 /usr/include/c++/12/bits/stl_construct.h \
 /usr/include/c++/12/debug/debug.h \
 /usr/include/c++/12/bits/predefined_ops.h \
 /usr/include/c++/12/bits/stl_algo.h \
 /usr/include/c++/12/bits/algorithmfwd.h \
 /usr/include/c++/12/initializer_list /usr/include/c++/12/bits/stl_heap.h \
 /usr/include/c++/12/bits/stl_tempbuf.h \
 /usr/include/c++/12/bits/uniform_int_dist.h /usr/include/c++/12/cstdlib \
 /usr/include/stdlib.h /usr/lib/gcc/x86_64-linux-gnu/12/include/stddef.h \
 /usr/include/x86_64-linux-gnu/bits/waitflags.h \
 /usr/include/x86_64-linux-gnu/bits/waitstatus.h \
 /usr/include/x86_64-linux-gnu/bits/floatn.h \
 /usr/include/x86_64-linux-gnu/bits/floatn-common.h \
 /usr/include/x86_64-linux-gnu/bits/types/locale_t.h \
 /usr/include/x86_64-linux-gnu/bits/types/__locale_t.h \
 /usr/include/x86_64-linux-gnu/sys/types.h \
 /usr/include/x86_64-linux-gnu/bits/types/clock_t.h \
 /usr/include/x86_64-linux-gnu/bits/types/clockid_t.h \
 /usr/include/x86_64-linux-gnu/bits/types/time_t.h \
 /usr/include/x86_64-linux-gnu/bits/types/timer_t.h /usr/include/endian.h \
 /usr/include/x86_64-linux-gnu/bits/endian.h \
 /usr/include/x86_64-linux-gnu/bits/endianness.h \
 /usr/include/x86_64-linux-gnu/bits/byteswap.h \
 /usr/include/x86_64-linux-gnu/bits/uintn-identity.h \
 /usr/include/x86_64-linux-gnu/sys/select.h \
 /usr/include/x86_64-linux-gnu/bits/select.h \
 /usr/include/x86_64-linux-gnu/bits/types/sigset_t.h \
 /usr/include/x86_64-linux-gnu/bits/types/__sigset_t.h \
 /usr/include/x86_64-linux-gnu/bits/types/struct_timeval.h \
 /usr/include/x86_64-linux-gnu/bits/types/struct_timespec.h \
 /usr/include/x86_64-linux-gnu/bits/pthreadtypes.h \
 /usr/include/x86_64-linux-gnu/bits/thread-shared-types.h \
 /usr/include/x86_64-linux-gnu/bits/pthreadtypes-arch.h \
 /usr/include/x86_64-linux-gnu/bits/atomic_wide_counter.h \
 /usr/include/x86_64-linux-gnu/bits/struct_mutex.h \
 /usr/include/x86_64-linux-gnu/bits/struct_rwlock.h /usr/include/alloca.h \
 /usr/include/x86_64-linux-gnu/bits/stdlib-bsearch.h \
 /usr/include/x86_64-linux-gnu/bits/stdlib-float.h \
 /usr/include/c++/12/bits/std_abs.h \
 /usr/include/c++/12/bits/ranges_algo.h \
 /usr/include/c++/12/bits/ranges_algobase.h \
 /usr/include/c++/12/bits/ranges_base.h \
 /usr/include/c++/12/bits/max_size_type.h /usr/include/c++/12/numbers \
 /usr/include/c++/12/bits/invoke.h /usr/include/c++/12/bits/ranges_util.h \
 /usr/include/c++/12/pstl/glue_algorithm_defs.h \
 /usr/include/c++/12/pstl/execution_defs.h /usr/include/c++/12/cstddef \
 /usr/include/c++/12/limits /usr/include/c++/12/span \
 /usr/include/c++/12/array /usr/include/c++/12/bits/range_access.h \
 /usr/include/c++/12/vector /usr/include/c++/12/bits/allocator.h \
 /usr/include/x86_64-linux-gnu/c++/12/bits/c++allocator.h \
 /usr/include/c++/12/bits/new_allocator.h \
 /usr/include/c++/12/bits/memoryfwd.h \
 /usr/include/c++/12/bits/stl_uninitialized.h \
 /usr/include/c++/12/ext/alloc_traits.h \
 /usr/include/c++/12/bits/alloc_traits.h \
 /usr/include/c++/12/bits/stl_vector.h \
 /usr/include/c++/12/bits/stl_bvector.h \
 /usr/include/c++/12/bits/functional_hash.h \
 /usr/include/c++/12/bits/hash_bytes.h /usr/include/c++/12/bits/refwrap.h \
 /usr/include/c++/12/bits/stl_function.h \
 /usr/include/c++/12/backward/binders.h \
 /usr/include/c++/12/bits/vector.tcc /usr/include/c++/12/cmath \
 /usr/include/math.h /usr/include/x86_64-linux-gnu/bits/math-vector.h \
 /usr/include/x86_64-linux-gnu/bits/libm-simd-decl-stubs.h \
 /usr/include/x86_64-linux-gnu/bits/flt-eval-method.h \
 /usr/include/x86_64-linux-gnu/bits/fp-logb.h \
 /usr/include/x86_64-linux-gnu/bits/fp-fast.h \
 /usr/include/x86_64-linux-gnu/bits/mathcalls-helper-functions.h \
 /usr/include/x86_64-linux-gnu/bits/mathcalls.h \
 /usr/include/x86_64-linux-gnu/bits/mathcalls-narrow.h \
 /usr/include/x86_64-linux-gnu/bits/iscanonical.h \
 /usr/include/c++/12/bits/specfun.h /usr/include/c++/12/tr1/gamma.tcc \
 /usr/include/c++/12/tr1/special_function_util.h \
 /usr/include/c++/12/tr1/bessel_function.tcc \
 /usr/include/c++/12/tr1/beta_function.tcc \
 /usr/include/c++/12/tr1/ell_integral.tcc \
 /usr/include/c++/12/tr1/exp_integral.tcc \
 /usr/include/c++/12/tr1/hypergeometric.tcc \
 /usr/include/c++/12/tr1/legendre_function.tcc \
 /usr/include/c++/12/tr1/modified_bessel_func.tcc \
 /usr/include/c++/12/tr1/poly_hermite.tcc \
 /usr/include/c++/12/tr1/poly_laguerre.tcc \
 /usr/include/c++/12/tr1/riemann_zeta.tcc \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/core/request.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/core/saturated.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/plan/top_k.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/kernels/ordered_bits.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/simd/choose.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/simd/cpu.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/simd/region.hpp \
 /usr/include/c++/12/cstring /usr/include/string.h /usr/include/strings.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/cpuid.h \
 /usr/include/x86_64-linux-gnu/sys/syscall.h \
 /usr/include/x86_64-linux-gnu/asm/unistd.h \
 /usr/include/x86_64-linux-gnu/asm/unistd_64.h \
 /usr/include/x86_64-linux-gnu/bits/syscall.h /usr/include/unistd.h \
 /usr/include/x86_64-linux-gnu/bits/posix_opt.h \
 /usr/include/x86_64-linux-gnu/bits/environments.h \
 /usr/include/x86_64-linux-gnu/bits/confname.h \
 /usr/include/x86_64-linux-gnu/bits/getopt_posix.h \
 /usr/include/x86_64-linux-gnu/bits/getopt_core.h \
 /usr/include/x86_64-linux-gnu/bits/unistd_ext.h \
 /usr/include/linux/close_range.h \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/simd/simd.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/simd/avx2.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/core/fp8.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/core/element.hpp \
 /usr/include/c++/12/bit \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/immintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/x86gprintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/ia32intrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/adxintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/bmiintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/bmi2intrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/cetintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/cldemoteintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/clflushoptintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/clwbintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/clzerointrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/enqcmdintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/fxsrintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/lzcntintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/lwpintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/movdirintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/mwaitintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/mwaitxintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/pconfigintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/popcntintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/pkuintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/rdseedintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/rtmintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/serializeintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/sgxintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/tbmintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/tsxldtrkintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/uintrintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/waitpkgintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/wbnoinvdintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/xsaveintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/xsavecintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/xsaveoptintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/xsavesintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/xtestintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/hresetintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/mmintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/xmmintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/mm_malloc.h \
 /usr/include/c++/12/stdlib.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/emmintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/pmmintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/tmmintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/smmintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/wmmintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/avxintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/avxvnniintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/avx2intrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/avx512fintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/avx512erintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/avx512pfintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/avx512cdintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/avx512vlintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/avx512bwintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/avx512dqintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/avx512vlbwintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/avx512vldqintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/avx512ifmaintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/avx512ifmavlintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/avx512vbmiintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/avx512vbmivlintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/avx5124fmapsintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/avx5124vnniwintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/avx512vpopcntdqintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/avx512vbmi2intrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/avx512vbmi2vlintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/avx512vnniintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/avx512vnnivlintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/avx512vpopcntdqvlintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/avx512bitalgintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/avx512vp2intersectintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/avx512vp2intersectvlintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/avx512fp16intrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/avx512fp16vlintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/shaintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/fmaintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/f16cintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/gfniintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/vaesintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/vpclmulqdqintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/avx512bf16vlintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/avx512bf16intrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/amxtileintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/amxint8intrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/amxbf16intrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/prfchwintrin.h \
 /usr/lib/gcc/x86_64-linux-gnu/12/include/keylockerintrin.h \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/simd/exp2.inl \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/simd/common.inl \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/simd/copied_parts.inl \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/simd/avx512.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/simd/neon.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/simd/portable.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/simd/four_lanes.inl \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/simd/for_each_target.inl \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/kernels/ordered_bits.inl \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/plan/token_scores.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/allocate/row_profile.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/core/plain_memory.hpp \
 /usr/include/c++/12/utility /usr/include/c++/12/bits/stl_relops.h \
 /usr/include/c++/12/functional /usr/include/c++/12/tuple \
 /usr/include/c++/12/bits/uses_allocator.h \
 /usr/include/c++/12/bits/std_function.h /usr/include/c++/12/typeinfo \
 /usr/include/c++/12/unordered_map \
 /usr/include/c++/12/ext/aligned_buffer.h \
 /usr/include/c++/12/bits/hashtable.h \
 /usr/include/c++/12/bits/hashtable_policy.h \
 /usr/include/c++/12/bits/enable_special_members.h \
 /usr/include/c++/12/bits/node_handle.h \
 /usr/include/c++/12/bits/unordered_map.h \
 /usr/include/c++/12/bits/erase_if.h \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/allocate/whole_pages.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/cache/filled.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/cache/tensor_view.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/cache/ggml_rows.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/cache/strided_bytes.hpp \
 /usr/include/c++/12/numeric /usr/include/c++/12/bits/stl_numeric.h \
 /usr/include/c++/12/pstl/glue_numeric_defs.h \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/kernels/encode.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/kernels/quant_blocks.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/kernels/panel_product.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/kernels/panel_product.inl \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/kernels/quant_blocks.inl \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/kernels/scaled_codes.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/kernels/scaled_codes.inl \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/kernels/quant_formats.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/cache/ggml_tensor_rows.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/cache/row_reader.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/cache/row_source.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/core/element_rows.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/simd/convert.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/simd/convert.inl \
 /usr/include/c++/12/variant /usr/include/c++/12/bits/parse_numbers.h \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/cache/indexed_rows.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/cache/latent_cache.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/cache/list_cells.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/cache/paged_rows.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/cache/page_table.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/cache/ragged.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/cache/scaled_rows.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/compact/compact_in_place.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/compact/check_plan.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/plan/keep_plan.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/compact/overlap.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/kernels/row_mover.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/compact/compact_to_flat.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/compact/flat_cache.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/compact/move_rows.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/core/executor.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/plan/move_plan.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/compact/plan_page_moves.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/compact/page_fates.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/compact/project_to_shared.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/compact/rerotate_keys.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/compact/rotate_rows.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/cache/rope.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/kernels/rotate.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/kernels/rotate.inl \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/core/for_each_item.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/plan/row_positions.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/compact/shared_cells.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/rerank/row_fold.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/kernels/row_ops.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/kernels/row_ops.inl \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/decode/close_up.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/decode/cache_positions.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/decode/token_rows.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/decode/interval_policy.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/plan/candidate_rows.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/cache/layer.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/decode/projected_norms.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/score/projected_value_norms.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/score/prepared_projection.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/kernels/products.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/kernels/tile_size.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/kernels/products.inl \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/kernels/projection_ops.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/kernels/projection_ops_amx.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/kernels/amx_products.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/kernels/amx_tiles.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/kernels/projection_ops.inl \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/decode/ragged_attention.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/decode/attention_parts.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/kernels/decode_tile.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/kernels/decode_tile.inl \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/decode/recent_queries.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/decode/running_scores.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/aggregate/mean_attention.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/aggregate/attention_tile.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/kernels/window_ops.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/kernels/soon_read.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/kernels/window_ops_amx.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/kernels/window_ops.inl \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/aggregate/pooling.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/cache/row_range.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/score/query_free.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/score/window_attention.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/attention/attention_rows.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/attention/observers.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/measure/eviction_loss.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/kernels/tile_ops.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/policy/baselines.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/policy/snapkv.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/allocate/adaptive.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/allocate/uniform.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/policy/eviction_policy.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/plan/score_table.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/policy/pipeline.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/plan/concepts.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/rerank/by_importance.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/rerank/shared.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/score/key_norm.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/policy/batch.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/policy/consensuskv.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/score/consensus.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/policy/criticalkv.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/rerank/two_stage.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/rerank/count_for_mass.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/score/projected_norm_weighted.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/policy/critiprefill.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/prefill/block_pruner.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/prefill/criticality.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/prefill/block_bounds.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/prefill/layer_fusion.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/plan/prune_plan.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/prefill/pruning_options.hpp \
 /usr/include/c++/12/mutex /usr/include/c++/12/exception \
 /usr/include/c++/12/bits/exception_ptr.h \
 /usr/include/c++/12/bits/cxxabi_init_exception.h \
 /usr/include/c++/12/bits/nested_exception.h \
 /usr/include/c++/12/system_error \
 /usr/include/x86_64-linux-gnu/c++/12/bits/error_constants.h \
 /usr/include/c++/12/cerrno /usr/include/errno.h \
 /usr/include/x86_64-linux-gnu/bits/errno.h /usr/include/linux/errno.h \
 /usr/include/x86_64-linux-gnu/asm/errno.h \
 /usr/include/asm-generic/errno.h /usr/include/asm-generic/errno-base.h \
 /usr/include/x86_64-linux-gnu/bits/types/error_t.h \
 /usr/include/c++/12/iosfwd /usr/include/c++/12/bits/stringfwd.h \
 /usr/include/c++/12/bits/postypes.h /usr/include/c++/12/cwchar \
 /usr/include/wchar.h /usr/lib/gcc/x86_64-linux-gnu/12/include/stdarg.h \
 /usr/include/x86_64-linux-gnu/bits/types/wint_t.h \
 /usr/include/x86_64-linux-gnu/bits/types/mbstate_t.h \
 /usr/include/x86_64-linux-gnu/bits/types/__mbstate_t.h \
 /usr/include/x86_64-linux-gnu/bits/types/__FILE.h \
 /usr/include/x86_64-linux-gnu/bits/types/FILE.h \
 /usr/include/c++/12/stdexcept /usr/include/c++/12/string \
 /usr/include/c++/12/bits/char_traits.h \
 /usr/include/c++/12/bits/localefwd.h \
 /usr/include/x86_64-linux-gnu/c++/12/bits/c++locale.h \
 /usr/include/c++/12/clocale /usr/include/locale.h \
 /usr/include/x86_64-linux-gnu/bits/locale.h /usr/include/c++/12/cctype \
 /usr/include/ctype.h /usr/include/c++/12/bits/ostream_insert.h \
 /usr/include/c++/12/bits/cxxabi_forced.h \
 /usr/include/c++/12/bits/basic_string.h /usr/include/c++/12/string_view \
 /usr/include/c++/12/bits/string_view.tcc \
 /usr/include/c++/12/ext/string_conversions.h /usr/include/c++/12/cstdio \
 /usr/include/stdio.h /usr/include/x86_64-linux-gnu/bits/types/__fpos_t.h \
 /usr/include/x86_64-linux-gnu/bits/types/__fpos64_t.h \
 /usr/include/x86_64-linux-gnu/bits/types/struct_FILE.h \
 /usr/include/x86_64-linux-gnu/bits/types/cookie_io_functions_t.h \
 /usr/include/x86_64-linux-gnu/bits/stdio_lim.h \
 /usr/include/x86_64-linux-gnu/bits/stdio.h \
 /usr/include/c++/12/bits/charconv.h \
 /usr/include/c++/12/bits/basic_string.tcc \
 /usr/include/c++/12/bits/chrono.h /usr/include/c++/12/ratio \
 /usr/include/c++/12/ctime /usr/include/time.h \
 /usr/include/x86_64-linux-gnu/bits/time.h \
 /usr/include/x86_64-linux-gnu/bits/timex.h \
 /usr/include/x86_64-linux-gnu/bits/types/struct_tm.h \
 /usr/include/x86_64-linux-gnu/bits/types/struct_itimerspec.h \
 /usr/include/c++/12/bits/std_mutex.h \
 /usr/include/x86_64-linux-gnu/c++/12/bits/gthr.h \
 /usr/include/x86_64-linux-gnu/c++/12/bits/gthr-default.h \
 /usr/include/pthread.h /usr/include/sched.h \
 /usr/include/x86_64-linux-gnu/bits/sched.h \
 /usr/include/x86_64-linux-gnu/bits/types/struct_sched_param.h \
 /usr/include/x86_64-linux-gnu/bits/cpu-set.h \
 /usr/include/x86_64-linux-gnu/bits/setjmp.h \
 /usr/include/x86_64-linux-gnu/bits/types/struct___jmp_buf_tag.h \
 /usr/include/x86_64-linux-gnu/bits/pthread_stack_min-dynamic.h \
 /usr/include/c++/12/bits/unique_lock.h \
 /usr/include/c++/12/ext/atomicity.h \
 /usr/include/x86_64-linux-gnu/c++/12/bits/atomic_word.h \
 /usr/include/x86_64-linux-gnu/sys/single_threaded.h \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/policy/defensivekv.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/aggregate/worst_case_attention.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/kernels/pooled_maximum.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/kernels/pooled_maximum.inl \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/policy/expected_attention.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/score/expected_attention_score.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/score/query_statistics.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/score/value_norm_weighted.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/policy/lagkv.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/score/lag_score.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/policy/layers.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/aggregate/dispersion_attention.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/allocate/layer_shares.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/allocate/layer_budgets.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/policy/layer_wise.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/policy/layer_cascade.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/score/layer_preference.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/policy/page_eviction.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/policy/replay.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/score/replayed.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/score/replay.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/score/single_eviction.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/policy/rkv.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/score/redundancy_aware.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/prefill/block_sparse_attention.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/kernels/query_tiles.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/kernels/query_tile.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/kernels/query_tile.inl \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/kernels/query_tile_amx.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/rerank/chunked.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/score/combine_projections.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/score/padded.hpp \
 /root/.conan2/p/b/kvtrib590792c82efe/p/include/kvtrim/version.hpp
