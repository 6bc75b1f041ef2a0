# Empty compiler generated dependencies file for kvtrim_kernels.
# This may be replaced when dependencies are built.
