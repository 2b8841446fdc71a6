"""Checkpoints: folders that hold all of a training run, and are whole whenever it is killed.

A checkpoint `last/` holds `model.safetensors`, `optimizer.safetensors` and, if a callback keeps
arrays, `callbacks.safetensors`; `state.json` has everything else, and the sizes and SHA-256 of
those files. A new one is written as `last.new/`, brought to the disk, and takes the place of
`last/`. That one is called `last.old/` for a moment; a reader that finds no `last/` takes it.
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
from gpuconv.files import StrPath, read_bytes, sync_folder, write_atomically

FORMAT = 1
STATE = "state.json"
PARTS = ("model", "optimizer", "callbacks")  # of a state: those whose arrays get a file


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
                path = new / f"{part}.safetensors"
                weights.save(path, arrays)
                files[path.name] = _fingerprint(read_bytes(path))
        content = {"format": FORMAT, "versions": _versions(), "files": files, "state": rest}
        write_atomically(new / STATE, json.dumps(content, indent=1).encode())
        if folder.exists():
            _remove(old)  # only now: without a `folder` this is the one good checkpoint
            os.rename(folder, old)
        os.rename(new, folder)
        sync_folder(folder.parent)
        _remove(old)
    except FileError as error:
        shutil.rmtree(new, ignore_errors=True)
        raise FileError(f"{folder}: the checkpoint is not saved: {error.message}") from error
    except OSError as error:
        shutil.rmtree(new, ignore_errors=True)
        raise FileError(
            f"{folder}: the checkpoint is not saved ({error.strerror or error}); free some space "
            f"or choose another folder; the one that was there before is untouched"
        ) from error


def load(folder: StrPath) -> dict[str, Any]:
    """The state that was saved in `folder`, arrays on the host.

    FileError, naming the file, if something is missing, damaged or not of this checkpoint.
    """
    place = find(folder)
    path = place / STATE
    try:
        content = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path}: is damaged ({error}); resume from another checkpoint") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise FileError(
            f"{path}: has the format {found!r}, this version of gpuconv reads {FORMAT}; "
            f"resume with the version that saved it"
        )
    state, files = content.get("state"), content.get("files")
    if not isinstance(state, dict) or not isinstance(files, dict):
        raise FileError(f"{path}: lacks 'state' or 'files'; resume from another checkpoint")
    for part in PARTS:
        name = f"{part}.safetensors"
        if name in files:
            if _fingerprint(read_bytes(place / name)) != files[name]:
                raise FileError(
                    f"{place / name}: is damaged or of another checkpoint (its size or SHA-256 is "
                    f"not that in {STATE}); resume from another checkpoint"
                )
            _with_arrays(state.setdefault(part, {}), weights.load(place / name))
    return state


def find(folder: StrPath) -> Path:
    """Where the checkpoint `folder` lies: there, in `folder.old`, or in the `last` of a run folder.

    FileError if it is in none of these.
    """
    folder = Path(folder)
    run = folder / "last"
    for place in (folder, _beside(folder, "old"), run, _beside(run, "old")):
        if (place / STATE).is_file():
            return place
    raise FileError(
        f"{folder}: holds no checkpoint ({STATE} is not there, nor in {folder.name}.old or last); "
        f"check the path, or start without resume"
    )


def _beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(f"{folder.name}.{suffix}")


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _fingerprint(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


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
