"""What a training run measured: one row an epoch."""

import csv
import io
import math
from typing import Any

from gpuconv.errors import ArgumentError
from gpuconv.files import StrPath, write_atomically

COLUMNS = (
    "epoch",
    "train_loss",
    "train_accuracy",
    "valid_loss",
    "valid_accuracy",
    "lr",
    "seconds",
)
MODES = ("min", "max")


class History:
    """`rows`, one dict an epoch with the keys `COLUMNS`; None where there is no such figure.

    Epochs count from 1. Losses and accuracies are means over the images of an epoch, those of
    training taken while the weights changed; `lr` is the rate of the epoch's last step. `stopped`
    says why training ended before its last epoch; it is empty if it did not.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.stopped = ""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, column: str) -> list[Any]:
        """One figure over the epochs, such as `history["valid_loss"]`."""
        check_column("History", column)
        return [row[column] for row in self.rows]

    def best(self, monitor: str = "valid_loss", mode: str | None = None) -> dict[str, Any]:
        """The row with the best `monitor`; ArgumentError if no epoch has that figure.

        `mode` "min" or "max" says what is best; None: "max" for accuracies, "min" for the rest.
        """
        check_column("History.best", monitor)
        better = mode_of("History.best", monitor, mode)
        rows = [row for row in self.rows if is_number(row[monitor])]
        if not rows:
            raise ArgumentError(
                f"History.best: none of {len(self.rows)} epochs has a {monitor}; "
                f"train with a valid_loader, or ask for train_loss"
            )
        pick = min if better == "min" else max
        return pick(rows, key=lambda row: row[monitor])

    def to_csv(self, path: StrPath) -> None:
        """Write all rows, with a line of names above, so that the file is never half there."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in self.rows:
            writer.writerow(["" if row[c] is None else row[c] for c in COLUMNS])
        write_atomically(path, text.getvalue().encode())


def mode_of(where: str, monitor: str, mode: str | None) -> str:
    """`mode`, or what suits the monitored figure; ArgumentError if it is neither min nor max."""
    if mode is None:
        return "max" if monitor.endswith("accuracy") else "min"
    if mode not in MODES:
        raise ArgumentError(f"{where}: mode={mode!r} is unknown; use 'min', 'max' or None")
    return mode


def check_column(where: str, column: str) -> None:
    if column not in COLUMNS:
        raise ArgumentError(f"{where}: {column!r} is no figure; use one of {', '.join(COLUMNS)}")


def is_number(value: float | None) -> bool:
    """False for None and NaN, which are better than nothing."""
    return value is not None and not math.isnan(value)
