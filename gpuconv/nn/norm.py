"""Normalisation layers: arguments, names and defaults as in torch.nn."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpuconv import ops
from gpuconv.errors import ArgumentError
from gpuconv.nn import init
from gpuconv.nn.module import Buffer, Module, Parameter
from gpuconv.shapes import ints

_LAYOUTS = {2: "(N, C)", 3: "(N, C, L)", 4: "(N, C, H, W)", 5: "(N, C, D, H, W)"}


class _ChannelNorm(Module):
    """What batch and instance normalisation share: a weight, a bias, statistics a channel."""

    ranks: tuple[int, ...] = ()
    weight: Parameter | None = None
    bias: Parameter | None = None
    running_mean: Buffer | None = None
    running_var: Buffer | None = None

    def _build(
        self,
        num_features: int,
        eps: float,
        momentum: float | None,
        affine: bool,
        bias: bool,
        track_running_stats: bool,
        dtype: Any,
    ) -> None:
        layer = type(self).__name__
        (self.num_features,) = ints(layer, "num_features", num_features, 1, least=1)
        if momentum is not None and not 0 <= momentum <= 1:
            raise ArgumentError(f"{layer}: momentum={momentum} must be between 0 and 1")
        self.eps, self.momentum = eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        shape = (self.num_features,)
        if affine:
            self.weight = init.ones_(init.new_parameter(layer, shape, dtype))
            if bias:
                self.bias = init.new_parameter(layer, shape, dtype)
        if track_running_stats:
            self.running_mean = Buffer(init.new_parameter(layer, shape, dtype))
            self.running_var = init.ones_(Buffer(init.new_parameter(layer, shape, dtype)))
            self.num_batches_tracked = Buffer(np.zeros((), np.int64))

    def _check_rank(self, x: Any) -> None:
        if len(x.shape) not in self.ranks:
            layouts = " or ".join(_LAYOUTS[rank] for rank in self.ranks)
            raise ArgumentError(
                f"{type(self).__name__}: the input {tuple(x.shape)} must be {layouts}; "
                f"reshape it, or use the layer for {len(x.shape)} axes"
            )

    def extra_repr(self) -> str:
        parts = [str(self.num_features), f"eps={self.eps}", f"momentum={self.momentum}"]
        parts += [f"affine={self.affine}", f"track_running_stats={self.track_running_stats}"]
        return ", ".join(parts)


class _BatchNorm(_ChannelNorm):
    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> None:
        self._build(num_features, eps, momentum, affine, bias, track_running_stats, dtype)

    def forward(self, x: Any) -> Any:
        self._check_rank(x)
        momentum = self.momentum
        if self.training and self.track_running_stats:
            self.num_batches_tracked.data += 1
            if momentum is None:
                momentum = 1 / self.num_batches_tracked.item()
        return ops.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or not self.track_running_stats,
            0.0 if momentum is None else momentum,
            self.eps,
        )


class BatchNorm1d(_BatchNorm):
    """As `BatchNorm2d`, for (N, C) or (N, C, L)."""

    ranks = (2, 3)


class BatchNorm2d(_BatchNorm):
    """Batch normalisation of (N, C, H, W); see `gpuconv.batch_norm`.

    In training the batch's statistics normalise, and the running ones move towards them by
    `momentum` (None: their plain average); in evaluation the running ones normalise, if there are
    any. Parameters weight and bias (C,), ones and zeros; buffers running_mean, running_var,
    num_batches_tracked.
    """

    ranks = (4,)


class BatchNorm3d(_BatchNorm):
    """As `BatchNorm2d`, for (N, C, D, H, W)."""

    ranks = (5,)


class _InstanceNorm(_ChannelNorm):
    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> None:
        self._build(num_features, eps, momentum, affine, bias, track_running_stats, dtype)

    def forward(self, x: Any) -> Any:
        self._check_rank(x)
        return ops.instance_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or not self.track_running_stats,
            self.momentum or 0.0,
            self.eps,
        )


class InstanceNorm1d(_InstanceNorm):
    """As `InstanceNorm2d`, for (N, C, L)."""

    ranks = (3,)


class InstanceNorm2d(_InstanceNorm):
    """Each channel of each image of (N, C, H, W) normalised by itself."""

    ranks = (4,)


class InstanceNorm3d(_InstanceNorm):
    """As `InstanceNorm2d`, for (N, C, D, H, W)."""

    ranks = (5,)


class GroupNorm(Module):
    """Normalisation of (N, C, *in) over `num_groups` groups of channels; weight and bias (C,)."""

    weight: Parameter | None = None
    bias: Parameter | None = None

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> None:
        (self.num_groups,) = ints("GroupNorm", "num_groups", num_groups, 1, least=1)
        (self.num_channels,) = ints("GroupNorm", "num_channels", num_channels, 1, least=1)
        if self.num_channels % self.num_groups:
            raise ArgumentError(
                f"GroupNorm: num_channels (={self.num_channels}) must be divisible by num_groups "
                f"(={self.num_groups}); use a divisor of {self.num_channels}"
            )
        self.eps, self.affine = eps, affine
        if affine:
            shape = (self.num_channels,)
            self.weight = init.ones_(init.new_parameter("GroupNorm", shape, dtype))
            if bias:
                self.bias = init.new_parameter("GroupNorm", shape, dtype)

    def forward(self, x: Any) -> Any:
        if len(x.shape) < 2 or x.shape[1] != self.num_channels:
            raise ArgumentError(
                f"GroupNorm: the input {tuple(x.shape)} must be (N, {self.num_channels}, *in)"
            )
        return ops.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}"


class LayerNorm(Module):
    """Normalisation over the last axes, of `normalized_shape`, which weight and bias have too."""

    weight: Parameter | None = None
    bias: Parameter | None = None

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        dtype: Any = None,
    ) -> None:
        count = 1 if isinstance(normalized_shape, int) else len(normalized_shape)
        if not count:
            raise ArgumentError("LayerNorm: normalized_shape=() must have at least one size")
        shape = ints("LayerNorm", "normalized_shape", normalized_shape, count, least=1)
        self.normalized_shape, self.eps = shape, eps
        self.elementwise_affine = elementwise_affine
        if elementwise_affine:
            self.weight = init.ones_(init.new_parameter("LayerNorm", shape, dtype))
            if bias:
                self.bias = init.new_parameter("LayerNorm", shape, dtype)

    def forward(self, x: Any) -> Any:
        return ops.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        affine = f"elementwise_affine={self.elementwise_affine}"
        return f"{self.normalized_shape}, eps={self.eps}, {affine}"


class LocalResponseNorm(Module):
    """Each number over a power of the mean square of `size` channels; see `local_response_norm`."""

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> None:
        (self.size,) = ints("LocalResponseNorm", "size", size, 1, least=1)
        self.alpha, self.beta, self.k = alpha, beta, k

    def forward(self, x: Any) -> Any:
        return ops.local_response_norm(x, self.size, self.alpha, self.beta, self.k)

    def extra_repr(self) -> str:
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"
