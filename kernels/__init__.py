"""Convolution kernels written in Python with Numba; nothing of gpuconv is imported here."""
