"""What plan makers give: a call, or one whose weight is packed beforehand, separately."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Packed:
    """run(x, w, b, add, y) in two steps, of which a constant weight needs the first only once.

    `pack(w)` gives an array that `compute(x, packed, b, add, y)` reads in the place of w.
    """

    pack: Callable[[Any], Any]
    compute: Callable[..., None]

    def __call__(self, x: Any, w: Any, *others: Any) -> None:
        self.compute(x, self.pack(w), *others)


@dataclass(frozen=True)
class PackedByTasks(Packed):
    """One whose weight, where it is not constant, is packed by the tasks that use it."""

    run: Callable[..., None]

    def __call__(self, x: Any, w: Any, *others: Any) -> None:
        self.run(x, w, *others)
