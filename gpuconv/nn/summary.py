"""What a model consists of, layer by layer: shapes, parameters, work, memory, receptive field.

Nothing is declared by the layers. Zeros go through the model once, and the tape that automatic
differentiation records says what was computed: multiplications where a Function counted its `macs`,
receptive fields by walking from a layer's output to its inputs.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gpuconv import random
from gpuconv.autograd import Function, Tensor, enable_grad
from gpuconv.backends import Backend, backend, backend_of
from gpuconv.errors import ArgumentError
from gpuconv.nn.module import Module, Parameter, floating
from gpuconv.nn.receptive import ReceptiveFields
from gpuconv.nn.shape import PixelShuffle, PixelUnshuffle

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """One call of one layer.

    `parameters` counts the layer's own, at its first call; `macs` are multiply-accumulates;
    `memory` is bytes of new output (0 for a view of the input); `receptive_field` is how many input
    pixels an output pixel depends on, an axis, padding counted: empty if it depends on none.
    """

    name: str
    type: str
    input_shape: Shape
    output_shape: Shape
    kernel: Shape
    parameters: int
    macs: int
    memory: int
    receptive_field: Shape


@dataclass(frozen=True)
class Totals:
    """Of the whole model: every parameter once, all multiplications, bytes of each kind."""

    parameters: int
    trainable: int
    macs: int
    input_bytes: int
    parameter_bytes: int
    activation_bytes: int


@dataclass(frozen=True)
class Summary:
    """A model's rows and totals; `str` is a table, `to_dict` fit for JSON."""

    model: str
    input_shape: Shape
    dtype: str
    rows: tuple[Row, ...]
    totals: Totals

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers."""
        return _plain(asdict(self))

    def __str__(self) -> str:
        t = self.totals
        lines = [_HEAD, *(_cells(row) for row in self.rows)]
        total = ["total", self.model, _times(self.input_shape), "", "", f"{t.parameters:,}"]
        lines.append([*total, f"{t.macs:,}", _bytes(t.activation_bytes), ""])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = [_aligned(line, widths) for line in lines]
        rule = "-" * max(map(len, table))
        notes = [self.dtype, f"parameters {_bytes(t.parameter_bytes)}"]
        if t.trainable < t.parameters:
            notes.append(f"{t.parameters - t.trainable:,} frozen")
        notes.append(f"input {_bytes(t.input_bytes)}")
        return "\n".join([table[0], rule, *table[1:-1], rule, table[-1], ", ".join(notes)])


def summary(
    model: Module, input_shape: Sequence[int], dtype: Any = None, batch: int | None = None
) -> Summary:
    """Send zeros of `input_shape` through the model and tell what each layer is and does.

    `input_shape` is (C, H, W), a batch of 1 then, or a whole shape such as (N, C, H, W); with
    `batch` it is always that of one input, such as (C, L). `dtype` None is that of the parameters.
    There is a row for each call of a module without modules inside, and for others if they hold
    parameters or multiply themselves. The model is left as it was: mode, statistics, hooks, the
    state of `gpuconv.random`. Errors are those of the model.
    """
    shape = tuple(input_shape) if batch is None else (batch, *input_shape)
    if not shape or not all(isinstance(n, (int, np.integer)) and n > 0 for n in shape):
        raise ArgumentError(
            f"summary: the input {shape} must have positive sizes, such as (3, 32, 32)"
        )
    if batch is None and len(shape) == 3:
        shape = (1, *shape)
    first = next(model.parameters(), None)
    be = backend_of() if first is None else backend_of(first.data)
    if dtype is None:
        dtype = np.float32 if first is None else first.dtype
    dtype = floating("summary", dtype)
    x = Tensor(be.xp.zeros(shape, dtype=dtype), requires_grad=True)
    # The tape is what is read here, so it runs within no_grad() too.
    with enable_grad():
        return _trace(be, model, x)


def _trace(be: Backend, model: Module, x: Tensor) -> Summary:
    tracer = _Tracer(model, x)
    with backend(be), _left_as_it_was(model), tracer.watching():
        y = model(x)
    parameters = list(model.parameters())
    return Summary(
        type(model).__name__,
        x.shape,
        str(x.dtype),
        tuple(tracer.rows),
        Totals(
            sum(p.size for p in parameters),
            sum(p.size for p in parameters if p.requires_grad),
            sum(row.macs for row in tracer.rows) + tracer.claim([y], [x]),
            x.data.nbytes,
            sum(p.data.nbytes for p in parameters),
            sum(row.memory for row in tracer.rows),
        ),
    )


class _Tracer:
    """Makes a row of each call; modules inside are done before those around them."""

    def __init__(self, model: Module, x: Tensor) -> None:
        self.model, self.names = model, {id(m): name for name, m in model.named_modules()}
        self.fields = ReceptiveFields(x)
        self.rows: list[Row] = []
        self.claimed: set[Function] = set()
        self.counted: set[int] = set()

    @contextmanager
    def watching(self) -> Iterator[None]:
        handles = [m.register_forward_hook(self.called) for m in self.model.modules()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def called(self, module: Module, inputs: tuple[Any, ...], output: Any) -> None:
        sources, results = _tensors(inputs), _tensors(output)
        macs = self.claim(results, sources)
        if isinstance(module, PixelShuffle):
            self.fields.resize(sources[0], results[0], 1, 1 / module.upscale_factor)
        if isinstance(module, PixelUnshuffle):
            r = module.downscale_factor
            self.fields.resize(sources[0], results[0], r, r)
        own = [p for _, p in module._own(Parameter) if id(p) not in self.counted]
        if next(module.children(), None) is not None and not (own or macs):
            return
        self.counted.update(map(id, own))
        kernel = getattr(module, "kernel_size", ())
        self.rows.append(
            Row(
                self.names[id(module)],
                type(module).__name__,
                sources[0].shape if sources else (),
                results[0].shape if results else (),
                tuple(kernel) if isinstance(kernel, Sequence) else (),
                sum({id(p): p.size for p in own}.values()),
                macs,
                sum(t.data.nbytes for t in results if not _is_view(t, sources)),
                self.fields.of(results[0]) if results else (),
            )
        )

    def claim(self, results: list[Any], sources: list[Any]) -> int:
        """Multiplications between these tensors that no row has yet; they are this one's now."""
        stop = {id(t._node or t) for t in sources}
        waiting: list[Any] = [t._node for t in _tensors(results)]
        macs = 0
        while waiting:
            node = waiting.pop()
            if not isinstance(node, Function) or node in self.claimed or id(node) in stop:
                continue
            self.claimed.add(node)
            macs += node.macs
            waiting += node.edges
        return macs


@contextmanager
def _left_as_it_was(model: Module) -> Iterator[None]:
    """In evaluation mode inside; modes, buffers and the random generator are put back after."""
    modes = [(m, m.training) for m in model.modules()]
    buffers = [(b, b.data.copy()) for b in model.buffers()]
    state = random.get_state()
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for buffer, data in buffers:
            buffer.data[...] = data
        random.set_state(state)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [t for item in value for t in _tensors(item)]
    return []


def _is_view(t: Tensor, sources: list[Tensor]) -> bool:
    xp = backend_of(t.data).xp
    return any(xp.may_share_memory(t.data, s.data) for s in sources)


_HEAD = ["layer", "type", "input", "output", "kernel", "parameters", "MACs", "memory", "field"]
_NUMBERS = range(5, 8)  # columns aligned on the right


def _cells(row: Row) -> list[str]:
    shapes = (row.input_shape, row.output_shape, row.kernel)
    numbers = [f"{row.parameters:,}", f"{row.macs:,}", _bytes(row.memory)]
    return [row.name or "-", row.type, *map(_times, shapes), *numbers, _times(row.receptive_field)]


def _aligned(cells: list[str], widths: list[int]) -> str:
    sides = [str.rjust if i in _NUMBERS else str.ljust for i in range(len(cells))]
    parts = [side(cell, w) for side, cell, w in zip(sides, cells, widths, strict=True)]
    return "  ".join(parts).rstrip()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _times(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "-"


def _bytes(count: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
