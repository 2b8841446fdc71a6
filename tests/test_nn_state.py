"""state_dict and load_state_dict: all or nothing, from any library, errors that list names."""

from typing import Any

import numpy as np
import pytest

import gpuconv as gc
from gpuconv import nn
from gpuconv.errors import ArgumentError, DtypeError


def model() -> nn.Sequential:
    return nn.Sequential({"conv": nn.Conv2d(1, 2, 3), "fc": nn.Linear(2, 3)})


def test_state_dict_holds_the_very_arrays() -> None:
    m = model()
    state = m.state_dict()
    assert list(state) == ["conv.weight", "conv.bias", "fc.weight", "fc.bias"]
    assert all(state[n] is p.data for n, p in m.named_parameters())


def test_loading_copies_and_converts() -> None:
    source, target = model().double(), model()
    parameters = list(target.parameters())
    assert target.load_state_dict(source.state_dict()) == ([], [])
    for (name, p), q in zip(target.named_parameters(), parameters, strict=True):
        assert p is q
        assert p.dtype == np.float32
        assert p.requires_grad
        np.testing.assert_array_equal(p.data, source.state_dict()[name].astype(np.float32))
        assert not np.shares_memory(p.data, source.state_dict()[name])


def test_loading_keeps_the_memory_format_of_the_parameter() -> None:
    m = nn.Conv2d(4, 8, 3)
    m.weight.data = np.ascontiguousarray(m.weight.data.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    strides, values = m.weight.data.strides, np.arange(288.0).reshape(8, 4, 3, 3)
    m.load_state_dict({"weight": values, "bias": np.zeros(8)})
    assert m.weight.data.strides == strides
    np.testing.assert_array_equal(m.weight.data, values)


def test_loading_takes_tensors_and_torch() -> None:
    torch = pytest.importorskip("torch", reason="torch is the oracle of this test")
    m, peer = nn.Linear(2, 3), torch.nn.Linear(2, 3)
    for state in (peer.state_dict(), dict(peer.named_parameters())):
        m.load_state_dict(nn.Linear(2, 3).state_dict())
        m.load_state_dict(state)
        np.testing.assert_array_equal(m.weight.data, peer.weight.detach().numpy())
    m.load_state_dict({"weight": nn.Linear(2, 3).weight, "bias": gc.tensor([1.0, 2.0, 3.0])})
    np.testing.assert_array_equal(m.state_dict()["bias"], [1, 2, 3])
    with pytest.raises(DtypeError, match=r"'weight' is Tensor and cannot be read as an array"):
        m.load_state_dict({"weight": peer.weight.bfloat16(), "bias": np.zeros(3)})


def snapshot(m: nn.Module) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in m.state_dict().items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"fc.weight": None},
            r"Sequential.load_state_dict: missing 'fc.weight' \(3, 2\); build the model with the "
            r"arguments it was saved with, or pass strict=False",
        ),
        ({"x": np.zeros((2, 2))}, r"unexpected 'x' \(2, 2\); build"),
        (
            {"fc.bias": np.zeros(4)},
            r"of another shape 'fc.bias' \(4,\) instead of \(3,\); build the model with the "
            r"arguments it was saved with$",
        ),
        (
            {f"x{i}": np.zeros(1) for i in range(5)},
            r"unexpected 'x0' \(1,\), 'x1' \(1,\), 'x2' \(1,\) and 2 more;",
        ),
        (
            {"fc.weight": None, "y": np.zeros(()), "fc.bias": np.zeros((3, 1))},
            r"missing 'fc.weight' \(3, 2\); unexpected 'y' \(\); of another shape 'fc.bias'",
        ),
    ],
)
def test_what_does_not_fit_is_listed_and_nothing_changes(
    change: dict[str, Any], message: str
) -> None:
    m = model()
    before = snapshot(m)
    state = {n: np.full_like(a, 7) for n, a in m.state_dict().items()} | change
    with pytest.raises(ArgumentError, match=message):
        m.load_state_dict({n: a for n, a in state.items() if a is not None})
    assert snapshot(m) == before


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1.0, 2.0, 3.0], r"'fc.bias' is list and cannot be read as an array"),
        ("abc", r"'fc.bias' is str and cannot be read"),
        (np.zeros(3, complex), r"'fc.bias' is complex128, but real numbers are needed"),
        (np.array([None] * 3), r"'fc.bias' is object, but real numbers are needed"),
    ],
)
def test_what_is_no_array_of_numbers_is_refused(value: Any, message: str) -> None:
    m = model()
    before = snapshot(m)
    with pytest.raises(DtypeError, match=message):
        m.load_state_dict(m.state_dict() | {"fc.bias": value})
    assert snapshot(m) == before


def test_a_state_that_is_no_dict_is_refused() -> None:
    with pytest.raises(ArgumentError, match="a list is no state_dict; pass a dict"):
        model().load_state_dict([np.zeros(3)])  # type: ignore[arg-type]


def test_without_strict_names_may_differ_but_shapes_may_not() -> None:
    m = model()
    before = snapshot(m)
    result = m.load_state_dict({"fc.bias": np.ones(3), "x": np.zeros(1)}, strict=False)
    assert result.missing == ["conv.weight", "conv.bias", "fc.weight"]
    assert result.unexpected == ["x"]
    after = snapshot(m)
    assert {n for n in before if before[n] != after[n]} == {"fc.bias"}
    with pytest.raises(ArgumentError, match=r"of another shape 'fc.bias' \(4,\)"):
        m.load_state_dict({"fc.bias": np.ones(4)}, strict=False)


def test_shared_parameters_load_under_each_name() -> None:
    shared = nn.Linear(2, 2)
    m = nn.Sequential(shared, shared)
    m.load_state_dict({n: a * 2 for n, a in m.state_dict().items()})
    assert m[0] is m[1]
