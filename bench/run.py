"""Measure gpuconv and its peers: `python -m bench.run --set main --device cpu --out FILE.json`.

Each layer-pass is checked before it is timed: a result of ours that is further off than the error
budget is a failed row, without a time. Then all contenders are timed in interleaved rounds
(`bench.timing`). FILE.json holds everything, and is written after each row; beside it come FILE.md,
the table, and FILE.png where matplotlib is installed. A peer, or a GPU, that is not here is a gap,
named in all of them. `--base REV` measures the code of another commit too, in a process beside.
"""

import argparse
import gc as garbage
import json
import os
import sys
import time
from contextlib import ExitStack
from importlib import import_module
from typing import Any

if not __package__:
    sys.exit("bench: error: it is a module, to be run as python -m bench.run")

import numpy as np

from bench import base, cases, machine, options, peers, problems, report, timing
from bench.problems import Gap
from bench.terminal import Display, complain, duration, fold
from gpuconv.backends import host_backend
from gpuconv.errors import DeviceError, Error
from gpuconv.files import write_atomically

ERRORS = (RuntimeError, ValueError, NotImplementedError)  # what a contender may fail with


class Run:
    """One run: contenders, rows, and the file they are kept in."""

    def __init__(self, asked: argparse.Namespace, todo: list[tuple[Any, str]]) -> None:
        self.options, self.todo = asked, todo
        self.contenders: list[Any] = []
        self.result: dict[str, Any] = {"format": report.FORMAT, "gaps": [], "rows": []}

    def start(self, stack: ExitStack) -> None:
        """Find who can be measured, and what was measured already. DeviceError without a GPU."""
        o, gaps = self.options, self.result["gaps"]
        backend = o.backend or ("cuda" if o.device == "cuda" else host_backend().name)
        settings = self.result["settings"] = {
            "device": o.device,
            "backend": backend,
            "formats": o.formats,
            "rounds": o.rounds,
            "block": o.block,
            "row": o.row,
            "l2": o.l2 if o.device == "cuda" else "warm",
            "cudnn_benchmark": o.cudnn_benchmark,
            "base": o.base and machine.revision(o.base),
        }
        self.result["environment"] = machine.environment("cpu", np, o.threads)
        ours = peers.Gpuconv(backend)
        self.xp = ours.be.xp
        if (self.xp is np) != (o.device == "cpu"):
            raise ValueError(f"backend {backend!r} does not compute on device {o.device!r}")
        if o.device == "cuda":
            self.result["environment"]["gpu"] = machine.gpu(self.xp)
        self.contenders.append(ours)
        here = peers.ON[o.device]
        for name in here if o.peers is None else [n for n in o.peers.split(",") if n != "none"]:
            if name not in here:
                raise ValueError(
                    f"no peer {name!r} on device {o.device!r}; use some of {', '.join(here)}"
                )
            try:
                self.contenders.append(peers.PEERS[name](o.threads, o.cudnn_benchmark))
            except (Gap, DeviceError) as gap:
                gaps.append(f"{name}: {gap}")
        if o.base:
            self.contenders.append(stack.enter_context(base.checkout(o.base, backend, o.l2)))
        settings["contenders"] = [c.name for c in self.contenders]
        self.timer = timer(self.xp, o.l2)
        settings["disturbance"] = self.timer.watch
        old = self._earlier()
        if problems.has_torch(self.xp):
            import_module("torch").set_num_threads(o.threads)
        garbage.freeze()  # what is loaded by now stays: collections need not look at it again
        peaks = old.get("peaks", {"disturbed": ["all"]})
        if peaks["disturbed"]:
            peaks = machine.peaks(o.device, self.xp, small=o.rounds < 3)
            for row in self.result["rows"]:
                if "best" in row:
                    report.share(row, peaks)
        self.result["peaks"] = peaks

    def _earlier(self) -> dict[str, Any]:
        """The result to go on with, whose rows are kept if they were not disturbed.

        ValueError if it was not of this code, machine and settings.
        """
        o = self.options
        if not (o.resume and o.out and o.out.exists()):
            return {}
        old = report.read(o.out)
        found = machine.differences(old, self.result)
        if found:
            raise ValueError(
                f"{o.out} cannot be resumed: {'; '.join(found)}; give the same settings, another "
                "--out, or --overwrite"
            )
        self.result["rows"] = [row for row in old["rows"] if not row.get("disturbed")]
        return old

    def rows(self) -> bool:
        """Measure what is left; False if the time was up first."""
        o, start = self.options, time.perf_counter()
        done = {(row["case"], row["pass"]) for row in self.result["rows"]}
        left = [(case, kind) for case, kind in self.todo if (case.name, kind) not in done]
        print(fold(self._outlook(left), sys.stdout), flush=True)
        with Display(len(left)) as self.display:
            for i, (case, kind) in enumerate(left):
                if o.budget and time.perf_counter() - start > o.budget:
                    self.result["left"] = len(left) - i
                    self.display.end(
                        f"time is up: {len(left) - i} layer-passes left, go on with --resume"
                    )
                    return False
                self.display.begin(f"{case.name} {kind}")
                row = self.row(case, kind)
                self.result["rows"].append(row)
                self.save()
                self.display.end(report.line(row))
        return True

    def _outlook(self, left: list[tuple[Any, str]]) -> str:
        """How much there is to do, and about how long that takes.

        Supposed is that calls reach a fifth of what the peaks allow, and that checking a result
        costs as much as ten calls.
        """
        o, peaks, total = self.options, self.result["peaks"], 0.0
        formats = o.formats.split(",")
        count = sum(format in formats for c in self.contenders for format in c.formats)
        for case, kind in left:
            flops, moved = problems.size(case, kind)
            call = 5 * max(flops / peaks["flops"], moved / peaks["bytes"])
            turn = count * (max(o.block, call) + call + timing.SETTLE)
            rounds = max(min(o.rounds, 3), min(o.rounds, o.row / turn))
            total += (10 + count) * call + turn * rounds
        if o.budget:
            total = min(total, o.budget)
        text = f"{len(left)} layer-passes"
        if self.result["rows"]:
            text += f" left, {len(self.result['rows'])} kept"
        if not left:
            return text
        return f"{text}, {o.rounds} rounds: about {duration(total)}, longer where others disturb it"

    def row(self, case: Any, kind: str) -> dict[str, Any]:
        """One layer-pass: checked, timed, placed beside its peers."""
        row: dict[str, Any] = {"case": case.name, "set": case.set, "pass": kind, "status": "ok"}
        try:
            problem = problems.make(case, kind, self.xp)
            row |= {"flops": problem.flops, "bytes": problem.bytes, "winograd": winograd(case)}
            problem.solve()
            row |= {"oracle": problem.oracle, "plain_error": problem.plain_error}
            row["bar"] = problem.bar
            self._measure(problem, row)
        except Gap as gap:
            row |= {"status": "gap", "reason": str(gap)}
        except (MemoryError, *ERRORS) as error:
            row |= failure(error)
        problem = None
        free(self.xp)
        return row

    def _measure(self, problem: Any, row: dict[str, Any]) -> None:
        found: dict[str, dict[str, Any]] = {}
        blocks = {}
        row["contenders"] = found
        for contender in self.contenders:
            for format in contender.formats:
                if format in self.options.formats.split(","):
                    label = f"{contender.name}/{format}"
                    found[label], block = self._check(contender, problem, format)
                    if block is not None:
                        blocks[label] = block
        problem.truth = None
        free(self.xp)
        mine = [label for label in found if label.startswith("gpuconv/")]
        if not any(label in blocks for label in mine):
            first = found[mine[0]]
            row |= {"status": first["status"], "reason": first["reason"]}
            return
        wrong = [label for label in mine if found[label]["status"] == "failed"]
        if wrong:  # one format is right: the row is still not one to be proud of
            row |= {"status": "failed", "reason": f"{wrong[0]}: {found[wrong[0]]['reason']}"}
            return
        o = self.options
        tell = self.display.tell
        samples = timing.rounds(blocks, o.rounds, o.block, o.row, self.timer.most, tell=tell)
        report.place(row, samples, self.result["peaks"], problem)

    def _check(self, contender: Any, problem: Any, format: str) -> tuple[dict[str, Any], Any]:
        """(what there is to say of its result, what times a block; None if it is not timed)."""
        ours = contender.name == "gpuconv"
        try:
            with contender.active():
                loaded = contender.load(problem, format)
                if isinstance(loaded, base.Remote):
                    error = loaded.error
                else:
                    error = problem.error(loaded.array(loaded.call()))
        except Gap as gap:
            return {"status": "gap", "reason": str(gap)}, None
        except (MemoryError, *ERRORS) as failed:
            return failure(failed), None
        bar = problem.bar if ours else problems.PEER_BAR
        if not error <= bar:
            reason = f"wrong result: off by {error:.2e}, allowed {bar:.2e}"
            return {"status": "failed", "error": error, "reason": reason}, None

        def block(inner: int) -> timing.Block:
            with contender.active():
                if isinstance(loaded, base.Remote):
                    return loaded.block(inner)
                return self.timer.block(loaded.call, inner)

        return {"status": "ok", "error": error, "exact": contender.exact}, block

    def save(self) -> None:
        """All files that were asked for."""
        if self.options.out:
            text = json.dumps(self.result, indent=1, allow_nan=True)
            write_atomically(self.options.out, text.encode())
            write_atomically(
                self.options.out.with_suffix(".md"), report.markdown(self.result).encode()
            )


def winograd(case: Any) -> bool:
    """Whether Winograd's algorithm may compute it."""
    return isinstance(case, cases.Case) and case.w_shape[2:] == (3, 3) and case.stride == 1


def timer(xp: Any, l2: str) -> Any:
    """What measures blocks of calls on the device of `xp`."""
    if xp is np:
        return timing.CpuTimer()
    cache = machine.gpu(xp)["l2_bytes"]
    return timing.CudaTimer(xp, l2 == "cold", max(4 * cache, 2**28))


def failure(error: BaseException) -> dict[str, Any]:
    """An exception as a status and a reason; every library has its own "out of memory"."""
    text = (str(error).splitlines() or [""])[0][:300]
    lacking = ("out of memory", "can't allocate memory", "failed to allocate")
    if isinstance(error, MemoryError) or any(words in text.lower() for words in lacking):
        return {"status": "out of memory", "reason": text}
    return {"status": "failed", "reason": f"{type(error).__name__}: {text}"}


def free(xp: Any) -> None:
    """Give the memory of a row back, so that the next finds all there is."""
    garbage.collect()
    if xp is np:
        return
    xp.get_default_memory_pool().free_all_blocks()
    if problems.has_torch(xp):
        import_module("torch").cuda.empty_cache()


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    return options.parse(arguments, (__doc__ or "").split("\n\n")[0])


def main(arguments: list[str]) -> int:
    """Run; 1 where a result of ours was wrong, or nothing could be measured."""
    try:
        status = _main(parse(arguments))
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0 if "--list" in arguments else 141  # as if the signal had ended it


def _main(o: argparse.Namespace) -> int:
    try:
        todo = cases.select(o.set, o.passes, o.filter)
        if o.list:
            for case, kind in todo:
                print(f"{case.name:31} {kind}")
            return 0
        if o.out and o.out.exists() and not (o.resume or o.overwrite):
            raise ValueError(f"{o.out} exists; give --resume to go on, or --overwrite")
        run = Run(o, todo)
        with ExitStack() as stack:
            try:
                run.start(stack)
            except DeviceError as error:
                run.result["gaps"].append(f"{o.device}: {error}")
                if not (o.resume and o.out and o.out.exists()):  # which may have rows
                    run.save()
                raise
            for text in (
                *(f"gap: {gap}" for gap in run.result["gaps"]),
                report.peaks(run.result["peaks"]),
            ):
                print(fold(text, sys.stdout))
            run.rows()
        run.save()
    except BrokenPipeError:
        raise
    except (Error, ValueError, OSError, Gap) as error:
        complain(f"bench: error: {error}")
        return 1
    except KeyboardInterrupt:
        complain("\nbench: stopped; go on with --resume")
        return 130
    print(fold(report.summary(run.result), sys.stdout))
    if o.out:
        plotted = report.plot(run.result, o.out.with_suffix(".png"))
        print(fold(f"written: {o.out}, {o.out.with_suffix('.md')}, {plotted}", sys.stdout))
    return int(any(row["status"] == "failed" for row in run.result["rows"]))


if __name__ == "__main__":
    asked = parse(sys.argv[1:])
    machine.settle(asked.device, asked.threads)
    sys.exit(main(sys.argv[1:]))
