"""The one source of randomness: initialisers and dropout draw from it, checkpoints store it.

Only the host's generator has state. Where an array of random numbers is wanted on a device, a seed
is drawn here and the array is made from that seed, so that restoring this state restores
everything.
"""

from typing import Any

import numpy as np

from gpuconv.errors import ArgumentError

_generator = np.random.default_rng(0)


def manual_seed(seed: int) -> None:
    """Start the library's generator anew from `seed`, an integer of at least 0."""
    if not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ArgumentError(f"manual_seed: {seed!r} must be an integer of at least 0")
    _generator.bit_generator.state = np.random.default_rng(seed).bit_generator.state


def generator() -> np.random.Generator:
    """The library's generator (NumPy's PCG64)."""
    return _generator


def draw_seed() -> int:
    """A seed of 63 bits for an array made elsewhere; advances the generator by one draw."""
    return int(_generator.integers(1 << 63))


def get_state() -> dict[str, Any]:
    """The generator's state: plain integers and strings, fit for JSON."""
    return dict(_generator.bit_generator.state)


def set_state(state: dict[str, Any]) -> None:
    """Restore what `get_state` returned."""
    _generator.bit_generator.state = state
