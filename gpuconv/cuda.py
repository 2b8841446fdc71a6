"""The backend of CUDA kernels: on a GPU through CuPy, or on a CPU through the PTX emulator.

It is `Backend` with methods replaced where there is a kernel; what a kernel does not take goes to
`super()`, array code on the same device. Which algorithm takes a convolution is decided in
`gpuconv.explain`, from the shapes alone.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

from gpuconv.backends import Array, Backend
from gpuconv.kernels.cuda import direct
from gpuconv.reference.conv import is_channels_last
from gpuconv.shapes import ConvSpec, Ints


class CudaBackend(Backend):
    """`device` is a `gpuconv.device.CupyDevice` or `EmulatedDevice`."""

    def __init__(self, device: Any, name: str) -> None:
        super().__init__(device.xp, name)
        self.device = device
        self._plans: dict[Any, Any] = {}

    def plan(self, make: Callable[..., Any], *key: Any) -> Any:
        """make(device, *key), made once for each device and key."""
        full = make, self.device.number, *key
        found = self._plans.get(full)
        if found is None:
            found = self._plans[full] = make(self.device, *key)
        return found

    def dense(self, x: Array) -> tuple[Array, bool]:
        """x contiguous as (N, C, *in) or as (N, *in, C), copied if it is neither; and whether the
        latter."""
        if x.flags.c_contiguous:
            return x, False
        if is_channels_last(x):
            return x, True
        return self.xp.ascontiguousarray(x), False

    def empty_like_format(self, x: Array, shape: Ints, dtype: Any) -> Array:
        if not is_channels_last(x):
            return self.device.empty(shape, dtype)
        y = self.device.empty((shape[0], *shape[2:], shape[1]), dtype)
        return y.transpose(0, y.ndim - 1, *range(1, y.ndim - 1))

    def conv(self, spec: ConvSpec, x: Array, w: Array, b: Array | None = None) -> Array:
        if not direct.supports(spec, x.dtype):
            return super().conv(spec, x, w, b)
        x, last = self.dense(x)
        y = self.empty_like_format(x, spec.y_shape, x.dtype)
        run = self.plan(direct.forward, spec, x.dtype, last)
        run(x, self.xp.ascontiguousarray(w), b, y)
        return y

    def conv_grad_input(self, spec: ConvSpec, gy: Array, w: Array) -> Array:
        if not direct.supports(spec, gy.dtype):
            return super().conv_grad_input(spec, gy, w)
        if spec.padding_mode != "zeros":
            # The gradient of the padded image first: folding it back is array code.
            whole = _padded(spec)
            return self.pad_grad(
                self.conv_grad_input(whole, gy, w), spec.padding, spec.padding_mode
            )
        gy, last = self.dense(gy)
        gx = self.empty_like_format(gy, spec.x_shape, gy.dtype)
        self.plan(direct.grad_input, spec, gy.dtype, last)(gy, self.xp.ascontiguousarray(w), gx)
        return gx

    def conv_grad_weight(self, spec: ConvSpec, gy: Array, x: Array) -> Array:
        if not direct.supports(spec, x.dtype):
            return super().conv_grad_weight(spec, gy, x)
        (gy, gy_last), (x, last) = self.dense(gy), self.dense(x)
        gw = self.device.empty(spec.w_shape, x.dtype)
        self.plan(direct.grad_weight, spec, x.dtype, last, gy_last)(gy, x, gw)
        return gw


@cache
def _padded(spec: ConvSpec) -> ConvSpec:
    """The same convolution of an image that is padded already."""
    return replace(
        spec,
        x_shape=(*spec.x_shape[:2], *spec.padded),
        padding=((0, 0),) * spec.nd,
        padding_mode="zeros",
    )
