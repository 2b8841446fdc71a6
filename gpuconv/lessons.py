"""What the numbers of one convolution or pooling are an example of, in a sentence each."""

from collections.abc import Iterator
from math import prod
from typing import Any

from gpuconv.shapes import ConvSpec, PoolSpec
from gpuconv.words import count, shape


def lessons(spec: ConvSpec | PoolSpec, rows: Any, columns: Any) -> Iterator[str]:
    """Those that apply; `rows` (H,) and `columns` (W,) are how many windows read each."""
    yield from _even(spec)
    if isinstance(spec, PoolSpec):
        yield (
            "pooling has nothing to learn and keeps each channel to itself; a shift that stays "
            "within the windows changes little of what comes out (translation invariance)"
        )
    else:
        yield from _kernel(spec)
    if max(spec.stride) > 1:
        return
    yield from _smaller(spec)
    # Where the dilation leaves gaps, a pixel may be in few windows far from the border too.
    centre = int(rows[len(rows) // 2]) * int(columns[len(columns) // 2])
    corners = [int(rows[i]) * int(columns[j]) for i in (0, -1) for j in (0, -1)]
    if max(spec.dilation) == 1 and max(corners) < centre:
        yield (
            f"what lies in a corner counts for less: the top left pixel is in "
            f"{count(corners[0], 'window')}, the centre in {centre:,}"
        )


def _smaller(spec: ConvSpec | PoolSpec) -> Iterator[str]:
    """What the output of stride 1 has less than the input."""
    size, out = spec.x_shape[2:], spec.y_shape[2:]
    axes = [axis for axis in range(2) if out[axis] < size[axis]]
    if not axes:
        return
    taken = " and ".join(
        f"{size[axis] - out[axis]} off the {('height', 'width')[axis]}" for axis in axes
    )
    little = "so little" if any(map(any, spec.padding)) else "no"
    quickly = all(spec.kernel[axis] >= 5 for axis in axes)
    large = ", and large kernels shrink an image quickly" if quickly else ""
    yield (
        f"{shape(size)} becomes {shape(out)}: with {little} padding a window of "
        f"{shape(_window(spec))} takes {taken}{large}"
    )


def _even(spec: ConvSpec | PoolSpec) -> Iterator[str]:
    """The asymmetry of windows of an even size."""
    for axis, n in enumerate(_window(spec)):
        if n % 2 or spec.stride[axis] > 1:
            continue
        row = ("row", "column")[axis]
        before, after = (n - 1) // 2, n // 2
        first = f"i - {before}" if before else "i"
        steps = f" in steps of {spec.dilation[axis]}" if spec.dilation[axis] > 1 else ""
        yield (
            f"a window of {n} {row}s has no middle one: keeping the size takes {n - 1} of padding, "
            f"an odd number, {before} before and {after} after; output i then reads "
            f"{row}s {first} to i + {after}{steps}, half a pixel off its place, and more with "
            f"every such layer; windows of odd size are symmetric"
        )
        return


def _kernel(spec: ConvSpec) -> Iterator[str]:
    """What kernels of this form are for."""
    r, s = spec.kernel
    n, dense = max(r, s), max(*spec.dilation, *spec.stride) == 1
    if r == s == 1:
        mixed = spec.w_shape[1]
        does = "scales each channel" if mixed == 1 else f"mixes channels, {mixed} to an output"
        yield f"a 1 x 1 kernel sees no neighbours: it {does}"
    elif min(r, s) == 1:
        both = (
            f"; with one of {s} x {r} after it, that makes a separable {n} x {n} of {2 * n} "
            f"weights instead of {n * n}"
        )
        yield f"a kernel of {r} x {s} sees along one axis only{both if n > 2 and dense else ''}"
    elif r == s >= 5 and r % 2 and dense:
        layers = (r - 1) // 2
        yield (
            f"{layers} layers of 3 x 3 see {r} x {r} pixels too, with {9 * layers} weights a pair "
            f"of channels instead of {r * r}"
        )
    if spec.groups == spec.x_shape[1] > 1 and prod(spec.kernel) > 1:
        yield "each filter sees one channel (depthwise): a 1 x 1 convolution has to mix them"


def _window(spec: ConvSpec | PoolSpec) -> list[int]:
    """How many pixels an output spans, an axis."""
    return [d * (k - 1) + 1 for k, d in zip(spec.kernel, spec.dilation, strict=True)]
