"""The fully connected layer."""

from math import sqrt
from typing import Any

from gpuconv import ops
from gpuconv.nn import init
from gpuconv.nn.module import Module, Parameter
from gpuconv.shapes import ints


class Linear(Module):
    """y = x w^T + b over the last axis: (..., in_features) to (..., out_features).

    weight (out_features, in_features), bias (out_features,), both uniform within
    1/sqrt(in_features).
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, dtype: Any = None
    ) -> None:
        (self.in_features,) = ints("Linear", "in_features", in_features, 1, least=1)
        (self.out_features,) = ints("Linear", "out_features", out_features, 1, least=1)
        shape = (self.out_features, self.in_features)
        self.weight = init.new_parameter("Linear", shape, dtype)
        self.bias: Parameter | None = None
        if bias:
            self.bias = init.new_parameter("Linear", shape[:1], dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight and the bias anew."""
        bound = 1 / sqrt(self.in_features)
        init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Any) -> Any:
        return ops.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"
