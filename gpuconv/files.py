"""Files that appear whole or not at all, and errors that name the file."""

import errno
import os
import re
import secrets
import stat
from contextlib import suppress
from io import BufferedReader
from pathlib import Path

from gpuconv.errors import FileError

StrPath = str | os.PathLike[str]

_PARTIAL = re.compile(r"\..+\.[0-9a-f]{8}\.partial", re.DOTALL)


def write_atomically(path: StrPath, data: bytes) -> None:
    """Write `data` so that `path` holds the old content or the new, even after a crash.

    The data goes to a temporary name in the same folder, to the disk, and then takes the place of
    the old file. FileError if that fails (a full disk, no such folder); the old file is then as it
    was.
    """
    try:
        target = Path(os.path.realpath(path))  # a link stays a link
    except ValueError as error:
        raise FileError(f"{path!r}: cannot be written ({error}); check the path") from error
    if target.exists() and not target.is_file():
        raise FileError(f"{path}: not a regular file, and would be replaced by one; check the path")
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        try:
            with open(partial, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise FileError(
            f"{path}: cannot be written ({error.strerror or error}); {fix(error)}; what was there "
            f"before is untouched"
        ) from error
    sync_folder(target.parent)


def fix(error: OSError) -> str:
    """What to do about an error of writing."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "free some space"
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return "choose a folder you may write to"
    return "make the folder first" if error.errno == errno.ENOENT else "choose another folder"


def is_partial(name: str) -> bool:
    """Whether a file of this name is what `write_atomically` leaves when it is killed."""
    return _PARTIAL.fullmatch(name) is not None


def sweep_partials(folder: StrPath) -> None:
    """Remove what `write_atomically` leaves in `folder` when it is killed.

    Nothing else may be writing there. FileError if the folder cannot be listed or cleaned; one that
    does not exist is clean.
    """
    try:
        for path in Path(folder).iterdir():
            if is_partial(path.name) and stat.S_ISREG(path.lstat().st_mode):
                path.unlink(missing_ok=True)
    except FileNotFoundError:
        return
    except OSError as error:
        raise FileError(
            f"{folder}: cannot be cleaned ({error.strerror or error}); {fix(error)}"
        ) from error


def read_bytes(path: StrPath, size: int = -1) -> bytes:
    """A regular file, or its first `size` bytes; FileError, naming it, if that cannot be."""
    with open_regular(path) as file:
        try:
            return file.read(size)
        except OSError as error:
            raise _unreadable(path, error) from error


def open_regular(path: StrPath) -> BufferedReader:
    """A regular file, opened to be read; FileError, naming it, if that cannot be."""
    try:
        if stat.S_ISREG(os.stat(path).st_mode):  # asked first: opening a pipe would wait
            return open(path, "rb")
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL in it
        raise _unreadable(path, error) from error
    raise FileError(f"{path}: not a regular file; check the path")


def _unreadable(path: StrPath, error: Exception) -> FileError:
    reason = getattr(error, "strerror", None) or error
    name = path if isinstance(error, OSError) else repr(path)
    return FileError(f"{name}: cannot be read ({reason}); check the path")


def sync_folder(folder: Path) -> None:
    """Bring the folder's entries to the disk too, where the system can do that."""
    if os.name != "posix":
        return
    # Some network file systems refuse; the file is whole either way.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
