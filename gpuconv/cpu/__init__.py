"""The backend of CPU kernels, for NumPy arrays.

It is `Backend` with methods replaced where there is a kernel, one family a file; what a kernel does
not take goes to `super()`, array code.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from gpuconv.backends import Array, Backend
from gpuconv.cpu.activation import CpuActivation
from gpuconv.cpu.conv import CpuConv
from gpuconv.cpu.device import DEVICE
from gpuconv.cpu.linear import CpuLinear
from gpuconv.cpu.pool import CpuPool
from gpuconv.cpu.train import CpuTrain
from gpuconv.reference.conv import is_channels_last
from gpuconv.shapes import Ints, remember


class CpuBackend(CpuActivation, CpuConv, CpuLinear, CpuPool, CpuTrain, Backend):
    """NumPy arrays, computed by `gpuconv.kernels.cpu` on several threads."""

    def __init__(self) -> None:
        super().__init__(np, "cpu")
        self.device = DEVICE
        self._plans: dict[Any, Any] = {}
        self._conv_plans = {}

    @property
    def number(self) -> int:  # type: ignore[override]
        return self.device.number

    def plan(self, make: Callable[..., Any], *key: Any) -> Any:
        """make(device, *key), made once for each key."""
        full = make, self.device.number, *key
        found = self._plans.get(full)
        if found is None:
            found = make(self.device, *key)
            remember(self._plans, full, found)
        return found

    def dense(self, x: Array) -> tuple[Array, bool]:
        """x as (N, C, *in) or as (N, *in, C) in memory; and whether the latter.

        It is copied only if it is neither.
        """
        if x.flags.c_contiguous:
            return x, False
        if is_channels_last(x):
            return x, True
        return np.ascontiguousarray(x), False

    def contiguous(self, x: Array | None) -> Array | None:
        """x, copied only if it is not contiguous."""
        return x if x is None or x.flags.c_contiguous else np.ascontiguousarray(x)

    def empty(self, shape: Ints, dtype: Any, last: bool) -> Array:
        """An uninitialised array (N, C, *in), channels-last in memory if `last`."""
        if not last:
            return self.device.empty(shape, dtype)
        y = self.device.empty((shape[0], *shape[2:], shape[1]), dtype)
        return y.transpose(0, y.ndim - 1, *range(1, y.ndim - 1))

    def empty_like_format(self, x: Array, shape: Ints, dtype: Any) -> Array:
        return self.empty(shape, dtype, is_channels_last(x))
