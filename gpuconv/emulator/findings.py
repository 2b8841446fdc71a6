"""What a launch reports: findings, instruction counts and memory access statistics."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

LEVELS = {  # kind -> (level, meaning)
    "oob-global": ("error", "global address outside every allocation"),
    "oob-shared": ("error", "shared address outside the declared variables"),
    "oob-local": ("error", "local address outside the stack frame"),
    "misaligned": ("error", "address not a multiple of the access size"),
    "readonly-store": ("error", "store to an array passed as read-only"),
    "uninit-shared": ("error", "shared memory read before it was written"),
    "race-shared": (
        "error",
        "two threads of a block touch the same shared bytes, one writes, no barrier between",
    ),
    "race-global": (
        "error",
        "two threads touch the same global bytes, one writes non-atomically, unordered",
    ),
    "cp-async-unwaited": ("error", "shared bytes used while a cp.async to them is not waited for"),
    "cp-async-unfinished": ("warning", "thread exited with cp.async copies never waited for"),
    "warp-diverged": ("error", "a .sync instruction names lanes that never arrive"),
    "shfl-inactive": ("error", "shfl reads a lane that does not take part"),
    "barrier-exited": ("warning", "bar.sync executed after other threads of the block exited"),
    "barrier-diverged": ("error", "threads of one block wait at different bar.sync instructions"),
    "deadlock": ("error", "threads wait at a barrier that can never complete"),
    "div-by-zero": ("warning", "integer division by zero"),
    "trap": ("error", "trap executed"),
    "same-value-race": (
        "info",
        "several threads store the same value to one location without order",
    ),
}


@dataclass
class Finding:
    """One kind of finding at one instruction; `count` is the number of lanes it met."""

    kind: str
    where: str
    pc: int
    count: int
    detail: str

    @property
    def level(self) -> str:
        """One of "error", "warning" and "info"."""
        return LEVELS[self.kind][0]

    def __str__(self) -> str:
        meaning = LEVELS[self.kind][1]
        head = f"{self.level}: {self.kind} x{self.count} at {self.where}"
        return f"{head}\n    {meaning}; first: {self.detail}"


@dataclass
class MemStat:
    """Access pattern of one memory instruction (warp-level requests)."""

    where: str
    space: str
    requests: int = 0
    sampled: int = 0
    units: int = 0  # 32-byte sectors (global) or shared-memory wavefronts
    ideal: int = 0

    @property
    def per_request(self) -> float:
        """Sectors or wavefronts per request, of the requests sampled."""
        return self.units / max(1, self.sampled)

    @property
    def efficiency(self) -> float:
        """Fewest possible sectors or wavefronts over those needed."""
        return self.ideal / max(1, self.units)


@dataclass
class Report:
    """Everything that a launch found out."""

    kernel: str
    grid: tuple
    block: tuple
    findings: list[Finding] = field(default_factory=list)
    mem: dict[tuple[int, str], MemStat] = field(default_factory=dict)  # (pc, space) -> MemStat
    thread_instr: int = 0
    warp_instr: int = 0
    by_class: dict[str, int] = field(default_factory=dict)  # opcode class -> thread instructions
    by_pc: list = field(default_factory=list)  # (Instr, thread executions, warp executions)
    branches: int = 0
    divergent: int = 0
    flops: int = 0
    seconds: float = 0.0
    shared_bytes: int = 0

    @property
    def errors(self) -> list[Finding]:
        """The findings of level "error"."""
        return [f for f in self.findings if f.level == "error"]

    @property
    def ok(self) -> bool:
        """Whether there are no errors."""
        return not self.errors

    def kinds(self) -> set[str]:
        """The kinds of all findings."""
        return {f.kind for f in self.findings}

    def total(self, space: str, what: str = "units") -> float:
        """Estimated total over all requests of a space: 'units', 'ideal' or 'requests'.

        Units are 32-byte sectors (global) or wavefronts (shared).
        """
        if what == "requests":
            return sum(m.requests for m in self.mem.values() if m.space == space)
        return sum(
            getattr(m, what) * m.requests / max(1, m.sampled)
            for m in self.mem.values()
            if m.space == space
        )

    def by_line(self) -> dict[Any, int]:
        """Source line -> thread instructions, hottest first."""
        lines: dict[Any, int] = {}
        for ins, n, _ in self.by_pc:
            lines[ins.loc] = lines.get(ins.loc, 0) + n
        return dict(sorted(lines.items(), key=lambda t: -t[1]))

    def summary(self, top: int = 8) -> str:
        """Several lines for people to read; `top` limits the list of inefficient accesses."""
        lane = self.thread_instr / max(1, self.warp_instr * 32)
        lines = [
            f"{self.kernel[:60]} grid={self.grid} block={self.block}: "
            f"{self.thread_instr:,} thread instr, "
            f"{self.warp_instr:,} warp instr, {lane:.0%} lanes active, {self.seconds:.2f} s "
            f"({self.thread_instr / max(self.seconds, 1e-9) / 1e6:.1f} M thread-instr/s)",
            "  classes: "
            + ", ".join(
                f"{k} {v:,}" for k, v in sorted(self.by_class.items(), key=lambda t: -t[1])
            ),
            f"  branches (warp): {self.branches:,}, divergent {self.divergent:,}; "
            f"flops {self.flops:,}",
        ]
        for sp, unit in (("global", "sectors"), ("shared", "wavefronts")):
            if n := self.total(sp, "requests"):
                lines.append(
                    f"  {sp}: {n:,} requests, {self.total(sp) / n:.2f} {unit}/request, "
                    f"efficiency {self.total(sp, 'ideal') / max(1, self.total(sp)):.0%}"
                )
        worst = sorted(
            (m for m in self.mem.values() if m.efficiency < 0.9),
            key=lambda m: -(m.units - m.ideal) * m.requests / max(1, m.sampled),
        )[:top]
        lines += [
            f"    {m.space} {m.per_request:.1f}/request "
            f"(ideal {m.ideal / max(1, m.sampled):.1f}) x{m.requests:,} {m.where}"
            for m in worst
        ]
        return "\n".join(lines + ["  " + str(f).replace("\n", "\n  ") for f in self.findings])
