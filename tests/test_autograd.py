"""The tape: operators, order, memory, errors."""

import gc as collector
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gpuconv as gc
from gpuconv import ops
from gpuconv.autograd import Function, Tensor, tensor
from gpuconv.errors import ArgumentError, DeviceError, DtypeError, GraphError
from gpuconv.testing import check_gradients

OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "a + b": lambda a, b: a + b,
    "a + 2": lambda a, b: a + 2 + 0 * b,
    "2 + a": lambda a, b: 2 + a + 0 * b,
    "a - b": lambda a, b: a - b,
    "2 - a": lambda a, b: 2 - a + 0 * b,
    "a * b": lambda a, b: a * b,
    "3 * a": lambda a, b: 3 * a + 0 * b,
    "a / b": lambda a, b: a / b,
    "1 / b": lambda a, b: 1 / b + 0 * a,
    "a ** 2": lambda a, b: a**2 + 0 * b,
    "2 ** a": lambda a, b: 2**a + 0 * b,
    "a @ b": lambda a, b: a @ b,
    "-a": lambda a, b: -a + 0 * b,
    "abs(a)": lambda a, b: abs(a) + 0 * b,
    "a.T": lambda a, b: a.T * b,
    "a[1]": lambda a, b: a[1] * b,
    "a[[0, 0]]": lambda a, b: a[[0, 0]].sum() * b,
    "methods": lambda a, b: (
        a.exp() + b.abs().sqrt() + b.abs().log() + a.clip(-1, 1) * a.reshape(9).reshape(3, 3)
    ),
    "reductions": lambda a, b: a.sum(0) + b.mean(1) + a.var() + b.max() + a.min(1) + b.sum(),
    "shapes": lambda a, b: a.flatten().unsqueeze(0).squeeze(0).broadcast_to((2, 9)) * b.flatten(),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_agree_with_torch(name: str, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    a, b = rng.standard_normal((3, 3)), rng.standard_normal((3, 3))
    check_gradients(OPERATORS[name], a, b)
    ours = [tensor(v, requires_grad=True) for v in (a, b)]
    OPERATORS[name](*ours).sum().backward()
    if name in ("methods", "shapes"):
        return  # torch spells these differently; the differences above have checked them
    peers = [torch.tensor(v, requires_grad=True) for v in (a, b)]
    if name == "reductions":
        x, y = peers
        result = x.sum(0) + y.mean(1) + x.var() + y.max() + x.amin(1) + y.sum()
    else:
        result = OPERATORS[name](*peers)
    result.sum().backward()
    for mine, theirs in zip(ours, peers, strict=True):
        np.testing.assert_allclose(mine.grad.numpy(), theirs.grad.numpy(), rtol=1e-12, atol=1e-13)


def test_an_array_on_the_left_gives_a_tensor() -> None:
    a, t = np.ones((2, 2)), tensor(np.ones((2, 2)), requires_grad=True)
    for result in (a + t, a - t, a * t, a / t, a @ t):
        assert isinstance(result, Tensor)
        assert result.requires_grad


def test_scalars_do_not_change_the_dtype() -> None:
    t = tensor(np.ones(3, np.float32), requires_grad=True)
    for scalar in (2, 2.0, np.float64(2), np.int64(2), True):
        assert (t * scalar + scalar).dtype == np.float32
    assert (t.sum() * 2).dtype == np.float32


def test_reductions_give_arrays_and_not_scalars() -> None:
    t = tensor(np.ones((2, 3)), requires_grad=True)
    for y in (t.sum(), t.mean(), t.max(), t.min(), t.var(), t[0, 0], t.argmax(), t @ t.T):
        assert isinstance(y.data, np.ndarray)
    t.sum().backward()
    assert isinstance(t.grad.data, np.ndarray)
    assert t.grad.data.strides[0] > 0, "a broadcast view was given as a gradient"


def test_comparisons_are_off_the_tape() -> None:
    t = tensor(np.array([1.0, 2.0, 3.0]), requires_grad=True)
    for result, expected in (
        (t > 2, [False, False, True]),
        (t >= 2, [False, True, True]),
        (t < 2, [True, False, False]),
        (t <= 2, [True, True, False]),
        (t == 2, [False, True, False]),
        (t != 2, [True, False, True]),
    ):
        assert not result.requires_grad
        np.testing.assert_array_equal(result.numpy(), expected)


def test_equal_extrema_share_the_gradient() -> None:
    t = tensor(np.array([1.0, 3.0, 3.0]), requires_grad=True)
    t.max().backward()
    np.testing.assert_array_equal(t.grad.numpy(), [0, 0.5, 0.5])
    a, b = (tensor(np.array([1.0, 2.0]), requires_grad=True) for _ in range(2))
    (ops.maximum(a, b) + ops.minimum(a, b)).sum().backward()
    np.testing.assert_array_equal(a.grad.numpy(), [1, 1])
    np.testing.assert_array_equal(b.grad.numpy(), [1, 1])


def test_gradients_add_up_over_uses_and_over_calls() -> None:
    t = tensor(np.array([2.0]), requires_grad=True)
    (t * t + t).backward()
    np.testing.assert_array_equal(t.grad.numpy(), [5])
    first = t.grad.data
    (3 * t).backward()
    np.testing.assert_array_equal(t.grad.numpy(), [8])
    np.testing.assert_array_equal(first, [5], err_msg="a gradient was changed in place")


def test_two_parents_may_share_one_gradient_array() -> None:
    """`+` passes one array to both: adding to it in place would corrupt the other."""
    a, b = (tensor(np.ones(3), requires_grad=True) for _ in range(2))
    c = a * 1.0
    y = (c + b) + c * 2.0 + c
    y.backward(np.ones(3))  # a real array: the broadcast view of a sum could not be added to
    np.testing.assert_array_equal(a.grad.numpy(), [4] * 3)
    np.testing.assert_array_equal(b.grad.numpy(), [1] * 3)


def test_a_leaf_can_be_its_own_loss() -> None:
    t = tensor(np.array(2.0), requires_grad=True)
    t.backward()
    assert t.grad.item() == 1


def test_no_grad_and_detach_leave_the_tape() -> None:
    t = tensor(np.ones(2), requires_grad=True)
    with gc.no_grad():
        assert not (t * 2).requires_grad
        with gc.enable_grad():
            assert (t * 2).requires_grad
        assert not (t * 2).requires_grad
    assert (t * 2).requires_grad
    assert not t.detach().requires_grad
    (t * t.detach()).sum().backward()
    np.testing.assert_array_equal(t.grad.numpy(), [1, 1])


def test_no_grad_ends_with_an_exception() -> None:
    with pytest.raises(RuntimeError, match="stop"), gc.no_grad():
        raise RuntimeError("stop")
    assert (tensor([1.0], requires_grad=True) * 2).requires_grad


def test_unwanted_gradients_are_not_computed() -> None:
    class Watched(Function):
        def forward(self, be: Any, a: Any, b: Any) -> Any:
            return a * b

        def backward(self, be: Any, gy: Any) -> Any:
            seen.append(self.needs)
            return tuple(gy if n else None for n in self.needs)

    seen: list[tuple[bool, ...]] = []
    a, b = tensor(np.ones(2), requires_grad=True), tensor(np.ones(2))
    Watched().apply(a, b).sum().backward()
    Watched().apply(b.data, a).sum().backward()
    assert seen == [(True, False), (False, True)]


def test_5000_chained_operations() -> None:
    t = tensor(np.ones(2), requires_grad=True)
    y = t
    for _ in range(5000):
        y = y + 1
    y.sum().backward()
    np.testing.assert_array_equal(t.grad.numpy(), [1, 1])


def test_a_long_graph_can_be_dropped_without_backward() -> None:
    y = tensor(np.ones(2), requires_grad=True)
    for _ in range(100_000):
        y = y * 1.0
    del y


def test_after_backward_nothing_is_alive_without_the_collector() -> None:
    alive: list[weakref.ref[Any]] = []

    class Seen(np.ndarray):
        """An array that can be watched."""

    class Watch(Function):
        def forward(self, be: Any, x: Any) -> Any:
            y = (x * 1.0).view(Seen)
            alive.append(weakref.ref(y))
            self.y = y
            return y

        def backward(self, be: Any, gy: Any) -> Any:
            g = (gy * self.y).view(Seen)
            alive.append(weakref.ref(g))
            return g

    collector.collect()
    collector.disable()
    try:
        x = tensor(np.ones((2, 2, 5, 5)))
        w = tensor(np.ones((2, 2, 3, 3)), requires_grad=True)
        h = Watch().apply(ops.conv2d(x, w, padding=1))
        loss = (Watch().apply(h) * h + h.exp()).mean()
        del h
        loss.backward()
        assert len(alive) == 4
        assert all(ref() is None for ref in alive)
        # And a graph that no backward went through dies with its last name.
        h = Watch().apply(ops.conv2d(x, w, padding=1))
        del h
        assert alive[-1]() is None
    finally:
        collector.enable()


def test_memory_falls_during_backward() -> None:
    """A node's saved arrays go as the gradient passes it: not all at the end."""
    counts: list[int] = []
    saved: list[weakref.ref[Any]] = []

    class Held(np.ndarray):
        pass

    class Hold(Function):
        def forward(self, be: Any, x: Any) -> Any:
            self.saved = x.copy().view(Held)
            saved.append(weakref.ref(self.saved))
            return x * 1.0

        def backward(self, be: Any, gy: Any) -> Any:
            counts.append(sum(ref() is not None for ref in saved))
            return gy

    y = tensor(np.ones(3), requires_grad=True)
    for _ in range(4):
        y = Hold().apply(y)
    y.sum().backward()
    assert counts == [4, 3, 2, 1]


def test_a_second_backward_is_an_error() -> None:
    t = tensor(np.ones(2), requires_grad=True)
    h = t * 2
    loss = h.sum()
    loss.backward()
    with pytest.raises(GraphError, match=r"freed by an earlier backward; compute the loss again"):
        loss.backward()
    with pytest.raises(GraphError, match="freed"):
        (h * 3).sum().backward()
    np.testing.assert_array_equal(t.grad.numpy(), [2, 2])


def test_misuse_is_told_in_one_line() -> None:
    t = tensor(np.ones(2), requires_grad=True)
    with pytest.raises(GraphError, match=r"shape \(2,\) needs its gradient.*reduce it first"):
        (t * 2).backward()
    with pytest.raises(GraphError, match="does not depend on anything that requires a gradient"):
        tensor(np.ones(1)).backward()
    with pytest.raises(ArgumentError, match=r"grad is float64 \(3,\), the tensor float64 \(2,\)"):
        (t * 2).backward(np.ones(3))
    with pytest.raises(DtypeError, match="only floating-point tensors"):
        tensor([1, 2], requires_grad=True)
    with pytest.raises(DtypeError, match="cannot be made of list"):
        tensor(["a"])
    with pytest.raises(DeviceError, match="device 'tpu' is unknown; use one of cpu, cuda, auto"):
        tensor([1.0], device="tpu")
    with pytest.raises(ArgumentError, match=r"shape \(2,\) is not one number"):
        t.item()
    with pytest.raises(GraphError, match="detach"):
        np.asarray(t)
    with pytest.raises(ArgumentError, match=r"6 values of shape \(2, 3\) do not fit \(4, 2\)"):
        tensor(np.ones((2, 3))).reshape(4, 2)
    with pytest.raises(ArgumentError, match=r"matmul: shapes \(2, 3\) and \(2, 3\) do not fit"):
        tensor(np.ones((2, 3))) @ tensor(np.ones((2, 3)))
    with pytest.raises(ArgumentError, match="axis 2 is out of range"):
        tensor(np.ones((2, 3))).sum(2)


def test_one_number_formats_and_converts() -> None:
    loss = tensor(np.array(0.25, np.float32), requires_grad=True)
    assert float(loss) == 0.25
    assert int(loss * 8) == 2
    assert f"{loss:.3f}" == "0.250"
    assert "%.2f" % loss == "0.25"  # noqa: UP031 - the old way must work too
    assert f"{loss}" == repr(loss) == "tensor(0.25, dtype=float32, requires_grad=True)"


def test_shapes_that_do_not_broadcast_get_one_line() -> None:
    a, b = tensor(np.ones((1, 3, 6, 6))), tensor(np.ones((1, 3, 8, 8)))
    for call in (
        lambda: a + b,
        lambda: a - b,
        lambda: a * b,
        lambda: a / b,
        lambda: ops.maximum(a, b),
        lambda: ops.where(a.data > 0, a, b),
    ):
        with pytest.raises(ArgumentError, match=r"\(1, 3, 6, 6\).* and \(1, 3, 8, 8\) do not fit"):
            call()


def test_a_function_used_wrongly_says_how() -> None:
    t = tensor(np.ones(2), requires_grad=True)
    with pytest.raises(GraphError, match=r"write MyFunction\(\).apply"):
        ops.elementwise.Exp.apply(t)

    class Pair(Function):
        def forward(self, be: Any, x: Any) -> Any:
            return x, x

    with pytest.raises(DtypeError, match="holds one array, not a tuple"):
        Pair().apply(t)
    with pytest.raises(NotImplementedError, match="Pair has no backward"):
        Pair().backward(None, None)
    with pytest.raises(DtypeError, match="not a list; make it with"):
        Tensor([1.0])


def test_a_wrong_function_is_found_out() -> None:
    class Wrong(Function):
        def __init__(self, result: Any) -> None:
            self.result = result

        def forward(self, be: Any, a: Any, b: Any) -> Any:
            return a + b

        def backward(self, be: Any, gy: Any) -> Any:
            return self.result

    t = tensor(np.ones(2), requires_grad=True)
    for result, message in (
        (np.ones(2), "Wrong.backward returned 1 gradients for 2 inputs"),
        ((None, None), "Wrong.backward returned None for an input that needs"),
        ((np.ones(3), None), r"gave a gradient float64 \(3,\) for a leaf float64 \(2,\)"),
    ):
        with pytest.raises(GraphError, match=message):
            Wrong(result).apply(t, np.ones(2)).sum().backward()


def test_tensors_of_lists_numbers_and_tensors() -> None:
    assert tensor([1.0, 2.0]).dtype == np.float32
    assert tensor([1, 2]).dtype == np.int64
    assert tensor(2.5).shape == ()
    assert tensor([1, 2], dtype="float64").dtype == np.float64
    x = np.ones(3)
    assert tensor(x).data is x
    assert tensor(tensor(x)).data is x
    assert tensor(x, device="cpu").data is x
    assert tensor(x).to("cpu").data is x
    assert tensor(x).device == "cpu"
    assert len(tensor(x)) == 3
    assert "requires_grad=True" in repr(tensor(x, requires_grad=True))
    leaf = tensor(x, requires_grad=True)
    (leaf.astype("float32") * 3).sum().backward()
    assert leaf.grad.dtype == np.float64
    np.testing.assert_array_equal(leaf.grad.numpy(), [3, 3, 3])


def test_dlpack_both_ways() -> None:
    torch = pytest.importorskip("torch")
    t = tensor(np.arange(3.0))
    back = torch.from_dlpack(t)
    assert back.data_ptr() == t.data.ctypes.data, "a copy was made"
    assert tensor(torch.arange(3.0)).dtype == np.float32


def test_check_gradients_finds_a_wrong_gradient() -> None:
    class WrongExp(ops.elementwise.Exp):
        def backward(self, be: Any, gy: Any) -> Any:
            return gy * self.y * (1 + 1e-5)

    check_gradients(ops.exp, np.ones(3))
    with pytest.raises(AssertionError, match="input 0: gradient"):
        check_gradients(lambda x: WrongExp().apply(x), np.ones(3))


def test_arrays_of_no_axes_stay_arrays() -> None:
    """NumPy turns them into scalars at every turn; a scalar has no place on a device."""
    t = tensor(2.0, requires_grad=True)
    results = [-t, abs(t), t.exp(), t.log(), t.sqrt(), t.clip(0, 1), t + t, t * t, t - 1, t / 2]
    results += [t**2, t > 1, ops.relu(t), t.sum(), t.reshape(())]
    for y in results:
        assert isinstance(y.data, np.ndarray)
        assert y.numpy().shape == ()
    for _ in range(2):
        (t * 3).backward()
        (t * t + t).sqrt().exp().backward()
    assert isinstance(t.grad.data, np.ndarray)


def test_a_power_of_zero_has_the_gradient_zero() -> None:
    for exponent in (0, tensor(np.zeros(3))):
        t = tensor(np.array([0.0, 1.0, -2.0]), requires_grad=True)
        (t**exponent).sum().backward()
        np.testing.assert_array_equal(t.grad.numpy(), [0, 0, 0])


def test_an_instance_of_a_function_is_one_node() -> None:
    f = ops.elementwise.Exp()
    t = tensor(np.ones(2), requires_grad=True)
    f.apply(t)
    with pytest.raises(GraphError, match="this Exp was applied before"):
        f.apply(t)


def test_every_leaf_has_a_gradient_array_of_its_own() -> None:
    a, b = (tensor(np.ones(3), requires_grad=True) for _ in range(2))
    given = np.ones(3)
    (a + b).backward(given)
    a.grad.data *= 5
    np.testing.assert_array_equal(b.grad.numpy(), [1, 1, 1])
    np.testing.assert_array_equal(given, [1, 1, 1])
    a.grad = None
    a.backward(given)
    a.grad.data *= 5
    np.testing.assert_array_equal(given, [1, 1, 1])


def test_a_refused_backward_leaves_no_half_gradient() -> None:
    a = tensor(np.ones(2), requires_grad=True)
    h = a * 2
    h.sum().backward()
    before = a.grad.numpy().copy()
    with pytest.raises(GraphError, match="freed"):
        (h * a).sum().backward()
    np.testing.assert_array_equal(a.grad.numpy(), before)


def test_axes_are_checked_once_for_all() -> None:
    t = tensor(np.ones((2, 3)))
    assert t.sum(np.int64(1)).shape == (2,)
    for call in (
        lambda: t.sum((0, 0)),
        lambda: t.sum("a"),
        lambda: t.max(5),
        lambda: ops.flip(t, 4),
        lambda: ops.stack([t, t], 9),
        lambda: ops.squeeze(t, 9),
    ):
        with pytest.raises(ArgumentError, match=r"axis .* (out of range|must be an integer)"):
            call()
    with pytest.raises(ArgumentError, match="of no values"):
        tensor(np.ones((0, 3))).max()


def test_what_is_no_array_is_told_in_one_line() -> None:
    w = np.ones((1, 1, 1, 1))
    for call in (lambda: gc.relu(3.0), lambda: gc.relu(None), lambda: gc.conv2d(3.0, w)):
        with pytest.raises(DtypeError, match=r"x is (3.0|None), not an array; wrap it with"):
            call()


@pytest.mark.parametrize("wrong", ["dtype", "shape"])
def test_a_gradient_that_does_not_fit_an_inner_node_is_an_error(wrong: str) -> None:
    class Wrong(Function):
        def forward(self, be: Any, x: Any) -> Any:
            return x * 2

        def backward(self, be: Any, gy: Any) -> Any:
            return gy.astype("float64") if wrong == "dtype" else gy[..., :1]

    x = gc.tensor(np.ones((2, 3), "float32"), requires_grad=True)
    with pytest.raises(GraphError, match=r"Wrong.backward gave a gradient .* for an input float32"):
        Wrong().apply(gc.relu(x)).sum().backward()
