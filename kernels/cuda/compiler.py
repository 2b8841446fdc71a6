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
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from typing import Annotated, Any

from gpuconv.kernels.cache import cache_folder, digest, sources, unwritable, write_whole

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
INSTALL = "install the extra cuda13 (pip install '.[cuda13]' in the checkout)"
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
    found = places(kernel, arch)
    for path, key in found:
        if binary := read(path, key):
            return binary
    try:
        binary = build(kernel, arch)
    except NoCompiler as error:
        if lack := _lack(kernel, arch):
            said = f"kernel {kernel.name} for {arch}: there is no compiler, and {lack}"
            raise NoCompiler(said) from error
        raise
    try:
        write(*found[-1], binary)
    except OSError as error:
        folder = cache_folder()
        _not_kept(folder, unwritable(folder) or str(error))
    return binary


def places(kernel: Kernel, arch: str) -> list[tuple[Path, str]]:
    """The files that may have its code, and their keys: in $GPUCONV_KERNELS, last in the cache."""
    source, ready = source_key(kernel, arch), ready_folder()
    tools = {name: version(name) for name in TOOLS}
    key = hashlib.sha256(json.dumps([source, tools]).encode()).hexdigest()
    found = [(ready / file_name(kernel, source), source)] if ready else []
    return [*found, (cache_folder() / file_name(kernel, key), key)]


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
        f"({str(error).splitlines()[0]}); {INSTALL}"
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
    here = Path(__file__)
    parts = [
        FORMAT,
        kernel.name,
        kernel.make.__qualname__,
        kernel.constants,
        kernel.threads,
        kernel.min_blocks,
        arch,
        *map(digest, sources("gpuconv.kernels.cuda", here.parent, Path(module), here)),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def file_name(kernel: Kernel, key: str) -> str:
    return f"{kernel.name}-{key[:32]}.json"


def ready_folder() -> Path | None:
    """$GPUCONV_KERNELS, if it is set. CompileError where that is a file."""
    given = os.environ.get("GPUCONV_KERNELS")
    if given and Path(given).is_file():
        raise CompileError(f"GPUCONV_KERNELS={given} is a file; name a folder")
    return Path(given) if given else None


def ready_archs(folder: Path, name: str = "*") -> list[str]:
    """The architectures of the kernels of that name in a folder, of whatever sources they are."""
    heads = []
    for path in folder.glob(f"{name}-*.json"):
        with open(path, "rb") as file:
            heads.append(re.search(rb'"arch": "(sm_\w+)"', file.read(1024)))
    return sorted({head[1].decode() for head in heads if head})


def is_ready(folder: Path, kernel: Kernel, arch: str) -> bool:
    """Whether the folder has the kernel's code, made from the source there is now."""
    return (folder / file_name(kernel, source_key(kernel, arch))).is_file()


def _lack(kernel: Kernel, arch: str) -> str:
    """Why $GPUCONV_KERNELS does not serve, with what to do; "" if it is not set."""
    folder = ready_folder()
    if folder is None:
        return ""
    if not folder.exists():
        return f"GPUCONV_KERNELS={folder} does not exist"
    held = ready_archs(folder, kernel.name)
    if fit := [other for other in held if is_ready(folder, kernel, other)]:
        return (
            f"{folder} has kernels for {', '.join(fit)}, none for {arch}; use --arch {fit[0]}, or "
            f"build for {arch} too"
        )
    if held:
        return f"{folder} has it from another version of the source; build it anew"
    found = ready_archs(folder)
    return f"{folder} has {'others, but not this one' if found else 'no kernels'}; build it"


@cache
def _not_kept(folder: Path, why: str) -> None:
    """Warn of it, once."""
    _log.warning("compiled kernels are not kept: %s; set GPUCONV_CACHE to another folder", why)


def write(path: Path, key: str, binary: Binary) -> None:
    """Keep `binary` under `key`: complete, or not at all."""
    body = {**asdict(binary), "cubin": base64.b64encode(binary.cubin).decode()}
    text = json.dumps({"key": key, "sha256": _checksum(body), "binary": body})
    write_whole(path, text.encode())


def read(path: Path, key: str) -> Binary | None:
    """What was written there under `key`; None if nothing was, or it is damaged."""
    try:
        stored = json.loads(path.read_bytes())
        body = stored["binary"]
        if stored["key"] != key or stored["sha256"] != _checksum(body):
            raise ValueError("its contents do not fit its checksum")
        return Binary(**{**body, "cubin": base64.b64decode(body["cubin"], validate=True)})
    except (FileNotFoundError, NotADirectoryError):
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
    said = import_module("numba.cuda.cudadrv.error")
    wrong = (
        import_module("numba.core.errors").NumbaError,
        import_module("numba.cuda.errors").UnsupportedBytecodeError,
        said.NvvmError,
        TypeError,  # an intrinsic is called wrongly
        AttributeError,  # cuda.nothing
    )
    function = kernel.make(**dict(kernel.constants))
    signature = []
    for kind in kernel.parameters.values():
        item = getattr(types, kind.rstrip("*"))
        signature.append(types.CPointer(item) if kind.endswith("*") else item)
    try:
        text, _ = cuda.compile(
            function,
            types.void(*signature),
            cc=capability(arch),
            device=False,
            abi="numba",
            lineinfo=True,
            launch_bounds=(kernel.threads, kernel.min_blocks),
            output="ptx",
        )
    except said.CCSupportError as error:
        raise CompileError(f"kernel {kernel.name} for {arch}: {error}") from error
    except wrong as error:
        raise CompileError(f"{_line(error, function)}: {_essence(error)}") from error
    entry = re.search(r"\.entry\s+([\w$]+)", text)
    assert entry is not None
    # A variable that Numba declares and kernels do not use; its name differs from run to run.
    text = re.sub(r"\.common \.global .*NumbaEnv.*;\n", "", text)
    return text.replace(entry[1], kernel.name)


def _line(error: BaseException, function: Any) -> str:
    """ "relu.py:25", where in the kernel Numba was; of most errors only its frames tell."""
    if told := re.search(r'File "([^"]+)", line (\d+)', str(error)):
        return f"{Path(told[1]).name}:{told[2]}"
    code = function.__code__
    file, line = code.co_filename, code.co_firstlineno
    for frame, _ in traceback.walk_tb(error.__traceback__):
        for name in ("self", "inst", "loc"):
            value = frame.f_locals.get(name)
            place: Any = getattr(value, "loc", value)
            if isinstance(getattr(place, "line", None), int):
                file, line = place.filename, place.line
    return f"{Path(file).name}:{line}"


def _essence(error: BaseException) -> str:
    """What is wrong, of the many lines that Numba says."""
    said = []
    for line in filter(None, map(str.strip, str(error).splitlines())):
        if line.startswith(("File ", "During: ", "There are ")):
            break
        if not line.startswith("Failed in "):
            said.append(line.removeprefix("NameError: "))
    return " ".join(said).removesuffix(". Raised from None")


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
            raise CompileError(_refusal(log.decode().strip("\0"), str(error), ptx, arch)) from error
        cubin = bytearray(nvjitlink.get_linked_cubin_size(linker))
        nvjitlink.get_linked_cubin(linker, cubin)
        log = bytearray(nvjitlink.get_info_log_size(linker))
        nvjitlink.get_info_log(linker, log)
    finally:
        nvjitlink.destroy(linker)
    return bytes(cubin), log.decode()


def _refusal(log: str, error: str, ptx: str, arch: str) -> str:
    """What the assembler says of the first line that it refuses."""
    name = re.search(r"\.entry\s+([\w$]+)", ptx)
    head = f"kernel {name[1] if name else '?'} for {arch}"
    if needed := re.search(r"requires \.target (sm_\w+)", log):
        return f"{head}: needs {needed[1]} or later"
    first = re.search(r"(?:error|fatal)\s*:\s*(.*)", log)
    return f"{head}: {error}: {first[1] if first else ' '.join(log.split())}"


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


def _checksum(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
