"""What the tests of CPU kernels and of CUDA kernels both ask of a backend, and of which numbers."""

from typing import Any

import numpy as np


def channels_last(x: Any) -> Any:
    """The same numbers, lying in memory as (N, *in, C)."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)


def rounded(x: Any) -> Any:
    """x as float32 has it, so that the rounding of inputs does not hide that of kernels."""
    return x.astype("float32").astype("float64")


# Softmax cross entropy.


def cross_entropy(
    be: Any, x: Any, target: Any, w: Any, g: Any, ignore_index: int, smoothing: float
) -> list[Any]:
    """Every position's loss, and gx."""
    losses, saved = be.softmax_cross_entropy(x, target, w, ignore_index, smoothing)
    return [
        losses,
        be.softmax_cross_entropy_grad(g, saved, target, w, ignore_index, smoothing),
    ]


def scores(rng: np.random.Generator, shape: Any, last: bool = False) -> list[Any]:
    """x, labels, class weights, and g."""
    x = rng.standard_normal(shape) * 3
    positions = (shape[0], *shape[2:])
    target = rng.integers(0, shape[1], positions)
    w, g = rng.random(shape[1]) + 0.5, rng.standard_normal(positions)
    x, w, g = (rounded(a) for a in (x, w, g))
    return [channels_last(x) if last else x, target, w, g]


# Batch norm.


def batch_norm(be: Any, x: Any, w: Any, b: Any, gy: Any) -> list[Any]:
    """Everything there is of a forward and a backward pass."""
    y, mean, var, saved = be.batch_norm(x, w, b, 1e-5)
    return [y, mean, var, *be.batch_norm_grad(gy, w, saved)]


def images(rng: np.random.Generator, shape: Any, last: bool = False) -> list[Any]:
    """x, w, b and gy; each channel of x has its own mean."""
    x, gy = rng.standard_normal((2, *shape))
    w, b = rng.standard_normal((2, shape[1]))
    x = 3 * x + np.arange(shape[1]).reshape(-1, *(1,) * (len(shape) - 2))
    if last:
        x, gy = channels_last(x), channels_last(gy)
    return [rounded(a) for a in (x, w, b, gy)]


# Optimizer steps: the method, which states there are, and its numbers.

SGD = {"lr": 0.1, "momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False}
ADAM = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
RMSPROP = {"lr": 1e-2, "alpha": 0.99, "eps": 1e-8}

RULES: dict[str, tuple[str, tuple[bool, ...], dict[str, Any]]] = {
    "sgd": ("sgd_step", (False,), SGD),
    "sgd, decay": ("sgd_step", (False,), {**SGD, "weight_decay": 0.1}),
    "momentum": ("sgd_step", (True,), {**SGD, "momentum": 0.9, "dampening": 0.3}),
    "nesterov": (
        "sgd_step",
        (True,),
        {**SGD, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    ),
    "adam": ("adam_step", (True, True, False), {**ADAM, "weight_decay": 0.0, "decoupled": False}),
    "adam, decay": (
        "adam_step",
        (True, True, False),
        {**ADAM, "weight_decay": 0.1, "decoupled": False},
    ),
    "adamw": ("adam_step", (True, True, False), {**ADAM, "weight_decay": 0.1, "decoupled": True}),
    "amsgrad": ("adam_step", (True, True, True), {**ADAM, "weight_decay": 0.0, "decoupled": False}),
    "rmsprop": (
        "rmsprop_step",
        (True, False, False),
        {**RMSPROP, "weight_decay": 0.1, "momentum": 0.0},
    ),
    "rmsprop, centered, momentum": (
        "rmsprop_step",
        (True, True, True),
        {**RMSPROP, "weight_decay": 0.0, "momentum": 0.9},
    ),
}


def three_steps(be: Any, w: Any, gradients: list[Any], rule: str) -> list[Any]:
    """w and its state after a step for each gradient, with another learning rate each time."""
    method, kept, numbers = RULES[rule]
    w = w.copy("K")
    state = [be.xp.zeros_like(w) if k else None for k in kept]
    for i, gw in enumerate(gradients):
        place = {"sgd_step": (i == 0,), "adam_step": (i + 1,), "rmsprop_step": ()}[method]
        getattr(be, method)(w, gw, *state, *place, **{**numbers, "lr": numbers["lr"] / (i + 1)})
    return [w, *(s for s in state if s is not None)]
