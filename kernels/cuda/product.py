"""Forward and gradient by input as launches of `tiled`: geometry, choice of the tile, packing.

A convolution is one `Problem`; its gradient by input is one for each class of input pixels that
have the same remainders by the stride: for stride 2, four dense products, in which "pixels" are
those of x, "inputs" those of gy that a tap connects with them, and the dilation is negative.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd, prod
from typing import Any

from gpuconv.kernels.cuda.layout import GATHER, images, reduction, turn, up
from gpuconv.kernels.cuda.plan import Plan, blocks
from gpuconv.kernels.cuda.ptx import reciprocal
from gpuconv.kernels.cuda.tiled import CONFIGS, FAR, OLD, STEP, Config, kernel


@dataclass(frozen=True)
class Problem:
    """One launch: a product of M pixels by `channels` by `inner` (k, its taps times channels).

    Rows and columns of the image read: stride * p + off + dil * tap; written: step * p + first.
    Names of two are (height, width). `wide` is the distance of two pixels of x in numbers.
    """

    batch: int
    image: tuple[int, int]
    wide: int
    groups: int
    inputs: int  # channels a group, a multiple of 4
    channels: int  # output channels a group
    taps: tuple[int, int]
    out: tuple[int, int]  # how many pixels of a row and column are computed
    stride: tuple[int, int]
    off: tuple[int, int]
    dil: tuple[int, int]
    whole: tuple[int, int]  # the image written
    step: tuple[int, int]
    first: tuple[int, int]

    @property
    def pixels(self) -> int:
        return self.batch * self.out[0] * self.out[1]

    @property
    def inner(self) -> int:
        return self.taps[0] * self.taps[1] * self.inputs

    @property
    def tiles(self) -> int:
        return -(-self.inner // STEP)

    def blocks(self, config: Config) -> int:
        across = -(-self.channels // config.bn)
        return -(-self.pixels // config.bm) * across * self.groups

    def weight_columns(self, config: Config) -> int:
        return up(self.channels, config.bn)

    def weight_size(self, config: Config) -> int:
        return self.groups * self.tiles * STEP * self.weight_columns(config)


def supports(spec: Any, dtype: Any) -> bool:
    """Two axes, float32, zeros around; with groups, channels in fours; indices of 32 bits."""
    n, c, *size = spec.x_shape
    _, k, *out = spec.y_shape
    inputs, outputs, taps = spec.w_shape[1], k // spec.groups, prod(spec.kernel)
    wide = spec.groups == 1 or inputs % 4 == outputs % 4 == 0
    matrices = (
        spec.groups * up(up(a, 4) * taps, STEP) * up(b, 128)  # as packed for each of two passes
        for a, b in ((inputs, outputs), (outputs, inputs))
    )
    parts = 8 * spec.groups * up(outputs, 4) * up(inputs, 4) * taps  # 2**28, see weight.choose
    sizes = n * up(c, 4) * prod(size), n * up(k, 4) * prod(out), *matrices, parts
    return bool(
        spec.nd == 2
        and dtype == "float32"
        and spec.padding_mode == "zeros"
        and wide
        and 0 < n < 1 << 16
        and max(*sizes, *spec.stride, *spec.dilation) < 1 << 31
        and max(c, k) <= 1 << 20  # tiles of 32 in a grid's second direction
        and spec.groups < 1 << 16
        and max(spec.padded) < FAR // 4
    )


def forward_problem(spec: Any) -> Problem:
    """The forward pass as a product."""
    return Problem(
        batch=spec.x_shape[0],
        image=spec.x_shape[2:],
        wide=up(spec.x_shape[1], 4),
        groups=spec.groups,
        inputs=up(spec.w_shape[1], 4),
        channels=spec.w_shape[0] // spec.groups,
        taps=spec.kernel,
        out=spec.y_shape[2:],
        stride=spec.stride,
        off=(-spec.padding[0][0], -spec.padding[1][0]),
        dil=spec.dilation,
        whole=spec.y_shape[2:],
        step=(1, 1),
        first=(0, 0),
    )


@dataclass(frozen=True)
class Taps:
    """Of one axis, the taps first, first + step, ... that meet pixels a, a + stride, ... of x."""

    first: int
    step: int
    count: int
    off: int  # the row of gy that the first tap connects with pixel a
    dil: int  # how far the next tap's is


def class_taps(a: int, kernel: int, stride: int, pad: int, dilation: int) -> Taps:
    """Pixel h = a + stride * i takes gy[(h + pad - r * dilation) / stride] where that is whole."""
    step = stride // gcd(stride, dilation)
    found = [r for r in range(kernel) if (a + pad - r * dilation) % stride == 0]
    if not found:
        return Taps(0, step, 0, 0, 0)
    off = (a + pad - found[0] * dilation) // stride
    return Taps(found[0], step, len(found), off, -(dilation * step // stride))


def grad_input_problems(spec: Any) -> list[tuple[Problem, Taps, Taps]]:
    """The gradient by input as products, one a class of pixels with the same remainders."""
    (_, _, h, w), (n, k, p, q) = spec.x_shape, spec.y_shape
    problems = []
    for a in range(min(spec.stride[0], h)):
        for b in range(min(spec.stride[1], w)):
            rows, columns = (
                class_taps(
                    first, spec.kernel[i], spec.stride[i], spec.padding[i][0], spec.dilation[i]
                )
                for i, first in enumerate((a, b))
            )
            problem = Problem(
                batch=n,
                image=(p, q),
                wide=up(k, 4),
                groups=spec.groups,
                inputs=up(k // spec.groups, 4),
                channels=spec.w_shape[1],
                taps=(rows.count, columns.count),
                out=(-(-(h - a) // spec.stride[0]), -(-(w - b) // spec.stride[1])),
                stride=(1, 1),
                off=(rows.off, columns.off),
                dil=(rows.dil, columns.dil),
                whole=(h, w),
                step=spec.stride,
                first=(a, b),
            )
            problems.append((problem, rows, columns))
    return problems


def cycles(blocks: int, steps: int, config: Config, splits: int, parts: int, sms: int) -> float:
    """About how many cycles of a GPU a product takes: a model, not yet of a measurement.

    `blocks` tiles of `steps` steps, split; `parts` is the size of one part's result. A
    multiprocessor computes 128 products a cycle when it has 16 warps or more, less with fewer;
    splitting keeps them busy when there are few tiles, and costs the writing and adding of parts.
    """
    load = -(-blocks * splits // sms)  # blocks on the busiest multiprocessor
    warps = min(load, 512 // config.threads) * config.threads // 32
    busy = min(1.0, 0.4 + 0.6 * warps / 16) * (0.92 if config.bm * config.bn < 1 << 14 else 1)
    each = -(-steps // splits) + 4  # 4: filling the pipeline, and the end
    product = load * each * config.bm * config.bn * STEP / 128 / busy
    return product + (splits * parts * 8 / (sms * 12) + 3000 if splits > 1 else 0)


def parts_of(steps: int, splits: int) -> int:
    """Into how many parts `steps` really are split: all but the last are equally long."""
    return -(-steps // max(-(-steps // splits), 1)) if steps else 1


def choose(problem: Problem, sms: int) -> tuple[Config, int, float]:
    """The tile, into how many parts k is split, and the `cycles` that makes the least of."""
    most = max(1, min(64, problem.tiles // 4))
    size = problem.batch * problem.whole[0] * problem.whole[1] * problem.channels * problem.groups
    candidates = [
        (
            config,
            parts_of(problem.tiles, splits),
            cycles(problem.blocks(config), problem.tiles, config, splits, size, sms),
        )
        for config in CONFIGS
        for splits in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
        if splits <= most and splits * size < 1 << 31
    ]
    return min(candidates, key=lambda candidate: candidate[2])


def forward(
    device: Any, spec: Any, channels_last: bool, bias: bool, add: bool, relu: bool, tile: Any = None
) -> Callable[..., None]:
    """run(x, w, b, add, y): y = relu(conv(x, w) + b + add), x, y and add in one memory format.

    w is contiguous (K, C/groups, R, S); b and add are None where they are not asked for. `tile` is
    a (Config, splits) to use instead of `choose`'s.
    """
    problem = forward_problem(spec)
    config, splits = tile or choose(problem, device.sms)[:2]
    plan = Plan("x", "w", "b", "add", "y")
    _, x = images(plan, "x", spec.x_shape, channels_last)
    matrix = plan.own(problem.weight_size(config))
    turn(
        plan,
        "w",
        matrix,
        problem.groups,
        problem.channels,
        prod(spec.w_shape[1:]),
        problem.weight_columns(config),
        problem.tiles * STEP,
        prod(problem.taps),
        problem.inputs,
    )
    arrays = x, matrix, "b" if bias else None, "add" if add else None, "y"
    _product(device, plan, arrays, problem, config, splits, channels_last, relu)
    return device.sequence(plan)


def grad_input(
    device: Any, spec: Any, channels_last: bool, tiles: Any = None
) -> Callable[..., None]:
    """run(gy, w, gx): gx of gy and w, gy and gx in one memory format.

    `tiles` are (Config, splits) for each of `grad_input_problems`, to use instead of `choose`'s.
    """
    plan = Plan("gy", "w", "gx")
    _, gy = images(plan, "gy", spec.y_shape, channels_last)
    for i, (problem, rows, columns) in enumerate(grad_input_problems(spec)):
        config, splits = tiles[i] if tiles else choose(problem, device.sms)[:2]
        if problem.step != (1, 1):
            splits = 1  # parts are added up as whole images, which a class is not
        size = problem.weight_size(config)
        matrix = plan.own(max(size, 1))
        if size:  # else no taps meet this class of pixels: there is nothing to pack
            plan.launch(
                GATHER,
                blocks(size, GATHER.threads),
                "w",
                matrix,
                total=size,
                K=spec.w_shape[0] // spec.groups,
                C=spec.w_shape[1],
                R=spec.kernel[0],
                S=spec.kernel[1],
                rows=problem.tiles * STEP,
                new_k=problem.inputs,
                new_c=problem.weight_columns(config),
                taps_w=columns.count,
                taps=prod(problem.taps),
                first_r=rows.first,
                first_s=columns.first,
                step_r=rows.step,
                step_s=columns.step,
            )
        arrays = gy, matrix, None, None, "gx"
        _product(device, plan, arrays, problem, config, splits, channels_last)
    return device.sequence(plan)


def _product(
    device: Any,
    plan: Plan,
    arrays: tuple[str, str, str | None, str | None, str],
    problem: Problem,
    config: Config,
    splits: int,
    channels_last: bool,
    relu: bool = False,
) -> None:
    """Launch a problem of `arrays` (x, matrix, b, add, y), x channels-last, matrix as packed."""
    x, matrix, b, add, y = arrays
    p, size = problem, problem.batch * prod(problem.whole) * problem.channels * problem.groups
    channels = p.channels * p.groups
    tiles = -(-p.tiles // splits)
    splits = max(1, -(-p.tiles // max(tiles, 1)))
    to, end = (y, (b, add, relu)) if splits == 1 else (plan.own(splits * size), (None, None, False))
    c_factor, c_shift = reciprocal(p.inputs)
    s_factor, s_shift = reciprocal(max(p.taps[1], 1))
    across = -(-p.channels // config.bn)
    plan.launch(
        kernel(config, not channels_last, device.arch not in OLD),
        (-(-p.pixels // config.bm) * across, p.groups, splits),
        x,
        matrix,
        *end[:2],
        to,
        has_bias=end[0] is not None,
        has_add=end[1] is not None,
        relu=end[2],
        vectors=p.channels % 4 == 0,
        slab=size,
        M=p.pixels,
        KD=p.inner,
        all_tiles=p.tiles,
        tiles=tiles,
        tiles_n=across,
        H=p.image[0],
        W=p.image[1],
        XC=p.wide,
        C=p.inputs,
        c_factor=c_factor,
        c_shift=c_shift,
        S=p.taps[1],
        s_factor=s_factor,
        s_shift=s_shift,
        P=p.out[0],
        Q=p.out[1],
        stride_h=p.stride[0],
        stride_w=p.stride[1],
        off_h=p.off[0],
        off_w=p.off[1],
        dil_h=p.dil[0],
        dil_w=p.dil[1],
        WK=p.weight_columns(config),
        K=p.channels,
        YK=channels,
        YH=p.whole[0],
        YW=p.whole[1],
        step_h=p.step[0],
        step_w=p.step[1],
        first_h=p.first[0],
        first_w=p.first[1],
    )
    if splits > 1:
        inner = 1 if channels_last else prod(p.whole)
        reduction(plan, to, b, add, y, size, splits, channels, inner, relu)
