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
from gpuconv.study import check_arch, fitting, unfit
from gpuconv.study.problems import PROBLEMS, Numbers, Problem

PARAMETERS = "parameters", 0  # the place of what loads them: PTX has it at the line of the `def`
# How far numbers may be from the truth, as a part of the largest; integers must be equal.
LIMITS = {"float32": 1e-5, "float64": 1e-12}


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
    problems: Counter[str] = field(default_factory=Counter)
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
        self.problems[problem] += 1
        self.thread_instructions += report.thread_instr
        self.warp_instructions += report.warp_instr
        self.branches += report.branches
        self.divergent += report.divergent
        self.by_class.update(report.by_class)
        code = {}
        for instruction, threads, _ in report.by_pc:
            code[instruction.pc] = instruction
            loads = instruction.op == "ld" and "param" in instruction.mods
            self.by_line[PARAMETERS if loads else instruction.loc or ("", 0)] += threads
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
    def launches(self) -> int:
        """Of all problems."""
        return self.problems.total()

    @property
    def uncounted(self) -> bool:
        """Whether accesses are missing in `access`: the emulator leaves out those with errors."""
        return any(f.kind.startswith(("oob", "misaligned")) for f in self.findings.values())

    @property
    def lanes(self) -> float:
        """Which part of the threads of a warp took part in an instruction, on average."""
        return self.thread_instructions / max(1, 32 * self.warp_instructions)

    def to_dict(self) -> dict[str, Any]:
        """Fit for JSON."""
        return {
            "kernel": self.kernel.name,
            "problems": dict(self.problems),
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
    """The numbers of one problem, or of its worst array.

    `unwritten` are NaN where there should be a number. `off` is the largest distance of another
    from the truth, over the largest number of that; infinity where one should be finite, or not.
    `plain` is how far the reference is in the same precision, `allowed` how far they may be: four
    times as far and one rounding more (the error budget of the project) or, as long sums in order
    may be further, a part of LIMITS.
    """

    problem: str
    unwritten: int
    off: float
    plain: float
    allowed: float

    @property
    def ok(self) -> bool:
        return not self.unwritten and self.off <= self.allowed

    def to_dict(self) -> dict[str, Any]:
        """Fit for JSON, which has no infinity: null."""
        return {**asdict(self), "ok": self.ok, "off": self.off if self.off < np.inf else None}


@dataclass(frozen=True)
class Check:
    """What `check` found out."""

    arch: str
    kernels: list[Checked]
    results: list[Result]
    not_launched: list[str]

    @property
    def ok(self) -> bool:
        """No error findings, nothing left unwritten, no wrong numbers."""
        found = [f for kernel in self.kernels for f in kernel.findings.values()]
        return not any(f.level == "error" for f in found) and all(r.ok for r in self.results)

    def to_dict(self) -> dict[str, Any]:
        """Fit for JSON."""
        return {
            "arch": self.arch,
            "ok": self.ok,
            "kernels": [kernel.to_dict() for kernel in self.kernels],
            "problems": [result.to_dict() for result in self.results],
            "not_launched": self.not_launched,
        }


class _Recorder(EmulatedDevice):
    """Counts which kernels would be launched, by name; runs and compiles none."""

    def __init__(self, arch: str) -> None:
        super().__init__(arch)
        self.launched: set[str] = set()

    def prepare(self, kernel: Kernel, *grid: Any, **numbers: Any) -> Run:
        return lambda *arrays, **given: self.launched.add(kernel.name)


def launched(problem: Problem, arch: str) -> set[str]:
    """The names of the kernels that a problem launches on `arch`.

    Names, as the shared memory of a kernel may be the problem's.
    """
    from gpuconv.cuda import CudaBackend

    device = _Recorder(arch)
    with np.errstate(all="ignore"):
        problem(CudaBackend(device, "emulated"), Numbers())
    return device.launched


def target(kernels: list[Kernel], arch: str | None) -> str:
    """`arch`, or sm_80 if none is given, or sm_75 if all are for that alone."""
    return check_arch(arch or ("sm_75" if all(unfit(k, "sm_80") for k in kernels) else "sm_80"))


def check(
    family: str,
    kernels: list[Kernel],
    arch: str | None = None,
    say: Callable[[str], None] = lambda label: None,
) -> Check:
    """Run the problems of `family` that launch `kernels`, with every check of the emulator.

    For `target` of `arch`; kernels that are not for that are left out. `say` is told which problem
    comes next. ArgumentError where none is for it or no problem launches them, DeviceError where
    there is no compiler.
    """
    arch = target(kernels, arch)
    kernels = fitting(kernels, arch)
    rows = [(label, problem, launched(problem, arch)) for label, problem in PROBLEMS[family]]
    seen = {k.name: Checked(k) for k in kernels if any(k.name in row[2] for row in rows)}
    if not seen:
        raise ArgumentError(
            f"no problem launches {kernels[0].name} on {arch}: add a row for it to family "
            f"{family} in gpuconv/study/problems.py"
        )
    results = []
    for label, problem, names in rows:
        if names & seen.keys():
            say(label)
            results.append(_run(label, problem, arch, seen))
    missing = [kernel.name for kernel in kernels if kernel.name not in seen]
    return Check(arch, list(seen.values()), results, missing)


def _run(label: str, problem: Problem, arch: str, seen: dict[str, Checked]) -> Result:
    from gpuconv.cuda import CudaBackend

    def watch(kernel: Kernel, report: Any) -> None:
        if kernel.name in seen:
            seen[kernel.name].add(label, report)

    device = EmulatedDevice(arch, watch=watch, stats=True, sample=None, strict=False)
    reference = Backend(np, "numpy")
    ours = _arrays(problem(CudaBackend(device, "emulated"), Numbers()))
    plain = _arrays(problem(reference, Numbers()))
    truth = _arrays(problem(reference, Numbers(exact=True)))
    results = [_judge(label, *three) for three in zip(ours, plain, truth, strict=True)]
    return max(results, key=lambda r: (not r.ok, r.off, r.unwritten))


def _judge(label: str, ours: Any, plain: Any, truth: Any) -> Result:
    """One array of a problem's results."""
    if ours.shape != truth.shape:
        return Result(label, 0, np.inf, 0.0, 0.0)
    unwritten = np.isnan(ours) & ~np.isnan(truth)
    finite = np.isfinite(truth) & ~unwritten
    largest = float(np.abs(truth[finite]).max(initial=0.0)) or 1.0

    def off(array: Any) -> float:
        same = np.array_equal(array[~finite & ~unwritten], truth[~finite & ~unwritten], True)
        if not same or not np.isfinite(array[finite]).all():
            return float(np.inf)
        apart = np.abs(array[finite].astype(np.float64) - truth[finite])
        return float(apart.max(initial=0.0)) / largest

    known, allowed = off(plain), 0.0
    if limit := LIMITS.get(ours.dtype.name):
        budget = 4 * known + float(np.finfo(ours.dtype).eps)
        allowed = max(budget, limit) if np.isfinite(known) else limit
    return Result(label, int(unwritten.sum()), off(ours), known, allowed)


def _arrays(results: Any) -> list[Any]:
    results = results if isinstance(results, (list, tuple)) else [results]
    return [np.asarray(r) for r in results if r is not None]
