"""Convolution on CPUs: which algorithm takes it, decided from the shapes alone; its launches."""

from typing import Any

from gpuconv.reference.conv import Conv


class CpuConv(Conv):
    """The convolution part of `CpuBackend`."""

    device: Any  # of CpuBackend, which mixes this class in
    _conv_plans: dict[Any, Any]
