"""Layers that move numbers: flatten and back, padding, upsampling, pixel shuffle."""

from typing import Any

from gpuconv import ops
from gpuconv.errors import ArgumentError
from gpuconv.nn.module import Module
from gpuconv.shapes import IntOrInts, ints


class Flatten(Module):
    """Axes `start_dim` to `end_dim`, both included, made one: (N, C, H, W) to (N, C*H*W)."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, x: Any) -> Any:
        return ops.flatten(x, self.start_dim, self.end_dim)

    def extra_repr(self) -> str:
        usual = (self.start_dim, self.end_dim) == (1, -1)
        return "" if usual else f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class Unflatten(Module):
    """Axis `dim` made several, of sizes `unflattened_size`."""

    def __init__(self, dim: int, unflattened_size: tuple[int, ...]) -> None:
        self.dim, self.unflattened_size = dim, tuple(unflattened_size)

    def forward(self, x: Any) -> Any:
        shape, nd = tuple(x.shape), len(x.shape)
        if not -nd <= self.dim < nd:
            raise ArgumentError(f"unflatten: axis {self.dim} is out of range for shape {shape}")
        dim = self.dim % nd
        return ops.reshape(x, (*shape[:dim], *self.unflattened_size, *shape[dim + 1 :]))

    def extra_repr(self) -> str:
        return f"dim={self.dim}, unflattened_size={self.unflattened_size}"


class Upsample(Module):
    """To a spatial `size`, or `scale_factor` times larger; see `gpuconv.interpolate`."""

    def __init__(
        self,
        size: IntOrInts | None = None,
        scale_factor: Any = None,
        mode: str = "nearest",
        align_corners: bool | None = None,
    ) -> None:
        if (size is None) == (scale_factor is None):
            raise ArgumentError(
                f"Upsample: size={size} and scale_factor={scale_factor}; give one of them"
            )
        self.size, self.scale_factor = size, scale_factor
        self.mode, self.align_corners = mode, align_corners

    def forward(self, x: Any) -> Any:
        return ops.interpolate(x, self.size, self.scale_factor, self.mode, bool(self.align_corners))

    def extra_repr(self) -> str:
        scale = f"scale_factor={self.scale_factor}" if self.size is None else f"size={self.size}"
        return f"{scale}, mode={self.mode!r}"


class PixelShuffle(Module):
    """(N, C*r*r, H, W) to (N, C, H*r, W*r): channels become pixels. Source: arXiv 1609.05158."""

    def __init__(self, upscale_factor: int) -> None:
        (self.upscale_factor,) = ints("PixelShuffle", "upscale_factor", upscale_factor, 1, least=1)

    def forward(self, x: Any) -> Any:
        return ops.pixel_shuffle(x, self.upscale_factor)

    def extra_repr(self) -> str:
        return f"upscale_factor={self.upscale_factor}"


class PixelUnshuffle(Module):
    """The reverse of `PixelShuffle`: (N, C, H*r, W*r) to (N, C*r*r, H, W)."""

    def __init__(self, downscale_factor: int) -> None:
        (self.downscale_factor,) = ints(
            "PixelUnshuffle", "downscale_factor", downscale_factor, 1, least=1
        )

    def forward(self, x: Any) -> Any:
        return ops.pixel_unshuffle(x, self.downscale_factor)

    def extra_repr(self) -> str:
        return f"downscale_factor={self.downscale_factor}"


class _Pad(Module):
    """`padding` one number, or PyTorch's order: last axis first, before and after."""

    nd, mode = 2, "zeros"
    value = 0.0

    def __init__(self, padding: IntOrInts) -> None:
        least = 0 if self.mode != "zeros" else -(1 << 40)
        self.padding = ints(type(self).__name__, "padding", padding, 2 * self.nd, least)

    def forward(self, x: Any) -> Any:
        if len(x.shape) != self.nd + 2:
            raise ArgumentError(
                f"{type(self).__name__}: the input {tuple(x.shape)} must have {self.nd + 2} axes, "
                f"(N, C, *in) with {self.nd} spatial ones"
            )
        return ops.pad(x, self.padding, self.mode, self.value)

    def extra_repr(self) -> str:
        return str(self.padding[0] if len(set(self.padding)) == 1 else self.padding)


class ConstantPad1d(_Pad):
    """Padding of the spatial axis with `value`; negative numbers crop."""

    nd = 1

    def __init__(self, padding: IntOrInts, value: float) -> None:
        super().__init__(padding)
        self.value = value

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, value={self.value}"


class ConstantPad2d(ConstantPad1d):
    """Padding of the two spatial axes with `value`; negative numbers crop."""

    nd = 2


class ConstantPad3d(ConstantPad1d):
    """Padding of the three spatial axes with `value`; negative numbers crop."""

    nd = 3


class ZeroPad1d(_Pad):
    """Padding with zeros; negative numbers crop."""

    nd = 1


class ZeroPad2d(_Pad):
    """Padding with zeros: (left, right, top, bottom) or one number; negative numbers crop."""


class ZeroPad3d(_Pad):
    """Padding with zeros; negative numbers crop."""

    nd = 3


class ReflectionPad1d(_Pad):
    """Padding with the mirror image, the edge itself not repeated."""

    nd, mode = 1, "reflect"


class ReflectionPad2d(_Pad):
    """Padding with the mirror image, the edge itself not repeated."""

    mode = "reflect"


class ReflectionPad3d(_Pad):
    """Padding with the mirror image, the edge itself not repeated."""

    nd, mode = 3, "reflect"


class ReplicationPad1d(_Pad):
    """Padding with the pixel at the edge."""

    nd, mode = 1, "replicate"


class ReplicationPad2d(_Pad):
    """Padding with the pixel at the edge."""

    mode = "replicate"


class ReplicationPad3d(_Pad):
    """Padding with the pixel at the edge."""

    nd, mode = 3, "replicate"


class CircularPad1d(_Pad):
    """Padding with the pixels of the other edge."""

    nd, mode = 1, "circular"


class CircularPad2d(_Pad):
    """Padding with the pixels of the other edge."""

    mode = "circular"


class CircularPad3d(_Pad):
    """Padding with the pixels of the other edge."""

    nd, mode = 3, "circular"
