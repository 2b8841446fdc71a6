"""What threads share: numbers that several change, waiting, and the call of a compiled kernel."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from gpuconv.kernels.cpu.compiler import current
from gpuconv.kernels.cpu.vector import I32, I64


def _slot(builder: Any, p: Any, index: Any) -> Any:
    return builder.gep(p, [index])


@intrinsic
def fetch_add(typingctx: Any, p: Any, index: Any, by: Any) -> Any:
    """p[index] += by, in one step for all threads; what it was before."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        p_at, i, value = arguments
        return builder.atomic_rmw("add", builder.gep(p_at, [i]), value, "seq_cst")

    return types.int64(p, types.int64, types.int64), codegen


@intrinsic
def peek(typingctx: Any, p: Any, index: Any) -> Any:
    """p[index] as other threads left it."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(builder.gep(arguments[0], [arguments[1]]), "seq_cst", 8)

    return types.int64(p, types.int64), codegen


@intrinsic
def poke(typingctx: Any, p: Any, index: Any, value: Any) -> Any:
    """p[index] = value, for other threads to see."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        where = builder.gep(arguments[0], [arguments[1]])
        builder.store_atomic(arguments[2], where, "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(p, types.int64, types.int64), codegen


@intrinsic
def pause(typingctx: Any) -> Any:
    """A moment's rest in a loop that waits."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if current().name != "generic":
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(
                cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), []
            )
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def give_way(typingctx: Any) -> Any:
    """Let another thread have this processor."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(I32, [])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def call(typingctx: Any, function: Any, task: Any, thread: Any, block: Any) -> Any:
    """Call a compiled kernel by its address."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(I32, [byte, byte, I64, I64, I64])
        target = builder.inttoptr(arguments[0], kind.as_pointer())
        spare = [
            builder.bitcast(cgutils.alloca_once(builder, ir.ArrayType(I64, 2)), byte)
            for _ in range(2)
        ]
        builder.call(target, [*spare, *arguments[1:]])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), codegen
