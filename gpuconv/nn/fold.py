"""Networks for inference: batch normalisation folded into the convolutions before it.

In evaluation batch normalisation is y = a x + c for each channel, with constants. The convolution
before it can do that itself: its weight times a, its bias times a plus c. ReLU and a residual's sum
then go into the convolution's own pass over memory (`gpuconv.fused_conv2d`).
"""

import copy
from typing import Any

from gpuconv import ops
from gpuconv.backends import Array
from gpuconv.constant import CONSTANTS
from gpuconv.errors import ArgumentError
from gpuconv.nn.activation import ReLU
from gpuconv.nn.container import Identity, Sequential
from gpuconv.nn.conv import Conv2d
from gpuconv.nn.module import Buffer, Module
from gpuconv.nn.norm import BatchNorm2d


class FusedConv2d(Module):
    """relu(conv2d(x) + residual) with a constant weight and bias, made by `fold`; for inference.

    The weight cannot be written to, so that a backend may rearrange it once for all calls. (One
    that `load_state_dict` or `copy` puts in its place is rearranged in each call.)
    """

    def __init__(self, weight: Array, bias: Array | None, options: Any, relu: bool) -> None:
        self.weight = Buffer(CONSTANTS.add(weight.copy()))
        self.bias = None if bias is None else Buffer(bias)
        self.options, self.relu = options, relu

    @classmethod
    def of(cls, conv: Module, norm: BatchNorm2d | None = None, relu: bool = False) -> "FusedConv2d":
        """Of a Conv2d, the BatchNorm2d after it if there is one, and a ReLU after that."""
        if not isinstance(conv, Conv2d):
            raise ArgumentError(f"FusedConv2d: {type(conv).__name__} is no Conv2d")
        w, b = conv.weight.data.copy(), None if conv.bias is None else conv.bias.data.copy()
        if norm is not None:
            mean, var = norm.running_mean, norm.running_var
            if mean is None or var is None:
                raise ArgumentError(
                    "FusedConv2d: only a BatchNorm2d with running statistics can be folded"
                )
            # In float64, so that folding adds one rounding of each number and no more.
            scale = 1 / (var.data.astype("float64") + norm.eps) ** 0.5
            if norm.weight is not None:
                scale = scale * norm.weight.data
            shift = -mean.data * scale
            if b is not None:
                shift = shift + b * scale
            if norm.bias is not None:
                shift = shift + norm.bias.data
            w, b = (w * scale.reshape(-1, 1, 1, 1)).astype(w.dtype), shift.astype(w.dtype)
        return cls(w, b, conv._arguments(), relu)

    def forward(self, x: Any, residual: Any = None) -> Any:
        stride, padding, dilation, groups, mode = self.options
        return ops.fused_conv2d(
            x, self.weight, self.bias, residual, stride, padding, dilation, groups, mode, self.relu
        )

    def extra_repr(self) -> str:
        k, c, *kernel = self.weight.shape
        return f"{c}, {k}, kernel_size={tuple(kernel)}, relu={self.relu}"


def fold(model: Module) -> Module:
    """The same network for inference, with constants of its own: `model` stays as it is.

    In a `Sequential` a BatchNorm2d and a ReLU go into the Conv2d before them; a module with a
    method `fold` (the residual networks of `gpuconv.models`) says itself what becomes of it; others
    are copied. ArgumentError in training mode, whose results are others.
    """
    if not isinstance(model, Module):
        raise ArgumentError(f"fold: it takes a Module, not {type(model).__name__}")
    if any(isinstance(module, BatchNorm2d) and module.training for module in model.modules()):
        raise ArgumentError("fold: the model is in training mode; call .eval() on it first")
    own = getattr(model, "fold", None)
    if own is not None:
        folded: Module = own()
        return folded.eval()
    if type(model) is Sequential:
        return _sequential(model).eval()
    if type(model) is Conv2d:
        return FusedConv2d.of(model).eval()
    return copy.deepcopy(model).eval()


def _sequential(model: Sequential) -> Sequential:
    layers = [m for m in model if not isinstance(m, Identity)]
    found: list[Module] = []
    i = 0
    while i < len(layers):
        layer = layers[i]
        i += 1
        if type(layer) is Conv2d:  # one derived of it may compute something else
            norm = layers[i] if i < len(layers) else None
            if type(norm) is not BatchNorm2d or norm.running_mean is None:
                norm = None
            i += norm is not None
            relu = i < len(layers) and type(layers[i]) is ReLU
            i += relu
            found.append(FusedConv2d.of(layer, norm, relu))
        else:
            found.append(fold(layer))
    return Sequential(*found)
