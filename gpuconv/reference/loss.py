"""Softmax cross entropy of labels in array code, and its gradient.

Class scores are (N, C, *in) with labels (N, *in). A position's loss is the sum over classes of q
times -log(softmax(x)), q = w[label] (1 - s) at the label plus w s / C everywhere, for smoothing s.
"""

from typing import Any

Array = Any


def log_probabilities(xp: Any, x: Array, axis: int) -> Array:
    """log(softmax(x)) along `axis`; no exponential overflows."""
    if not x.shape[axis]:
        return x.copy()
    y = x - x.max(axis=axis, keepdims=True)
    y -= xp.log(xp.exp(y).sum(axis=axis, keepdims=True))
    return y


def label_weights(
    xp: Any, target: Array, w: Array | None, ignore_index: int, dtype: Any
) -> tuple[Array, Array]:
    """Labels that are safe to index with (0 where ignored), and w[label] or 1 (0 where ignored)."""
    counted = target != ignore_index
    labels = xp.where(counted, target, 0)
    if w is None:
        return labels, counted.astype(dtype)
    return labels, xp.where(counted, w[labels], 0)


def picked(xp: Any, x: Array, labels: Array) -> Array:
    """x[n, labels[n, *i], *i] as (N, *in)."""
    return xp.take_along_axis(x, xp.expand_dims(labels, 1), axis=1).squeeze(1)


def hits(xp: Any, classes: int, labels: Array) -> Array:
    """True at (n, c, *i) where c is the label: (N, C, *in)."""
    numbers = xp.arange(classes).reshape(-1, *(1,) * (labels.ndim - 1))
    return xp.expand_dims(labels, 1) == numbers


class Loss:
    """The loss part of `Backend`."""

    xp: Any

    def softmax_cross_entropy(
        self, x: Array, target: Array, w: Array | None, ignore_index: int, smoothing: float
    ) -> tuple[Array, Array]:
        """The loss of every position (N, *in), 0 where the label is `ignore_index`; not reduced.

        x (N, C, *in) scores, target (N, *in) int64, each in 0..C-1 or `ignore_index`, w (C,) class
        weights or None. The second result is for `softmax_cross_entropy_grad` alone.
        """
        xp = self.xp
        y = log_probabilities(xp, x, 1)
        labels, weights = label_weights(xp, target, w, ignore_index, x.dtype)
        ignored = target == ignore_index
        loss = xp.where(ignored, 0, picked(xp, y, labels)) * weights * (smoothing - 1)
        if smoothing:
            over_classes = (y if w is None else y * _along_classes(w, y)).sum(axis=1)
            loss -= xp.where(ignored, 0, over_classes) * (smoothing / x.shape[1])
        return loss, y

    def softmax_cross_entropy_grad(
        self,
        g: Array,
        saved: Array,
        target: Array,
        w: Array | None,
        ignore_index: int,
        smoothing: float,
    ) -> Array:
        """gx (N, C, *in) of g (N, *in), the gradient of every position's loss."""
        xp, classes = self.xp, saved.shape[1]
        labels, weights = label_weights(xp, target, w, ignore_index, saved.dtype)
        at_label = g * weights * (1 - smoothing)
        total = at_label
        if smoothing:
            everywhere = g * (target != ignore_index) * (smoothing / classes)
            total = at_label + everywhere * (classes if w is None else w.sum())
        gx = xp.exp(saved)
        gx *= xp.expand_dims(total, 1)
        gx -= hits(xp, classes, labels) * xp.expand_dims(at_label, 1)
        if smoothing:
            spread = xp.expand_dims(everywhere, 1)
            gx -= spread if w is None else spread * _along_classes(w, gx)
        return gx


def _along_classes(w: Array, x: Array) -> Array:
    """(C,) as (C, 1, ...), to go with an array (N, C, *in)."""
    return w.reshape(-1, *(1,) * (x.ndim - 2))
