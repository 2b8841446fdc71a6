"""Convolution kernels written in Python with Numba: imports NumPy, Numba and siblings, nothing of gpuconv."""
