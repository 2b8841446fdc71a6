"""The threads that compute: the one that asks, and helpers that sleep when there is nothing to do.

Helpers are threads of Python's that spend their time in compiled code, without the interpreter's
lock. They begin with the first job that is worth several threads, and end with the process. After
each job a helper stays awake: for some 50 microseconds without a pause, then for about a
millisecond in which it lets any other thread have its processor, then it sleeps. (One that slept is
woken, more often than not, on the processor of the one who computes, and both wait for each other.)
They are gpuconv's own: no setting of the process changes, other libraries' threads find processors,
and a fork is harmless: the child begins with none.
"""

import atexit
import ctypes
import logging
import os
import threading
from functools import cache

import numpy as np

from gpuconv.errors import ArgumentError
from gpuconv.kernels.cpu import compiler, threads

AWAKE, READY = 2000, 2000  # turns
_FOR_RUN = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 4, ctypes.c_char_p
)
_FOR_REPLAY = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 4
)
_FOR_SERVE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 4)


class Team:
    """The caller and its helpers; `run` may be called from any number of threads at once."""

    def __init__(self) -> None:
        self.state = np.zeros(threads.SIZE, dtype=np.int64)
        self.address = self.state.ctypes.data
        self.call = _FOR_RUN(compiler.function(threads.RUN))
        self.call_all = _FOR_REPLAY(compiler.function(threads.REPLAY))
        self.spare = ctypes.addressof(_SPARE)
        self.growing = threading.Lock()
        self.helpers: list[Helper] = []

    def run(self, function: int, tasks: int, block: bytes, limit: int) -> None:
        """Call a compiled kernel for every task, on at most `limit` threads.

        Where another thread has the helpers, the caller computes alone: with the same result.
        """
        count = min(tasks, limit)
        if count > 1:
            count = self._awake(count)
        self.call(self.spare, self.spare, self.address, function, tasks, count, block)

    def replay(self, jobs: np.ndarray, limit: int) -> None:
        """Jobs (n, 4) in a row: function, tasks, threads, address of the block of each."""
        count = self._awake(limit) if limit > 1 else 1
        self.call_all(self.spare, self.spare, self.address, jobs.ctypes.data, len(jobs), count)

    def _awake(self, count: int) -> int:
        """How many threads there are, of `count` that are wanted; none of them sleeps."""
        if len(self.helpers) < count - 1:
            count = self._grown(count)
        for helper in self.helpers[: count - 1]:
            if helper.asleep:
                helper.wake()
        return count

    def _grown(self, count: int) -> int:
        """How many threads there are, of `count` that are wanted."""
        with self.growing:
            try:
                while len(self.helpers) < count - 1:
                    self.helpers.append(Helper(self, len(self.helpers) + 1))
            except RuntimeError as error:  # the system, or an ending interpreter, gives no more
                _few(len(self.helpers) + 1, str(error))
            return min(count, len(self.helpers) + 1)

    def stop(self) -> None:
        """End the helpers."""
        self.state[threads.STOP] = 1
        for helper in self.helpers:
            helper.stopped = True
            helper.gate.release()
        for helper in self.helpers:
            helper.thread.join(1.0)


class Helper:
    """One thread that helps a team."""

    def __init__(self, team: Team, number: int) -> None:
        self.serve = _FOR_SERVE(compiler.function(threads.SERVE))
        self.address, self.number, self.spare = team.address, number, team.spare
        self.state = team.state  # kept as long as the thread runs
        self.asleep, self.stopped = True, False
        self.gate = threading.Semaphore(0)
        name = f"gpuconv-{number}"
        self.thread = threading.Thread(target=self._live, name=name, daemon=True)
        self.thread.start()

    def wake(self) -> None:
        self.asleep = False
        self.gate.release()

    def _live(self) -> None:
        while True:
            self.gate.acquire()
            while not self.stopped:
                self.serve(self.spare, self.spare, self.address, self.number, AWAKE, READY)
                self.asleep = True
                # Who opened a job just before that line has not called.
                if not self.state[threads.OPEN]:
                    break
            if self.stopped:
                return


_SPARE = (ctypes.c_int64 * 8)()
_count: int | None = None
_team: Team | None = None
_making = threading.Lock()
_log = logging.getLogger("gpuconv")


def get_num_threads() -> int:
    """How many threads compute on a CPU."""
    return _count or _default()


def set_num_threads(count: int) -> None:
    """Compute on a CPU with `count` threads; the results are the same bits for every count.

    The default is $OMP_NUM_THREADS, or the processors that this process may use.
    """
    global _count
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= threads.MOST:
        raise ArgumentError(
            f"set_num_threads: count={count!r} must be an integer from 1 to {threads.MOST}"
        )
    _count = count


@cache
def team() -> Team:
    """The process's team: the same one for all threads that ask for it first."""
    global _team
    with _making:
        if _team is None:
            _team = Team()
        return _team


@cache
def _default() -> int:
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if given.isascii() and given.isdigit() and int(given):
        return min(int(given), threads.MOST)
    if hasattr(os, "sched_getaffinity"):
        return min(len(os.sched_getaffinity(0)), threads.MOST)
    return min(os.cpu_count() or 1, threads.MOST)


@cache
def _few(count: int, why: str) -> None:
    """Say once that there are fewer threads than were asked for."""
    _log.warning("CPU kernels run on %d threads: %s", count, why)


@atexit.register
def _end() -> None:
    if _team is not None:
        _team.stop()


def _forked() -> None:
    """In a child: its helpers, and whoever was making a team, are in the parent."""
    global _team, _making
    _team, _making = None, threading.Lock()
    team.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
