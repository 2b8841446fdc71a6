"""The table of problems, through the kernels, on arrays that refuse what CuPy's refuse.

In float64 against torch, where the kernels of that precision are used; in float32 within the error
budget. What has no kernel runs as array code on the same strict arrays.
"""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="kernels are compiled by numba-cuda")

import gpuconv as gc
from gpuconv.cuda import CudaBackend
from gpuconv.cuda.device import EmulatedDevice
from gpuconv.testing import assert_within_budget
from tests.cases import CASES
from tests.cases.case import Case
from tests.strict import StrictArray, strict
from tests.test_ops import assert_agree, run, run_peer

FAMILIES = ("conv-", "fused-conv", "max-pool", "avg-pool", "adaptive", "lp-pool", "batch-norm",
            "cross-entropy", "nll")  # fmt: skip
MINE = [case for case in CASES if case.name.startswith(FAMILIES)]
every_case = pytest.mark.parametrize("case", MINE, ids=[case.name for case in MINE])


class StrictDevice(EmulatedDevice):
    """The emulator, on arrays that stand in for CuPy's."""

    xp = strict

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return strict.asarray(super().empty(shape, dtype))

    def prepare(self, *args: Any, **numbers: Any) -> Any:
        run = super().prepare(*args, **numbers)

        def unwrapped(*arrays: Any, **given: Any) -> None:
            assert all(a is None or isinstance(a, StrictArray) for a in arrays)
            run(*(None if a is None else a._host for a in arrays), **given)

        return unwrapped


BACKEND = CudaBackend(StrictDevice(), "strict")


def host(y: Any, grads: list[Any]) -> tuple[Any, list[Any]]:
    return y.get(), [g if g is None else g.get() for g in grads]


def on_strict(case: Case, arrays: list[np.ndarray]) -> tuple[Any, list[Any]]:
    with gc.backend(BACKEND):
        return host(*run(case, [strict.asarray(a) for a in arrays]))


@every_case
def test_agrees_with_torch(case: Case) -> None:
    arrays = case.arrays()
    assert_agree(*on_strict(case, arrays), *run_peer(case, arrays))


@every_case
def test_float32_within_the_budget(case: Case) -> None:
    arrays = case.arrays()
    single = [a.astype(np.float32) if a.dtype == np.float64 else a for a in arrays]
    exact = [a.astype(np.float64) if a.dtype == np.float32 else a for a in single]
    y, grads = on_strict(case, single)
    with gc.backend("numpy"):
        y_plain, grads_plain = run(case, single)
        y_true, grads_true = run(case, exact)
    for fast, plain, true in zip(
        [y, *grads], [y_plain, *grads_plain], [y_true, *grads_true], strict=True
    ):
        if fast is not None:
            assert_within_budget(fast, plain, true)
