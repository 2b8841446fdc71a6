"""What the numbers of one convolution or pooling are an example of, in a sentence each."""

from collections.abc import Iterator, Sequence
from math import prod

from gpuconv.shapes import ConvSpec, PoolSpec


def lessons(spec: ConvSpec | PoolSpec, corner: int, centre: int) -> Iterator[str]:
    """Those that apply; `corner` and `centre` are how many windows use such a pixel."""
    yield from _even(spec)
    if isinstance(spec, PoolSpec):
        yield (
            "pooling has nothing to learn and keeps each channel to itself; a shift that stays "
            "within the windows changes little of what comes out (translation invariance)"
        )
    else:
        yield from _kernel(spec)
    lost = [n - out for n, out in zip(spec.x_shape[2:], spec.y_shape[2:], strict=True)]
    if max(spec.stride) == 1 and max(lost) > 0:
        window = _window(spec)
        little = "so little" if any(map(any, spec.padding)) else "no"
        large = ", and large kernels shrink an image quickly" if min(window) >= 5 else ""
        yield (
            f"{times(spec.x_shape[2:])} becomes {times(spec.y_shape[2:])}: with {little} padding a "
            f"window of {times(window)} takes {lost[0]} off the height and {lost[1]} off the "
            f"width{large}"
        )
    if corner < centre:
        yield (
            f"what lies at the border counts for less: a corner pixel takes part in {corner} "
            f"{'sum' if corner == 1 else 'sums'}, the centre in {centre}"
        )


def _even(spec: ConvSpec | PoolSpec) -> Iterator[str]:
    """The asymmetry of windows of an even size."""
    for axis, n in enumerate(_window(spec)):
        if n % 2 or spec.stride[axis] > 1:
            continue
        row = ("row", "column")[axis]
        before, after = (n - 1) // 2, n // 2
        first = f"i - {before}" if before else "i"
        yield (
            f"a window of {n} {row}s has no middle one: keeping the size takes {n - 1} of padding, "
            f"an odd number, {before} before and {after} after; output i then sees "
            f"{row}s {first} to i + {after}, half a pixel off its place, and more with every such "
            f"layer; windows of odd size are symmetric"
        )
        return


def _kernel(spec: ConvSpec) -> Iterator[str]:
    """What kernels of this form are for."""
    r, s = spec.kernel
    depthwise = spec.groups == spec.x_shape[1]
    if r == s == 1:
        mixed = spec.x_shape[1] // spec.groups
        does = "it only scales" if mixed == 1 else f"it only mixes channels, {mixed} to an output"
        yield f"a 1 x 1 kernel sees no neighbours: {does}"
    elif min(r, s) == 1:
        n = max(r, s)
        yield (
            f"a kernel of {r} x {s} sees along one axis only; with one of {s} x {r} after it, "
            f"that makes {n} x {n} of {2 * n} weights instead of {n * n}"
        )
    elif r == s >= 5 and r % 2 and max(*spec.dilation, *spec.stride) == 1:
        layers = (r - 1) // 2
        yield (
            f"{layers} layers of 3 x 3 see {r} x {r} pixels too, with {9 * layers} weights a pair "
            f"of channels instead of {r * r}"
        )
    if depthwise and spec.groups > 1 and prod(spec.kernel) > 1:
        yield "each filter sees one channel (depthwise): a 1 x 1 convolution has to mix them"


def _window(spec: ConvSpec | PoolSpec) -> list[int]:
    """How many pixels an output spans, an axis."""
    return [d * (k - 1) + 1 for k, d in zip(spec.kernel, spec.dilation, strict=True)]


def times(shape: Sequence[int]) -> str:
    """5 x 5."""
    return " x ".join(map(str, shape))
