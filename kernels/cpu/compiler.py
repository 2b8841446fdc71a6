"""A kernel written in Python -> machine code of this processor, kept on disk.

    call = function(kernel)     # the address of  int f(void *, void *, task, thread, arguments)

Numba turns the Python function into LLVM's language, LLVM turns that into machine code, which
is kept in $GPUCONV_CACHE (default: gpuconv in the user's cache folder), one file an entry, by a
hash of the kernel's source file and those it imports, its constants, the processor and the versions
of the tools. What is on disk is loaded by llvmlite alone: Numba, which takes a second to import, is
needed only to compile. This file is the only one that knows how Numba compiles.

A kernel is a factory: `make(**constants)` returns the Python function to compile, whose closure
holds the constants. Its first two parameters are the number of the task and that of the thread;
annotations (`F32`, `I64`, ...) are the types of the others, which `pack` puts into one block of
memory. Every call of one kernel with other tasks may run at the same time on another thread.
"""

import atexit
import hashlib
import inspect
import json
import logging
import os
import re
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from typing import Annotated, Any

from gpuconv.kernels.cache import cache_folder, digest, read_own, sources, unwritable, write_whole

# Parameter types. Data is a pointer to the kernel's own dtype, its constant `dtype`.
F32 = Annotated[Any, "float32*"]
F64 = Annotated[Any, "float64*"]
I32P = Annotated[Any, "int32*"]
I64P = Annotated[Any, "int64*"]
Data = Annotated[Any, "data*"]
I64 = Annotated[Any, "int64"]
Float = Annotated[Any, "float64"]

OBJECT = object.__basicsize__  # bytes that every Python object begins with
FORMAT = 4
MAGIC = b"gpuconv cpu kernel 1\n"
TOOLS = ("numba", "llvmlite")
# What the machine code may need of the process: C's mathematics and memory.
EXTERNAL = re.compile(r"(mem(set|cpy|move)|(exp|log|log1p|expm1|pow|tanh|erf|sqrt)f?|sched_yield)")
_log = logging.getLogger("gpuconv")


class CompileError(RuntimeError):
    """A kernel could not be compiled; one line."""


@dataclass(frozen=True)
class Isa:
    """What kernels are written for: bytes of a vector register, how many, and LLVM's names."""

    name: str  # "avx512", "avx2", "generic"
    vector: int
    registers: int
    cpu: str
    features: str


@dataclass(frozen=True)
class Kernel:
    """What there is to compile: a factory and its constants, which must be JSON values.

    A `bare` kernel takes its parameters themselves, integers only, and no task and thread.
    """

    name: str
    make: Callable[..., Callable[..., None]]
    constants: tuple[tuple[str, Any], ...] = ()
    bare: bool = False

    @property
    def parameters(self) -> dict[str, str]:
        """Name -> type ("float32*", "int64", ...) of what `pack` takes, in order."""
        return _compiled(self, current()).parameters


@dataclass(frozen=True)
class Code:
    """An object file, the name of its entry, and the kernel's parameters: name -> type."""

    entry: str
    parameters: dict[str, str]
    object: bytes


@dataclass(frozen=True)
class Compiled:
    """Code in memory."""

    address: int
    parameters: dict[str, str]


_known: dict[tuple[Kernel, Isa], Compiled] = {}
_lock = threading.RLock()
_isa: ContextVar[Isa | None] = ContextVar("gpuconv_isa", default=None)


@cache
def host() -> Isa:
    """This processor's."""
    llvm = _llvm()
    found = llvm.get_host_cpu_features()
    cpu, features = llvm.get_host_cpu_name(), found.flatten()
    if found.get("avx512f") and found.get("avx512dq") and found.get("avx512vl"):
        return Isa("avx512", 64, 32, cpu, features)
    if found.get("avx2") and found.get("fma"):
        return Isa("avx2", 32, 16, cpu, features)
    neon = llvm.get_process_triple().startswith(("aarch64", "arm64"))
    return Isa("generic", 16, 32 if neon else 16, cpu, features)


def current() -> Isa:
    """What is compiled for: this processor's, or what `restricted` says."""
    return _isa.get() or host()


@contextmanager
def restricted(name: str) -> Iterator[Isa]:
    """Inside the block, compile as for a lesser processor: "avx2" or "generic" on x86-64."""
    lesser = {
        "avx2": Isa("avx2", 32, 16, "haswell", "+avx2,+fma"),
        "generic": Isa("generic", 16, 16, "x86-64", ""),
        host().name: host(),
    }
    if name not in lesser:
        raise CompileError(f"instruction set {name!r} is unknown; use one of {', '.join(lesser)}")
    token = _isa.set(lesser[name])
    try:
        yield lesser[name]
    finally:
        _isa.reset(token)


def _parameters(kernel: Kernel) -> dict[str, str]:
    constants = dict(kernel.constants)
    function = kernel.make(**constants)
    names = list(inspect.signature(function).parameters)
    found = {}
    for name in names if kernel.bare else names[2:]:
        kind = function.__annotations__[name].__metadata__[0]
        found[name] = kind.replace("data", constants.get("dtype", ""))
    return found


@cache
def packer(kernel: Kernel) -> Callable[..., bytes]:
    """pack(*values) -> the block of a kernel's arguments: ids of arrays, integers, floats."""
    kinds = kernel.parameters.values()
    return struct.Struct("".join("d" if kind == "float64" else "q" for kind in kinds)).pack


def function(kernel: Kernel) -> int:
    """The address of the code of `kernel` for `current()`, from disk if it is there.

    Raises CompileError where it is not and cannot be compiled.
    """
    return _compiled(kernel, current()).address


def _compiled(kernel: Kernel, isa: Isa) -> Compiled:
    found = _known.get((kernel, isa))
    if found is None:
        with _lock:  # LLVM's engine is one, and for one thread at a time
            found = _known.get((kernel, isa))
            if found is None:
                found = _known[kernel, isa] = _compile(kernel, isa)
    return found


def _compile(kernel: Kernel, isa: Isa) -> Compiled:
    path, key = place(kernel, isa)
    code = read(path, key)
    if code is None:
        _announce()
        code = build(kernel, isa)
        try:
            write(path, key, code)
        except OSError as error:
            _not_kept(path.parent, unwritable(path.parent) or str(error))
    return Compiled(_load(code), code.parameters)


def build(kernel: Kernel, isa: Isa) -> Code:
    """Compiled without looking at the disk."""
    text, entry = _to_llvm(kernel, isa)
    llvm = _llvm()
    module = llvm.parse_assembly(text)
    for item in module.functions:
        foreign = item.is_declaration and not item.name.startswith("llvm.")
        if foreign and not EXTERNAL.fullmatch(item.name):
            raise CompileError(f"kernel {kernel.name}: it needs {item.name}; kernels call none")
        if not item.is_declaration and item.name != entry:
            # Numba's names are unique in one process only; here objects of several meet.
            item.linkage = "internal"
    return Code(entry, _parameters(kernel), _machine(isa).emit_object(module))


def assembly(kernel: Kernel) -> str:
    """The instructions, as text, for people."""
    isa = current()
    text, _ = _to_llvm(kernel, isa)
    return str(_machine(isa).emit_assembly(_llvm().parse_assembly(text)))


def place(kernel: Kernel, isa: Isa) -> tuple[Path, str]:
    """The file that may have its code, and its key."""
    module = inspect.getsourcefile(kernel.make)
    assert module is not None
    here = Path(__file__)
    always = here, here.with_name("vector.py")
    files = sources("gpuconv.kernels.cpu", here.parent, Path(module), *always)
    parts = [
        FORMAT,
        kernel.name,
        kernel.make.__qualname__,
        kernel.constants,
        (isa.name, isa.vector, isa.registers, isa.cpu, isa.features),
        *map(digest, files),
        *(version(tool) for tool in TOOLS),
    ]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return cache_folder() / f"{kernel.name}-{key[:32]}.o", key


def write(path: Path, key: str, code: Code) -> None:
    """Keep the code under `key`: complete, or not at all."""
    head = {"entry": code.entry, "parameters": code.parameters}
    line = json.dumps({"key": key, "head": head, "sha256": _checksum(head, code.object)})
    write_whole(path, MAGIC + line.encode() + b"\n" + code.object)


def read(path: Path, key: str) -> Code | None:
    """What was written there under `key`; None if nothing was, or it is damaged."""
    try:
        line, code = read_own(path).removeprefix(MAGIC).split(b"\n", 1)
        stored = json.loads(line)
        head = stored["head"]
        if stored["key"] != key or stored["sha256"] != _checksum(head, code):
            raise ValueError("its contents do not fit its checksum")
        return Code(head["entry"], head["parameters"], code)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.warning("compiled kernel %s is damaged (%s): it is built anew", path, error)
        return None


def _checksum(head: dict[str, Any], code: bytes) -> str:
    return hashlib.sha256(json.dumps(head).encode() + code).hexdigest()


@cache
def version(package: str) -> str:
    """The installed version."""
    return metadata.version(package)


@cache
def _announce() -> None:
    """Say once that there is something to wait for."""
    _log.warning(
        "compiling CPU kernels for their first use, some seconds for each new kind of layer; "
        "they are kept in %s",
        cache_folder(),
    )


@cache
def _not_kept(folder: Path, why: str) -> None:
    """Warn of it, once."""
    _log.warning("compiled kernels are not kept: %s; set GPUCONV_CACHE to another folder", why)


@cache
def _llvm() -> Any:
    with _lock:
        llvm = import_module("llvmlite.binding")
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        return llvm


@cache
def _machine(isa: Isa) -> Any:
    llvm = _llvm()
    target = llvm.Target.from_triple(llvm.get_process_triple())
    return target.create_target_machine(
        cpu=isa.cpu, features=isa.features, opt=3, reloc="default", codemodel="jitdefault", jit=True
    )


@cache
def _engine() -> Any:
    llvm = _llvm()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _new_machine())
    atexit.register(engine.detach)  # it would be freed after what frees it
    return engine


def _new_machine() -> Any:
    """A machine of its own for the engine, which takes it over."""
    llvm = _llvm()
    target = llvm.Target.from_triple(llvm.get_process_triple())
    return target.create_target_machine(opt=3, codemodel="jitdefault", jit=True)


def _load(code: Code) -> int:
    engine = _engine()
    engine.add_object_file(_llvm().ObjectFileRef.from_data(code.object))
    engine.finalize_object()
    address: int = engine.get_function_address(code.entry)
    if not address:
        raise CompileError(f"compiled kernel has no entry {code.entry}")
    return address


def _to_llvm(kernel: Kernel, isa: Isa) -> tuple[str, str]:
    """(LLVM's text, optimised by Numba, the name of its entry)."""
    numba, types = import_module("numba"), import_module("numba.types")
    compiler = import_module("numba.core.compiler")
    cpu = import_module("numba.core.registry").cpu_target
    wrong = import_module("numba.core.errors").NumbaError
    constants = dict(kernel.constants)
    token = _isa.set(isa)
    try:
        body = numba.njit(error_model="numpy", fastmath={"contract"})(kernel.make(**constants))
        kinds = [_kind(types, kind, isa) for kind in _parameters(kernel).values()]
        entry, signature = body.py_func, kinds
        if not kernel.bare:
            entry, signature = _task(body, kinds), [types.int64] * 3
        flags = compiler.Flags()
        flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
        flags.error_model = "numpy"
        flags.fastmath = import_module("numba.core.cpu_options").FastMathOptions({"contract"})
        done = compiler.compile_extra(
            cpu.typing_context, cpu.target_context, entry, tuple(signature), types.none, flags, {}
        )
    except wrong as error:
        raise CompileError(f"kernel {kernel.name}: {_essence(error)}") from None
    finally:
        _isa.reset(token)
    name = f"gpuconv_{kernel.name}_{place(kernel, isa)[1][:16]}"
    text = done.library.get_llvm_str()
    return text.replace(done.fndesc.llvm_func_name, name), name


def _kind(types: Any, kind: str, isa: Isa) -> Any:
    vector: Any = import_module("gpuconv.kernels.cpu.vector")  # which imports Numba
    item = getattr(types, kind.rstrip("*"))
    return vector.Pointer(item, isa.vector) if kind.endswith("*") else item


def _task(body: Any, kinds: list[Any]) -> Callable[..., None]:
    """What takes a task, a thread and a block of arguments, and calls `body` with them."""
    vector: Any = import_module("gpuconv.kernels.cpu.vector")  # which imports Numba
    unpack = vector.unpacker(kinds)

    def entry(task: int, thread: int, block: int) -> None:
        body(task, thread, *unpack(block))

    return entry


def _forked() -> None:
    """In a child: a lock of its own."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    # A fork waits until nothing is compiled: Numba and LLVM have locks too, which the child would
    # wait for.
    os.register_at_fork(
        before=lambda: _lock.acquire(),
        after_in_parent=lambda: _lock.release(),
        after_in_child=_forked,
    )


def _essence(error: BaseException) -> str:
    """What is wrong, of the many lines that Numba says."""
    said = []
    for line in filter(None, map(str.strip, str(error).splitlines())):
        if line.startswith(("File ", "During: ", "There are ")):
            break
        if not line.startswith("Failed in "):
            said.append(line)
    place = re.search(r'File "([^"]+)", line (\d+)', str(error))
    where = f"{Path(place[1]).name}:{place[2]}: " if place else ""
    return where + " ".join(said)
