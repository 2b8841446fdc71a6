"""Instructions that Numba lacks, as inline PTX."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.cuda.extending import intrinsic


def _asm_fn(ret: Any, args: Any, text: Any, constraints: Any) -> Any:
    return ir.InlineAsm(ir.FunctionType(ret, args), text, constraints, side_effect=True)


def _pointer(context: Any, builder: Any, arrty: Any, arr: Any, index: Any) -> Any:
    data = context.make_array(arrty)(context, builder, arr).data
    return builder.ptrtoint(builder.gep(data, [index]), ir.IntType(64))


@intrinsic
def mma_tf32(
    typingctx: Any,
    c0: Any,
    c1: Any,
    c2: Any,
    c3: Any,
    a0: Any,
    a1: Any,
    a2: Any,
    a3: Any,
    b0: Any,
    b1: Any,
) -> Any:
    f = types.float32
    sig = types.UniTuple(f, 4)(c0, c1, c2, c3, a0, a1, a2, a3, b0, b1)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        fl, i32 = ir.FloatType(), ir.IntType(32)
        a = [builder.bitcast(x, i32) for x in args[4:]]
        asm = _asm_fn(
            ir.LiteralStructType([fl] * 4),
            [i32] * 6 + [fl] * 4,
            "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
            "{$0,$1,$2,$3},{$4,$5,$6,$7},{$8,$9},{$10,$11,$12,$13};",
            "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f",
        )
        r = builder.call(asm, a + list(args[:4]))
        return context.make_tuple(
            builder, sig.return_type, [builder.extract_value(r, i) for i in range(4)]
        )

    return sig, codegen


@intrinsic
def mma_f16(
    typingctx: Any,
    c0: Any,
    c1: Any,
    c2: Any,
    c3: Any,
    a0: Any,
    a1: Any,
    a2: Any,
    a3: Any,
    b0: Any,
    b1: Any,
) -> Any:
    """m16n8k16 with f16 operands packed two to an int32."""
    sig = types.UniTuple(types.float32, 4)(c0, c1, c2, c3, a0, a1, a2, a3, b0, b1)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        fl, i32 = ir.FloatType(), ir.IntType(32)
        asm = _asm_fn(
            ir.LiteralStructType([fl] * 4),
            [i32] * 6 + [fl] * 4,
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
            "{$0,$1,$2,$3},{$4,$5,$6,$7},{$8,$9},{$10,$11,$12,$13};",
            "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f",
        )
        r = builder.call(asm, list(args[4:]) + list(args[:4]))
        return context.make_tuple(
            builder, sig.return_type, [builder.extract_value(r, i) for i in range(4)]
        )

    return sig, codegen


def _ldmatrix(n: int, trans: Any) -> Any:
    @intrinsic
    def ldm(typingctx: Any, arr: Any, index: Any) -> Any:
        sig = types.UniTuple(types.int32, n)(arr, index)

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            i32, i64 = ir.IntType(32), ir.IntType(64)
            outs = ",".join(f"${k}" for k in range(n))
            t = ".trans" if trans else ""
            ret = ir.LiteralStructType([i32] * n)
            asm = _asm_fn(
                ret,
                [i64],
                f"{{ .reg .u64 t; cvta.to.shared.u64 t, ${n}; "
                f"ldmatrix.sync.aligned.m8n8.x{n}{t}.shared.b16 {{{outs}}}, [t]; }}",
                ",".join(["=r"] * n + ["l", "~{memory}"]),
            )
            r = builder.call(asm, [_pointer(context, builder, sig.args[0], args[0], args[1])])
            return context.make_tuple(
                builder, sig.return_type, [builder.extract_value(r, k) for k in range(n)]
            )

        return sig, codegen

    return ldm


ldmatrix_x4, ldmatrix_x2_trans = _ldmatrix(4, False), _ldmatrix(2, True)


@intrinsic
def cp_async16(typingctx: Any, dst: Any, di: Any, src: Any, si: Any) -> Any:
    """Start copying 16 bytes src[si:] (global) -> dst[di:] (shared)."""
    sig = types.void(dst, di, src, si)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        i64 = ir.IntType(64)
        asm = _asm_fn(
            ir.VoidType(),
            [i64, i64],
            "{ .reg .u64 t; cvta.to.shared.u64 t, $0; cp.async.cg.shared.global [t], [$1], 16; }",
            "l,l,~{memory}",
        )
        builder.call(
            asm,
            [
                _pointer(context, builder, sig.args[0], args[0], args[1]),
                _pointer(context, builder, sig.args[2], args[2], args[3]),
            ],
        )
        return context.get_dummy_value()

    return sig, codegen


def _plain(text: Any) -> Any:
    @intrinsic
    def f(typingctx: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            builder.call(_asm_fn(ir.VoidType(), [], text, "~{memory}"), [])
            return context.get_dummy_value()

        return types.void(), codegen

    return f


cp_commit, cp_wait0, cp_wait1 = (
    _plain(t)
    for t in ("cp.async.commit_group;", "cp.async.wait_group 0;", "cp.async.wait_group 1;")
)
