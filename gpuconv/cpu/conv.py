"""Convolution on CPUs: which algorithm takes it, decided from the shapes alone, and its launches.

    depthwise  one input channel a group: `kernels/cpu/depthwise.py`
    gemm       1x1: one matrix product in panels: `kernels/cpu/pointwise.py`
    winograd   3x3 at stride 1, 4x4 outputs a time: `kernels/cpu/winograd.py`, `winograd_weight.py`
    direct     sums of products in registers: `kernels/cpu/direct.py`, `weight.py`
    im2col     array code, `reference/conv.py`: whatever the others do not take

The first that takes a problem computes it, but for winograd and gemm where the table of
`gpuconv.cpu.thresholds`, which `python -m bench.thresholds` measures, says that direct is faster.
Nothing is timed here, so the choice is the same every time. Problems with one spatial axis are
those of two whose height is 1; padding of other modes than zeros is array code.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from gpuconv.constant import CONSTANTS
from gpuconv.cpu import thresholds
from gpuconv.cpu.device import NAMES
from gpuconv.errors import ArgumentError
from gpuconv.kernels.cpu import (
    bias,
    depthwise,
    direct,
    pointwise,
    weight,
    winograd,
    winograd_weight,
)
from gpuconv.kernels.cpu.plan import Packed
from gpuconv.planned import Plan, Planned, padded
from gpuconv.shapes import ConvSpec

Array = Any
MOST_BYTES = 1 << 46  # of an output
ALGORITHMS = ("depthwise", "gemm", "winograd", "direct", "im2col")
PASSES = ("forward", "grad_input", "grad_weight")


@dataclass(frozen=True)
class Choice:
    """What computes a convolution, and why."""

    algorithm: str
    why: str


def kernels(algorithm: str, which: str) -> Any:
    """The module whose plans compute pass `which`."""
    if which == "grad_weight":
        found: dict[str, Any] = {"winograd": winograd_weight, "direct": weight}
    else:
        found = {"winograd": winograd, "direct": direct}
    return (found | {"depthwise": depthwise, "gemm": pointwise})[algorithm]


@lru_cache(maxsize=4096)
def flat(spec: ConvSpec) -> ConvSpec:
    """The same problem as kernels see it: two spatial axes, zeros around the image."""
    if spec.padding_mode != "zeros":
        spec = padded(spec)
    if spec.nd != 1:
        return spec

    def lifted(shape: Any, other: Any) -> Any:
        return (*shape[:-1], other, shape[-1])

    return replace(
        spec,
        x_shape=lifted(spec.x_shape, 1),
        w_shape=lifted(spec.w_shape, 1),
        y_shape=lifted(spec.y_shape, 1),
        stride=lifted(spec.stride, 1),
        padding=lifted(spec.padding, (0, 0)),
        dilation=lifted(spec.dilation, 1),
    )


def obstacle(algorithm: str, spec: ConvSpec, dtype: Any, which: str, precision: str) -> str:
    """Why `algorithm` cannot take a problem; "" if it can."""
    if algorithm == "im2col":
        return ""
    if not prod(spec.x_shape):
        return "the batch is empty"
    if dtype not in NAMES:
        known = " and ".join(NAMES.values())
        return f"it computes {known} in the machine's byte order, not {dtype!r}"
    if spec.nd > 2:
        return f"it takes images and sequences, not {spec.nd} spatial axes"
    if algorithm == "winograd" and precision == "highest":
        return "the precision is 'highest'"
    if algorithm == "depthwise" and spec.groups == 1:
        return "it takes one input channel a group, of several groups"
    if kernels(algorithm, which).supports(flat(spec), dtype.name, which):
        return ""
    if algorithm == "depthwise":
        return f"it takes one input channel a group, not {spec.w_shape[1]}"
    if algorithm == "gemm":
        return (
            f"it takes 1x1 kernels without padding and groups, not {spec.kernel} with padding "
            f"{spec.padding} and {spec.groups} groups"
        )
    plain = spec.kernel[-2:] == (3, 3) and set(spec.stride) | set(spec.dilation) == {1}
    if algorithm == "winograd" and plain and spec.groups == 1 and dtype.name == "float32":
        return "it would be less exact than four times plain sums' error with so few numbers"
    if algorithm == "winograd":
        return (
            f"it takes float32 and 3x3 kernels at stride and dilation 1 without groups, not "
            f"{dtype.name} and {spec.kernel} at stride {spec.stride}, dilation {spec.dilation}, "
            f"{spec.groups} groups"
        )
    return "its kernels do not take it"


@lru_cache(maxsize=4096)
def choose(spec: ConvSpec, dtype: Any, which: str, precision: str, algo: str = "auto") -> Choice:
    """What takes pass `which`; ArgumentError if `algo` cannot."""
    if algo != "auto":
        if algo not in ALGORITHMS:
            raise ArgumentError(
                f"algo={algo!r} is unknown here; use 'auto' or one of {', '.join(ALGORITHMS)}"
            )
        if reason := obstacle(algo, spec, dtype, which, precision):
            raise ArgumentError(f"algo={algo!r} cannot take this problem: {reason}; use 'auto'")
        return Choice(algo, "asked for")
    possible = [a for a in ALGORITHMS if not obstacle(a, spec, dtype, which, precision)]
    if possible[0] == "depthwise":
        return Choice("depthwise", "every output channel has one input channel: bound by memory")
    if possible[0] == "gemm":
        return Choice("gemm", "a 1x1 kernel is a matrix product over channels")
    if "direct" not in possible:
        reason = obstacle("direct", spec, dtype, which, precision)
        return Choice("im2col", f"no kernel takes it: {reason}")
    if possible[0] == "winograd":
        wins, why = thresholds.winograd(which, flat(spec))
        return Choice("winograd" if wins else "direct", why)
    reason = obstacle("winograd", spec, dtype, which, precision)
    return Choice("direct", f"the general kernel; winograd cannot take it: {reason}")


class CpuConv(Planned):
    """The convolution part of `CpuBackend`."""

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
        if prod(spec.y_shape) * dtype.itemsize > MOST_BYTES:  # said before plans of that size
            raise ArgumentError(
                f"conv{spec.nd}d: an output of {spec.y_shape} fits no machine's memory; use less "
                f"padding than {spec.padding}"
            )
        choice = choose(spec, dtype, "forward", precision, algo)
        base = self._plain()
        if choice.algorithm == "im2col":
            return lambda x, w, b, add=None: base.conv(spec, x, w, b, add=add, relu=relu)
        make = kernels(choice.algorithm, "forward").forward
        run = make(self.device, flat(spec), dtype.name, last, bias, add, relu)
        if isinstance(run, Packed):
            run = _constant(run)
        pads, mode = spec.padding, spec.padding_mode

        def conv(x: Array, w: Array, b: Array | None, add: Array | None = None) -> Array:
            if mode != "zeros":
                x = self.pad(x, pads, mode)
            y = self.empty(spec.y_shape, dtype, last)
            run(x, w, b, None if add is None else self._like(y, add, last), y)
            return y

        return conv

    def _grad_input(
        self, spec: ConvSpec, dtype: Any, last: bool, algo: str, precision: str
    ) -> Plan:
        if spec.padding_mode != "zeros":
            return self._folded(spec, algo)
        choice = choose(spec, dtype, "grad_input", precision, algo)
        base = self._plain()
        if choice.algorithm == "im2col":
            return lambda gy, w: base.conv_grad_input(spec, gy, w)
        make = kernels(choice.algorithm, "grad_input").grad_input
        run = make(self.device, flat(spec), dtype.name, last)

        def grad_input(gy: Array, w: Array) -> Array:
            gx = self.empty(spec.x_shape, dtype, last)
            run(gy, w, gx)
            return gx

        return grad_input

    def _grad_weight(
        self, spec: ConvSpec, dtype: Any, last: bool, gy_last: bool, algo: str, precision: str
    ) -> Plan:
        choice = choose(spec, dtype, "grad_weight", precision, algo)
        base = self._plain()
        if choice.algorithm == "im2col":
            return lambda gy, x: base.conv_grad_weight(spec, gy, x)
        make = kernels(choice.algorithm, "grad_weight").grad_weight
        run = make(self.device, flat(spec), dtype.name, last)
        pads, mode = spec.padding, spec.padding_mode

        def grad_weight(gy: Array, x: Array) -> Array:
            if mode != "zeros":
                x = self.pad(x, pads, mode)
            if gy_last != last:
                gy = self._like(self.empty(spec.y_shape, dtype, last), gy, last)
            gw = self.device.empty(spec.w_shape, dtype)
            run(gy, x, gw)
            return gw

        return grad_weight

    def bias_gradient(self, gy: Array) -> Array:
        gy, last = self.dense(gy)
        name = NAMES.get(gy.dtype)
        if name is None or not gy.size:
            return super().bias_gradient(gy)
        key = gy.shape[0], gy.shape[1], prod(gy.shape[2:]), name, last
        gb = np.empty(gy.shape[1:2], gy.dtype)
        self.plan(bias.bias_gradient, *key)(gy, gb)
        return gb


def _constant(plan: Packed) -> Plan:
    """`plan`, which packs a weight that is a constant only once."""

    def run(x: Array, w: Array, *others: Any) -> None:
        packed = CONSTANTS.derived(w, plan, plan.pack)
        if packed is None:
            plan(x, w, *others)
        else:
            plan.compute(x, packed, *others)

    return run
