"""Losses, with the semantics of torch.nn.functional: of labels, of numbers, of probabilities."""

from math import nan, prod
from typing import Any

import numpy as np

from gpuconv.autograd import Function, Tensor
from gpuconv.backends import Array, Backend, from_foreign, is_array
from gpuconv.errors import ArgumentError, DtypeError
from gpuconv.ops.activation import log1p_exp, log_softmax, logistic
from gpuconv.ops.dtypes import check_dtypes
from gpuconv.ops.elementwise import add, multiply
from gpuconv.ops.reduce import sum as sum_over
from gpuconv.reference.loss import hits, label_weights, picked
from gpuconv.shapes import Ints

REDUCTIONS = ("none", "mean", "sum")


class NLLLoss(Function):
    """-x at the label, times its class's weight; the mean is over the sum of those weights."""

    def __init__(self, op: str, ignore_index: int, reduction: str) -> None:
        self.op, self.ignore_index, self.reduction = op, ignore_index, reduction

    def forward(self, be: Backend, x: Array, target: Array, w: Array | None) -> Array:
        xp = be.xp
        check_dtypes(self.op, x=x, weight=w)
        check_classes(self.op, x.shape, w)
        self.target, self.w = check_labels(self.op, target, x.shape, self.ignore_index), w
        loss = self.losses(be, x)
        if self.reduction == "none":
            return loss
        total = xp.asarray(loss.sum())
        if self.reduction == "sum":
            return total
        _, weights = label_weights(xp, self.target, w, self.ignore_index, x.dtype)
        count = xp.asarray(weights.sum())
        # 0 / 0 is NaN, as in PyTorch, but no warning.
        self.count = xp.where(count == 0, xp.ones_like(count), count)
        return xp.where(count == 0, nan, total / self.count)

    def backward(self, be: Backend, gy: Array) -> tuple[Array | None, ...]:
        if self.reduction == "mean":
            gy = be.xp.asarray(gy / self.count)
        return self.grad(be, be.xp.broadcast_to(gy, self.target.shape)), None, None

    def losses(self, be: Backend, x: Array) -> Array:
        labels, weights = label_weights(be.xp, self.target, self.w, self.ignore_index, x.dtype)
        self.classes = x.shape[1]
        x = be.xp.where(self.target == self.ignore_index, 0, picked(be.xp, x, labels))
        return -x * weights

    def grad(self, be: Backend, g: Array) -> Array:
        labels, weights = label_weights(be.xp, self.target, self.w, self.ignore_index, g.dtype)
        return hits(be.xp, self.classes, labels) * be.xp.expand_dims(-g * weights, 1)


class CrossEntropy(NLLLoss):
    """`NLLLoss` of the logarithm of the softmax of x, with smoothing: the backend's own kernel."""

    def __init__(self, op: str, ignore_index: int, reduction: str, smoothing: float) -> None:
        super().__init__(op, ignore_index, reduction)
        self.smoothing = smoothing

    def losses(self, be: Backend, x: Array) -> Array:
        loss, self.saved = be.softmax_cross_entropy(
            x, self.target, self.w, self.ignore_index, self.smoothing
        )
        return loss

    def grad(self, be: Backend, g: Array) -> Array:
        return be.softmax_cross_entropy_grad(
            g, self.saved, self.target, self.w, self.ignore_index, self.smoothing
        )


class Pointwise(Function):
    """A loss of each number of x and target; `slope(xp, i)` is its derivative by input i.

    Both are multiplied by w, if there is one; p weighs the positive in `BCEWithLogitsLoss`.
    """

    def __init__(self, op: str, reduction: str) -> None:
        self.op, self.reduction = op, reduction

    def forward(
        self,
        be: Backend,
        x: Array,
        target: Array,
        w: Array | None = None,
        p: Array | None = None,
    ) -> Array:
        check_dtypes(self.op, x=x, target=target, weight=w, pos_weight=p)
        if x.shape != target.shape:
            raise ArgumentError(
                f"{self.op}: x {x.shape} and target {target.shape} differ; give them one shape, "
                f"with .reshape or broadcast_to"
            )
        self.x, self.target, self.w, self.p = x, target, w, p
        self.count = {"mean": x.size, "batchmean": prod(x.shape[:1])}.get(self.reduction, 1)
        loss = be.xp.asarray(self.value(be.xp))
        if w is not None:
            loss = loss * w
        if self.reduction == "none":
            return loss
        total = be.xp.asarray(loss.sum())
        return be.xp.asarray(total / self.count) if self.count else be.xp.full_like(total, nan)

    def backward(self, be: Backend, gy: Array) -> tuple[Array | None, ...]:
        g = gy if self.count in (0, 1) else gy / self.count
        if self.w is not None:
            g = g * self.w
        return tuple(
            be.xp.asarray(g * self.slope(be.xp, i)) if needed else None
            for i, needed in enumerate(self.needs)
        )

    def value(self, xp: Any) -> Array:
        raise NotImplementedError

    def slope(self, xp: Any, i: int) -> Array:
        raise NotImplementedError


class MSELoss(Pointwise):
    def value(self, xp: Any) -> Array:
        d = self.x - self.target
        return d * d

    def slope(self, xp: Any, i: int) -> Array:
        return (self.target - self.x if i else self.x - self.target) * 2


class L1Loss(Pointwise):
    def value(self, xp: Any) -> Array:
        return xp.abs(self.x - self.target)

    def slope(self, xp: Any, i: int) -> Array:
        return xp.sign(self.target - self.x if i else self.x - self.target)


class HuberLoss(Pointwise):
    """scale * d^2 / 2 up to |d| = delta, and straight from there on."""

    def __init__(self, op: str, reduction: str, delta: float, scale: float) -> None:
        super().__init__(op, reduction)
        self.delta, self.scale = delta, scale

    def value(self, xp: Any) -> Array:
        d = xp.abs(self.x - self.target)
        near = xp.minimum(d, self.delta)
        return near * (d - near * 0.5) * self.scale

    def slope(self, xp: Any, i: int) -> Array:
        d = self.target - self.x if i else self.x - self.target
        return xp.clip(d, -self.delta, self.delta) * self.scale


class BCELoss(Pointwise):
    """-(t log x + (1 - t) log(1 - x)), logarithms cut off at -100 and the slope at 1e12."""

    def value(self, xp: Any) -> Array:
        outside = ~((self.x >= 0) & (self.x <= 1))
        if bool(outside.any()):
            where = first_true(outside)
            raise ArgumentError(
                f"{self.op}: x is {self.x[where].item()} at {where}, but must be in 0..1; give it "
                f"probabilities, or use binary_cross_entropy_with_logits"
            )
        log_x, log_rest = self.logs(xp)
        return -(self.target * log_x + (1 - self.target) * log_rest)

    def slope(self, xp: Any, i: int) -> Array:
        if i == 0:
            return (self.x - self.target) / xp.maximum((1 - self.x) * self.x, 1e-12)
        log_x, log_rest = self.logs(xp)
        return log_rest - log_x

    def logs(self, xp: Any) -> tuple[Array, Array]:
        some, rest = self.x > 0, self.x < 1
        log_x = xp.where(some, xp.log(xp.where(some, self.x, 1)), -100)
        log_rest = xp.where(rest, xp.log1p(-xp.where(rest, self.x, 0)), -100)
        return xp.maximum(log_x, -100), xp.maximum(log_rest, -100)


class BCEWithLogitsLoss(Pointwise):
    """p t log(1 + exp(-x)) + (1 - t) log(1 + exp(x)), p the weight of the positive."""

    def value(self, xp: Any) -> Array:
        rest = (1 - self.target) * log1p_exp(xp, self.x)
        return self.positive(self.target * log1p_exp(xp, -self.x)) + rest

    def slope(self, xp: Any, i: int) -> Array:
        x, t = self.x, self.target
        if i == 0:
            return (1 - t) * logistic(xp, x) - self.positive(t * logistic(xp, -x))
        return self.positive(log1p_exp(xp, -x)) - log1p_exp(xp, x)

    def positive(self, a: Array) -> Array:
        return a if self.p is None else a * self.p


class KLDivLoss(Pointwise):
    """t (log t - x), 0 where t is 0."""

    def value(self, xp: Any) -> Array:
        t = self.target
        return xp.where(t >= 0, t * (self.log_target(xp) - self.x), nan)

    def slope(self, xp: Any, i: int) -> Array:
        t = self.target
        if i == 0:
            return -t
        return xp.where(t > 0, self.log_target(xp) + 1 - self.x, nan)

    def log_target(self, xp: Any) -> Array:
        return xp.log(xp.where(self.target > 0, self.target, 1))


class KLDivLogLoss(Pointwise):
    """exp(t) (t - x)."""

    def value(self, xp: Any) -> Array:
        return xp.exp(self.target) * (self.target - self.x)

    def slope(self, xp: Any, i: int) -> Array:
        p = xp.exp(self.target)
        return p * (self.target - self.x + 1) if i else -p


def check_reduction(op: str, reduction: str, choices: Any = REDUCTIONS) -> None:
    if reduction not in choices:
        raise ArgumentError(f"{op}: reduction={reduction!r} is unknown; use one of {choices}")


def check_classes(op: str, shape: Ints, w: Any) -> None:
    """ArgumentError unless `shape` is (N, C, *in) and w, if any, (C,)."""
    if len(shape) < 2:
        raise ArgumentError(f"{op}: x {shape} must be (N, C) or (N, C, *in); add axes with x[None]")
    if w is not None and w.shape != (shape[1],):
        raise ArgumentError(
            f"{op}: weight {w.shape} must be ({shape[1]},), one a class of x {shape}"
        )


def check_labels(op: str, target: Array, x_shape: Ints, ignore_index: int) -> Array:
    """The labels (N, *in) as int64; errors unless each is a class of (N, C, *in) or ignored.

    On a GPU this waits for one reduction: a label out of range must not be read out of bounds.
    """
    if target.dtype.kind not in "iu":
        raise DtypeError(
            f"{op}: labels are {target.dtype}, but integers are needed; convert them with "
            f".astype('int64')"
        )
    expected, classes = (x_shape[0], *x_shape[2:]), x_shape[1]
    if target.shape != expected:
        raise ArgumentError(
            f"{op}: labels {target.shape} for x {x_shape} must be {expected}, one a position; "
            f"one-hot ones become labels with .argmax(1)"
        )
    target = target.astype("int64", copy=False)
    wrong = ((target < 0) | (target >= classes)) & (target != ignore_index)
    if bool(wrong.any()):
        where = first_true(wrong)
        label = target[where].item()
        raise ArgumentError(
            f"{op}: label {label} at {where} is out of range 0..{classes - 1} for {classes} "
            f"classes; correct it, give x more classes, or set ignore_index={label}"
        )
    return target


def first_true(mask: Array) -> Ints:
    """The index of the first True."""
    flat = int(mask.reshape(-1).argmax())
    return tuple(int(i) for i in np.unravel_index(flat, mask.shape))


def as_array(value: Any) -> Array:
    """The array of a Tensor, an array, or a foreign one."""
    if isinstance(value, Tensor):
        return value.data
    return value if is_array(value) else from_foreign(value)


def constant(op: str, name: str, value: Any, shape: Ints | None = None) -> Array | None:
    """A weight's array; ArgumentError if it wants a gradient or does not broadcast to `shape`."""
    if value is None:
        return None
    if isinstance(value, Tensor) and value.requires_grad:
        raise ArgumentError(f"{op}: {name} is not differentiable here; pass {name}.detach()")
    array = as_array(value)
    if shape is not None:
        fits = len(array.shape) <= len(shape) and all(
            n in (1, m) for n, m in zip(reversed(array.shape), reversed(shape), strict=False)
        )
        if not fits:
            raise ArgumentError(
                f"{op}: {name} {array.shape} does not broadcast to the shape of x, {shape}"
            )
    return array


def cross_entropy(
    x: Any,
    target: Any,
    weight: Any = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Any:
    """-log(softmax(x)) at the labels: x (N, C, *in) scores of C classes, not yet a softmax.

    `target` holds labels, integers (N, *in) in 0..C-1 or `ignore_index` (not counted), or class
    probabilities, floats (N, C, *in). `weight` (C,) counts classes; `label_smoothing` moves that
    share of each target evenly to all classes. `reduction` "none" gives (N, *in), "sum" the sum,
    "mean" the sum over the sum of the labels' weights (of probabilities: over N * prod(in)), NaN if
    nothing counts. Raises ArgumentError for shapes that do not agree and labels out of range,
    DtypeError for labels that are no integers.
    """
    op = "cross_entropy"
    check_reduction(op, reduction)
    if not 0 <= label_smoothing <= 1:
        raise ArgumentError(f"{op}: label_smoothing={label_smoothing} must be from 0 to 1")
    x, target = (v if isinstance(v, Tensor) else as_array(v) for v in (x, target))
    w = constant(op, "weight", weight)
    if target.dtype.kind == "f" and len(target.shape) == len(x.shape):
        return _of_probabilities(op, x, target, w, ignore_index, reduction, label_smoothing)
    return CrossEntropy(op, ignore_index, reduction, label_smoothing).apply(x, target, w)


def _of_probabilities(
    op: str, x: Any, target: Any, w: Any, ignore_index: int, reduction: str, smoothing: float
) -> Any:
    shape = tuple(x.shape)
    check_classes(op, shape, w)
    check_dtypes(op, x=x, target=target, weight=w)
    if tuple(target.shape) != shape:
        raise ArgumentError(
            f"{op}: probabilities {tuple(target.shape)} must have the shape of x, {shape}"
        )
    if ignore_index >= 0:
        raise ArgumentError(
            f"{op}: ignore_index={ignore_index} is for labels, not for probabilities; leave it out"
        )
    if smoothing:
        target = add(multiply(target, 1 - smoothing), smoothing / shape[1])
    if w is not None:
        target = multiply(target, w.reshape(-1, *(1,) * (len(shape) - 2)))
    loss = multiply(sum_over(multiply(target, log_softmax(x, 1)), 1), -1)
    if reduction == "none":
        return loss
    count = prod(shape) // shape[1] if reduction == "mean" else 1
    return multiply(sum_over(loss), 1 / count if count else nan)


def nll_loss(
    x: Any, target: Any, weight: Any = None, ignore_index: int = -100, reduction: str = "mean"
) -> Any:
    """-x at the labels, x (N, C, *in) log-probabilities; all else as in `cross_entropy`."""
    check_reduction("nll_loss", reduction)
    w = constant("nll_loss", "weight", weight)
    return NLLLoss("nll_loss", ignore_index, reduction).apply(x, target, w)


def mse_loss(x: Any, target: Any, reduction: str = "mean") -> Any:
    """(x - target)^2; nothing is broadcast. `reduction` "none", "mean" or "sum"."""
    check_reduction("mse_loss", reduction)
    return MSELoss("mse_loss", reduction).apply(x, target)


def l1_loss(x: Any, target: Any, reduction: str = "mean") -> Any:
    """|x - target|; the gradient at 0 is 0. Nothing is broadcast."""
    check_reduction("l1_loss", reduction)
    return L1Loss("l1_loss", reduction).apply(x, target)


def smooth_l1_loss(x: Any, target: Any, reduction: str = "mean", beta: float = 1.0) -> Any:
    """d^2 / (2 beta) where d = |x - target| is under `beta`, else d - beta / 2.

    Source: Girshick, arXiv 1504.08083, equation 3. Raises ArgumentError for a negative `beta`.
    """
    op = "smooth_l1_loss"
    check_reduction(op, reduction)
    if not beta >= 0:
        raise ArgumentError(f"{op}: beta={beta} must not be negative")
    f = HuberLoss(op, reduction, beta, 1 / beta) if beta else L1Loss(op, reduction)
    return f.apply(x, target)


def huber_loss(x: Any, target: Any, reduction: str = "mean", delta: float = 1.0) -> Any:
    """d^2 / 2 where d = |x - target| is under `delta`, else delta (d - delta / 2).

    Raises ArgumentError unless `delta` is positive.
    """
    check_reduction("huber_loss", reduction)
    if not delta > 0:
        raise ArgumentError(f"huber_loss: delta={delta} must be positive")
    return HuberLoss("huber_loss", reduction, delta, 1.0).apply(x, target)


def binary_cross_entropy_with_logits(
    x: Any, target: Any, weight: Any = None, pos_weight: Any = None, reduction: str = "mean"
) -> Any:
    """`binary_cross_entropy` of sigmoid(x), with no digits lost for large |x|.

    `weight` counts elements and `pos_weight` the positive term; both broadcast to x's shape and are
    constants.
    """
    op, shape = "binary_cross_entropy_with_logits", tuple(x.shape)
    check_reduction(op, reduction)
    w = constant(op, "weight", weight, shape)
    p = constant(op, "pos_weight", pos_weight, shape)
    return BCEWithLogitsLoss(op, reduction).apply(x, target, w, p)


def binary_cross_entropy(x: Any, target: Any, weight: Any = None, reduction: str = "mean") -> Any:
    """-(t log x + (1 - t) log(1 - x)) of probabilities x; logarithms are cut off at -100.

    `weight` broadcasts to x's shape and is a constant. Raises ArgumentError for x outside 0..1.
    """
    op = "binary_cross_entropy"
    check_reduction(op, reduction)
    w = constant(op, "weight", weight, tuple(x.shape))
    return BCELoss(op, reduction).apply(x, target, w)


def kl_div(x: Any, target: Any, reduction: str = "mean", log_target: bool = False) -> Any:
    """t (log t - x): x log-probabilities, t probabilities, or their logarithms if `log_target`.

    `reduction` also "batchmean", the sum over the first axis's size: the divergence as textbooks
    have it ("mean" divides by the number of elements).
    """
    check_reduction("kl_div", reduction, (*REDUCTIONS, "batchmean"))
    return (KLDivLogLoss if log_target else KLDivLoss)("kl_div", reduction).apply(x, target)
