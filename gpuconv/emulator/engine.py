"""Execution of batches of thread blocks, lane-parallel.

Scheduling: lanes that share a program counter form a fragment; the fragment with the lowest
program counter runs until it branches, waits or catches up with another fragment (they merge). For
the structured control flow that compilers emit, this reconverges at the join points. bar.sync
parks lanes until all live threads of their block arrive; warp-convergent instructions (.sync) park
lanes until every lane named by the member mask is there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuconv.emulator.errors import PtxError
from gpuconv.emulator.findings import Finding
from gpuconv.emulator.isa import I8, TYPES, U4, UINT, Not, Sink
from gpuconv.emulator.linker import Instr, Program
from gpuconv.emulator.memory import SCRATCH, Buffer, raw_reader, space_of
from gpuconv.emulator.shadow import SEVERAL, TID, TSHIFT, Shadow
from gpuconv.emulator.special import special_register
from gpuconv.emulator.warp import LANE, member_mask, rows

if TYPE_CHECKING:
    from gpuconv.emulator.findings import Report


class State:
    """Registers, memories and scheduling state of one batch of thread blocks."""

    def __init__(
        self,
        prog: Program,
        gmem: Any,
        params: Any,
        grid: Any,
        block: Any,
        blocks: Any,
        dyn_shared: Any,
        report: Report,
        opts: Any,
    ) -> None:
        self.prog, self.gmem, self.params, self.report = prog, gmem, params, report
        self.grid, self.block, self.blocks = grid, block, blocks
        self.nthreads = block[0] * block[1] * block[2]
        self.T = (self.nthreads + 31) // 32 * 32
        self.nblk = len(blocks)
        self.N = N = self.T * self.nblk
        self.R = [
            np.array(
                [0 if t.kind == "p" else (1 << t.bits) - 1], bool if t.kind == "p" else UINT[t.bits]
            )
            for t in prog.regs
        ]
        self.stats, self.race, self.sampler = opts["stats"], opts["race"], opts["sampler"]
        self.mem, self.gshift_global = report.mem, prog.gshift["global"]
        self.lane = np.arange(N)
        self.tid = self.lane % self.T
        self.lane_block = self.lane // self.T
        self.gtid = (np.asarray(blocks, I8)[:, None] * self.T + np.arange(self.T)).reshape(-1)
        self.live = self.tid < self.nthreads
        self.nlive = int(self.live.sum())
        self.exited = np.zeros(N, bool)
        self.now, self.flops, self.branches, self.divergent = opts["now"], 0, 0, 0
        self.thr: Any = np.full(N, (self.now + 1) << TSHIFT, I8)
        self.wthr: Any = np.zeros(N, I8) if prog.warp_sync else None
        self.shared_size = prog.shared_bytes + dyn_shared
        self.dyn_shared = dyn_shared
        self.areas = [(o, o + s) for _, o, s in prog.shared] + (
            [(prog.shared_bytes, prog.shared_bytes + dyn_shared)] if dyn_shared else []
        )
        stride = (SCRATCH + self.shared_size + 255) // 128 * 128
        self.smem = Buffer(stride * self.nblk, poison=True)
        self.smem_base = self.lane_block * stride + SCRATCH
        self.shadow: Any = (
            Shadow(
                stride * self.nblk >> prog.gshift["shared"], prog.gshift["shared"], self.T, False
            )
            if self.race and self.shared_size
            else None
        )
        lstride = SCRATCH + (prog.local_bytes + 127) // 128 * 128
        self.uses_local = any(
            space_of(i) in ("local", "generic", "param")
            for i in prog.code
            if i.op in ("ld", "st", "atom")
        )
        self.lmem = Buffer(lstride * N if self.uses_local else 128, poison=True)
        self.lmem_base = self.lane * lstride + SCRATCH
        self.cp_queue: list[Any] = []  # (lanes, offsets, data, groups) of copies in flight
        self.cp_group, self.cc = np.zeros(N, I8), np.zeros(N, bool)
        self.count = np.zeros(len(prog.blocks), I8)
        self.wcount = np.zeros(len(prog.blocks), I8)
        self.ready: dict[int, Any] = {}  # block number -> mask of the lanes that may run it
        self.parked: dict[int, Any] = {}  # the same, of lanes that wait for their warp
        self.waiting: dict[int, Any] = {}  # barrier number -> who waits there
        self.sregs: dict[str, Any] = {}
        self.max_steps, self.trace = opts["max_steps"], opts["trace"]

    # -- active set --------------------------------------------------------------------------
    def activate(self, mask: Any) -> None:
        """Make the lanes of the mask the active ones."""
        self.mask = mask
        self.n = int(np.count_nonzero(mask))
        self.all = self.n == self.nlive
        self._idx: Any = None
        self.nwarps = int(mask.reshape(-1, 32).any(1).sum())

    def lanes(self) -> Any:
        """Indices of the active lanes, or None when every lane of the batch is active."""
        if self.n == self.N:
            return None
        if self._idx is None:
            self._idx = np.flatnonzero(self.mask)
        return self._idx

    def active(self) -> Any:
        """Indices of the active lanes."""
        idx = self.lanes()
        return self.lane if idx is None else idx

    @contextmanager
    def narrowed(self, mask: Any) -> Iterator[int]:
        """Temporarily restrict the active set; yields the number of lanes left."""
        saved = self.mask, self.n, self.all, self._idx, self.nwarps
        if mask.size == 1:
            if not mask[0]:
                yield 0
            else:
                yield self.n
            return
        m = self.mask & mask
        if np.count_nonzero(m) == self.n:
            yield self.n
            return
        self.activate(m)
        self.all = False
        yield self.n
        self.mask, self.n, self.all, self._idx, self.nwarps = saved

    def put(self, i: Any, v: Any) -> None:
        """Write a register under the active mask; v has length 1 or N."""
        self.R[i] = v if self.all else np.where(self.mask, v, self.R[i])

    def put_lanes(self, i: Any, v: Any, idx: Any) -> None:
        """Write a register from values of the active lanes only."""
        if idx is None:
            self.R[i] = v
            return
        old = self.R[i]
        new = (
            np.empty(self.N, v.dtype)
            if self.all
            else old.copy()
            if old.size == self.N
            else np.full(self.N, old[0])
        )
        new[idx] = v
        self.R[i] = new

    # -- identity ----------------------------------------------------------------------------
    def who_gtid(self, stamp: Any) -> str:
        """Words for the thread(s) of a shadow stamp."""
        if not stamp:
            return "nobody"
        flags = " (among others)" if stamp & SEVERAL else ""
        return self._name(int(stamp & TID)) + flags

    def who(self, lane: Any) -> str:
        """Words for the thread of a lane."""
        return self._name(int(self.gtid[lane]))

    def _name(self, gtid: Any) -> str:
        b, t = divmod(gtid, self.T)
        (gx, gy, _), (bx, by, _) = self.grid, self.block
        block = f"block ({b % gx},{b // gx % gy},{b // (gx * gy)})"
        return f"{block} thread ({t % bx},{t // bx % by},{t // (bx * by)})"

    def special(self, name: str) -> Any:
        """Value of a special register."""
        v = self.sregs.get(name)
        if v is None:
            v = self.sregs[name] = special_register(self, name)
        if name.startswith(("clock", "globaltimer")):
            self.sregs.pop(name)
        return v

    def shared_bad(self, lo: Any, hi: Any, off: Any, nbytes: int) -> Any:
        """Mask of faulty lanes, or None where all are inside the declared variables."""
        if any(a <= lo and hi <= b for a, b in self.areas):
            return None
        ok = np.zeros(len(off), bool)
        for a, b in self.areas:
            ok |= (off >= a) & (off + nbytes <= b)
        return None if ok.all() else ~ok

    def finding(self, kind: str, ins: Instr, count: Any, detail: str) -> None:
        """Report a finding, or count it where the instruction has one of its kind."""
        f = next((f for f in self.report.findings if f.kind == kind and f.pc == ins.pc), None)
        if f is None:
            self.report.findings.append(Finding(kind, str(ins), ins.pc, count, detail))
        else:
            f.count += count

    # -- synchronisation ---------------------------------------------------------------------
    def warp_barrier(self) -> None:
        """bar.warp.sync: order the accesses of the active warps."""
        self.now += 1
        self.wthr = np.where(self.mask, I8((self.now + 1) << TSHIFT), self.wthr)

    def per_block(self, mask: Any) -> Any:
        """Number of lanes of the mask in each block."""
        return mask.reshape(self.nblk, self.T).sum(1)

    def barrier(
        self, ins: Instr, bar: Any, count: Any, arrive: Any, red: Any, dst: Any, pred: Any, nxt: Any
    ) -> int | None:
        """Arrive at a block barrier; returns the next block number if all may go on."""
        self.now += 1
        # every live thread of the batch is here
        if self.all and count is None and not red and not self.waiting:
            if self.exited.any():
                self._exited_finding(ins, self.mask)
            self.thr = np.where(self.mask, I8((self.now + 1) << TSHIFT), self.thr)
            return nxt
        w = self.waiting.setdefault(
            bar,
            {
                "mask": np.zeros(self.N, bool),
                "next": [],
                "count": count,
                "arrived": 0,
                "pred": np.zeros(self.N, bool),
            },
        )
        w["arrived"] = w["arrived"] + self.per_block(self.mask)
        if red:
            p = self.R[pred.a.id if isinstance(pred, Not) else pred.id]
            w["pred"] |= self.mask & (~p if isinstance(pred, Not) else p)
        if arrive:
            self.push(nxt, self.mask)
        else:
            w["mask"] |= self.mask
            w["next"].append((nxt, self.mask, ins, red, dst))
        self.release(bar)
        return None

    def release(self, bar: Any) -> None:
        """Let the blocks go whose expected threads have all arrived at barrier `bar`."""
        w = self.waiting[bar]
        need = self.per_block(self.live) if w["count"] is None else w["count"]
        done = (w["arrived"] > 0) & (w["arrived"] >= need)
        if not done.any():
            return
        go = np.repeat(done, self.T) & w["mask"]
        w["arrived"] = np.where(done, 0, w["arrived"])
        w["mask"] &= ~go
        keep: list[Any] = []
        pcs: dict[int, set[int]] = {}
        total = self.per_block(w["pred"] & go)
        members = self.per_block(go)
        w["pred"] &= ~go
        for nxt, mask, ins, red, dst in w["next"]:
            m = mask & go
            if m.any():
                for b in np.flatnonzero(self.per_block(m)):
                    pcs.setdefault(int(b), set()).add(ins.pc)
                    if len(pcs[int(b)]) == 2 and w["count"] is None:
                        self.finding(
                            "barrier-diverged",
                            ins,
                            1,
                            f"block {self.blocks[int(b)]} waits at pc {sorted(pcs[int(b)])}",
                        )
                if self.exited.any() and w["count"] is None:
                    self._exited_finding(ins, m)
                if red and not isinstance(dst, Sink):
                    r = total if red == "popc" else total == members if red == "and" else total > 0
                    self.R[dst.id] = np.where(
                        m, np.repeat(r, self.T).astype(self.R[dst.id].dtype), self.R[dst.id]
                    )
                self.push(nxt, m)
            rest = mask & ~go
            if rest.any():
                keep.append((nxt, rest, ins, red, dst))
        w["next"] = keep
        self.thr = np.where(go, I8((self.now + 1) << TSHIFT), self.thr)
        if not keep and not np.any(w["arrived"]):
            del self.waiting[bar]

    def _exited_finding(self, ins: Instr, mask: Any) -> None:
        both = (self.per_block(self.exited) > 0) & (self.per_block(mask) > 0)
        if both.any():
            b = int(np.flatnonzero(both)[0])
            self.finding(
                "barrier-exited",
                ins,
                int(both.sum()),
                f"block {self.blocks[b]}: {self.per_block(self.exited)[b]} threads have exited",
            )

    def exit(self) -> None:
        """End the active lanes."""
        self.exited |= self.mask
        self.live = self.live & ~self.mask
        self.nlive -= self.n
        for bar in list(self.waiting):
            self.release(bar)
        self.retry = True
        return None

    def converge(self, b: Any, ins: Instr) -> bool:
        """Park lanes whose warp is not complete for a .sync instruction.

        Returns whether any lane may go on.
        """
        if self.all:
            return True
        op = member_mask(ins)
        act = self.mask.reshape(-1, 32)
        need = np.ones_like(act)
        if op is not None:
            mm = raw_reader(op, TYPES["b32"], self.prog)(self)
            words = np.bitwise_or.reduce(np.where(act, rows(self, mm), U4(0)), axis=1)
            need = (words[:, None] >> LANE.astype(U4) & U4(1)).astype(bool)
        late = (self.live.reshape(-1, 32) & need & ~act).any(1) & act.any(1)
        if not late.any():
            return True
        if self.force:
            k = int(np.flatnonzero(late)[0]) * 32
            self.finding(
                "warp-diverged",
                ins,
                int(late.sum()),
                f"warp of {self.who(k)}: only {int(act[late][0].sum())} lanes arrived",
            )
            return True
        hold = self.mask & np.repeat(late, 32)
        self.parked[b] = hold
        rest = self.mask & ~hold
        if not rest.any():
            return False
        self.activate(rest)
        return True

    # -- scheduler ---------------------------------------------------------------------------
    def push(self, b: Any, mask: Any) -> None:
        """Make lanes ready to run at a block."""
        for d in (self.ready, self.parked):
            if b in d:
                mask = mask | d.pop(b)
        self.ready[b] = mask

    def run(self) -> None:
        """Run the batch until every lane has exited."""
        blocks, self.force, self.retry, steps, spins, patience, fair = (
            self.prog.blocks,
            False,
            False,
            0,
            0,
            2000,
            0,
        )
        self.push(0, self.live)
        while True:
            if not self.ready:
                if (
                    self.parked
                ):  # nobody else can run: complete the warp instructions with the lanes there are
                    self.force = not self.retry
                    self.retry = False
                    b = min(self.parked)
                    self.push(b, self.parked[b])
                    continue
                if self.waiting:
                    w = next(iter(self.waiting.values()))
                    _, mask, ins, _, _ = w["next"][0]
                    self.finding(
                        "deadlock", ins, int(mask.sum()), self.who(int(np.flatnonzero(mask)[0]))
                    )
                break
            b = min(self.ready) if not fair else next(iter(self.ready))
            self.activate(self.ready.pop(b))
            turn = 0
            while True:
                if b in self.parked:
                    self.activate(self.mask | self.parked.pop(b))
                bb = blocks[b]
                if bb.sync is not None and not self.converge(b, bb.sync):
                    break
                self.force = False
                self.count[b] += self.n
                self.wcount[b] += self.nwarps
                if self.trace is not None:
                    self.trace.enter(self, bb)
                for f in bb.ops:
                    f(self)
                nxt = bb.term(self)
                steps += 1
                if steps > self.max_steps:
                    raise PtxError(f"gave up after {steps} basic blocks: endless loop?")
                if nxt is None:
                    break
                if nxt <= b and self.ready:
                    spins += 1
                    if (
                        spins > patience
                    ):  # a spin loop may wait for lanes at higher addresses: take turns
                        fair, spins, patience = 400, 0, max(16, patience // 2)
                b = nxt
                if self.ready:
                    turn += 1
                    fair -= fair > 0
                    if b in self.ready or (turn > 64 if fair else min(self.ready) < b):
                        self.push(b, self.mask)
                        break
        if self.cp_queue:
            lanes = self.cp_queue[0][0]
            end = self.prog.code[-1]
            self.finding(
                "cp-async-unfinished",
                end,
                sum(len(q[0]) for q in self.cp_queue),
                self.who(int(lanes[0])),
            )
