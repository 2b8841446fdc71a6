"""Every operation in array code, one family a file: the fallback, and the reference for all kernels."""
