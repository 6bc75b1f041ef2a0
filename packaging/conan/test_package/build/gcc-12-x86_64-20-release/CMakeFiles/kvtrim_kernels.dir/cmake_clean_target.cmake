file(REMOVE_RECURSE
  "libkvtrim_kernels.a"
)
