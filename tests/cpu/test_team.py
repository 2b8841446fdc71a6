"""Threads: every task once, whatever else happens; settings; forks; the end of the process."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gpuconv as gc
from gpuconv.cpu import team
from gpuconv.cpu.device import DEVICE
from gpuconv.cpu.team import get_num_threads, set_num_threads
from gpuconv.errors import ArgumentError
from gpuconv.kernels.cpu import compiler
from gpuconv.kernels.cpu.compiler import I64, I64P, Kernel


def _count() -> Callable[..., None]:
    from gpuconv.kernels.cpu.atomic import fetch_add

    def count(task: I64, thread: I64, seen: I64P, spent: I64P, turns: I64) -> None:
        total = 0
        for i in range(turns):
            total += (task ^ i) & 7
        spent[task] = total
        fetch_add(seen, task, 1)

    return count


COUNT = Kernel("test_count", _count)


def work(tasks: int, turns: int = 1000) -> None:
    """Every task exactly once."""
    seen, spent = np.zeros(tasks, np.int64), np.empty(tasks, np.int64)
    DEVICE.launch(COUNT, tasks, seen, spent, turns)
    assert (seen == 1).all()
    expected = ((np.arange(min(tasks, 8))[:, None] ^ np.arange(turns)) & 7).sum(axis=1)
    np.testing.assert_array_equal(spent[: len(expected)], expected)


@pytest.mark.parametrize("threads", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("tasks", [1, 2, 3, 7, 100])
def test_every_task_runs_once(threads: int, tasks: int) -> None:
    set_num_threads(threads)
    for _ in range(50):
        work(tasks, 100)


def test_many_short_jobs_in_a_row() -> None:
    set_num_threads(4)
    for tasks in range(2, 500):
        work(tasks % 9 + 1, 1)


def test_several_callers_at_once() -> None:
    set_num_threads(3)
    failed = []

    def call() -> None:
        try:
            for _ in range(200):
                work(5, 50)
        except AssertionError as error:
            failed.append(error)

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not failed


def test_the_number_is_checked() -> None:
    set_num_threads(2)
    assert get_num_threads() == gc.get_num_threads() == 2
    for wrong in (0, -1, 1.5, "2", True, 5000):
        with pytest.raises(ArgumentError, match="must be an integer from 1 to 1024"):
            gc.set_num_threads(wrong)  # type: ignore[arg-type]
    assert get_num_threads() == 2


def run_python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


CONV = (
    "import gpuconv as gc, numpy as np\n"
    "x, w = np.ones((8, 16, 32, 32), np.float32), np.ones((16, 16, 3, 3), np.float32)\n"
    "def conv(): return float(gc.conv2d(x, w).sum())\n"
)


def test_the_default_is_what_openmp_programs_take() -> None:
    code = "import gpuconv; print(gpuconv.get_num_threads())"
    assert run_python(code, OMP_NUM_THREADS="3").stdout.strip() == "3"
    assert run_python(code, OMP_NUM_THREADS="0").stdout.strip() != "0"
    assert run_python(code, OMP_NUM_THREADS="5000").stdout.strip() == "1024"
    assert int(run_python(code, OMP_NUM_THREADS="²").stdout) > 0


def test_an_interrupt_leaves_the_team_as_it_was() -> None:
    code = CONV + (
        "import signal\n"
        "gc.set_num_threads(2)\n"
        "before = conv()\n"
        "def stop(*_): raise KeyboardInterrupt\n"
        "signal.signal(signal.SIGALRM, stop)\n"
        "count = 0\n"
        "while count < 60:\n"
        "    try:\n"
        "        signal.setitimer(signal.ITIMER_REAL, 0.003)  # once, and inside the try\n"
        "        while True: conv()\n"
        "    except KeyboardInterrupt: count += 1\n"
        "from gpuconv.cpu.team import team\n"
        "from gpuconv.kernels.cpu import threads\n"
        "print(conv() == before, team().state[threads.BUSY], team().state[threads.OPEN])\n"
    )
    done = run_python(code)
    assert done.stdout.split() == ["True", "0", "0"], done.stderr


def test_no_more_threads_means_fewer(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    lonely = team.Team()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    seen, spent = np.zeros(9, np.int64), np.empty(9, np.int64)
    block = compiler.packer(COUNT)(id(seen), id(spent), 10)
    lonely.run(compiler.function(COUNT), 9, block, 4)
    assert (seen == 1).all()
    assert "CPU kernels run on 1 threads: can't start new thread" in caplog.text


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_computes_and_so_does_its_parent() -> None:
    code = CONV + (
        "import os, warnings\n"
        "warnings.simplefilter('ignore')  # newer Pythons warn of forks beside threads\n"
        "gc.set_num_threads(2)\n"
        "before = conv()\n"
        "child = os.fork()\n"
        "if not child: os._exit(0 if conv() == before else 1)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), conv() == before)\n"
    )
    done = run_python(code)
    assert done.stdout.split() == ["0", "True"], done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_fork_waits_for_who_compiles() -> None:
    """Numba's locks, and those of imports, would stay held in the child."""
    code = (
        "import os, signal, threading, time, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "from gpuconv.kernels.cpu import compiler\n"
        "numbas = threading.Lock()\n"
        "def compile(kernel, isa):\n"
        "    with numbas: time.sleep(0.3)\n"
        "    return compiler.Compiled(1, {})\n"
        "compiler._compile = compile\n"
        "compiler.host()\n"
        "first, second = (compiler.Kernel(name, print) for name in 'ab')\n"
        "threading.Thread(target=compiler.function, args=(first,)).start()\n"
        "time.sleep(0.1)\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    signal.alarm(10)\n"
        "    compiler.function(second); os._exit(0)\n"
        "compiler.function(second)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    done = run_python(code)
    assert done.stdout.strip() == "0", done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_there_is_one_team_however_many_ask_first() -> None:
    """And a child that is forked meanwhile makes its own."""
    code = (
        "import os, signal, threading, time, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "from gpuconv.cpu import team\n"
        "class Slow:\n"
        "    def __init__(self): time.sleep(0.3)\n"
        "    def stop(self): pass\n"
        "team.Team = Slow\n"
        "found = []\n"
        "def ask(): found.append(team.team())\n"
        "askers = [threading.Thread(target=ask) for _ in range(8)]\n"
        "for asker in askers: asker.start()\n"
        "time.sleep(0.1)\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    signal.alarm(10)\n"
        "    team.team(); os._exit(0)\n"
        "for asker in askers: asker.join()\n"
        "print(len(found), len(set(found)))\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    done = run_python(code)
    assert done.stdout.split() == ["8", "1", "0"], done.stderr


def test_the_process_ends_quietly_with_helpers_awake() -> None:
    run_python(CONV + "conv()")  # compiled now, which would be announced
    done = run_python(CONV + "gc.set_num_threads(4); print(conv())")
    assert (done.returncode, done.stderr) == (0, "")


def test_nothing_of_the_process_is_changed() -> None:
    """No variable is set, no other library is loaded, and no thread runs before the first job."""
    code = (
        "import os, sys, threading\n"
        "before = dict(os.environ)\n"
        "import gpuconv\n"
        "gpuconv.set_num_threads(2)\n"
        "print(threading.active_count(), 'numba' in sys.modules, 'llvmlite' in sys.modules)\n"
        + CONV
        + "conv()\n"
        "print(dict(os.environ) == before)\n"
    )
    done = run_python(code)
    assert done.stdout.split() == ["1", "False", "False", "True"], done.stderr
