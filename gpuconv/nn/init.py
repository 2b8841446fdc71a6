"""Initialisers, with the names and arguments of torch.nn.init: each fills a tensor and returns it.

Numbers are drawn from `gpuconv.random.generator()` in float64 and converted to the tensor's dtype,
on its device. "in place" means that the tensor gets a new array: one shared with other code is left
alone.
"""

from collections.abc import Sequence
from math import erf, prod, sqrt
from typing import Any, TypeVar

import numpy as np

from gpuconv import random
from gpuconv.autograd import Tensor
from gpuconv.backends import backend_of
from gpuconv.errors import ArgumentError
from gpuconv.nn.module import Parameter, floating

T = TypeVar("T", bound=Tensor)

_GAINS = {
    "linear": 1.0,
    "conv1d": 1.0,
    "conv2d": 1.0,
    "conv3d": 1.0,
    "conv_transpose1d": 1.0,
    "conv_transpose2d": 1.0,
    "conv_transpose3d": 1.0,
    "sigmoid": 1.0,
    "tanh": 5 / 3,
    "relu": sqrt(2),
    "selu": 3 / 4,
}


def new_parameter(layer: str, shape: Sequence[int], dtype: Any = None) -> Parameter:
    """A parameter of zeros, float32 unless told; DtypeError for what is not floating point."""
    kind = floating(layer, np.float32 if dtype is None else dtype)
    return Parameter(np.zeros(tuple(shape), kind))


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """How much to scale weights by before `nonlinearity`; `param` is the slope of "leaky_relu"."""
    if nonlinearity == "leaky_relu":
        return sqrt(2 / (1 + (0.01 if param is None else param) ** 2))
    if nonlinearity not in _GAINS:
        known = ", ".join([*_GAINS, "leaky_relu"])
        raise ArgumentError(f"calculate_gain: nonlinearity={nonlinearity!r}, use one of {known}")
    return _GAINS[nonlinearity]


def constant_(tensor: T, val: float) -> T:
    """Fill with `val`."""
    return _fill(tensor, np.full(tensor.shape, val))


def zeros_(tensor: T) -> T:
    """Fill with 0."""
    return constant_(tensor, 0.0)


def ones_(tensor: T) -> T:
    """Fill with 1."""
    return constant_(tensor, 1.0)


def uniform_(tensor: T, a: float = 0.0, b: float = 1.0) -> T:
    """Uniform from `a` to `b`."""
    return _fill(tensor, random.generator().uniform(a, b, tensor.shape))


def normal_(tensor: T, mean: float = 0.0, std: float = 1.0) -> T:
    """Normal with mean `mean` and standard deviation `std`."""
    return _fill(tensor, random.generator().normal(mean, std, tensor.shape))


def trunc_normal_(
    tensor: T, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0
) -> T:
    """Normal, with numbers outside `a` to `b` (not scaled by `std`) drawn again.

    ArgumentError if fewer than one draw in 1,000 would lie inside.
    """
    inside = 0.5 * (erf((b - mean) / (std * sqrt(2))) - erf((a - mean) / (std * sqrt(2))))
    if inside < 1e-3:
        raise ArgumentError(
            f"trunc_normal_: a={a} to b={b} holds {inside:.1e} of a normal with mean={mean} and "
            f"std={std}; widen it, or move the mean"
        )
    rng = random.generator()
    values = rng.normal(mean, std, tensor.size)
    while (wrong := np.flatnonzero((values < a) | (values > b))).size:
        values[wrong] = rng.normal(mean, std, wrong.size)
    return _fill(tensor, values.reshape(tensor.shape))


def xavier_uniform_(tensor: T, gain: float = 1.0) -> T:
    """Uniform with standard deviation gain * sqrt(2 / (fan_in + fan_out)).

    Source: Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural
    networks", AISTATS 2010.
    """
    bound = sqrt(3) * gain * sqrt(2 / sum(fans("xavier_uniform_", tensor)))
    return uniform_(tensor, -bound, bound)


def xavier_normal_(tensor: T, gain: float = 1.0) -> T:
    """Normal with standard deviation gain * sqrt(2 / (fan_in + fan_out))."""
    return normal_(tensor, 0.0, gain * sqrt(2 / sum(fans("xavier_normal_", tensor))))


def kaiming_uniform_(
    tensor: T, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu"
) -> T:
    """Uniform with standard deviation gain / sqrt(fan); `a` is the slope of "leaky_relu".

    Source: He et al., "Delving deep into rectifiers", arXiv 1502.01852.
    """
    bound = sqrt(3) * _kaiming_std("kaiming_uniform_", tensor, a, mode, nonlinearity)
    return uniform_(tensor, -bound, bound)


def kaiming_normal_(
    tensor: T, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu"
) -> T:
    """Normal with standard deviation gain / sqrt(fan); `a` is the slope of "leaky_relu"."""
    std = _kaiming_std("kaiming_normal_", tensor, a, mode, nonlinearity)
    return normal_(tensor, 0.0, std)


def orthogonal_(tensor: T, gain: float = 1.0) -> T:
    """A random orthogonal matrix (first axis by all others) times `gain`, uniform among them.

    Source: Saxe, McClelland and Ganguli, "Exact solutions to the nonlinear dynamics of learning in
    deep linear neural networks", arXiv 1312.6120.
    """
    _check_axes("orthogonal_", tensor, 2)
    rows, cols = tensor.shape[0], prod(tensor.shape[1:])
    flat = random.generator().standard_normal((max(rows, cols), min(rows, cols)))
    q, r = np.linalg.qr(flat)
    q = q * np.where(np.diag(r) < 0, -1.0, 1.0)  # else QR's choice of signs would not be uniform
    return _fill(tensor, gain * (q.T if rows < cols else q).reshape(tensor.shape))


def eye_(tensor: T) -> T:
    """The identity matrix; for a tensor of two axes."""
    if tensor.ndim != 2:
        raise ArgumentError(f"eye_: shape {tensor.shape} must have two axes")
    return _fill(tensor, np.eye(tensor.shape[0], tensor.shape[1]))


def dirac_(tensor: T, groups: int = 1) -> T:
    """The weight of a convolution (K, C/groups, *kernel) that passes channels through unchanged."""
    if tensor.ndim not in (3, 4, 5):
        raise ArgumentError(f"dirac_: shape {tensor.shape} must have 3, 4 or 5 axes")
    if groups < 1 or tensor.shape[0] % groups:
        raise ArgumentError(
            f"dirac_: groups={groups} must divide the {tensor.shape[0]} output channels"
        )
    values = np.zeros(tensor.shape)
    per_group = tensor.shape[0] // groups
    centre = tuple(n // 2 for n in tensor.shape[2:])
    for k in range(tensor.shape[0]):
        if k % per_group < tensor.shape[1]:
            values[(k, k % per_group, *centre)] = 1
    return _fill(tensor, values)


def fans(op: str, tensor: Tensor) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight (out, in, *kernel): numbers summed for one, and fed by one."""
    _check_axes(op, tensor, 2)
    field = prod(tensor.shape[2:])
    return tensor.shape[1] * field, tensor.shape[0] * field


def _kaiming_std(op: str, tensor: Tensor, a: float, mode: str, nonlinearity: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise ArgumentError(f"{op}: mode={mode!r} is unknown; use 'fan_in' or 'fan_out'")
    fan = fans(op, tensor)[mode == "fan_out"]
    return calculate_gain(nonlinearity, a) / sqrt(fan)


def _check_axes(op: str, tensor: Tensor, least: int) -> None:
    if tensor.ndim < least or 0 in tensor.shape:
        raise ArgumentError(
            f"{op}: shape {tensor.shape} must have at least {least} axes, none of them empty; "
            f"use uniform_ or normal_ for a bias"
        )


def _fill(tensor: T, values: np.ndarray) -> T:
    tensor.data = backend_of(tensor.data).asarray(values.astype(tensor.dtype))
    return tensor
