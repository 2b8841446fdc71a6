"""Depthwise convolution: every output channel has one input channel; bound by memory, not by sums.

One spatial axis is the window axis `u`, the other is `v` (the plan says which is which). A thread
computes 4 or 8 outputs in a row along u. It loads the pixels that they see on one line into
registers, once, and uses each for all the taps that meet it:

    window 3, stride 1, 4 outputs     pixels    0 1 2 3 4 5        6 loads for 12 products
                                      outputs   |-0-|
                                                  |-1-|
                                                    |-2-|
                                                      |-3-|

Size, stride and dilation of the kernel along v, and the number of windows along u, are numbers of
the launch: window 3 serves 3x3, 1x3 and 9x5. Window 1 serves everything: a load for each output and
tap, most of them from the first-level cache. At strides above 1 that is little beside the traffic
of the image, for an input number is met by R*S / stride**2 outputs only.

    vector     channels-last, C a multiple of 4, K = C: a thread has 4 channels, 16 bytes. A block
               has 32 channels (8 threads) x 32 places along v; its weights lie in shared memory as
               [tap][32 channels + 4], having been read along memory
    scalar     everything else: a thread has one channel; lanes along v (NCHW) or the channels

    forward      y = conv(x, w, b), ReLU. With flipped weights it is the gradient by input too where
                 all strides are 1, of K / C channels each
    grad_input   for strides above 1. A thread's outputs are a stride apart: then the same taps meet
                 them all, their gy are neighbours, and no tap is tried in vain

Blocks of 256 threads, in one row; threads are numbered as the result lies in memory, but for the
tiles along u. `depthwise_weight` has the gradient by weight.
"""

from collections.abc import Callable
from dataclasses import replace
from math import gcd, prod
from typing import Any

from numba import cuda, types

from gpuconv.kernels.cuda.compiler import F32, I32, Kernel
from gpuconv.kernels.cuda.depthwise_axes import Axes, axes_of, numbers_of, window_axis
from gpuconv.kernels.cuda.ptx import (
    barrier,
    div,
    divide,
    i32,
    inline,
    lds4,
    load4_if,
    load_if,
    load_nc,
    ones,
    reciprocal,
    rem,
    shared,
    store,
    store4,
    sts,
    within,
)

THREADS = 256
CHANNELS, PLACES = 32, 32  # of a block of the vector kernels
ROW = (CHANNELS + 4) * 4  # bytes of a tap's weights in shared memory; + 4 spreads the banks
MOST_TAPS = 48 * 1024 // ROW  # whose weights fit in shared memory
# (taps, stride) of the windows. With 1 tap the stride is a number of the launch; it serves 5x5 at
# stride 2 too, where a pixel is met by 6 outputs and the cache is fast enough for that.
WINDOWS = ((7, 1), (5, 1), (3, 2), (3, 1), (1, 1))
_KIND = {1: "scalar", 4: "vector"}  # by lanes: the channels of a thread


def forward_kernel(lanes: int, taps: int, stride: int) -> Kernel:
    constants = (("lanes", lanes), ("taps", taps), ("stride", stride))
    name = f"depthwise_forward_{_KIND[lanes]}_{window_name(taps, stride)}"
    return Kernel(name, _forward, constants, THREADS, *_room(lanes, taps * taps))


def grad_input_kernel(lanes: int) -> Kernel:
    constants = (("lanes", lanes),)
    name = f"depthwise_grad_input_{_KIND[lanes]}"
    return Kernel(name, _grad_input, constants, THREADS, *_room(lanes, 9))


def _room(lanes: int, taps: int) -> tuple[int, int]:
    """Blocks on one SM, and shared memory; a launch has what its own taps take."""
    return (2, ROW * taps) if lanes == 4 else (4, 0)


def kernels() -> list[Kernel]:
    """Every kernel that can be launched (vector ones with shared memory for square kernels)."""
    return [
        *(forward_kernel(lanes, *window) for lanes in (4, 1) for window in WINDOWS),
        *(grad_input_kernel(lanes) for lanes in (4, 1)),
    ]


def window_name(taps: int, stride: int) -> str:
    return f"{taps}s{stride}" if taps > 1 else "any"


def _outputs(lanes: int, taps: int, stride: int) -> int:
    """How many outputs a thread has along u."""
    return 8 if taps > 3 or (lanes, taps, stride) == (1, 3, 1) else 4


def _place(lanes: int) -> Any:
    """place(...): the thread's channel k (of `lanes`), its v, its tile along u, its image n."""
    vector = lanes == 4

    def place(
        last: Any, K: Any, c_n: Any, c_f: Any, c_s: Any, OV: Any, v_f: Any, v_s: Any,
        tiles: Any, t_f: Any, t_s: Any,
    ) -> Any:  # fmt: skip
        # c_n: chunks of 32 channels (vector) or channels (scalar), with its reciprocal.
        block, me = i32(cuda.blockIdx.x), i32(cuda.threadIdx.x)
        i = block if vector else i32(block * THREADS + me)
        rest = divide(i, c_f, c_s) if last else i
        k = i32(i - rest * c_n) if last else i32(0)
        if vector:
            k, rest = i32(k * CHANNELS + (me & 7) * 4), i32(rest * PLACES + (me >> 3))
        line = divide(rest, v_f, v_s)
        v = i32(rest - line * OV)
        rest = divide(line, t_f, t_s)
        tile = i32(line - rest * tiles)
        if not last:
            n = divide(rest, c_f, c_s)
            return i32(rest - n * c_n), v, tile, n
        return k, v, tile, rest

    return inline(place)


def _weights(lanes: int) -> tuple[Any, Any]:
    """prepare(...): where channel k's weights begin; fetch(into, w, at): read at."""
    if lanes == 1:

        def prepare(w: Any, k: Any, K: Any, taps: Any, f: Any, s: Any) -> Any:
            return i32(k * taps)

        def fetch(into: Any, w: Any, at: Any) -> None:
            into[0] = load_nc(w, at)

    else:

        def prepare(w: Any, k: Any, K: Any, taps: Any, f: Any, s: Any) -> Any:
            mine = i32((cuda.threadIdx.x & 7) * 4)
            first = i32(k - mine)
            count, i = i32(min(K - first, CHANNELS) * taps), i32(cuda.threadIdx.x)
            while i < count:
                c = divide(i, f, s)
                to = i32(shared() + (i - c * taps) * ROW + c * 4)
                sts(to, load_nc(w, i32(first * taps + i)))
                i = i32(i + THREADS)
            barrier()
            return i32(shared() + mine * 4)

        def fetch(into: Any, w: Any, at: Any) -> None:
            v = lds4(at)
            into[0], into[1], into[2], into[3] = v[0], v[1], v[2], v[3]

    return inline(prepare), inline(fetch)


def _access(lanes: int) -> tuple[Any, Any]:
    """read(...): pixel i of a line into place i; write(p, at, values, i): place i, of `lanes`."""
    if lanes == 1:

        def read(p: Any, at: Any, i: Any, step: Any, wanted: Any, into: Any) -> None:
            into[i] = load_if(p, at, i, step, wanted)

        def write(p: Any, at: Any, values: Any, i: Any) -> None:
            store(p, at, values[i])

    else:

        def read(p: Any, at: Any, i: Any, step: Any, wanted: Any, into: Any) -> None:
            v = load4_if(p, at, i, step, wanted)
            i = 4 * i
            into[i], into[i + 1], into[i + 2], into[i + 3] = v[0], v[1], v[2], v[3]

        def write(p: Any, at: Any, values: Any, i: Any) -> None:
            i = 4 * i
            store4(p, at, values[i], values[i + 1], values[i + 2], values[i + 3])

    return inline(read), inline(write)


def _seen(pixels: int, taps: int) -> Any:
    """inside(u, step, size): bit i tells whether pixel u + i * step of `pixels` is in the image."""

    def inside(u: Any, step: Any, size: Any) -> Any:
        if taps > 1:  # step is 1
            return ones(i32(max(-u, 0)), i32(min(size - u, pixels)))
        bits = i32(0)
        for i in range(pixels):
            if within(i32(u + i * step), size):
                bits = i32(bits | (1 << i))
        return bits

    return inline(inside)


def _window(lanes: int, outputs: int, taps: int, stride: int) -> Any:
    """window(...): adds `taps` taps of one line to the sums.

    Pixel i of the line lies at `at` + i * `step`, and is 0 where bit i of `inside` is; the taps'
    weights are at wt, `wu` apart.
    """
    pixels = (outputs - 1) * stride + taps
    numbers = pixels * lanes
    read, _ = _access(lanes)
    _, fetch = _weights(lanes)

    def window(
        sums: Any, x: Any, at: Any, step: Any, inside: Any, w: Any, wt: Any, wu: Any
    ) -> None:
        line = cuda.local.array(numbers, types.float32)
        weight = cuda.local.array(lanes, types.float32)
        for i in range(pixels):
            read(x, at, i, step, i32(inside & (1 << i)), line)
        for t in range(taps):
            fetch(weight, w, i32(wt + t * wu))
            for j in range(outputs):
                for c in range(lanes):
                    sums[j * lanes + c] += line[(j * stride + t) * lanes + c] * weight[c]

    return inline(window)


def _forward(lanes: int, taps: int, stride: int) -> Callable[..., None]:
    zero, outputs = types.float32(0), _outputs(lanes, taps, stride)
    size = outputs * lanes
    place, window = _place(lanes), _window(lanes, outputs, taps, stride)
    inside = _seen((outputs - 1) * stride + taps, taps)
    prepare, _ = _weights(lanes)
    _, write = _access(lanes)

    def depthwise_forward(
        x: F32, w: F32, b: F32, y: F32, has_bias: I32, relu: I32,
        last: I32, N: I32, K: I32, c_n: I32, c_f: I32, c_s: I32, v_f: I32, v_s: I32,
        tiles: I32, t_f: I32, t_s: I32, s_f: I32, s_s: I32, depth: I32,
        U: I32, V: I32, IU: I32, IV: I32, OU: I32, OV: I32,
        stride_u: I32, stride_v: I32, pad_u: I32, pad_v: I32, dil_u: I32, dil_v: I32,
        xn: I32, xc: I32, xu: I32, xv: I32, yn: I32, yc: I32, yu: I32, yv: I32,
        w_f: I32, w_s: I32, w0: I32, wu: I32, wv: I32, wm: I32,
    ) -> None:  # fmt: skip
        """The input channels of k are k // share * depth and the next depth - 1; s is 1 / share."""
        k, v, tile, n = place(last, K, c_n, c_f, c_s, OV, v_f, v_s, tiles, t_f, t_s)
        weights = i32(prepare(w, i32(k * depth), K, i32(U * V), w_f, w_s) + w0)
        if k >= K or n >= N:
            return
        step = stride_u if taps == 1 else i32(1)
        first = i32(tile * outputs)
        sums = cuda.local.array(size, types.float32)
        for i in range(size):
            sums[i] = zero
        image = i32(n * xn + divide(k, s_f, s_s) * depth * xc)
        u, tu = i32(first * stride_u - pad_u), i32(0)
        while tu < U:
            bits = inside(u, step, IU)
            h, tv = i32(v * stride_v - pad_v), i32(0)
            while tv < V:
                if within(h, IV):
                    at, wt = i32(image + h * xv + u * xu), i32(weights + tv * wv + tu * wu)
                    m = i32(0)
                    while m < depth:
                        window(sums, x, at, i32(step * xu), bits, w, wt, wu)
                        at, wt, m = i32(at + xc), i32(wt + wm), i32(m + 1)
                h, tv = i32(h + dil_v), i32(tv + 1)
            u, tu = i32(u + taps * dil_u), i32(tu + taps)
        if has_bias:
            for c in range(lanes):
                bias = load_nc(b, i32(k + c))
                for j in range(outputs):
                    sums[j * lanes + c] += bias
        if relu:
            for i in range(size):
                sums[i] = zero if sums[i] < zero else sums[i]
        to = i32(n * yn + k * yc + first * yu + v * yv)
        for j in range(outputs):
            if i32(first + j) < OU:
                write(y, i32(to + j * yu), sums, j)

    return depthwise_forward


@inline
def _first_tap(i: Any, stride: Any, dilation: Any, taps: Any) -> Any:
    """The first tap t for which i - t * dilation >= 0 is a multiple of the stride, and of which
    number; `taps` where there is none."""
    t = i32(0)
    while t < taps and i >= 0 and rem(i, stride) != 0:
        i, t = i32(i - dilation), i32(t + 1)
    if i < 0:
        return taps, i32(0)
    return t, div(i, stride)


def _grad_input(lanes: int) -> Callable[..., None]:
    zero, outputs = types.float32(0), 4
    size = outputs * lanes
    place, window, inside = _place(lanes), _window(lanes, outputs, 1, 1), _seen(outputs, taps=2)
    prepare, _ = _weights(lanes)
    _, write = _access(lanes)

    def depthwise_grad_input(
        gy: F32, w: F32, gx: F32,
        last: I32, N: I32, K: I32, c_n: I32, c_f: I32, c_s: I32, v_f: I32, v_s: I32,
        tiles: I32, t_f: I32, t_s: I32, depth: I32,
        U: I32, V: I32, IU: I32, IV: I32, OU: I32, OV: I32,
        stride_u: I32, stride_v: I32, pad_u: I32, pad_v: I32, dil_u: I32, dil_v: I32,
        xn: I32, xc: I32, xu: I32, xv: I32, yn: I32, yc: I32, yu: I32, yv: I32,
        w_f: I32, w_s: I32, w0: I32, wu: I32, wv: I32, wm: I32,
        jump_u: I32, jump_v: I32, back_u: I32, back_v: I32,
    ) -> None:  # fmt: skip
        """I is gy, O is gx; a tap that fits is followed by one `jump` taps on, `back` lines up."""
        k, v, tile, n = place(last, K, c_n, c_f, c_s, OV, v_f, v_s, tiles, t_f, t_s)
        weights = i32(prepare(w, i32(k * depth), K, i32(U * V), w_f, w_s) + w0)
        if k >= K or n >= N:
            return
        # This thread's outputs: first, first + stride_u, ...; what the taps of the last one meet.
        group = div(tile, stride_u)
        first = i32((group * outputs - group) * stride_u + tile)
        reach = i32(first + (outputs - 1) * stride_u + pad_u)
        tu, u = _first_tap(reach, stride_u, dil_u, U)
        u = i32(u - (outputs - 1))
        tv0, h0 = _first_tap(i32(v + pad_v), stride_v, dil_v, V)
        sums = cuda.local.array(size, types.float32)
        for i in range(size):
            sums[i] = zero
        image = i32(n * xn + k * depth * xc)
        while tu < U and u > -outputs:
            bits, h, tv = inside(u, i32(1), IU), h0, tv0
            while tv < V and h >= 0:
                if h < IV:
                    at, wt = i32(image + h * xv + u * xu), i32(weights + tv * wv + tu * wu)
                    m = i32(0)
                    while m < depth:
                        window(sums, gy, at, xu, bits, w, wt, wu)
                        at, wt, m = i32(at + xc), i32(wt + wm), i32(m + 1)
                h, tv = i32(h - back_v), i32(tv + jump_v)
            u, tu = i32(u - back_u), i32(tu + jump_u)
        to = i32(n * yn + k * yc + v * yv)
        for j in range(outputs):
            u = i32(first + j * stride_u)
            if u < OU:
                write(gx, i32(to + u * yu), sums, j)

    return depthwise_grad_input


def supports(spec: Any, dtype: Any) -> bool:
    """Float32, one or two axes, zero padding, one input channel a group; indices of 32 bits."""
    shapes = spec.x_shape, spec.y_shape
    sizes = *map(prod, shapes), prod(spec.w_shape)
    # Along each axis, how far from the image's first number a thread may begin: in the padding too.
    reach = (
        (n + 16) * max(shape[1] * prod(shape[3 + i :]) for shape in shapes)
        for i, n in enumerate(spec.padded)
    )
    return (
        dtype == "float32"
        and spec.nd <= 2
        and spec.padding_mode == "zeros"
        and spec.w_shape[1] == 1
        and min(sizes) > 0
        and max(*sizes, *reach) < 2**31 - 2**20  # threads look a little beyond
        and max(*spec.stride, *spec.dilation) < 2**27  # some look 8 strides beyond
    )


def _lanes(spec: Any, channels_last: bool) -> int:
    k, c = spec.w_shape[0], spec.groups
    vector = channels_last and c % 4 == 0 and k == c
    return 4 if vector and prod(spec.kernel) <= MOST_TAPS else 1


def _launch(
    device: Any, kernel: Kernel, n: int, channels: int, tiles: int, last: bool, numbers: Any
) -> Callable[..., None]:
    """Prepare a kernel that has `place`, for results of `channels` channels."""
    lanes, lines = dict(kernel.constants)["lanes"], numbers["OV"]
    taps = numbers["U"] * numbers["V"]
    chunks, places = channels, n * tiles * lines
    blocks = -(-channels * places // THREADS)
    if lanes == 4:
        kernel = replace(kernel, shared=ROW * taps)
        chunks = -(-channels // CHANNELS)
        blocks = chunks * -(-places // PLACES)
        numbers.update({name: numbers[name] * ROW for name in ("w0", "wu", "wv")})
    numbers.update(last=last, N=n, K=channels, c_n=chunks, tiles=tiles)
    for name, size in ("c", chunks), ("v", lines), ("t", tiles), ("w", taps):
        numbers[name + "_f"], numbers[name + "_s"] = reciprocal(size)
    return device.prepare(kernel, (blocks, 1, 1), **numbers)


def forward(
    device: Any, spec: Any, dtype: Any, channels_last: bool, bias: bool = False, relu: bool = False
) -> Callable[..., None]:
    """run(x, w, b, y): y = relu(conv(x, w) + b).

    x and y are in one memory format, at multiples of 16 bytes; w is contiguous (K, 1, *kernel), b
    is None where it is not asked for.
    """
    channels, lanes = (spec.groups, spec.w_shape[0]), _lanes(spec, channels_last)
    axes, flags = axes_of(spec), {"has_bias": bias, "relu": relu}
    return _forward_plan(device, spec, axes, channels, channels_last, lanes, flags)


def _forward_plan(
    device: Any, spec: Any, axes: Axes, channels: tuple[int, int], last: bool, lanes: int,
    flags: dict[str, bool], flip: bool = False,
) -> Callable[..., None]:  # fmt: skip
    """A launch of the forward kernel from channels[0] to channels[1] channels."""
    before, after = channels
    u, taps = window_axis(axes, last, WINDOWS), prod(spec.kernel)
    window = axes[u].window(WINDOWS)
    numbers = numbers_of(axes, u, x=(before, last), y=(after, last))
    depth = max(before // after, 1)
    numbers.update(w0=0, wm=taps, depth=depth, **flags)
    numbers["s_f"], numbers["s_s"] = reciprocal(max(after // before, 1))
    if flip:
        numbers.update(w0=taps - 1, wu=-numbers["wu"], wv=-numbers["wv"])
    tiles = -(-axes[u].y // _outputs(lanes, *window))
    kernel = forward_kernel(lanes, *window)
    return _launch(device, kernel, spec.x_shape[0], after, tiles, last, numbers)


def grad_input(device: Any, spec: Any, dtype: Any, channels_last: bool) -> Callable[..., None]:
    """run(gy, w, gx), the arrays as for `forward`."""
    channels, lanes = (spec.w_shape[0], spec.groups), _lanes(spec, channels_last)
    axes = tuple(replace(axis, x=axis.y, y=axis.x) for axis in axes_of(spec))
    h, w = axes
    if h.stride == w.stride == 1:
        h, w = (replace(a, pad=(a.taps - 1) * a.dilation - a.pad) for a in axes)
        flags = {"has_bias": False, "relu": False}
        run = _forward_plan(device, spec, (h, w), channels, channels_last, lanes, flags, True)
        return lambda gy, w, gx: run(gy, w, None, gx)
    u = window_axis((h, w), channels_last, ((1, 1),))
    numbers = numbers_of((h, w), u, x=(channels[0], channels_last), y=(channels[1], channels_last))
    numbers.update(w0=0, wm=prod(spec.kernel), depth=channels[0] // channels[1])
    for axis, name in (axes[u], "u"), (axes[1 - u], "v"):
        common = gcd(axis.stride, axis.dilation)
        numbers["jump_" + name] = axis.stride // common
        numbers["back_" + name] = axis.dilation // common
    stride = axes[u].stride
    tiles = min(stride * -(-axes[u].y // (4 * stride)), axes[u].y)  # fewer: of a pixel each
    kernel = grad_input_kernel(lanes)
    return _launch(device, kernel, spec.x_shape[0], channels[1], tiles, channels_last, numbers)
