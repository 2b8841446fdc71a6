"""Backends by plans: what is to be launched is worked out once for each problem, and kept.

`gpuconv.cuda` and `gpuconv.cpu` make the plans; here is what they share.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

from gpuconv.precision import get_float32_precision
from gpuconv.reference.conv import Conv, is_channels_last
from gpuconv.shapes import ConvSpec, Ints, remember

Array = Any
Plan = Callable[..., Array]


class Planned(Conv):
    """A backend's plans, arrays as kernels take them, and the three passes of a convolution.

    Whoever derives makes the plans of these: `_forward`, `_grad_input`, `_grad_weight`.
    """

    device: Any  # of the backend, which mixes this class in
    _plans: dict[Any, Any]
    _conv_plans: dict[Any, Plan]

    @property
    def number(self) -> int:
        """Plans are for one device, or for one instruction set."""
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
        """x as (N, C, *in) or as (N, *in, C) in memory, settled; and whether the latter.

        It is copied only if it is neither.
        """
        if x.flags.c_contiguous:
            return self.settled(x), False
        if is_channels_last(x):
            return self.settled(x), True
        return self.xp.ascontiguousarray(x), False

    def settled(self, x: Array) -> Array:
        """x, dense in its format, where kernels can take it."""
        return x

    def contiguous(self, x: Array | None) -> Array | None:
        """x, copied only if it is not contiguous."""
        return x if x is None or x.flags.c_contiguous else self.xp.ascontiguousarray(x)

    def empty(self, shape: Ints, dtype: Any, last: bool) -> Array:
        """An uninitialised array (N, C, *in), channels-last in memory if `last`."""
        if not last:
            return self.device.empty(shape, dtype)
        y = self.device.empty((shape[0], *shape[2:], shape[1]), dtype)
        return y.transpose(0, y.ndim - 1, *range(1, y.ndim - 1))

    def empty_like_format(self, x: Array, shape: Ints, dtype: Any) -> Array:
        return self.empty(shape, dtype, is_channels_last(x))

    def _forward(
        self,
        spec: ConvSpec,
        dtype: Any,
        last: bool,
        bias: bool,
        add: bool,
        relu: bool,
        algo: str,
        precision: str,
    ) -> Plan:
        """The plan of `conv`: (x, w, b, add) -> y, x in its format, w and b contiguous."""
        raise NotImplementedError

    def _grad_input(
        self, spec: ConvSpec, dtype: Any, last: bool, algo: str, precision: str
    ) -> Plan:
        """The plan of `conv_grad_input`: (gy, w) -> gx, gy in its format, w contiguous."""
        raise NotImplementedError

    def _grad_weight(
        self, spec: ConvSpec, dtype: Any, last: bool, gy_last: bool, algo: str, precision: str
    ) -> Plan:
        """The plan of `conv_grad_weight`: (gy, x) -> gw, each in its format."""
        raise NotImplementedError

    def conv(
        self,
        spec: ConvSpec,
        x: Array,
        w: Array,
        b: Array | None = None,
        *,
        algo: str = "auto",
        add: Array | None = None,
        relu: bool = False,
    ) -> Array:
        x, last = self.dense(x)
        key = spec, x.dtype, last, b is not None, add is not None, relu, algo
        plan = self._planned("_forward", key)
        return plan(x, self.contiguous(w), self.contiguous(b), add)

    def conv_grad_input(self, spec: ConvSpec, gy: Array, w: Array, *, algo: str = "auto") -> Array:
        gy, last = self.dense(gy)
        plan = self._planned("_grad_input", (spec, gy.dtype, last, algo))
        return plan(gy, self.contiguous(w))

    def conv_grad_weight(self, spec: ConvSpec, gy: Array, x: Array, *, algo: str = "auto") -> Array:
        (gy, gy_last), (x, last) = self.dense(gy), self.dense(x)
        return self._planned("_grad_weight", (spec, x.dtype, last, gy_last, algo))(gy, x)

    def prepared(
        self,
        which: str,
        spec: ConvSpec,
        algo: str,
        precision: str,
        a: Array,
        b: Array,
        bias: Array | None = None,
        add: Array | None = None,
        relu: bool = False,
    ) -> Plan:
        last, b_last = is_channels_last(a), is_channels_last(b)
        images = which == "conv_grad_weight"  # both of them
        ready = (a.flags.c_contiguous or last) and (b.flags.c_contiguous or (images and b_last))
        if not ready or (bias is not None and not bias.flags.c_contiguous):
            return self._plain().prepared(which, spec, algo, precision, a, b, bias, add, relu)
        if images:
            return self._planned("_grad_weight", (spec, a.dtype, b_last, last, algo), precision)
        if which == "conv_grad_input":
            return self._planned("_grad_input", (spec, a.dtype, last, algo), precision)
        key = spec, a.dtype, last, bias is not None, add is not None, relu, algo
        return self._planned("_forward", key, precision)

    def _planned(self, make: str, key: tuple[Any, ...], precision: str = "") -> Plan:
        """getattr(self, make)(*key, precision), made once for each of them and each device."""
        precision = precision or get_float32_precision()
        full = self.device.number, precision, make, key
        plan = self._conv_plans.get(full)
        if plan is None:
            plan = getattr(self, make)(*key, precision)
            remember(self._conv_plans, full, plan)
        return plan

    def _plain(self) -> Any:
        """The same operations in array code."""
        return super()

    def _folded(self, spec: ConvSpec, algo: str) -> Plan:
        """The plan of the gradient by input of an image padded with anything but zeros.

        That of the padded image first; folding it back is array code.
        """
        whole, pads, mode = padded(spec), spec.padding, spec.padding_mode
        return lambda gy, w: self.pad_grad(
            self.conv_grad_input(whole, gy, w, algo=algo), pads, mode
        )

    def _like(self, y: Array, add: Array, last: bool) -> Array:
        """`add` dense, in the memory format of y."""
        add, other = self.dense(add)
        if other != last and y.strides != add.strides:
            copy = self.empty_like_format(y, y.shape, y.dtype)
            copy[...] = add
            return copy
        dense: Array = add
        return dense


@lru_cache(maxsize=4096)
def padded(spec: ConvSpec) -> ConvSpec:
    """The same convolution of an image that is padded already."""
    return replace(
        spec,
        x_shape=(*spec.x_shape[:2], *spec.padded),
        padding=((0, 0),) * spec.nd,
        padding_mode="zeros",
    )
