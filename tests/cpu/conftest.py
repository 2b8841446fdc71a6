"""Every CPU kernel test runs for each instruction set that this machine has."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gpuconv.backends import Backend
from gpuconv.cpu.device import DEVICE
from gpuconv.cpu.team import get_num_threads, set_num_threads
from gpuconv.kernels.cpu import compiler
from gpuconv.kernels.cpu.plan import Packed
from gpuconv.shapes import ConvSpec
from gpuconv.testing import assert_within_budget
from tests.operations import channels_last

REFERENCE = Backend(np, "numpy")
PASSES = ("forward", "grad_input", "grad_weight")
GUARD = 64  # elements before and after a result, which nothing may write to


def isas() -> list[str]:
    """This processor's instruction set and the lesser ones that it can run."""
    here = compiler.host().name
    if here == "generic":
        return [here]
    return [here, *[name for name in ("avx2", "generic") if name != here]]


@pytest.fixture(params=isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The test, compiled for each instruction set."""
    with compiler.restricted(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """A test may set the number of threads."""
    before = get_num_threads()
    yield
    set_num_threads(before)


def numbers(seed: int, *shape: int) -> Any:
    """Float64 numbers of a normal distribution, a function of the seed."""
    return np.random.default_rng(seed).standard_normal(shape)


def guarded(shape: tuple[int, ...], dtype: str, last: bool) -> tuple[Any, Any]:
    """An array full of NaN in the format, and the whole memory that it lies in."""
    lies = (shape[0], *shape[2:], shape[1]) if last else shape
    whole = np.full(int(np.prod(lies)) + 2 * GUARD, np.nan, dtype)
    inside = whole[GUARD:-GUARD].reshape(lies)
    return np.moveaxis(inside, -1, 1) if last else inside, whole


def launched(make: Any, arrays: tuple[Any, ...], shape: Any, last: bool, *key: Any) -> Any:
    """The result of the plan make(DEVICE, *key), with 1, 2 and 4 threads: the same bits.

    Arrays are made read-only first, and what lies around the result must not have changed.
    """
    results = []
    for array in arrays:
        if array is not None:
            array.flags.writeable = False
    run = make(DEVICE, *key)
    dtype = next(a for a in arrays if a is not None).dtype.name
    for count in (1, 2, 4, 1):
        set_num_threads(count)
        y, whole = guarded(shape, dtype, last)
        run(*arrays, y)
        around = np.concatenate([whole[:GUARD], whole[-GUARD:]])
        assert np.isnan(around).all(), "written outside the result"
        results.append(y)
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other, err_msg="runs or threads differ")
    return results[0]


def check_conv(
    kernels: Any,
    which: str,
    spec: ConvSpec,
    last: bool = False,
    dtype: str = "float32",
    *,
    bias: bool = False,
    add: bool = False,
    relu: bool = False,
) -> None:
    """One pass by the plans of the module `kernels`, within the error budget.

    Truth is the reference in float64; the budget is 4 times the reference's error in float32, and
    for float64 1e-12 of the largest number.
    """
    assert kernels.supports(spec, dtype, which), f"{kernels.__name__} does not take {spec}"
    x, w, gy = (numbers(i, *s) for i, s in enumerate((spec.x_shape, spec.w_shape, spec.y_shape)))
    b = numbers(3, spec.w_shape[0]) if bias else None
    r = numbers(4, *spec.y_shape) if add else None
    form = channels_last if last else np.ascontiguousarray

    def cast(array: Any, kind: str, image: bool) -> Any:
        if array is None:
            return None
        array = array.astype(np.float32).astype(kind)  # the same numbers for all precisions
        return form(array) if image else np.ascontiguousarray(array)

    def truth(kind: str) -> Any:
        if which == "forward":
            given = (cast(x, kind, True), cast(w, kind, False), cast(b, kind, False))
            return REFERENCE.conv(spec, *given, add=cast(r, kind, True), relu=relu)
        if which == "grad_input":
            return REFERENCE.conv_grad_input(spec, cast(gy, kind, True), cast(w, kind, False))
        return REFERENCE.conv_grad_weight(spec, cast(gy, kind, True), cast(x, kind, True))

    if which == "forward":
        arrays = (
            cast(x, dtype, True),
            cast(w, dtype, False),
            cast(b, dtype, False),
            cast(r, dtype, True),
        )
        key, shape, lies = (spec, dtype, last, bias, add, relu), spec.y_shape, last
    elif which == "grad_input":
        arrays = (cast(gy, dtype, True), cast(w, dtype, False))
        key, shape, lies = (spec, dtype, last), spec.x_shape, last
    else:
        arrays = (cast(gy, dtype, True), cast(x, dtype, True))
        key, shape, lies = (spec, dtype, last), spec.w_shape, False
    result = launched(getattr(kernels, which), arrays, shape, lies, *key)
    exact = truth("float64")
    if dtype == "float64":
        assert np.abs(result - exact).max() <= 1e-12 * np.abs(exact).max()
    else:
        assert_within_budget(result, truth("float32"), exact)


def check_packed(kernels: Any, spec: ConvSpec, last: bool, dtype: str = "float32") -> None:
    """A forward plan whose weight is packed once and used twice: the bits of the plain call."""
    plan = kernels.forward(DEVICE, spec, dtype, last, True, False, True)
    assert isinstance(plan, Packed)
    form = channels_last if last else np.ascontiguousarray
    x, other = (form(numbers(i, *spec.x_shape).astype(dtype)) for i in (0, 1))
    w, b = numbers(2, *spec.w_shape).astype(dtype), numbers(3, spec.w_shape[0]).astype(dtype)
    packed = plan.pack(w)
    before = packed.copy()
    for image in (x, other, x):
        plain, result = (guarded(spec.y_shape, dtype, last)[0] for _ in range(2))
        plan(image, w, b, None, plain)
        plan.compute(image, packed, b, None, result)
        np.testing.assert_array_equal(plain, result)
    assert before.tobytes() == packed.tobytes(), "computing changed the weight"
