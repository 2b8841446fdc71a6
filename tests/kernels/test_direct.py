"""Direct convolution: every option of every axis, on both memory formats, in both precisions."""

from typing import Any

import numpy as np
import pytest

import gpuconv as gc
from gpuconv.kernels.cuda import direct
from gpuconv.shapes import ConvSpec
from tests.kernels.conftest import REFERENCE, check
from tests.operations import channels_last

PROBLEMS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "one pixel": ((1, 1, 1, 1), (1, 1, 1, 1), {}),
    "3x3": ((2, 3, 7, 9), (4, 3, 3, 3), {"padding": 1}),
    "1x3": ((1, 3, 5, 6), (2, 3, 1, 3), {"padding": (0, 1)}),
    "3x1": ((1, 3, 5, 6), (2, 3, 3, 1), {"padding": (1, 0)}),
    "2x2": ((1, 33, 5, 6), (2, 33, 2, 2), {"padding": "same"}),
    "4x4 same stride": ((2, 1, 9, 7), (3, 1, 4, 4), {"padding": "same", "stride": 2}),
    "7x7": ((1, 3, 9, 8), (5, 3, 7, 7), {"padding": 3, "stride": (2, 1)}),
    "11x11 stride 4": ((1, 3, 27, 23), (4, 3, 11, 11), {"padding": 2, "stride": 4}),
    "groups": ((2, 4, 7, 6), (6, 2, 3, 2), {"padding": ((1, 0), (2, 1)), "groups": 2}),
    "depthwise": ((2, 3, 5, 6), (6, 1, 3, 3), {"padding": 1, "groups": 3}),
    "dilation": ((1, 2, 9, 8), (3, 2, 3, 2), {"padding": 1, "dilation": (2, 3)}),
    "dilation and stride": ((1, 2, 9, 8), (3, 2, 3, 3), {"padding": 2, "dilation": 2, "stride": 3}),
    "reflect": ((1, 2, 5, 6), (3, 2, 3, 4), {"padding": "same", "padding_mode": "reflect"}),
    "replicate": ((1, 2, 4, 3), (3, 2, 5, 5), {"padding": 4, "padding_mode": "replicate"}),
    "circular": ((1, 2, 4, 5), (3, 2, 3, 3), {"padding": (4, 3), "padding_mode": "circular"}),
    "conv1d": ((2, 3, 11), (4, 3, 4), {"padding": "same"}),
    "conv3d": ((1, 2, 5, 4, 6), (3, 2, 2, 3, 3), {"padding": 1, "stride": (2, 1, 2)}),
    "a block and a thread": ((3, 1, 1, 43), (1, 1, 1, 1), {}),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_three_passes(be: Any, rng: np.random.Generator, name: str, last: bool, dtype: str) -> None:
    x_shape, w_shape, options = PROBLEMS[name]
    spec = ConvSpec.infer(x_shape, w_shape, **options)
    x, w, gy = (rng.standard_normal(shape) for shape in (x_shape, w_shape, spec.y_shape))
    b = rng.standard_normal(w_shape[0])
    if last:
        x, gy = channels_last(x), channels_last(gy)
    check(be, lambda be, x, w, b: be.conv(spec, x, w, b), x, w, b, dtype=dtype)
    check(be, lambda be, x, w: be.conv(spec, x, w), x, w, dtype=dtype)
    check(be, lambda be, gy, w: be.conv_grad_input(spec, gy, w), gy, w, dtype=dtype)
    check(be, lambda be, gy, x: be.conv_grad_weight(spec, gy, x), gy, x, dtype=dtype)


@pytest.mark.parametrize("algo", ["tiled", "direct", "depthwise"])
def test_arrays_lie_anywhere(rng: np.random.Generator, algo: str) -> None:
    """Strides of every kind and starts at any number, at a first call and at a known one."""
    from gpuconv.cuda import CudaBackend
    from gpuconv.cuda.device import EmulatedDevice

    class Device(EmulatedDevice):
        """Of which every array starts at `start`, until it is copied."""

        start, copies = 0, 0

        def aligned(self, *arrays: Any) -> bool:
            self.copies += self.start != 0
            return not self.start

    device = Device()
    groups = 3 if algo == "depthwise" else 1
    x, w, b = (
        rng.standard_normal(shape).astype("float32")
        for shape in ((2, 3, 6, 5), (6, 3 // groups, 3, 3), (6,))
    )
    options = {"padding": 1, "groups": groups}
    gy = gc.conv2d(x, w, b, **options)
    passes: list[Any] = [
        lambda x, w, b, gy: gc.conv2d(x, w, b, **options, algo=algo),
        lambda x, w, b, gy: gc.conv2d_grad_input(gy, w, x.shape, **options, algo=algo),
        lambda x, w, b, gy: gc.conv2d_grad_weight(gy, x, w.shape, **options, algo=algo),
    ]

    def spread(a: np.ndarray) -> np.ndarray:
        apart = np.zeros((*a.shape[:-1], 2 * a.shape[-1]), "float32")[..., ::2]
        apart[...] = a
        return apart

    with gc.backend(CudaBackend(device, "emulated")):
        for compute in passes:
            truth = compute(x, w, b, gy)
            for other in ([spread(a) for a in (x, w, b, gy)], [x, w, spread(b), gy]):
                np.testing.assert_array_equal(compute(*other), truth)
                np.testing.assert_array_equal(compute(*other), truth)
            turned = [channels_last(a) for a in (x, w)]
            first = compute(*turned, b, channels_last(gy))
            np.testing.assert_allclose(first, truth, rtol=0, atol=1e-4)
            device.start = 4
            np.testing.assert_array_equal(compute(x, w, b, gy), truth)
            np.testing.assert_array_equal(compute(*turned, b, channels_last(gy)), first)
            assert device.copies >= 6, "of both arrays, and asked before"
            device.start = device.copies = 0


def test_what_does_not_fit_32_bits_is_array_code(be: Any, rng: np.random.Generator) -> None:
    single = np.dtype("float32")
    for options in {"stride": 2**31}, {"dilation": 2**31}, {"stride": 2**32}:
        spec = ConvSpec.infer((1, 2, 3), (2, 2, 1), **options)
        assert not direct.supports(spec, single)
        x, w = (rng.standard_normal(shape) for shape in (spec.x_shape, spec.w_shape))
        check(be, lambda be, x, w, spec=spec: be.conv(spec, x, w), x, w)
    assert direct.supports(ConvSpec.infer((1, 2, 3), (2, 2, 1), stride=2**30), single)


def test_numbers_in_the_other_byte_order_are_array_code(be: Any, rng: np.random.Generator) -> None:
    spec = ConvSpec.infer((2, 3, 9), (4, 3, 2))
    x, w = (rng.standard_normal(shape).astype(">f4") for shape in (spec.x_shape, spec.w_shape))
    if be.xp is np:  # CuPy has no such arrays
        np.testing.assert_allclose(be.conv(spec, x, w), REFERENCE.conv(spec, x, w), rtol=1e-5)
