"""Normalisation in array code: the step that batch, group, layer and instance norm share."""

from math import prod
from typing import Any

Array = Any


def channel_axes(x: Array) -> tuple[int, ...]:
    """All axes of (N, C, *in) but the channels'."""
    return (0, *range(2, x.ndim))


def per_channel(v: Array, ndim: int) -> Array:
    """(C,) as (1, C, 1, ...), to go with an array (N, C, *in) of `ndim` axes."""
    return v.reshape(1, -1, *(1,) * (ndim - 2))


def affine(xhat: Array, w: Array | None, b: Array | None) -> Array:
    """xhat * w + b, either left out if None; w and b already broadcast to xhat."""
    if w is None:
        return xhat if b is None else xhat + b
    y = xhat * w
    if b is not None:
        y += b
    return y


class Norm:
    """The normalisation part of `Backend`."""

    xp: Any

    def normalize(
        self, x: Array, axes: tuple[int, ...], eps: float
    ) -> tuple[Array, Array, Array, Array]:
        """xhat = (x - mean) / sqrt(var + eps) over `axes`; returns xhat, mean, 1/sqrt(...), var.

        The last three keep the reduced axes with size 1; var is biased (divided by the count). The
        mean is taken again of what its subtraction left, and subtracted too: a float32 mean of 1e4
        is off by up to 5e-4 even when rounded perfectly, and by far more when summed in sequence.
        Source: the corrected two-pass algorithm of Chan, Golub and LeVeque, "Algorithms for
        computing the sample variance", The American Statistician 37 (1983).
        """
        if not prod(x.shape[a] for a in axes):
            kept = tuple(1 if a in axes else n for a, n in enumerate(x.shape))
            zero = self.xp.zeros(kept, dtype=x.dtype)
            return x.copy(), zero, zero, zero
        mean = x.mean(axis=axes, keepdims=True)
        xhat = x - mean
        left = xhat.mean(axis=axes, keepdims=True)
        xhat -= left
        var = (xhat * xhat).mean(axis=axes, keepdims=True)
        inv_std = 1 / self.xp.sqrt(var + eps)
        xhat *= inv_std
        return xhat, mean + left, inv_std, var

    def normalize_grad(self, g: Array, xhat: Array, inv_std: Array, axes: tuple[int, ...]) -> Array:
        """gx of g, the gradient of xhat; the others as `normalize` returned them for `axes`."""
        count = max(prod(g.shape[a] for a in axes), 1)
        gx = xhat * ((g * xhat).sum(axis=axes, keepdims=True) / -count)
        gx += g
        gx -= g.sum(axis=axes, keepdims=True) / count
        gx *= inv_std
        return gx

    def batch_norm(
        self, x: Array, w: Array | None, b: Array | None, eps: float
    ) -> tuple[Array, Array, Array, tuple[Array, ...]]:
        """Training's batch normalisation of x (N, C, *in), with w and b (C,) or None.

        Returns y, mean (C,), biased var (C,), and what this backend's `batch_norm_grad` wants to
        see again: a tuple only it looks into. Source: Ioffe and Szegedy, arXiv 1502.03167.
        """
        xhat, mean, inv_std, var = self.normalize(x, channel_axes(x), eps)
        w, b = (None if v is None else per_channel(v, x.ndim) for v in (w, b))
        return affine(xhat, w, b), mean.reshape(-1), var.reshape(-1), (xhat, inv_std)

    def batch_norm_grad(
        self, gy: Array, w: Array | None, saved: tuple[Array, ...], need_x: bool = True
    ) -> tuple[Array | None, Array, Array]:
        """gx (None unless `need_x`), gw and gb (C,) of `batch_norm` with the same w."""
        xhat, inv_std = saved
        axes = channel_axes(gy)
        gw = (gy * xhat).sum(axis=axes)
        gb = gy.sum(axis=axes)
        if not need_x:
            return None, gw, gb
        # normalize_grad with both sums at hand: w is constant over the axes, so it may come last.
        count = max(prod(gy.shape[a] for a in axes), 1)
        gx = xhat * per_channel(gw / -count, gy.ndim)
        gx += gy
        gx -= per_channel(gb / count, gy.ndim)
        gx *= inv_std if w is None else inv_std * per_channel(w, gy.ndim)
        return gx, gw, gb

    def scale_shift(self, x: Array, mean: Array, scale: Array, b: Array | None) -> Array:
        """(x - mean) * scale + b of each channel of x (N, C, *in); vectors (C,), b may be None.

        Not folded into a x + c: that loses digits where the mean is large.
        """
        y = x - per_channel(mean, x.ndim)
        y *= per_channel(scale, x.ndim)
        if b is not None:
            y += per_channel(b, x.ndim)
        return y
