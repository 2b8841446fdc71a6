"""The precision of float32: what is allowed, and that it is one setting for all."""

import numpy as np
import pytest

import gpuconv as gc
from gpuconv.errors import ArgumentError


def test_levels() -> None:
    assert gc.get_float32_precision() == "high"
    for level in ("highest", "tf32", "high"):
        gc.set_float32_precision(level)
        assert gc.get_float32_precision() == level
    for wrong in ("medium", "", None, 3):
        with pytest.raises(ArgumentError, match="is unknown; use one of highest, high, tf32"):
            gc.set_float32_precision(wrong)  # type: ignore[arg-type]
    assert gc.get_float32_precision() == "high"


def test_it_takes_effect_on_calls_made_before() -> None:
    """Results known from an earlier call are not reused at another level."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 32, 28, 28), dtype=np.float32)
    w = rng.standard_normal((32, 32, 3, 3), dtype=np.float32)
    with gc.backend("cpu"):
        quick = gc.conv2d(x, w, padding=1)
        try:
            gc.set_float32_precision("highest")
            exact = gc.conv2d(x, w, padding=1)
            again = gc.conv2d(x, w, padding=1, algo="direct")
        finally:
            gc.set_float32_precision("high")
        np.testing.assert_array_equal(exact, again)
        assert (exact != quick).any()
        np.testing.assert_array_equal(gc.conv2d(x, w, padding=1), quick)
