"""The direct gradient by weight: any convolution, around the edges of tiles, units and lanes."""

import ctypes
import mmap
import sys
from typing import Any

import numpy as np
import pytest

from gpuconv.cpu.device import DEVICE
from gpuconv.kernels.cpu import direct, pointwise, weight, weight_lanes
from gpuconv.shapes import ConvSpec
from tests.cpu.conftest import PASSES, check_conv, launched, numbers

# x_shape, w_shape, stride, padding, dilation, groups
CASES: list[tuple[Any, ...]] = [
    ((1, 1, 1, 1), (1, 1, 1, 1), 1, 0, 1, 1),
    ((1, 1, 28, 28), (6, 1, 5, 5), 1, 2, 1, 1),
    ((3, 6, 14, 14), (16, 6, 5, 5), 1, 0, 1, 1),
    ((7, 3, 32, 32), (32, 3, 3, 3), 1, 1, 1, 1),
    ((2, 3, 45, 47), (64, 3, 7, 7), 2, 3, 1, 1),
    ((1, 3, 67, 70), (64, 3, 11, 11), 4, 2, 1, 1),
    ((5, 16, 32, 32), (16, 16, 3, 3), 1, 1, 1, 1),
    ((3, 16, 17, 16), (32, 16, 3, 3), 2, 1, 1, 1),
    ((3, 64, 8, 8), (64, 64, 3, 3), 1, 1, 1, 1),
    ((2, 128, 7, 7), (48, 128, 3, 3), 1, 1, 1, 1),
    ((2, 32, 11, 12), (96, 32, 1, 1), 2, 0, 1, 1),
    ((2, 40, 9, 9), (80, 40, 1, 1), 1, 1, 1, 1),
    ((1, 33, 10, 9), (33, 33, 3, 3), (1, 2), ((0, 1), (2, 0)), (2, 1), 1),
    ((2, 24, 12, 13), (49, 24, 2, 3), (2, 1), ((1, 2), (0, 3)), (1, 2), 1),
    ((2, 15, 9, 9), (15, 15, 3, 1), 1, (1, 0), 1, 1),
    ((2, 17, 9, 9), (17, 17, 1, 3), 1, (0, 1), 1, 1),
    ((2, 4, 6, 5), (4, 4, 6, 5), 1, 0, 1, 1),
    ((2, 4, 6, 5), (100, 4, 3, 3), 1, 4, 1, 1),
    ((2, 6, 9, 8), (8, 3, 3, 3), 1, 1, 1, 2),
    ((2, 33, 9, 8), (66, 11, 3, 3), 2, ((1, 0), (0, 1)), 1, 3),
    ((2, 64, 9, 8), (32, 16, 2, 2), 1, 0, 1, 4),
    ((1, 3, 2, 1700), (5, 3, 2, 3), 1, 1, 1, 1),
    ((1, 16, 3, 900), (16, 16, 3, 3), 1, 1, 1, 1),
    ((1, 24, 3, 900), (20, 24, 1, 3), (1, 1), ((0, 0), (1, 1)), 1, 1),
    ((9, 9, 7, 6), (7, 9, 3, 3), 1, 1, 1, 1),
]


def _spec(x: Any, w: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> ConvSpec:
    return ConvSpec.infer(x, w, stride, padding, dilation, groups)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_cases(isa: str, case: tuple[Any, ...], last: bool) -> None:
    check_conv(weight, "grad_weight", _spec(*case), last)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("case", CASES[1::4], ids=str)
def test_float64(isa: str, case: tuple[Any, ...], last: bool) -> None:
    check_conv(weight, "grad_weight", _spec(*case), last, "float64")


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("k", [1, 15, 16, 17, 31, 32, 33, 47, 48, 49, 64, 65, 80, 113])
@pytest.mark.parametrize("c", [1, 3, 7, 8, 9, 33])
def test_around_tiles(c: int, k: int, last: bool) -> None:
    check_conv(weight, "grad_weight", ConvSpec.infer((2, c, 6, 7), (k, c, 3, 2), 1, 1), last)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", [(3, 18, 21), (9, 19, 20), (2, 21, 18), (5, 40, 33)], ids=str)
@pytest.mark.parametrize("c", [3, 16, 24])
def test_around_units(c: int, shape: tuple[int, int, int], last: bool) -> None:
    n, h, w = shape
    for k in (16, 40):
        check_conv(weight, "grad_weight", ConvSpec.infer((n, c, h, w), (k, c, 3, 3), 1, 1), last)


@pytest.mark.parametrize("last", [False, True])
def test_many_tasks(last: bool) -> None:
    """Enough work that k, j and pixels are cut."""
    deep, wide = ((4, 256, 14, 14), (256, 256, 3, 3), 1), ((1, 64, 56, 56), (128, 64, 1, 1), 2)
    for x, w, stride in (deep, wide):
        check_conv(weight, "grad_weight", ConvSpec.infer(x, w, stride, w[2] // 2), last)


def test_which_kernel_takes_few_outputs() -> None:
    few = ConvSpec.infer((2, 16, 32, 32), (16, 16, 3, 3), 1, 1)
    many = ConvSpec.infer((2, 16, 32, 32), (256, 16, 3, 3), 1, 1)
    assert weight_lanes.fill(few, "float32") > 0.9
    assert weight_lanes.fill(ConvSpec.infer((2, 1, 9, 9), (6, 1, 5, 5)), "float32") == 0
    assert weight_lanes.fill(many, "float32") > 0.9
    for which in PASSES:
        assert weight.supports(few, "float32", which) == (which == "grad_weight")


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("sizes", [(16, 16), (3, 20), (24, 40)], ids=str)
def test_infinities_reach_what_they_touch(sizes: tuple[int, int], last: bool) -> None:
    """An infinite number of x or gy touches the taps that see it, and no others."""
    c, k = sizes
    spec = ConvSpec.infer((2, c, 9, 9), (k, c, 3, 3), 2, 1)
    x, gy = numbers(0, *spec.x_shape).astype("f"), numbers(1, *spec.y_shape).astype("f")
    x[1, 2, 4, 4], gy[0, 3, 0, 0] = np.inf, np.nan
    if last:
        x, gy = (np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, -1)), -1, 1) for a in (x, gy))
    found = launched(weight.grad_weight, (gy, x), spec.w_shape, False, spec, "float32", last)
    touched = np.zeros(spec.w_shape, bool)
    touched[:, 2, 1, 1] = touched[3, :, 1:, 1:] = True
    assert not np.isfinite(found[touched]).any()
    touched[3] = True  # taps that see only padding there: NaN times nothing, or times zero
    assert np.isfinite(found[~touched]).all()


# x_shape, w_shape, stride, padding: on AVX-512 most of them have two or three vectors of outputs at
# a pixel, in float32 or float64, which tasks share.
EDGES: list[tuple[Any, ...]] = [
    ((2, 33, 6, 16), (32, 33, 3, 3), 1, ((0, 1), (2, 2))),
    ((2, 64, 12, 5), (48, 64, 2, 2), 1, 1),
    ((2, 40, 16, 17), (16, 40, 5, 5), 1, 0),
    ((2, 33, 15, 8), (24, 33, 3, 3), 1, 1),
    ((3, 33, 13, 16), (48, 33, 2, 2), 1, 1),
    ((2, 40, 9, 15), (32, 40, 3, 3), 1, 0),
    ((2, 64, 5, 12), (24, 64, 2, 2), 1, 1),
    ((3, 17, 5, 9), (48, 17, 5, 5), 1, 2),
    ((3, 9, 8, 15), (48, 9, 5, 5), 2, 2),
    ((2, 17, 14, 17), (16, 17, 3, 3), 1, 1),
    ((3, 40, 9, 5), (32, 40, 2, 2), 1, 1),
    ((1, 9, 14, 16), (32, 9, 5, 5), 1, 0),
    ((2, 40, 15, 14), (48, 40, 3, 3), 2, 1),
    ((1, 64, 15, 12), (24, 64, 3, 3), 1, 1),
    ((1, 1, 9, 7), (1, 1, 3, 3), 1, 1),
    ((1, 3, 11, 10), (8, 3, 3, 3), 2, 1),
    ((2, 7, 9, 9), (31, 7, 1, 3), 1, 0),
    ((2, 16, 13, 11), (33, 16, 3, 3), 1, 1),
    ((1, 31, 7, 5), (65, 31, 2, 3), (1, 2), 1),
    ((1, 5, 28, 3), (17, 5, 1, 1), 1, 0),
    ((3, 33, 7, 9), (48, 33, 1, 1), 1, 0),
    ((2, 64, 11, 9), (32, 64, 1, 1), 2, 0),
    ((2, 130, 5, 5), (19, 130, 1, 1), 1, 0),
    ((2, 24, 9, 8), (24, 1, 3, 3), 1, 1),
]


def _at_the_end(array: Any, last: bool) -> Any:
    """A copy, of channels-last memory if `last`, with nothing to read or write behind it."""
    lying = np.moveaxis(array, 1, -1) if last else array
    page = mmap.PAGESIZE
    size = -(-array.nbytes // page) * page
    whole = np.frombuffer(mmap.mmap(-1, size + page), np.uint8)
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    assert not protect(ctypes.c_void_p(whole.ctypes.data + size), ctypes.c_size_t(page), 0)
    inside = whole[size - array.nbytes : size].view(array.dtype).reshape(lying.shape)
    inside[...] = lying
    return np.moveaxis(inside, -1, 1) if last else inside


@pytest.mark.skipif(sys.platform != "linux", reason="memory is protected as on Linux")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("which", PASSES)
def test_nothing_behind_arrays_is_touched(isa: str, which: str, last: bool, dtype: str) -> None:
    """Every array ends where the process may not read: what reads on is killed there."""
    # Each shape is kernels to compile: all of them only where tiles are cut in most ways.
    edges = EDGES if (which, dtype) == ("grad_weight", "float32") else EDGES[::4]
    for x_shape, w_shape, stride, padding in edges:
        groups = x_shape[1] // w_shape[1]
        spec = ConvSpec.infer(x_shape, w_shape, stride, padding, groups=groups)
        shapes = {"x": spec.x_shape, "w": spec.w_shape, "y": spec.y_shape}
        given = {"forward": "xw", "grad_input": "yw", "grad_weight": "yx"}[which]
        arrays = [
            _at_the_end(numbers(i, *shapes[name]).astype(dtype), last and name != "w")
            for i, name in enumerate(given)
        ]
        (name,) = set(shapes) - set(given)
        found = _at_the_end(np.full(shapes[name], np.nan, dtype), last and name != "w")
        plans = weight if which == "grad_weight" else direct
        for kernels in {plans, pointwise if pointwise.supports(spec, dtype, which) else plans}:
            if which == "forward":
                run = kernels.forward(DEVICE, spec, dtype, last, False, False, False)
                run(*arrays, None, None, found)
            else:
                getattr(kernels, which)(DEVICE, spec, dtype, last)(*arrays, found)
            assert np.isfinite(found).all()
