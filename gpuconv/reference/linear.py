"""The product of a linear layer, y = x w^T + b, and its gradients in array code."""

from typing import Any

Array = Any


class Linear:
    """The linear part of `Backend`: x (..., in), w (out, in), b (out,), y (..., out)."""

    xp: Any

    def linear(self, x: Array, w: Array, b: Array | None) -> Array:
        """y = x w^T + b over the last axis of x."""
        y = self.xp.matmul(x, w.T)
        if b is not None:
            y += b
        return y

    def linear_grad_input(self, gy: Array, w: Array) -> Array:
        """gx (..., in) of gy (..., out)."""
        return self.xp.matmul(gy, w)

    def linear_grad_weight(self, gy: Array, x: Array) -> Array:
        """gw (out, in): the sum over all but the last axes of gy (..., out) and x (..., in)."""
        return self.xp.matmul(gy.reshape(-1, gy.shape[-1]).T, x.reshape(-1, x.shape[-1]))
