"""Optimizer steps: every option, in both precisions and memory formats, several steps on end."""

from typing import Any

import numpy as np
import pytest

from gpuconv.kernels.cuda import step as steps
from gpuconv.testing import assert_within_budget
from tests.kernels.conftest import REFERENCE, check
from tests.operations import ADAM, RULES, SGD, channels_last, three_steps


def check_steps(be: Any, w: Any, gradients: list[Any], rule: str, dtype: str) -> list[Any]:
    def operation(be: Any, w: Any, *gradients: Any) -> list[Any]:
        return three_steps(be, w, list(gradients), rule)

    return check(be, operation, w, *gradients, dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rule", RULES)
def test_three_steps(be: Any, rng: np.random.Generator, rule: str, dtype: str) -> None:
    for size in (1, 1025):
        w, *gradients = rng.standard_normal((4, size))
        check_steps(be, w, gradients, rule, dtype)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 1023, 1024, 1026, 2049])
def test_sizes(be: Any, rng: np.random.Generator, size: int) -> None:
    w, *gradients = rng.standard_normal((4, size))
    check_steps(be, w, gradients, "amsgrad", "float32")


def test_one_number_of_no_axes(be: Any) -> None:
    check_steps(be, np.array(2.0), [np.array(0.5), np.array(-1.0)], "momentum", "float32")


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("rule", ["nesterov", "amsgrad", "rmsprop, centered, momentum"])
def test_gradients_of_any_memory_format(
    be: Any, rng: np.random.Generator, rule: str, last: bool
) -> None:
    w, g = rng.standard_normal((2, 5, 3, 2, 4))
    w = channels_last(w) if last else w
    gradients = [g, channels_last(g), np.broadcast_to(g[:, :1, :1, :1], g.shape), g[::-1]]
    fast = check_steps(be, w, gradients, rule, "float32")
    assert all(channels_last(f).strides == f.strides for f in fast) == last


def test_what_no_kernel_takes_is_array_code(be: Any, rng: np.random.Generator) -> None:
    w, g = rng.standard_normal((2, 12, 3))
    check_steps(be, w[::2], [g[::2]], "adam", "float32")
    check_steps(be, np.zeros((0, 3)), [np.zeros((0, 3))], "adam", "float32")
    half = [be.asarray(a.astype("float16")) for a in (w, g)]
    be.sgd_step(*half, None, True, **SGD)
    host = [a.astype("float16") for a in (w, g)]
    REFERENCE.sgd_step(*host, None, True, **SGD)
    np.testing.assert_array_equal(half[0] if be.xp is np else half[0].get(), host[0])


def test_nan_and_infinity_stay_where_they_are(be: Any, rng: np.random.Generator) -> None:
    w, g = rng.standard_normal((2, 70))
    g[3], g[40], w[7] = np.nan, np.inf, np.nan
    again = rng.standard_normal(70)
    for rule in ("sgd", "nesterov", "amsgrad", "rmsprop, centered, momentum"):
        with np.errstate(invalid="ignore"):
            check_steps(be, w, [g, again], rule, "float32")


@pytest.mark.parametrize("offset", [0, 1, 3])
def test_a_part_of_an_array_that_is_not_aligned(
    be: Any, rng: np.random.Generator, offset: int
) -> None:
    whole, g = rng.standard_normal((2, 1100))
    on_device = be.asarray(whole.astype("float32"))
    part, gw = on_device[offset:], be.asarray(g.astype("float32"))[offset:]
    run = steps.sgd(be.device, part.size, part.dtype, False, False, False)
    # The emulator places each array anew, but keeps how two lie that overlap: so the whole array is
    # passed, in the place of the buffer that there is not.
    run(part, gw, on_device, **{**SGD, "lr": 0.25})
    after = on_device if be.xp is np else on_device.get()
    np.testing.assert_array_equal(after[:offset], whole.astype("float32")[:offset])
    expected = whole - 0.25 * g.astype("float32")
    plain = whole.astype("float32") - np.float32(0.25) * g.astype("float32")
    assert_within_budget(after[offset:], plain[offset:], expected[offset:])


def test_numbers_are_rounded_once(be: Any) -> None:
    """1 - beta is worked out in float64: with float32's beta it would be off by 6e-5 of itself."""
    w, g = np.zeros(1, "float32"), np.ones(1, "float32")
    w, g, mean, square = (be.asarray(a) for a in (w, g, w.copy(), w.copy()))
    options = {**ADAM, "beta2": 0.9999, "weight_decay": 0.0, "decoupled": False}
    be.adam_step(w, g, mean, square, None, 1, **options)
    assert float(square[0]) == np.float32(1 - 0.9999)


def test_a_launch_wants_its_numbers(be: Any) -> None:
    run = be.device.prepare(
        steps.kernels()[0], (1, 1, 1), ("lr",), total=1, has_buffer=0, first=0, nesterov=0,
        momentum=0, rest=0, decay=0,
    )  # fmt: skip
    w = be.asarray(np.ones(1, "float32"))
    with pytest.raises(TypeError, match="step_sgd_float32 is launched with lr"):
        run(w, w.copy(), None)
    with pytest.raises(TypeError, match="is launched with lr"):
        run(w, w.copy(), None, momentum=1.0)
    run(w, w.copy(), None, lr=0.5)
    assert float(w[0]) == 0.5


def test_no_case_falls_back_to_array_code(rng: np.random.Generator) -> None:
    pytest.importorskip("numba_cuda", reason="kernels are compiled by numba-cuda")
    from gpuconv.cuda import CudaBackend
    from gpuconv.cuda.device import EmulatedDevice

    seen: set[str] = set()
    device = EmulatedDevice(watch=lambda kernel, report: seen.add(kernel.name))
    be = CudaBackend(device, "emulated")
    for dtype in ("float32", "float64"):
        w, *gradients = rng.standard_normal((4, 5)).astype(dtype)
        for rule in ("sgd", "adam", "rmsprop"):
            three_steps(be, w, gradients, rule)
    assert seen == {kernel.name for kernel in steps.kernels()}
