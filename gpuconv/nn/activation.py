"""Activations as layers: arguments and defaults as in torch.nn.

`inplace` is accepted, so that PyTorch's code carries over, and has no effect: results are new
arrays.
"""

from typing import Any

from gpuconv import ops
from gpuconv.errors import ArgumentError
from gpuconv.nn import init
from gpuconv.nn.module import Module
from gpuconv.shapes import ints


class _Plain(Module):
    def __init__(self, inplace: bool = False) -> None:
        pass


class ReLU(_Plain):
    """max(x, 0)."""

    def forward(self, x: Any) -> Any:
        return ops.relu(x)


class ReLU6(_Plain):
    """x limited to 0..6."""

    def forward(self, x: Any) -> Any:
        return ops.relu6(x)


class SELU(_Plain):
    """`ELU` scaled so that a deep net normalises itself."""

    def forward(self, x: Any) -> Any:
        return ops.selu(x)


class SiLU(_Plain):
    """x * sigmoid(x), also called swish."""

    def forward(self, x: Any) -> Any:
        return ops.silu(x)


class Mish(_Plain):
    """x * tanh(softplus(x))."""

    def forward(self, x: Any) -> Any:
        return ops.mish(x)


class Hardsigmoid(_Plain):
    """x / 6 + 1/2 limited to 0..1."""

    def forward(self, x: Any) -> Any:
        return ops.hardsigmoid(x)


class Hardswish(_Plain):
    """x * hardsigmoid(x)."""

    def forward(self, x: Any) -> Any:
        return ops.hardswish(x)


class Sigmoid(Module):
    """1 / (1 + exp(-x))."""

    def forward(self, x: Any) -> Any:
        return ops.sigmoid(x)


class Tanh(Module):
    """The hyperbolic tangent."""

    def forward(self, x: Any) -> Any:
        return ops.tanh(x)


class LeakyReLU(Module):
    """x where it is positive, else negative_slope * x."""

    def __init__(self, negative_slope: float = 0.01, inplace: bool = False) -> None:
        self.negative_slope = negative_slope

    def forward(self, x: Any) -> Any:
        return ops.leaky_relu(x, self.negative_slope)

    def extra_repr(self) -> str:
        return f"negative_slope={self.negative_slope}"


class PReLU(Module):
    """x where it is positive, else weight * x; weight (num_parameters,), one or one a channel."""

    def __init__(self, num_parameters: int = 1, init: float = 0.25, dtype: Any = None) -> None:
        (self.num_parameters,) = ints("PReLU", "num_parameters", num_parameters, 1, least=1)
        self.weight = _slopes(self.num_parameters, init, dtype)

    def forward(self, x: Any) -> Any:
        return ops.prelu(x, self.weight)

    def extra_repr(self) -> str:
        return f"num_parameters={self.num_parameters}"


class ELU(Module):
    """x where it is positive, else alpha (exp(x) - 1)."""

    def __init__(self, alpha: float = 1.0, inplace: bool = False) -> None:
        self.alpha = alpha

    def forward(self, x: Any) -> Any:
        return ops.elu(x, self.alpha)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"


class CELU(Module):
    """x where it is positive, else alpha (exp(x / alpha) - 1)."""

    def __init__(self, alpha: float = 1.0, inplace: bool = False) -> None:
        if not alpha > 0:
            raise ArgumentError(f"CELU: alpha={alpha} must be positive")
        self.alpha = alpha

    def forward(self, x: Any) -> Any:
        return ops.celu(x, self.alpha)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"


class GELU(Module):
    """x times the standard normal distribution function at x; `approximate` "none" or "tanh"."""

    def __init__(self, approximate: str = "none") -> None:
        if approximate not in ("none", "tanh"):
            raise ArgumentError(f"GELU: approximate={approximate!r}, use 'none' or 'tanh'")
        self.approximate = approximate

    def forward(self, x: Any) -> Any:
        return ops.gelu(x, self.approximate)

    def extra_repr(self) -> str:
        return "" if self.approximate == "none" else f"approximate={self.approximate!r}"


class Softplus(Module):
    """log(1 + exp(beta x)) / beta; x itself where beta x is over `threshold`."""

    def __init__(self, beta: float = 1.0, threshold: float = 20.0) -> None:
        if not beta:
            raise ArgumentError(f"Softplus: beta={beta} must not be 0")
        self.beta, self.threshold = beta, threshold

    def forward(self, x: Any) -> Any:
        return ops.softplus(x, self.beta, self.threshold)

    def extra_repr(self) -> str:
        return f"beta={self.beta}, threshold={self.threshold}"


class Hardtanh(Module):
    """x limited to min_val..max_val."""

    def __init__(self, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> None:
        if not min_val <= max_val:
            raise ArgumentError(f"Hardtanh: min_val={min_val} must not exceed max_val={max_val}")
        self.min_val, self.max_val = min_val, max_val

    def forward(self, x: Any) -> Any:
        return ops.hardtanh(x, self.min_val, self.max_val)

    def extra_repr(self) -> str:
        return f"min_val={self.min_val}, max_val={self.max_val}"


class _Distribution(Module):
    def __init__(self, dim: int = 1) -> None:
        (self.dim,) = ints(type(self).__name__, "dim", dim, 1, least=-(1 << 40))

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class Softmax(_Distribution):
    """exp(x) over its sum along axis `dim`: the channels, unless told (PyTorch would guess)."""

    def forward(self, x: Any) -> Any:
        return ops.softmax(x, self.dim)


class LogSoftmax(_Distribution):
    """log(softmax(x)) along axis `dim`: the channels, unless told (PyTorch would guess)."""

    def forward(self, x: Any) -> Any:
        return ops.log_softmax(x, self.dim)


def _slopes(count: int, value: float, dtype: Any) -> Any:
    return init.constant_(init.new_parameter("PReLU", (count,), dtype), value)
