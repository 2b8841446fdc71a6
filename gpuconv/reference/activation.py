"""Elementwise operations that have kernels, in array code; the others are in `gpuconv.ops`."""

from typing import Any

Array = Any


class Activation:
    """The elementwise part of `Backend`."""

    xp: Any

    def relu(self, x: Array) -> Array:
        """max(x, 0); NaN stays."""
        return self.xp.maximum(x, 0)

    def relu_grad(self, gy: Array, y: Array) -> Array:
        """gx of gy and the result y of `relu`: 0 where y is 0; NaN passes it on, as in PyTorch."""
        return self.xp.where(y <= 0, self.xp.zeros_like(gy), gy)

    def add(self, a: Array, b: Array) -> Array:
        """a + b, of one shape."""
        return a + b
