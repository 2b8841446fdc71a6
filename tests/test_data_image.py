"""Image files: modes, sizes, orientation, and broken or hostile files."""

import io
import os
import struct
import sys
import warnings
import zlib

import numpy as np
import pytest

from gpuconv.data import ImageFiles, read_image
from gpuconv.errors import ArgumentError, Error, FileError

Image = pytest.importorskip("PIL.Image")

COLOURS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
KINDS = {"PNG": "png", "JPEG": "jpg", "BMP": "bmp", "GIF": "gif", "WEBP": "webp"}


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds almost nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IEND", b"")


def smooth(height: int, width: int) -> np.ndarray:
    down, right = np.mgrid[:height, :width]
    return np.stack([down * 4, right * 4, down + right], axis=2).astype(np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "BMP"])
def test_reads_exactly(tmp_path, kind):
    path = tmp_path / f"a.{KINDS[kind]}"
    Image.fromarray(COLOURS).save(path)
    image = read_image(path)
    np.testing.assert_array_equal(image, COLOURS.transpose(2, 0, 1), strict=True)
    assert image.flags.c_contiguous
    assert image.flags.writeable
    grey = read_image(path, mode="L")
    assert grey.shape == (1, 6, 9)
    np.testing.assert_allclose(grey[0], COLOURS @ [0.299, 0.587, 0.114], atol=1)


@pytest.mark.parametrize("kind", KINDS)
def test_reads_and_resizes_every_format(tmp_path, kind):
    path = tmp_path / f"a.{KINDS[kind]}"
    Image.fromarray(smooth(48, 32)).save(path, quality=95)
    image = read_image(str(path), (24, 16), "RGB")
    assert image.shape == (3, 24, 16)
    expected = smooth(48, 32).reshape(24, 2, 16, 2, 3).mean(axis=(1, 3)).transpose(2, 0, 1)
    assert np.abs(image - expected).mean() < 9  # GIF has 256 colours, JPEG and WebP lose some
    if kind in ("PNG", "BMP"):
        assert np.abs(image - expected)[:, 1:-1, 1:-1].max() <= 1


def test_mode_none_follows_the_file(tmp_path):
    for mode, channels in {"1": 1, "L": 1, "LA": 1, "P": 3, "RGB": 3, "RGBA": 3}.items():
        Image.new(mode, (3, 2)).save(tmp_path / "a.png")
        assert read_image(tmp_path / "a.png").shape == (channels, 2, 3), mode
    Image.new("CMYK", (3, 2)).save(tmp_path / "a.jpg")
    assert read_image(tmp_path / "a.jpg").shape == (3, 2, 3)


def test_16_bits_give_the_upper_8(tmp_path):
    values = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[0], values >> 8)
    assert read_image(tmp_path / "a.png", mode="RGB").shape == (3, 1, 5)


def test_transparent_palette(tmp_path):
    image = Image.new("P", (2, 2), 1)
    image.putpalette([9, 9, 9, 10, 20, 30])
    image.save(tmp_path / "a.png", transparency=bytes([255, 0]))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[:, 0, 0], [10, 20, 30])


def test_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    Image.fromarray(COLOURS).save(tmp_path / "a.png", exif=exif)
    upright = np.rot90(COLOURS, -1).transpose(2, 0, 1)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), upright)


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_and_corrupted_files(tmp_path, kind):
    whole = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(noise).save(whole, kind)
    data = whole.getvalue()
    path = tmp_path / f"a.{KINDS[kind]}"
    lengths = [0, 1, 10, 30, len(data) // 4, len(data) // 2]
    for length in lengths:
        path.write_bytes(data[:length])
        with pytest.raises(FileError, match=rf"a\.{KINDS[kind]}: "):
            read_image(path)
    rng = np.random.default_rng(1)
    for _ in range(150):  # must be an image or a FileError, whatever is hit
        broken = bytearray(data)
        for place in rng.integers(0, min(len(data), 200), 3):
            broken[place] = rng.integers(0, 256)
        path.write_bytes(broken)
        try:
            image = read_image(path, (5, 5), "RGB")
        except FileError as error:
            assert path.name in str(error)  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017
        else:
            assert image.shape == (3, 5, 5)


def test_no_image_missing_and_directory(tmp_path):
    (tmp_path / "a.png").write_text("hello")
    for path in (tmp_path / "a.png", tmp_path / "no.png", tmp_path):
        with pytest.raises(FileError) as caught:
            read_image(path)
        assert str(path) in str(caught.value)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(FileError, match=r"pipe\.png: not a regular file"):
        read_image(tmp_path / "pipe.png")
    with pytest.raises(FileError, match=r"cannot be read .*null"):
        read_image("a\0b.png")


def test_formats_that_start_programs_are_not_opened(tmp_path):
    Image.fromarray(COLOURS).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(FileError, match="not a readable image"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("kind", ["TIFF", "PPM", "TGA", "PCX"])
def test_only_known_formats_are_opened(tmp_path, kind):
    """Pillow reads these, without programs, and we do not: whatever it can, `FORMATS` decides."""
    Image.fromarray(COLOURS).save(tmp_path / "a.png", kind)
    with Image.open(tmp_path / "a.png") as opened:
        assert opened.format == kind
    with pytest.raises(FileError, match=r"a\.png: not a readable image"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("size", [(20000, 20000), (10000, 10000), (2**31 - 1, 2**31 - 1)])
def test_decompression_bomb(tmp_path, size):
    path = tmp_path / "a.png"
    path.write_bytes(png_of_size(*size))
    with pytest.raises(FileError, match=r"a\.png: "):
        read_image(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as most users run: the warning alone must not let it by
        with pytest.raises(FileError, match=r"a\.png: size: .*pixels"):
            read_image(path)


def test_arguments(tmp_path):
    for size in ((4,), (4, 0), (4.0, 4), 4, [4, 4], (True, 2)):
        with pytest.raises(ArgumentError, match="read_image: size="):
            read_image(tmp_path, size)
        with pytest.raises(ArgumentError, match="ImageFiles: size="):
            ImageFiles([], size)
    with pytest.raises(ArgumentError, match='read_image: mode=\'RGBA\', must be "RGB" or "L"'):
        read_image(tmp_path, None, "RGBA")


def test_without_pillow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(Error, match=r'a\.png: .*pip install "gpuconv\[viz\]"'):
        read_image(tmp_path / "a.png")
