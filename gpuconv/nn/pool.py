"""Pooling layers: arguments and defaults as in torch.nn; `padding` takes pairs too."""

from collections.abc import Sequence
from typing import Any

from gpuconv import ops
from gpuconv.nn.module import Module, short
from gpuconv.shapes import IntOrInts, Padding, PoolSpec, ints

# An input so large that a specification can only fail for the layer's own arguments.
_ROOM = 1 << 40


class _Window(Module):
    """The window of a pooling, resolved once at construction: errors show there."""

    nd = 0

    def _build(
        self,
        kernel_size: IntOrInts,
        stride: IntOrInts | None,
        padding: Padding,
        dilation: IntOrInts = 1,
        ceil_mode: bool = False,
    ) -> None:
        layer = type(self).__name__
        self.kernel_size = ints(layer, "kernel_size", kernel_size, self.nd, least=1)
        self.stride = self.kernel_size
        if stride is not None:
            self.stride = ints(layer, "stride", stride, self.nd, least=1)
        self.padding, self.ceil_mode = padding, ceil_mode
        self.dilation = ints(layer, "dilation", dilation, self.nd, least=1)
        PoolSpec.infer((1, 1, *(_ROOM,) * self.nd), *self._arguments(), nd=self.nd)

    def _arguments(self) -> tuple[Any, Any, Any, Any, bool]:
        return self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode

    def extra_repr(self) -> str:
        parts = [f"kernel_size={short(self.kernel_size)}", f"stride={short(self.stride)}"]
        parts += [f"padding={self.padding!r}"] if self.padding != 0 else []
        parts += [f"dilation={short(self.dilation)}"] if set(self.dilation) != {1} else []
        return ", ".join(parts + (["ceil_mode=True"] if self.ceil_mode else []))


class _MaxPool(_Window):
    def __init__(
        self,
        kernel_size: IntOrInts,
        stride: IntOrInts | None = None,
        padding: Padding = 0,
        dilation: IntOrInts = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
    ) -> None:
        self.return_indices = return_indices
        self._build(kernel_size, stride, padding, dilation, ceil_mode)


class MaxPool1d(_MaxPool):
    """As `MaxPool2d`, with one spatial axis."""

    nd = 1

    def forward(self, x: Any) -> Any:
        return ops.max_pool1d(x, *self._arguments(), self.return_indices)


class MaxPool2d(_MaxPool):
    """The maximum of each window of (N, C, H, W); with `return_indices` (maxima, indices)."""

    nd = 2

    def forward(self, x: Any) -> Any:
        return ops.max_pool2d(x, *self._arguments(), self.return_indices)


class MaxPool3d(_MaxPool):
    """As `MaxPool2d`, with three spatial axes."""

    nd = 3

    def forward(self, x: Any) -> Any:
        return ops.max_pool3d(x, *self._arguments(), self.return_indices)


class _AvgPool(_Window):
    def __init__(
        self,
        kernel_size: IntOrInts,
        stride: IntOrInts | None = None,
        padding: Padding = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: float | None = None,
    ) -> None:
        self.count_include_pad, self.divisor_override = count_include_pad, divisor_override
        self._build(kernel_size, stride, padding, ceil_mode=ceil_mode)

    def _average(self) -> tuple[Any, ...]:
        window = (self.kernel_size, self.stride, self.padding, self.ceil_mode)
        return *window, self.count_include_pad, self.divisor_override


class AvgPool1d(_AvgPool):
    """As `AvgPool2d`, with one spatial axis."""

    nd = 1

    def forward(self, x: Any) -> Any:
        return ops.avg_pool1d(x, *self._average())


class AvgPool2d(_AvgPool):
    """The mean of each window of (N, C, H, W); see `gpuconv.avg_pool2d`."""

    nd = 2

    def forward(self, x: Any) -> Any:
        return ops.avg_pool2d(x, *self._average())


class AvgPool3d(_AvgPool):
    """As `AvgPool2d`, with three spatial axes."""

    nd = 3

    def forward(self, x: Any) -> Any:
        return ops.avg_pool3d(x, *self._average())


class _Adaptive(Module):
    """`output_size` one number or one an axis, None to keep the input's."""

    nd = 0

    def __init__(self, output_size: int | Sequence[int | None] | None) -> None:
        given = output_size if isinstance(output_size, Sequence) else (output_size,) * self.nd
        known = tuple(1 if n is None else n for n in given)
        ints(type(self).__name__, "output_size", known, self.nd, least=1)
        self.output_size = tuple(given)

    def extra_repr(self) -> str:
        return f"output_size={short(self.output_size)}"


class AdaptiveAvgPool1d(_Adaptive):
    """As `AdaptiveAvgPool2d`, with one spatial axis."""

    nd = 1

    def forward(self, x: Any) -> Any:
        return ops.adaptive_avg_pool1d(x, self.output_size)


class AdaptiveAvgPool2d(_Adaptive):
    """(N, C, H, W) averaged to (N, C, *output_size), whatever H and W are."""

    nd = 2

    def forward(self, x: Any) -> Any:
        return ops.adaptive_avg_pool2d(x, self.output_size)


class AdaptiveAvgPool3d(_Adaptive):
    """As `AdaptiveAvgPool2d`, with three spatial axes."""

    nd = 3

    def forward(self, x: Any) -> Any:
        return ops.adaptive_avg_pool3d(x, self.output_size)


class _AdaptiveMax(_Adaptive):
    def __init__(
        self, output_size: int | Sequence[int | None] | None, return_indices: bool = False
    ) -> None:
        super().__init__(output_size)
        self.return_indices = return_indices


class AdaptiveMaxPool1d(_AdaptiveMax):
    """As `AdaptiveMaxPool2d`, with one spatial axis."""

    nd = 1

    def forward(self, x: Any) -> Any:
        return ops.adaptive_max_pool1d(x, self.output_size, self.return_indices)


class AdaptiveMaxPool2d(_AdaptiveMax):
    """The maxima of the bins of `AdaptiveAvgPool2d`; with `return_indices` (maxima, indices)."""

    nd = 2

    def forward(self, x: Any) -> Any:
        return ops.adaptive_max_pool2d(x, self.output_size, self.return_indices)


class AdaptiveMaxPool3d(_AdaptiveMax):
    """As `AdaptiveMaxPool2d`, with three spatial axes."""

    nd = 3

    def forward(self, x: Any) -> Any:
        return ops.adaptive_max_pool3d(x, self.output_size, self.return_indices)


class _MaxUnpool(_Window):
    def __init__(
        self,
        kernel_size: IntOrInts,
        stride: IntOrInts | None = None,
        padding: Padding = 0,
    ) -> None:
        self._build(kernel_size, stride, padding)

    def _place(self, output_size: Sequence[int] | None) -> tuple[Any, ...]:
        return self.kernel_size, self.stride, self.padding, output_size


class MaxUnpool1d(_MaxUnpool):
    """As `MaxUnpool2d`, with one spatial axis."""

    nd = 1

    def forward(self, x: Any, indices: Any, output_size: Sequence[int] | None = None) -> Any:
        return ops.max_unpool1d(x, indices, *self._place(output_size))


class MaxUnpool2d(_MaxUnpool):
    """Maxima put back where `MaxPool2d(..., return_indices=True)` found them, zeros elsewhere."""

    nd = 2

    def forward(self, x: Any, indices: Any, output_size: Sequence[int] | None = None) -> Any:
        return ops.max_unpool2d(x, indices, *self._place(output_size))


class MaxUnpool3d(_MaxUnpool):
    """As `MaxUnpool2d`, with three spatial axes."""

    nd = 3

    def forward(self, x: Any, indices: Any, output_size: Sequence[int] | None = None) -> Any:
        return ops.max_unpool3d(x, indices, *self._place(output_size))
