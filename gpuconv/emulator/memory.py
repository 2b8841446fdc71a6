"""Memory spaces, addressing, and the checks every access goes through.

Every space is one byte buffer seen through typed windows. `reach` turns per-lane addresses into
checked buffer offsets: faulty lanes are reported and redirected to a poison (loads) or sink
(stores) area, so execution goes on, as it does under compute-sanitizer, instead of crashing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gpuconv.emulator.errors import PtxError
from gpuconv.emulator.findings import MemStat
from gpuconv.emulator.isa import I8, U1, U2, U4, U8, UINT, Addr, Imm, Mem, Reg, Step, Ty, imm_raw
from gpuconv.emulator.linker import Instr, Program
from gpuconv.emulator.patterns import sectors, wavefronts
from gpuconv.emulator.shadow import ATOMIC, PEND, Shadow

if TYPE_CHECKING:
    from gpuconv.emulator.engine import State


GLOBAL, SHARED_WIN, LOCAL_WIN, WIN = 1 << 40, 1 << 36, 1 << 37, 1 << 32
GUARD = 1 << 20  # unmapped bytes around every global allocation (virtual memory only)
SCRATCH = 256  # per buffer (or per block / per lane): 128 bytes of poison, 128 bytes of sink
LOG = {1: 0, 2: 1, 4: 2, 8: 3, 16: 4, 32: 5}


class Buffer:
    """Bytes with typed windows; element access by byte offset."""

    def __init__(self, nbytes: int, poison: bool = False) -> None:
        nbytes = (nbytes + 127) // 128 * 128
        self.b = np.full(nbytes, 0xFF, U1) if poison else np.zeros(nbytes, U1)
        self.win: dict[int, Any] = {
            1: self.b,
            2: self.b.view(U2),
            4: self.b.view(U4),
            8: self.b.view(U8),
        }

    def gather(self, off: Any, esz: int, n: Any) -> Any:
        """n elements of esz bytes at each offset -> n arrays."""
        if n == 1:
            return [self.win[esz][off >> LOG[esz]]]
        rows = self.win[esz].reshape(-1, n)[off >> LOG[esz * n]]
        return list(np.ascontiguousarray(rows.T))

    def scatter(self, off: Any, esz: int, vals: Any) -> None:
        """Store arrays of elements of esz bytes, side by side, at each offset."""
        i = off >> LOG[esz]
        for k, v in enumerate(vals):
            self.win[esz][i + k if k else i] = v


class GlobalMem:
    """All global allocations of a launch in one arena at address GLOBAL, guard gaps between."""

    def __init__(self) -> None:
        self.lo: list[int] = []
        self.hi: list[int] = []
        self.ro: list[bool] = []
        self.top = GUARD
        self.buf: Any = None
        self.shadow: Any = None
        self.read_before_write: set[int] = set()
        self.track_reads: set[int] = set()
        self.written: set[int] = set()

    def alloc(self, nbytes: int, readonly: bool = False) -> int:
        """Reserve bytes; returns the device address."""
        off = self.top
        self.lo.append(off)
        self.hi.append(off + nbytes)
        self.ro.append(readonly)
        self.top = (off + nbytes + GUARD + 255) // 256 * 256
        return GLOBAL + off

    def commit(self) -> None:
        """Make the buffer once everything is allocated."""
        self.buf = Buffer(self.top)
        self.buf.b[:128] = 0xFF
        self.alo, self.ahi = np.array(self.lo, I8), np.array(self.hi, I8)

    def bytes(self, addr: Any, n: Any) -> Any:
        """View of n bytes at a device address."""
        return self.buf.b[addr - GLOBAL : addr - GLOBAL + n]

    def owner(self, off: Any) -> int:
        """Index of the allocation at or below offset (may lie past its end)."""
        return int(np.searchsorted(self.alo, off, side="right")) - 1

    def bad(self, lo: Any, hi: Any, off: Any, nbytes: int) -> Any:
        """None when all of [lo,hi) is inside one allocation, else a mask of faulty lanes."""
        k = self.owner(lo)
        if k >= 0 and hi <= self.hi[k]:
            return None
        if not self.lo:
            return np.ones(len(off), bool)
        ks = np.searchsorted(self.alo, off, side="right") - 1
        m = (ks < 0) | (off + nbytes > self.ahi[np.maximum(ks, 0)])
        return m if m.any() else None

    def describe(self, off: Any) -> str:
        """Words for an offset: the address and the allocation below it."""
        k = self.owner(off)
        if k < 0:
            return f"address {GLOBAL + off:#x}"
        start, size = off - self.lo[k], self.hi[k] - self.lo[k]
        return (
            f"address {GLOBAL + off:#x}; nearest allocation below: #{k}, "
            f"{start} bytes from its start, size {size}"
        )


class NeedReadTracking(Exception):
    """An allocation read earlier in the launch is written: restart with its reads tracked."""

    def __init__(self, alloc: Any) -> None:
        self.alloc = alloc


def address(op: Any, prog: Program) -> Step:
    """Compile an address operand -> function(S) giving raw u64 addresses (length 1 or N)."""
    base, off = (op.base, op.off) if isinstance(op, Mem) else (op, 0)
    if isinstance(base, Reg):
        i, k = base.id, np.array([off & (2**64 - 1)], U8)
        wide = base.ty.bits == 64
        if wide and not off:
            return lambda S: S.R[i]
        if wide:
            return lambda S: S.R[i] + k
        k32 = np.array([off & 0xFFFFFFFF], U4)
        return lambda S: (S.R[i] + k32).astype(U8)  # 32-bit address arithmetic wraps
    v = symbol_value(base, prog) if isinstance(base, Addr) else base.value
    const = np.array([(v + off) & (2**64 - 1)], U8)
    return lambda S: const


def symbol_value(a: Addr, prog: Program) -> int:
    """Offset of a variable within its space."""
    return a.off + prog.shared_bytes if a.space == "dyn" else a.off


def space_of(ins: Instr) -> str:
    """State space that an instruction names, or "generic"."""
    for m in ins.mods:
        s = m.split("::")[0]
        if s in ("global", "shared", "local", "const", "param"):
            return s
    return "generic"


def fault(S: State, ins: Instr, kind: str, lanes: Any, what: str) -> None:
    """Report lanes whose access is out of bounds or misaligned."""
    lane = int(lanes[0])
    S.finding(kind, ins, len(lanes), f"{S.who(lane)}, {what}")


def reach(S: State, ins: Instr, space: str, addr: Any, nbytes: int, store: bool) -> Any:
    """Checked buffer offsets of the active lanes.

    Returns (offsets within the space's buffer, lane indices, clean?, raw offsets).
    """
    idx = S.lanes()
    n = S.n
    if addr.size == 1:
        addr = np.broadcast_to(addr, (n,)) if space != "global" and space != "const" else addr
    elif idx is not None:
        addr = addr[idx]
    off = addr.view(I8)
    bad = None
    if space in ("global", "const"):
        off = off - GLOBAL
        lo, hi = int(off.min()), int(off.max())
        bad, kind = S.gmem.bad(lo, hi + nbytes, off, nbytes), "oob-global"
    elif space == "shared":
        lo, hi = int(off.min()), int(off.max())
        bad, kind = S.shared_bad(lo, hi + nbytes, off, nbytes), "oob-shared"
    else:
        kind = "oob-local"
        if int(off.min()) < 0 or int(off.max()) + nbytes > S.prog.local_bytes:
            bad = (off < 0) | (off > S.prog.local_bytes - nbytes)
    mis = None
    if nbytes > 1 and int(np.bitwise_or.reduce(off)) & (nbytes - 1):
        mis = (off & (nbytes - 1)) != 0
        mis = mis if bad is None else mis & ~bad
    raw = off
    if bad is not None or mis is not None:
        lanes = np.arange(S.N) if idx is None else idx
        for m, k in ((bad, kind), (mis, "misaligned")):
            if m is not None and m.any():
                mm = np.broadcast_to(m, (n,)) if len(m) == 1 else m
                o = int(off[np.flatnonzero(m)[0]])
                where = (
                    S.gmem.describe(o)
                    if space in ("global", "const")
                    else f"{space} offset {o} ({S.report.shared_bytes} bytes declared)"
                    if space == "shared"
                    else f"{space} offset {o}"
                )
                fault(
                    S,
                    ins,
                    k,
                    lanes[mm],
                    f"{nbytes}-byte {'store' if store else 'load'} at {where}",
                )
        redirect = (
            np.zeros_like(off)
            | (bad if bad is not None else False)
            | (mis if mis is not None else False)
        )
        safe = (128 if store else 0) - (0 if space in ("global", "const") else SCRATCH)
        off = np.where(redirect != 0, safe, off)
    if space == "shared":
        off = off + (S.smem_base if idx is None else S.smem_base[idx])
    elif space == "local":
        off = off + (S.lmem_base if idx is None else S.lmem_base[idx])
    return off, idx, bad is None and mis is None, raw


def pattern(S: State, ins: Instr, space: str, raw: Any, idx: Any, nbytes: int) -> None:
    """Access-pattern statistics: sectors per global request, wavefronts per shared request."""
    if S.trace is not None:
        S.trace.access(S, ins, space, raw, idx, nbytes)
    if not S.stats or space not in ("global", "shared"):
        return
    key = (ins.pc, space)
    m = S.mem.get(key)
    if m is None:
        m = S.mem[key] = MemStat(str(ins), space)
    m.requests += S.nwarps
    if S.sampler.take(key):
        req = units = ideal = S.nwarps
        if raw.size > 1:
            req, units, ideal = (sectors if space == "global" else wavefronts)(
                raw, idx, S.N, nbytes
            )
        m.sampled += req
        m.units += units
        m.ideal += ideal


def hazards(
    S: State,
    ins: Instr,
    space: str,
    off: Any,
    raw: Any,
    idx: Any,
    nbytes: int,
    mode: str,
    bits: Any = None,
) -> None:
    """Race, initialisation and cp.async checks.

    mode: r(ead), w(rite), a(tomic), p(ending cp.async write).
    """
    S.now += 1
    if (
        not S.race
        or space not in ("global", "shared")
        or (space == "global" and S.race == "shared")
    ):
        return
    sh: Any = S.shadow
    track = True
    if space == "global":
        g = S.gmem
        k = g.owner(int(off[0]))  # the lanes of one instruction normally stay in one allocation
        if mode == "r":
            if k not in g.written and k not in g.track_reads:
                g.read_before_write.add(k)
                return
            track = k in g.track_reads
        elif k in g.read_before_write and k not in g.track_reads:
            raise NeedReadTracking(k)
        else:
            g.written.add(k)
        sh = g.shadow = g.shadow or Shadow(
            (g.top >> S.gshift_global) + 8, S.gshift_global, S.T, True
        )
    if off.size == 1:
        off = np.broadcast_to(off, (S.n,))
    pick = (lambda x: x) if idx is None else (lambda x: x[idx])
    me, thr, wthr = pick(S.gtid), pick(S.thr), None if S.wthr is None else pick(S.wthr)
    uninit = same = None
    if mode == "r":
        uninit, pend, race = sh.read(off, nbytes, me, thr, wthr, S.now, track)
    else:
        flags = {"a": ATOMIC, "p": PEND}.get(mode, I8(0))
        pend, race, same = sh.write(off, nbytes, me, thr, wthr, S.now, flags, bits)
    for mask, kind in (
        (uninit, "uninit-shared"),
        (pend, "cp-async-unwaited"),
        (race, f"race-{space}"),
        (same, "same-value-race"),
    ):
        if mask is None or not mask.any():
            continue
        j = int(np.flatnonzero(mask)[0])
        lane = j if idx is None else int(idx[j])
        o = int(raw[j] if raw.size > 1 else raw[0])
        g = int(off[j]) >> sh.gshift
        at = f"shared offset {o}" if space == "shared" else S.gmem.describe(o)
        what = {"r": "load", "w": "store", "a": "atomic", "p": "cp.async store"}[mode]
        other = (
            f"; granule last written by {S.who_gtid(sh.W[g])}, last read by {S.who_gtid(sh.R[g])}"
            if race is mask
            else ""
        )
        S.finding(kind, ins, int(mask.sum()), f"{S.who(lane)}, {nbytes}-byte {what} at {at}{other}")


WINBASE = {"shared": SHARED_WIN, "local": LOCAL_WIN}


def _window(a: Any) -> str:
    return (
        "shared"
        if SHARED_WIN <= a < SHARED_WIN + WIN
        else "local"
        if LOCAL_WIN <= a < LOCAL_WIN + WIN
        else "low"
        if a < GLOBAL
        else "global"
    )


def by_space(S: State, space: str, addr: Any, body: Any) -> Any:
    """Run body(space, offsets) for a generic address, once per state space it falls in."""
    if space != "generic":
        return body(space, addr)
    idx = S.lanes()
    act = addr if addr.size == 1 or idx is None else addr[idx]
    k = _window(int(act.min()))
    if addr.size == 1 or k == _window(int(act.max())):
        return body("global" if k == "low" else k, addr - U8(WINBASE.get(k, 0)))
    inside = {w: (addr >= U8(base)) & (addr < U8(base + WIN)) for w, base in WINBASE.items()}
    inside["global"] = ~(inside["shared"] | inside["local"])
    for k, mask in inside.items():
        with S.narrowed(mask) as n:
            if n:
                body(k, addr - U8(WINBASE.get(k, 0)))


def buffer_of(S: State, space: str) -> Any:
    """The buffer that holds a state space."""
    return S.gmem.buf if space in ("global", "const") else S.smem if space == "shared" else S.lmem


def raw_reader(op: Any, ty: Ty, prog: Program) -> Step:
    """function(S) -> raw bits of an operand at width ty.bits."""
    if isinstance(op, Reg):
        i, u = op.id, (np.bool_ if ty.kind == "p" else UINT[ty.bits])
        if op.ty.bits == ty.bits:
            return lambda S: S.R[i]
        return lambda S: S.R[i].astype(u)
    if isinstance(op, Imm):
        c = imm_raw(op, ty)
        return lambda S: c
    if isinstance(op, Addr):
        c = np.array([symbol_value(op, prog)], UINT[ty.bits])
        return lambda S: c
    raise PtxError(f"bad operand {op}")
