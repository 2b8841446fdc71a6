"""Convolution with a 1x1 kernel: matrix products over the pixels, by `gemm`.

NCHW, an image at a time (or several small ones side by side), vectors along the pixels:

    y (K x pixels) = w (K x C)   x (C x pixels)
    gx (C x pixels) = w^T (C x K)  gy (K x pixels)

channels-last, vectors along the channels, nothing of x or gy is packed:

    y (pixels x K) = x (pixels x C)  w^T (C x K)
    gx (pixels x C) = gy (pixels x K)  w (K x C)

and for both gw (K x C) = sum over pixels gy x^T. With a stride, tables say where the used pixels
are; the gradient by input writes zeros to the others in the same pass.
"""

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from gpuconv.kernels.cpu.gemm import COLUMN, ROW
from gpuconv.kernels.cpu.gemm_packed import MANY, packed
from gpuconv.kernels.cpu.gemm_plan import Product, product

Array = Any
Run = Callable[..., None]
SMALL_IMAGE = 1024  # pixels below which NCHW images are put side by side
FEW_PIXELS = 400  # of an NCHW image: vectors along the channels, if the weight is packed


def supports(spec: Any, dtype: str, which: str) -> bool:
    """1x1 kernels without groups and padding."""
    return (
        spec.nd == 2
        and dtype in ("float32", "float64")
        and spec.kernel == (1, 1)
        and spec.groups == 1
        and not any(map(any, spec.padding))
    )


def forward(
    device: Any, spec: Any, dtype: str, last: bool, bias: bool, add: bool, relu: bool
) -> Run:
    """run(x, w, b, add, y): y = x * w + b + add, then negative numbers become 0 if `relu`.

    Where it saves time, a plan whose weight can be packed beforehand, by `gemm_packed`.
    """
    plain = _plain(device, spec, dtype, last, bias, add, relu)
    if last or prod(spec.y_shape[2:]) <= FEW_PIXELS:
        return packed(device, spec, dtype, last, relu, plain)
    return plain


def _plain(
    device: Any, spec: Any, dtype: str, last: bool, bias: bool, add: bool, relu: bool
) -> Run:
    (n, c, h, w), k, pixels = spec.x_shape, spec.w_shape[0], prod(spec.y_shape[2:])
    tables: tuple[Array, ...] = ()
    if last:
        tables = _used(spec, n, h * w * c, c)
        p = Product(
            m=n * pixels, n=k, k=c, a_row=c, a_k=1, b_k=1, b_n=c, c_row=k,
            bias=COLUMN if bias else 0, relu=relu, a_lines=bool(tables),
        )  # fmt: skip
        multiply = product(device, p, dtype)
        return lambda x, weight, b, r, y: multiply(x, weight, y, b, r, *tables)
    joined = _joined(spec)
    images = n if joined else 1
    if joined or spec.stride != (1, 1):
        tables = _used(spec, images, c * h * w, 1) or (
            _table(images, c * h * w, np.arange(pixels)),
        )
    if joined:
        tables = (*tables, _table(n, k * pixels, np.arange(pixels)))
    p = Product(
        m=k, n=images * pixels, k=c, a_row=c, a_k=1, b_k=h * w, b_n=1, c_row=pixels,
        b_image=c * h * w, c_image=k * pixels, batch=n // images, bias=ROW if bias else 0,
        relu=relu, b_table="n" if tables else "", c_columns=joined,
    )  # fmt: skip
    multiply = product(device, p, dtype)
    return lambda x, weight, b, r, y: multiply(weight, x, y, b, r, *tables)


def grad_input(device: Any, spec: Any, dtype: str, last: bool) -> Run:
    """run(gy, w, gx)."""
    (n, c, h, w), k, pixels = spec.x_shape, spec.w_shape[0], prod(spec.y_shape[2:])
    strided = spec.stride != (1, 1)
    tables: tuple[Array, ...] = ()
    if last:
        tables = _used(spec, n, h * w * c, c)
        p = Product(
            m=n * pixels, n=c, k=k, a_row=k, a_k=1, b_k=c, b_n=1, c_row=c, c_lines=strided,
            spread=n * h * w * c if strided else 0,
        )  # fmt: skip
        multiply = product(device, p, dtype)

        def plain(gy: Array, weight: Array, b: None, add: None, gx: Array) -> None:
            multiply(gy, weight, gx, None, None, *tables)

        run: Run = plain
        if not strided and n * pixels >= MANY:
            swapped = replace(
                spec, x_shape=spec.y_shape, y_shape=spec.x_shape, w_shape=(c, k, 1, 1)
            )
            run = packed(device, swapped, dtype, last, False, plain, by_rows=True)
        return lambda gy, weight, gx: run(gy, weight, None, None, gx)
    joined = _joined(spec) and not strided
    images = n if joined else 1
    if strided:
        tables = _used(spec, 1, 0, 1)
    elif joined:
        at = np.arange(pixels)
        tables = _table(n, k * pixels, at), _table(n, c * pixels, at)
    p = Product(
        m=c, n=images * pixels, k=k, a_row=1, a_k=c, b_k=pixels, b_n=1, c_row=h * w,
        b_image=k * pixels, c_image=c * h * w, batch=n // images, b_table="n" if joined else "",
        c_columns=joined or strided, spread=h * w if strided else 0,
    )  # fmt: skip
    multiply = product(device, p, dtype)
    return lambda gy, weight, gx: multiply(weight, gy, gx, None, None, *tables)


def grad_weight(device: Any, spec: Any, dtype: str, last: bool) -> Run:
    """run(gy, x, gw)."""
    (n, c, h, w), k, pixels = spec.x_shape, spec.w_shape[0], prod(spec.y_shape[2:])
    tables: tuple[Array, ...] = ()
    if last:
        tables = _used(spec, n, h * w * c, c)
        p = Product(
            m=k, n=c, k=n * pixels, a_row=1, a_k=k, b_k=c, b_n=1, c_row=c,
            b_table="k" if tables else "", exact=True,
        )  # fmt: skip
    else:
        tables = _used(spec, 1, 0, 1)
        p = Product(
            m=k, n=c, k=pixels, a_row=pixels, a_k=1, b_k=1, b_n=h * w, c_row=c,
            a_image=k * pixels, b_image=c * h * w, images=n, b_table="k" if tables else "",
            exact=True,
        )  # fmt: skip
    multiply = product(device, p, dtype)
    return lambda gy, x, gw: multiply(gy, x, gw, None, None, *tables)


def _joined(spec: Any) -> bool:
    """Whether vectors run across the ends of NCHW images."""
    return bool(spec.x_shape[0] > 1 and prod(spec.y_shape[2:]) < SMALL_IMAGE)


def _used(spec: Any, images: int, image: int, pixel: int) -> tuple[Array, ...]:
    """The offsets of the pixels that are used, in a tuple; none with stride 1, where all are."""
    if spec.stride == (1, 1):
        return ()
    w, (sh, sw), (p, q) = spec.x_shape[3], spec.stride, spec.y_shape[2:]
    at = np.arange(p)[:, None] * (sh * w) + np.arange(q) * sw
    return (_table(images, image, at.ravel() * pixel),)


def _table(images: int, image: int, offsets: Array) -> Array:
    """Offsets in several images, and one more that none has, to end with."""
    every = (np.arange(images)[:, None] * image + offsets).ravel()
    return np.append(every, -1).astype(np.int64)
