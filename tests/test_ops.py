"""Every row of the table of problems: against torch, differences, on arrays, as on a GPU."""

from typing import Any

import numpy as np
import pytest

import gpuconv as gc
from gpuconv import ops
from gpuconv.autograd import Function, Tensor
from gpuconv.backends import Backend
from gpuconv.testing import assert_within_budget, check_gradients
from tests.cases import CASES
from tests.cases.case import Case
from tests.strict import StrictArray, strict

# These are tests of array code; tests/cpu/test_backend.py runs the table on the kernels.
pytestmark = pytest.mark.usefixtures("array_code")
every_case = pytest.mark.parametrize("case", CASES, ids=[c.name for c in CASES])


def test_names_are_unique() -> None:
    names = [c.name for c in CASES]
    assert len(set(names)) == len(names), sorted({n for n in names if names.count(n) > 1})


def run(case: Case, arrays: list[Any], seed: int = 1) -> tuple[Any, list[Any]]:
    """Value and gradients of `ours`, raw, with a random gradient of the output."""
    inputs = [Tensor(a, requires_grad=True) if a.dtype.kind == "f" else Tensor(a) for a in arrays]
    y = case.ours(*inputs)
    gy = np.random.default_rng(seed).standard_normal(y.shape).astype(y.dtype)
    if y.requires_grad:
        y.backward(gy if isinstance(y.data, np.ndarray) else strict.asarray(gy))
    return y.data, [t.grad.data if t.grad is not None else None for t in inputs]


def run_peer(case: Case, arrays: list[np.ndarray], seed: int = 1) -> tuple[Any, list[Any]]:
    torch = pytest.importorskip("torch", reason="torch is the oracle of this test")
    inputs = [torch.tensor(a.copy()).requires_grad_(a.dtype.kind == "f") for a in arrays]
    y = case.peer(torch, *inputs)
    gy = np.random.default_rng(seed).standard_normal(tuple(y.shape))
    if y.requires_grad:
        y.backward(torch.tensor(gy, dtype=y.dtype))
    return y.detach().numpy(), [t.grad.numpy() if t.grad is not None else None for t in inputs]


def assert_close(ours: np.ndarray, theirs: np.ndarray, what: str, rel: float = 1e-9) -> None:
    """Equal to `rel` of the largest number; infinities and NaN in the same places."""
    assert ours.shape == theirs.shape, f"{what}: shape {ours.shape}, torch {theirs.shape}"
    assert ours.dtype == theirs.dtype, f"{what}: dtype {ours.dtype}, torch {theirs.dtype}"
    finite = np.isfinite(theirs)
    np.testing.assert_array_equal(ours[~finite], theirs[~finite], err_msg=what)
    if finite.any():
        scale = np.abs(theirs[finite]).max()
        error = np.abs(ours[finite] - theirs[finite]).max()
        assert error <= rel * scale, f"{what}: off by {error:.2e} where the largest is {scale:.2e}"


def assert_agree(y: Any, grads: list[Any], y_peer: Any, grads_peer: list[Any]) -> None:
    assert_close(y, y_peer, "value")
    for i, (g, g_peer) in enumerate(zip(grads, grads_peer, strict=True)):
        assert (g is None) == (g_peer is None), f"gradient {i} is missing on one side"
        if g is not None:
            assert_close(g, g_peer, f"gradient {i}")


@every_case
def test_agrees_with_torch(case: Case) -> None:
    arrays = case.arrays()
    assert_agree(*run(case, arrays), *run_peer(case, arrays))


CONVOLUTIONS = [c for c in CASES if c.name.startswith("conv-")]


@pytest.mark.parametrize("xp", [np, strict], ids=["numpy", "strict"])
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=[c.name for c in CONVOLUTIONS])
def test_many_tiles_agree_with_torch(case: Case, xp: Any) -> None:
    """With room for 25 numbers a tile the work is done in many; 4 MiB make one tile of any row."""
    arrays = case.arrays()
    be = Backend(xp, "small")
    be.workspace = 200
    with gc.backend(be):
        y, grads = run(case, [xp.asarray(a) for a in arrays])
    if xp is strict:
        y, grads = y.get(), [g if g is None else g.get() for g in grads]
    assert_agree(y, grads, *run_peer(case, arrays))


def has_differences(case: Case) -> bool:
    """Whether some input can be moved a little: not empty, not labels, not infinite."""
    return any(a.dtype == np.float64 and a.size and np.isfinite(a).all() for a in case.arrays(2))


SMOOTH = [c for c in CASES if has_differences(c)]


@pytest.mark.parametrize("case", SMOOTH, ids=[c.name for c in SMOOTH])
def test_gradients_agree_with_differences(case: Case) -> None:
    check_gradients(case.ours, *case.arrays(seed=2))


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0, -1.0])
@pytest.mark.parametrize("shape", [(), (3,)])
def test_powers_of_zero_agree_with_torch(shape: tuple[int, ...], exponent: float) -> None:
    """Where differences would fail: 0 ** x jumps at x = 0, and has a wall at x < 0."""
    case = Case("power", ops.power, lambda t, a, b: a**b, (shape, shape))
    arrays = [np.zeros(shape), np.full(shape, exponent)]
    with np.errstate(divide="ignore", invalid="ignore"):
        ours = run(case, arrays)
    assert_agree(*ours, *run_peer(case, arrays))


@every_case
def test_plain_arrays_give_the_same_array(case: Case) -> None:
    arrays = case.arrays()
    before = [a.copy() for a in arrays]
    y = case.ours(*arrays)
    assert isinstance(y, np.ndarray)
    np.testing.assert_array_equal(y, run(case, arrays)[0])
    for a, b in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(a, b, err_msg="an input was changed")


@every_case
def test_runs_as_on_a_gpu(case: Case) -> None:
    """The same code over arrays that refuse what CuPy's refuse gives the same bits."""
    arrays = case.arrays()
    y, grads = run(case, arrays)
    with gc.backend(Backend(strict, "strict")):
        y_strict, grads_strict = run(case, [strict.asarray(a) for a in arrays])
    assert isinstance(y_strict, StrictArray)
    np.testing.assert_array_equal(y_strict.get(), y)
    for g, g_strict in zip(grads, grads_strict, strict=True):
        if g is not None:
            np.testing.assert_array_equal(g_strict.get(), g)


@every_case
def test_float32_stays_float32(case: Case) -> None:
    """In float32 results are float32, and as near to float64 as torch's float32 is, times four."""
    arrays = case.arrays()
    small = [a.astype(np.float32) if a.dtype.kind == "f" else a for a in arrays]
    y, grads = run(case, small)
    assert y.dtype == np.float32
    assert all(g is None or g.dtype == np.float32 for g in grads)
    y_peer, grads_peer = run_peer(case, small)
    truth, grads_truth = run_peer(
        case, [a.astype(np.float64) if a.dtype.kind == "f" else a for a in small]
    )
    for ours, plain, exact in zip(
        [y, *grads], [y_peer, *grads_peer], [truth, *grads_truth], strict=True
    ):
        if ours is not None:
            assert_within_budget(ours, plain, exact)


def every_function() -> set[type]:
    """The Functions of gpuconv.ops, but for bases that others derive from."""
    found, todo = set(), [Function]
    while todo:
        derived = [c for c in todo.pop().__subclasses__() if c.__module__.startswith("gpuconv.ops")]
        todo += derived
        found |= {c for c in derived if not c.__name__.startswith("_")}
    return found


def test_every_function_has_a_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """By introspection: what no row of the table runs backward fails here."""
    passed: set[type] = set()
    free = Function.free

    def freed(self: Function) -> None:
        passed.add(type(self))
        free(self)

    monkeypatch.setattr(Function, "free", freed)
    for case in CASES:
        run(case, case.arrays())
    missing = {c.__name__ for c in every_function() - passed}
    # A base class, and the move between two devices, of which one machine has but one.
    assert missing == {"Pointwise", "ToDevice"}


def test_padding_that_crops_everything_and_grows_on_the_other_side() -> None:
    x = gc.tensor(np.ones((1, 1, 2, 3)), requires_grad=True)
    y = gc.pad(x, (-5, 14), "constant", 2.0)
    assert y.shape == (1, 1, 2, 12)
    assert (y.detach().numpy() == 2).all()
    y.sum().backward()
    assert x.grad is not None
    assert (x.grad.numpy() == 0).all()
