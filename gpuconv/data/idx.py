"""IDX files, the format of MNIST and Fashion-MNIST, plain or gzipped, read as if hostile.

The format, from http://yann.lecun.com/exdb/mnist: two zero bytes, one byte for the type, one for
the number of dimensions, each dimension as a big-endian uint32, then the values, big-endian,
row-major.
"""

import gzip
import math
import struct
import zlib
from io import BufferedReader
from os import fspath

import numpy as np

from gpuconv.errors import ArgumentError, DtypeError, FileError
from gpuconv.files import StrPath, open_regular, write_atomically

MAX_BYTES = 4 << 30  # no real file comes near it, a header that lies mostly is over it
MAX_DIMS = 32

_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_CODES = {np.dtype(text).newbyteorder("="): code for code, text in _DTYPES.items()}
_CHUNK = 1 << 20


def read_idx(path: StrPath, max_bytes: int = MAX_BYTES) -> np.ndarray:
    """Read an IDX file, gzipped or not, as a new array in native byte order.

    Memory grows with what is really in the file, never with what its header claims, and no more
    than `max_bytes` of values is read. Raises `FileError`, naming the file and the field, for one
    that is missing, truncated, too long, corrupted, or of something else.
    """
    field = "file"
    try:
        with open_regular(path) as file:
            if file.peek(2)[:2] != b"\x1f\x8b":
                return _read(file, path, max_bytes)
            field = "gzip stream"
            with gzip.GzipFile(fileobj=file) as unpacked:
                return _read(unpacked, path, max_bytes)
    except (OSError, EOFError, zlib.error) as error:
        raise FileError(
            f"{path}: {field}: cannot be read ({error}); check the path, or fetch the file again"
        ) from error


def _read(stream: BufferedReader | gzip.GzipFile, path: StrPath, max_bytes: int) -> np.ndarray:
    """Read header and values from a stream of unpacked bytes."""
    head = stream.read(4)
    if len(head) < 4:
        raise FileError(f"{path}: magic: {len(head)} bytes of 4; fetch the file again")
    if head[:2] != b"\0\0":
        raise FileError(f"{path}: magic: starts with 0x{head.hex()}, not 0x0000: not an IDX file")
    code, ndim = head[2], head[3]
    if code not in _DTYPES:
        known = ", ".join(f"0x{c:02x}" for c in _DTYPES)
        raise FileError(f"{path}: dtype: code 0x{code:02x}, an IDX file has one of {known}")
    if not 1 <= ndim <= MAX_DIMS:
        raise FileError(f"{path}: dimensions: {ndim} of them, must be 1 to {MAX_DIMS}")
    packed = stream.read(4 * ndim)
    if len(packed) < 4 * ndim:
        raise FileError(
            f"{path}: dimensions: {len(packed)} bytes of {4 * ndim}; fetch the file again"
        )
    shape = struct.unpack(f">{ndim}I", packed)
    dtype = np.dtype(_DTYPES[code])
    if _extent(shape) * dtype.itemsize > max_bytes:
        raise FileError(f"{path}: dimensions: {shape} of {dtype.name} is over {max_bytes} bytes")

    # One byte more than announced shows that something follows, and makes gzip check its CRC.
    size = math.prod(shape) * dtype.itemsize
    data = bytearray()
    while len(data) <= size and (chunk := stream.read(min(size + 1 - len(data), _CHUNK))):
        data += chunk
    if len(data) != size:
        found = "more" if len(data) > size else str(len(data))
        raise FileError(
            f"{path}: data: {size} bytes announced by shape {shape} of {dtype.name}, {found} found;"
            " fetch the file again"
        )
    values = np.frombuffer(data, dtype).reshape(shape)
    return values.astype(dtype.newbyteorder("="), copy=False)


def write_idx(path: StrPath, array: np.ndarray) -> None:
    """Write an array as an IDX file, gzipped if the name ends in ".gz"; the same bytes every time.

    The file appears whole or not at all. Raises `DtypeError` for a type that IDX does not have,
    `ArgumentError` for a scalar, too many dimensions or more than 4 GiB, `FileError` if the disk
    refuses.
    """
    array = np.asarray(array)
    code = _CODES.get(array.dtype.newbyteorder("="))
    if code is None:
        known = ", ".join(dtype.name for dtype in _CODES)
        raise DtypeError(f"write_idx: array is {array.dtype}, IDX has {known}; convert it first")
    if not 1 <= array.ndim <= MAX_DIMS or _extent(array.shape) * array.itemsize > MAX_BYTES:
        raise ArgumentError(
            f"write_idx: array of shape {array.shape}, must have 1 to {MAX_DIMS} dimensions"
            f" and at most {MAX_BYTES} bytes"
        )
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    data = header + array.astype(_DTYPES[code]).tobytes()
    if fspath(path).endswith(".gz"):
        data = gzip.compress(data, compresslevel=9, mtime=0)
    write_atomically(path, data)


def _extent(shape: tuple[int, ...]) -> int:
    """The product of the dimensions, a zero as one: NumPy refuses large dimensions beside it."""
    return math.prod(max(1, n) for n in shape)
