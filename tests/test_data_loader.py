"""The loader: order, augmentation, resuming at any batch, threads that end."""

import gc
import json
import threading
import time

import numpy as np
import pytest

from gpuconv.data import DataLoader, Dataset
from gpuconv.data.transforms import Compose, RandomCrop, RandomHorizontalFlip, ToFloat
from gpuconv.errors import ArgumentError, FileError

AUGMENT = Compose([RandomHorizontalFlip(), RandomCrop(4, padding=2), ToFloat()])


@pytest.fixture
def data() -> Dataset:
    """23 random images; the label is the index, so that the order can be read off."""
    images = np.random.default_rng(0).integers(0, 256, (23, 1, 4, 4), dtype=np.uint8)
    return Dataset(images, np.arange(23), tuple(map(str, range(23))))


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    assert workers() == []


def workers() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("gpuconv-data")]


def same(batches: list, others: list) -> None:
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        for array, expected in zip(batch, other, strict=True):
            np.testing.assert_array_equal(array, expected, strict=True)


@pytest.mark.parametrize("prefetch", [0, 1, 2, 50])
@pytest.mark.parametrize("drop_last", [False, True])
def test_batches_in_order(data, prefetch, drop_last):
    loader = DataLoader(data, 5, drop_last=drop_last, prefetch=prefetch)
    batches = list(loader)
    assert len(batches) == len(loader) == (4 if drop_last else 5)
    labels = np.concatenate([labels for _, labels in batches])
    np.testing.assert_array_equal(labels, np.arange(20 if drop_last else 23), strict=True)
    np.testing.assert_array_equal(batches[1][0], data.images[5:10], strict=True)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_the_order_and_the_augmentation_are_as_documented(data, prefetch):
    loader = DataLoader(data, 4, shuffle=True, seed=9, transform=AUGMENT, prefetch=prefetch)
    for epoch in range(3):
        order = np.random.default_rng([9, epoch]).permutation(23)
        for i, (images, labels) in enumerate(loader):
            np.testing.assert_array_equal(labels, order[4 * i : 4 * i + 4])
            rng = np.random.default_rng([9, epoch, i, 1])
            expected = AUGMENT(data.images[order[4 * i : 4 * i + 4]], rng)
            np.testing.assert_array_equal(images, expected, strict=True)


def test_seeds_and_epochs_differ(data):
    def order(seed: int, epochs: int) -> list[int]:
        loader = DataLoader(data, 23, shuffle=True, seed=seed)
        return [labels.tolist() for _ in range(epochs) for _, labels in loader][-1]

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(1, 1)
    assert order(0, 1) != order(0, 2)


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("drop_last", [False, True])
def test_resumes_at_every_batch(data, prefetch, drop_last):
    def loader() -> DataLoader:
        options = {"shuffle": True, "seed": 3, "drop_last": drop_last, "transform": AUGMENT}
        return DataLoader(data, 4, **options, prefetch=prefetch)

    whole, states, through = [], [], loader()
    for _ in range(2):
        for batch in through:
            whole.append(batch)
            states.append((len(whole), json.loads(json.dumps(through.state_dict()))))
        states.append((len(whole), through.state_dict()))
    assert [done for done, _ in states][: len(through)] == list(range(1, len(through) + 1))
    for done, state in states:
        resumed = loader()
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        rest = []
        while resumed.epoch < 2:
            rest.extend(resumed)
        same(rest, whole[done:])
        assert resumed.state_dict() == through.state_dict()


@pytest.mark.parametrize("prefetch", [0, 2, 50])
def test_the_state_counts_batches_handed_out(data, prefetch):
    loader = DataLoader(data, 10, prefetch=prefetch)
    seen = [(loader.epoch, loader.batch)]
    for _ in loader:
        seen.append((loader.epoch, loader.batch))
    seen.append((loader.epoch, loader.batch))
    assert seen == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0)]
    assert loader.state_dict() == {
        "epoch": 1,
        "batch": 0,
        "seed": 0,
        "size": 23,
        "batch_size": 10,
        "shuffle": 0,
        "drop_last": 0,
    }


def test_a_loop_left_half_way_starts_its_epoch_again(data):
    loader = DataLoader(data, 5, shuffle=True, seed=1)
    first, *_ = loader
    for _ in loader:
        break
    assert (loader.epoch, loader.batch) == (1, 1)
    again = list(loader)
    assert len(again) == 5
    assert not np.array_equal(first[1], again[0][1])
    loader.load_state_dict({**loader.state_dict(), "epoch": 0, "batch": 4})
    assert len(list(loader)) == 1  # a loaded state holds for one iteration
    assert len(list(loader)) == 5


def test_two_iterations_at_once_do_not_disturb_each_other(data):
    loader = DataLoader(data, 5, shuffle=True, transform=AUGMENT)
    pairs = list(zip(loader, loader, strict=True))
    same([a for a, _ in pairs], [b for _, b in pairs])


def test_states_of_another_loader_are_refused(data):
    loader = DataLoader(data, 5, shuffle=True, seed=1)
    next(iter(loader))
    state = loader.state_dict()
    wrong = {"seed": 2, "size": 24, "batch_size": 6, "shuffle": 0, "drop_last": 1}
    for key, value in wrong.items():
        with pytest.raises(ArgumentError, match=rf"{key}={value}, this loader {key}={state[key]};"):
            loader.load_state_dict({**state, key: value})
    for key, value in {"epoch": -1, "batch": 6}.items():
        with pytest.raises(ArgumentError, match=f"{key}.*{value}"):
            loader.load_state_dict({**state, key: value})
    for key in state:
        with pytest.raises(ArgumentError, match=f"the state lacks {key}"):
            loader.load_state_dict({k: v for k, v in state.items() if k != key})
        with pytest.raises(ArgumentError, match=key):
            loader.load_state_dict({**state, key: "many"})
    assert loader.state_dict() == state


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_size": 0}, "batch_size=0, must be an int >= 1"),
        ({"batch_size": 2.0}, "batch_size=2.0"),
        ({"batch_size": True}, "batch_size=True"),
        ({"batch_size": "8"}, "batch_size='8'"),
        ({"seed": -1}, "seed=-1, must be an int >= 0"),
        ({"seed": None}, "seed=None"),
        ({"prefetch": -1}, "prefetch=-1"),
        ({"prefetch": 0.5}, "prefetch=0.5"),
        ({"transform": 3}, "transform=3"),
        ({"transform": ToFloat}, "transform=<class"),
        ({"batch_size": 24, "drop_last": True}, "no batch in a dataset of 23 items"),
    ],
)
def test_arguments(data, options, says):
    with pytest.raises(ArgumentError, match=f"DataLoader: {says}"):
        DataLoader(data, **options)


def test_an_empty_dataset(data):
    with pytest.raises(ArgumentError, match="no batch in a dataset of 0 items"):
        DataLoader(data.subset(0))


def test_numpy_ints_will_do(data):
    assert len(list(DataLoader(data, np.int64(5), seed=np.uint8(1)))) == 5


class Broken:
    """A transform that fails at its third call."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.calls = 0

    def __call__(self, images, rng):
        self.calls += 1
        if self.calls == 3:
            raise self.error
        return images


@pytest.mark.parametrize("prefetch", [0, 1, 2, 9])
@pytest.mark.parametrize("error", [FileError("a.png: broken"), KeyError("x"), StopIteration()])
def test_errors_arrive_where_the_batch_would_have(data, prefetch, error):
    loader = DataLoader(data, 5, transform=Broken(error), prefetch=prefetch)
    seen = []
    # A StopIteration must not end the epoch as if it were whole; Python makes it a RuntimeError.
    kind = RuntimeError if isinstance(error, StopIteration) else type(error)
    with pytest.raises(kind):
        seen.extend(loader)
    assert len(seen) == 2
    assert (loader.epoch, loader.batch) == (0, 2)
    assert workers() == []
    assert len(list(loader)) == 5  # and it works again


def test_one_thread_and_a_bounded_queue(data):
    made = []
    loader = DataLoader(data, 1, transform=lambda x, _: made.append(1) or x, prefetch=3)
    for i, _ in enumerate(loader):
        assert len(workers()) <= 1
        if i == 5:
            deadline = time.monotonic() + 10
            while len(made) < 6 + 3 and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(0.02)
            assert len(made) == 6 + 3
            break
    assert len(made) == 9
    assert workers() == []


def test_no_thread_without_prefetch(data):
    for _ in DataLoader(data, 5, prefetch=0):
        assert workers() == []


@pytest.mark.parametrize("how", ["break", "raise", "del", "close", "never started"])
def test_leaving_half_way_stops_the_thread(data, how):
    made = []

    def slow(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        made.append(time.sleep(0.01))
        return images

    loader = DataLoader(data, 1, transform=slow, prefetch=20)
    if how == "break":
        for _ in loader:
            assert len(workers()) == 1
            break
    elif how == "raise":
        with pytest.raises(ZeroDivisionError):
            [1 / 0 for _ in loader]
    else:
        batches = iter(loader)
        if how != "never started":
            next(batches)
            assert len(workers()) == 1
        if how == "close":
            batches.close()
        del batches
    assert workers() == []
    assert len(made) < 15  # the batch in the making is finished, those after it are not begun


def test_a_loop_given_up_in_a_reference_cycle_is_collected(data):
    class Holder:
        pass

    holder = Holder()
    holder.itself = holder
    holder.batches = iter(DataLoader(data, 1))
    next(holder.batches)
    del holder
    gc.collect()
    assert workers() == []
