"""Convolution on CUDA: which algorithm takes it, decided from the shapes alone, and its launches.

    gemm       1x1 at stride 1: one matrix product, cuBLAS's on a GPU; no copy of the input
    depthwise  one input channel a group: `kernels/cuda/depthwise.py`
    tiled      implicit matrix product: `kernels/cuda/tiled.py`, `weight.py`
    direct     a thread an output number: `kernels/cuda/direct.py`
    im2col     array code, `reference/conv.py`: whatever the others do not take

Of those that take a problem the first two are used where they can be, then whichever of tiled and
direct a model of the time says. Nothing is timed, so the choice is the same every time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

from gpuconv.errors import ArgumentError
from gpuconv.kernels.cuda import depthwise, depthwise_weight, direct, product, weight
from gpuconv.planned import Planned, padded
from gpuconv.shapes import ConvSpec

Array = Any
ALGORITHMS = ("gemm", "depthwise", "tiled", "direct", "im2col")
PASSES = ("forward", "grad_input", "grad_weight")
# A product of the direct kernel takes about this many times longer than the best there is: two
# loads and two additions of indices for each. An estimate; no GPU has been asked yet.
DIRECT_COST = 8
# The cycles of the two launches, or more, that pack arrays for tiled. An estimate, too.
PACKING = 6000
# The gradient by input is a product for each remainder by the strides: too many are not worth it.
MOST_CLASSES = 64


@dataclass(frozen=True)
class Choice:
    """What computes a convolution, and why; `tiles` are (Config, splits), for "tiled" only."""

    algorithm: str
    why: str
    tiles: tuple[Any, ...] = ()


def obstacle(algorithm: str, spec: ConvSpec, dtype: Any) -> str:
    """Why `algorithm` cannot take a problem; "" if it can."""
    if algorithm == "im2col":
        return ""
    if not prod(spec.x_shape):
        return "the batch is empty"
    if algorithm == "gemm":
        if set(spec.kernel) | set(spec.stride) != {1}:
            return f"it is for 1x1 kernels at stride 1, not {spec.kernel} at {spec.stride}"
        if spec.x_shape[2:] != spec.padded or spec.groups > 1:
            return f"it takes no padding {spec.padding} and no groups ({spec.groups})"
        return ""
    kernels = {"depthwise": depthwise, "tiled": product, "direct": direct}[algorithm]
    if kernels.supports(spec, dtype):
        return ""
    dtypes = direct.DTYPES if algorithm == "direct" else ("float32",)
    if dtype.name not in dtypes:
        return f"it computes {' and '.join(dtypes)}, not {dtype.name}"
    if algorithm != "direct" and spec.padding_mode != "zeros":
        return f"it pads with zeros only, not {spec.padding_mode!r}"
    if algorithm == "depthwise" and spec.w_shape[1] != 1:
        return f"it takes one input channel a group, not {spec.w_shape[1]}"
    if algorithm != "direct" and spec.nd != 2:
        return f"it takes images, not {spec.nd} spatial axes"
    if algorithm == "tiled" and spec.groups > 1:
        each = spec.w_shape[1], spec.w_shape[0] // spec.groups
        if each[0] % 4 or each[1] % 4:
            return f"a group's channels must be multiples of 4, not {each[0]} in and {each[1]} out"
    return "its indices have 32 bits, and these arrays are too large for them"


@lru_cache(maxsize=4096)
def choose(spec: ConvSpec, dtype: Any, which: str, sms: int, algo: str = "auto") -> Choice:
    """What takes pass `which` on a GPU of `sms` multiprocessors; ArgumentError if `algo` cannot."""
    if algo != "auto":
        if algo not in ALGORITHMS:
            raise ArgumentError(
                f"algo={algo!r} is unknown here; use 'auto' or one of {', '.join(ALGORITHMS)}"
            )
        if reason := obstacle(algo, spec, dtype):
            raise ArgumentError(f"algo={algo!r} cannot take this problem: {reason}; use 'auto'")
        tiles = tiling(spec, which, sms)[0] if algo == "tiled" else ()
        return Choice(algo, "asked for", tiles)
    possible = [a for a in ALGORITHMS if not obstacle(a, spec, dtype)]
    if possible[0] in ("gemm", "depthwise"):
        why = {
            "gemm": "a 1x1 kernel at stride 1 is a matrix product as it stands",
            "depthwise": "every output channel has one input channel: bound by memory",
        }
        return Choice(possible[0], why[possible[0]])
    classes = prod(map(min, spec.stride, spec.x_shape[2:])) if which == "grad_input" else 1
    if "tiled" in possible and classes <= MOST_CLASSES:
        tiles, takes = tiling(spec, which, sms)
        takes, alone = takes + PACKING * classes, spec.macs * DIRECT_COST / (128 * sms)
        compared = f"by the model {takes:,.0f} cycles tiled, {alone:,.0f} direct"
        if takes <= alone:
            return Choice("tiled", compared, tiles)
        return Choice("direct", compared)
    if "direct" in possible:
        reason = (
            obstacle("tiled", spec, dtype) or f"it would be {classes} products, one a remainder"
        )
        return Choice("direct", f"tiled cannot take it: {reason}")
    return Choice("im2col", f"direct cannot take it: {obstacle('direct', spec, dtype)}")


def tiling(spec: ConvSpec, which: str, sms: int) -> tuple[tuple[Any, ...], float]:
    """The tiles of each launch of a pass, and the cycles of the model for all."""
    if which == "grad_weight":
        found = [weight.choose(spec, sms)]
    elif which == "forward":
        found = [product.choose(product.forward_problem(spec), sms)]
    else:
        found = [product.choose(p, sms) for p, _, _ in product.grad_input_problems(spec)]
    return tuple((config, splits) for config, splits, _ in found), sum(c for *_, c in found)


class CudaConv(Planned):
    """The convolution part of `CudaBackend`."""

    def record(
        self, which: str, spec: ConvSpec, dtype: Any, last: bool, bias: bool, algo: str
    ) -> None:
        """Make the plan of one pass, for what its device notes of it."""
        if which == "forward":
            self._forward(spec, dtype, last, bias, False, False, algo)
        elif which == "grad_input":
            if spec.padding_mode != "zeros":
                spec = padded(spec)
            self._grad_input(spec, dtype, last, algo)
        else:
            self._grad_weight(spec, dtype, last, last, algo)

    def _forward(
        self,
        spec: ConvSpec,
        dtype: Any,
        last: bool,
        bias: bool,
        add: bool,
        relu: bool,
        algo: str,
        precision: str = "high",
    ) -> Callable[..., Array]:
        choice = choose(spec, dtype, "forward", self.device.sms, algo)
        base = self._plain()
        if choice.algorithm == "im2col":
            return lambda x, w, b, add=None: base.conv(spec, x, w, b, add=add, relu=relu)
        if choice.algorithm == "gemm":
            return lambda x, w, b, add=None: self._epilogue(
                self._gemm(spec, x, w, last), b, add, relu
            )
        if choice.algorithm == "depthwise":
            run = depthwise.forward(self.device, spec, dtype, last, bias, relu and not add)
        elif choice.algorithm == "tiled":
            run = product.forward(self.device, spec, last, bias, add, relu, choice.tiles[0])
        else:
            run = direct.forward(self.device, spec, dtype, last, bias, add, relu)
        fused = choice.algorithm != "depthwise"
        new, aligned = self.device.maker(spec.y_shape, dtype, last), self.device.aligned

        def conv(x: Array, w: Array, b: Array | None, add: Array | None = None) -> Array:
            if not aligned(x, w):
                x, w = self.settled(x), self.settled(w)
            y = new()
            if not fused:
                run(x, w, b, y)
                return y if add is None else self._epilogue(y, None, add, relu)
            if add is not None:
                add = self._like(y, add, last)
            run(x, w, b, add, y)
            return y

        return conv

    def _grad_input(
        self, spec: ConvSpec, dtype: Any, last: bool, algo: str, precision: str = "high"
    ) -> Any:
        if spec.padding_mode != "zeros":
            return self._folded(spec, algo)
        choice = choose(spec, dtype, "grad_input", self.device.sms, algo)
        base = self._plain()
        if choice.algorithm == "im2col":
            return lambda gy, w: base.conv_grad_input(spec, gy, w)
        if choice.algorithm == "gemm":
            return lambda gy, w: self._gemm(spec, gy, w.swapaxes(0, 1), last)
        if choice.algorithm == "depthwise":
            run = depthwise.grad_input(self.device, spec, dtype, last)
        elif choice.algorithm == "tiled":
            run = product.grad_input(self.device, spec, last, choice.tiles)
        else:
            run = direct.grad_input(self.device, spec, dtype, last)

        new, aligned = self.device.maker(spec.x_shape, dtype, last), self.device.aligned

        def grad_input(gy: Array, w: Array) -> Array:
            if not aligned(gy, w):
                gy, w = self.settled(gy), self.settled(w)
            gx = new()
            run(gy, w, gx)
            return gx

        return grad_input

    def _grad_weight(
        self,
        spec: ConvSpec,
        dtype: Any,
        last: bool,
        gy_last: bool,
        algo: str,
        precision: str = "high",
    ) -> Callable[..., Array]:
        choice = choose(spec, dtype, "grad_weight", self.device.sms, algo)
        base = self._plain()
        if choice.algorithm == "im2col":
            return lambda gy, x: base.conv_grad_weight(spec, gy, x)
        if choice.algorithm == "gemm":
            return lambda gy, x: self._gemm_weight(spec, gy, x)
        if choice.algorithm == "depthwise":
            run = depthwise_weight.grad_weight(self.device, spec, dtype, last, gy_last)
        elif choice.algorithm == "tiled":
            run = weight.grad_weight(self.device, spec, last, gy_last, choice.tiles[0])
        else:
            run = direct.grad_weight(self.device, spec, dtype, last, gy_last)

        new, aligned = self.device.maker(spec.w_shape, dtype, False), self.device.aligned

        def grad_weight(gy: Array, x: Array) -> Array:
            if not aligned(gy, x):
                gy, x = self.settled(gy), self.settled(x)
            gw = new()
            run(gy, x, gw)
            return gw

        return grad_weight

    def _epilogue(self, y: Array, b: Array | None, add: Array | None, relu: bool) -> Array:
        if b is not None:
            y += b.reshape(-1, *(1,) * (y.ndim - 2))
        if add is not None:
            y += add
        return self.xp.maximum(y, 0, out=y) if relu else y

    def _gemm(self, spec: ConvSpec, x: Array, w: Array, last: bool) -> Array:
        """The 1x1 product over channels: w (K, C, 1, 1) and x give (N, K, *in)."""
        n, k, c, size = x.shape[0], w.shape[0], w.shape[1], x.shape[2:]
        matrix = w.reshape(k, c)
        if not last:
            return self.xp.matmul(matrix, x.reshape(n, c, prod(size))).reshape(n, k, *size)
        rows = x.transpose(0, *range(2, x.ndim), 1).reshape(-1, c)
        y = self.xp.matmul(rows, matrix.T).reshape(n, *size, k)
        return y.transpose(0, y.ndim - 1, *range(1, y.ndim - 1))

    def _gemm_weight(self, spec: ConvSpec, gy: Array, x: Array) -> Array:
        """The 1x1 product over pixels. Channels-last images need no copy for it."""
        xp, axes = self.xp, (1, 0, *range(2, x.ndim))
        rows = gy.transpose(*axes).reshape(gy.shape[1], -1)
        columns = x.transpose(*axes).reshape(x.shape[1], -1)
        return xp.matmul(rows, columns.T).reshape(spec.w_shape)
