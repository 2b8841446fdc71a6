"""The library as it was at another commit, measured in a process of its own beside ours.

The commit is checked out into a temporary worktree, and this checkout's bench/ is laid over it, so
that both are measured by the same code. Parent and worker exchange lines of JSON; while one
measures a block, the other waits. `python -m bench.base BACKEND L2` is the worker.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from bench import cases, machine, peers, problems, timing
from bench.problems import FORMATS, Gap
from gpuconv.errors import ArgumentError, Error


class Remote:
    """A problem loaded in the worker; `error` is what it found its result to be off."""

    def __init__(self, worker: "Base", number: int, error: float) -> None:
        self.worker, self.number, self.error = worker, number, error

    def block(self, inner: int) -> timing.Block:
        """As a timer's."""
        return timing.Block(**self.worker.ask(do="block", number=self.number, inner=inner))


class Base:
    """The contender "base"."""

    name, formats, exact = "base", FORMATS, True

    def __init__(self, process: subprocess.Popen[str], rev: str) -> None:
        self.process, self.rev = process, rev

    def active(self) -> Any:
        return nullcontext()

    def load(self, problem: Any, format: str) -> Remote:
        """Check `problem` in the worker; Gap, MemoryError or RuntimeError as it met them there."""
        case = problem.case
        answer = self.ask(do="load", set=case.set, case=case.name, kind=problem.kind, format=format)
        return Remote(self, answer["number"], answer["error"])

    def ask(self, **question: Any) -> dict[str, Any]:
        """The worker's answer; what it failed with is raised here."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise Gap(f"the process of commit {self.rev} ended with {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        failed, text = answer.pop("failed", ""), answer.pop("text", "")
        if failed == "Gap":
            raise Gap(text)
        if failed == "MemoryError":
            raise MemoryError(text)
        if failed:
            raise RuntimeError(f"{failed}: {text}")
        return answer


@contextmanager
def checkout(rev: str, backend: str, l2: str) -> Iterator[Base]:
    """The contender for commit `rev`; ArgumentError where it cannot be checked out or started."""
    with tempfile.TemporaryDirectory(prefix="gpuconv-base-") as folder:
        tree = Path(folder) / "tree"
        _git("worktree", "add", "--detach", "--quiet", str(tree), rev)
        try:
            shutil.copytree(machine.ROOT / "bench", tree / "bench", dirs_exist_ok=True)
            process = subprocess.Popen(
                [sys.executable, "-m", "bench.base", backend, l2],
                cwd=tree,
                env={**os.environ, "PYTHONPATH": str(tree)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            try:
                base = Base(process, rev)
                at = base.ask(do="hello")["gpuconv"]
                if not Path(at).is_relative_to(tree):
                    raise ArgumentError(f"--base {rev}: gpuconv was imported from {at}")
                yield base
            finally:
                process.communicate()
        finally:
            _git("worktree", "remove", "--force", str(tree))


def _git(*arguments: str) -> None:
    done = subprocess.run(
        ["git", "-C", str(machine.ROOT), *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ArgumentError(f"git {arguments[0]} {arguments[1]}: {done.stderr.strip()}")


class Worker:
    """Answers the parent's questions, in the process of the other commit."""

    def __init__(self, backend: str, l2: str) -> None:
        from bench.run import timer

        self.ours = peers.Gpuconv(backend)
        self.xp = self.ours.be.xp
        self.timer = timer(self.xp, l2)
        self.problem: Any = None
        self.loaded: list[peers.Loaded] = []

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """One question's answer."""
        if question["do"] == "hello":
            return {"gpuconv": str(machine.ROOT / "gpuconv")}
        with self.ours.active():
            if question["do"] == "block":
                call = self.loaded[question["number"]].call
                return vars(self.timer.block(call, question["inner"]))
            return self._load(**question)

    def _load(self, do: str, set: str, case: str, kind: str, format: str) -> dict[str, Any]:
        name = case, kind
        if self.problem is None or (self.problem.case.name, self.problem.kind) != name:
            from bench.run import free

            self.loaded, self.problem = [], None
            free(self.xp)
            (found,) = (c for c in cases.SETS[set] if c.name == case)
            self.problem = problems.make(found, kind, self.xp)
            self.problem.solve()
        loaded = self.ours.load(self.problem, format)
        error = self.problem.error(loaded.array(loaded.call()))
        self.loaded.append(loaded)
        return {"number": len(self.loaded) - 1, "error": error}


def serve(backend: str, l2: str) -> None:
    """Answer questions, a line each, until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not look like an answer
    worker = None
    for line in sys.stdin:
        try:
            worker = worker or Worker(backend, l2)
            answer = worker.answer(json.loads(line))
        except (Gap, MemoryError, RuntimeError, ValueError, TypeError, Error) as error:
            answer = {"failed": type(error).__name__, "text": str(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve(*sys.argv[1:])
