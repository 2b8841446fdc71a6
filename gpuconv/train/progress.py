"""How a training run shows itself on standard error: a bar, a line an epoch, or nothing."""

import sys
from types import TracebackType
from typing import Any, Self

from gpuconv.errors import ArgumentError


class Progress:
    """`True` shows a bar, `False` nothing, "auto" a bar on a terminal and plain lines elsewhere.

    All of it goes to standard error, one line an epoch, flushed. To be used with `with`.
    """

    def __init__(self, show: bool | str, epochs: int) -> None:
        self.show = check_show(show)
        self.epochs = epochs
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        if self.show is True or (self.show == "auto" and sys.stderr.isatty()):
            self._bar = _rich_bar(force=self.show is True)
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def epoch_begin(self, epoch: int, done: int, batches: int | None) -> None:
        """Epoch `epoch` (from 1) of `batches` (None: not known) goes on after `done` of them."""
        if self._bar is not None:
            text = f"epoch {epoch}/{self.epochs}"
            self._task = self._bar.add_task(text, total=batches, completed=done, figures="")

    def batch_end(self, loss: float) -> None:
        """One more batch; `loss` is the mean of the epoch so far."""
        if self._bar is not None:
            self._bar.update(self._task, advance=1, figures=f"loss {loss:.4f}")

    def epoch_end(self, row: dict[str, Any]) -> None:
        """Show an epoch's row of the history."""
        if self._bar is not None:
            self._bar.remove_task(self._task)
            self._bar.console.print(self.line(row), markup=False, highlight=False, soft_wrap=True)
        elif self.show is not False:
            print(self.line(row), file=sys.stderr, flush=True)

    def line(self, row: dict[str, Any]) -> str:
        """The one line of an epoch."""
        figures = [
            f"{name} {row[name]:.4f}"
            for name in ("train_loss", "train_accuracy", "valid_loss", "valid_accuracy")
            if row[name] is not None
        ]
        tail = f"lr {row['lr']:.4g}, {row['seconds']:.1f} s"
        return f"epoch {row['epoch']}/{self.epochs}: {', '.join(figures)}, {tail}"


def check_show(show: Any) -> bool | str:
    """`show`; ArgumentError if it is not "auto", True or False."""
    if show is not True and show is not False and show != "auto":
        raise ArgumentError(f"progress={show!r} is unknown; use 'auto', True or False")
    return show


def _rich_bar(force: bool) -> Any:
    from rich import progress
    from rich.console import Console

    # Standard output stays the program's own: rich would otherwise catch it and send it here.
    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[figures]}"),
        progress.TimeRemainingColumn(),
        console=Console(stderr=True, force_terminal=True if force else None),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
