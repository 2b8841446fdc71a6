"""Instructions that Numba lacks or makes badly, as LLVM and inline PTX.

Left alone, Numba computes every index in 64 bits, wraps negative ones, and never merges four loads
into one. These intrinsics are what the kernels are written with instead:

    i32(a * b + c)              keep an index in 32 bits (the wider arithmetic folds away)
    div(a, b), rem(a, b)        32-bit division of numbers that are not negative
    load(p, i), store(p, i, v)  p[i] with a 32-bit index; load_nc is read-only (LDG.CONSTANT)
    load4, store4, load4_nc     four adjacent float32 at once, aligned to 16 bytes
    shared()                    the address (32 bits) of the dynamic shared memory
    lds, sts, lds4, sts4        float32 at such an address
    copy16(s, p, i, n)          start copying n (0 or 16) bytes of p[i:] to s, zeros for the rest
    copy4(s, p, i, n)           the same with 4
    commit(), wait(n)           close a group of copies; wait until at most n groups are open
    barrier()                   all threads of the block
    shuffle_xor(v, mask)        the value of lane ^ mask, float32 or float64
    ldmatrix4, mma_f16, mma_tf32    tensor cores

On sm_75, which has no asynchronous copies, `copy16_sync` and `copy4_sync` do the same at once.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import cuda, types
from numba.cuda.extending import intrinsic

_BYTE, _I32, _I64, _FLOAT = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
_GLOBAL, _SHARED = 1, 3  # address spaces

barrier = cuda.syncthreads


def _emit(signature: Any, code: Callable[..., Any]) -> Any:
    """What an intrinsic returns: its type, and code(builder, *values) -> value or None."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        value = code(builder, *args)
        return context.get_dummy_value() if value is None else value

    return signature, codegen


def _asm(builder: Any, text: str, constraints: str, result: Any, *args: Any) -> Any:
    """A call of inline PTX that touches memory or synchronises: never moved or dropped."""
    kind = ir.FunctionType(result, [a.type for a in args])
    return builder.call(ir.InlineAsm(kind, text, constraints, side_effect=True), args)


@intrinsic
def i32(typingctx: Any, value: Any) -> Any:
    """`value`, an integer, as 32 bits."""

    def code(builder: Any, v: Any) -> Any:
        return builder.trunc(v, _I32) if v.type.width > 32 else v

    return _emit(types.int32(value), code)


def _binary(operation: str) -> Any:
    @intrinsic
    def f(typingctx: Any, a: Any, b: Any) -> Any:
        def code(builder: Any, x: Any, y: Any) -> Any:
            return getattr(builder, operation)(x, y)

        return _emit(types.int32(types.int32, types.int32), code)

    return f


div, rem = _binary("udiv"), _binary("urem")


def _element(builder: Any, pointer: Any, index: Any) -> Any:
    """The address of pointer[index] in global memory."""
    item = pointer.type.pointee
    base = builder.addrspacecast(pointer, ir.PointerType(item, _GLOBAL))
    return builder.gep(base, [builder.sext(index, _I64)])


def _read_only(instruction: Any) -> Any:
    """Mark a load as of memory that no one writes during the kernel."""
    instruction.set_metadata("invariant.load", instruction.parent.module.add_metadata([]))
    return instruction


def _loader(lanes: int, read_only: bool) -> Any:
    @intrinsic
    def f(typingctx: Any, pointer: Any, index: Any) -> Any:
        item = pointer.dtype

        def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            address = _element(builder, *args)
            if lanes == 1:
                value = builder.load(address)
                return _read_only(value) if read_only else value
            vector = ir.VectorType(_FLOAT, lanes)
            address = builder.bitcast(address, ir.PointerType(vector, _GLOBAL))
            value = builder.load(address, align=4 * lanes)
            if read_only:
                _read_only(value)
            return _unpack(context, builder, sig, value, lanes)

        result = item if lanes == 1 else types.UniTuple(types.float32, lanes)
        return result(pointer, types.int32), code

    return f


def _unpack(context: Any, builder: Any, sig: Any, vector: Any, lanes: int) -> Any:
    values = [builder.extract_element(vector, _I32(i)) for i in range(lanes)]
    return context.make_tuple(builder, sig.return_type, values)


def _pack(builder: Any, values: Any) -> Any:
    vector = ir.Constant(ir.VectorType(_FLOAT, len(values)), ir.Undefined)
    for i, value in enumerate(values):
        vector = builder.insert_element(vector, value, _I32(i))
    return vector


load, load_nc = _loader(1, False), _loader(1, True)
load4, load4_nc = _loader(4, False), _loader(4, True)


@intrinsic
def store(typingctx: Any, pointer: Any, index: Any, value: Any) -> Any:
    """pointer[index] = value."""

    def code(builder: Any, p: Any, i: Any, v: Any) -> None:
        builder.store(v, _element(builder, p, i))

    return _emit(types.void(pointer, types.int32, pointer.dtype), code)


@intrinsic
def store4(typingctx: Any, pointer: Any, index: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """pointer[index : index + 4] = a, b, c, d; the address must be a multiple of 16."""

    def code(builder: Any, p: Any, i: Any, *values: Any) -> None:
        vector = _pack(builder, values)
        address = builder.bitcast(_element(builder, p, i), ir.PointerType(vector.type, _GLOBAL))
        builder.store(vector, address, align=16)

    f = types.float32
    return _emit(types.void(pointer, types.int32, f, f, f, f), code)


@intrinsic
def shared(typingctx: Any) -> Any:
    """The address of the block's dynamic shared memory, aligned to 128 bytes."""

    def code(builder: Any) -> Any:
        name, module = "gpuconv_shared", builder.module
        if name in module.globals:
            memory = module.globals[name]
        else:
            memory = ir.GlobalVariable(module, ir.ArrayType(_BYTE, 0), name, _SHARED)
            memory.align = 128
            memory.linkage = "external"
        return builder.ptrtoint(memory, _I32)

    return _emit(types.int32(), code)


def _shared_pointer(builder: Any, address: Any, kind: Any) -> Any:
    return builder.inttoptr(address, ir.PointerType(kind, _SHARED))


def _shared_access(item: Any, kind: Any) -> Any:
    @intrinsic
    def lds(typingctx: Any, address: Any) -> Any:
        def code(builder: Any, a: Any) -> Any:
            return builder.load(_shared_pointer(builder, a, kind))

        return _emit(item(types.int32), code)

    @intrinsic
    def sts(typingctx: Any, address: Any, value: Any) -> Any:
        def code(builder: Any, a: Any, v: Any) -> None:
            builder.store(v, _shared_pointer(builder, a, kind))

        return _emit(types.void(types.int32, item), code)

    return lds, sts


lds, sts = _shared_access(types.float32, _FLOAT)
lds64, sts64 = _shared_access(types.float64, ir.DoubleType())
lds_i32, sts_i32 = _shared_access(types.int32, _I32)


@intrinsic
def lds4(typingctx: Any, address: Any) -> Any:
    """Four float32 of shared memory; the address must be a multiple of 16."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = _shared_pointer(builder, args[0], ir.VectorType(_FLOAT, 4))
        return _unpack(context, builder, sig, builder.load(pointer, align=16), 4)

    return types.UniTuple(types.float32, 4)(types.int32), code


@intrinsic
def sts4(typingctx: Any, address: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """Four float32 to shared memory; the address must be a multiple of 16."""

    def code(builder: Any, s: Any, *values: Any) -> None:
        vector = _pack(builder, values)
        builder.store(vector, _shared_pointer(builder, s, vector.type), align=16)

    f = types.float32
    return _emit(types.void(types.int32, f, f, f, f), code)


def _copier(size: int, asynchronous: bool) -> Any:
    cached = "cg" if size == 16 else "ca"
    if asynchronous:
        text = f"cp.async.{cached}.shared.global [$0], [$1], {size}, $2;"
    else:
        n = size // 4
        registers = ", ".join(f"v{i}" for i in range(n))
        group, vector = (f"{{{registers}}}", f".v{n}") if n > 1 else (registers, "")
        zeros = " ".join(f"mov.b32 v{i}, 0;" for i in range(n))
        text = (
            f"{{ .reg .pred p; .reg .b32 {registers}; {zeros} setp.ne.s32 p, $2, 0; "
            f"@p ld.global{vector}.b32 {group}, [$1]; st.shared{vector}.b32 [$0], {group}; }}"
        )

    @intrinsic
    def f(typingctx: Any, address: Any, pointer: Any, index: Any, nbytes: Any) -> Any:
        def code(builder: Any, s: Any, p: Any, i: Any, n: Any) -> None:
            source = _element(builder, p, i)
            _asm(builder, text, "r,l,r,~{memory}", ir.VoidType(), s, source, n)

        return _emit(types.void(types.int32, pointer, types.int32, types.int32), code)

    return f


copy16, copy4 = _copier(16, True), _copier(4, True)
copy16_sync, copy4_sync = _copier(16, False), _copier(4, False)


def _statement(text: str) -> Any:
    @intrinsic
    def f(typingctx: Any) -> Any:
        return _emit(
            types.void(), lambda builder: _none(_asm(builder, text, "~{memory}", ir.VoidType()))
        )

    return f


def _none(_: Any) -> None:
    return None


commit = _statement("cp.async.commit_group;")


def wait(groups: int) -> Any:
    """An intrinsic that waits until at most `groups` groups of copies are under way."""
    return _statement(f"cp.async.wait_group {groups};")


@intrinsic
def nothing(typingctx: Any) -> Any:
    """What `commit` and `wait` are where copies are not asynchronous."""
    return _emit(types.void(), lambda builder: None)


@intrinsic
def shuffle_xor(typingctx: Any, value: Any, mask: Any) -> Any:
    """The float32 `value` of the lane whose number is this one's ^ mask; all lanes take part."""

    def code(builder: Any, v: Any, m: Any) -> Any:
        text = "shfl.sync.bfly.b32 $0, $1, $2, 31, -1;"
        return _asm(builder, text, "=f,f,r", _FLOAT, v, m)

    return _emit(types.float32(types.float32, types.int32), code)
