"""The backend of CUDA kernels: on a GPU through CuPy, or on a CPU through the PTX emulator.

It is `Backend` with methods replaced where there is a kernel, one family a file (`conv.py`,
...); what a kernel does not take goes to `super()`, array code on the same device.
"""

from typing import Any

from gpuconv.backends import Array, Backend
from gpuconv.cuda.conv import CudaConv
from gpuconv.cuda.pool import CudaPool
from gpuconv.cuda.train import CudaTrain


class CudaBackend(CudaConv, CudaPool, CudaTrain, Backend):
    """`device` is a `gpuconv.cuda.device.CupyDevice` or `EmulatedDevice`."""

    def __init__(self, device: Any, name: str) -> None:
        super().__init__(device.xp, name)
        self.device = device
        self._plans: dict[Any, Any] = {}
        self._conv_plans = {}

    def settled(self, x: Array) -> Array:
        """x, dense in its format, at a multiple of 16 bytes: a part of an array may not be."""
        if self.device.aligned(x):
            return x
        y = self.empty_like_format(x, x.shape, x.dtype)
        y[...] = x
        return y
