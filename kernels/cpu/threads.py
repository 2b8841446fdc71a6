"""Tasks on several threads: of numbers 0 .. n-1 an equal share for each, then what others left.

`run` and `serve` share a few numbers in memory. `run`, of whoever computes, opens a job, does its
share of the tasks and then those that others have not begun, closes the job, and waits for the
threads that are inside. `serve`, of a helping thread, joins when a job is open; after a job it
stays awake for a while, for the next one is usually close, and then returns to sleep. A thread that
wakes too late finds the job closed: the one that computes never waits for a thread that has not
begun, so that a machine with fewer processors than threads, or a busy one, costs little. Of several
that compute at the same time one has the helpers, and the others do all of their tasks themselves.

Shares are parts in a row, the same for each job of as many tasks: what a thread wrote in one job is
in its own cache in the next. Taken in turn by whoever is free, half of it would be in another's.
"""

from collections.abc import Callable
from typing import Any

from gpuconv.kernels.cpu.compiler import I64, I64P, Kernel

# Places in the shared numbers, a cache line apart where several threads write.
EPOCH, OPEN, INSIDE, STOP, JOB, BUSY, SHARES = 0, 8, 16, 24, 32, 40, 48
FUNCTION, BLOCK, TASKS, LIMIT = range(JOB, JOB + 4)
MOST = 1024  # threads
SIZE = SHARES + 8 * MOST
PATIENCE = 2000  # turns of waiting before the processor is offered to others


def _work() -> Any:
    """work(state, thread): the thread's own share of the tasks, then what others have left."""
    from numba import njit

    from gpuconv.kernels.cpu.atomic import call, fetch_add

    def work(state: Any, thread: Any) -> None:
        function, block = state[FUNCTION], state[BLOCK]
        tasks, limit = state[TASKS], state[LIMIT]
        whose = thread
        for _ in range(limit):
            first = tasks * whose // limit
            count = tasks * (whose + 1) // limit - first
            task = fetch_add(state, SHARES + 8 * whose, 1)
            while task < count:
                call(function, first + task, thread, block)
                task = fetch_add(state, SHARES + 8 * whose, 1)
            whose += 1
            if whose == limit:
                whose = 0

    return njit(work)


def _launch() -> Any:
    """launch(state, function, tasks, limit, block): one job."""
    from numba import njit

    from gpuconv.kernels.cpu.atomic import call, fetch_add, give_way, pause, peek, poke

    work = _work()

    def launch(state: Any, function: Any, tasks: Any, limit: Any, block: Any) -> None:
        # Taken here and not in Python, where an interrupt could come between taking and releasing.
        mine = False
        if limit > 1 and tasks > 1:
            mine = fetch_add(state, BUSY, 1) == 0
            if not mine:
                fetch_add(state, BUSY, -1)
        if not mine:
            for task in range(tasks):
                call(function, task, 0, block)
            return
        state[FUNCTION] = function
        state[BLOCK] = block
        state[TASKS] = tasks
        state[LIMIT] = limit
        for thread in range(limit):
            poke(state, SHARES + 8 * thread, 0)
        poke(state, OPEN, 1)
        fetch_add(state, EPOCH, 1)
        work(state, 0)
        poke(state, OPEN, 0)
        turns = 0
        while peek(state, INSIDE) > 0:
            pause()
            turns += 1
            if turns > PATIENCE:
                give_way()
        fetch_add(state, BUSY, -1)

    return njit(launch)


def _run() -> Callable[..., None]:
    launch = _launch()

    def run(state: I64P, function: I64, tasks: I64, limit: I64, block: I64) -> None:
        launch(state, function, tasks, limit, block)

    return run


def _replay() -> Callable[..., None]:
    launch = _launch()

    def replay(state: I64P, jobs: I64P, count: I64, most: I64) -> None:
        """`count` jobs in a row, of function, tasks, limit, block each; on at most `most`."""
        for i in range(count):
            limit = min(min(jobs[4 * i + 2], jobs[4 * i + 1]), most)
            launch(state, jobs[4 * i], jobs[4 * i + 1], limit, jobs[4 * i + 3])

    return replay


def _serve() -> Callable[..., None]:
    from gpuconv.kernels.cpu.atomic import fetch_add, give_way, pause, peek

    work = _work()

    def serve(state: I64P, thread: I64, awake: I64, ready: I64) -> None:
        """Return after `awake` turns without a job, and `ready` more that let others go first."""
        seen = -1
        idle = 0
        while idle < awake + ready and peek(state, STOP) == 0:
            epoch = peek(state, EPOCH)
            if epoch == seen:
                pause()
                idle += 1
                if idle > awake:
                    give_way()
                continue
            seen = epoch
            idle = 0
            fetch_add(state, INSIDE, 1)
            if peek(state, OPEN) == 1 and thread < state[LIMIT]:
                work(state, thread)
            fetch_add(state, INSIDE, -1)

    return serve


RUN = Kernel("threads_run", _run, (), bare=True)
REPLAY = Kernel("threads_replay", _replay, (), bare=True)
SERVE = Kernel("threads_serve", _serve, (), bare=True)
