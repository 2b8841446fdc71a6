"""Activations: y = f(x) elementwise, and the softmax along one axis.

No intermediate overflows, however large the input; NaN gives NaN. At a kink the gradient is
PyTorch's.
"""

from math import pi, sqrt
from typing import Any

from gpuconv.autograd import Function
from gpuconv.backends import Array, Backend, plain_backend
from gpuconv.errors import ArgumentError
from gpuconv.ops.dtypes import check_dtypes
from gpuconv.reference.loss import log_probabilities


class _Activation(Function):
    """Keeps x; `value` and `slope` are the function and its derivative."""

    def __init__(self, op: str) -> None:
        self.op = op

    def forward(self, be: Backend, x: Array) -> Array:
        check_dtypes(self.op, x=x)
        self.x = x
        return self.value(be.xp, x)

    def backward(self, be: Backend, gy: Array) -> Array:
        return gy * self.slope(be.xp, self.x)

    def value(self, xp: Any, x: Array) -> Array:
        raise NotImplementedError

    def slope(self, xp: Any, x: Array) -> Array:
        raise NotImplementedError


class ReLU(_Activation):
    """Keeps y, not x: the next operation keeps that anyway."""

    def forward(self, be: Backend, x: Array) -> Array:
        check_dtypes(self.op, x=x)
        self.y = be.relu(x)
        return self.y

    def backward(self, be: Backend, gy: Array) -> Array:
        return be.relu_grad(gy, self.y)


class LeakyReLU(_Activation):
    def __init__(self, op: str, negative_slope: float) -> None:
        super().__init__(op)
        self.negative_slope = negative_slope

    def value(self, xp: Any, x: Array) -> Array:
        return xp.where(x > 0, x, x * self.negative_slope)

    def slope(self, xp: Any, x: Array) -> Array:
        return xp.where(x > 0, xp.ones_like(x), self.negative_slope)


class PReLU(Function):
    """The slope w where x is not positive; w of one number, or one a channel."""

    def forward(self, be: Backend, x: Array, w: Array) -> Array:
        check_dtypes("prelu", x=x, weight=w)
        channels = x.shape[1] if x.ndim > 1 else 1
        if w.shape not in ((1,), (channels,)):
            raise ArgumentError(
                f"prelu: the weight {w.shape} must be (1,) or ({channels},), one a channel of the "
                f"input {x.shape}"
            )
        self.x, self.w_shape = x, w.shape
        # With a value a channel, (C, 1, ...) broadcasts along the channels, axis 1.
        self.w = w.reshape(-1, *(1,) * (x.ndim - 2)) if x.ndim > 1 else w.reshape((1,) * x.ndim)
        return be.xp.where(x > 0, x, x * self.w)

    def backward(self, be: Backend, gy: Array) -> tuple[Array | None, ...]:
        xp, gx, gw = be.xp, None, None
        if self.needs[0]:
            gx = xp.where(self.x > 0, gy, gy * self.w)
        if self.needs[1]:
            terms = xp.asarray(gy * xp.minimum(self.x, 0))
            axes = tuple(a for a in range(terms.ndim) if a != 1 or self.w_shape == (1,))
            gw = xp.asarray(terms.sum(axis=axes)).reshape(self.w_shape)
        return gx, gw


class ELU(_Activation):
    """scale * x where x is positive, else scale * alpha * (exp(rate * x) - 1)."""

    def __init__(self, op: str, alpha: float, scale: float = 1.0, rate: float = 1.0) -> None:
        super().__init__(op)
        self.alpha, self.scale, self.rate = alpha, scale, rate

    def value(self, xp: Any, x: Array) -> Array:
        low = xp.expm1(xp.minimum(x, 0) * self.rate) * (self.scale * self.alpha)
        return xp.where(x > 0, x * self.scale, low)

    def slope(self, xp: Any, x: Array) -> Array:
        low = xp.exp(xp.minimum(x, 0) * self.rate) * (self.scale * self.alpha * self.rate)
        return xp.where(x > 0, self.scale, low)


class Sigmoid(Function):
    def forward(self, be: Backend, x: Array) -> Array:
        check_dtypes("sigmoid", x=x)
        self.y = logistic(be.xp, x)
        return self.y

    def backward(self, be: Backend, gy: Array) -> Array:
        return gy * (1 - self.y) * self.y


class Tanh(Function):
    def forward(self, be: Backend, x: Array) -> Array:
        check_dtypes("tanh", x=x)
        self.y = be.xp.tanh(x)
        return self.y

    def backward(self, be: Backend, gy: Array) -> Array:
        return gy * (1 - self.y * self.y)


class SiLU(_Activation):
    def value(self, xp: Any, x: Array) -> Array:
        return x * logistic(xp, x)

    def slope(self, xp: Any, x: Array) -> Array:
        s = logistic(xp, x)
        return s * (1 + x * (1 - s))


class GELU(_Activation):
    """x times the standard normal distribution function, which is kept for the gradient."""

    def value(self, xp: Any, x: Array) -> Array:
        self.cdf = erfc(xp, x * -sqrt(0.5)) * 0.5
        return x * self.cdf

    def slope(self, xp: Any, x: Array) -> Array:
        near = xp.clip(x, -40, 40)  # where the density is not 0 in float64
        return self.cdf + near * xp.exp(near * near * -0.5) * (1 / sqrt(2 * pi))


class TanhGELU(_Activation):
    """GELU by 0.5 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) for the distribution function."""

    def value(self, xp: Any, x: Array) -> Array:
        return x * (xp.tanh(self.inner(xp, x)[0]) + 1) * 0.5

    def slope(self, xp: Any, x: Array) -> Array:
        inner, inner_slope = self.inner(xp, x)
        t = xp.tanh(inner)
        return (1 + t) * 0.5 + x * (1 - t * t) * inner_slope * 0.5

    def inner(self, xp: Any, x: Array) -> tuple[Array, Array]:
        near = xp.clip(x, -10, 10)  # beyond, the tanh is 1 or -1 in float64
        square = near * near * 0.044715
        return near * (square + 1) * sqrt(2 / pi), (square * 3 + 1) * sqrt(2 / pi)


class Softplus(_Activation):
    def __init__(self, op: str, beta: float, threshold: float) -> None:
        super().__init__(op)
        self.beta, self.threshold = beta, threshold

    def value(self, xp: Any, x: Array) -> Array:
        z = x * self.beta
        return xp.where(z > self.threshold, x, log1p_exp(xp, z) / self.beta)

    def slope(self, xp: Any, x: Array) -> Array:
        z = x * self.beta
        return xp.where(z > self.threshold, xp.ones_like(x), logistic(xp, z))


class Hardtanh(_Activation):
    def __init__(self, op: str, low: float, high: float) -> None:
        super().__init__(op)
        self.low, self.high = low, high

    def value(self, xp: Any, x: Array) -> Array:
        return xp.clip(x, self.low, self.high)

    def slope(self, xp: Any, x: Array) -> Array:
        return (x > self.low) & (x < self.high)


class Hardsigmoid(_Activation):
    def value(self, xp: Any, x: Array) -> Array:
        return xp.clip(x + 3, 0, 6) / 6

    def slope(self, xp: Any, x: Array) -> Array:
        return ((x > -3) & (x < 3)) * xp.full_like(x, 1 / 6)


class Hardswish(_Activation):
    def value(self, xp: Any, x: Array) -> Array:
        return x * xp.clip(x + 3, 0, 6) / 6

    def slope(self, xp: Any, x: Array) -> Array:
        return xp.where(x >= 3, xp.ones_like(x), (x > -3) * (x / 3 + 0.5))


class Mish(_Activation):
    def value(self, xp: Any, x: Array) -> Array:
        return x * xp.tanh(log1p_exp(xp, x))

    def slope(self, xp: Any, x: Array) -> Array:
        t = xp.tanh(log1p_exp(xp, x))
        return t + x * logistic(xp, x) * (1 - t * t)


class Softmax(Function):
    def __init__(self, dim: int) -> None:
        self.dim = dim

    def forward(self, be: Backend, x: Array) -> Array:
        check_dim("softmax", x, self.dim)
        self.y = be.xp.exp(log_probabilities(be.xp, x, self.dim))
        return self.y

    def backward(self, be: Backend, gy: Array) -> Array:
        return (gy - (gy * self.y).sum(axis=self.dim, keepdims=True)) * self.y


class LogSoftmax(Function):
    def __init__(self, dim: int) -> None:
        self.dim = dim

    def forward(self, be: Backend, x: Array) -> Array:
        check_dim("log_softmax", x, self.dim)
        self.y = log_probabilities(be.xp, x, self.dim)
        return self.y

    def backward(self, be: Backend, gy: Array) -> Array:
        return gy - be.xp.exp(self.y) * gy.sum(axis=self.dim, keepdims=True)


def check_dim(op: str, x: Array, dim: int) -> None:
    """Errors unless x is of floating point and has an axis `dim`."""
    check_dtypes(op, x=x)
    if not -x.ndim <= dim < x.ndim:
        raise ArgumentError(f"{op}: dim={dim} is no axis of shape {x.shape}; use one of its axes")


def logistic(xp: Any, x: Array) -> Array:
    """1 / (1 + exp(-x)), accurate in both tails."""
    e = xp.exp(-xp.abs(x))
    return xp.where(x < 0, e, xp.ones_like(e)) / (e + 1)


def log1p_exp(xp: Any, x: Array) -> Array:
    """log(1 + exp(x)), accurate in both tails."""
    return xp.maximum(x, 0) + xp.log1p(xp.exp(-xp.abs(x)))


# Numerators and denominators, highest power first: W. J. Cody, "Rational Chebyshev approximations
# for the error function", Math. Comp. 23 (1969), with the digits of his subroutine CALERF.
# erf(x) = x A(x^2) / B(x^2) up to _SMALL; erfc(x) = exp(-x^2) C(x) / D(x) up to 4; beyond,
# erfc(x) = exp(-x^2) / x (1/sqrt(pi) - r P(r) / Q(r)), r = 1/x^2.
_SMALL = 0.46875
_A = (
    1.85777706184603153e-1,
    3.16112374387056560e0,
    1.13864154151050156e2,
    3.77485237685302021e2,
    3.20937758913846947e3,
)
_B = (
    1.0,
    2.36012909523441209e1,
    2.44024637934444173e2,
    1.28261652607737228e3,
    2.84423683343917062e3,
)
_C = (
    2.15311535474403846e-8,
    5.64188496988670089e-1,
    8.88314979438837594e0,
    6.61191906371416295e1,
    2.98635138197400131e2,
    8.81952221241769090e2,
    1.71204761263407058e3,
    2.05107837782607147e3,
    1.23033935479799725e3,
)
_D = (
    1.0,
    1.57449261107098347e1,
    1.17693950891312499e2,
    5.37181101862009858e2,
    1.62138957456669019e3,
    3.29079923573345963e3,
    4.36261909014324716e3,
    3.43936767414372164e3,
    1.23033935480374942e3,
)
_P = (
    1.63153871373020978e-2,
    3.05326634961232344e-1,
    3.60344899949804439e-1,
    1.25781726111229246e-1,
    1.60837851487422766e-2,
    6.58749161529837803e-4,
)
_Q = (
    1.0,
    2.56852019228982242e0,
    1.87295284992346725e0,
    5.27905102951428412e-1,
    6.05183413124413191e-2,
    2.33520497626869185e-3,
)


def erfc(xp: Any, x: Array) -> Array:
    """1 - erf(x), in float64 to a relative error of 1e-15 or so, in both tails too."""
    if x.dtype.itemsize < 4:  # the coefficients are too large for float16
        return erfc(xp, x.astype("float32")).astype(x.dtype)
    size = xp.abs(x)
    near = xp.clip(x, -_SMALL, _SMALL)
    small = near * _polynomial(near * near, _A) / _polynomial(near * near, _B)
    mid = xp.clip(size, _SMALL, 4)
    far = xp.clip(size, 4, 30)
    r = 1 / (far * far)
    ratio = xp.where(
        size <= 4,
        _polynomial(mid, _C) / _polynomial(mid, _D),
        (1 / sqrt(pi) - r * _polynomial(r, _P) / _polynomial(r, _Q)) / far,
    )
    # exp(-y^2) with y^2 split in two, the first part exact: else its rounding is multiplied by y^2.
    y = xp.clip(size, _SMALL, 30)
    high = xp.trunc(y * 16) / 16
    tail = xp.exp(-high * high) * xp.exp((high - y) * (high + y)) * ratio
    return xp.where(size <= _SMALL, 1 - small, xp.where(x < 0, 2 - tail, tail))


def _polynomial(x: Array, coefficients: tuple[float, ...]) -> Array:
    """Horner's scheme, highest power first."""
    y = x * coefficients[0] + coefficients[1]
    for c in coefficients[2:]:
        y *= x
        y += c
    return y


def relu(x: Any) -> Any:
    """max(x, 0). The gradient at 0 is 0."""
    be = plain_backend(x)  # an array alone: nothing is recorded
    if be is not None and x.ndim and x.dtype.kind == "f":
        return be.relu(x)
    return ReLU("relu").apply(x)


def relu6(x: Any) -> Any:
    """x limited to 0..6; the gradient at both ends is 0."""
    return Hardtanh("relu6", 0, 6).apply(x)


def leaky_relu(x: Any, negative_slope: float = 0.01) -> Any:
    """x where it is positive, else negative_slope * x."""
    return LeakyReLU("leaky_relu", negative_slope).apply(x)


def prelu(x: Any, weight: Any) -> Any:
    """x where it is positive, else weight * x; weight (1,), or (C,) for x (N, C, *in).

    Raises ArgumentError for another shape. Source: He et al., arXiv 1502.01852.
    """
    return PReLU().apply(x, weight)


def elu(x: Any, alpha: float = 1.0) -> Any:
    """x where it is positive, else alpha (exp(x) - 1). Source: arXiv 1511.07289."""
    return ELU("elu", alpha).apply(x)


def selu(x: Any) -> Any:
    """`elu` scaled so that a deep net normalises itself. Source: arXiv 1706.02515, equation 2."""
    return ELU("selu", 1.6732632423543772, 1.0507009873554805).apply(x)


def celu(x: Any, alpha: float = 1.0) -> Any:
    """x where it is positive, else alpha (exp(x / alpha) - 1). Source: arXiv 1704.07483.

    Raises ArgumentError unless `alpha` is positive.
    """
    if not alpha > 0:
        raise ArgumentError(f"celu: alpha={alpha} must be positive")
    return ELU("celu", alpha, 1.0, 1 / alpha).apply(x)


def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x))."""
    return Sigmoid().apply(x)


def tanh(x: Any) -> Any:
    """The hyperbolic tangent."""
    return Tanh().apply(x)


def silu(x: Any) -> Any:
    """x * sigmoid(x), also called swish. Source: arXiv 1606.08415, 1710.05941."""
    return SiLU("silu").apply(x)


def gelu(x: Any, approximate: str = "none") -> Any:
    """x times the standard normal distribution function at x; "tanh" approximates that.

    Raises ArgumentError for another `approximate`. Source: Hendrycks and Gimpel, arXiv 1606.08415.
    """
    if approximate not in ("none", "tanh"):
        raise ArgumentError(f"gelu: approximate={approximate!r} is unknown; use 'none' or 'tanh'")
    return (GELU if approximate == "none" else TanhGELU)("gelu").apply(x)


def softplus(x: Any, beta: float = 1.0, threshold: float = 20.0) -> Any:
    """log(1 + exp(beta x)) / beta; x itself where beta x is over `threshold`. beta is not 0."""
    if not beta:
        raise ArgumentError(f"softplus: beta={beta} must not be 0")
    return Softplus("softplus", beta, threshold).apply(x)


def hardsigmoid(x: Any) -> Any:
    """x / 6 + 1/2 limited to 0..1; the gradient at both ends is 0."""
    return Hardsigmoid("hardsigmoid").apply(x)


def hardswish(x: Any) -> Any:
    """x * hardsigmoid(x). Source: Howard et al., arXiv 1905.02244, section 5.2."""
    return Hardswish("hardswish").apply(x)


def hardtanh(x: Any, min_val: float = -1.0, max_val: float = 1.0) -> Any:
    """x limited to min_val..max_val; the gradient at both ends is 0."""
    if not min_val <= max_val:
        raise ArgumentError(f"hardtanh: min_val={min_val} must not exceed max_val={max_val}")
    return Hardtanh("hardtanh", min_val, max_val).apply(x)


def mish(x: Any) -> Any:
    """x * tanh(softplus(x)). Source: Misra, arXiv 1908.08681."""
    return Mish("mish").apply(x)


def softmax(x: Any, dim: int = -1) -> Any:
    """exp(x) over its sum along axis `dim`, so that the sum is 1 there."""
    return Softmax(dim).apply(x)


def log_softmax(x: Any, dim: int = -1) -> Any:
    """log(softmax(x)) along axis `dim`, without the loss of digits in taking them in turn."""
    return LogSoftmax(dim).apply(x)
