"""Races over all schedules, by sentryward, which reads PTX and tries to prove that there are none.

The emulator sees the one order in which it ran the threads, and infers races from it by barriers.
sentryward (Apache-2.0) follows every thread symbolically and asks a solver whether two accesses to
the same bytes, one of them a write, are always ordered. It knows sm_100's PTX, whose pointers are
marked `.ptr`; so the same Python is compiled for it. It is given the numbers of a launch; pointers
stay symbols, each to memory of its own.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpuconv.cuda.device import EmulatedDevice, Grid, Run
from gpuconv.kernels.cuda.compiler import Kernel, compile

ARCH = "sm_100"


@dataclass(frozen=True)
class Launch:
    """A kernel with its grid and all its numbers."""

    kernel: Kernel
    grid: Grid
    numbers: dict[str, float]

    @property
    def threads(self) -> int:
        """How many threads are launched."""
        return int(np.prod(self.grid)) * self.kernel.threads


class Recorder(EmulatedDevice):
    """Notes what would be launched, and launches nothing: results stay NaN."""

    def __init__(self, arch: str = ARCH) -> None:
        super().__init__(arch)
        self.launches: list[Launch] = []

    def prepare(
        self, kernel: Kernel, grid: Grid, varying: tuple[str, ...] = (), **numbers: float
    ) -> Run:
        def run(*arrays: Any, **given: float) -> None:
            self.launches.append(Launch(kernel, grid, {**numbers, **given}))

        return run


def verify(launch: Launch, folder: Path, ptx: str = "", timeout: float = 120) -> dict[str, Any]:
    """sentryward's answer: "result" is race_free, potential_race, unsupported, ...

    `ptx` stands for the kernel's own, if given. The files go to `folder`.
    """
    import sentryward

    kernel = launch.kernel
    ptx = spelt(ptx or compile(kernel, ARCH).ptx)
    numbers = [
        {
            "parameter": f"{kernel.name}_param_{i}",
            "type": kind.replace("int", "u").replace("float", "f"),
            "value": float(value) if kind.startswith("float") else int(value) % 2**32,
        }
        for i, (name, kind) in enumerate(kernel.parameters.items())
        if not kind.endswith("*")
        for value in [launch.numbers[name]]
    ]
    given = {
        "schema": "spverify.kernel-input/v1",
        "launch": {
            "grid_dim": list(launch.grid),
            "block_dim": [kernel.threads, 1, 1],
            "cluster_dim": [1, 1, 1],
            "dynamic_shared_bytes": kernel.shared,
        },
        "arguments": numbers,
    }
    code, config = folder / "kernel.ptx", folder / "input.json"
    code.write_text(ptx)
    config.write_text(json.dumps(given))
    answer: dict[str, Any] = sentryward.verify(code, input=config, timeout_seconds=timeout)
    return answer


def spelt(ptx: str) -> str:
    """The same code for arrays at multiples of 16 bytes, without what sentryward does not know.

    It does not compute `abs` in an address or a branch, nor the low bits of a pointer.
    """
    absolute = r"neg.s32 %negated, \2; max.s32 \1, \2, %negated;"
    ptx = re.sub(r"abs\.s32\s+(%r\d+), (%r\d+);", absolute, ptx)
    ptx = re.sub(r"and\.b64\s+(%rd\d+), %rd\d+, 15;", r"mov.b64 \1, 0;", ptx)
    return ptx.replace("{\n", "{\n.reg .b32 %negated;\n", 1)


def reason(answer: dict[str, Any]) -> str:
    """Why it is not "race_free": the codes of the diagnostics."""
    return " ".join(sorted({item["code"] for item in answer.get("diagnostics", [])}))
