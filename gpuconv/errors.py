"""The errors gpuconv raises on purpose: one line each, with the values, the layer and a fix.

Every one derives from `Error` and from the built-in exception a caller would expect. A `Module`
that an error passes through adds where it happened, so a message reads "features.3 (Conv2d):
conv2d: ...".
"""


class Error(Exception):
    """Base of all errors a user can cause and mend. `where` names the layer, once it is known."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = " ".join(message.split())
        self.where = ""
        self.module: object = None

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class ArgumentError(Error, ValueError):
    """A shape or a value that an operation cannot take."""


class DtypeError(Error, TypeError):
    """An array of a type that an operation cannot take, or two types mixed."""


class DeviceError(Error, RuntimeError):
    """An unknown device or backend, one that is not usable here, or arrays on two devices."""


class GraphError(Error, RuntimeError):
    """A misuse of automatic differentiation, such as a second `backward` over a freed graph."""


class FileError(Error, ValueError):
    """A file that is missing, truncated, corrupted, or of something else; names the file."""


class TrainingError(Error, RuntimeError):
    """Training cannot go on, for instance because the loss is not a number."""
