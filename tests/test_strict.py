"""A whole training step as on a GPU: model, loss, gradients, clipping, every optimizer."""

import inspect
import re
from typing import Any

import numpy as np
import pytest

import gpuconv as gc
from gpuconv import models, nn, optim
from gpuconv.backends import Backend
from tests.strict import FUNCTIONS, METHODS, StrictArray, strict

OPTIMIZERS: dict[str, Any] = {
    "SGD": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "Adam": lambda p: optim.Adam(p, lr=1e-2, amsgrad=True, weight_decay=1e-3),
    "AdamW": lambda p: optim.AdamW(p, lr=1e-2),
    "RMSprop": lambda p: optim.RMSprop(p, lr=1e-2, momentum=0.9, centered=True),
}


def train(optimizer: str, model: nn.Module, x: Any, labels: Any) -> list[float]:
    chosen = OPTIMIZERS[optimizer](model.parameters())
    losses = []
    for _ in range(3):
        loss = gc.cross_entropy(model(x), labels, label_smoothing=0.1)
        chosen.zero_grad()
        loss.backward()
        optim.clip_grad_norm_(model.parameters(), 1.0)
        chosen.step()
        losses.append(loss.item())
    return losses


@pytest.mark.usefixtures("array_code")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ["lenet5", "simple_cnn", "resnet20"])
def test_training_runs_as_on_a_gpu(name: str, optimizer: str, rng: np.random.Generator) -> None:
    x = rng.standard_normal((4, 1, 28, 28)).astype(np.float32)
    labels = rng.integers(0, 10, 4)
    gc.manual_seed(1)
    expected_model = models.create(name, in_channels=1)
    state = {k: v.copy() for k, v in expected_model.state_dict().items()}
    gc.manual_seed(2)
    expected = train(optimizer, expected_model, gc.tensor(x), gc.tensor(labels))
    with gc.backend(Backend(strict, "strict")):
        model = models.create(name, in_channels=1)
        model.load_state_dict(state)
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.data = strict.asarray(tensor.data)
        gc.manual_seed(2)
        losses = train(
            optimizer, model, gc.tensor(strict.asarray(x)), gc.tensor(strict.asarray(labels))
        )
        # Evaluation mode uses the running statistics that training left on the device.
        model.eval()
        model(gc.tensor(strict.asarray(x)))
    assert losses == expected
    after = expected_model.state_dict()
    for key, value in model.state_dict().items():
        np.testing.assert_array_equal(value.get(), after[key], err_msg=key)


def test_the_stand_in_has_nothing_that_cupy_lacks() -> None:
    cupy = pytest.importorskip("cupy", reason="CuPy imports without a GPU; it is not installed")
    assert [name for name in vars(strict) if not hasattr(cupy, name)] == []
    methods = [name for name in vars(StrictArray) if not name.startswith("_")]
    assert [name for name in methods if not hasattr(cupy.ndarray, name)] == []


def parameters(text: str) -> dict[str, Any]:
    """Names and kinds of the parameters of a function written as in the table."""
    return {
        p.name: p.kind for p in inspect.signature(eval(f"lambda {text}: 0")).parameters.values()
    }


def cupys(function: Any) -> dict[str, Any]:
    """The same of CuPy's own function: what Cython compiled says it in its docstring."""
    try:
        text = str(inspect.signature(function))[1:-1]
    except (TypeError, ValueError):
        text = re.search(r"\((.*?)\)", function.__doc__)[1].replace("\\", "")
    text = re.sub(r"\bself(, )?|Py_ssize_t |\) ->.*", "", text)
    text = re.sub(r": '[^']*'", "", text)
    return parameters(re.sub(r"<class '(\w+)'>", r"\1", text))


FREE = ("matmul", "einsum", "pad")  # these take *args or **kwargs; the table follows their text


@pytest.mark.parametrize("kind", ["functions", "methods"])
def test_the_table_says_what_cupy_says(kind: str) -> None:
    cupy = pytest.importorskip("cupy", reason="CuPy imports without a GPU; it is not installed")
    table, place = (FUNCTIONS, cupy) if kind == "functions" else (METHODS, cupy.ndarray)
    for text, names in table.items():
        for name in names.split():
            mine = parameters(text)
            if name in FREE:
                continue
            theirs = cupys(getattr(place, name))
            theirs.pop("casting", None)
            mine.pop("casting", None)
            assert {n: int(k) for n, k in mine.items()} == {n: int(k) for n, k in theirs.items()}, (
                name
            )


HOST = np.arange(6.0).reshape(2, 3)
A, B = strict.asarray(HOST), strict.asarray(HOST > 2)
INDEX = strict.asarray([0, 1])
REFUSED: dict[str, tuple[Any, str]] = {
    "sum-where": (lambda: strict.sum(A, where=B), "CuPy's sum.*where"),
    "sum-initial": (lambda: A.sum(initial=1.0), "CuPy's sum.*initial"),
    "mean-where": (lambda: A.mean(where=B), "CuPy's mean.*where"),
    "max-initial": (lambda: A.max(initial=0.0), "CuPy's max.*initial"),
    "min-dtype": (lambda: A.min(dtype=np.float32), "CuPy's min.*dtype"),
    "any-where": (lambda: strict.any(B, where=B), "CuPy's any.*where"),
    "var-correction": (lambda: A.var(correction=1), "CuPy's var.*correction"),
    "std-correction": (lambda: strict.std(A, correction=1), "CuPy's std.*correction"),
    "take-mode": (lambda: strict.take(A, INDEX, axis=0, mode="clip"), "CuPy's take.*mode"),
    "take-mode-method": (lambda: A.take(INDEX, mode="wrap"), "CuPy's take.*mode"),
    "take-along-no-axis": (lambda: strict.take_along_axis(A, INDEX), "missing.*'axis'"),
    "argsort-order": (lambda: strict.argsort(A, order=None), "CuPy's argsort.*order"),
    "argsort-kind": (lambda: strict.argsort(A, kind="quicksort"), "kind=None or 'stable' only"),
    "sort-kind": (lambda: strict.sort(A, kind="heapsort"), "kind=None or 'stable' only"),
    "clip-min": (lambda: strict.clip(A, min=0), "CuPy's clip.*min"),
    "clip-one-bound": (lambda: strict.clip(A, 0), "missing.*a_max"),
    "zeros-device": (lambda: strict.zeros(3, device="cpu"), "CuPy's zeros.*device"),
    "ones-like": (lambda: strict.ones((3,), like=A), "CuPy's ones.*like"),
    "empty-device": (lambda: strict.empty(3, device="cpu"), "CuPy's empty.*device"),
    "full-device": (lambda: strict.full(3, 1.0, device="cpu"), "CuPy's full.*device"),
    "ufunc-where": (lambda: strict.exp(A, where=B), "CuPy's exp.*where"),
    "ufunc-binary-where": (lambda: strict.multiply(A, A, where=B), "CuPy's multiply.*where"),
    "add-where": (lambda: strict.add(A, A, where=B), "CuPy's add.*where"),
    "astype-device": (lambda: A.astype(np.float32, device="cpu"), "CuPy's astype.*device"),
    "writeable": (
        lambda: strict.lib.stride_tricks.as_strided(A, (2,), (8,), writeable=False),
        "CuPy's as_strided.*writeable",
    ),
    "reshape-shape": (lambda: strict.reshape(A, shape=(3, 2)), "CuPy's reshape.*shape"),
    "too-many": (lambda: strict.take_along_axis(A, INDEX, 0, "raise"), "takes 3 positional"),
    "where-bool": (lambda: strict.where(True, A, A), "where: a bool .*arrays only"),
    "where-list": (lambda: strict.where([True, False, True], A, A), "where: a list"),
    "where-branch": (lambda: strict.where(B, A, [1.0, 2.0, 3.0]), "where: a list is no operand"),
    "minus-list": (lambda: A - [1.0, 2.0, 3.0], "__sub__: a list is no operand"),
    "list-minus": (lambda: [1.0, 2.0, 3.0] - A, "__rsub__: a list is no operand"),
    "times-tuple": (lambda: A * (1.0, 2.0, 3.0), "__mul__: a tuple is no operand"),
    "compare-list": (lambda: A == [1.0, 2.0, 3.0], "__eq__: a list is no operand"),
    "inplace-list": (lambda: A.copy().__iadd__([1.0, 2.0, 3.0]), "__iadd__: a list"),
    "set-list": (lambda: A.copy().__setitem__(0, [1.0, 2.0, 3.0]), "__setitem__: a list"),
    "maximum-list": (lambda: strict.maximum(A, [1.0, 2.0, 3.0]), "maximum: a list is no operand"),
    "exp-list": (lambda: strict.exp([1.0]), "exp: a list is no operand"),
    "sum-list": (lambda: strict.sum([1, 2]), "sum: a list .*arrays only"),
    "mean-number": (lambda: strict.mean(3.0), "mean: a float .*arrays only"),
    "matmul-list": (lambda: strict.matmul(A, [1.0, 2.0, 3.0]), "matmul: a list"),
    "concatenate-lists": (lambda: strict.concatenate([A[0], [1.0]]), "concatenate: a list"),
    "stack-numbers": (lambda: strict.stack([1.0, 2.0]), "stack: a float"),
    "einsum-list": (lambda: strict.einsum("i->", [1.0]), "einsum: a list"),
    "numpy": (lambda: A + HOST, "NumPy ndarray was mixed"),
    "numpy-inside": (lambda: strict.concatenate([A, HOST]), "NumPy ndarray was mixed"),
    "numpy-scalar": (lambda: A * np.float64(2), "NumPy float64 was mixed"),
    "numpy-function": (lambda: np.sum(A), "NumPy's sum was called"),
    "numpy-ufunc": (lambda: np.exp(A), "NumPy's exp was called"),
    "conversion": (lambda: np.asarray(A), "implicit conversion"),
    "complex": (lambda: A.astype(np.complex64), "dtype complex64"),
    "text": (lambda: strict.asarray(["a"]), "dtype <U1"),
    "object": (lambda: strict.asarray([None]), "dtype object"),
    "time": (lambda: strict.zeros(2, dtype="M8[s]"), r"dtype datetime64"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cupy_refuses_is_refused(name: str) -> None:
    call, message = REFUSED[name]
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.skipif(np.dtype(np.longdouble).itemsize <= 8, reason="long doubles are doubles here")
def test_long_doubles_are_refused() -> None:
    with pytest.raises(TypeError, match="is not used on a GPU"):
        A.astype(np.longdouble)


# CuPy gives the element at the index modulo the size, without a word.
OUTSIDE = {
    "take": lambda: strict.take(A, strict.asarray([0, 2]), axis=0),
    "take-method": lambda: A.take(strict.asarray([0, -3]), axis=0),
    "getitem": lambda: A[strict.asarray([0, 2])],
    "getitem-second-axis": lambda: A[:, strict.asarray([3])],
    "getitem-list": lambda: A[[0, 2]],
    "setitem": lambda: A.copy().__setitem__(strict.asarray([2]), 0.0),
    "take_along_axis": lambda: strict.take_along_axis(A, strict.asarray([[0, 3], [0, 1]]), 1),
    "add.at": lambda: strict.add.at(A.copy(), strict.asarray([2]), 1.0),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_index_out_of_range_is_an_error(name: str) -> None:
    with pytest.raises(IndexError, match="out of bounds"):
        OUTSIDE[name]()


def test_lists_are_fine_where_cupy_takes_them() -> None:
    assert strict.concatenate([A, A], axis=0).shape == (4, 3)
    assert strict.stack((A, A)).shape == (2, 2, 3)
    assert A.reshape([3, 2]).shape == strict.reshape(A, [6, 1]).reshape(3, 2).shape
    assert A.transpose([1, 0]).shape == (3, 2)
    assert A.sum(axis=(0, 1)).shape == ()
    assert A[[1, 0]].shape == strict.take(A, [1, 0], axis=0).shape
    assert strict.pad(A, [(0, 0), (1, 2)], mode="edge").shape == (2, 6)
    assert strict.where(B, A, 0.0).shape == strict.maximum(A, 1.0).shape == (1.0 + A).shape
    assert strict.asarray([[1, 2]]).shape == (1, 2)
