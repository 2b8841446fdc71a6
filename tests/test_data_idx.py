"""IDX files: round trips, and every way of being broken is one `FileError`."""

import gzip
import io
import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from gpuconv.data import read_idx, write_idx
from gpuconv.errors import ArgumentError, DtypeError, FileError

DTYPES = ("uint8", "int8", "int16", "int32", "float32", "float64")


def header(code: int, *shape: int, zeros: bytes = b"\0\0") -> bytes:
    return zeros + struct.pack(f">BB{len(shape)}I", code, len(shape), *shape)


@pytest.fixture
def file(tmp_path: Path):
    """Write bytes to a file and give its path."""

    def write(data: bytes) -> Path:
        path = tmp_path / "x.idx"
        path.write_bytes(data)
        return path

    return write


@pytest.mark.parametrize("name", ["a.idx", "a.idx.gz"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (3, 4), (2, 3, 4), (0, 28, 28), (1,) * 32])
def test_round_trip(tmp_path, name, dtype, shape):
    array = np.random.default_rng(0).uniform(-99, 99, shape).astype(dtype)
    write_idx(tmp_path / name, array)
    again = read_idx(tmp_path / name)
    assert again.dtype == np.dtype(dtype)
    assert again.dtype.isnative
    assert again.flags.writeable
    np.testing.assert_array_equal(again, array, strict=True)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_reads_the_published_layout(file):
    data = header(0x0B, 2, 2) + bytes([0, 1, 255, 254, 1, 0, 128, 0])
    np.testing.assert_array_equal(read_idx(file(data)), [[1, -2], [256, -32768]])
    data = header(0x0D, 1) + bytes([0x3F, 0x80, 0, 0])
    np.testing.assert_array_equal(read_idx(str(file(data))), np.float32([1.0]))


def test_writes_the_same_bytes_each_time_in_any_order_and_layout(tmp_path):
    array = np.arange(6, dtype=">i4").reshape(2, 3)
    write_idx(tmp_path / "a.gz", array)
    write_idx(tmp_path / "b.gz", np.asfortranarray(array.astype("<i4")))
    first = (tmp_path / "a.gz").read_bytes()
    assert first == (tmp_path / "b.gz").read_bytes()
    assert first[4:8] == bytes(4)  # no time in the gzip header


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("packed", [False, True])
def test_every_prefix_is_a_file_error(tmp_path, packed, dtype):
    path = tmp_path / ("x.gz" if packed else "x")
    write_idx(path, np.arange(6).reshape(2, 3).astype(dtype))
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(FileError) as caught:
            read_idx(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_every_corrupted_byte_of_a_gzip_is_found_or_harmless(tmp_path):
    path = tmp_path / "x.gz"
    rng = np.random.default_rng(1)
    array = rng.integers(0, 256, (4, 5), dtype=np.uint8)
    write_idx(path, array)
    whole = path.read_bytes()
    found = 0
    for place in range(len(whole)):
        for value in {0, 255, whole[place] ^ 1, *rng.integers(0, 256, 12).tolist()}:
            path.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
            try:
                np.testing.assert_array_equal(read_idx(path), array, strict=True)
            except FileError as error:
                assert str(path) in str(error)  # noqa: PT017  either outcome will do
                found += 1
    assert found > 300


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "magic: 0 bytes"),
        (b"\x89PNG\r\n\x1a\n", "magic: starts with 0x89504e47"),
        (header(0x08, 1, zeros=b"\0\1") + b"\0", "magic"),
        (header(0x0A, 1) + b"\0", "dtype: code 0x0a"),
        (header(0x00, 1) + b"\0", "dtype: code 0x00"),
        (header(0x08), "dimensions: 0 of them"),
        (header(0x08, *(1,) * 33) + b"\0", "dimensions: 33 of them"),
        (header(0x08, 2, 3)[:7], "dimensions: 3 bytes of 8"),
        (header(0x08, 2, 3) + bytes(5), r"data: 6 bytes announced by shape \(2, 3\).* 5 found"),
        (header(0x08, 2, 3) + bytes(7), "data: 6 bytes announced .* more found"),
        (header(0x0E, 2, 3) + bytes(47), "data: 48 bytes announced .* 47 found"),
        (header(0x08, 0) + b"\0", "data: 0 bytes announced .* more found"),
        (header(0x08, 1 << 31, 1 << 31, 8) + b"\0", "dimensions: .* is over"),
        (header(0x08, *(2**32 - 1,) * 32) + b"\0", "dimensions: .* is over"),
        (header(0x08, 0, *(2**32 - 1,) * 4), "dimensions: .* is over"),
        (header(0x0E, 1 << 30), "dimensions: .* is over"),
    ],
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_hostile_files(file, data, says, pack):
    path = file(pack(data))
    with pytest.raises(FileError, match=says) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)


def test_a_large_claim_allocates_nothing(file):
    path = file(header(0x08, 4, 1 << 30) + b"some")
    tracemalloc.start()
    with pytest.raises(FileError, match="4 found"):
        read_idx(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_a_gzip_bomb_is_not_unpacked(file, monkeypatch):
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as stream:
        stream.write(header(0x08, 10))
        for _ in range(50):
            stream.write(bytes(1 << 20))
    read = 0
    original = gzip.GzipFile.read

    def counted(self, size=-1):
        nonlocal read
        data = original(self, size)
        read += len(data)
        return data

    monkeypatch.setattr(gzip.GzipFile, "read", counted)
    with pytest.raises(FileError, match="more found"):
        read_idx(file(packed.getvalue()))
    assert read == 8 + 10 + 1


def test_max_bytes(file):
    path = file(header(0x0B, 4) + bytes(8))
    assert read_idx(path, max_bytes=8).shape == (4,)
    with pytest.raises(FileError, match="over 7 bytes"):
        read_idx(path, max_bytes=7)


def test_a_wrong_crc_and_trailing_garbage_are_found(tmp_path):
    path = tmp_path / "x.gz"
    write_idx(path, np.zeros(9, np.uint8))
    whole = path.read_bytes()
    path.write_bytes(whole[:-8] + b"abcd" + whole[-4:])
    with pytest.raises(FileError, match=r"gzip stream: .*CRC"):
        read_idx(path)
    path.write_bytes(whole + b"garbage")
    with pytest.raises(FileError, match="gzip stream"):
        read_idx(path)


def test_missing_file_and_directory(tmp_path):
    with pytest.raises(FileError, match=r"no\.idx: cannot be read .*check the path"):
        read_idx(tmp_path / "no.idx")
    with pytest.raises(FileError, match="not a regular file; check the path"):
        read_idx(tmp_path)
    with pytest.raises(FileError, match=r"cannot be read .*null"):
        read_idx("a\0b")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileError, match="pipe: not a regular file"):  # and no waiting for a writer
        read_idx(tmp_path / "pipe")


@pytest.mark.parametrize("name", ["a.idx", "a.idx.gz"])
@pytest.mark.parametrize("operation", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, name, operation):
    write_idx(tmp_path / name, np.zeros(9, np.uint8))

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"gpuconv.files.os.{operation}", fail)
        with pytest.raises(FileError, match=r"a\.idx.*: cannot be written \(No space left"):
            write_idx(tmp_path / name, np.ones(9, np.uint8))
    np.testing.assert_array_equal(read_idx(tmp_path / name), np.zeros(9))
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_what_cannot_be_written(tmp_path):
    for dtype in (bool, "int64", "float16", "uint16", "complex64", "U3", object):
        with pytest.raises(DtypeError, match="write_idx: array is"):
            write_idx(tmp_path / "x", np.zeros(2, dtype))
    for shape in ((), (1,) * 33, (0, 1 << 33)):
        with pytest.raises(ArgumentError, match="must have 1 to 32 dimensions"):
            write_idx(tmp_path / "x", np.zeros(shape, np.uint8))
    with pytest.raises(FileError, match="cannot be written"):
        write_idx(tmp_path / "no" / "x", np.zeros(2, np.uint8))
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileError, match="folder: not a regular file"):
        write_idx(tmp_path / "folder", np.zeros(2, np.uint8))
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
