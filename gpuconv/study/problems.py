"""Small problems that launch every kernel: one table, run by `gpuconv kernels check` and by tests.

A problem is called with a backend and `Numbers`, and returns its results: arrays, in a list if
there are several. It runs on the reference too, from the same numbers, and again with these in
float64. Sizes are odd, a little above or below tiles and blocks, and take the emulator a fraction
of a second.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from gpuconv.shapes import ConvSpec, PoolSpec


class Numbers:
    """Random numbers, the same each time; `exact` holds those of float32 in float64 arrays."""

    def __init__(self, exact: bool = False) -> None:
        self.exact = exact
        self.random = np.random.default_rng(0)

    def held(self, x: Any, dtype: str) -> Any:
        """x, rounded to `dtype`; in memory as it was."""
        x = x.astype(dtype)
        return x.astype("float64") if self.exact else x

    def draw(self, shape: tuple[int, ...], dtype: str = "float32", last: bool = False) -> Any:
        """An array of a logical shape (N, C, *in), which lies as (N, *in, C) if `last`."""
        if not last:
            return self.held(self.random.standard_normal(shape), dtype)
        x = self.random.standard_normal((shape[0], *shape[2:], shape[1]))
        return np.moveaxis(self.held(x, dtype), -1, 1)


Problem = Callable[[Any, Numbers], Any]


def _format(last: bool) -> str:
    return "nhwc" if last else "nchw"


def _sizes(**sizes: Any) -> str:
    """ "x (2, 3, 7, 9), w (20, 3, 5, 5), stride 2"."""
    return ", ".join(f"{name.replace('_', ' ')} {size}" for name, size in sizes.items())


def _conv(
    x_shape: tuple[int, ...], w_shape: tuple[int, ...], dtype: str, last: bool, **options: Any
) -> Problem:
    """A convolution with a bias, and both gradients."""
    spec = ConvSpec.infer(x_shape, w_shape, **options)

    def run(be: Any, numbers: Numbers) -> Any:
        x, gy = (numbers.draw(shape, dtype, last) for shape in (x_shape, spec.y_shape))
        w, b = (numbers.draw(shape, dtype) for shape in (w_shape, w_shape[:1]))
        return (
            be.conv(spec, x, w, b),
            be.conv_grad_input(spec, gy, w),
            be.conv_grad_weight(spec, gy, x),
        )

    return run


def _splits(count: int) -> str:
    return f"{count} splits" if count > 1 else "not split"


def _tiled(tile: int, splits: int, last: bool) -> Problem:
    """Forward with every epilogue, and the gradient by input, by one of `tiled.CONFIGS`."""
    spec = ConvSpec.infer(*_TILED[0], **_TILED[1])

    def run(be: Any, numbers: Numbers) -> Any:
        x, gy, add = (
            numbers.draw(shape, last=last) for shape in (spec.x_shape, spec.y_shape, spec.y_shape)
        )
        w, b = (numbers.draw(shape) for shape in (spec.w_shape, spec.w_shape[:1]))
        if not hasattr(be, "device"):
            return np.maximum(be.conv(spec, x, w, b) + add, 0), be.conv_grad_input(spec, gy, w)
        from gpuconv.kernels.cuda import product, tiled

        how = tiled.CONFIGS[tile], splits
        y, gx = (be.empty_like_format(x, a.shape, a.dtype) for a in (gy, x))
        product.forward(be.device, spec, last, True, True, True, how)(x, w, b, add, y)
        parts = [how] * len(product.grad_input_problems(spec))
        product.grad_input(be.device, spec, last, parts)(gy, w, gx)
        return y, gx

    return run


def _weight(tile: int, splits: int, last: bool) -> Problem:
    """The gradient by weight by one of `weight.CONFIGS`."""
    spec = ConvSpec.infer(*_TILED[0], **_TILED[1])

    def run(be: Any, numbers: Numbers) -> Any:
        x, gy = (numbers.draw(shape, last=last) for shape in (spec.x_shape, spec.y_shape))
        if not hasattr(be, "device"):
            return be.conv_grad_weight(spec, gy, x)
        from gpuconv.kernels.cuda import weight

        how = weight.CONFIGS[tile], splits
        gw = be.device.empty(spec.w_shape, x.dtype)
        weight.grad_weight(be.device, spec, last, last, how)(gy, x, gw)
        return gw

    return run


def _depthwise(size: int, stride: int, last: bool, weight: bool) -> tuple[str, Problem]:
    """A depthwise convolution and its gradient by input, or by weight; with its label."""
    x_shape, w_shape = (2, 32, 9, 18), (32, 1, size, size)
    options: dict[str, Any] = {"padding": 1, "groups": 32}
    spec = ConvSpec.infer(x_shape, w_shape, stride, **options)

    def run(be: Any, numbers: Numbers) -> Any:
        x, gy = (numbers.draw(s, last=last) for s in (spec.x_shape, spec.y_shape))
        if weight:
            return be.conv_grad_weight(spec, gy, x)
        w = numbers.draw(spec.w_shape)
        return be.conv(spec, x, w), be.conv_grad_input(spec, gy, w)

    return f"{_format(last)}: {_sizes(x=x_shape, w=w_shape, stride=stride, **options)}", run


def _pool(x_shape: tuple[int, ...], kernel: Any, dtype: str, last: bool, **options: Any) -> Problem:
    """Both poolings and their gradients; divisors as a number and as an array."""
    spec = PoolSpec.infer(x_shape, kernel, **options)

    def run(be: Any, numbers: Numbers) -> Any:
        x, gy = (numbers.draw(shape, dtype, last) for shape in (x_shape, spec.y_shape))
        by = numbers.held(numbers.random.integers(1, 9, spec.y_shape[2:]), dtype)
        y, tap = be.max_pool(spec, x)
        return (
            y,
            tap,
            be.max_pool_grad(spec, gy, tap),
            be.avg_pool(spec, x, 9),
            be.avg_pool_grad(spec, gy, 9),
            be.avg_pool(spec, x, by),
            be.avg_pool_grad(spec, gy, by),
        )

    return run


def _norm(shape: tuple[int, ...], last: bool) -> Problem:
    """Batch norm in training, and its gradients."""

    def run(be: Any, numbers: Numbers) -> Any:
        x, gy = (numbers.draw(shape, last=last) for _ in range(2))
        w, b = (numbers.draw(shape[1:2]) for _ in range(2))
        y, mean, var, saved = be.batch_norm(x, w, b, 1e-5)
        return [y, mean, var, *be.batch_norm_grad(gy, w, saved)]

    return run


def _loss(shape: tuple[int, ...], last: bool) -> Problem:
    """Softmax cross entropy with class weights and smoothing, and its gradient."""

    def run(be: Any, numbers: Numbers) -> Any:
        x = numbers.draw(shape, last=last)
        w = abs(numbers.draw(shape[1:2]))
        target = numbers.random.integers(0, shape[1], (shape[0], *shape[2:]))
        g = numbers.draw(target.shape)
        losses, saved = be.softmax_cross_entropy(x, target, w, 0, 0.1)
        return [losses, be.softmax_cross_entropy_grad(g, saved, target, w, 0, 0.1)]

    return run


def _step(method: str, dtype: str, size: int) -> Problem:
    """One step of an optimizer: the parameter and the state after it."""
    state, place, options = _STEPS[method]

    def run(be: Any, numbers: Numbers) -> Any:
        w, gw = (numbers.draw((size,), dtype) for _ in range(2))
        kept = [numbers.held(np.full(size, 1 / (i + 1)), dtype) for i in range(state)]
        getattr(be, method)(w, gw, *kept, *place, **options)
        return [w, *kept]

    return run


# Method, how many arrays of state, what follows them, and the numbers.
_STEPS: dict[str, tuple[int, tuple[Any, ...], dict[str, Any]]] = {
    "sgd_step": (
        1,
        (False,),
        {"lr": 0.1, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.1, "nesterov": True},
    ),
    "adam_step": (
        3,
        (2,),
        {
            "lr": 0.1,
            "beta1": 0.9,
            "beta2": 0.99,
            "eps": 1e-8,
            "weight_decay": 0.1,
            "decoupled": False,
        },
    ),
    "rmsprop_step": (
        3,
        (),
        {"lr": 0.1, "alpha": 0.9, "eps": 1e-8, "weight_decay": 0.1, "momentum": 0.9},
    ),
}

# Three channels, which are widened to four; a stride, so four products for the gradient by input.
_TILED: Any = ((2, 3, 7, 9), (20, 3, 5, 5)), {"stride": 2, "padding": 2}
_TILED_SIZES = _sizes(x=_TILED[0][0], w=_TILED[0][1], **_TILED[1])

# In three dimensions and in float64, where no other family computes.
_DIRECT: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "zeros, groups, dilation": (
        (2, 4, 3, 7, 9), (6, 2, 2, 3, 3),
        {"padding": ((1, 0), (1, 2), (2, 1)), "groups": 2, "dilation": (1, 2, 1)},
    ),
    "reflect": ((1, 3, 4, 5, 6), (5, 3, 2, 3, 2), {"padding": "same", "padding_mode": "reflect"}),
    "replicate, stride": (
        (1, 2, 3, 6, 5), (3, 2, 3, 3, 3), {"padding": 2, "padding_mode": "replicate", "stride": 2},
    ),
    "circular": ((2, 3, 3, 4, 5), (4, 3, 2, 3, 3), {"padding": 1, "padding_mode": "circular"}),
}  # fmt: skip

PROBLEMS: dict[str, list[tuple[str, Problem]]] = {
    "direct": [
        (
            f"{name}, {_format(last)}, {dtype}: {_sizes(x=x, w=w, **options)}",
            _conv(x, w, dtype, last, **options),
        )
        for dtype in ("float32", "float64")
        for name, (x, w, options) in _DIRECT.items()
        for last in (False, True)
    ],
    "tiled": [
        (
            f"tile {tile}, {_splits(splits)}, {_format(last)}: {_TILED_SIZES}",
            _tiled(tile, splits, last),
        )
        for tile, splits in ((0, 1), (1, 1), (2, 1), (2, 3))
        for last in (False, True)
    ],
    "weight": [
        (
            f"tile {tile}, {_splits(splits)}, {_format(last)}: {_TILED_SIZES}",
            _weight(tile, splits, last),
        )
        for tile, splits in ((0, 1), (1, 1), (1, 3))
        for last in (False, True)
    ],
    "layout": [
        (f"split forward, nchw: {_TILED_SIZES}", _tiled(2, 3, False)),
        (f"split forward, nhwc: {_TILED_SIZES}", _tiled(2, 3, True)),
        (f"split gradient by weight: {_TILED_SIZES}", _weight(1, 3, False)),
    ],
    **{
        family: [
            _depthwise(size, stride, last, w)
            for size, stride in ((3, 1), (3, 2), (5, 1), (7, 1), (2, 1))
            for last in (False, True)
        ]
        for family, w in (("depthwise", False), ("depthwise_weight", True))
    },
    "pool": [
        (
            f"{_format(last)}, {dtype}: {_sizes(x=(2, c, 9, 11), window=k, **options)}",
            _pool((2, c, 9, 11), k, dtype, last, **options),
        )
        for c, k, options in (
            (12, 3, {"stride": 2, "padding": 1}),
            (5, (3, 2), {"stride": 2, "padding": 1, "ceil_mode": True}),
        )
        for dtype in ("float32", "float64")
        for last in (False, True)
    ],
    "pool_plane": [
        (f"{_format(last)}, {dtype}: x {shape}, all of it", _pool(shape, shape[2:], dtype, last))
        for shape in ((2, 33, 7, 9), (1, 9, 33, 37))
        for dtype in ("float32", "float64")
        for last in (False, True)
    ],
    "norm": [
        *(
            (f"{_format(last)}: x {shape}", _norm(shape, last))
            for shape in ((5, 3, 7, 9), (3, 5, 8, 12), (5, 33, 29, 29))
            for last in (False, True)
        ),
        ("x (70, 33)", _norm((70, 33), False)),
    ],
    "loss": [
        ("x (33, 129)", _loss((33, 129), False)),
        *(
            (f"{_format(last)}: x {shape}", _loss(shape, last))
            for shape in ((2, 21, 15, 17), (1, 10, 64, 64))
            for last in (False, True)
        ),
    ],
    "step": [
        (f"{method}, {dtype}: {size} numbers", _step(method, dtype, size))
        for method in _STEPS
        for dtype in ("float32", "float64")
        for size in (1027, 2048)
    ],
}
