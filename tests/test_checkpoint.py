"""Checkpoints: exact, whole after a kill or a full disk at any moment, and checked when read."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpuconv import files, weights
from gpuconv.errors import ArgumentError, DtypeError, FileError
from gpuconv.train import checkpoint

OPERATIONS = ("rename", "replace", "fsync", "mkdir", "unlink", "rmdir", "open")


def state(seed: int, size: int = 30) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "seed": seed,
        "floats": [0.1 + 0.2, 5e-324, -0.0, 1e308, float("inf"), rng.random()],
        "random": rng.bit_generator.state,
        "none": None,
        "model": {"conv.weight": rng.standard_normal((size, 3)).astype(np.float32).T},
        "optimizer": {
            "state": {
                "0": {"step": seed, "exp_avg": rng.standard_normal(()), "flat": rng.random(5)}
            },
            "param_groups": [{"lr": rng.random(), "params": [0]}],
        },
        "callbacks": {"EarlyStopping.1": {"waited": 2, "weights": {}}},
    }


def assert_same(a: Any, b: Any) -> None:
    np.testing.assert_equal(a, b)  # nested, -0.0 and 0.0 told apart below
    assert json.dumps(checkpoint._without_arrays(a, "", {})) == json.dumps(
        checkpoint._without_arrays(b, "", {})
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_round_trip_is_exact(tmp_path: Path) -> None:
    saved = state(1)
    checkpoint.save(tmp_path / "run" / "last", saved)
    assert names(tmp_path / "run") == ["last"]
    assert names(tmp_path / "run" / "last") == [
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]
    loaded = checkpoint.load(tmp_path / "run" / "last")
    assert_same(loaded, saved)
    weight = loaded["model"]["conv.weight"]
    assert weight.dtype == np.float32
    assert weight.flags.writeable
    assert loaded["optimizer"]["state"]["0"]["exp_avg"].shape == ()


def test_arrays_of_callbacks_get_a_file(tmp_path: Path) -> None:
    saved = state(1)
    saved["callbacks"]["EarlyStopping.1"]["weights"] = {
        "conv.weight": np.arange(6.0).reshape(2, 3).T
    }
    checkpoint.save(tmp_path / "last", saved)
    assert "callbacks.safetensors" in names(tmp_path / "last")
    assert_same(checkpoint.load(tmp_path / "last"), saved)


def test_the_next_save_replaces(tmp_path: Path) -> None:
    for seed in range(3):
        checkpoint.save(tmp_path / "last", state(seed))
        assert names(tmp_path) == ["last"]
        assert_same(checkpoint.load(tmp_path / "last"), state(seed))


def test_names_with_a_slash_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="'a/b' must not have a '/'"):
        checkpoint.save(tmp_path / "last", {"model": {"a/b": np.zeros(2)}})


# A kill, and a disk that refuses, at every single operation on the file system.


class Killed(BaseException):
    """What nothing catches: from here on no operation on the file system happens any more."""


@contextmanager
def interrupted(
    monkeypatch: pytest.MonkeyPatch, at: int, fail: Callable[[], BaseException], once: bool
) -> Iterator[list[str]]:
    """Operation number `at`, and all after it unless `once`, raises instead of happening."""
    done: list[str] = []

    def wrap(name: str, original: Any) -> Any:
        def operation(*args: Any, **kwargs: Any) -> Any:
            done.append(name)
            if len(done) == at or (len(done) > at and not once):
                raise fail()
            return original(*args, **kwargs)

        return operation

    with monkeypatch.context() as patch:
        for name in OPERATIONS:
            patch.setattr(os, name, wrap(name, getattr(os, name)))
        patch.setattr(files, "open", wrap("open", open), raising=False)
        yield done


def before_nothing(folder: Path) -> None:
    pass


def before_last(folder: Path) -> None:
    checkpoint.save(folder, state(1))


def before_killed_between_renames(folder: Path) -> None:
    checkpoint.save(folder, state(1))
    shutil.copytree(folder, folder.with_name("last.new"))
    folder.rename(folder.with_name("last.old"))


def before_killed_while_cleaning(folder: Path) -> None:
    checkpoint.save(folder, state(1))
    shutil.copytree(folder, folder.with_name("last.old"))
    (folder.with_name("last.old") / "state.json").unlink()
    (folder.with_name("last.new") / "junk").mkdir(parents=True)


BEFORE = [
    before_nothing,
    before_last,
    before_killed_between_renames,
    before_killed_while_cleaning,
]


@pytest.mark.parametrize("before", BEFORE, ids=lambda f: f.__name__)
def test_killed_at_any_operation(
    before: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for at in range(1, 200):
        folder = tmp_path / str(at) / "last"
        folder.parent.mkdir()
        before(folder)
        with interrupted(monkeypatch, at, Killed, once=False) as done:
            try:
                checkpoint.save(folder, state(2))
            except Killed:
                killed = True
            else:
                killed = False
        if before is before_nothing and killed and not folder.exists():
            with pytest.raises(FileError, match="holds no checkpoint"):
                checkpoint.load(folder)
        else:
            loaded = checkpoint.load(folder)
            assert loaded["seed"] in (1, 2)
            assert_same(loaded, state(loaded["seed"]))
            found.append(loaded["seed"])
        checkpoint.save(folder, state(3))  # the next save works and cleans up
        assert names(folder.parent) == ["last"]
        assert_same(checkpoint.load(folder), state(3))
        if not killed:
            break
    assert not killed
    assert set(done) >= {"rename", "replace", "fsync", "mkdir", "open"}, "all kinds were met"
    assert found == sorted(found), "the old one up to a point, the new one from there on"


@pytest.mark.parametrize("before", BEFORE[1:], ids=lambda f: f.__name__)
def test_refused_at_any_operation(
    before: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full for one operation: a clear error, and the checkpoint that was there."""

    def full() -> OSError:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for at in range(1, 200):
        folder = tmp_path / str(at) / "last"
        folder.parent.mkdir()
        before(folder)
        with interrupted(monkeypatch, at, full, once=True) as done:
            try:
                checkpoint.save(folder, state(2))
            except FileError as error:
                message = str(error)
                assert "last: the checkpoint is not saved" in message
                assert "No space left on device" in message
                assert "free some space" in message
                left = names(folder.parent)
                assert "last.new" not in left, "what was begun is removed, room being scarce"
        loaded = checkpoint.load(folder)
        assert_same(loaded, state(loaded["seed"]))
        if len(done) < at:
            assert loaded["seed"] == 2
            break
    else:
        raise AssertionError("never without a failure")


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    """The operating system refuses the write: in a process whose files may have 20 kB at most."""
    code = """
import resource, sys
from pathlib import Path
from gpuconv.errors import FileError
from gpuconv.train import checkpoint
from tests.test_checkpoint import assert_same, names, state
folder = Path(sys.argv[1]) / "last"
checkpoint.save(folder, state(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    checkpoint.save(folder, state(2, size=10_000))
except FileError as error:
    print(error)
assert names(folder.parent) == ["last"], names(folder.parent)
assert_same(checkpoint.load(folder), state(1))
"""
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=root,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "the checkpoint is not saved" in done.stdout
    assert "File too large" in done.stdout


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        FileError, match=r"file/last: the checkpoint is not saved \(Not a directory"
    ):
        checkpoint.save(tmp_path / "file" / "last", state(1))


def test_a_state_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    for bad in ({"model": {"a/b": np.zeros(2)}}, {"model": {"a": np.zeros(2, complex)}}):
        with pytest.raises((ArgumentError, DtypeError)):
            checkpoint.save(tmp_path / "last", bad)
        assert names(tmp_path) == []


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM])
@pytest.mark.parametrize("operation", ["mkdir", "rename", "replace"])
def test_a_folder_that_may_not_be_written_to(
    number: int, operation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    checkpoint.save(tmp_path / "last", state(1))
    with monkeypatch.context() as patch:
        patch.setattr(os, operation, refuse)
        with pytest.raises(
            FileError, match=r"last: the checkpoint is not saved.*; choose a folder you may write"
        ):
            checkpoint.save(tmp_path / "last", state(2))
    assert names(tmp_path) == ["last"]
    assert checkpoint.load(tmp_path / "last")["seed"] == 1


def test_sweep_removes_what_a_killed_save_left(tmp_path: Path) -> None:
    last = tmp_path / "last"
    checkpoint.sweep(last)
    before_killed_between_renames(last)
    checkpoint.sweep(last)
    assert names(tmp_path) == ["last.old"], "the one good checkpoint"
    checkpoint.save(last, state(2))
    before_killed_while_cleaning(last)
    checkpoint.sweep(last)
    assert names(tmp_path) == ["last"]


# Reading.


READ = files.read_bytes


def test_every_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was checked is what is used: two reads may find two files."""
    checkpoint.save(tmp_path / "last", state(1))
    read: list[str] = []

    def reading(path: Any, size: int = -1) -> bytes:
        read.append(path.name)
        return READ(path, size)

    for module in (checkpoint, weights):
        monkeypatch.setattr(module, "read_bytes", reading)
    checkpoint.load(tmp_path / "last")
    assert sorted(read) == ["model.safetensors", "optimizer.safetensors", "state.json"]
    checkpoint.save(tmp_path / "last", state(2))
    assert len(read) == 3, "saving reads nothing"


@pytest.mark.parametrize("gone", ["swapped", "moved"])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_save_while_loading(
    at: int, gone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any of the files is read another process saves, or is about to."""
    last = tmp_path / "last"
    checkpoint.save(last, state(1))
    read: list[str] = []

    def reading(path: Path, size: int = -1) -> bytes:
        read.append(path.name)
        if len(read) == at:
            if gone == "swapped":
                checkpoint.save(last, state(2))
            else:
                last.rename(tmp_path / "last.old")
        return READ(path, size)

    monkeypatch.setattr(checkpoint, "read_bytes", reading)
    assert_same(checkpoint.load(last), state(2 if gone == "swapped" else 1))


def test_saves_without_end_while_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def reading(path: Path, size: int = -1) -> bytes:
        read.append(path.name)
        data = READ(path, size)
        if path.name == "state.json":
            checkpoint.save(tmp_path / "last", state(len(read)))
        return data

    checkpoint.save(tmp_path / "last", state(0))
    monkeypatch.setattr(checkpoint, "read_bytes", reading)
    with pytest.raises(FileError, match="is damaged or of another checkpoint"):
        checkpoint.load(tmp_path / "last")
    assert read.count("state.json") == checkpoint.TRIES


def test_an_unreadable_state_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path / "last", state(1))

    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(files, "open", refuse, raising=False)
    with pytest.raises(FileError) as caught:
        checkpoint.load(tmp_path / "last")
    assert "state.json: cannot be read (Permission denied)" in str(caught.value)
    assert "damaged" not in str(caught.value)


EDITS: list[Callable[[dict[str, Any]], Any]] = [
    lambda c: c["state"].update(seed=2),
    lambda c: c["state"].pop("none"),
    lambda c: c["state"].update(more=None),
    lambda c: c["state"]["floats"].pop(),
    lambda c: c["state"]["optimizer"]["param_groups"][0].update(lr="0.1"),
    lambda c: c["state"]["callbacks"].update({"EarlyStopping.1": []}),
    lambda c: c["files"].pop("optimizer.safetensors"),
    lambda c: c["files"]["optimizer.safetensors"].update(bytes=1),
    lambda c: c.update(versions={}),
    lambda c: c.update(sha256="0" * 64),
    lambda c: c.pop("sha256"),
]


@pytest.mark.parametrize("edit", EDITS)
def test_edited_state(tmp_path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    checkpoint.save(tmp_path / "last", state(1))
    path = tmp_path / "last" / "state.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content, sort_keys=True))
    assert checkpoint.load(tmp_path / "last")["seed"] == 1, "written differently, but the same"
    edit(content)
    path.write_text(json.dumps(content))
    with pytest.raises(FileError, match=r"state.json: is damaged or was edited"):
        checkpoint.load(tmp_path / "last")


def test_finds_it_in_its_other_places(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "run" / "last", state(1))
    assert checkpoint.find(tmp_path / "run") == tmp_path / "run" / "last"
    (tmp_path / "run" / "last").rename(tmp_path / "run" / "last.old")
    for given in ("run", "run/last"):
        assert checkpoint.find(tmp_path / given) == tmp_path / "run" / "last.old"
        assert checkpoint.load(tmp_path / given)["seed"] == 1
    with pytest.raises(FileError, match=r"nowhere: holds no checkpoint .*start without resume"):
        checkpoint.find(tmp_path / "nowhere")


def truncate(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])


def flip(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[-5] ^= 1
    (folder / name).write_bytes(data)


def mix(folder: Path, name: str) -> None:
    checkpoint.save(folder.with_name("other"), state(9))
    shutil.copy(folder.with_name("other") / name, folder / name)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize("damage", [truncate, flip, mix])
def test_damaged_arrays(tmp_path: Path, damage: Any, name: str) -> None:
    checkpoint.save(tmp_path / "last", state(1))
    damage(tmp_path / "last", name)
    with pytest.raises(FileError, match=rf"last/{name}: is damaged or of another checkpoint"):
        checkpoint.load(tmp_path / "last")


def test_missing_arrays(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "last", state(1))
    (tmp_path / "last" / "model.safetensors").unlink()
    with pytest.raises(FileError, match=r"last/model.safetensors: cannot be read"):
        checkpoint.load(tmp_path / "last")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b'{"format": 1, "sta',
            r"state.json: is damaged \(Expecting|state.json: is damaged \(Unterm",
        ),
        (b"\xff\xfe\x00", r"state.json: is damaged"),
        (b"[" * 200_000, r"state.json: is damaged"),
        (b"[]", r"state.json: has the format 'list', this version of gpuconv reads 2"),
        (b'{"format": 1}', r"state.json: has the format 1, this version of gpuconv reads 2"),
        (b'{"format": 2}', r"state.json: lacks 'state' or 'files'"),
    ],
)
def test_damaged_state(tmp_path: Path, content: bytes, message: str) -> None:
    checkpoint.save(tmp_path / "last", state(1))
    (tmp_path / "last" / "state.json").write_bytes(content)
    with pytest.raises(FileError, match=message):
        checkpoint.load(tmp_path / "last")
