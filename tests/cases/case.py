"""One row of the table of problems: an operation, its peer in torch, and inputs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Make = Callable[[np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Case:
    """`ours(*inputs)` and `peer(torch, *inputs)` must agree, in value and in every gradient.

    An input given as a shape is standard normal in float64 and is differentiated; one given as a
    function of a generator is what it returns: floats are differentiated, labels and masks are not.
    `kinks` says that the function has kinks, at which difference quotients are wrong: inputs are
    then drawn so that all values lie at least 1e-3 apart and away from 0 (a shuffled grid).
    """

    name: str
    ours: Callable[..., Any]
    peer: Callable[..., Any]
    inputs: tuple[tuple[int, ...] | Make, ...]
    kinks: bool = False

    def arrays(self, seed: int = 0) -> list[np.ndarray]:
        rng = np.random.default_rng(seed)
        made = []
        for given in self.inputs:
            if callable(given):
                made.append(given(rng))
            elif self.kinks:
                size = int(np.prod(given))
                grid = (rng.permutation(size) + 0.5 - size / 2 + (size % 2) * 0.25) * (
                    4 / max(size, 4)
                )
                made.append(grid.reshape(given))
            else:
                made.append(rng.standard_normal(given))
        return made
