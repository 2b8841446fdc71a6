"""A kernel written in Python -> PTX and cubin, with no GPU and no driver; kept on disk.

    binary = compile(kernel, "sm_90")     # .ptx, .cubin, .registers, .spills, ...

numba-cuda turns the Python function into PTX, nvJitLink turns that into machine code. Both run on
any machine. This file and `ptx.py` are the only ones that know numba-cuda.

A kernel is a factory: `make(**constants)` returns the Python function to compile, whose closure
holds the constants and whose annotations (`F32`, `I32`, ...) are its parameter types. Pointers are
bare pointers, so a launch passes addresses and numbers, nothing else.

Compiled code is kept in $GPUCONV_CACHE (default: gpuconv in the user's cache folder), one file an
entry, under a hash of the kernel's source file and those it imports, its constants, this file, the
architecture and the versions of the tools. A damaged entry is built anew. Ready-made code (made by
`gpuconv kernels build`) is looked for in $GPUCONV_KERNELS first; it needs no compiler.
"""

import base64
import hashlib
import inspect
import json
import logging
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from typing import Annotated, Any

# Parameter types. Data is a pointer to the kernel's own dtype, its constant `dtype`.
F32 = Annotated[Any, "float32*"]
F64 = Annotated[Any, "float64*"]
I32P = Annotated[Any, "int32*"]
I64P = Annotated[Any, "int64*"]
Data = Annotated[Any, "data*"]
I32 = Annotated[Any, "int32"]
I64 = Annotated[Any, "int64"]
Float = Annotated[Any, "float32"]
Scalar = Annotated[Any, "data"]

FORMAT = 1
TOOLS = (
    "numba",
    "numba-cuda",
    "nvidia-nvvm",
    "nvidia-nvjitlink",
    "nvidia-cuda-nvcc-cu12",
    "nvidia-nvjitlink-cu12",
)
_log = logging.getLogger("gpuconv")


class CompileError(RuntimeError):
    """A kernel could not be compiled, or the compiler is not installed; one line."""


class NoCompiler(CompileError):
    """The compiler is not installed, or a part of it: no kernel can be compiled."""


@dataclass(frozen=True)
class Kernel:
    """What there is to compile: a factory, its constants, and the launch bounds.

    `name` is the entry's name; `constants` are passed to `make` and must be JSON values; `threads`
    is the size of a block, `min_blocks` how many the compiler must leave room for on one SM, and
    `shared` the dynamic shared memory of a launch in bytes.
    """

    name: str
    make: Callable[..., Callable[..., None]]
    constants: tuple[tuple[str, Any], ...]
    threads: int
    min_blocks: int = 1
    shared: int = 0

    def __hash__(self) -> int:
        return hash((self.name, self.constants))

    @property
    def parameters(self) -> dict[str, str]:
        """Name -> type ("float32*", "int32", ...), in order."""
        return _parameters(self)


@dataclass(frozen=True)
class Binary:
    """Compiled code, and what the assembler said of it (bytes are a thread's)."""

    entry: str
    arch: str
    ptx: str
    cubin: bytes
    registers: int
    spill_stores: int
    spill_loads: int
    stack: int
    static_shared: int

    @property
    def spills(self) -> int:
        """Bytes stored to and loaded from local memory by the register allocator."""
        return self.spill_stores + self.spill_loads


@cache
def _parameters(kernel: Kernel) -> dict[str, str]:
    constants = dict(kernel.constants)
    function = kernel.make(**constants)
    found = {}
    for name in inspect.signature(function).parameters:
        kind = function.__annotations__[name].__metadata__[0]
        found[name] = kind.replace("data", constants.get("dtype", ""))
    return found


@cache
def compile(kernel: Kernel, arch: str) -> Binary:
    """The code of `kernel` for `arch` ("sm_90", "sm_90a"), from disk if it is there.

    Raises CompileError where it is not and there is no compiler, or where it does not compile.
    """
    capability(arch)
    source = source_key(kernel, arch)
    ready = os.environ.get("GPUCONV_KERNELS")
    if ready and (binary := read(Path(ready) / file_name(kernel, source), source)):
        return binary
    tools = {name: version(name) for name in TOOLS}
    key = hashlib.sha256(json.dumps([source, tools]).encode()).hexdigest()
    path = cache_folder() / file_name(kernel, key)
    if binary := read(path, key):
        return binary
    binary = build(kernel, arch)
    try:
        write(path, key, binary)
    except OSError as error:
        _log.warning("compiled kernels are not kept: %s", error)
    return binary


def build(kernel: Kernel, arch: str) -> Binary:
    """Compile without looking at the disk."""
    try:
        ptx = _to_ptx(kernel, arch)
        cubin, log = _to_cubin(ptx, arch)
    except ImportError as error:
        raise _no_compiler(kernel, error) from error
    except import_module("cuda.pathfinder").DynamicLibNotFoundError as error:
        raise _no_compiler(kernel, error) from error
    return Binary(kernel.name, arch, ptx, cubin, **_resources(log))


def _no_compiler(kernel: Kernel, error: Exception) -> NoCompiler:
    return NoCompiler(
        f"compiling kernel {kernel.name} needs numba-cuda, NVVM and nvJitLink "
        f"({str(error).splitlines()[0]}); install gpuconv[cuda13]"
    )


def capability(arch: str) -> tuple[int, ...] | tuple[int, int, str]:
    """ "sm_90" -> (9, 0), "sm_90a" -> (9, 0, "a"); CompileError for anything else."""
    match = re.fullmatch(r"sm_(\d+)(\d)(a?)", arch)
    if not match:
        raise CompileError(f"architecture {arch!r} is unknown; write it as 'sm_90'")
    cc = int(match[1]), int(match[2])
    return (*cc, "a") if match[3] else cc


def source_key(kernel: Kernel, arch: str) -> str:
    """A hash of all that decides a kernel's code, but for the tools."""
    module = inspect.getsourcefile(kernel.make)
    assert module is not None
    parts = [
        FORMAT,
        kernel.name,
        kernel.make.__qualname__,
        kernel.constants,
        kernel.threads,
        kernel.min_blocks,
        arch,
        *(_digest(path) for path in _sources(Path(module))),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def file_name(kernel: Kernel, key: str) -> str:
    return f"{kernel.name}-{key[:32]}.json"


def cache_folder() -> Path:
    """Where compiled kernels are kept."""
    if given := os.environ.get("GPUCONV_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpuconv"


def write(path: Path, key: str, binary: Binary) -> None:
    """Keep `binary` under `key`: complete, or not at all."""
    body = {**asdict(binary), "cubin": base64.b64encode(binary.cubin).decode()}
    text = json.dumps({"key": key, "sha256": _checksum(body), "binary": body})
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".partial")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        os.chmod(temporary, 0o644)  # others may read it, as they may a file made by open
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def read(path: Path, key: str) -> Binary | None:
    """What was written there under `key`; None if nothing was, or it is damaged."""
    try:
        stored = json.loads(path.read_bytes())
        body = stored["binary"]
        if stored["key"] != key or stored["sha256"] != _checksum(body):
            raise ValueError("its contents do not fit its checksum")
        return Binary(**{**body, "cubin": base64.b64decode(body["cubin"], validate=True)})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.warning("compiled kernel %s is damaged (%s): it is built anew", path, error)
        return None


@cache
def version(package: str) -> str:
    """The installed version, "" where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _to_ptx(kernel: Kernel, arch: str) -> str:
    import_module("numba_cuda")  # without it numba.cuda is the older one that comes with Numba
    cuda, types = import_module("numba.cuda"), import_module("numba.types")
    signature = []
    for kind in kernel.parameters.values():
        item = getattr(types, kind.rstrip("*"))
        signature.append(types.CPointer(item) if kind.endswith("*") else item)
    try:
        text, _ = cuda.compile(
            kernel.make(**dict(kernel.constants)),
            types.void(*signature),
            cc=capability(arch),
            device=False,
            abi="numba",
            lineinfo=True,
            launch_bounds=(kernel.threads, kernel.min_blocks),
            output="ptx",
        )
    except import_module("numba.cuda.cudadrv.error").CCSupportError as error:
        raise CompileError(f"kernel {kernel.name} for {arch}: {error}") from error
    entry = re.search(r"\.entry\s+([\w$]+)", text)
    assert entry is not None
    # A variable that Numba declares and kernels do not use; its name differs from run to run.
    text = re.sub(r"\.common \.global .*NumbaEnv.*;\n", "", text)
    return text.replace(entry[1], kernel.name)


def _to_cubin(ptx: str, arch: str) -> tuple[bytes, str]:
    """Machine code, and the assembler's log."""
    nvjitlink = import_module("cuda.bindings.nvjitlink")
    linker = nvjitlink.create(3, [f"-arch={arch}", "-O3", "-verbose"])
    try:
        data = ptx.encode()
        try:
            nvjitlink.add_data(linker, nvjitlink.InputType.PTX, data, len(data), "kernel.ptx")
            nvjitlink.complete(linker)
        except nvjitlink.nvJitLinkError as error:
            log = bytearray(nvjitlink.get_error_log_size(linker))
            nvjitlink.get_error_log(linker, log)
            said = " ".join(log.decode().strip("\0").split())
            raise CompileError(f"{error}: {said}") from error
        cubin = bytearray(nvjitlink.get_linked_cubin_size(linker))
        nvjitlink.get_linked_cubin(linker, cubin)
        log = bytearray(nvjitlink.get_info_log_size(linker))
        nvjitlink.get_info_log(linker, log)
    finally:
        nvjitlink.destroy(linker)
    return bytes(cubin), log.decode()


def _resources(log: str) -> dict[str, int]:
    """The numbers in ptxas's log."""

    def number(pattern: str) -> int:
        match = re.search(pattern, log)
        return int(match[1]) if match else 0

    return {
        "registers": number(r"Used (\d+) registers"),
        "spill_stores": number(r"(\d+) bytes spill stores"),
        "spill_loads": number(r"(\d+) bytes spill loads"),
        "stack": number(r"(\d+) bytes stack frame"),
        # On sm_90, and only there, the number has the 1024 bytes that the system takes.
        "static_shared": max(0, number(r"(\d+) bytes smem") - (1024 if "for 'sm_90" in log else 0)),
    }


@cache
def _sources(path: Path) -> tuple[Path, ...]:
    """The file, this one, and those of this folder that it imports, and they import."""
    here, found, todo = Path(__file__).parent, {Path(__file__)}, [path]
    while todo:
        file = todo.pop()
        if file not in found:
            found.add(file)
            text = file.read_text()
            names = re.findall(r"gpuconv\.kernels\.cuda\.(\w+)", text)
            for several in re.findall(r"from gpuconv\.kernels\.cuda import ([\w, ]+)", text):
                names += [name.strip() for name in several.split(",")]
            todo += [here / f"{name}.py" for name in names if (here / f"{name}.py").exists()]
    return tuple(sorted(found))


@cache
def _digest(path: Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _checksum(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
