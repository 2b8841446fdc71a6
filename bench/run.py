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
import sys
import time
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from bench import base, cases, machine, peers, problems, report, timing
from bench.problems import FORMATS, Gap
from gpuconv.backends import BACKENDS
from gpuconv.errors import DeviceError, Error
from gpuconv.files import read_bytes, write_atomically

FORMAT = 1
ERRORS = (RuntimeError, ValueError, NotImplementedError)  # what a contender may fail with


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    p = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__.split("\n\n")[0])
    p.add_argument("--set", default="main", help=f"some of {','.join(cases.SETS)}")
    p.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    p.add_argument("--backend", choices=BACKENDS, help="who computes ours (default: the device's)")
    p.add_argument("--peers", help="with commas; 'none'; default: all that fit the device")
    p.add_argument("--formats", default=",".join(FORMATS), help="memory formats")
    p.add_argument("--passes", default="", help=",".join(cases.PASSES))
    p.add_argument("--filter", default="", help="only cases with one of these in their name")
    p.add_argument("--rounds", type=int, default=9)
    p.add_argument("--block", type=float, help="seconds a block (default: 0.05, on a GPU 0.01)")
    p.add_argument("--row", type=float, default=20.0, help="no round is begun after these seconds")
    p.add_argument("--budget", type=float, default=0.0, help="no row is begun after these seconds")
    p.add_argument("--l2", default="cold", choices=("cold", "warm"), help="on a GPU")
    p.add_argument(
        "--cudnn-benchmark", action="store_true", help="cuDNN's algorithms are tried out"
    )
    p.add_argument("--threads", type=int, default=machine.processors())
    p.add_argument("--base", metavar="REV", help="measure this commit too")
    p.add_argument("--out", type=Path, help="FILE.json")
    p.add_argument("--resume", action="store_true", help="keep the rows that are in FILE.json")
    p.add_argument("--overwrite", action="store_true", help="replace FILE.json")
    p.add_argument("--list", action="store_true", help="print the layer-passes and stop")
    options = p.parse_args(arguments)
    unknown = set(options.formats.split(",")) - set(FORMATS)
    if unknown:
        p.error(f"argument --formats: no format {', '.join(unknown)}; use {', '.join(FORMATS)}")
    options.block = options.block or (0.01 if options.device == "cuda" else 0.05)
    return options


class Run:
    """One run: contenders, rows, and the file they are kept in."""

    def __init__(self, options: argparse.Namespace, todo: list[tuple[Any, str]]) -> None:
        self.options, self.todo = options, todo
        self.contenders: list[Any] = []
        self.result: dict[str, Any] = {"format": FORMAT, "gaps": [], "rows": []}

    def start(self, stack: ExitStack) -> None:
        """Find who can be measured, and what was measured already. DeviceError without a GPU."""
        o, gaps = self.options, self.result["gaps"]
        backend = o.backend or ("cuda" if o.device == "cuda" else "numpy")
        ours = peers.Gpuconv(backend)
        self.xp = ours.be.xp
        if (self.xp is np) != (o.device == "cpu"):
            raise DeviceError(f"backend {backend!r} does not compute on device {o.device!r}")
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
        names = [c.name for c in self.contenders]
        self.result["environment"] = machine.environment(o.device, self.xp, o.threads)
        self.result["settings"] = {
            "device": o.device,
            "backend": backend,
            "contenders": names,
            "formats": o.formats,
            "l2": o.l2 if o.device == "cuda" else "warm",
            "cudnn_benchmark": o.cudnn_benchmark,
            "base": o.base,
        }
        if o.resume and o.out and o.out.exists():
            self._take_up(read(o.out))
        if problems.has_torch(self.xp):
            import_module("torch").set_num_threads(o.threads)
        self.timer = timer(self.xp, o.l2)
        self.result["settings"]["disturbance"] = self.timer.watch
        garbage.freeze()  # what is loaded by now stays: collections need not look at it again
        self.result["peaks"] = machine.peaks(o.device, self.xp, small=o.rounds < 3)

    def _take_up(self, old: dict[str, Any]) -> None:
        """Keep the rows of an earlier run; ValueError if it was not of this code and machine."""
        known = {**old.get("environment", {}), **old.get("settings", {})}
        mine = {**self.result["environment"], **self.result["settings"]}
        for name in ("source", "gpu", "cpu", "threads", *self.result["settings"]):
            if mine.get(name) != known.get(name):
                raise ValueError(
                    f"{self.options.out} cannot be resumed: {name} was {known.get(name)!r}, is "
                    f"{mine.get(name)!r}; give another --out, or --overwrite"
                )
        self.result["rows"] = old["rows"]

    def rows(self) -> bool:
        """Measure what is left; False if the time was up first."""
        o, start = self.options, time.perf_counter()
        done = {(row["case"], row["pass"]) for row in self.result["rows"]}
        left = [(case, kind) for case, kind in self.todo if (case.name, kind) not in done]
        for i, (case, kind) in enumerate(left):
            if o.budget and time.perf_counter() - start > o.budget:
                self.result["left"] = len(left) - i
                print(f"time is up: {len(left) - i} layer-passes left, go on with --resume")
                return False
            row = self.row(case, kind)
            self.result["rows"].append(row)
            self.save()
            print(report.line(row), flush=True)
        return True

    def row(self, case: Any, kind: str) -> dict[str, Any]:
        """One layer-pass: checked, timed, placed beside its peers."""
        row: dict[str, Any] = {"case": case.name, "set": case.set, "pass": kind, "status": "ok"}
        try:
            problem = problems.make(case, kind, self.xp)
            row |= {"flops": problem.flops, "bytes": problem.bytes}
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
        samples = timing.rounds(blocks, o.rounds, o.block, o.row, self.timer.most)
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


def read(path: Path) -> dict[str, Any]:
    """A result that was written; ValueError for another file."""
    try:
        result = json.loads(read_bytes(path))
        if result["format"] == FORMAT and isinstance(result["rows"], list):
            return dict(result)
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"{path} is no result of bench.run; give another --out, or --overwrite")


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


def main(arguments: list[str]) -> int:
    """Run; 1 where a result of ours was wrong, or nothing could be measured."""
    options = parse(arguments)
    try:
        todo = cases.select(options.set, options.passes, options.filter)
        if options.list:
            for case, kind in todo:
                print(f"{case.name:40} {kind}")
            return 0
        if options.out and options.out.exists() and not (options.resume or options.overwrite):
            raise ValueError(f"{options.out} exists; give --resume to go on, or --overwrite")
        run = Run(options, todo)
        with ExitStack() as stack:
            try:
                run.start(stack)
            except DeviceError as error:
                run.result["gaps"].append(f"{options.device}: {error}")
                run.save()
                raise
            for gap in run.result["gaps"]:
                print(f"gap: {gap}")
            run.rows()
        run.save()
    except (Error, ValueError, OSError, Gap) as error:
        print(f"bench: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nbench: stopped; go on with --resume", file=sys.stderr)
        return 130
    print(report.summary(run.result))
    if options.out:
        plotted = report.plot(run.result, options.out.with_suffix(".png"))
        print(f"written: {options.out}, {options.out.with_suffix('.md')}, {plotted}")
    return int(any(row["status"] == "failed" for row in run.result["rows"]))


if __name__ == "__main__":
    asked = parse(sys.argv[1:])
    machine.settle(asked.device, asked.threads)
    sys.exit(main(sys.argv[1:]))
