"""The `DataLoader`: batches in a shuffled order, made ahead in a thread, resumable at any batch."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from gpuconv.data.dataset import Dataset
from gpuconv.data.transforms import Transform
from gpuconv.errors import ArgumentError

Batch = tuple[np.ndarray, np.ndarray]

_THREAD = "gpuconv-data"


class DataLoader:
    """Iterates over a dataset once per `for`, in batches `(images (B, C, H, W), labels (B,))`.

    What a batch holds depends on the seed, the epoch and its number alone: not on `prefetch`, and
    not on whether the run was interrupted. The order of epoch e is
    ``np.random.default_rng([seed, e]).permutation(n)``, and the transform of its batch i is given
    ``np.random.default_rng([seed, e, i, 1])``.

    `prefetch` batches are made ahead by one thread, which ends with the iteration, however that
    ends; 0 makes each batch when it is asked for. An error in a dataset or a transform arrives
    where the batch would have.

    `epoch` and `batch` say what comes next: while the loop's body works on batch i, `batch` is
    i + 1, whatever was made ahead; after the last one comes `epoch` + 1, `batch` 0, once the loop
    has ended. A loop left half-way starts its epoch again the next time, unless
    `load_state_dict` said where to go on.

    Raises `ArgumentError` for arguments that are not valid or give no batch.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int = 32,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        transform: Transform | None = None,
        prefetch: int = 2,
    ) -> None:
        if isinstance(dataset, (tuple, list, np.ndarray)) or not hasattr(dataset, "__len__"):
            raise ArgumentError(
                f"DataLoader: a {type(dataset).__name__} is no dataset; wrap the arrays with"
                " gpuconv.data.Dataset(images, labels)"
            )
        self.dataset = dataset
        self.batch_size = _check_int("batch_size", batch_size, 1)
        self.shuffle = bool(shuffle)
        self.seed = _check_int("seed", seed, 0)
        self.drop_last = bool(drop_last)
        self.transform = transform
        self.prefetch = _check_int("prefetch", prefetch, 0)
        self.epoch = 0
        self.batch = 0
        self._resumes = False
        if transform is not None and (not callable(transform) or isinstance(transform, type)):
            raise ArgumentError(
                f"DataLoader: transform={transform!r}, must be a callable (images, rng) -> images"
            )
        if len(self) == 0:
            raise ArgumentError(
                f"DataLoader: no batch in a dataset of {len(dataset)} items with"
                f" batch_size={batch_size} and drop_last={drop_last}; lower batch_size or add items"
            )

    def __len__(self) -> int:
        """Batches in an epoch."""
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[Batch]:
        if not self._resumes:
            self.batch = 0
        self._resumes = False
        return self._iterate(self.epoch, self.batch)

    def _iterate(self, epoch: int, first: int) -> Iterator[Batch]:
        count = len(self.dataset)
        order = np.arange(count)
        if self.shuffle:
            order = np.random.default_rng([self.seed, epoch]).permutation(count)
        make = partial(self._make, order, epoch)
        numbers = range(first, len(self))
        batches: Iterator[Batch] = (make(number) for number in numbers)
        if self.prefetch:
            batches = _made_ahead(make, numbers, self.prefetch)
        for number, batch in zip(numbers, batches, strict=True):
            self.epoch, self.batch = epoch, number + 1
            yield batch
        self.epoch, self.batch = epoch + 1, 0

    def _make(self, order: np.ndarray, epoch: int, number: int) -> Batch:
        rows = order[number * self.batch_size : (number + 1) * self.batch_size]
        images, labels = self.dataset[rows]
        if self.transform is not None:
            images = self.transform(images, np.random.default_rng([self.seed, epoch, number, 1]))
        return images, labels

    def state_dict(self) -> dict[str, int]:
        """Where the iteration is, and what it is over: plain ints, for `load_state_dict`."""
        return {"epoch": self.epoch, "batch": self.batch, **self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Make the next iteration go on at the state's batch of the state's epoch.

        A state taken at the last batch of an epoch leaves nothing of it: the next iteration is
        empty, and ends that epoch. Raises `ArgumentError`, and changes nothing, if the state is
        incomplete or of a loader over other data, of another batch size, seed or order.
        """
        identity = self._identity()
        missing = [key for key in ("epoch", "batch", *identity) if key not in state]
        if missing:
            raise ArgumentError(f"DataLoader: the state lacks {', '.join(missing)}")
        for key, value in identity.items():
            if state[key] != value:
                raise ArgumentError(
                    f"DataLoader: the state has {key}={state[key]!r}, this loader {key}={value};"
                    " resume with the same data and settings"
                )
        epoch = _check_int("epoch of the state", state["epoch"], 0)
        batch = _check_int("batch of the state", state["batch"], 0)
        if batch > len(self):
            raise ArgumentError(f"DataLoader: the state has batch={batch} of {len(self)}")
        self.epoch, self.batch, self._resumes = epoch, batch, True

    def _identity(self) -> dict[str, int]:
        return {
            "seed": self.seed,
            "size": len(self.dataset),
            "batch_size": self.batch_size,
            "shuffle": int(self.shuffle),
            "drop_last": int(self.drop_last),
        }


def _made_ahead(
    make: Callable[[int], Batch], numbers: Iterable[int], ahead: int
) -> Iterator[Batch]:
    """`map(make, numbers)`, up to `ahead` results being made by a thread before they are due."""
    worker = ThreadPoolExecutor(1, _THREAD)
    try:
        waiting = iter(numbers)
        queue: deque[Future[Batch]] = deque(worker.submit(make, n) for n in islice(waiting, ahead))
        while queue:
            batch = queue.popleft().result()
            queue.extend(worker.submit(make, n) for n in islice(waiting, 1))
            yield batch
    finally:
        # The collector may run this in a worker, which cannot wait for itself.
        outside = not threading.current_thread().name.startswith(_THREAD)
        worker.shutdown(wait=outside, cancel_futures=True)


def _check_int(name: str, value: object, least: int) -> int:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least:
        raise ArgumentError(f"DataLoader: {name}={value!r}, must be an int >= {least}")
    return int(value)
