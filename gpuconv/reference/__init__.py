"""Every operation in array code, a family a file: the fallback, and the reference for kernels."""
