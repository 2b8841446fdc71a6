"""Special registers: thread, block and lane numbers, lane masks, sizes and clocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gpuconv.emulator.isa import U4, U8

if TYPE_CHECKING:
    from gpuconv.emulator.engine import State


def special_register(S: State, name: str) -> Any:
    """Value of a special register: uint32 (clocks: uint64) of length 1, or one for each lane."""

    def one(v: Any) -> Any:
        return np.array([v], U4)

    base, _, axis = name.partition(".")
    k = "xyz".find(axis or "x")
    if base == "tid":
        if S.block[k] == 1:
            return one(0)
        div = (1, S.block[0], S.block[0] * S.block[1])[k]
        return (S.tid // div % S.block[k]).astype(U4)
    if base == "ctaid":
        if S.grid[k] == 1:
            return one(0)
        div = (1, S.grid[0], S.grid[0] * S.grid[1])[k]
        per = (np.asarray(S.blocks) // div % S.grid[k]).astype(U4)
        return per[:1] if (per == per[0]).all() else np.repeat(per, S.T)
    lane = (S.lane % 32).astype(U4)
    if base == "laneid":
        return lane
    if base == "warpid":
        return (S.tid // 32).astype(U4)
    if base.startswith("lanemask"):
        eq = U4(1) << lane
        return {
            "eq": eq,
            "lt": eq - U4(1),
            "le": eq | (eq - U4(1)),
            "ge": ~(eq - U4(1)),
            "gt": ~(eq | (eq - U4(1))),
        }[base[-2:]]
    if base.startswith(("clock", "globaltimer")):
        return np.array([S.now], U8)
    simple = {
        "ntid": S.block[k],
        "nctaid": S.grid[k],
        "nwarpid": S.T // 32,
        "WARP_SZ": 32,
        "nsmid": 1,
        "dynamic_smem_size": S.dyn_shared,
        "total_smem_size": S.shared_size,
    }
    return one(simple.get(base, 0))
