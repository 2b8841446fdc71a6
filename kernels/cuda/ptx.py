"""Instructions that Numba lacks or makes badly, as LLVM and inline PTX.

Left alone, Numba computes every index in 64 bits, wraps negative ones, and never merges four loads
into one. These intrinsics are what the kernels are written with instead:

    i32(a * b + c)              keep an index in 32 bits (the wider arithmetic folds away)
    div(a, b), rem(a, b)        32-bit division of numbers that are not negative
    divide(n, *reciprocal(d))   the same by a known d: a multiplication and a shift
    load(p, i), store(p, i, v)  p[i] with a 32-bit index; load_nc is read-only (LDG.CONSTANT)
    load4, store4, load4_nc     four adjacent float32 or int32 at once, aligned to 16 bytes
    load_if, load4_if           p[i + j * step] if it is wanted, else zeros
    aligned(p)                  1 if p is a multiple of 16 bytes (a view of an array need not be)
    shared()                    the address (32 bits) of the dynamic shared memory
    lds, sts, lds4, sts4        float32 at such an address
    copy16(s, p, i, n)          start copying n (0 or 16) bytes of p[i:] to s, zeros for the rest
    copy4(s, p, i, n)           the same with 4
    commit(), wait(n)           close a group of copies; wait until at most n groups are open
    barrier()                   all threads of the block
    inline(f)                   f as a function that kernels can call
    shuffle_xor(v, mask)        the float32 of lane ^ mask
    ldmatrix4, ldmatrix4_turned four 8x8 matrices of 16-bit numbers, a row an address of a lane
    mma_f16, mma_bf16, mma_tf32 tensor cores: c (4 float32 a lane) += a b, for a warp's 16x8 of c

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
# Decorates a function that kernels call: it becomes a part of them, and needs no device to compile.
inline = cuda.jit(device=True, inline="always")


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
            vector = ir.VectorType(args[0].type.pointee, lanes)
            address = builder.bitcast(address, ir.PointerType(vector, _GLOBAL))
            value = builder.load(address, align=4 * lanes)
            if read_only:
                _read_only(value)
            return _unpack(context, builder, sig, value, lanes)

        result = item if lanes == 1 else types.UniTuple(item, lanes)
        return result(pointer, types.int32), code

    return f


def _unpack(context: Any, builder: Any, sig: Any, vector: Any, lanes: int) -> Any:
    values = [builder.extract_element(vector, _I32(i)) for i in range(lanes)]
    return context.make_tuple(builder, sig.return_type, values)


def _pack(builder: Any, values: Any) -> Any:
    vector = ir.Constant(ir.VectorType(values[0].type, len(values)), ir.Undefined)
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

    item = pointer.dtype
    return _emit(types.void(pointer, types.int32, item, item, item, item), code)


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


@intrinsic
def divide(typingctx: Any, n: Any, factor: Any, shift: Any) -> Any:
    """n // d for 0 <= n < 2**31, with (factor, shift) = `reciprocal(d)`: no division."""

    def code(builder: Any, x: Any, f: Any, s: Any) -> Any:
        wide = builder.mul(builder.zext(x, _I64), builder.zext(f, _I64))
        high = builder.trunc(builder.lshr(wide, _I64(32)), _I32)
        return builder.lshr(builder.add(high, x), s)

    return _emit(types.int32(types.int32, types.int32, types.int32), code)


def reciprocal(d: int) -> tuple[int, int]:
    """(factor, shift) for `divide` by d; the factor as a signed 32-bit number.

    Source: Granlund and Montgomery, "Division by invariant integers using multiplication", 1994.
    """
    shift = (d - 1).bit_length()
    factor = (((1 << shift) - d) << 32) // d + 1
    return factor - (1 << 32) if factor >= 1 << 31 else factor, shift


@intrinsic
def within(typingctx: Any, i: Any, n: Any) -> Any:
    """0 <= i < n, in one comparison."""

    def code(builder: Any, x: Any, y: Any) -> Any:
        return builder.icmp_unsigned("<", x, y)

    return _emit(types.boolean(types.int32, types.int32), code)


def _special(register: str) -> Any:
    @intrinsic
    def f(typingctx: Any) -> Any:
        def code(builder: Any) -> Any:
            return _asm(builder, f"mov.u32 $0, %{register};", "=r", _I32)

        return _emit(types.int32(), code)

    return f


# Read anew each time, where cuda.threadIdx.x would be kept in a register, and what follows from it.
thread_again, block_again = _special("tid.x"), _special("ctaid.x")
block_y_again, block_z_again = _special("ctaid.y"), _special("ctaid.z")


@intrinsic
def aligned(typingctx: Any, pointer: Any) -> Any:
    """1 where four float32 can be read at `pointer` at once, else 0; a null pointer is aligned."""

    def code(builder: Any, p: Any) -> Any:
        low = builder.and_(builder.ptrtoint(p, _I64), _I64(15))
        return builder.zext(builder.icmp_unsigned("==", low, _I64(0)), _I32)

    return _emit(types.int32(pointer), code)


def _masked_loader(lanes: int) -> Any:
    kind = _FLOAT if lanes == 1 else ir.LiteralStructType([_FLOAT] * lanes)
    values = [f"${i}" for i in range(lanes)]
    group, vector = ("$0", "") if lanes == 1 else (f"{{{', '.join(values)}}}", f".v{lanes}")
    zeros = " ".join(f"mov.b32 {v}, 0;" for v in values)
    text = (
        f"{{ .reg .pred p; setp.ne.s32 p, ${lanes + 1}, 0; {zeros} "
        f"@p ld.global.nc{vector}.b32 {group}, [${lanes}]; }}"
    )
    constraints = ",".join(["=&f"] * lanes + ["l", "r"])

    @intrinsic
    def f(typingctx: Any, pointer: Any, index: Any, i: Any, step: Any, wanted: Any) -> Any:
        def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            pointer, index, i, step, wanted = args
            away = builder.mul(builder.sext(step, _I64), i)
            address = builder.gep(_element(builder, pointer, index), [away])
            assembly = ir.InlineAsm(ir.FunctionType(kind, [address.type, _I32]), text, constraints)
            value = builder.call(assembly, [address, wanted])
            if lanes == 1:
                return value
            parts = [builder.extract_value(value, lane) for lane in range(lanes)]
            return context.make_tuple(builder, sig.return_type, parts)

        n = types.int32
        result = types.float32 if lanes == 1 else types.UniTuple(types.float32, lanes)
        return result(pointer, n, types.int64, n, n), code

    return f


# p[index + i * step] (four adjacent float32, or one) if `wanted`, else zeros, and nothing is read:
# no branch, and the address is one multiplication for a constant i. Read-only memory.
load_if, load4_if = _masked_loader(1), _masked_loader(4)


@intrinsic
def ones(typingctx: Any, low: Any, high: Any) -> Any:
    """Bits low ... high - 1 are 1, the others 0; low >= 0, high <= 31, and none if low >= high."""

    def code(builder: Any, a: Any, b: Any) -> Any:
        one = _I32(1)
        bits = builder.sub(builder.shl(one, b), builder.shl(one, a))
        return builder.select(builder.icmp_signed("<", a, b), bits, _I32(0))

    return _emit(types.int32(types.int32, types.int32), code)


def _ldmatrix(turned: bool) -> Any:
    text = f"ldmatrix.sync.aligned.m8n8.x4{'.trans' if turned else ''}.shared.b16 "

    @intrinsic
    def f(typingctx: Any, address: Any) -> Any:
        def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            four = ir.LiteralStructType([_I32] * 4)
            read = text + "{$0, $1, $2, $3}, [$4];"
            value = _asm(builder, read, "=r,=r,=r,=r,r,~{memory}", four, args[0])
            parts = [builder.extract_value(value, i) for i in range(4)]
            return context.make_tuple(builder, sig.return_type, parts)

        return types.UniTuple(types.int32, 4)(types.int32), code

    return f


ldmatrix4, ldmatrix4_turned = _ldmatrix(False), _ldmatrix(True)


def _mma(shape: str, kind: str) -> Any:
    """(c0..c3, a0..a3, b0, b1) -> c; a and b are 32 bits each: two 16-bit numbers, or a float32."""
    text = (
        f"mma.sync.aligned.{shape}.row.col.f32.{kind}.{kind}.f32 "
        "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};"
    )

    @intrinsic
    def f(
        typingctx: Any, c0: Any, c1: Any, c2: Any, c3: Any,
        a0: Any, a1: Any, a2: Any, a3: Any, b0: Any, b1: Any,
    ) -> Any:  # fmt: skip
        def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            # No memory is touched: the compiler may move it, and drops it if c is not used.
            four = ir.LiteralStructType([_FLOAT] * 4)
            bits = [builder.bitcast(v, _I32) for v in args[4:]]
            kinds = ir.FunctionType(four, [_I32] * 6 + [_FLOAT] * 4)
            assembly = ir.InlineAsm(kinds, text, "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f")
            value = builder.call(assembly, [*bits, *args[:4]])
            parts = [builder.extract_value(value, i) for i in range(4)]
            return context.make_tuple(builder, sig.return_type, parts)

        c, ab = types.float32, types.float32 if kind == "tf32" else types.int32
        return types.UniTuple(c, 4)(*(c,) * 4, *(ab,) * 6), code

    return f


mma_f16, mma_bf16 = _mma("m16n8k16", "f16"), _mma("m16n8k16", "bf16")
mma_tf32 = _mma("m16n8k8", "tf32")
