"""Normalisation: batch, layer, group, instance, and local response."""

from collections.abc import Sequence
from math import prod
from typing import Any

from gpuconv.autograd import Function, Tensor
from gpuconv.backends import Array, Backend
from gpuconv.errors import ArgumentError
from gpuconv.ops.dtypes import check_dtypes
from gpuconv.reference.norm import affine, channel_axes, per_channel
from gpuconv.shapes import Ints, ints


class BatchNorm(Function):
    """Normalised by the batch's own statistics, which also move the running ones, if given."""

    def __init__(self, momentum: float, eps: float) -> None:
        self.momentum, self.eps = momentum, eps

    def forward(
        self,
        be: Backend,
        x: Array,
        w: Array | None,
        b: Array | None,
        running_mean: Array | None,
        running_var: Array | None,
    ) -> Array:
        vectors = {"weight": w, "bias": b, "running_mean": running_mean, "running_var": running_var}
        check_dtypes("batch_norm", x=x, **vectors)
        check_channels("batch_norm", x.shape, **vectors)
        count = x.shape[0] * prod(x.shape[2:])
        if count == 1:
            raise ArgumentError(
                f"batch_norm: the input {x.shape} has one value a channel, whose variance is 0; "
                f"train on batches of more than one (drop_last=True), or call .eval() on the model"
            )
        y, mean, var, self.saved = be.batch_norm(x, w, b, self.eps)
        self.w = w
        if running_mean is not None and count:
            update_running(running_mean, running_var, mean, var, count, self.momentum)
        return y

    def backward(self, be: Backend, gy: Array) -> tuple[Array | None, ...]:
        need_x, need_w, need_b = self.needs[:3]
        gx, gw, gb = be.batch_norm_grad(gy, self.w, self.saved, need_x)
        return gx, gw if need_w else None, gb if need_b else None, None, None


class RunningNorm(Function):
    """Normalised by running statistics: for each channel y = a x + c."""

    def __init__(self, op: str, eps: float) -> None:
        self.op, self.eps = op, eps

    def forward(
        self, be: Backend, x: Array, w: Array | None, b: Array | None, mean: Array, var: Array
    ) -> Array:
        vectors = {"weight": w, "bias": b, "running_mean": mean, "running_var": var}
        check_dtypes(self.op, x=x, **vectors)
        check_channels(self.op, x.shape, **vectors)
        self.inv_std = 1 / be.xp.sqrt(var + self.eps)
        self.scale = self.inv_std if w is None else self.inv_std * w
        if self.needs[1]:
            self.x, self.mean = x, mean.copy()  # the buffer may move before backward
        return be.scale_shift(x, mean, self.scale, b)

    def backward(self, be: Backend, gy: Array) -> tuple[Array | None, ...]:
        need_x, need_w, need_b = self.needs[:3]
        axes, gw = channel_axes(gy), None
        if need_w:
            centred = self.x - per_channel(self.mean, gy.ndim)
            gw = (gy * centred).sum(axis=axes) * self.inv_std
        return (
            gy * per_channel(self.scale, gy.ndim) if need_x else None,
            gw,
            gy.sum(axis=axes) if need_b else None,
            None,
            None,
        )


class Normalize(Function):
    """Normalised over `axes` of x seen with the shape `view`; w and b are seen as `affine` then.

    `affine` has size 1 where w and b are repeated. Running statistics are for instance norm: one a
    channel of (N, C, *in).
    """

    def __init__(
        self, op: str, view: Ints, axes: Ints, affine: Ints, eps: float, momentum: float = 0.0
    ) -> None:
        self.op, self.view, self.axes, self.affine = op, view, axes, affine
        self.eps, self.momentum = eps, momentum

    def forward(
        self,
        be: Backend,
        x: Array,
        w: Array | None,
        b: Array | None,
        running_mean: Array | None,
        running_var: Array | None,
    ) -> Array:
        buffers = {"running_mean": running_mean, "running_var": running_var}
        check_dtypes(self.op, x=x, weight=w, bias=b, **buffers)
        self.xhat, mean, self.inv_std, var = be.normalize(x.reshape(self.view), self.axes, self.eps)
        self.x_shape = x.shape
        self.w_shape, self.b_shape = (None if v is None else v.shape for v in (w, b))
        self.w, b = (None if v is None else v.reshape(self.affine) for v in (w, b))
        if running_mean is not None and x.size:
            count = prod(self.view[a] for a in self.axes)
            mean, var = (v.mean(axis=0).reshape(-1) for v in (mean, var))
            update_running(running_mean, running_var, mean, var, count, self.momentum)
        return affine(self.xhat, self.w, b).reshape(x.shape)

    def backward(self, be: Backend, gy: Array) -> tuple[Array | None, ...]:
        need_x, need_w, need_b = self.needs[:3]
        g, gx, gw, gb = gy.reshape(self.view), None, None, None
        repeated = tuple(a for a, n in enumerate(self.affine) if n == 1)
        if need_w:
            gw = (g * self.xhat).sum(axis=repeated).reshape(self.w_shape)
        if need_b:
            gb = g.sum(axis=repeated).reshape(self.b_shape)
        if need_x:
            g = affine(g, self.w, None)
            gx = be.normalize_grad(g, self.xhat, self.inv_std, self.axes).reshape(self.x_shape)
        return gx, gw, gb, None, None


class LocalResponseNorm(Function):
    """y = x d^-beta, d = k + alpha/size * (sum of x^2 over `size` channels around each)."""

    def __init__(self, size: int, alpha: float, beta: float, k: float) -> None:
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def forward(self, be: Backend, x: Array) -> Array:
        check_dtypes("local_response_norm", x=x)
        self.x = x
        self.d = self.window(x * x, self.size // 2) * (self.alpha / self.size) + self.k
        return x * self.d**-self.beta

    def backward(self, be: Backend, gy: Array) -> Array:
        power = self.d**-self.beta
        # A channel is in the windows that reach back to it: before and after change places.
        inner = self.window(gy * self.x * power / self.d, (self.size - 1) // 2)
        return gy * power - self.x * inner * (2 * self.alpha * self.beta / self.size)

    def window(self, a: Array, before: int) -> Array:
        """The sum over `size` channels of (N, C, *in), `before` of them before each."""
        total, channels = a.copy(order="K"), a.shape[1]
        for offset in range(-before, self.size - before):
            if offset and abs(offset) < channels:
                lo, hi = max(-offset, 0), channels - max(offset, 0)
                total[:, lo:hi] += a[:, lo + offset : hi + offset]
        return total


def check_channels(op: str, shape: Ints, **vectors: Any) -> None:
    """ArgumentError unless `shape` is (N, C, *in) and every vector (None skipped) is (C,)."""
    if len(shape) < 2:
        raise ArgumentError(f"{op}: the input {shape} must be (N, C, *in); add axes with x[None]")
    for name, vector in vectors.items():
        if vector is not None and tuple(vector.shape) != (shape[1],):
            raise ArgumentError(
                f"{op}: the input {shape} has {shape[1]} channels, but {name} has the shape "
                f"{tuple(vector.shape)}; make it ({shape[1]},), or give it that many channels"
            )


def update_running(
    running_mean: Array, running_var: Array, mean: Array, var: Array, count: int, momentum: float
) -> None:
    """Move statistics, in place, by `momentum` towards a batch's mean and unbiased variance."""
    running_mean *= 1 - momentum
    running_mean += momentum * mean
    running_var *= 1 - momentum
    running_var += momentum * (count / (count - 1)) * var


def _buffers(op: str, running_mean: Any, running_var: Any, needed: str) -> tuple[Any, Any]:
    """The arrays of both; ArgumentError if one is missing, or both and `needed` says what for."""
    missing = (running_mean is None, running_var is None)
    if any(missing) and (needed or not all(missing)):
        raise ArgumentError(
            f"{op}: running_mean and running_var must both be given"
            f"{f', or set {needed}' if needed else ', or neither'}"
        )
    mean, var = (v.data if isinstance(v, Tensor) else v for v in (running_mean, running_var))
    return mean, var


def batch_norm(
    x: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """Batch normalisation of x (N, C, *in); weight, bias and running statistics (C,) or None.

    In training, each channel is normalised by its mean and biased variance over the batch, and the
    running statistics, if given, move IN PLACE by `momentum` towards that mean and the unbiased
    variance. Otherwise the running statistics normalise. Raises ArgumentError for shapes that do
    not fit, and in training for one value a channel. Source: Ioffe and Szegedy, arXiv 1502.03167.
    """
    buffers = _buffers("batch_norm", running_mean, running_var, "" if training else "training=True")
    f = BatchNorm(momentum, eps) if training else RunningNorm("batch_norm", eps)
    return f.apply(x, weight, bias, *buffers)


def instance_norm(
    x: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """Each channel of each image of x (N, C, *in) normalised by itself; vectors (C,) or None.

    Running statistics, if given, move IN PLACE towards the batch's average of the images' means and
    unbiased variances; with `use_input_stats=False` they normalise. Raises ArgumentError for shapes
    that do not fit, and for one value a channel. Source: Ulyanov et al., arXiv 1607.08022.
    """
    op = "instance_norm"
    mean, var = _buffers(
        op, running_mean, running_var, "" if use_input_stats else "use_input_stats=True"
    )
    if not use_input_stats:
        return RunningNorm(op, eps).apply(x, weight, bias, mean, var)
    shape = tuple(x.shape)
    check_channels(op, shape, weight=weight, bias=bias, running_mean=mean, running_var=var)
    if prod(shape[2:]) == 1:
        raise ArgumentError(
            f"{op}: the input {shape} has one value a channel of an image, whose variance is 0; it "
            f"needs more pixels, or use_input_stats=False with running statistics"
        )
    axes, affine = tuple(range(2, len(shape))), (1, shape[1], *(1,) * (len(shape) - 2))
    return Normalize(op, shape, axes, affine, eps, momentum).apply(x, weight, bias, mean, var)


def group_norm(
    x: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Any:
    """x (N, C, *in) normalised over groups of C/num_groups channels; weight, bias (C,) or None.

    Raises ArgumentError for shapes that do not fit, and where one value would be normalised alone.
    Source: Wu and He, arXiv 1803.08494.
    """
    shape = tuple(x.shape)
    check_channels("group_norm", shape, weight=weight, bias=bias)
    (groups,) = ints("group_norm", "num_groups", num_groups, 1, least=1)
    if shape[1] % groups:
        raise ArgumentError(
            f"group_norm: num_groups={groups} does not divide the {shape[1]} channels of {shape}; "
            f"use a divisor of {shape[1]}"
        )
    view = (shape[0], groups, shape[1] // groups, *shape[2:])
    if shape[0] * prod(view[2:]) == 1:
        raise ArgumentError(
            f"group_norm: the input {shape} in {groups} groups has one value a group, whose "
            f"variance is 0; use fewer groups"
        )
    axes, affine = tuple(range(2, len(view))), (1, *view[1:3], *(1,) * len(shape[2:]))
    return Normalize("group_norm", view, axes, affine, eps).apply(x, weight, bias, None, None)


def layer_norm(
    x: Any,
    normalized_shape: int | Sequence[int],
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
) -> Any:
    """x normalised over its last axes, which have `normalized_shape`, as have weight and bias.

    Raises ArgumentError for shapes that do not fit. Source: Ba, Kiros and Hinton, arXiv 1607.06450.
    """
    last = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    shape = tuple(x.shape)
    if not last or shape[-len(last) :] != last:
        raise ArgumentError(
            f"layer_norm: the input {shape} does not end in normalized_shape={last}; give the "
            f"sizes of its last axes"
        )
    for name, given in (("weight", weight), ("bias", bias)):
        if given is not None and tuple(given.shape) != last:
            raise ArgumentError(
                f"layer_norm: {name} has the shape {tuple(given.shape)}; it must be "
                f"normalized_shape, {last}"
            )
    ahead = len(shape) - len(last)
    axes, affine = tuple(range(ahead, len(shape))), (*(1,) * ahead, *last)
    return Normalize("layer_norm", shape, axes, affine, eps).apply(x, weight, bias, None, None)


def local_response_norm(
    x: Any, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Any:
    """x (N, C, *in), one spatial axis or more, over (k + alpha * mean of x^2 near by)^beta.

    The mean is over `size` channels around each, size // 2 of them before it, absent ones counted
    as 0. Source: Krizhevsky, Sutskever and Hinton, "ImageNet classification with deep convolutional
    neural networks" (2012), section 3.3; alpha / size as in PyTorch.
    """
    ints("local_response_norm", "size", size, 1, least=1)
    if len(x.shape) < 3:
        raise ArgumentError(
            f"local_response_norm: the input {tuple(x.shape)} must be (N, C, *in) with at "
            f"least one spatial axis"
        )
    return LocalResponseNorm(size, alpha, beta, k).apply(x)
