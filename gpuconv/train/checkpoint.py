"""Checkpoints: folders that hold all of a training run, and are whole whenever it is killed.

A checkpoint `last/` holds `model.safetensors`, `optimizer.safetensors` and, if a callback keeps
arrays, `callbacks.safetensors`; `state.json` has everything else, the sizes and SHA-256 of those
files, and a SHA-256 of its own content. A new one is written as `last.new/`, brought to the disk,
and takes the place of `last/`. That one is called `last.old/` for a moment; a reader that finds no
`last/` takes it.
"""

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from gpuconv import weights
from gpuconv.backends import is_array
from gpuconv.errors import ArgumentError, FileError
from gpuconv.files import StrPath, fix, read_bytes, sync_folder, write_atomically

FORMAT = 2
STATE = "state.json"
PARTS = ("model", "optimizer", "callbacks")  # of a state: those whose arrays get a file
TRIES = 10  # to read a checkpoint that is being replaced


def save(folder: StrPath, state: Mapping[str, Any]) -> None:
    """Make `folder` the checkpoint of `state`, a dict of plain values, with arrays in its `PARTS`.

    FileError if that fails, for instance because the disk is full; the checkpoint that was there is
    then as it was, here or in `folder.old`, and `load` finds it.
    """
    folder = Path(folder)
    new, old = _beside(folder, "new"), _beside(folder, "old")
    rest = dict(state)
    try:
        _remove(new)
        new.mkdir(parents=True)
        files = {}
        for part in PARTS:
            arrays: dict[str, Any] = {}
            rest[part] = _without_arrays(state.get(part, {}), "", arrays)
            if arrays or part != "callbacks":
                path, data = new / f"{part}.safetensors", weights.pack(arrays)
                write_atomically(path, data)
                files[path.name] = _fingerprint(data)
        content = {"format": FORMAT, "versions": _versions(), "files": files, "state": rest}
        content = json.loads(json.dumps(content))  # as it will be read: all keys are text
        content["sha256"] = _digest(content)
        write_atomically(new / STATE, json.dumps(content, indent=1).encode())
        if folder.exists():
            _remove(old)  # only now: without a `folder` this is the one good checkpoint
            os.rename(folder, old)
        os.rename(new, folder)
        sync_folder(folder.parent)
        _remove(old)
    except FileError as error:
        raise FileError(f"{folder}: the checkpoint is not saved: {error.message}") from error
    except OSError as error:
        raise FileError(
            f"{folder}: the checkpoint is not saved ({error.strerror or error}); {fix(error)}; "
            f"the one that was there before is untouched"
        ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def sweep(folder: StrPath) -> None:
    """Remove what a killed `save` left beside the checkpoint `folder`; FileError if that fails."""
    folder = Path(folder)
    try:
        _remove(_beside(folder, "new"))
        if os.path.isfile(folder / STATE):
            _remove(_beside(folder, "old"))
    except OSError as error:
        raise FileError(
            f"{folder}: what a killed run left beside it cannot be removed "
            f"({error.strerror or error}); {fix(error)}"
        ) from error


def load(folder: StrPath) -> dict[str, Any]:
    """The state that was saved in `folder`, arrays on the host.

    FileError, naming the file, if something is missing, damaged or not of this checkpoint. Another
    process may save meanwhile: the state is the one from before that or the one from after it.
    """
    for _ in range(TRIES - 1):
        begun = _identity(folder)
        try:
            return _read(find(folder))
        except FileError:
            # Damaged if it is still the same one; else a save took it away under our hands.
            if _identity(folder) == begun:
                raise
    return _read(find(folder))


def _identity(folder: StrPath) -> tuple[Any, ...]:
    """Where a checkpoint lies and which one it is; () while there is none."""
    try:
        place = find(folder)
        status = os.stat(place / STATE)
    except (FileError, OSError):
        return ()
    return place, status.st_ino, status.st_mtime_ns, status.st_size


def _read(place: Path) -> dict[str, Any]:
    path = place / STATE
    text = read_bytes(path)
    try:
        content = json.loads(text)
        claimed = content.pop("sha256", None) if isinstance(content, dict) else None
        found = _digest(content)
    except (ValueError, RecursionError) as error:
        raise FileError(
            f"{path}: is damaged ({error}); resume from another one, such as best"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        kind = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise FileError(
            f"{path}: has the format {kind!r}, this version of gpuconv reads {FORMAT}; "
            f"resume with the version that saved it"
        )
    state, files = content.get("state"), content.get("files")
    if not isinstance(state, dict) or not isinstance(files, dict):
        raise FileError(f"{path}: lacks 'state' or 'files'; resume from another one, such as best")
    if found != claimed:
        raise FileError(
            f"{path}: is damaged or was edited (its SHA-256 is not the one in it); resume from "
            f"another checkpoint"
        )
    for part in PARTS:
        name = f"{part}.safetensors"
        if name in files:
            data = read_bytes(place / name)  # once: what is checked is what is used
            if _fingerprint(data) != files[name]:
                raise FileError(
                    f"{place / name}: is damaged or of another checkpoint (its size or SHA-256 is "
                    f"not that in {STATE}); resume from another one, such as best"
                )
            arrays = weights.unpack(data, place / name)
            try:
                _with_arrays(state.setdefault(part, {}), arrays)
            except (AttributeError, TypeError) as error:
                raise FileError(
                    f"{place / name}: its names do not fit {STATE} ({error}); resume from another "
                    f"checkpoint"
                ) from error
    return state


def find(folder: StrPath) -> Path:
    """Where the checkpoint `folder` lies: there, in `folder.old`, or in the `last` of a run folder.

    FileError if it is in none of these.
    """
    folder = Path(folder)
    run = folder / "last"
    for place in (folder, _beside(folder, "old"), run, _beside(run, "old")):
        if os.path.isfile(place / STATE):
            return place
    raise FileError(
        f"{folder}: holds no checkpoint ({STATE} is not there, nor in {folder.name}.old or last); "
        f"check the path, or start without resume"
    )


def _beside(folder: Path, suffix: str) -> Path:
    return folder.parent / f"{folder.name}.{suffix}"


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _fingerprint(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _versions() -> dict[str, str]:
    try:
        own = metadata.version("gpuconv")
    except metadata.PackageNotFoundError:  # a checkout on the path
        own = "not installed"
    return {"gpuconv": own, "numpy": np.__version__, "python": platform.python_version()}


def _without_arrays(value: Any, name: str, arrays: dict[str, Any]) -> Any:
    """`value` without its arrays, which go to `arrays` under the keys on the way, joined by "/"."""
    if not isinstance(value, Mapping):
        return value
    rest = {}
    for key, item in value.items():
        if "/" in key:
            raise ArgumentError(f"checkpoint: the name {key!r} must not have a '/' in it")
        path = f"{name}/{key}" if name else key
        if is_array(item):
            arrays[path] = item
        else:
            rest[key] = _without_arrays(item, path, arrays)
    return rest


def _with_arrays(tree: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    for path, array in arrays.items():
        *keys, last = path.split("/")
        place = tree
        for key in keys:
            place = place.setdefault(key, {})
        place[last] = array
