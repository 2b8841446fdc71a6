"""Saving and loading models: exact, whole or not at all, and no trust in what a file says."""

import errno
import json
import os
import pickle
import resource
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpuconv import nn, weights
from gpuconv.errors import ArgumentError, DtypeError, FileError
from gpuconv.files import read_bytes, sweep_partials, write_atomically


def model(width: int = 4) -> nn.Sequential:
    return nn.Sequential({"conv": nn.Conv2d(2, width, 3), "fc": nn.Linear(width, 3)})


def equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return list(a) == list(b) and all(
        a[n].dtype == b[n].dtype and a[n].shape == b[n].shape and a[n].tobytes() == b[n].tobytes()
        for n in a
    )


def test_a_model_comes_back_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    source, target = model(), model()
    weights.save(path, source)
    assert not equal(source.state_dict(), target.state_dict())
    assert weights.load(path, target) is target
    assert equal(source.state_dict(), target.state_dict())
    arrays = weights.load(str(path))
    assert set(arrays) == set(source.state_dict())
    assert all(a.flags.writeable for a in arrays.values())


def test_arrays_that_are_not_contiguous_are_not_scrambled(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    base = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    state = {
        "plain": base,
        "transposed": base[0, 0].T,
        "channels_last": np.ascontiguousarray(base.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
        "strided": base[:, ::2, 1::2, ::-1],
        "broadcast": np.broadcast_to(np.float32(3), (4, 2)),
        "fortran": np.asfortranarray(base[0, 0]),
        "big_endian": base.astype(">f4"),
        "scalar": np.array(7, np.int64),
        "empty": np.zeros((0, 3), np.float64),
        "mask": base[0, 0] > 3,
        "half": base.astype(np.float16)[:, :, ::2],
        "bytes": np.arange(6, dtype=np.uint8)[::2],
    }
    weights.save(path, state)
    back = weights.load(path)
    assert set(back) == set(state)
    for name, array in state.items():
        assert back[name].shape == array.shape, name
        assert back[name].dtype == array.dtype.newbyteorder("="), name
        np.testing.assert_array_equal(back[name], array, err_msg=name)


def test_parameters_that_are_not_contiguous_are_not_scrambled(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    source = model()
    source.conv.weight.data = np.ascontiguousarray(
        source.conv.weight.data.transpose(0, 2, 3, 1)
    ).transpose(0, 3, 1, 2)
    source.fc.weight.data = source.fc.weight.data.T.copy().T
    weights.save(path, source)
    target = weights.load(path, model())
    for name, array in source.state_dict().items():
        np.testing.assert_array_equal(target.state_dict()[name], array)


def test_files_are_those_of_torch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is the oracle of this test")
    from safetensors.torch import load_file, save_file

    peer = torch.nn.Sequential()
    peer.add_module("conv", torch.nn.Conv2d(2, 4, 3))
    peer.add_module("fc", torch.nn.Linear(4, 3))
    save_file(peer.state_dict(), tmp_path / "theirs")
    ours = weights.load(tmp_path / "theirs", model())
    weights.save(tmp_path / "ours", ours)
    for name, t in load_file(tmp_path / "ours").items():
        assert torch.equal(t, peer.state_dict()[name])
    weights.save(tmp_path / "direct", {"w": torch.arange(6.0).reshape(2, 3).T})
    np.testing.assert_array_equal(weights.load(tmp_path / "direct")["w"], [[0, 3], [1, 4], [2, 5]])


def test_metadata(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    weights.save(path, model(), {"model": "lenet5", "epoch": "3"})
    assert weights.read_metadata(path) == {"model": "lenet5", "epoch": "3"}
    weights.save(path, model())
    assert weights.read_metadata(path) == {}


@pytest.mark.parametrize(
    ("what", "metadata", "error", "message"),
    [
        (3, None, ArgumentError, "a int is neither a Module nor a dict"),
        ({1: np.zeros(1)}, None, ArgumentError, "name 1 must be text"),
        ({"__metadata__": np.zeros(1)}, None, ArgumentError, "name '__metadata__' belongs to"),
        ({"a": np.zeros(1)}, {"k": 1}, ArgumentError, "metadata 1 must be text"),
        ({"a": np.zeros(1, complex)}, None, DtypeError, "'a' is complex128; convert"),
        ({"a": np.array([None])}, None, DtypeError, "'a' is object; convert"),
        ({"a": [1.0]}, None, DtypeError, "list is neither an array"),
    ],
)
def test_what_cannot_be_saved_is_refused_before_anything_is_written(
    tmp_path: Path, what: Any, metadata: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        weights.save(tmp_path / "x", what, metadata)
    assert list(tmp_path.iterdir()) == []


# Files that cannot be trusted.


def packed(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


GOOD = packed({"a": entry(0, 8, [2]), "b": entry(8, 12, [1])}, bytes(12))
HOSTILE = {
    "empty": b"",
    "seven bytes": bytes(7),
    "header of nothing": struct.pack("<Q", 0),
    "header longer than the file": packed({"a": entry(0, 8, [2])}, bytes(8), length=1 << 20),
    "header of 2**63 bytes": packed({}, length=(1 << 63) - 1),
    "header of 2**64 bytes": packed({}, length=(1 << 64) - 1),
    "header that is no JSON": packed(b"{nonsense", bytes(8)),
    "header that is no text": packed(b"\xff\xfe\x00{", bytes(8)),
    "header that is a list": packed([1, 2], bytes(8)),
    "truncated data": GOOD[:-1],
    "more data than announced": GOOD + b"x",
    "overlapping arrays": packed({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, bytes(12)),
    "a hole between arrays": packed({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, bytes(12)),
    "offsets backwards": packed({"a": entry(8, 0, [2])}, bytes(8)),
    "offsets beyond the file": packed({"a": entry(0, 1 << 40, [1 << 38])}, bytes(8)),
    "shape that is no product": packed({"a": entry(0, 8, [3])}, bytes(8)),
    "shape that overflows": packed({"a": entry(0, 8, [1 << 62, 1 << 62])}, bytes(8)),
    "negative shape": packed({"a": entry(0, 8, [-2])}, bytes(8)),
    "unknown dtype": packed({"a": entry(0, 8, [2], "F99")}, bytes(8)),
    "65 dimensions": packed({"a": entry(0, 4, [1] * 65)}, bytes(4)),
    "shape too large beside a zero": packed({"a": entry(0, 0, [0, 1 << 62, 8])}),
    "complex": packed({"a": entry(0, 8, [1], "C64")}, bytes(8)),
    "bfloat16": packed({"a": entry(0, 4, [2], "BF16")}, bytes(4)),
    "missing fields": packed({"a": {"dtype": "F32"}}, bytes(8)),
    "deep JSON": packed(b"[" * 100_000 + b"]" * 100_000),
    "pickle": pickle.dumps({"a": np.zeros(2)}),
    "zip, as torch.save makes": b"PK\x03\x04" + bytes(100),
    "text": b"not a model at all, just some words in a file",
}


# What safetensors itself has nothing against, nor its metadata.
READABLE = {"bfloat16", "complex", "65 dimensions", "shape too large beside a zero"}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_an_error_that_names_it(tmp_path: Path, name: str) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(HOSTILE[name])
    m = model()
    before = {n: a.copy() for n, a in m.state_dict().items()}
    for load in (lambda: weights.load(path), lambda: weights.load(path, m)):
        with pytest.raises(FileError) as caught:
            load()
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert equal(m.state_dict(), before)


@pytest.mark.parametrize("name", sorted(set(HOSTILE) - READABLE))
def test_metadata_of_a_hostile_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(FileError, match=r"bad.safetensors: not a safetensors file, or a damaged"):
        weights.read_metadata(path)


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    for length in range(len(GOOD)):
        path.write_bytes(GOOD[:length])
        with pytest.raises(FileError, match=r"cut.safetensors"):
            weights.load(path)
    path.write_bytes(GOOD)
    assert weights.load(path)["a"].shape == (2,)


@pytest.mark.parametrize("read", [weights.load, weights.read_metadata, read_bytes])
def test_missing_files_and_folders(tmp_path: Path, read: Any) -> None:
    with pytest.raises(FileError, match=r"absent: .*No such file"):
        read(tmp_path / "absent")
    with pytest.raises(FileError, match=str(tmp_path)):
        read(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileError, match=r"pipe: not a regular file"):
        read(tmp_path / "pipe")
    with pytest.raises(FileError, match=r"'a\\x00b': cannot be read \(.*null"):
        read("a\0b")


def test_pack_and_unpack_are_save_and_load(tmp_path: Path) -> None:
    path = tmp_path / "x"
    weights.save(path, model(), {"k": "v"})
    data = path.read_bytes()
    assert weights.pack(weights.load(path), {"k": "v"}) == data
    np.testing.assert_equal(weights.unpack(data, path), weights.load(path))
    with pytest.raises(FileError, match="x: not a safetensors file"):
        weights.unpack(data[:-1], path)


def test_a_checkpoint_of_another_model_names_the_file_and_the_keys(tmp_path: Path) -> None:
    path = tmp_path / "wide.safetensors"
    weights.save(path, model(8))
    m = model(4)
    before = {n: a.copy() for n, a in m.state_dict().items()}
    with pytest.raises(
        ArgumentError,
        match=r"wide.safetensors: holds another model: .* of another shape "
        r"'conv.weight' \(8, 2, 3, 3\) instead of \(4, 2, 3, 3\), 'conv.bias' .* 'fc.weight'",
    ):
        weights.load(path, m)
    assert equal(m.state_dict(), before)
    with pytest.raises(
        ArgumentError, match=r"missing 'weight' \(2, 2\), 'bias' \(2,\); unexpected"
    ):
        weights.load(path, nn.Linear(2, 2))
    m2 = nn.Sequential({"fc": nn.Linear(8, 3), "extra": nn.Linear(1, 1)})
    weights.load(path, m2, strict=False)
    np.testing.assert_array_equal(m2.fc.weight.data, weights.load(path)["fc.weight"])


# Writing.


def test_a_write_replaces_the_old_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "f"
    for data in (b"old", b"new and longer", b""):
        write_atomically(path, data)
        assert path.read_bytes() == data
    assert os.listdir(tmp_path) == ["f"]
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "f")
    write_atomically(tmp_path / "link", b"x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "folder" / "f").read_bytes() == b"x"


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    weights.save(path, model())
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # the system stops any file at 1,000
    try:
        with pytest.raises(FileError, match=r"model.safetensors: cannot be written \(File too l"):
            weights.save(path, model(64))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["model.safetensors"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_at_any_step_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "f"
    write_atomically(path, b"old")

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"gpuconv.files.os.{step}", fail)
    with pytest.raises(FileError, match=r"f: cannot be written \(No space left on device\)") as e:
        write_atomically(path, b"new")
    assert isinstance(e.value.__cause__, OSError)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EROFS, "choose a folder you may write to"),
        (errno.EACCES, "choose a folder you may write to"),
        (errno.EPERM, "choose a folder you may write to"),
        (errno.ENOENT, "make the folder first"),
        (errno.EIO, "choose another folder"),
    ],
)
def test_advice_for_what_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, advice: str
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("gpuconv.files.os.replace", fail)
    with pytest.raises(FileError, match=rf"\); {advice}; what was there"):
        write_atomically(tmp_path / "f", b"")


def test_leftovers_of_killed_writers_are_swept(tmp_path: Path) -> None:
    stay = [".f.0123abcd.partial.txt", ".f.0123ABCD.partial", "f.0123abcd.partial", ".f.partial"]
    for name in (*stay, ".f.0123abcd.partial", ".results.csv.00000000.partial"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / ".folder.0123abcd.partial").mkdir()
    sweep_partials(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted([*stay, ".folder.0123abcd.partial"])
    sweep_partials(tmp_path / "none")
    with pytest.raises(FileError, match="cannot be cleaned"):
        sweep_partials(tmp_path / stay[0])


def test_the_sweep_knows_the_names_of_write_atomically(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("gpuconv.files.Path.unlink", lambda *_, **__: None)  # as if killed
        patch.setattr("gpuconv.files.os.replace", lambda *_: None)
        write_atomically(tmp_path / "a.b", b"")
    assert len(os.listdir(tmp_path)) == 1
    sweep_partials(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"cannot be written \(No such file or directory\)"):
        weights.save(tmp_path / "none" / "x", model())
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FileError, match=r"cannot be written \(Not a directory\)"):
        write_atomically(tmp_path / "file" / "x", b"")


def test_a_kill_while_writing_leaves_a_readable_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    script = (
        "import sys, numpy as np\n"
        "from gpuconv import weights\n"
        "i = 0\n"
        "while True:\n"
        "    weights.save(sys.argv[1], {'a': np.full(200_000, i, np.float32)})\n"
        "    i += 1\n"
        "    print(i, flush=True)\n"
    )
    for _ in range(3):
        child = subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        child.stdout.readline()
        child.kill()
        child.wait()
        child.stdout.close()
        array = weights.load(path)["a"]
        assert (array == array[0]).all()


def test_what_is_no_regular_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", tmp_path):
        with pytest.raises(FileError, match="not a regular file"):
            weights.save(place, {"a": np.ones(2)})
    assert (tmp_path / "pipe").is_fifo()
