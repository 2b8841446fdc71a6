"""Convolution, pooling, normalisation and optimizer kernels for CPUs, one family a file."""
