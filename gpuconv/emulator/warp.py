"""Instructions in which the lanes of a warp exchange data: shfl, vote, match, redux, elect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gpuconv.emulator.isa import I8, TYPES, U4, Imm, Pair, Sink, Step
from gpuconv.emulator.linker import Instr, Program
from gpuconv.emulator.operands import reader, writer

if TYPE_CHECKING:
    from gpuconv.emulator.engine import State


LANE = np.arange(32)


def is_sync(ins: Instr) -> bool:
    """Whether every lane named by the member mask must execute the instruction together."""
    return (
        (
            ins.has("sync")
            and ins.op in ("shfl", "vote", "match", "redux", "mma", "ldmatrix", "stmatrix", "elect")
        )
        or (ins.op == "bar" and ins.has("warp"))
        or ins.op == "wmma"
    )


def member_mask(ins: Instr) -> Any:
    """The operand naming the participating lanes, or None when it is the full warp."""
    if ins.op in ("mma", "ldmatrix", "stmatrix", "wmma"):
        return None
    op = ins.ops[0] if ins.op == "bar" else ins.ops[-1]
    if isinstance(op, Imm) and op.value & 0xFFFFFFFF == 0xFFFFFFFF:
        return None
    return op


def rows(S: State, v: Any) -> Any:
    """Register values -> (warps, 32)."""
    return (v if v.size == S.N else np.broadcast_to(v, (S.N,))).reshape(-1, 32)


def bits_of(m: Any) -> Any:
    """(warps, 32) bool -> one 32-bit word per warp."""
    return (m.astype(U4) << LANE.astype(U4)).sum(1, dtype=U4)


def spread(per_warp: Any) -> Any:
    """One value per warp -> one per lane."""
    return np.repeat(per_warp, 32)


def build_shfl(ins: Instr, prog: Program) -> Step:
    """shfl.sync."""
    mode = next(m for m in ins.mods if m in ("up", "down", "bfly", "idx"))
    d = ins.ops[0]
    d, p = (d.a, d.b) if isinstance(d, Pair) else (d, Sink())
    a, b, c = (reader(o, TYPES["b32"], prog) for o in ins.ops[1:4])
    wd, wp = writer(d, TYPES["b32"]), writer(p, TYPES["pred"])

    def run(S: State) -> None:
        v, bb, cc = rows(S, a(S)), rows(S, b(S)).astype(I8) & 31, rows(S, c(S)).astype(I8)
        seg, lim = (cc >> 8) & 31, cc & 31
        low = LANE & seg
        top = low | (lim & ~seg & 31)
        j = {"up": LANE - bb, "down": LANE + bb, "bfly": LANE ^ bb, "idx": low | (bb & ~seg & 31)}[
            mode
        ]
        ok = j >= top if mode == "up" else j <= top
        src = np.where(ok, j, LANE)
        act = S.mask.reshape(-1, 32)
        lost = act & ~np.take_along_axis(act, src, 1)
        if lost.any():
            k = int(np.flatnonzero(lost.reshape(-1))[0])
            S.finding(
                "shfl-inactive",
                ins,
                int(lost.sum()),
                f"{S.who(k)} reads lane {int(src.reshape(-1)[k])}",
            )
        r = np.take_along_axis(v, src, 1)
        wd(S, np.where(lost, U4(0xFFFFFFFF), r).reshape(-1) if lost.any() else r.reshape(-1))
        wp(S, ok.reshape(-1))

    return run


def build_vote(ins: Instr, prog: Program) -> Step:
    """vote.sync.{all,any,uni,ballot}, activemask, match.sync, redux.sync, elect.sync."""

    def act(S: State) -> Any:
        return S.mask.reshape(-1, 32)

    if ins.op == "activemask":
        w = writer(ins.ops[0], TYPES["b32"])
        return lambda S: w(S, spread(bits_of(act(S))))
    if ins.op == "elect":
        d, p = ins.ops[0].a, ins.ops[0].b
        wd, wp = writer(d, TYPES["b32"]), writer(p, TYPES["pred"])

        def elect(S: State) -> None:
            first = act(S).argmax(1)
            wd(S, spread(first.astype(U4)))
            wp(S, (first[:, None] == LANE).reshape(-1))

        return elect
    mm = (
        reader(ins.ops[-1], TYPES["b32"], prog)
        if not isinstance(ins.ops[-1], Sink)
        else lambda S: np.array([-1]).astype(U4)
    )

    def member(S: State) -> Any:
        return act(S) & ((rows(S, mm(S)) >> LANE.astype(U4)) & U4(1)).astype(bool)

    if ins.op == "vote":
        p = reader(ins.ops[1], TYPES["pred"], prog)
        ballot = ins.has("ballot")
        w = writer(ins.ops[0], TYPES["b32" if ballot else "pred"])

        def vote(S: State) -> Any:
            m, v = member(S), rows(S, p(S))
            if ballot:
                return w(S, spread(bits_of(m & v)))
            every, some = (v | ~m).all(1), (v & m).any(1)
            w(S, spread(every if ins.has("all") else some if ins.has("any") else every | ~some))

        return vote
    if ins.op == "redux":
        ty = ins.ty
        a, w = reader(ins.ops[1], ty, prog), writer(ins.ops[0], ty)
        name = next(m for m in ins.mods if m in ("add", "min", "max", "and", "or", "xor"))
        f = {
            "add": np.add,
            "min": np.minimum,
            "max": np.maximum,
            "and": np.bitwise_and,
            "or": np.bitwise_or,
            "xor": np.bitwise_xor,
        }[name]
        info = np.iinfo(ty.dt)
        unit = {"min": info.max, "max": info.min, "and": ~ty.dt(0)}.get(name, 0)
        return lambda S: w(
            S,
            spread(f.reduce(np.where(member(S), rows(S, a(S)), ty.dt(unit)), axis=1, dtype=ty.dt)),
        )
    ty = ins.ty
    a = reader(ins.ops[1], ty, prog)
    d = ins.ops[0]
    d, p = (d.a, d.b) if isinstance(d, Pair) else (d, Sink())
    wd, wp = writer(d, TYPES["b32"]), writer(p, TYPES["pred"])

    def match(S: State) -> None:
        m, v = member(S), rows(S, a(S))
        eq = (v[:, :, None] == v[:, None, :]) & m[:, None, :]
        word = (eq.astype(U4) << LANE.astype(U4)).sum(2, dtype=U4)
        if ins.has("all"):
            same = (word == bits_of(m)[:, None]) & m
            word = np.where(same, word, U4(0))
            wp(S, same.reshape(-1))
        wd(S, word.reshape(-1))

    return match
