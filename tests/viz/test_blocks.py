"""What a traced kernel did, against what the convolution needs, counted one window at a time."""

from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import gpuconv as gc
from gpuconv.cli import app
from gpuconv.errors import ArgumentError
from gpuconv.shapes import ConvSpec
from gpuconv.testing import assert_within_budget
from gpuconv.viz.trace import KINDS, PASSES, ZERO, Trace, trace
from tests.test_cli import fails, gpuconv
from tests.test_study import needs_compiler

SPECS = {  # shapes of x and w, and options
    "plain": ((1, 8, 9, 11), (32, 8, 3, 3), {}),
    "padded": ((1, 16, 10, 8), (20, 16, 3, 3), {"padding": 1}),
    "uneven": ((2, 3, 7, 9), (70, 3, 2, 5), {"padding": ((0, 1), (2, 1))}),
    "strided": ((1, 4, 9, 12), (8, 4, 3, 2), {"stride": (2, 3), "padding": (1, 0)}),
    "dilated": ((3, 5, 8, 7), (6, 5, 2, 3), {"dilation": (3, 2), "padding": "same"}),
    "pointwise": ((1, 4, 5, 6), (4, 4, 1, 1), {"stride": 2}),
}
CASES = [
    pytest.param(name, which, algo, id=f"{name}-{which}-{algo}")
    for name in SPECS
    for which in PASSES
    for algo in ("tiled", "direct")
]


@cache
def traced(name: str, which: str, algo: str, block: int = 0) -> Trace:
    """In one memory format or the other."""
    return trace(spec_of(name), which, algo, len(name) % 2 == 0, block)


def spec_of(name: str) -> ConvSpec:
    x, w, options = SPECS[name]
    return ConvSpec.infer(x, w, **options)


def traces(name: str, which: str, algo: str) -> list[Trace]:
    """Of the first, a middle and the last block."""
    blocks = traced(name, which, algo).blocks
    return [traced(name, which, algo, block) for block in sorted({0, blocks // 2, blocks - 1})]


def taps(spec: ConvSpec) -> list[tuple[Any, ...]]:
    """(n, p, q, r, s, h, w) of every tap of every window that is a pixel of the image."""
    found = []
    for n, p, q, r, s in np.ndindex(spec.x_shape[0], *spec.y_shape[2:], *spec.kernel):
        h = p * spec.stride[0] - spec.padding[0][0] + r * spec.dilation[0]
        w = q * spec.stride[1] - spec.padding[1][0] + s * spec.dilation[1]
        if 0 <= h < spec.x_shape[2] and 0 <= w < spec.x_shape[3]:
            found.append((n, p, q, r, s, h, w))
    return found


def needed(found: Trace, tiled: bool) -> Any:
    """How often the block must read each number of the image, by the outputs that it owns.

    A thread of the direct kernel reads for its own output; a tile reads once for all its columns:
    the output channels, or of a gradient by weight the rows, which are filters.
    """
    owned = found.owner == found.block
    counts = np.zeros(found.inputs[found.image].shape, int)
    if tiled:
        owned = owned.any(1 if found.which == "grad_weight" else 2, keepdims=True)
    for n, p, q, r, s, h, w in taps(found.spec):
        if found.which == "forward":
            counts[n, :, h, w] += owned[:, n, :, p, q].sum()
        elif found.which == "grad_input":
            counts[n, :, p, q] += owned[:, n, :, h, w].sum()
        else:
            counts[n, :, h, w] += owned[:, :, :, r, s].sum((0, 1))
    return counts


@needs_compiler
@pytest.mark.parametrize(("name", "which", "algo"), CASES)
def test_the_traced_run_computes_the_convolution(name: str, which: str, algo: str) -> None:
    found = traced(name, which, algo)
    spec, (a, b) = found.spec, found.inputs
    options: dict[str, Any] = {
        "stride": spec.stride, "padding": spec.padding, "dilation": spec.dilation,
    }  # fmt: skip

    def computed(dtype: str) -> Any:
        first, second = a.astype(dtype), b.astype(dtype)
        with gc.backend("numpy"):
            if which == "forward":
                return gc.conv2d(first, second, **options)
            shape = spec.x_shape if which == "grad_input" else spec.w_shape
            return getattr(gc, f"conv2d_{which}")(first, second, shape, **options)

    assert len(np.unique([*a.ravel(), *b.ravel(), 0])) == a.size + b.size + 1
    assert_within_budget(found.result, computed("float32"), computed("float64"))


@needs_compiler
@pytest.mark.parametrize(("name", "which", "algo"), CASES)
def test_every_output_has_one_thread_of_one_block(name: str, which: str, algo: str) -> None:
    found = traced(name, which, algo)
    assert found.owner.shape[1:] == found.result.shape
    assert found.stores == found.owner.size  # with the next line: once each
    assert found.owner.min() == 0
    assert set(np.unique(found.owner)) == set(range(found.blocks))
    assert 0 <= found.thread.min() <= found.thread.max() < found.threads
    owners = Counter(zip(found.owner.ravel(), found.thread.ravel(), strict=True))
    if algo == "direct":
        assert set(owners.values()) == {1}
    else:
        assert max(owners.values()) <= 64


@needs_compiler
@pytest.mark.parametrize(("name", "which", "algo"), CASES)
def test_a_block_reads_what_the_windows_of_its_outputs_have(
    name: str, which: str, algo: str
) -> None:
    for found in traces(name, which, algo):
        image, expected = found.loads[found.image], needed(found, algo == "tiled")
        if len(found.owner) > 1:  # test_split_sums has all parts
            assert algo == "tiled"
            assert image.any()
            assert (image <= expected).all()
            continue
        np.testing.assert_array_equal(image, expected)
        if which == "forward" and algo == "tiled":  # each weight of its channels, once
            channels = (found.owner == found.block).any((0, 1, 3, 4))
            expected = np.where(channels[:, None, None, None], 1, np.zeros(found.spec.w_shape))
            np.testing.assert_array_equal(found.loads[1], expected)


@needs_compiler
@pytest.mark.parametrize("which", PASSES)
def test_split_sums(which: str) -> None:
    """All parts of all sums together read what one would."""
    spec = {
        "forward": ConvSpec.infer((1, 68, 5, 7), (12, 68, 3, 3), padding=1),
        "grad_input": ConvSpec.infer((1, 12, 4, 5), (68, 12, 3, 3), padding=1),
        "grad_weight": ConvSpec.infer((1, 4, 34, 30), (5, 4, 3, 2)),
    }[which]
    found = trace(spec, which, "tiled")
    assert len(found.owner) > 1
    assert found.stores == found.owner.size
    assert found.owner.min() == 0
    for number, blocks in enumerate(found.owner):  # no block has several parts
        assert not np.isin(blocks, np.delete(found.owner, number, 0)).any()
    every = [trace(spec, which, "tiled", block=block) for block in range(found.blocks)]
    total = sum(one.loads[one.image] for one in every)
    whole = sum(needed(one, True) for one in every)  # of each part, as if it were the sum
    np.testing.assert_array_equal(total * len(found.owner), whole)


@needs_compiler
@pytest.mark.parametrize(("name", "which"), [(n, w) for n in SPECS for w in PASSES])
def test_rounds_of_the_pipeline(name: str, which: str) -> None:
    for found in traces(name, which, "tiled"):
        copied, reads = found.copied > 0, found.reads
        if not copied.any():
            assert which == "grad_input"  # pixels that no window meets
            assert max(found.spec.stride) > 1
            assert not len(found.copied)
            continue
        assert len(found.stages) == min(3, int(copied.any(1).sum()))
        assert not copied[-2:].any()
        np.testing.assert_array_equal(reads[2:] > 0, copied[:-2])  # two rounds later, all of it
        assert not reads[:2].any()
        assert not (found.mine & (reads == 0)).any()
        np.testing.assert_array_equal(found.rows.sum(0), found.loads[found.image].sum(1))
        for index, loads in enumerate(found.loads, 1):
            assert (found.copied == index).sum() == loads.sum()
        assert (found.copied == ZERO).any() == (copied.sum() > sum(x.sum() for x in found.loads))
        assert found.reuse == reads.sum() / copied.sum()
        assert sorted(found.starts) == list(found.starts)
        assert [KINDS[kind] for kind in found.kinds].count("commit") == len(found.copied)


@needs_compiler
@pytest.mark.parametrize("algo", ["tiled", "direct"])
@pytest.mark.parametrize("which", PASSES)
def test_bytes_are_those_that_the_emulator_counts(which: str, algo: str) -> None:
    """By instructions and how often they ran; and a trace changes no bit of the result."""
    from gpuconv.cuda import CudaBackend
    from gpuconv.cuda.device import EmulatedDevice

    spec = spec_of("padded")
    found = trace(spec, which, algo)
    counted: Counter[str] = Counter()

    def watch(kernel: Any, report: Any) -> None:
        if kernel.name.startswith("layout"):
            return
        counted["math"] += report.by_class["float"]
        for instruction, times, _ in report.by_pc:
            spaces = [m for m in ("global", "shared") if m in instruction.mods]
            if instruction.op in ("ld", "st") and spaces:
                wide = next((int(m[1]) for m in instruction.mods if m in ("v2", "v4")), 1)
                verb = {"ld": "load", "st": "store"}[instruction.op]
                counted[f"{spaces[0]} {verb}"] += times * wide * instruction.ty.bits // 8
            elif instruction.op == "cp" and len(instruction.ops) > 1:
                counted["shared copy"] += 16 * times

    backend = CudaBackend(EmulatedDevice(watch=watch), "emulated")
    method = "conv" if which == "forward" else f"conv_{which}"
    result = getattr(backend, method)(spec, *found.inputs, algo=algo)
    np.testing.assert_array_equal(result, found.result)
    assert found.math == counted.pop("math")
    copies = {k: v for k, v in found.bytes.items() if k == "global copy"}
    assert {k: v for k, v in found.bytes.items() if k not in copies} == +counted
    if algo == "tiled":
        zeros = counted["shared copy"] - copies["global copy"]
        blocks = [trace(spec, which, algo, block=block) for block in range(found.blocks)]
        assert 0 < zeros <= 4 * sum((one.copied == ZERO).sum() for one in blocks)
    else:
        assert not copies


@needs_compiler
def test_what_cannot_be_traced() -> None:
    spec = spec_of("plain")
    with pytest.raises(ArgumentError, match="which='back' is no pass; use one of forward, grad_"):
        trace(spec, "back")
    with pytest.raises(ArgumentError, match="algo='gemm' is not traced; use one of auto, tiled"):
        trace(spec, algo="gemm")
    with pytest.raises(ArgumentError, match="there is no block 2: they are 0 to 0"):
        trace(spec, block=2)
    with pytest.raises(ArgumentError, match="takes 'gemm' here, not traced; use tiled or direct"):
        trace(ConvSpec.infer((1, 8, 9, 9), (8, 8, 1, 1)), algo="auto")
    with pytest.raises(ArgumentError, match="too many to trace; take a smaller image"):
        trace(ConvSpec.infer((8, 64, 56, 56), (64, 64, 3, 3)))
    with pytest.raises(ArgumentError, match="give it a height and a width"):
        trace(ConvSpec.infer((1, 8, 9), (8, 8, 3)))


@needs_compiler
def test_files(tmp_path: Path) -> None:
    image_module = pytest.importorskip("PIL.Image")
    pytest.importorskip("matplotlib")

    def made(name: str, *arguments: str) -> Path:
        small = ("--image", "5x6", "--channels", "4", "--filters", "4", *arguments)
        done = CliRunner().invoke(app, ["viz", "tile", *small, "--out", str(tmp_path / name)])
        assert done.exit_code == 0, done.output
        assert done.stdout.strip() == str(tmp_path / name)
        return tmp_path / name

    with image_module.open(made("a.gif", "--padding", "1")) as image:
        assert image.format == "GIF"
        assert image.n_frames >= 4
        assert image.info["loop"] == 0  # for ever
    assert (tmp_path / "a.gif").stat().st_size < 400_000
    assert made("a.html", "--which", "grad_input", "--nchw").stat().st_size < 400_000
    assert "<script" in (tmp_path / "a.html").read_text()
    for name, algo in (("a.png", "tiled"), ("b.png", "direct")):
        with image_module.open(made(name, "--algo", algo, "--which", "grad_weight")) as image:
            assert image.format == "PNG"
            assert min(image.size) > 900


@needs_compiler
def test_the_picture_of_a_case_of_each_kind() -> None:
    pytest.importorskip("matplotlib")
    assert gc.viz.tile((6, 9), 3, 70, (2, 3), stride=(1, 2), batch=2, block=1).frames >= 4
    for which in PASSES:
        picture = gc.viz.tile((7, 5), 4, 6, algo="direct", which=which, channels_last=False)
        assert [axes.get_title() for axes in picture.axes if axes.get_title()]
    lonely = gc.viz.tile((7, 10), kernel=1, stride=2, which="grad_input", block=3)
    assert any("reads none of the inputs" in text.get_text() for text in lonely.texts)


def test_mistakes_take_a_line(tmp_path: Path) -> None:
    for arguments, said in (
        (["--image", "5y5"], "--image '5y5' is no size"),
        (["--kernel", "20"], "use a larger input, more padding or a smaller kernel"),
        (["--which", "back"], "which='back' is no pass"),
        (["--algo", "winograd"], "algo='winograd' is not traced"),
    ):
        done = CliRunner().invoke(app, ["viz", "tile", *arguments, "-o", str(tmp_path / "a.png")])
        assert done.exit_code == 1
        assert done.stderr.startswith("gpuconv: error: ")
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
        assert not (tmp_path / "a.png").exists()
    assert CliRunner().invoke(app, ["viz", "tile", "--channels", "0"]).exit_code == 2


def test_with_no_compiler_it_says_what_to_install(tmp_path: Path) -> None:
    for package in ("numba_cuda", "cuda"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise ImportError('not here')")
    env = {
        "PYTHONPATH": f"{tmp_path}:{Path(gc.__file__).parents[1]}",
        "GPUCONV_CACHE": str(tmp_path / "cache"),
    }
    fails(gpuconv("viz", "tile", cwd=tmp_path, **env), "install the extra cuda13")
    assert not (tmp_path / "tile.png").exists()
