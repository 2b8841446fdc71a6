"""What a run shows while it runs: on a terminal a bar, elsewhere a line a row."""

import re
import shutil
import sys
import textwrap
from types import TracebackType
from typing import Any, Self, TextIO


def fold(text: str, stream: TextIO) -> str:
    """The text in lines that fit the terminal; as it is where `stream` is none."""
    if not stream.isatty():
        return text
    width = shutil.get_terminal_size().columns
    text = re.sub(r"(?<=\S) (?=\d)", "\N{NO-BREAK SPACE}", text)  # a figure stays with its name
    lines = (
        textwrap.fill(
            line, width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
        )
        for line in text.split("\n")
    )
    return "\n".join(lines).replace("\N{NO-BREAK SPACE}", " ")


def complain(text: str) -> None:
    """An error, on standard error."""
    print(fold(text, sys.stderr), file=sys.stderr)


def duration(seconds: float) -> str:
    """Roughly, in words."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Display:
    """Shows `total` rows on standard output. To be used with `with`."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._bar: Any = None
        self._row = ""

    def __enter__(self) -> Self:
        if sys.stdout.isatty():
            self._bar = _rich_bar()
            self._task = self._bar.add_task("", total=self.total)
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

    def begin(self, row: str) -> None:
        """This row comes now."""
        self._row = row
        self.tell("is checked")

    def tell(self, text: str) -> None:
        """What the row is at; only the bar has room for it."""
        if self._bar is not None:
            self._bar.update(self._task, description=f"{self._row}: {text}", refresh=True)

    def end(self, line: str) -> None:
        """A row is there: its line, or lines."""
        if self._bar is None:
            print(line, flush=True)
            return
        text = fold(line, sys.stdout)
        self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        self._bar.update(self._task, advance=1, refresh=True)


def _rich_bar() -> Any:
    from rich import progress
    from rich.console import Console
    from rich.table import Column

    return progress.Progress(
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn(
            "{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)
        ),
        console=Console(),
        transient=True,
        expand=True,
        # A thread that draws would disturb what is measured; it is drawn between blocks.
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
    )
