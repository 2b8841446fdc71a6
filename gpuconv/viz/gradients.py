"""The two gradients of a convolution, each as the correlation that it is: what `backward` draws.

Of y[p] = sum_r w[r] x[p*stride + r*dilation - padding], the gradient by input is the kernel,
rotated, sliding over the output's gradient, which the stride has spread; the gradient by weight is
the output's gradient, as a kernel, sliding over the padded input. Source: Dumoulin and Visin, "A
guide to convolution arithmetic", arXiv 1603.07285, chapter 4.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from gpuconv import ops
from gpuconv.backends import backend
from gpuconv.errors import ArgumentError
from gpuconv.shapes import ConvSpec, IntOrInts, Ints, Padding, Pads, ints
from gpuconv.viz import presets
from gpuconv.viz.convolution import by_position, taps, windows
from gpuconv.viz.style import Array


@dataclass(frozen=True)
class Gradient:
    """A gradient of a convolution as a correlation: `kernel` slides over `plane`.

    `x` (H, W), `w` (R, S) and `gy` (P, Q), float64, are the convolution's. At position (i, j) the
    `kernel` has its first element at (i, j) * `step` of the `plane`, its elements `apart` from each
    other, the numbers `reads[i, j]` under it, and the sum of their products is `result[i, j]`,
    which is the library's gradient; `cells[i, j]` counts the cells it lies on along the plane's
    rows. `pads` is what was added to the plane before and after, negative where it was cut off.
    Masks: `padding` (cells of the plane that were added), `spread` (zeros that the stride put
    between the numbers of gy), `unused` (H, W) (pixels of x that are in no window).
    """

    of: str
    spec: ConvSpec
    x: Array
    w: Array
    gy: Array
    plane: Array
    kernel: Array
    step: Ints
    apart: Ints
    pads: Pads
    reads: Array
    cells: Array
    result: Array
    padding: Array
    spread: Array
    unused: Array

    @property
    def name(self) -> str:
        return "gx" if self.of == "input" else "gw"


def gradient(
    image: Any = (5, 5),
    kernel: Any = (3, 3),
    gy: Array | None = None,
    *,
    stride: IntOrInts = 1,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
    of: str = "input",
    seed: int = 0,
) -> Gradient:
    """What `backward` draws, computed by the library; arguments and errors are those of it."""
    if of not in ("input", "weight"):
        raise ArgumentError(f"of={of!r} is no gradient to draw: use 'input' or 'weight'")
    (first,) = ints("backward", "seed", seed, 1)
    x = _plane("image", image, list(range(10)), [first])
    w = _plane("kernel", kernel, [-3, -2, -1, 1, 2, 3], [first, 1])
    options = stride, padding, dilation
    spec = ConvSpec.infer(x.shape, w.shape, *options)
    presets.check_written(spec)
    given = spec.y_shape[2:] if gy is None else gy
    g = _plane("gy", given, [-3, -2, -1, 1, 2, 3], [first, 2])
    ones = np.ones_like(g)
    spans = [d * (k - 1) + 1 for d, k in zip(spec.dilation, spec.kernel, strict=True)]
    step: Ints
    # The array code: to compile kernels for 25 pixels would take longer than the picture.
    with backend("numpy"):
        if of == "input":
            result = ops.conv2d_grad_input(g, w, x.shape, *options)
            # A transposed convolution with the kernel 1 moves numbers apart, and nothing else.
            one = np.ones((1, 1, 1, 1))
            inner, real = (ops.conv_transpose2d(a, one, stride=spec.stride) for a in (g, ones))
            over, step, apart = w[:, :, ::-1, ::-1], (1, 1), spec.dilation
            pads = tuple(
                (reach - 1 - lo, n + lo - size)
                for reach, (lo, _), n, size in zip(
                    spans, spec.padding, x.shape[2:], inner.shape[2:], strict=True
                )
            )
        else:
            result = ops.conv2d_grad_weight(g, x, w.shape, *options)
            inner, real, over = x, np.ones_like(x), g
            step, apart, pads = spec.dilation, spec.stride, spec.padding
        plane, real, inside = (_pad(a, pads) for a in (inner, real, np.ones_like(inner)))
        # Pixels that the floor of the output's size drops lie after all that the kernel reaches.
        reached = [
            (n - 1) * s + (k - 1) * d + 1
            for n, s, k, d in zip(result.shape[2:], step, over.shape[2:], apart, strict=True)
        ]
        met = plane[:, :, : reached[0], : reached[1]]
        correlation = ConvSpec.infer(met.shape, over.shape, step, 0, apart)
        reads = ops.conv2d(met, taps(correlation), None, step, 0, apart)
        visits = ops.conv2d_grad_input(ones, np.ones_like(w), x.shape, *options)
    row, column = np.divmod(windows(correlation, met)[2], met.shape[3])
    return Gradient(
        of, spec, x[0, 0], w[0, 0], g[0, 0], plane[0, 0], over[0, 0], step, apart, pads,
        by_position(correlation, reads[0]), row * plane.shape[3] + column, result[0, 0],
        padding=inside[0, 0] == 0, spread=(inside > real)[0, 0], unused=visits[0, 0] == 0,
    )  # fmt: skip


def _plane(name: str, given: Any, choice: list[int], seed: list[int]) -> Array:
    """(1, 1, H, W): the numbers given, or, of a size, those of the choice, shuffled."""
    if presets.axes(name, given) == 2:
        return presets.finite(name, given, "(H, W)")[None, None]
    size = ints("backward", name, given, 2, least=1)
    presets.check_drawable(name, size)
    values = np.resize(np.array(choice, dtype=np.float64), size[0] * size[1])
    return np.random.default_rng(seed).permutation(values).reshape(1, 1, *size)


def _pad(plane: Array, pads: Pads) -> Array:
    """(1, 1, H, W) with rows and columns more, or fewer where `pads` are negative."""
    sides = [*pads[1], *pads[0]]
    return ops.pad(ops.pad(plane, [max(n, 0) for n in sides]), [min(n, 0) for n in sides])
