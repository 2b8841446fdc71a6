"""A traced function gives the bits of the function itself, or is refused."""

import threading

import numpy as np
import pytest

import gpuconv as gc
from gpuconv import models, nn
from gpuconv.errors import ArgumentError, DeviceError

RNG = np.random.default_rng(7)


def images(*shape: int, last: bool = False, dtype: str = "float32") -> np.ndarray:
    x = RNG.standard_normal(shape).astype(dtype)
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) if last else x


def networks() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    gc.manual_seed(3)
    plain = nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(24, 40, 1),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(40, 7),
    )  # fmt: skip
    resnet = models.resnet20()
    return {
        "plain": (plain.eval(), (2, 3, 18, 14)),
        "resnet20": (resnet.eval(), (1, 3, 32, 32)),
        "folded": (nn.fold(resnet), (3, 3, 32, 32)),
    }


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", ["plain", "resnet20", "folded"])
def test_bits_are_those_of_the_function(name: str, threads: int, last: bool) -> None:
    model, shape = networks()[name]
    before = gc.get_num_threads()
    gc.set_num_threads(threads)
    try:
        traced = gc.trace(model, images(*shape, last=last))
        for _ in range(3):
            x = images(*shape, last=last)
            with gc.no_grad():
                wanted = model(x)
                # What others compute meanwhile must not land in the memory of the trace.
                kept = [model(images(*shape, last=last)) for _ in range(3)]
            found = traced(x)
            assert isinstance(found, gc.Tensor)
            np.testing.assert_array_equal(found.data, wanted.data)
            assert kept
    finally:
        gc.set_num_threads(before)


def test_an_array_gives_an_array_and_a_result_is_new() -> None:
    traced = gc.trace(lambda x: gc.relu(x), images(4, 5))
    x, z = images(4, 5), images(4, 5)
    first = traced(x)
    second = traced(z)
    assert type(first) is np.ndarray
    np.testing.assert_array_equal(first, np.maximum(x, 0))
    np.testing.assert_array_equal(second, np.maximum(z, 0))


def test_several_arguments_and_results_and_float64() -> None:
    w = images(6, 3, 3, 3, dtype="float64")

    def both(x: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return gc.conv2d(x, w, padding=1), gc.relu(z)

    shapes = (2, 3, 9, 8), (5, 3)
    traced = gc.trace(both, *(images(*s, dtype="float64") for s in shapes))
    given = [images(*s, dtype="float64") for s in shapes]
    for found, wanted in zip(traced(*given), both(*given), strict=True):
        np.testing.assert_array_equal(found, wanted)


REFUSED = {
    "array code": lambda x: gc.sigmoid(x),
    "arithmetic": lambda x: gc.relu(x) + 1,
    "a branch": lambda x: gc.relu(x) if x.mean() > 0 else gc.relu(-x),
    "a peak": lambda x: gc.relu(x) if x.max() < 10 else gc.relu(gc.relu(x[::-1].copy())),
    "NumPy": lambda x: np.zeros_like(x) + x,
    "array code before a kernel": lambda x: gc.relu(gc.tanh(x)),
    "its argument written to": lambda x: gc.relu(np.multiply(x, 2, out=x)),
}


@pytest.mark.parametrize("example", ["random", "zeros"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_kernels_do_not_do_is_refused(name: str, example: str) -> None:
    x = images(40, 50) if example == "random" else np.zeros((40, 50), "float32")
    with pytest.raises(ArgumentError, match="call it as it is"):
        gc.trace(REFUSED[name], x)


def test_the_layer_that_is_array_code_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Sequential(nn.Sigmoid()), nn.Flatten())
    with pytest.raises(ArgumentError, match=r"trace: 2\.0 \(Sigmoid\) is not done by CPU kernels"):
        gc.trace(model, images(1, 1, 8, 8))


def test_a_model_in_training_mode_is_refused_and_untouched() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    before = model[1].running_mean.numpy().copy()
    with pytest.raises(ArgumentError, match=r"1 \(BatchNorm2d\) is in training mode; call \.eval"):
        gc.trace(model, images(1, 1, 8, 8))
    np.testing.assert_array_equal(model[1].running_mean.numpy(), before)
    with pytest.raises(ArgumentError, match="Dropout"):
        gc.trace(nn.Dropout(0.5), images(3, 4))


def test_the_example_is_not_written_to() -> None:
    x = images(4, 5)
    before = x.copy()
    gc.trace(gc.relu, x)
    np.testing.assert_array_equal(x, before)


def test_wrong_calls() -> None:
    traced = gc.trace(gc.relu, images(4, 5))
    with pytest.raises(ArgumentError, match=r"made for float32 \(4, 5\), called with .*\(5, 4\)"):
        traced(images(5, 4))
    with pytest.raises(ArgumentError, match="float64"):
        traced(images(4, 5, dtype="float64"))
    with pytest.raises(ArgumentError, match="called with"):
        traced(images(4, 5), images(4, 5))
    with pytest.raises(DeviceError, match="NumPy arrays"):
        gc.trace(gc.relu, [1.0, 2.0])
    with pytest.raises(DeviceError, match="NumPy arrays"):
        gc.trace(lambda: 1)
    with pytest.raises(ArgumentError, match="a function or a Module, not 3"):
        gc.trace(3, images(4, 5))  # type: ignore[arg-type]
    planes = gc.trace(gc.relu, images(2, 3, 4, 5))
    with pytest.raises(ArgumentError, match=r"made for float32 \(2, 3, 4, 5\), .* channels-last"):
        planes(images(2, 3, 4, 5, last=True))
    assert repr(planes) == "Traced(1 launches, for float32 (2, 3, 4, 5))"


def test_with_array_code_as_backend_it_says_so(array_code: None) -> None:
    with pytest.raises(DeviceError, match="backend 'cpu'"):
        gc.trace(gc.relu, images(4, 5))


def test_calls_from_several_threads() -> None:
    w = images(96, 64, 1, 1)  # a product, which packs into scratch memory
    traced = gc.trace(lambda x: gc.conv2d(x, w), images(1, 64, 40, 40))
    wrong = []

    def work(seed: int) -> None:
        x = np.random.default_rng(seed).standard_normal((1, 64, 40, 40)).astype("float32")
        wanted = gc.conv2d(x, w)
        for _ in range(60):
            found = gc.conv2d(x, w) if seed == 9 else traced(x)
            if not np.array_equal(found, wanted):
                wrong.append(seed)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for worker in workers:
        worker.start()
    work(9)  # the thread that traced computes too
    for worker in workers:
        worker.join()
    assert not wrong
