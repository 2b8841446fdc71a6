"""Convolution, its gradients, and transposed convolution, in one, two and three dimensions.

The same Function serves all of them, because each gradient of a convolution is one of the other two
products: the gradient by input of a transposed convolution is a plain convolution, and so on.
"""

from collections.abc import Sequence
from operator import is_
from typing import Any

from gpuconv.autograd import Function, Tensor, raw_arrays
from gpuconv.backends import Array, Backend, plain_backend
from gpuconv.errors import ArgumentError
from gpuconv.ops.dtypes import check_dtypes
from gpuconv.precision import get_float32_precision
from gpuconv.shapes import ConvSpec, IntOrInts, Padding, fingerprint, plain, remember


class Conv(Function):
    """y of x, w, b; `arguments` are those of `ConvSpec.infer` after the two shapes.

    `algo` computes y and both gradients.
    """

    spec: ConvSpec
    relu = False

    def __init__(self, nd: int, *arguments: Any, algo: str = "auto") -> None:
        self.nd, self.arguments, self.algo = nd, arguments, algo

    def forward(
        self, be: Backend, x: Array, w: Array, b: Array | None, add: Array | None = None
    ) -> Array:
        given = self.arguments, self.relu
        key = _key("conv", self.nd, be, x, w, b, add, self.algo, given)
        if (known := be.calls.get(key)) is not None:
            self.spec, self.macs, compute = known
            self.keep(x, w)
            return compute(x, w, b, add)
        check_dtypes(f"conv{self.nd}d", x=x, weight=w, bias=b, residual=add)
        self.prepare(x, w, b)
        if add is not None and add.shape != self.spec.y_shape:
            raise ArgumentError(
                f"fused_conv2d: the residual {add.shape} must have the shape of the output, "
                f"{self.spec.y_shape}"
            )
        y = be.conv(self.spec, x, w, b, algo=self.algo, add=add, relu=self.relu)
        if key is not None and plain((self.algo, given)):
            _remember(key, "conv", be, self.spec, self.algo, x, w, b, add, self.relu)
        return y

    def prepare(self, x: Array, w: Array, b: Array | None) -> None:
        """Check the shapes, and keep what the gradients need."""
        check_rank(f"conv{self.nd}d", self.nd, x.shape, w.shape)
        self.spec = ConvSpec.infer(x.shape, w.shape, *self.arguments)
        self.macs = self.spec.macs
        check_bias(f"conv{self.nd}d", b, w.shape[0])
        self.keep(x, w)

    def keep(self, x: Array, w: Array) -> None:
        """Of the arrays, those that the gradients need."""
        self.x = x if self.needs[1] else None
        self.w = w if self.needs[0] else None

    def backward(self, be: Backend, gy: Array) -> tuple[Array | None, ...]:
        need_x, need_w, need_b = self.needs[:3]
        return (
            be.conv_grad_input(self.spec, gy, self.w, algo=self.algo) if need_x else None,
            be.conv_grad_weight(self.spec, gy, self.x, algo=self.algo) if need_w else None,
            be.bias_gradient(gy) if need_b else None,
        )


class FusedConv(Conv):
    """relu(y + residual) in the convolution's own pass over memory; either may be left out."""

    def __init__(self, nd: int, *arguments: Any, relu: bool, algo: str = "auto") -> None:
        super().__init__(nd, *arguments, algo=algo)
        self.relu = relu

    def forward(
        self, be: Backend, x: Array, w: Array, b: Array | None, add: Array | None = None
    ) -> Array:
        y = super().forward(be, x, w, b, add)
        self.y = y if self.relu and any(self.needs) else None
        return y

    def backward(self, be: Backend, gy: Array) -> tuple[Array | None, ...]:
        g = gy if self.y is None else be.relu_grad(gy, self.y)
        return *super().backward(be, g), g if self.needs[3] else None


class ConvTranspose(Function):
    """The gradient by input of a convolution, taken as an operation of its own."""

    def __init__(self, nd: int, *arguments: Any) -> None:
        self.nd, self.arguments = nd, arguments

    def forward(self, be: Backend, x: Array, w: Array, b: Array | None) -> Array:
        op = f"conv_transpose{self.nd}d"
        check_dtypes(op, x=x, weight=w, bias=b)
        check_rank(op, self.nd, x.shape, w.shape)
        self.spec = ConvSpec.infer_transposed(x.shape, w.shape, *self.arguments)
        self.macs = self.spec.macs
        check_bias(op, b, self.spec.x_shape[1])
        self.x = x if self.needs[1] else None
        self.w = w if self.needs[0] else None
        y = be.conv_grad_input(self.spec, x, w)
        if b is not None:
            y += b.reshape(1, -1, *(1,) * self.nd)
        return y

    def backward(self, be: Backend, gy: Array) -> tuple[Array | None, ...]:
        need_x, need_w, need_b = self.needs
        return (
            be.conv(self.spec, gy, self.w) if need_x else None,
            be.conv_grad_weight(self.spec, self.x, gy) if need_w else None,
            be.bias_gradient(gy) if need_b else None,
        )


class ConvGradInput(Function):
    """gx of gy and w; differentiable like any operation."""

    def __init__(self, spec: ConvSpec, algo: str = "auto") -> None:
        self.spec, self.algo = spec, algo

    def forward(self, be: Backend, gy: Array, w: Array) -> Array:
        op = f"conv{self.spec.nd}d_grad_input"
        check_dtypes(op, gy=gy, weight=w)
        check_gy(op, gy, self.spec)
        self.gy = gy if self.needs[1] else None
        self.w = w if self.needs[0] else None
        return be.conv_grad_input(self.spec, gy, w, algo=self.algo)

    def backward(self, be: Backend, gy: Array) -> tuple[Array | None, ...]:
        need_gy, need_w = self.needs
        return (
            be.conv(self.spec, gy, self.w, algo=self.algo) if need_gy else None,
            be.conv_grad_weight(self.spec, self.gy, gy, algo=self.algo) if need_w else None,
        )


class ConvGradWeight(Function):
    """gw of gy and x; differentiable like any operation."""

    def __init__(self, spec: ConvSpec, algo: str = "auto") -> None:
        self.spec, self.algo = spec, algo

    def forward(self, be: Backend, gy: Array, x: Array) -> Array:
        op = f"conv{self.spec.nd}d_grad_weight"
        check_dtypes(op, gy=gy, x=x)
        check_gy(op, gy, self.spec)
        self.gy = gy if self.needs[1] else None
        self.x = x if self.needs[0] else None
        return be.conv_grad_weight(self.spec, gy, x, algo=self.algo)

    def backward(self, be: Backend, gy: Array) -> tuple[Array | None, ...]:
        need_gy, need_x = self.needs
        return (
            be.conv(self.spec, self.x, gy, algo=self.algo) if need_gy else None,
            be.conv_grad_input(self.spec, self.gy, gy, algo=self.algo) if need_x else None,
        )


def check_rank(op: str, nd: int, x_shape: Sequence[int], w_shape: Sequence[int]) -> None:
    for name, shape, layout, fix in (
        ("input", x_shape, "(N, C, *in)", "; add a missing batch axis with x[None]"),
        ("weight", w_shape, "(K, C/groups, *kernel)", ""),
    ):
        if hasattr(shape, "shape"):
            raise ArgumentError(f"{op}: the {name}'s shape is asked for, not the array; use .shape")
        if len(shape) != nd + 2:
            raise ArgumentError(
                f"{op}: the {name} {tuple(shape)} must have {nd + 2} axes, {layout} with {nd} "
                f"spatial ones{fix}"
            )


def check_bias(op: str, b: Array | None, channels: int) -> None:
    if b is not None and b.shape != (channels,):
        raise ArgumentError(
            f"{op}: the bias {b.shape} must be ({channels},), one an output channel"
        )


def check_gy(op: str, gy: Array, spec: ConvSpec) -> None:
    if gy.shape != spec.y_shape:
        raise ArgumentError(
            f"{op}: gy {gy.shape} must have the shape of the output, {spec.y_shape}, of an input "
            f"{spec.x_shape} and a weight {spec.w_shape}"
        )


def _key(
    which: str,
    nd: int,
    be: Backend,
    a: Array,
    b: Array,
    bias: Array | None,
    add: Array | None,
    algo: str,
    options: Any,
) -> Any:
    """Of a pass over plain arrays of one backend all that decides how it is computed; else None.

    A call whose key is in `be.calls` was checked once, and needs nothing but its launches.
    """
    kind = be.xp.ndarray
    if type(a) is not kind or type(b) is not kind:
        return None
    third = fourth = None
    if bias is not None:
        if type(bias) is not kind:
            return None
        third = bias.shape, bias.strides, bias.dtype
    if add is not None:
        if type(add) is not kind:
            return None
        fourth = add.shape, add.strides, add.dtype
    arrays = a.shape, a.strides, a.dtype, b.shape, b.strides, b.dtype, third, fourth
    return be.number, get_float32_precision(), fingerprint(which, nd, algo, options), arrays


def _remember(key: Any, which: str, be: Backend, spec: ConvSpec, algo: str, *arrays: Any) -> None:
    remember(be.calls, key, (spec, spec.macs, be.prepared(which, spec, algo, key[1], *arrays)))


def _conv(
    nd: int,
    x: Any,
    weight: Any,
    bias: Any,
    algo: str,
    options: tuple[Any, ...],
    add: Any = None,
    relu: bool | None = None,
) -> Any:
    """A plain convolution, or with `relu` True or False a fused one."""
    given = x, weight, bias, add
    arrays = raw_arrays(*given)
    if arrays is not None and (be := plain_backend(arrays[0])) is not None:
        x0, w0, b0, add0 = arrays
        key = _key("conv", nd, be, x0, w0, b0, add0, algo, (options, relu is True))
        if (known := be.calls.get(key)) is not None:
            y = known[2](*arrays)
            return y if all(map(is_, arrays, given)) else Tensor(y)
    if relu is None:
        return Conv(nd, *options, algo=algo).apply(x, weight, bias)
    return FusedConv(nd, *options, relu=relu, algo=algo).apply(x, weight, bias, add)


def conv1d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: IntOrInts = 1,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    algo: str = "auto",
) -> Any:
    """As `conv2d`, with one spatial axis: x (N, C, L), weight (K, C/groups, R)."""
    return _conv(1, x, weight, bias, algo, (stride, padding, dilation, groups, padding_mode))


def conv2d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: IntOrInts = 1,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    algo: str = "auto",
) -> Any:
    """Convolution (cross-correlation, as every CNN library has it) of a batch of images.

    x (N, C, H, W), weight (K, C/groups, R, S), bias (K,) or None; the result is (N, K, P, Q).
    Arrays give an array, a Tensor among them gives a Tensor. `padding` is a number, (height,
    width), ((top, bottom), (left, right)), "valid" or "same": output ceil(H / stride), and of an
    odd total the extra row at the end, for even kernels and strides too. `padding_mode` is "zeros",
    "reflect", "replicate" or "circular". `algo` forces an algorithm: "gemm", "depthwise", "direct",
    "im2col", on a CPU "winograd" too, on CUDA "tiled"; `gpuconv.explain.conv2d` says what "auto"
    takes, and `gpuconv.set_float32_precision` what it may.
    Raises ArgumentError for shapes that do not fit and for an `algo` that cannot take them,
    DtypeError for mixed dtypes. Source: Dumoulin and Visin, "A guide to convolution arithmetic",
    arXiv 1603.07285.
    """
    return _conv(2, x, weight, bias, algo, (stride, padding, dilation, groups, padding_mode))


def fused_conv2d(
    x: Any,
    weight: Any,
    bias: Any = None,
    residual: Any = None,
    stride: IntOrInts = 1,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    relu: bool = True,
    algo: str = "auto",
) -> Any:
    """relu(conv2d(x, weight, bias) + residual), with no pass over memory of its own for either.

    Arguments as in `conv2d`; `residual` (N, K, P, Q) or None. Differentiable by x, weight, bias and
    residual; at 0 the gradient of the ReLU is 0.
    """
    if not isinstance(relu, bool):
        raise ArgumentError(f"fused_conv2d: relu={relu!r} must be True or False")
    options = stride, padding, dilation, groups, padding_mode
    return _conv(2, x, weight, bias, algo, options, residual, relu)


def conv3d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: IntOrInts = 1,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    algo: str = "auto",
) -> Any:
    """As `conv2d`, with three spatial axes: x (N, C, D, H, W), weight (K, C/groups, T, R, S)."""
    return _conv(3, x, weight, bias, algo, (stride, padding, dilation, groups, padding_mode))


def conv_transpose1d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: IntOrInts = 1,
    padding: Padding = 0,
    output_padding: IntOrInts = 0,
    groups: int = 1,
    dilation: IntOrInts = 1,
) -> Any:
    """As `conv_transpose2d`, with one spatial axis."""
    f = ConvTranspose(1, stride, padding, output_padding, dilation, groups)
    return f.apply(x, weight, bias)


def conv_transpose2d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: IntOrInts = 1,
    padding: Padding = 0,
    output_padding: IntOrInts = 0,
    groups: int = 1,
    dilation: IntOrInts = 1,
) -> Any:
    """Transposed convolution: the gradient by input of a convolution, as an operation.

    x (N, C, H, W), weight (C, K/groups, R, S) as in PyTorch, bias (K,) or None; the result is (N,
    K, P, Q) with P = (H-1)*stride - top - bottom + dilation*(R-1) + 1 + output_padding. `padding`
    as in `conv2d`; "same" gives H * stride. Argument order is PyTorch's.
    """
    f = ConvTranspose(2, stride, padding, output_padding, dilation, groups)
    return f.apply(x, weight, bias)


def conv_transpose3d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: IntOrInts = 1,
    padding: Padding = 0,
    output_padding: IntOrInts = 0,
    groups: int = 1,
    dilation: IntOrInts = 1,
) -> Any:
    """As `conv_transpose2d`, with three spatial axes."""
    f = ConvTranspose(3, stride, padding, output_padding, dilation, groups)
    return f.apply(x, weight, bias)


def conv1d_grad_input(
    gy: Any,
    weight: Any,
    x_shape: Sequence[int],
    stride: IntOrInts = 1,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    algo: str = "auto",
) -> Any:
    """As `conv2d_grad_input`, with one spatial axis."""
    options = stride, padding, dilation, groups, padding_mode
    return _gradient("conv_grad_input", 1, gy, weight, x_shape, algo, options)


def conv1d_grad_weight(
    gy: Any,
    x: Any,
    weight_shape: Sequence[int],
    stride: IntOrInts = 1,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    algo: str = "auto",
) -> Any:
    """As `conv2d_grad_weight`, with one spatial axis."""
    options = stride, padding, dilation, groups, padding_mode
    return _gradient("conv_grad_weight", 1, gy, x, weight_shape, algo, options)


def conv2d_grad_input(
    gy: Any,
    weight: Any,
    x_shape: Sequence[int],
    stride: IntOrInts = 1,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    algo: str = "auto",
) -> Any:
    """gx of `conv2d` ('dgrad'): gy (N, K, P, Q) and weight give (N, C, H, W) = `x_shape`."""
    options = stride, padding, dilation, groups, padding_mode
    return _gradient("conv_grad_input", 2, gy, weight, x_shape, algo, options)


def conv2d_grad_weight(
    gy: Any,
    x: Any,
    weight_shape: Sequence[int],
    stride: IntOrInts = 1,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    algo: str = "auto",
) -> Any:
    """gw of `conv2d` ('wgrad'): gy (N, K, P, Q) and x give (K, C/groups, R, S) = `weight_shape`."""
    options = stride, padding, dilation, groups, padding_mode
    return _gradient("conv_grad_weight", 2, gy, x, weight_shape, algo, options)


def conv3d_grad_input(
    gy: Any,
    weight: Any,
    x_shape: Sequence[int],
    stride: IntOrInts = 1,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    algo: str = "auto",
) -> Any:
    """As `conv2d_grad_input`, with three spatial axes."""
    options = stride, padding, dilation, groups, padding_mode
    return _gradient("conv_grad_input", 3, gy, weight, x_shape, algo, options)


def conv3d_grad_weight(
    gy: Any,
    x: Any,
    weight_shape: Sequence[int],
    stride: IntOrInts = 1,
    padding: Padding = 0,
    dilation: IntOrInts = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    algo: str = "auto",
) -> Any:
    """As `conv2d_grad_weight`, with three spatial axes."""
    options = stride, padding, dilation, groups, padding_mode
    return _gradient("conv_grad_weight", 3, gy, x, weight_shape, algo, options)


def _gradient(
    which: str, nd: int, gy: Any, other: Any, shape: Sequence[int], algo: str, options: Any
) -> Any:
    """Pass `which` of gy and w (`shape` is that of x) or of gy and x (`shape` is that of w)."""
    be, key, given = plain_backend(gy), None, (shape, *options)
    if be is not None:
        key = _key(which, nd, be, gy, other, None, None, algo, given)
        if (known := be.calls.get(key)) is not None:
            return known[2](gy, other)
    by_input = which == "conv_grad_input"
    shapes = (shape, other.shape) if by_input else (other.shape, shape)
    check_rank(which.replace("conv", f"conv{nd}d"), nd, *shapes)
    spec = ConvSpec.infer(*shapes, *options)
    result = (ConvGradInput if by_input else ConvGradWeight)(spec, algo).apply(gy, other)
    if be is not None and key is not None and plain((algo, given)):
        _remember(key, which, be, spec, algo, gy, other)
    return result
