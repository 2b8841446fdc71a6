"""Launching kernels: arguments, memory layout, batches of blocks, and the report."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from gpuconv.emulator.compiler import FLOPS, classify, compile_program
from gpuconv.emulator.engine import State
from gpuconv.emulator.errors import CheckFailed, PtxError
from gpuconv.emulator.findings import Report
from gpuconv.emulator.frontend import numba_ptx, signature
from gpuconv.emulator.isa import FLOAT, U1, Addr
from gpuconv.emulator.linker import Linker, Program
from gpuconv.emulator.memory import Buffer, GlobalMem, NeedReadTracking
from gpuconv.emulator.parser import Source
from gpuconv.emulator.patterns import Sampler


class Ptr:
    """Passes only the data pointer of an array (C ABI), not Numba's array structure."""

    def __init__(self, array: Any) -> None:
        self.array = array


class Module:
    """One or more PTX texts linked together.

    Module-scope .global variables keep their contents between launches. `ftz` flushes float32
    subnormals in .ftz instructions.
    """

    def __init__(self, *ptx: str, ftz: bool = False) -> None:
        self.src, self.ftz = Source(ptx[0]), ftz
        for text in ptx[1:]:
            self.src.add(Source(text))
        layout = GlobalMem()
        self.vars = [v for v in self.src.vars.values() if v.space in ("global", "const")]
        self.syms = {
            v.name: Addr(v.space, layout.alloc(v.size, v.space == "const"), v.name)
            for v in self.vars
        }
        self.data = {
            v.name: np.frombuffer((v.init or b"").ljust(v.size, b"\0"), U1).copy()
            for v in self.vars
        }
        self._programs: dict[str, Program] = {}

    @property
    def kernels(self) -> list[str]:
        """Names of the kernels."""
        return self.src.kernels

    def program(self, name: str | None = None) -> Program:
        """The compiled kernel of that name (default: the first)."""
        name = name or self.kernels[0]
        if name not in self._programs:
            self._programs[name] = compile_program(Linker(self.src, self.syms).link(name), self.ftz)
        return self._programs[name]

    def launch(
        self,
        name: str | None,
        grid: Any,
        block: Any,
        args: Any,
        shared_bytes: int = 0,
        *,
        strict: bool = True,
        race: bool | str = True,
        stats: bool = True,
        lanes: int = 8192,
        sample: tuple[int, int] | None = (24, 16),
        max_steps: int = 20_000_000,
        trace: Any = None,
    ) -> Report:
        """Run a kernel (None: the first); arrays in args are updated in place.

        Plain arrays expand to Numba's array structure (meminfo, parent, nitems, itemsize, data,
        shape..., strides...), `Ptr(a)` to the bare pointer. Arrays that are not writeable are
        read-only on the device; views of one buffer stay aliased.

        strict: raise `CheckFailed` on error findings. race: True, False or "shared" (kernels whose
        blocks synchronise through global memory). stats: access patterns. lanes: threads emulated
        together. sample=(first, every): which executions of each memory instruction have their
        pattern analysed, None for all. max_steps: basic blocks until `PtxError`. trace: is told of
        everything, in order: `begin(program, grid, arguments, params, memory)`, again where the
        launch must start again; `enter(state, block)` of every basic block that lanes run;
        `access(state, instruction, space, offsets, lanes, nbytes)` of every clean memory access.
        """
        prog = self.program(name)
        grid, block = _dim3(grid), _dim3(block)
        nthreads, nblocks = int(np.prod(block)), int(np.prod(grid))
        fits = nthreads <= 1024 and block[2] <= 64 and grid[0] < 2**31 and max(grid[1:]) < 2**16
        if not fits or min(nthreads, nblocks) <= 0:
            raise PtxError(f"invalid launch configuration {grid} x {block}")
        if prog.max_threads and nthreads > prog.max_threads:
            raise PtxError(
                f"{nthreads} threads exceed the kernel's .maxntid/.reqntid {prog.max_threads}"
            )
        track: set[int] = set()
        while True:
            report = Report(
                prog.name, grid, block, shared_bytes=sum(s for *_, s in prog.shared) + shared_bytes
            )
            gmem, params, back = self._memory(prog, args)
            gmem.track_reads = track
            opts = {
                "race": race,
                "stats": stats,
                "sampler": Sampler(*(sample or (1 << 62, 1))),
                "max_steps": max_steps,
                "trace": trace,
                "now": 1,
            }
            if trace is not None:
                trace.begin(prog, grid, args, params, gmem)
            per = max(1, lanes // ((nthreads + 31) // 32 * 32))
            start = time.perf_counter()
            count, wcount = (
                np.zeros(len(prog.blocks), np.int64),
                np.zeros(len(prog.blocks), np.int64),
            )
            try:
                with np.errstate(all="ignore"):
                    for b in range(0, nblocks, per):
                        S = State(
                            prog,
                            gmem,
                            params,
                            grid,
                            block,
                            list(range(b, min(b + per, nblocks))),
                            shared_bytes,
                            report,
                            opts,
                        )
                        S.run()
                        count += S.count
                        wcount += S.wcount
                        opts["now"] = S.now + 1
                        report.flops += S.flops
                        report.branches += S.branches
                        report.divergent += S.divergent
            except NeedReadTracking as e:
                track.add(e.alloc)
                continue
            break
        report.seconds = time.perf_counter() - start
        for array, view in back:
            array[...] = view
        for v in self.vars:
            self.data[v.name][:] = gmem.bytes(self.syms[v.name].off, v.size)
        _tally(prog, report, count, wcount)
        if strict and not report.ok:
            raise CheckFailed(report)
        return report

    def _memory(self, prog: Program, args: Any) -> Any:
        """Lay out module variables and argument arrays in a fresh arena.

        Returns it, the parameter buffer and the pairs to copy back.
        """
        gmem, spans, values = GlobalMem(), [], []
        for v in self.vars:
            gmem.alloc(v.size, v.space == "const")
        flat = list(_flatten(args))
        for a in flat:
            array = a.array if isinstance(a, Ptr) else a
            if isinstance(array, np.ndarray):
                lo, hi = np.lib.array_utils.byte_bounds(array)
                spans.append([lo, max(hi, lo + 1), array.flags.writeable])
        merged: list[Any] = []  # arrays that overlap in host memory stay overlapping
        for lo, hi, w in sorted(spans):
            if merged and lo < merged[-1][1]:
                merged[-1][1], merged[-1][2] = max(hi, merged[-1][1]), merged[-1][2] or w
            else:
                merged.append([lo, hi, w])
        homes = [(lo, hi, gmem.alloc(hi - lo, not w)) for lo, hi, w in merged]
        gmem.commit()
        for v in self.vars:
            gmem.bytes(self.syms[v.name].off, v.size)[:] = self.data[v.name]
        back = []
        for a in flat:
            array = a.array if isinstance(a, Ptr) else a
            if not isinstance(array, np.ndarray):
                values.append(a)
                continue
            lo, _ = np.lib.array_utils.byte_bounds(array)
            first = array.__array_interface__["data"][0]
            _home, addr = next((h, m + lo - h) for h, e, m in homes if h <= lo < e)
            neg = first - lo  # > 0 only for negative strides
            view = np.ndarray(
                array.shape, array.dtype, gmem.buf.b, addr - (1 << 40) + neg, array.strides
            )
            view[...] = array
            if array.flags.writeable:
                back.append((array, view))
            values += (
                [addr + neg]
                if isinstance(a, Ptr)
                else [0, 0, array.size, array.itemsize, addr + neg, *array.shape, *array.strides]
            )
        if len(values) != len(prog.params):
            raise PtxError(
                f"kernel takes {len(prog.params)} parameters, the arguments expand to {len(values)}"
            )
        params = Buffer(prog.param_bytes)
        for (v, off), x in zip(prog.params, values, strict=False):
            isfloat = v.ty.isfloat or isinstance(x, (float, np.floating))
            raw = (
                np.array(x, FLOAT[8 * v.size]).tobytes()
                if isfloat
                else (int(x) & ((1 << 8 * v.size) - 1)).to_bytes(v.size, "little")
            )
            params.b[off : off + v.size] = np.frombuffer(raw, U1)
        return gmem, params, back


def _flatten(args: Any) -> Iterator[Any]:
    for a in args:
        if isinstance(a, tuple):
            yield from _flatten(a)
        else:
            yield a


def _dim3(d: Any) -> tuple[int, int, int]:
    d = (d,) if isinstance(d, (int, np.integer)) else tuple(d)
    x, y, z = (int(n) for n in (*d, 1, 1)[:3])
    return x, y, z


def _tally(prog: Program, report: Report, count: Any, wcount: Any) -> None:
    for bb, n, w in zip(prog.blocks, count.tolist(), wcount.tolist(), strict=False):
        for ins in prog.code[bb.start : bb.start + bb.n]:
            report.by_pc.append((ins, n, w))
            if n:
                report.thread_instr += n
                report.warp_instr += w
                c = classify(ins)
                report.by_class[c] = report.by_class.get(c, 0) + n
                if ins.types and ins.types[-1].isfloat and ins.op in FLOPS:
                    report.flops += n * FLOPS[ins.op] * ins.types[-1].pack
    report.findings.sort(key=lambda f: (["error", "warning", "info"].index(f.level), f.pc))


@lru_cache(maxsize=256)
def _module(*ptx: str) -> Module:
    return Module(*ptx)


def compile_kernel(fn: Any, *args: Any, cc: Any = (8, 0), fastmath: bool = True) -> Module:
    """Compile a Numba CUDA kernel (function or dispatcher) for the types of args."""
    return _module(*numba_ptx(fn, signature(args), cc, fastmath))


def run(
    fn: Any,
    grid: Any,
    block: Any,
    *args: Any,
    cc: Any = (8, 0),
    fastmath: bool = True,
    shared_bytes: int = 0,
    **opts: Any,
) -> Report:
    """Compile a Numba kernel for the given arguments and launch it."""
    return compile_kernel(fn, *args, cc=cc, fastmath=fastmath).launch(
        None, grid, block, args, shared_bytes, **opts
    )
