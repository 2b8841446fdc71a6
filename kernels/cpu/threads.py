"""Tasks on several threads: numbers 0 .. n-1 of a kernel, each taken by whichever thread is free.

`run` and `serve` share a few numbers in memory. `run`, of whoever computes, opens a job, takes
tasks itself until there are none, closes it, and waits for the threads that are inside. `serve`, of
a helping thread, joins when a job is open; after a job it stays awake for a while, for the next one
is usually close, and then returns to sleep. A thread that wakes too late finds the job closed: the
one that computes never waits for a thread that has not begun, so that a machine with fewer
processors than threads, or a busy one, costs little.
"""

from collections.abc import Callable

from gpuconv.kernels.cpu.compiler import I64, I64P, Kernel

# Places in the shared numbers, a cache line apart where several threads write.
EPOCH, OPEN, NEXT, INSIDE, JOB = 0, 8, 16, 24, 32
FUNCTION, BLOCK, TASKS, LIMIT, STOP = JOB, JOB + 1, JOB + 2, JOB + 3, 40
SIZE = 48
PATIENCE = 2000  # turns of waiting before the processor is offered to others


def kernels() -> list[Kernel]:
    """All of this file."""
    return [RUN, SERVE]


def _run() -> Callable[..., None]:
    from gpuconv.kernels.cpu.vector import call, fetch_add, give_way, pause, peek, poke

    def run(state: I64P, function: I64, tasks: I64, limit: I64, block: I64) -> None:
        if limit < 2 or tasks < 2:
            for task in range(tasks):
                call(function, task, 0, block)
            return
        state[FUNCTION] = function
        state[BLOCK] = block
        state[TASKS] = tasks
        state[LIMIT] = limit
        poke(state, NEXT, 0)
        poke(state, OPEN, 1)
        fetch_add(state, EPOCH, 1)
        task = fetch_add(state, NEXT, 1)
        while task < tasks:
            call(function, task, 0, block)
            task = fetch_add(state, NEXT, 1)
        poke(state, OPEN, 0)
        turns = 0
        while peek(state, INSIDE) > 0:
            pause()
            turns += 1
            if turns > PATIENCE:
                give_way()

    return run


def _serve() -> Callable[..., None]:
    from gpuconv.kernels.cpu.vector import call, fetch_add, pause, peek

    def serve(state: I64P, thread: I64, turns: I64) -> None:
        seen = -1
        idle = 0
        while idle < turns and peek(state, STOP) == 0:
            epoch = peek(state, EPOCH)
            if epoch == seen:
                pause()
                idle += 1
                continue
            seen = epoch
            idle = 0
            fetch_add(state, INSIDE, 1)
            if peek(state, OPEN) == 1 and thread < state[LIMIT]:
                function, block, tasks = state[FUNCTION], state[BLOCK], state[TASKS]
                task = fetch_add(state, NEXT, 1)
                while task < tasks:
                    call(function, task, thread, block)
                    task = fetch_add(state, NEXT, 1)
            fetch_add(state, INSIDE, -1)

    return serve


RUN = Kernel("threads_run", _run, (), bare=True)
SERVE = Kernel("threads_serve", _serve, (), bare=True)
