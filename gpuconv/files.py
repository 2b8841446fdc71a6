"""Files that appear whole or not at all, and errors that name the file."""

import errno
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from gpuconv.errors import FileError

StrPath = str | os.PathLike[str]


def write_atomically(path: StrPath, data: bytes) -> None:
    """Write `data` so that `path` holds the old content or the new, even after a crash.

    The data goes to a temporary name in the same folder, to the disk, and then takes the place of
    the old file. FileError if that fails (a full disk, no such folder); the old file is then as it
    was.
    """
    target = Path(os.path.realpath(path))  # a link stays a link
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
        fix = "make the folder first" if not target.parent.is_dir() else "choose another folder"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            fix = "free some space"
        raise FileError(
            f"{path}: cannot be written ({error.strerror or error}); {fix}; what was there before "
            f"is untouched"
        ) from error
    sync_folder(target.parent)


def read_bytes(path: StrPath, size: int = -1) -> bytes:
    """A regular file, or its first `size` bytes; FileError, naming it, if that cannot be."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # asked first: opening a pipe would wait
            raise FileError(f"{path}: not a regular file; check the path")
        with open(path, "rb") as file:
            return file.read(size)
    except OSError as error:
        raise FileError(
            f"{path}: cannot be read ({error.strerror or error}); check the path"
        ) from error


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
