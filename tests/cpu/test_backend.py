"""The whole table of operations on the CPU backend, with 1, 2 and 4 threads; what it chooses."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

import gpuconv as gc
from gpuconv.backends import Backend, get_backend
from gpuconv.cpu import CpuBackend
from gpuconv.cpu.team import set_num_threads
from gpuconv.testing import assert_within_budget
from tests.cases import CASES
from tests.cases.case import Case
from tests.operations import channels_last
from tests.test_ops import assert_agree, run, run_peer

THREADS = (1, 2, 4)
every_case = pytest.mark.parametrize("case", CASES, ids=[c.name for c in CASES])


def on_cpu(case: Case, arrays: list[Any]) -> tuple[Any, list[Any]]:
    """Value and gradients, with the same bits for every number of threads."""
    found = []
    with gc.backend("cpu"):
        for count in THREADS:
            set_num_threads(count)
            y, grads = run(case, arrays)
            found.append([y, *grads])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b, err_msg="threads differ")
    return found[0][0], found[0][1:]


@every_case
def test_agrees_with_torch(case: Case) -> None:
    arrays = case.arrays()
    assert_agree(*on_cpu(case, arrays), *run_peer(case, arrays))


@every_case
def test_float32_stays_in_the_budget(case: Case) -> None:
    arrays = case.arrays()
    small = [a.astype(np.float32) if a.dtype.kind == "f" else a for a in arrays]
    y, grads = on_cpu(case, small)
    y_peer, grads_peer = run_peer(case, small)
    truth, grads_truth = run_peer(
        case, [a.astype(np.float64) if a.dtype.kind == "f" else a for a in small]
    )
    for ours, plain, exact in zip(
        [y, *grads], [y_peer, *grads_peer], [truth, *grads_truth], strict=True
    ):
        if ours is not None:
            assert ours.dtype == np.float32
            assert_within_budget(ours, plain, exact)


@every_case
def test_channels_last_gives_the_same_numbers(case: Case) -> None:
    arrays = case.arrays()
    images = [channels_last(a) if a.ndim >= 3 else a for a in arrays]
    assert_agree(*on_cpu(case, images), *run_peer(case, arrays))


def test_arrays_in_another_byte_order_are_computed_by_array_code() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((4, 8, 6, 6)), rng.standard_normal((8, 8, 3, 3))
    rows, m = rng.standard_normal((5, 8)), rng.standard_normal((7, 8))
    with gc.backend("cpu") as be:
        for kind in (">f4", ">f8"):
            y = [
                gc.conv2d(x.astype(kind), w.astype(kind)),
                gc.relu(x.astype(kind)),
                gc.max_pool2d(x.astype(kind), 2),
                gc.linear(rows.astype(kind), m.astype(kind)),
                be.bias_gradient(x.astype(kind)),
            ]
            truth = [
                gc.conv2d(x, w),
                np.maximum(x, 0),
                gc.max_pool2d(x, 2),
                rows @ m.T,
                x.sum(axis=(0, 2, 3)),
            ]
            for found, exact in zip(y, truth, strict=True):
                np.testing.assert_allclose(found, exact, rtol=0, atol=2e-5)


def overridden() -> set[str]:
    """What CpuBackend computes in its own way."""
    kept = {"prepared", "empty_like_format", "random", "asarray"}
    public = {n for n in dir(Backend) if not n.startswith("_") and callable(getattr(Backend, n))}
    return {n for n in public if getattr(CpuBackend, n) is not getattr(Backend, n)} - kept


def test_every_overridden_method_has_a_case(monkeypatch: pytest.MonkeyPatch) -> None:
    called: Counter[str] = Counter()

    def counted(name: str, method: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            called[name] += 1
            return method(*args, **options)

        return call

    be = CpuBackend()
    for name in overridden():
        monkeypatch.setattr(be, name, counted(name, getattr(be, name)))
    with gc.backend(be):
        for case in CASES:
            run(case, case.arrays())
    steps = {name for name in overridden() if name.endswith("_step")}  # tests/cpu/test_step.py
    assert set(called) == overridden() - steps


def test_it_is_the_default_for_numpy_arrays() -> None:
    assert gc.backends.backend_of(np.ones(1)) is get_backend("cpu")
    assert get_backend("cpu").name == "cpu"
