"""Convolution layers: arguments, names and initial weights as in torch.nn.

A superset in one thing: `padding` also takes one (before, after) pair an axis, and "same" with any
stride and kernel. `dtype` (float32 unless given) is that of the parameters, and so of the inputs.
"""

from collections.abc import Sequence
from math import prod, sqrt
from typing import Any

from gpuconv import ops
from gpuconv.errors import ArgumentError
from gpuconv.nn import init
from gpuconv.nn.module import Module, Parameter, short
from gpuconv.shapes import ConvSpec, IntOrInts, Padding, ints

# Sizes of an input so large that a specification can only fail for the layer's own arguments.
_ROOM = 1 << 40


class _Conv(Module):
    """What convolutions and transposed ones share: weight, bias, and the check of arguments."""

    nd = 0

    def _build(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrInts,
        stride: IntOrInts,
        padding: Padding,
        dilation: IntOrInts,
        groups: int,
        bias: bool,
        padding_mode: str,
        dtype: Any,
        transposed: bool,
    ) -> None:
        layer = type(self).__name__
        (self.in_channels,) = ints(layer, "in_channels", in_channels, 1, least=1)
        (self.out_channels,) = ints(layer, "out_channels", out_channels, 1, least=1)
        (self.groups,) = ints(layer, "groups", groups, 1, least=1)
        for name in ("in_channels", "out_channels"):
            if getattr(self, name) % self.groups:
                raise ArgumentError(
                    f"{layer}: {name} (={getattr(self, name)}) must be divisible by groups "
                    f"(={self.groups}); use a divisor of {getattr(self, name)}"
                )
        self.kernel_size = ints(layer, "kernel_size", kernel_size, self.nd, least=1)
        self.stride = ints(layer, "stride", stride, self.nd, least=1)
        self.dilation = ints(layer, "dilation", dilation, self.nd, least=1)
        self.padding, self.padding_mode = padding, padding_mode
        first, second = self.out_channels, self.in_channels
        if transposed:
            first, second = second, first
        shape = (first, second // self.groups, *self.kernel_size)
        self.weight = init.new_parameter(layer, shape, dtype)
        self.bias: Parameter | None = None
        if bias:
            self.bias = init.new_parameter(layer, (self.out_channels,), dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight and the bias anew: uniform within 1/sqrt(fan_in), as PyTorch does."""
        init.kaiming_uniform_(self.weight, a=sqrt(5))
        if self.bias is not None:
            bound = 1 / sqrt(prod(self.weight.shape[1:]))
            init.uniform_(self.bias, -bound, bound)

    def extra_repr(self) -> str:
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={short(self.kernel_size)}"]
        for name, usual in (
            ("stride", 1),
            ("padding", 0),
            ("output_padding", 0),
            ("dilation", 1),
            ("groups", 1),
            ("padding_mode", "zeros"),
        ):
            value = short(getattr(self, name, usual))
            if value != usual:
                parts.append(f"{name}={value!r}")
        return ", ".join(parts) + ("" if self.bias is not None else ", bias=False")


class _PlainConv(_Conv):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrInts,
        stride: IntOrInts = 1,
        padding: Padding = 0,
        dilation: IntOrInts = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        dtype: Any = None,
    ) -> None:
        self._build(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            dtype,
            transposed=False,
        )
        x_shape = (1, self.in_channels, *(_ROOM,) * self.nd)
        ConvSpec.infer(x_shape, self.weight.shape, *self._arguments())

    def _arguments(self) -> tuple[Any, ...]:
        return self.stride, self.padding, self.dilation, self.groups, self.padding_mode


class _TransposedConv(_Conv):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrInts,
        stride: IntOrInts = 1,
        padding: Padding = 0,
        output_padding: IntOrInts = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: IntOrInts = 1,
        padding_mode: str = "zeros",
        dtype: Any = None,
    ) -> None:
        layer = type(self).__name__
        if padding_mode != "zeros":
            raise ArgumentError(f"{layer}: padding_mode={padding_mode!r} must be 'zeros'")
        self.output_padding = ints(layer, "output_padding", output_padding, self.nd)
        self._build(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            dtype,
            transposed=True,
        )
        self._spec((1, self.in_channels, *(_ROOM,) * self.nd), self.output_padding)

    def _spec(self, x_shape: tuple[int, ...], output_padding: tuple[int, ...]) -> ConvSpec:
        return ConvSpec.infer_transposed(
            x_shape,
            self.weight.shape,
            self.stride,
            self.padding,
            output_padding,
            self.dilation,
            self.groups,
        )

    def _output_padding(self, x: Any, output_size: IntOrInts | None) -> tuple[int, ...]:
        """The layer's own, or what gives the spatial `output_size`."""
        if output_size is None or len(x.shape) != self.nd + 2:
            return self.output_padding
        layer = type(self).__name__
        if isinstance(output_size, Sequence) and len(output_size) == self.nd + 2:
            output_size = output_size[2:]  # torch takes the whole shape too
        wanted = ints(layer, "output_size", output_size, self.nd, least=1)
        least = self._spec(tuple(x.shape), (0,) * self.nd).x_shape[2:]
        most = tuple(
            n + (0 if self.padding == "same" else max(s, d) - 1)
            for n, s, d in zip(least, self.stride, self.dilation, strict=True)
        )
        if any(not lo <= n <= hi for lo, n, hi in zip(least, wanted, most, strict=True)):
            raise ArgumentError(
                f"{layer}: output_size={wanted} of an input {tuple(x.shape)} must be between "
                f"{least} and {most}"
            )
        return tuple(n - lo for n, lo in zip(wanted, least, strict=True))

    def _arguments(self, x: Any, output_size: IntOrInts | None) -> tuple[Any, ...]:
        extra = self._output_padding(x, output_size)
        return self.stride, self.padding, extra, self.groups, self.dilation


class Conv1d(_PlainConv):
    """As `Conv2d`, with one spatial axis."""

    nd = 1

    def forward(self, x: Any) -> Any:
        return ops.conv1d(x, self.weight, self.bias, *self._arguments())


class Conv2d(_PlainConv):
    """Convolution: (N, in_channels, H, W) to (N, out_channels, P, Q); see `gpuconv.conv2d`.

    weight (out_channels, in_channels/groups, *kernel_size), bias (out_channels,).
    """

    nd = 2

    def forward(self, x: Any) -> Any:
        return ops.conv2d(x, self.weight, self.bias, *self._arguments())


class Conv3d(_PlainConv):
    """As `Conv2d`, with three spatial axes."""

    nd = 3

    def forward(self, x: Any) -> Any:
        return ops.conv3d(x, self.weight, self.bias, *self._arguments())


class ConvTranspose1d(_TransposedConv):
    """As `ConvTranspose2d`, with one spatial axis."""

    nd = 1

    def forward(self, x: Any, output_size: IntOrInts | None = None) -> Any:
        return ops.conv_transpose1d(x, self.weight, self.bias, *self._arguments(x, output_size))


class ConvTranspose2d(_TransposedConv):
    """Transposed convolution: (N, in_channels, H, W) to (N, out_channels, P, Q).

    weight (in_channels, out_channels/groups, *kernel_size), bias (out_channels,). Of the sizes that
    a strided convolution maps to the same one, `output_padding` or the call's `output_size`
    chooses.
    """

    nd = 2

    def forward(self, x: Any, output_size: IntOrInts | None = None) -> Any:
        return ops.conv_transpose2d(x, self.weight, self.bias, *self._arguments(x, output_size))


class ConvTranspose3d(_TransposedConv):
    """As `ConvTranspose2d`, with three spatial axes."""

    nd = 3

    def forward(self, x: Any, output_size: IntOrInts | None = None) -> Any:
        return ops.conv_transpose3d(x, self.weight, self.bias, *self._arguments(x, output_size))
