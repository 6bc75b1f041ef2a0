# Empty compiler generated dependencies file for consumer_of_kernels.
# This may be replaced when dependencies are built.
