"""Normalisation: every argument, one to three spatial axes and none.

Names and arguments are PyTorch's, so one call serves both sides: `f` is `gpuconv.ops` or torch's.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from gpuconv import ops
from gpuconv.autograd import Tensor
from gpuconv.backends import backend_of
from tests.cases.case import Case

# f, x, weight, bias, running_mean, running_var
Call = Callable[[Any, Any, Any, Any, Any, Any], Any]


def beside(x: Any, values: Any) -> Any:
    """A constant array on the device of x and of its dtype; best of numbers exact in float32."""
    x = x.data if isinstance(x, Tensor) else x
    return backend_of(x).asarray(np.asarray(values, dtype=x.dtype))


def row(name: str, call: Call, x: Any, vectors: str = "wb", size: Any = None) -> Case:
    """`vectors` of "w" and "b" are given; `size` is theirs, if not the number of channels."""

    def split(given: tuple[Any, ...]) -> tuple[Any, Any]:
        rest = iter(given)
        return tuple(next(rest) if v in vectors else None for v in "wb")

    def ours(x: Any, *given: Any) -> Any:
        c = np.arange(x.shape[1])
        return call(ops, x, *split(given), beside(x, 0.25 * c - 0.5), beside(x, 0.5 + 0.25 * c))

    def peer(t: Any, x: Any, *given: Any) -> Any:
        c = t.arange(x.shape[1], dtype=x.dtype)
        return call(t.nn.functional, x, *split(given), 0.25 * c - 0.5, 0.5 + 0.25 * c)

    size = (x[1],) if size is None else size
    return Case(name, ours, peer, (x, *(size,) * len(vectors)))


def batch(f: Any, x: Any, w: Any, b: Any, mean: Any, var: Any) -> Any:
    return f.batch_norm(x, mean, var, w, b, training=True)


def batch_alone(f: Any, x: Any, w: Any, b: Any, mean: Any, var: Any) -> Any:
    return f.batch_norm(x, None, None, w, b, True)


def batch_eval(f: Any, x: Any, w: Any, b: Any, mean: Any, var: Any) -> Any:
    return f.batch_norm(x, mean, var, w, b)


def instance(f: Any, x: Any, w: Any, b: Any, mean: Any, var: Any) -> Any:
    return f.instance_norm(x, weight=w, bias=b)


def layer(*last: int, eps: float = 1e-5) -> Call:
    return lambda f, x, w, b, mean, var: f.layer_norm(x, last, w, b, eps)


def group(groups: int, eps: float = 1e-5) -> Call:
    return lambda f, x, w, b, mean, var: f.group_norm(x, groups, w, b, eps)


def local(*args: Any, **kwargs: Any) -> Call:
    return lambda f, x, w, b, mean, var: f.local_response_norm(x, *args, **kwargs)


SHAPES = {
    "0d": (5, 3),
    "1d": (2, 3, 5),
    "2d": (2, 3, 4, 5),
    "3d": (2, 3, 2, 4, 3),
    "one-image": (1, 3, 2, 3),
    "one-channel": (3, 1, 2, 2),
    "one-pixel": (4, 3, 1, 1),
    "33-channels": (2, 33, 3, 1),
    "batch-0": (0, 3, 2, 2),
}

CASES = [
    *(row(f"batch-norm-{name}", batch, shape) for name, shape in SHAPES.items()),
    *(row(f"batch-norm-eval-{name}", batch_eval, shape) for name, shape in SHAPES.items()),
    *(
        row(f"{name}-{vectors or 'plain'}", call, (2, 3, 4, 5), vectors)
        for vectors in ("w", "b", "")
        for name, call in (
            ("batch-norm", batch),
            ("batch-norm-eval", batch_eval),
            ("instance-norm", instance),
        )
    ),
    row("batch-norm-without-running", batch_alone, (4, 3, 2)),
    row(
        "batch-norm-eps-momentum",
        lambda f, x, w, b, m, v: f.batch_norm(x, m, v, w, b, True, 0.7, 0.5),
        (2, 3, 4),
    ),
    row(
        "batch-norm-eval-eps",
        lambda f, x, w, b, m, v: f.batch_norm(x, m, v, w, b, eps=0.5),
        (2, 3, 4),
    ),
    row("instance-norm-1d", instance, (2, 3, 5)),
    row("instance-norm-2d", instance, (2, 3, 4, 5)),
    row("instance-norm-3d", instance, (2, 3, 2, 4, 3)),
    row("instance-norm-one-channel", instance, (2, 1, 3, 2)),
    row(
        "instance-norm-running",
        lambda f, x, w, b, m, v: f.instance_norm(x, m, v, w, b),
        (2, 3, 4, 2),
    ),
    row(
        "instance-norm-running-eps",
        lambda f, x, w, b, m, v: f.instance_norm(x, m, v, w, b, True, 0.3, 0.1),
        (2, 3, 4, 2),
    ),
    row(
        "instance-norm-by-running",
        lambda f, x, w, b, m, v: f.instance_norm(x, m, v, w, b, use_input_stats=False, eps=0.1),
        (2, 3, 4, 2),
    ),
    row("group-norm-0d", group(2), (3, 6)),
    row("group-norm-1d", group(3), (2, 6, 5)),
    row("group-norm-2d", group(2), (2, 6, 3, 4)),
    row("group-norm-3d", group(2), (2, 4, 2, 3, 2)),
    row("group-norm-one-group", group(1), (2, 5, 3, 4)),
    row("group-norm-group-a-channel", group(4), (2, 4, 3, 2)),
    row("group-norm-one-image", group(2), (1, 4, 3, 2)),
    row("group-norm-w", group(2), (2, 4, 3), "w"),
    row("group-norm-plain", group(2), (2, 4, 3), ""),
    Case(  # torch's gradient of it fails without a weight
        "group-norm-b",
        lambda x, b: ops.group_norm(x, 2, bias=b),
        lambda t, x, b: t.nn.functional.group_norm(x, 2) + b[:, None],
        ((2, 4, 3), (4,)),
    ),
    row("group-norm-eps", group(2, eps=0.5), (2, 4, 3)),
    row("group-norm-batch-0", group(2), (0, 4, 3, 2)),
    row("layer-norm-last", layer(5), (2, 3, 5), size=(5,)),
    row("layer-norm-0d", layer(5), (3, 5), size=(5,)),
    row("layer-norm-two", layer(4, 5), (2, 3, 4, 5), size=(4, 5)),
    row("layer-norm-all-but-batch", layer(3, 4, 5), (2, 3, 4, 5), size=(3, 4, 5)),
    row("layer-norm-everything", layer(2, 3), (2, 3), size=(2, 3)),
    row("layer-norm-size-1", layer(1, 5), (2, 3, 1, 5), size=(1, 5)),
    row("layer-norm-w", layer(5), (2, 3, 5), "w", (5,)),
    row("layer-norm-b", layer(5), (2, 3, 5), "b", (5,)),
    row("layer-norm-plain", layer(4, 5), (2, 3, 4, 5), ""),
    row("layer-norm-eps", layer(5, eps=0.5), (2, 3, 5), size=(5,)),
    row("layer-norm-batch-0", layer(5), (0, 3, 5), size=(5,)),
    row("local-response-1d", local(2), (2, 5, 6), ""),
    row("local-response-2d", local(5, 1e-2, 0.75, 2.0), (2, 7, 3, 4), ""),
    row("local-response-3d", local(3), (2, 4, 2, 3, 2), ""),
    row("local-response-size-1", local(1, 0.5), (2, 3, 2, 2), ""),
    row("local-response-even", local(4, alpha=0.9, beta=0.5, k=0.7), (2, 6, 3), ""),
    row("local-response-over-channels", local(9, 0.5), (2, 3, 2, 2), ""),
    row("local-response-even-over-channels", local(4, 0.5), (2, 2, 3), ""),
    row("local-response-one-channel", local(3, 0.5), (2, 1, 2, 2), ""),
    row("local-response-batch-0", local(3), (0, 3, 2, 2), ""),
]
