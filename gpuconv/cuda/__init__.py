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
from gpuconv.shapes import Ints, remember


class CudaBackend(CudaConv, CudaPool, CudaTrain, Backend):
    """`device` is a `gpuconv.cuda.device.CupyDevice` or `EmulatedDevice`."""

    def __init__(self, device: Any, name: str) -> None:
        super().__init__(device.xp, name)
        self.device = device
        self._plans: dict[Any, Any] = {}
        self._conv_plans = {}

    @property
    def number(self) -> int:  # type: ignore[override]
        number: int = self.device.number
        return number

    def plan(self, make: Callable[..., Any], *key: Any) -> Any:
        """make(device, *key), made once for each device and key."""
        full = make, self.device.number, *key
        found = self._plans.get(full)
        if found is None:
            found = make(self.device, *key)
            remember(self._plans, full, found)
        return found

    def dense(self, x: Array) -> tuple[Array, bool]:
        """x as (N, C, *in) or as (N, *in, C) in memory, aligned; and whether the latter.

        It is copied only if it is neither.
        """
        if x.flags.c_contiguous:
            return self.settled(x), False
        if is_channels_last(x):
            return self.settled(x), True
        return self.xp.ascontiguousarray(x), False

    def settled(self, x: Array) -> Array:
        """x, dense in its format, at a multiple of 16 bytes: a part of an array may not be."""
        if self.device.aligned(x):
            return x
        y = self.empty_like_format(x, x.shape, x.dtype)
        y[...] = x
        return y

    def contiguous(self, x: Array | None) -> Array | None:
        """x, copied only if it is not contiguous."""
        return x if x is None or x.flags.c_contiguous else self.xp.ascontiguousarray(x)

    def empty_like_format(self, x: Array, shape: Ints, dtype: Any) -> Array:
        if not is_channels_last(x):
            return self.device.empty(shape, dtype)
        y = self.device.empty((shape[0], *shape[2:], shape[1]), dtype)
        return y.transpose(0, y.ndim - 1, *range(1, y.ndim - 1))
