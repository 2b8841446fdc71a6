"""What every command of the program has."""

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

import typer

from gpuconv.errors import Error


def one_line_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Errors that the user can mend become one line and status 1; a bug keeps its traceback."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except BrokenPipeError:
            # The reader of our output is gone (`gpuconv ... | head`): nothing left to say.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except MemoryError as error:
            print(f"gpuconv: error: not enough memory: {error}", file=sys.stderr)
            raise typer.Exit(1) from None
        except (Error, OSError) as error:
            print(f"gpuconv: error: {error}", file=sys.stderr)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            print("gpuconv: interrupted", file=sys.stderr)
            raise typer.Exit(130) from None

    return wrapped
