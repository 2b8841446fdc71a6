"""The backend of CUDA kernels: on a GPU through CuPy, or on a CPU through the PTX emulator.

It is `Backend` with methods replaced where there is a kernel, one family a file (`conv.py`,
...); what a kernel does not take goes to `super()`, array code on the same device.
"""

from collections.abc import Callable
from typing import Any

from gpuconv.backends import Array, Backend
from gpuconv.cuda.conv import CudaConv
from gpuconv.cuda.pool import CudaPool
from gpuconv.cuda.train import CudaTrain
from gpuconv.reference.conv import is_channels_last
from gpuconv.shapes import Ints


class CudaBackend(CudaConv, CudaPool, CudaTrain, Backend):
    """`device` is a `gpuconv.cuda.device.CupyDevice` or `EmulatedDevice`."""

    def __init__(self, device: Any, name: str) -> None:
        super().__init__(device.xp, name)
        self.device = device
        self._plans: dict[Any, Any] = {}
        self._conv_plans = {}

    def plan(self, make: Callable[..., Any], *key: Any) -> Any:
        """make(device, *key), made once for each device and key."""
        full = make, self.device.number, *key
        found = self._plans.get(full)
        if found is None:
            found = self._plans[full] = make(self.device, *key)
        return found

    def dense(self, x: Array) -> tuple[Array, bool]:
        """x as (N, C, *in) or as (N, *in, C) in memory, aligned; and whether the latter.

        It is copied only if it is neither.
        """
        if x.flags.c_contiguous:
            return self.aligned(x), False
        if is_channels_last(x):
            if self.device.aligned(x):
                return x, True
            y = self.empty_like_format(x, x.shape, x.dtype)
            y[...] = x
            return y, True
        return self.xp.ascontiguousarray(x), False

    def aligned(self, x: Array) -> Array:
        """x contiguous, at a multiple of 16 bytes: a part of an array may not be, and is copied."""
        if not x.flags.c_contiguous:
            return self.xp.ascontiguousarray(x)
        return x if self.device.aligned(x) else x.copy()

    def empty_like_format(self, x: Array, shape: Ints, dtype: Any) -> Array:
        if not is_channels_last(x):
            return self.device.empty(shape, dtype)
        y = self.device.empty((shape[0], *shape[2:], shape[1]), dtype)
        return y.transpose(0, y.ndim - 1, *range(1, y.ndim - 1))
