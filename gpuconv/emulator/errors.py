"""Errors of the emulator: PTX it cannot run, and kernels that fail its checks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuconv.errors import Error

if TYPE_CHECKING:
    from gpuconv.emulator.findings import Report


class EmulatorError(Error, RuntimeError):
    """Base of the errors that the emulator raises on purpose."""


class PtxError(EmulatorError):
    """Malformed PTX, or a launch that cannot be carried out."""


class Unsupported(PtxError):
    """An instruction (or a form of one) that the emulator does not implement was executed."""


class CheckFailed(EmulatorError):
    """A strict launch ended with error findings. `report` holds them, and everything else."""

    def __init__(self, report: Report) -> None:
        found = "; ".join(str(f) for f in report.errors)
        super().__init__(f"emulator: {report.kernel}: {found}")
        self.report = report
