"""Kernels run in the emulator on small problems: what a sanitizer and a profiler would show.

    result = check("direct", kernels)   # Check: findings, memory access, instructions by line
    result.ok

The problems are the rows of `problems.py`; every check of the emulator is on, and every memory
request is looked at, not a sample.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from gpuconv.backends import Backend
from gpuconv.cuda.device import EmulatedDevice, Run
from gpuconv.errors import ArgumentError
from gpuconv.kernels.cuda.compiler import Kernel
from gpuconv.study import check_arch
from gpuconv.study.problems import PROBLEMS, Problem


@dataclass
class Access:
    """What the instructions of one kind on one line of Python ask of a memory.

    `units` are 32-byte sectors (global memory) or wavefronts (shared memory, more than the minimum
    where banks conflict); `minimum` is the fewest that those bytes can do with.
    """

    space: str
    op: str
    file: str
    line: int
    requests: int = 0
    units: int = 0
    minimum: int = 0


@dataclass
class Found:
    """One finding of the emulator, and in which problem it came up first."""

    level: str
    kind: str
    count: int
    problem: str
    text: str
    file: str
    line: int


@dataclass
class Checked:
    """What the emulator saw of one kernel, over all launches."""

    kernel: Kernel
    problems: list[str] = field(default_factory=list)
    launches: int = 0
    findings: dict[Any, Found] = field(default_factory=dict)
    access: dict[Any, Access] = field(default_factory=dict)
    by_class: Counter[str] = field(default_factory=Counter)
    by_line: Counter[tuple[str, int]] = field(default_factory=Counter)
    thread_instructions: int = 0
    warp_instructions: int = 0
    branches: int = 0
    divergent: int = 0

    def add(self, problem: str, report: Any) -> None:
        """Count a launch in; `report` is the emulator's."""
        if problem not in self.problems:
            self.problems.append(problem)
        self.launches += 1
        self.thread_instructions += report.thread_instr
        self.warp_instructions += report.warp_instr
        self.branches += report.branches
        self.divergent += report.divergent
        self.by_class.update(report.by_class)
        code = {}
        for instruction, threads, _ in report.by_pc:
            code[instruction.pc] = instruction
            self.by_line[instruction.loc or ("", 0)] += threads
        for f in report.findings:
            file, line = code[f.pc].loc or ("", 0)
            new = Found(f.level, f.kind, 0, problem, str(f), file, line)
            self.findings.setdefault((f.kind, f.pc), new).count += f.count
        for (pc, space), memory in report.mem.items():
            file, line = code[pc].loc or ("", 0)
            op = ".".join((code[pc].op, *code[pc].mods))
            found = self.access.setdefault((space, op, file, line), Access(space, op, file, line))
            found.requests += memory.requests
            found.units += memory.units
            found.minimum += memory.ideal

    def total(self, space: str) -> Access:
        """All accesses to "global" or "shared" together."""
        rows = [a for a in self.access.values() if a.space == space]
        counts = (sum(getattr(a, n) for a in rows) for n in ("requests", "units", "minimum"))
        return Access(space, "all", "", 0, *counts)

    @property
    def lanes(self) -> float:
        """Which part of the threads of a warp took part in an instruction, on average."""
        return self.thread_instructions / max(1, 32 * self.warp_instructions)

    def to_dict(self) -> dict[str, Any]:
        """Fit for JSON."""
        return {
            "kernel": self.kernel.name,
            "problems": self.problems,
            "launches": self.launches,
            "findings": [asdict(f) for f in self.findings.values()],
            "access": [asdict(a) for a in self.access.values()],
            "thread_instructions": self.thread_instructions,
            "by_class": dict(self.by_class.most_common()),
            "by_line": [
                {"file": file, "line": line, "thread_instructions": count}
                for (file, line), count in self.by_line.most_common()
                if count
            ],
            "branches": self.branches,
            "divergent_branches": self.divergent,
            "active_lanes": self.lanes,
        }


@dataclass(frozen=True)
class Result:
    """The numbers of one problem.

    `unwritten` are NaN where the reference has a number; `off` is the largest distance of another
    number from the reference's, over the largest of those. Whether that is too far is not judged
    here: the tests of the kernels have the error budget.
    """

    problem: str
    unwritten: int
    off: float


@dataclass(frozen=True)
class Check:
    """What `check` found out."""

    arch: str
    kernels: list[Checked]
    results: list[Result]
    not_launched: list[str]

    @property
    def ok(self) -> bool:
        """No error findings, nothing left unwritten."""
        found = [f for kernel in self.kernels for f in kernel.findings.values()]
        return not (
            any(f.level == "error" for f in found) or any(r.unwritten for r in self.results)
        )

    def to_dict(self) -> dict[str, Any]:
        """Fit for JSON."""
        return {
            "arch": self.arch,
            "ok": self.ok,
            "kernels": [kernel.to_dict() for kernel in self.kernels],
            "problems": [asdict(result) for result in self.results],
            "not_launched": self.not_launched,
        }


class _Recorder(EmulatedDevice):
    """Notes which kernels would be launched; runs and compiles none."""

    def __init__(self, arch: str) -> None:
        super().__init__(arch)
        self.launched: set[Kernel] = set()

    def prepare(self, kernel: Kernel, *grid: Any, **numbers: Any) -> Run:
        return lambda *arrays, **given: self.launched.add(kernel)


def launched(problem: Problem, arch: str) -> set[Kernel]:
    """The kernels that a problem launches on `arch`."""
    from gpuconv.cuda import CudaBackend

    device = _Recorder(arch)
    with np.errstate(all="ignore"):
        problem(CudaBackend(device, "emulated"), np.random.default_rng(0))
    return device.launched


def check(
    family: str,
    kernels: list[Kernel],
    arch: str | None = None,
    say: Callable[[str], None] = lambda label: None,
) -> Check:
    """Run the problems of `family` that launch `kernels`, with every check of the emulator.

    For sm_80 if no `arch` is given, or for sm_75 where nothing launches them on sm_80. `say` is
    told which problem comes next. ArgumentError where no problem launches them, DeviceError where
    there is no compiler.
    """
    for target in [check_arch(arch)] if arch else ["sm_80", "sm_75"]:
        rows = [(s, p, launched(p, target)) for s, p in PROBLEMS[family]]
        seen = {k: Checked(k) for k in kernels if any(k in row[2] for row in rows)}
        if seen:
            break
    else:
        raise ArgumentError(
            f"no problem launches {kernels[0].name} on {target}; try another --arch"
        )
    results = []
    for label, problem, kernels_of in rows:
        if kernels_of & set(seen):
            say(label)
            results.append(_run(label, problem, target, seen))
    missing = [kernel.name for kernel in kernels if kernel not in seen]
    return Check(target, list(seen.values()), results, missing)


def _run(label: str, problem: Problem, arch: str, seen: dict[Kernel, Checked]) -> Result:
    from gpuconv.cuda import CudaBackend

    def watch(kernel: Kernel, report: Any) -> None:
        if kernel in seen:
            seen[kernel].add(label, report)

    device = EmulatedDevice(arch, watch=watch, stats=True, sample=None, strict=False)
    ours = _arrays(problem(CudaBackend(device, "emulated"), np.random.default_rng(0)))
    plain = _arrays(problem(Backend(np, "numpy"), np.random.default_rng(0)))
    unwritten, off = 0, 0.0
    for a, b in zip(ours, plain, strict=True):
        unwritten += int((np.isnan(a) & ~np.isnan(b)).sum())
        both = np.isfinite(a) & np.isfinite(b)
        largest = float(np.abs(b[both]).max(initial=0.0)) or 1.0
        off = max(off, float(np.abs(a[both] - b[both]).max(initial=0.0)) / largest)
    return Result(label, unwritten, off)


def _arrays(results: Any) -> list[Any]:
    results = results if isinstance(results, (list, tuple)) else [results]
    return [np.asarray(r, dtype=np.float64) for r in results if r is not None]
