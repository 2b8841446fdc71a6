"""Losses: every argument and reduction, labels and probabilities, up to two spatial axes.

Names and arguments are PyTorch's, so one call serves both sides: `f` is `gpuconv.ops` or torch's.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from gpuconv import ops
from tests.cases.case import Case, Make
from tests.cases.norm import beside

S = (2, 3, 4)
REDUCTIONS = ("none", "mean", "sum")


def row(name: str, call: Callable[..., Any], *inputs: Any, kinks: bool = False) -> Case:
    """`call(f, constant, *inputs)`, where `constant` makes an array beside the first input."""
    return Case(
        name,
        lambda x, *rest: call(ops, lambda v: beside(x, v), x, *rest),
        lambda t, x, *rest: call(
            t.nn.functional, lambda v: t.tensor(np.asarray(v), dtype=x.dtype), x, *rest
        ),
        inputs,
        kinks,
    )


def labels(*shape: int, classes: int = 3, ignored: int | None = None) -> Make:
    """Labels of `shape`, about a third of them `ignored`, but not all."""

    def make(rng: np.random.Generator) -> np.ndarray:
        made = rng.integers(0, classes, shape)
        if ignored is not None:
            made[rng.random(shape) < 0.3] = ignored
            made.reshape(-1)[:1] = (ignored + 1) % classes
        return made

    return make


def probabilities(*shape: int) -> Make:
    def make(rng: np.random.Generator) -> np.ndarray:
        made = rng.uniform(0.1, 1, shape)
        return made / made.sum(axis=1, keepdims=True)

    return make


def between(low: float, high: float, shape: tuple[int, ...] = S) -> Make:
    return lambda rng: rng.uniform(low, high, shape)


def off_grid(rng: np.random.Generator) -> np.ndarray:
    """As far from the other input of a kinked case as the steps of that allow, nearly."""
    return ((rng.permutation(24) - 11.5) / 6 + 0.057).reshape(S)


WEIGHTS = {"": None, "-weight": (0.25, 1.75, 0.875)}
LABELLED: dict[str, dict[str, Any]] = {
    "": {},
    "-ignore": {"ignore_index": -100},
    "-ignore-class": {"ignore_index": 1},
    "-smoothing": {"label_smoothing": 0.2},
    "-smoothing-ignore": {"label_smoothing": 0.7, "ignore_index": 2},
    "-smoothing-1": {"label_smoothing": 1.0},
}


def labelled(op: str, shape: tuple[int, ...], options: str, weight: str, reduction: str) -> Case:
    keywords = dict(LABELLED[options], reduction=reduction)

    def call(f: Any, constant: Any, x: Any, target: Any) -> Any:
        w = None if WEIGHTS[weight] is None else constant(WEIGHTS[weight])
        return getattr(f, op)(x, target, w, **keywords)

    name = f"{op.replace('_', '-')}{options}{weight}-{reduction}-{len(shape) - 2}d"
    target = labels(shape[0], *shape[2:], ignored=keywords.get("ignore_index"))
    x: Any = between(-4, 0, shape) if op == "nll_loss" else shape
    return row(name, call, x, target)


def of_probabilities(smoothing: float, weight: str, reduction: str, *shape: int) -> Case:
    def call(f: Any, constant: Any, x: Any, target: Any) -> Any:
        w = None if WEIGHTS[weight] is None else constant(WEIGHTS[weight])
        return f.cross_entropy(x, target, w, reduction=reduction, label_smoothing=smoothing)

    name = f"cross-entropy-probabilities-{smoothing}{weight}-{reduction}-{len(shape) - 2}d"
    return row(name, call, shape, probabilities(*shape))


def pair(
    op: str,
    reduction: str,
    x: Any,
    target: Any,
    note: str = "",
    kinks: bool = False,
    **options: Any,
) -> Case:
    name = f"{op.replace('_', '-')}-{reduction}{note}"

    def call(f: Any, constant: Any, x: Any, target: Any) -> Any:
        given = {k: constant(v) if k in ("weight", "pos_weight") else v for k, v in options.items()}
        return getattr(f, op)(x, target, reduction=reduction, **given)

    return row(name, call, x, target, kinks=kinks)


def kl_div(reduction: str, log_target: bool, target: Any) -> Case:
    """torch warns of the reduction "mean", so its side takes the mean itself."""

    def peer(t: Any, x: Any, target: Any) -> Any:
        f = t.nn.functional.kl_div
        if reduction == "mean":
            return f(x, target, reduction="none", log_target=log_target).mean()
        return f(x, target, reduction=reduction, log_target=log_target)

    return Case(
        f"kl-div-{reduction}{'-log-target' if log_target else ''}",
        lambda x, target: ops.kl_div(x, target, reduction, log_target),
        peer,
        (S, target),
    )


BCE = "binary_cross_entropy"
LOGITS = "binary_cross_entropy_with_logits"
BROADCAST = {"last": (0.5, 1.0, 2.0, 0.125), "column": ((2.0,), (0.5,), (0.25,))}

CASES = [
    *(
        labelled("cross_entropy", shape, options, weight, reduction)
        for shape in ((5, 3), (2, 3, 4), (2, 3, 2, 3))
        for options in LABELLED
        for weight in WEIGHTS
        for reduction in REDUCTIONS
    ),
    *(
        labelled("nll_loss", shape, options, weight, reduction)
        for shape in ((5, 3), (2, 3, 4), (2, 3, 2, 3))
        for options in ("", "-ignore", "-ignore-class")
        for weight in WEIGHTS
        for reduction in REDUCTIONS
    ),
    *(
        of_probabilities(smoothing, weight, reduction, *shape)
        for shape in ((5, 3), (2, 3, 2, 3))
        for smoothing in (0.0, 0.3)
        for weight in WEIGHTS
        for reduction in REDUCTIONS
    ),
    row(
        "cross-entropy-one-class",
        lambda f, c, x, t: f.cross_entropy(x, t),
        (3, 1),
        labels(3, classes=1),
    ),
    row("cross-entropy-far", lambda f, c, x, t: f.cross_entropy(x * 3000, t), (4, 3), labels(4)),
    row(
        "cross-entropy-uint8",
        lambda f, c, x, t: f.cross_entropy(x, t),
        (4, 3),
        lambda rng: labels(4)(rng).astype(np.uint8),
    ),
    *(
        row(
            f"{op.replace('_', '-')}-batch-0-{reduction}",
            lambda f, c, x, t, op=op, reduction=reduction: getattr(f, op)(
                x, t, reduction=reduction
            ),
            (0, 3, 2),
            labels(0, 2),
        )
        for op in ("cross_entropy", "nll_loss")
        for reduction in REDUCTIONS
    ),
    *(
        case
        for r in REDUCTIONS
        for case in (
            pair("mse_loss", r, S, S),
            pair("l1_loss", r, S, off_grid, kinks=True),
            pair("smooth_l1_loss", r, S, off_grid, kinks=True),
            pair("smooth_l1_loss", r, S, off_grid, "-beta", kinks=True, beta=0.4),
            pair("smooth_l1_loss", r, S, off_grid, "-beta-0", kinks=True, beta=0.0),
            pair("huber_loss", r, S, off_grid, kinks=True),
            pair("huber_loss", r, S, off_grid, "-delta", kinks=True, delta=0.4),
            pair(BCE, r, between(0.05, 0.95), between(0, 1)),
            pair(BCE, r, between(0.05, 0.95), between(0, 1), "-weight", weight=BROADCAST["last"]),
            pair(LOGITS, r, S, between(0, 1)),
            pair(LOGITS, r, between(-30, 30), between(0, 1), "-wide"),
            pair(LOGITS, r, S, between(0, 1), "-weight", weight=BROADCAST["column"]),
            pair(LOGITS, r, S, between(0, 1), "-pos-weight", pos_weight=BROADCAST["last"]),
            pair(LOGITS, r, S, between(0, 1), "-both", weight=3.0, pos_weight=BROADCAST["column"]),
            kl_div(r, False, between(0.1, 1)),
            kl_div(r, True, between(-3, 0)),
        )
    ),
    kl_div("batchmean", False, between(0.1, 1)),
    kl_div("batchmean", True, between(-3, 0)),
    *(pair("mse_loss", r, (), (), "-no-axes") for r in REDUCTIONS),
    *(
        pair(op, r, (0, 3), (0, 3), "-batch-0")
        for op in ("mse_loss", "huber_loss")
        for r in REDUCTIONS
    ),
]
