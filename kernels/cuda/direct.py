"""Direct convolution: one thread an output number. Any shape; the reference among the kernels.

Threads are numbered as the result lies in memory: neighbours compute neighbouring pixels of NCHW,
or neighbouring channels of channels-last, so that a warp's loads and stores are adjacent.

    forward             blocks of 128 threads over N*K*O*P*Q; each sums C/groups * T*R*S products
    gradient by input   the same over N*C*D*H*W; sums K/groups * the taps that meet the pixel,
                        both a tap at a time: sums of short sums have smaller rounding errors
    gradient by weight  blocks, one a number of K*C/groups*T*R*S; its 128 threads share the
                        pixels, and their sums are added up in a tree: always the same order

Three spatial axes: output `o p q`, input `d h w`, kernel `t r s`; with fewer, the first are of size
1. Padding of every mode is resolved inside: "zeros" skips what is outside, the others fold the
index back into the image. Shared memory: none, but 128 sums for the gradient by weight.
"""

from collections.abc import Callable
from math import prod
from typing import Any

from numba import cuda, types

from gpuconv.kernels.cuda.compiler import I32, Data, Kernel
from gpuconv.kernels.cuda.plan import blocks
from gpuconv.kernels.cuda.ptx import (
    barrier,
    div,
    i32,
    inline,
    lds,
    lds64,
    load_nc,
    rem,
    shared,
    store,
    sts,
    sts64,
)

THREADS = 128
DTYPES = ("float32", "float64")
MODES = ("zeros", "reflect", "replicate", "circular")


def forward_kernel(dtype: str, mode: str, channels_last: bool) -> Kernel:
    layout = "nhwc" if channels_last else "nchw"
    constants = (("dtype", dtype), ("mode", mode), ("channels_last", channels_last))
    return Kernel(f"direct_forward_{layout}_{mode}_{dtype}", _forward, constants, THREADS)


def grad_input_kernel(dtype: str, channels_last: bool) -> Kernel:
    layout = "nhwc" if channels_last else "nchw"
    constants = (("dtype", dtype), ("channels_last", channels_last))
    return Kernel(f"direct_grad_input_{layout}_{dtype}", _grad_input, constants, THREADS)


def grad_weight_kernel(dtype: str, mode: str) -> Kernel:
    shared_bytes = THREADS * (4 if dtype == "float32" else 8)
    constants = (("dtype", dtype), ("mode", mode))
    return Kernel(
        f"direct_grad_weight_{mode}_{dtype}", _grad_weight, constants, THREADS, 1, shared_bytes
    )


def kernels() -> list[Kernel]:
    """Every kernel that can be launched."""
    return [
        *(forward_kernel(d, m, c) for d in DTYPES for m in MODES for c in (False, True)),
        *(grad_input_kernel(d, c) for d in DTYPES for c in (False, True)),
        *(grad_weight_kernel(d, m) for d in DTYPES for m in MODES),
    ]


def fold(mode: str) -> Any:
    """index(i, n): where in 0..n-1 the pixel i of the padded image comes from, -1 for nowhere.

    i is from -n to 2n - 1, as far as the modes allow padding ("replicate": anything).
    """

    if mode == "zeros":

        def index(i: Any, n: Any) -> Any:
            return i32(-1) if i >= n else i

    elif mode == "reflect":

        def index(i: Any, n: Any) -> Any:
            j = i if i >= 0 else i32(-i)
            return j if j < n else i32(2 * (n - 1) - j)

    elif mode == "replicate":

        def index(i: Any, n: Any) -> Any:
            return i32(min(max(i, 0), n - 1))

    else:

        def index(i: Any, n: Any) -> Any:
            return i32(i + (n if i < 0 else 0) - (n if i >= n else 0))

    return inline(index)


def _forward(dtype: str, mode: str, channels_last: bool) -> Callable[..., None]:
    zero, index = getattr(types, dtype)(0), fold(mode)

    def direct_forward(
        x: Data, w: Data, b: Data, add: Data, y: Data,
        has_bias: I32, has_add: I32, relu: I32, total: I32,
        K: I32, KG: I32, CG: I32, T: I32, R: I32, S: I32,
        D: I32, H: I32, W: I32, OD: I32, P: I32, Q: I32,
        stride_d: I32, stride_h: I32, stride_w: I32,
        pad_d: I32, pad_h: I32, pad_w: I32, dil_d: I32, dil_h: I32, dil_w: I32,
        xn: I32, xc: I32, xd: I32, xh: I32, xw: I32,
    ) -> None:  # fmt: skip
        i = i32(cuda.blockIdx.x * THREADS + cuda.threadIdx.x)
        if i >= total:
            return
        k, rest = (rem(i, K), div(i, K)) if channels_last else (i32(0), i)
        q, rest = rem(rest, Q), div(rest, Q)
        p, rest = rem(rest, P), div(rest, P)
        o, n = rem(rest, OD), div(rest, OD)
        if not channels_last:
            k, n = rem(n, K), div(n, K)
        d0, h0 = i32(o * stride_d - pad_d), i32(p * stride_h - pad_h)
        w0 = i32(q * stride_w - pad_w)
        image, channel = i32(n * xn + div(k, KG) * CG * xc), i32(T * R * S)
        tap = i32(k * CG * channel)
        total_sum = zero
        t = i32(0)
        while t < T:
            d = index(i32(d0 + t * dil_d), D)
            r = i32(0)
            while r < R:
                h = index(i32(h0 + r * dil_h), H)
                s = i32(0)
                while s < S:
                    v = index(i32(w0 + s * dil_w), W)
                    if d >= 0 and h >= 0 and v >= 0:
                        at, wt = i32(image + d * xd + h * xh + v * xw), tap
                        c, tap_sum = i32(0), zero
                        while c < CG:
                            tap_sum += load_nc(x, at) * load_nc(w, wt)
                            at, wt, c = i32(at + xc), i32(wt + channel), i32(c + 1)
                        total_sum += tap_sum
                    tap, s = i32(tap + 1), i32(s + 1)
                r = i32(r + 1)
            t = i32(t + 1)
        if has_bias:
            total_sum += load_nc(b, k)
        if has_add:
            total_sum += load_nc(add, i)
        if relu:
            total_sum = zero if total_sum < zero else total_sum
        store(y, i, total_sum)

    return direct_forward


def _grad_input(dtype: str, channels_last: bool) -> Callable[..., None]:
    zero = getattr(types, dtype)(0)

    def direct_grad_input(
        gy: Data, w: Data, gx: Data, total: I32,
        C: I32, KG: I32, CG: I32, T: I32, R: I32, S: I32,
        D: I32, H: I32, W: I32, OD: I32, P: I32, Q: I32,
        stride_d: I32, stride_h: I32, stride_w: I32,
        pad_d: I32, pad_h: I32, pad_w: I32, dil_d: I32, dil_h: I32, dil_w: I32,
        yn: I32, yk: I32, yo: I32, yp: I32, yq: I32,
    ) -> None:  # fmt: skip
        i = i32(cuda.blockIdx.x * THREADS + cuda.threadIdx.x)
        if i >= total:
            return
        c, rest = (rem(i, C), div(i, C)) if channels_last else (i32(0), i)
        v, rest = rem(rest, W), div(rest, W)
        h, rest = rem(rest, H), div(rest, H)
        d, n = rem(rest, D), div(rest, D)
        if not channels_last:
            c, n = rem(n, C), div(n, C)
        group, channel = div(c, CG), i32(T * R * S)
        image = i32(n * yn + group * KG * yk)
        tap = i32((group * KG * CG + rem(c, CG)) * channel)
        total_sum = zero
        t = i32(0)
        while t < T:
            # The output row whose tap t lies on this row of the input, where there is one.
            o = i32(d + pad_d - t * dil_d)
            o = div(o, stride_d) if o >= 0 and rem(o, stride_d) == 0 else OD
            r = i32(0)
            while r < R:
                p = i32(h + pad_h - r * dil_h)
                p = div(p, stride_h) if p >= 0 and rem(p, stride_h) == 0 else P
                s = i32(0)
                while s < S:
                    q = i32(v + pad_w - s * dil_w)
                    q = div(q, stride_w) if q >= 0 and rem(q, stride_w) == 0 else Q
                    if o < OD and p < P and q < Q:
                        at, wt = i32(image + o * yo + p * yp + q * yq), tap
                        k, tap_sum = i32(0), zero
                        while k < KG:
                            tap_sum += load_nc(gy, at) * load_nc(w, wt)
                            at, wt, k = i32(at + yk), i32(wt + CG * channel), i32(k + 1)
                        total_sum += tap_sum
                    tap, s = i32(tap + 1), i32(s + 1)
                r = i32(r + 1)
            t = i32(t + 1)
        store(gx, i, total_sum)

    return direct_grad_input


def _grad_weight(dtype: str, mode: str) -> Callable[..., None]:
    zero, index = getattr(types, dtype)(0), fold(mode)
    size = 4 if dtype == "float32" else 8
    get, put = (lds, sts) if dtype == "float32" else (lds64, sts64)

    def direct_grad_weight(
        gy: Data, x: Data, gw: Data, pixels: I32,
        KG: I32, CG: I32, T: I32, R: I32, S: I32,
        D: I32, H: I32, W: I32, OD: I32, P: I32, Q: I32,
        stride_d: I32, stride_h: I32, stride_w: I32,
        pad_d: I32, pad_h: I32, pad_w: I32, dil_d: I32, dil_h: I32, dil_w: I32,
        xn: I32, xc: I32, xd: I32, xh: I32, xw: I32,
        yn: I32, yk: I32, yo: I32, yp: I32, yq: I32,
    ) -> None:  # fmt: skip
        i, me = i32(cuda.blockIdx.x), i32(cuda.threadIdx.x)
        s, rest = rem(i, S), div(i, S)
        r, rest = rem(rest, R), div(rest, R)
        t, rest = rem(rest, T), div(rest, T)
        c, k = rem(rest, CG), div(rest, CG)
        d0, h0, w0 = i32(t * dil_d - pad_d), i32(r * dil_h - pad_h), i32(s * dil_w - pad_w)
        x0, y0 = i32((div(k, KG) * CG + c) * xc), i32(k * yk)
        part = zero
        pixel = me
        while pixel < pixels:
            q, rest = rem(pixel, Q), div(pixel, Q)
            p, rest = rem(rest, P), div(rest, P)
            o, n = rem(rest, OD), div(rest, OD)
            d = index(i32(o * stride_d + d0), D)
            h = index(i32(p * stride_h + h0), H)
            v = index(i32(q * stride_w + w0), W)
            if d >= 0 and h >= 0 and v >= 0:
                at = i32(x0 + n * xn + d * xd + h * xh + v * xw)
                gt = i32(y0 + n * yn + o * yo + p * yp + q * yq)
                part += load_nc(x, at) * load_nc(gy, gt)
            pixel = i32(pixel + THREADS)
        place = i32(shared() + me * size)
        put(place, part)
        half = i32(THREADS // 2)
        while half > 0:
            barrier()
            if me < half:
                put(place, get(place) + get(i32(place + half * size)))
            half = i32(half >> 1)
        if me == 0:
            store(gw, i, get(place))

    return direct_grad_weight


def supports(spec: Any, dtype: Any) -> bool:
    """Float32 and float64, indices of 32 bits (those just past the end too), no empty batch."""
    sizes = (prod(spec.x_shape), prod(spec.y_shape), prod(spec.w_shape))
    most = max(*sizes, *spec.padded, *spec.stride, *spec.dilation)
    known = dtype.name in DTYPES and dtype.isnative
    return known and min(sizes) > 0 and most < 2**31 - THREADS


def forward(
    device: Any,
    spec: Any,
    dtype: Any,
    channels_last: bool,
    bias: bool = False,
    add: bool = False,
    relu: bool = False,
) -> Callable[..., None]:
    """run(x, w, b, add, y): y = relu(conv(x, w) + b + add), x, y and add in one memory format.

    w is contiguous (K, C/groups, *kernel); b and add are None where they are not asked for.
    """
    numbers = _geometry(spec)
    numbers.update(_strides("xn xc xd xh xw", spec.x_shape, channels_last))
    total = prod(spec.y_shape)
    kernel = forward_kernel(dtype.name, spec.padding_mode, channels_last)
    numbers.update(has_bias=bias, has_add=add, relu=relu, total=total, K=spec.y_shape[1])
    return device.prepare(kernel, blocks(total, THREADS), **numbers)


def grad_input(device: Any, spec: Any, dtype: Any, channels_last: bool) -> Callable[..., Any]:
    """A launch of gx from gy and w, for zero padding."""
    numbers = _geometry(spec)
    numbers.update(_strides("yn yk yo yp yq", spec.y_shape, channels_last))
    total = prod(spec.x_shape)
    kernel = grad_input_kernel(dtype.name, channels_last)
    return device.prepare(kernel, blocks(total, THREADS), total=total, C=spec.x_shape[1], **numbers)


def grad_weight(
    device: Any, spec: Any, dtype: Any, channels_last: bool, gy_channels_last: bool
) -> Callable[..., Any]:
    """A launch of gw from gy and x, each in its own memory format."""
    numbers = _geometry(spec)
    numbers.update(_strides("xn xc xd xh xw", spec.x_shape, channels_last))
    numbers.update(_strides("yn yk yo yp yq", spec.y_shape, gy_channels_last))
    pixels = spec.y_shape[0] * prod(spec.y_shape[2:])
    kernel = grad_weight_kernel(dtype.name, spec.padding_mode)
    return device.prepare(kernel, (prod(spec.w_shape), 1, 1), pixels=pixels, **numbers)


def _three(numbers: Any, fill: int = 1) -> tuple[int, ...]:
    return (*(fill,) * (3 - len(numbers)), *numbers)


def _strides(names: str, shape: tuple[int, ...], channels_last: bool) -> dict[str, int]:
    """Strides in elements of (N, C, D, H, W), for a `shape` of one to three spatial axes."""
    _, c, *spatial = shape
    d, h, w = _three(spatial)
    if channels_last:
        strides = d * h * w * c, 1, h * w * c, w * c, c
    else:
        strides = c * d * h * w, d * h * w, h * w, w, 1
    return dict(zip(names.split(), strides, strict=True))


def _geometry(spec: Any) -> dict[str, int]:
    """The kernels' numbers that a ConvSpec decides."""
    named = {
        "T R S": _three(spec.kernel),
        "D H W": _three(spec.x_shape[2:]),
        "OD P Q": _three(spec.y_shape[2:]),
        "stride_d stride_h stride_w": _three(spec.stride),
        "pad_d pad_h pad_w": _three([before for before, _ in spec.padding], 0),
        "dil_d dil_h dil_w": _three(spec.dilation),
    }
    numbers = {"KG": spec.w_shape[0] // spec.groups, "CG": spec.w_shape[1]}
    for names, values in named.items():
        numbers.update(zip(names.split(), values, strict=True))
    return numbers
