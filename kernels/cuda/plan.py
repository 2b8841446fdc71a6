"""What a pass over arrays launches, written down once and run many times by a device.

    plan = Plan("x", "w", "y")                    # the arrays it is run with
    matrix = plan.own(size)                       # an array of its own
    plan.launch(PACK, grid, "w", matrix, n=n)
    plan.launch(PRODUCT, grid, "x", matrix, "y", n=n)
    run = device.sequence(plan)
    run(x, w, y)

So a device can write the pointers of all launches at once, and allocate its own memory at once:
what a call costs the host is as long as a small kernel takes.
"""

from collections.abc import Iterator
from typing import NamedTuple

from gpuconv.kernels.cuda.compiler import Kernel


def blocks(total: int, threads: int) -> tuple[int, int, int]:
    """A grid of one thread each for `total` numbers, in blocks of `threads`."""
    return -(-total // threads), 1, 1


class Launch(NamedTuple):
    """A kernel, its grid, its arrays by name in order (None: a null pointer), its numbers."""

    kernel: Kernel
    grid: tuple[int, int, int]
    arrays: tuple[str | None, ...]
    numbers: dict[str, float]


class Plan:
    """Launches, one after another, of arrays that are given when it is run, and of its own."""

    def __init__(self, *arrays: str) -> None:
        self.arrays = arrays
        self.owned: dict[str, int] = {}  # sizes
        self.launches: list[Launch] = []

    def __iter__(self) -> Iterator[Launch]:
        return iter(self.launches)

    def __str__(self) -> str:
        return ", ".join(f"kernel {launch.kernel.name}" for launch in self)

    def own(self, size: int) -> str:
        """The name of a new float32 array of `size` numbers, there while the plan runs."""
        name = f"own{len(self.owned)}"
        self.owned[name] = size
        return name

    def launch(
        self, kernel: Kernel, grid: tuple[int, int, int], *arrays: str | None, **numbers: float
    ) -> None:
        """Launch `kernel` next, with these arrays for its pointers, and all of its numbers."""
        wanted = [name for name, kind in kernel.parameters.items() if kind.endswith("*")]
        if len(arrays) != len(wanted):
            raise TypeError(f"kernel {kernel.name} takes the arrays {', '.join(wanted)}")
        self.launches.append(Launch(kernel, grid, arrays, numbers))
