"""The arithmetic of convolution and pooling: sizes, padding, work. Worked out and validated once.

`ConvSpec` and `PoolSpec` hold a problem with every number resolved, so that nothing below them asks
again what "same" means. Letters: input `n c h w`, weight `k c r s`, output `n k p q`; one, two or
three spatial axes alike. A spec is immutable and hashable, and the same arguments give the same
object.
"""

import marshal
import operator
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

from gpuconv.errors import ArgumentError

Ints = tuple[int, ...]
Pads = tuple[tuple[int, int], ...]
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")

# What users may write for a size or a stride, and for a padding.
IntOrInts = int | Sequence[int]
Padding = int | str | Sequence[int] | Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class ConvSpec:
    """A convolution with every number resolved.

    `x_shape` (N, C, *in), `w_shape` (K, C/groups, *kernel), `y_shape` (N, K, *out); `stride`,
    `dilation` one number a spatial axis; `padding` one pair (before, after) a spatial axis.
    """

    x_shape: Ints
    w_shape: Ints
    stride: Ints
    padding: Pads
    dilation: Ints
    groups: int
    padding_mode: str
    y_shape: Ints

    def __hash__(self) -> int:
        return hash((self.x_shape, self.w_shape))  # nearly all; plans are looked up by specs

    @property
    def nd(self) -> int:
        """The number of spatial axes."""
        return len(self.stride)

    @property
    def kernel(self) -> Ints:
        return self.w_shape[2:]

    @property
    def padded(self) -> Ints:
        """The spatial sizes of the input with its padding."""
        return tuple(
            n + lo + hi for n, (lo, hi) in zip(self.x_shape[2:], self.padding, strict=True)
        )

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one forward pass, padding counted as work."""
        return prod(self.y_shape) * prod(self.w_shape[1:])

    @property
    def flops(self) -> int:
        """Two a multiply-accumulate; the two gradients cost the same again, each."""
        return 2 * self.macs

    def bytes(self, itemsize: int = 4, whole: bool = False) -> int:
        """The least memory traffic: weight and used input read once, output written once.

        `whole` counts the input's unused pixels too: its gradient has them.
        """
        used = self.x_shape[2:] if whole else map(self._used, range(self.nd))
        pixels = prod(self.x_shape[:2]) * prod(used)
        return itemsize * (pixels + prod(self.w_shape) + prod(self.y_shape))

    def _used(self, axis: int) -> int:
        """How many rows of the input along `axis` some window has in it."""
        n, (before, _) = self.x_shape[2 + axis], self.padding[axis]
        if self.stride[axis] <= self.kernel[axis] and self.dilation[axis] == 1:
            reach = (self.y_shape[2 + axis] - 1) * self.stride[axis] + self.kernel[axis] - before
            return min(n, reach)
        taps = range(0, self.kernel[axis] * self.dilation[axis], self.dilation[axis])
        starts = range(
            -before, self.y_shape[2 + axis] * self.stride[axis] - before, self.stride[axis]
        )
        return len({row for start in starts for tap in taps if 0 <= (row := start + tap) < n})

    @staticmethod
    def infer(
        x_shape: Sequence[int],
        w_shape: Sequence[int],
        stride: IntOrInts = 1,
        padding: Padding = 0,
        dilation: IntOrInts = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
    ) -> "ConvSpec":
        """Resolve a convolution of `x_shape` (N, C, *in) with `w_shape` (K, C/groups, *kernel).

        `padding` is a number, one number an axis, one pair (before, after) an axis, "valid" or
        "same": output size ceil(in / stride), and of an odd total the extra row goes to the end
        (TensorFlow's rule). Raises ArgumentError for everything that cannot be computed.
        """
        return _known(
            _infer_conv, x_shape, w_shape, stride, padding, dilation, groups, padding_mode
        )

    @staticmethod
    def infer_transposed(
        x_shape: Sequence[int],
        w_shape: Sequence[int],
        stride: IntOrInts = 1,
        padding: Padding = 0,
        output_padding: IntOrInts = 0,
        dilation: IntOrInts = 1,
        groups: int = 1,
    ) -> "ConvSpec":
        """The convolution whose gradient by input is the transposed convolution asked for.

        `x_shape` (N, C, *in) is what the transposed convolution takes, `w_shape` (C, K/groups,
        *kernel) its weight in PyTorch's layout. In the spec returned, `y_shape` is `x_shape`, and
        `x_shape` is the transposed convolution's output (N, K, (in-1)*stride - before - after +
        dilation*(kernel-1) + 1 + output_padding).
        """
        options = stride, padding, output_padding, dilation, groups
        return _known(_infer_transposed, x_shape, w_shape, *options)


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """A pooling window with every number resolved; letters and pairs as in `ConvSpec`."""

    x_shape: Ints
    kernel: Ints
    stride: Ints
    padding: Pads
    dilation: Ints
    ceil_mode: bool
    y_shape: Ints

    @property
    def nd(self) -> int:
        return len(self.stride)

    @property
    def window(self) -> Pads:
        """Padding (before, after) so that every window of the output lies inside, and no row more.

        With `ceil_mode` the last window may reach past the padding asked for; with floors the last
        rows may be in no window, and then `after` is negative: those rows are cut off.
        """
        pads = []
        for axis in range(self.nd):
            lo = self.padding[axis][0]
            reach = (self.y_shape[2 + axis] - 1) * self.stride[axis]
            reach += self.dilation[axis] * (self.kernel[axis] - 1) + 1
            pads.append((lo, reach - lo - self.x_shape[2 + axis]))
        return tuple(pads)

    @staticmethod
    def infer(
        x_shape: Sequence[int],
        kernel: IntOrInts,
        stride: IntOrInts | None = None,
        padding: Padding = 0,
        dilation: IntOrInts = 1,
        ceil_mode: bool = False,
        nd: int = 2,
        op: str = "pooling",
    ) -> "PoolSpec":
        """Resolve pooling of `x_shape` (N, C, *in); `stride` None means the kernel's size.

        `op` is what errors call it. Padding must be smaller than the (dilated) kernel, so that
        every window meets the image.
        """
        options = kernel, stride, padding, dilation, bool(ceil_mode), nd, op
        return _known(_infer_pool, x_shape, *options)


def fingerprint(*arguments: Any) -> bytes | None:
    """The same bytes for the same `plain` arguments, and for no others; None for some others.

    As keys of a dictionary, 1 and 1.0 would be the same, and lists would be none.
    """
    try:
        return marshal.dumps(arguments, 2)  # version 3 depends on who else refers to an object
    except ValueError:
        return None


def plain(value: Any) -> bool:
    """True for numbers and strings of Python, None, and tuples and lists of such."""
    if type(value) in (tuple, list):
        return all(plain(v) for v in value)
    return type(value) in (int, float, bool, str, type(None))


def remember(memory: dict[Any, Any], key: Any, value: Any) -> None:
    """memory[key] = value, for as many keys as a program should have; then it begins anew."""
    if len(memory) >= 4096:
        memory.clear()
    memory[key] = value


_specs: dict[Any, Any] = {}


def _known(infer: Callable[..., Any], *arguments: Any) -> Any:
    """infer(*arguments), looked up if it was asked for before; equal specs are one object."""
    key = infer, fingerprint(*arguments)
    spec = _specs.get(key)
    if spec is None:
        spec = _first(infer(*(_frozen(value) for value in arguments)))
        if plain(arguments):
            remember(_specs, key, spec)
    return spec


@lru_cache(maxsize=4096)
def _first(spec: Any) -> Any:
    """The first of all specs that equal this one."""
    return spec


def _infer_conv(
    x_shape: Ints,
    w_shape: Ints,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    padding_mode: str,
) -> ConvSpec:
    nd = len(x_shape) - 2
    op = f"conv{nd}d" if nd in (1, 2, 3) else "convolution"
    _check_ranks(op, x_shape, w_shape, "(K, C/groups, *kernel)")
    groups = _groups(op, groups, {"output channels": w_shape[0], "input channels": x_shape[1]})
    if x_shape[1] != w_shape[1] * groups:
        raise ArgumentError(
            f"{op}: the input {x_shape} has {x_shape[1]} channels, but the weight {w_shape} with "
            f"groups={groups} takes {w_shape[1] * groups}; give it {w_shape[1] * groups} channels, "
            f"or a weight of shape ({w_shape[0]}, {max(x_shape[1] // groups, 1)}, ...)"
        )
    if padding_mode not in PADDING_MODES:
        raise ArgumentError(
            f"{op}: padding_mode={padding_mode!r} is unknown; use one of {PADDING_MODES}"
        )
    strides = ints(op, "stride", stride, nd, least=1)
    dilations = ints(op, "dilation", dilation, nd, least=1)
    kernel, size = w_shape[2:], x_shape[2:]
    pads = _pads(op, padding, size, kernel, strides, dilations)
    for axis, (lo, hi) in enumerate(pads):
        limit = {"reflect": size[axis] - 1, "circular": size[axis]}.get(padding_mode)
        if limit is not None and max(lo, hi) > limit:
            raise ArgumentError(
                f"{op}: padding {(lo, hi)} on spatial axis {axis} is too large for "
                f"{padding_mode!r} on {size[axis]} pixels; use at most {limit}, "
                f"or padding_mode='zeros'"
            )
    out = tuple(
        (size[a] + sum(pads[a]) - dilations[a] * (kernel[a] - 1) - 1) // strides[a] + 1
        for a in range(nd)
    )
    _check_output(op, out, size, kernel, pads, dilations)
    y_shape = (x_shape[0], w_shape[0], *out)
    return ConvSpec(x_shape, w_shape, strides, pads, dilations, groups, padding_mode, y_shape)


def _infer_transposed(
    x_shape: Ints,
    w_shape: Ints,
    stride: Any,
    padding: Any,
    output_padding: Any,
    dilation: Any,
    groups: int,
) -> ConvSpec:
    nd = len(x_shape) - 2
    op = f"conv_transpose{nd}d" if nd in (1, 2, 3) else "transposed convolution"
    _check_ranks(op, x_shape, w_shape, "(C, K/groups, *kernel)")
    if x_shape[1] != w_shape[0]:
        raise ArgumentError(
            f"{op}: the input {x_shape} has {x_shape[1]} channels, but the weight {w_shape} takes "
            f"{w_shape[0]}; give it {w_shape[0]} channels, or a weight of shape ({x_shape[1]}, ...)"
        )
    groups = _groups(op, groups, {"input channels": x_shape[1]})
    strides = ints(op, "stride", stride, nd, least=1)
    dilations = ints(op, "dilation", dilation, nd, least=1)
    extra = ints(op, "output_padding", output_padding, nd, least=0)
    for axis in range(nd):
        if extra[axis] >= max(strides[axis], dilations[axis]):
            raise ArgumentError(
                f"{op}: output_padding {extra[axis]} on spatial axis {axis} must be smaller than "
                f"the stride {strides[axis]} or the dilation {dilations[axis]}"
            )
    kernel, size = w_shape[2:], x_shape[2:]
    if padding == "same":
        if any(extra):
            raise ArgumentError(
                f"{op}: output_padding={output_padding!r} has no place beside padding='same', "
                f"which gives in * stride; leave one of them out"
            )
        # The output is in * stride, the size whose strided "same" convolution gives the input back.
        target = tuple(n * s for n, s in zip(size, strides, strict=True))
        pads = _pads(op, padding, target, kernel, strides, dilations)
        out = target
    else:
        pads = _pads(op, padding, size, kernel, strides, dilations)
        out = tuple(
            (size[a] - 1) * strides[a]
            - sum(pads[a])
            + dilations[a] * (kernel[a] - 1)
            + 1
            + extra[a]
            for a in range(nd)
        )
    _check_output(op, out, size, kernel, pads, dilations)
    y_shape = (x_shape[0], w_shape[1] * groups, *out)
    return ConvSpec(y_shape, w_shape, strides, pads, dilations, groups, "zeros", x_shape)


def _infer_pool(
    x_shape: Ints,
    kernel: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
    nd: int,
    op: str,
) -> PoolSpec:
    if len(x_shape) != nd + 2:
        raise ArgumentError(
            f"{op}: the input {x_shape} has {len(x_shape)} axes, but (N, C, *in) with {nd} spatial "
            f"axes is needed; reshape it to {nd + 2} axes"
        )
    kernels = ints(op, "kernel_size", kernel, nd, least=1)
    strides = kernels if stride is None else ints(op, "stride", stride, nd, least=1)
    dilations = ints(op, "dilation", dilation, nd, least=1)
    size = x_shape[2:]
    pads = _pads(op, padding, size, kernels, strides, dilations)
    out = []
    for axis in range(nd):
        reach = dilations[axis] * (kernels[axis] - 1) + 1
        lo, hi = pads[axis]
        if max(lo, hi) >= reach:
            raise ArgumentError(
                f"{op}: padding {(lo, hi)} on spatial axis {axis} leaves windows of {reach} pixels "
                f"wholly in the padding; use at most {reach - 1}"
            )
        room = size[axis] + lo + hi - reach
        p = (room + (strides[axis] - 1 if ceil_mode else 0)) // strides[axis] + 1
        # PyTorch's rule: a window must start inside the input or the padding before it.
        if ceil_mode and (p - 1) * strides[axis] >= size[axis] + lo:
            p -= 1
        out.append(p)
        # Dilation can step over a small image: then no tap of a window would meet a pixel.
        n, d = size[axis], dilations[axis]
        if d > n and any(s % d >= n for s in range(-lo, 0, strides[axis])[: max(p, 0)]):
            raise ArgumentError(
                f"{op}: dilation {d} on spatial axis {axis} steps over all of its {n} pixels, from "
                f"a window that starts in the padding {(lo, hi)}; use less of either"
            )
    _check_output(op, tuple(out), size, kernels, pads, dilations)
    y_shape = (*x_shape[:2], *out)
    return PoolSpec(x_shape, kernels, strides, pads, dilations, ceil_mode, y_shape)


def ints(op: str, name: str, value: Any, nd: int, least: int = 0) -> Ints:
    """`value` as `nd` integers, a single one repeated; ArgumentError if one is below `least`."""
    try:
        if isinstance(value, Sequence) and not isinstance(value, str):
            result = tuple(operator.index(v) for v in value)
        else:
            result = (operator.index(value),) * nd
    except TypeError:
        raise ArgumentError(f"{op}: {name}={value!r} must be an integer or {nd} integers") from None
    if len(result) != nd:
        raise ArgumentError(f"{op}: {name}={value!r} must be one integer or {nd}, one an axis")
    if min(result) < least:
        raise ArgumentError(f"{op}: {name}={value!r} must be at least {least}")
    return result


def _pads(op: str, padding: Any, size: Ints, kernel: Ints, stride: Ints, dilation: Ints) -> Pads:
    nd = len(size)
    if padding == "valid":
        return ((0, 0),) * nd
    if padding == "same":
        pads = []
        for n, k, s, d in zip(size, kernel, stride, dilation, strict=True):
            total = max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
            pads.append((total // 2, total - total // 2))
        return tuple(pads)
    if isinstance(padding, str):
        raise ArgumentError(f"{op}: padding={padding!r} is unknown; use 'same', 'valid' or numbers")
    if isinstance(padding, Sequence) and any(isinstance(p, Sequence) for p in padding):
        if len(padding) != nd or not all(isinstance(p, Sequence) and len(p) == 2 for p in padding):
            raise ArgumentError(
                f"{op}: padding={padding!r} must be {nd} pairs (before, after), one an axis"
            )
        return tuple(
            (before, after)
            for before, after in (ints(op, "padding", tuple(p), 2, least=0) for p in padding)
        )
    return tuple((p, p) for p in ints(op, "padding", padding, nd, least=0))


def _groups(op: str, groups: Any, channels: dict[str, int]) -> int:
    (groups,) = ints(op, "groups", groups, 1, least=1)
    for name, count in channels.items():
        if count % groups:
            raise ArgumentError(
                f"{op}: groups={groups} must divide the {name} ({count}); "
                f"use a divisor of {count}, or change the channels"
            )
    return groups


def _check_ranks(op: str, x_shape: Ints, w_shape: Ints, layout: str) -> None:
    if not all(type(n) is int for n in (*x_shape, *w_shape)):
        raise ArgumentError(f"{op}: the shapes {x_shape} and {w_shape} must be integers")
    if len(x_shape) not in (3, 4, 5) or len(w_shape) != len(x_shape):
        raise ArgumentError(
            f"{op}: the input {x_shape} and the weight {w_shape} must both have 3, 4 or 5 axes, as "
            f"(N, C, *in) and {layout}; add the batch axis with x[None] if it is missing"
        )
    if min(w_shape) < 1 or min(x_shape[1:]) < 1:
        raise ArgumentError(
            f"{op}: the input {x_shape} and the weight {w_shape} must have no empty axis "
            f"but the batch"
        )


def _check_output(op: str, out: Ints, size: Ints, kernel: Ints, pads: Pads, dilation: Ints) -> None:
    if out and (min(out) < 1 or min(size) < 1):
        raise ArgumentError(
            f"{op}: the output would be empty ({' x '.join(map(str, out))}): input {size}, kernel "
            f"{kernel}, padding {pads}, dilation {dilation}; use a larger input, more padding or a "
            f"smaller kernel"
        )


def _frozen(value: Any) -> Any:
    """Lists as tuples, so that a spec can be looked up by its arguments."""
    if type(value) is int or value is None or isinstance(value, str):
        return value
    if isinstance(value, Sequence):
        return tuple(_frozen(v) for v in value)
    if hasattr(value, "tolist"):  # NumPy's numbers and arrays
        return _frozen(value.tolist())
    if not isinstance(value, Hashable):
        raise ArgumentError(f"{value!r:.60} is no number, no tuple of numbers and no name")
    return value


def axes(op: str, axis: Any, ndim: int) -> Ints:
    """`axis`, an integer or several, as numbers from 0; ArgumentError if not there, or twice."""
    try:
        several = isinstance(axis, Sequence) and not isinstance(axis, str)
        given = tuple(operator.index(a) for a in (axis if several else (axis,)))
    except TypeError:
        raise ArgumentError(f"{op}: axis {axis!r} must be an integer or a tuple of them") from None
    found = tuple(a % ndim for a in given if -ndim <= a < ndim)
    if len(found) != len(given) or len(set(found)) != len(found):
        raise ArgumentError(f"{op}: axis {axis!r} is out of range, or named twice, for {ndim} axes")
    return found
