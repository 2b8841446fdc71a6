"""The backend of CPU kernels, for NumPy arrays.

It is `Backend` with methods replaced where there is a kernel, one family a file; what a kernel does
not take goes to `super()`, array code.
"""

from typing import Any

import numpy as np

from gpuconv.backends import Backend
from gpuconv.cpu.activation import CpuActivation
from gpuconv.cpu.conv import CpuConv
from gpuconv.cpu.device import DEVICE
from gpuconv.cpu.linear import CpuLinear
from gpuconv.cpu.pool import CpuPool
from gpuconv.cpu.train import CpuTrain


class CpuBackend(CpuActivation, CpuConv, CpuLinear, CpuPool, CpuTrain, Backend):
    """NumPy arrays, computed by `gpuconv.kernels.cpu` on several threads."""

    def __init__(self) -> None:
        super().__init__(np, "cpu")
        self.device = DEVICE
        self._plans: dict[Any, Any] = {}
        self._conv_plans = {}
