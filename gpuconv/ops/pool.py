"""Pooling: maximum, average, adaptive, global, and unpooling, in one to three dimensions.

Arguments are those of torch.nn.functional. `padding` is a superset, as in `conv2d`: a number, one
an axis, one pair (before, after) an axis, "same" or "valid"; it may be anything below the kernel's
extent dilation * (kernel_size - 1) + 1, where PyTorch stops at half the kernel.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import Any

from gpuconv.autograd import Function, Tensor
from gpuconv.backends import Array, Backend
from gpuconv.errors import ArgumentError, DtypeError
from gpuconv.ops.dtypes import check_dtypes
from gpuconv.ops.resample import Resample, bins, mean_taps
from gpuconv.reference.pool import window_sizes
from gpuconv.shapes import IntOrInts, Ints, Padding, PoolSpec, ints

# The size an adaptive pooling is to give: one for all axes or one an axis; None keeps the input's.
OutputSize = int | None | Sequence[int | None]


class MaxPool(Function):
    """y of x; `arguments` are those of `PoolSpec.infer` after the shape."""

    def __init__(self, op: str, *arguments: Any, taps: bool = False) -> None:
        self.op, self.arguments, self.taps = op, (*arguments, op), taps

    def forward(self, be: Backend, x: Array) -> Array:
        check_dtypes(self.op, x=x)
        self.spec = PoolSpec.infer(x.shape, *self.arguments)
        y, self.tap = be.max_pool(self.spec, x, taps=self.taps or self.needs[0])
        return y

    def backward(self, be: Backend, gy: Array) -> Array:
        return be.max_pool_grad(self.spec, gy, self.tap)

    def indices(self) -> Array:
        """After `apply` with `taps`: PyTorch's indices."""
        return self.be.max_pool_indices(self.spec, self.tap)


class AdaptiveMaxPool(Function):
    """Bins that overlap or differ in size: each one is pooled as a plane of its own."""

    def __init__(self, op: str, out: Ints, taps: bool = False) -> None:
        self.op, self.out, self.taps = op, out, taps

    def forward(self, be: Backend, x: Array) -> Array:
        check_dtypes(self.op, x=x)
        self.x_shape, self.tap = x.shape, []
        y = be.empty_like_format(x, (*x.shape[:2], *self.out), x.dtype)
        for cell, area in self.cells():
            patch = x[area]
            y[cell], tap = be.max_pool(_whole(patch), patch, taps=self.taps or self.needs[0])
            self.tap.append(tap)
        return y

    def backward(self, be: Backend, gy: Array) -> Array:
        gx = be.empty_like_format(gy, self.x_shape, gy.dtype)
        gx[...] = 0
        for (cell, area), tap in zip(self.cells(), self.tap, strict=True):
            patch = gx[area]
            patch += be.max_pool_grad(_whole(patch), gy[cell], tap)
        return gx

    def indices(self) -> Array:
        """After `apply` with `taps`: PyTorch's indices."""
        index = self.be.xp.empty((*self.x_shape[:2], *self.out), dtype=self.be.xp.int64)
        ones = (1,) * len(self.out)
        for (cell, area), tap in zip(self.cells(), self.tap, strict=True):
            # The bin as the one window of a plane whose other pixels are cut off.
            kernel = tuple(a.stop - a.start for a in area[2:])
            cut = tuple(
                (-a.start, a.stop - n) for a, n in zip(area[2:], self.x_shape[2:], strict=True)
            )
            y_shape = (*self.x_shape[:2], *ones)
            spec = PoolSpec(self.x_shape, kernel, ones, cut, ones, False, y_shape)
            index[cell] = self.be.max_pool_indices(spec, tap)
        return index

    def cells(self) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
        """For each output pixel, its place in y and the area of x it comes from."""
        before = (slice(None), slice(None))
        axes = []
        for n, out in zip(self.x_shape[2:], self.out, strict=True):
            spans = zip(*(edge.tolist() for edge in bins(n, out)), strict=True)
            axes.append([(slice(i, i + 1), slice(a, b)) for i, (a, b) in enumerate(spans)])
        for cell in product(*axes):
            yield (*before, *(c for c, _ in cell)), (*before, *(a for _, a in cell))


class AvgPool(Function):
    """y of x; `arguments` are those of `PoolSpec.infer` after the shape."""

    def __init__(
        self,
        op: str,
        *arguments: Any,
        count_include_pad: bool = True,
        divisor_override: float | None = None,
    ) -> None:
        self.op, self.arguments = op, (*arguments, op)
        self.count_include_pad, self.divisor_override = count_include_pad, divisor_override

    def forward(self, be: Backend, x: Array) -> Array:
        check_dtypes(self.op, x=x)
        self.spec = PoolSpec.infer(x.shape, *self.arguments)
        divisor: Any = self.divisor_override
        if divisor is None:
            divisor = window_sizes(self.spec, self.count_include_pad)
            if not isinstance(divisor, int):
                divisor = be.asarray(divisor, dtype=x.dtype)
        elif divisor == 0:
            raise ArgumentError(f"{self.op}: divisor_override is 0; give another number, or None")
        self.divisor = divisor
        return be.avg_pool(self.spec, x, divisor)

    def backward(self, be: Backend, gy: Array) -> Array:
        return be.avg_pool_grad(self.spec, gy, self.divisor)


class Unpool(Function):
    """y (N, C, *out) of x and indices: zeros but for each x at its index in the plane."""

    def __init__(self, op: str, out: Ints) -> None:
        self.op, self.out = op, out

    def forward(self, be: Backend, x: Array, indices: Array) -> Array:
        check_dtypes(self.op, x=x)
        if indices.dtype.kind not in "iu":
            raise DtypeError(
                f"{self.op}: indices are {indices.dtype}, but integers are needed; pass those of a "
                f"max pooling with return_indices=True"
            )
        if indices.shape != x.shape:
            raise ArgumentError(
                f"{self.op}: the indices {indices.shape} must have the shape of the input {x.shape}"
            )
        # On a GPU this waits for the device; without it a bad index would write anywhere.
        plane = prod(self.out)
        if bool(((indices < 0) | (indices >= plane)).any()):
            raise ArgumentError(
                f"{self.op}: indices {int(indices.min())} to {int(indices.max())} do not fit the "
                f"output's {' x '.join(map(str, self.out))} pixels; set output_size to the size "
                f"that was pooled"
            )
        self.indices = indices
        return be.unpool(x, indices, self.out)

    def backward(self, be: Backend, gy: Array) -> tuple[Array | None, ...]:
        return be.unpool_grad(gy, self.indices), None


def max_pool1d(
    x: Any,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """As `max_pool2d`, with one spatial axis: x (N, C, L)."""
    return _max_pool(1, return_indices, x, kernel_size, stride, padding, dilation, ceil_mode)


def max_pool2d(
    x: Any,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The maximum of each window of x (N, C, H, W): (N, C, P, Q).

    `stride` None is the kernel's size. With `return_indices` the result is (y, indices): int64, the
    place of each maximum in its flattened H x W plane, never in the padding. Of equal values the
    first is taken; NaN beats numbers. Padding is -inf. Raises ArgumentError for shapes that do not
    fit, DtypeError for integers.
    """
    return _max_pool(2, return_indices, x, kernel_size, stride, padding, dilation, ceil_mode)


def max_pool3d(
    x: Any,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """As `max_pool2d`, with three spatial axes: x (N, C, D, H, W)."""
    return _max_pool(3, return_indices, x, kernel_size, stride, padding, dilation, ceil_mode)


def avg_pool1d(
    x: Any,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: float | None = None,
) -> Any:
    """As `avg_pool2d`, with one spatial axis: x (N, C, L)."""
    return _avg_pool(
        1, count_include_pad, divisor_override, x, kernel_size, stride, padding, 1, ceil_mode
    )


def avg_pool2d(
    x: Any,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: float | None = None,
) -> Any:
    """The mean of each window of x (N, C, H, W): (N, C, P, Q).

    `stride` None is the kernel's size. Padding is 0 and counts as pixels unless `count_include_pad`
    is false; `divisor_override`, where given, is divided by instead of a count. Raises
    ArgumentError for shapes that do not fit, DtypeError for integers.
    """
    return _avg_pool(
        2, count_include_pad, divisor_override, x, kernel_size, stride, padding, 1, ceil_mode
    )


def avg_pool3d(
    x: Any,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: float | None = None,
) -> Any:
    """As `avg_pool2d`, with three spatial axes: x (N, C, D, H, W)."""
    return _avg_pool(
        3, count_include_pad, divisor_override, x, kernel_size, stride, padding, 1, ceil_mode
    )


def adaptive_avg_pool1d(x: Any, output_size: OutputSize) -> Any:
    """As `adaptive_avg_pool2d`, with one spatial axis: x (N, C, L)."""
    return _adaptive_avg_pool("adaptive_avg_pool1d", 1, x, output_size)


def adaptive_avg_pool2d(x: Any, output_size: OutputSize) -> Any:
    """x (N, C, H, W) averaged to (N, C, *output_size), whatever H and W are.

    Output i of P is the mean of rows floor(i * H / P) to ceil((i + 1) * H / P); columns alike. None
    in `output_size` keeps that axis. Raises ArgumentError for shapes that do not fit, DtypeError
    for integers.
    """
    return _adaptive_avg_pool("adaptive_avg_pool2d", 2, x, output_size)


def adaptive_avg_pool3d(x: Any, output_size: OutputSize) -> Any:
    """As `adaptive_avg_pool2d`, with three spatial axes: x (N, C, D, H, W)."""
    return _adaptive_avg_pool("adaptive_avg_pool3d", 3, x, output_size)


def adaptive_max_pool1d(x: Any, output_size: OutputSize, return_indices: bool = False) -> Any:
    """As `adaptive_max_pool2d`, with one spatial axis: x (N, C, L)."""
    return _adaptive_max_pool("adaptive_max_pool1d", 1, x, output_size, return_indices)


def adaptive_max_pool2d(x: Any, output_size: OutputSize, return_indices: bool = False) -> Any:
    """The maxima of the bins of `adaptive_avg_pool2d`; `return_indices` as in `max_pool2d`."""
    return _adaptive_max_pool("adaptive_max_pool2d", 2, x, output_size, return_indices)


def adaptive_max_pool3d(x: Any, output_size: OutputSize, return_indices: bool = False) -> Any:
    """As `adaptive_max_pool2d`, with three spatial axes: x (N, C, D, H, W)."""
    return _adaptive_max_pool("adaptive_max_pool3d", 3, x, output_size, return_indices)


def global_avg_pool(x: Any) -> Any:
    """The mean of each plane of x (N, C, *in): (N, C, 1, ...), one to three spatial axes."""
    return _adaptive_avg_pool("global_avg_pool", len(x.shape) - 2, x, 1)


def global_max_pool(x: Any) -> Any:
    """The maximum of each plane of x (N, C, *in): (N, C, 1, ...), one to three spatial axes."""
    return _adaptive_max_pool("global_max_pool", len(x.shape) - 2, x, 1, False)


def max_unpool1d(
    x: Any,
    indices: Any,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    padding: Padding = 0,
    output_size: Sequence[int] | None = None,
) -> Any:
    """As `max_unpool2d`, with one spatial axis: x (N, C, L)."""
    return _max_unpool(1, x, indices, kernel_size, stride, padding, output_size)


def max_unpool2d(
    x: Any,
    indices: Any,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    padding: Padding = 0,
    output_size: Sequence[int] | None = None,
) -> Any:
    """Puts x (N, C, P, Q) back where `max_pool2d` with `return_indices` found it; zeros elsewhere.

    The result is (N, C, H, W), H = (P - 1) * stride + kernel_size - top - bottom ("same": P *
    stride), or `output_size`: (H, W) or a whole shape, each size less than a stride from that.
    Where windows overlapped and an index occurs more than once the last is taken, and it alone has
    a gradient. Raises ArgumentError for shapes and indices that do not fit, DtypeError for other
    dtypes.
    """
    return _max_unpool(2, x, indices, kernel_size, stride, padding, output_size)


def max_unpool3d(
    x: Any,
    indices: Any,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    padding: Padding = 0,
    output_size: Sequence[int] | None = None,
) -> Any:
    """As `max_unpool2d`, with three spatial axes: x (N, C, D, H, W)."""
    return _max_unpool(3, x, indices, kernel_size, stride, padding, output_size)


def _max_pool(nd: int, return_indices: bool, x: Any, *arguments: Any) -> Any:
    f = MaxPool(f"max_pool{nd}d", *arguments, nd, taps=return_indices)
    return _with_indices(f, f.apply(x), return_indices)


def _avg_pool(nd: int, include: bool, divisor: float | None, x: Any, *arguments: Any) -> Any:
    f = AvgPool(
        f"avg_pool{nd}d", *arguments, nd, count_include_pad=include, divisor_override=divisor
    )
    return f.apply(x)


def _adaptive_avg_pool(op: str, nd: int, x: Any, output_size: OutputSize) -> Any:
    size, out = _adaptive_sizes(op, nd, x.shape, output_size)
    if kernel := _even_bins(size, out):
        return AvgPool(op, kernel, None, 0, 1, False, nd).apply(x)
    pairs = zip(size, out, strict=True)
    return Resample(op, [None if n == p else mean_taps(n, p) for n, p in pairs]).apply(x)


def _adaptive_max_pool(
    op: str, nd: int, x: Any, output_size: OutputSize, return_indices: bool
) -> Any:
    size, out = _adaptive_sizes(op, nd, x.shape, output_size)
    f: MaxPool | AdaptiveMaxPool
    if kernel := _even_bins(size, out):
        f = MaxPool(op, kernel, None, 0, 1, False, nd, taps=return_indices)
    else:
        f = AdaptiveMaxPool(op, out, taps=return_indices)
    return _with_indices(f, f.apply(x), return_indices)


def _with_indices(f: MaxPool | AdaptiveMaxPool, y: Any, wanted: bool) -> Any:
    if not wanted:
        return y
    return y, Tensor(f.indices()) if isinstance(y, Tensor) else f.indices()


def _adaptive_sizes(op: str, nd: int, shape: Sequence[int], given: Any) -> tuple[Ints, Ints]:
    """The input's and the output's spatial sizes."""
    if nd not in (1, 2, 3) or len(shape) != nd + 2 or min(shape[2:]) < 1:
        raise ArgumentError(
            f"{op}: the input {tuple(shape)} must be (N, C, *in) with "
            f"{nd if nd in (1, 2, 3) else 'one to three'} spatial axes, none of them empty; add a "
            f"missing batch axis with x[None]"
        )
    size = tuple(shape[2:])
    if given is None:
        return size, size
    if isinstance(given, Sequence) and len(given) == nd:
        given = tuple(n if p is None else p for n, p in zip(size, given, strict=True))
    return size, ints(op, "output_size", given, nd, least=1)


def _even_bins(size: Ints, out: Ints) -> Ints | None:
    """The size that all bins have, if they all have the same."""
    if any(n % p for n, p in zip(size, out, strict=True)):
        return None
    return tuple(n // p for n, p in zip(size, out, strict=True))


def _whole(x: Array) -> PoolSpec:
    """One window over all of x's plane."""
    return PoolSpec.infer(x.shape, x.shape[2:], nd=x.ndim - 2)


def _max_unpool(
    nd: int, x: Any, indices: Any, kernel_size: Any, stride: Any, padding: Any, output_size: Any
) -> Any:
    op, shape = f"max_unpool{nd}d", tuple(x.shape)
    if len(shape) != nd + 2:
        raise ArgumentError(f"{op}: the input {shape} must be (N, C, *in) with {nd} spatial axes")
    # A pooling of large planes, for its resolved arguments: those do not depend on the size.
    same = padding == "same"
    planes = (1, 1, *(1 << 40,) * nd)
    spec = PoolSpec.infer(planes, kernel_size, stride, 0 if same else padding, nd=nd, op=op)
    pooled = zip(shape[2:], spec.kernel, spec.stride, spec.padding, strict=True)
    usual = tuple(n * s if same else (n - 1) * s + k - lo - hi for n, k, s, (lo, hi) in pooled)
    out = usual
    if output_size is not None:
        given = tuple(output_size)
        out = ints(op, "output_size", given[2:] if len(given) == nd + 2 else given, nd)
        if any(abs(p - u) >= s for p, u, s in zip(out, usual, spec.stride, strict=True)):
            raise ArgumentError(
                f"{op}: output_size {out} must be less than a stride {spec.stride} from {usual}"
            )
    if min(out) < 1:
        raise ArgumentError(
            f"{op}: the output would be empty ({' x '.join(map(str, out))}); use less padding"
        )
    return Unpool(op, out).apply(x, indices)
