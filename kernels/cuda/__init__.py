"""CUDA kernels in Python: one file a family; `compiler.py` and `ptx.py` know numba-cuda."""
