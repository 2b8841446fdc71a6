"""Reshape, transpose, indexing, padding, joining."""

from typing import Any

import numpy as np

from gpuconv import ops
from tests.cases.case import Case

S = (2, 3, 4, 5)


def torch_pad(padding: tuple[int, ...], mode: str = "constant", value: float | None = None) -> Any:
    return lambda t, x: t.nn.functional.pad(x, padding, mode, value)


def indices(rng: np.random.Generator) -> np.ndarray:
    return np.array([2, 0, 2, 1])


CASES = [
    Case("reshape", lambda x: ops.reshape(x, (6, -1)), lambda t, x: x.reshape(6, -1), (S,)),
    Case("reshape-flat", lambda x: ops.reshape(x, -1), lambda t, x: x.reshape(-1), (S,)),
    Case("flatten", lambda x: ops.flatten(x, 1), lambda t, x: x.flatten(1), (S,)),
    Case("flatten-middle", lambda x: ops.flatten(x, 1, -2), lambda t, x: x.flatten(1, -2), (S,)),
    Case("transpose", ops.transpose, lambda t, x: x.permute(3, 2, 1, 0), (S,)),
    Case(
        "transpose-axes",
        lambda x: ops.transpose(x, 1, -1, 0, 2),
        lambda t, x: x.permute(1, 3, 0, 2),
        (S,),
    ),
    Case("squeeze", ops.squeeze, lambda t, x: x.squeeze(), ((1, 3, 1, 2),)),
    Case("squeeze-axis", lambda x: ops.squeeze(x, -2), lambda t, x: x.squeeze(-2), ((1, 3, 1, 2),)),
    Case("unsqueeze", lambda x: ops.unsqueeze(x, -1), lambda t, x: x.unsqueeze(-1), ((2, 3),)),
    Case(
        "broadcast-to",
        lambda x: ops.broadcast_to(x, (4, 2, 3)),
        lambda t, x: x.expand(4, 2, 3),
        ((2, 3),),
    ),
    Case(
        "broadcast-to-stretched",
        lambda x: ops.broadcast_to(x, (2, 3)),
        lambda t, x: x.expand(2, 3),
        ((2, 1),),
    ),
    Case("getitem-int", lambda x: ops.getitem(x, 1), lambda t, x: x[1], (S,)),
    Case(
        "getitem-slices",
        lambda x: ops.getitem(x, (slice(None), slice(1, None), ..., 2)),
        lambda t, x: x[:, 1:, ..., 2],
        (S,),
    ),
    Case(
        "getitem-steps",
        lambda x: ops.getitem(x, (slice(None), None, slice(0, 3, 2))),
        lambda t, x: x[:, None, 0:3:2],
        (S,),
    ),
    Case(
        "getitem-array",
        lambda x, i: ops.getitem(x, (slice(None), i)),
        lambda t, x, i: x[:, i],
        (S, indices),
    ),
    Case(
        "getitem-mask",
        lambda x: ops.getitem(x, x > 0),
        lambda t, x: x[x > 0],
        ((3, 4),),
        kinks=True,
    ),
    Case("pad", lambda x: ops.pad(x, (1, 2, 0, 3)), torch_pad((1, 2, 0, 3)), (S,)),
    Case("pad-last", lambda x: ops.pad(x, (2, 0)), torch_pad((2, 0)), (S,)),
    Case(
        "pad-value",
        lambda x: ops.pad(x, (1, 1), "constant", 3.5),
        torch_pad((1, 1), "constant", 3.5),
        (S,),
    ),
    Case("pad-crop", lambda x: ops.pad(x, (-1, 2, 1, -2)), torch_pad((-1, 2, 1, -2)), (S,)),
    Case("pad-crop-both", lambda x: ops.pad(x, (-1, -2)), torch_pad((-1, -2)), (S,)),
    Case(
        "pad-reflect",
        lambda x: ops.pad(x, (4, 1, 0, 3), "reflect"),
        torch_pad((4, 1, 0, 3), "reflect"),
        (S,),
    ),
    Case(
        "pad-replicate",
        lambda x: ops.pad(x, (4, 7, 0, 3), "replicate"),
        torch_pad((4, 7, 0, 3), "replicate"),
        (S,),
    ),
    Case(
        "pad-circular",
        lambda x: ops.pad(x, (5, 1, 2, 4), "circular"),
        torch_pad((5, 1, 2, 4), "circular"),
        (S,),
    ),
    Case(
        "concat",
        lambda a, b: ops.concat([a, b], 1),
        lambda t, a, b: t.cat([a, b], 1),
        ((2, 3, 4), (2, 1, 4)),
    ),
    Case(
        "concat-three",
        lambda a, b, c: ops.concat([a, b, c], -1),
        lambda t, a, b, c: t.cat([a, b, c], -1),
        ((2, 1), (2, 2), (2, 0)),
    ),
    Case(
        "stack",
        lambda a, b: ops.stack([a, b], 1),
        lambda t, a, b: t.stack([a, b], 1),
        ((2, 3), (2, 3)),
    ),
    Case(
        "stack-last",
        lambda a, b: ops.stack([a, b], -1),
        lambda t, a, b: t.stack([a, b], -1),
        ((2, 3), (2, 3)),
    ),
    Case("flip", lambda x: ops.flip(x, (1, -1)), lambda t, x: x.flip((1, -1)), (S,)),
]
