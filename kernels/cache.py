"""Compiled kernels on disk: where they are kept, and what their keys are made of.

Shared by the compilers of `gpuconv.kernels.cpu` and `gpuconv.kernels.cuda`.
"""

import hashlib
import os
import re
import tempfile
from functools import cache
from pathlib import Path


def cache_folder() -> Path:
    """$GPUCONV_CACHE, else gpuconv in the cache folder of the user; a temporary one of nobody."""
    if given := os.environ.get("GPUCONV_CACHE"):
        return Path(given).expanduser()
    given = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if not os.path.isabs(given):  # nobody's home
        given = os.path.join(tempfile.gettempdir(), f"gpuconv-{os.getuid()}")
    return Path(given) / "gpuconv"


def unwritable(folder: Path) -> str:
    """Why nothing can be written to a folder, which is made if need be; "" if something can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        if folder.is_file():
            return f"{folder} is a file"
        return f"{folder} cannot be written to ({error.strerror})"


def write_whole(path: Path, data: bytes) -> None:
    """The file appears complete, or not at all; its folder is made. OSError if that fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)  # others may read it, as they may a file made by open
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def read_own(path: Path) -> bytes:
    """The file, which will be run: PermissionError unless only this user, or root, can write it.

    A folder that the user names in $GPUCONV_CACHE is trusted as it is.
    """
    with open(path, "rb") as file:
        found = os.fstat(file.fileno())
        trusted = os.name != "posix" or os.environ.get("GPUCONV_CACHE")
        if not trusted and (found.st_uid not in (os.getuid(), 0) or found.st_mode & 0o022):
            raise PermissionError(f"{path} could have been written by another user")
        return file.read()


@cache
def sources(package: str, folder: Path, *paths: Path) -> tuple[Path, ...]:
    """The files, and those of `package`, which lies in `folder`, that they import, and so on."""
    found: set[Path] = set()
    todo, name = list(paths), re.escape(package)
    while todo:
        file = todo.pop()
        if file not in found:
            found.add(file)
            text = file.read_text()
            names = re.findall(rf"{name}\.(\w+)", text)
            for several in re.findall(rf"from {name} import ([\w, ]+)", text):
                names += [one.strip() for one in several.split(",")]
            todo += [folder / f"{one}.py" for one in names if (folder / f"{one}.py").exists()]
    return tuple(sorted(found))


@cache
def digest(path: Path) -> str:
    """A hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
