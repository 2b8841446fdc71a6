"""The benchmark: its registry, its rounds, its refusals; figures are not tested."""

import json
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import gpuconv as gc
from bench import base, cases, machine, onnx_net, peers, problems, run, timing
from bench.timing import Block, Sample
from gpuconv.backends import Backend
from tests.strict import strict

SMALL = ["--rounds", "2", "--block", "1e-4", "--threads", "1"]
LENET = ["--filter", "lenet5.5x5-6-16@14", *SMALL]


@pytest.fixture(autouse=True)
def undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests need no quiet machine."""
    monkeypatch.setattr(timing, "DISTURBED", float("inf"))


def result_of(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


# The registry.


def test_the_sets_have_the_layer_passes_of_the_notes() -> None:
    assert len(cases.select("main")) == 84
    assert len(cases.select("hard")) == 30
    assert len(cases.select("gpu")) == 4 * (20 * 3 + 4 * 2)
    assert {case.x_shape[0] for case in cases.SETS["gpu"]} == {1, 8, 32, 256}
    for name, found in cases.SETS.items():
        assert len({case.name for case in found}) == len(found), name


def test_cases_are_the_layers_they_are_called() -> None:
    known = {case.name: case for case in (*cases.SETS["main"], *cases.SETS["hard"])}
    for name, y_shape, macs in (
        ("resnet50.7x7s2-3-64@224.n8", (8, 64, 112, 112), 8 * 64 * 112**2 * 3 * 49),
        ("resnet50.1x1s2-256-512@56.n1", (1, 512, 28, 28), 512 * 28**2 * 256),
        ("alexnet.11x11s4-3-64@224.n1", (1, 64, 55, 55), 64 * 55**2 * 3 * 121),
        ("mobilenet.depthwise-512@14.n8", (8, 512, 14, 14), 8 * 512 * 14**2 * 9),
        ("lenet5.5x5-6-16@14.n64", (64, 16, 10, 10), 64 * 16 * 100 * 6 * 25),
        ("resnet20.3x3s2-16-32@32.n64", (64, 32, 16, 16), 64 * 32 * 256 * 16 * 9),
    ):
        assert known[name].spec.y_shape == y_shape
        assert known[name].spec.macs == macs
    first = {c.name.rpartition(".")[0] for c in known.values() if "grad_input" not in c.passes}
    assert {name.partition(".")[0] for name in first} == {"resnet50", "alexnet", "lenet5", "cifar"}
    assert len(first) == 4


def test_selecting() -> None:
    one = cases.select("main,hard", "forward", "vgg16,resnet20")
    assert {kind for _, kind in one} == {"forward"}
    assert {case.name.partition(".")[0] for case, _ in one} == {"vgg16", "resnet20"}
    for arguments in (("mian",), ("main", "backward"), ("main", "", "lenet6")):
        with pytest.raises(ValueError, match=r"unknown|no case"):
            cases.select(*arguments)


# Problems.


def test_inputs_are_the_same_on_every_device() -> None:
    host = problems.numbers(np, (50, 41), 7)
    assert host.dtype == np.float32
    assert -1 <= host.min() < -0.99
    assert 0.99 < host.max() < 1
    assert abs(host.mean()) < 0.05
    np.testing.assert_array_equal(problems.numbers(strict, (50, 41), 7).get(), host)
    assert not np.array_equal(problems.numbers(np, (50, 41), 8), host)


def test_errors_are_relative_to_the_largest_number() -> None:
    truth = np.array([[1.0, -4.0], [2.0, 0.0]])
    assert problems.distance(np, truth.astype(np.float32), truth) == 0
    assert problems.distance(np, truth + np.array([[0, 0.5], [0, 0]]), truth) == 0.125
    assert np.isnan(problems.distance(np, truth * [[1, 1], [np.nan, 1]], truth))
    assert problems.distance(np, truth[:1], truth) == float("inf")


@pytest.mark.parametrize("name", [net.name for net in cases.NETS if net.x_shape[0] == 64])
def test_torch_trains_the_same_net(name: str) -> None:
    pytest.importorskip("torch").set_num_threads(1)
    (net,) = (net for net in cases.NETS if net.name == name)
    problem = problems.make(net, "step", np)
    problem.solve()
    ours = peers.Gpuconv("numpy")
    with ours.active():
        for format in problems.FORMATS:
            loaded = ours.load(problem, format)
            assert problem.error(loaded.array(loaded.call())) <= problem.bar


# Rounds.


def test_every_round_is_begun_by_another() -> None:
    order: list[str] = []

    def contender(name: str, seconds: float) -> Any:
        def block(inner: int) -> Block:
            order.append(name)
            return Block(seconds / 1e3)

        return block

    blocks = {"a": contender("a", 1), "b": contender("b", 2), "c": contender("c", 4)}
    samples = timing.rounds(blocks, 4, 0.01, limit=60)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab" + "abc"
    assert samples["b"].summary()["median"] == 0.002
    assert timing.ratio(samples["c"], samples["b"]) == 2


def test_disturbed_blocks_are_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "PAUSE", 0.0)
    given = iter([Block(1.0), Block(9.0, True), Block(1.0), *[Block(5.0, True)] * 9, Block(3.0)])
    told: list[str] = []
    call = {"a": lambda inner: next(given)}
    samples = timing.rounds(call, 3, 0.01, limit=60, tell=told.append)
    assert samples["a"].repeated == 1 + timing.RETRIES
    assert told[:4] == ["round 1/3", "round 1/3, repeat 1/8", "round 2/3", "round 2/3, repeat 1/8"]
    summary = samples["a"].summary()
    assert (summary["median"], summary["disturbed"], summary["rounds"]) == (2.0, 1, 3)


def test_rounds_end_with_their_time() -> None:
    clock = iter(range(0, 1000, 10))
    samples = timing.rounds({"a": lambda n: Block(1.0)}, 9, 0.01, 5, clock=lambda: next(clock))
    assert len(samples["a"].blocks) == 3


def test_inner_calls_fill_a_block() -> None:
    asked: list[int] = []

    def block(inner: int) -> Block:
        asked.append(inner)
        return Block(1e-3)

    timing.rounds({"a": block}, 3, 0.05, limit=60)
    assert asked == [1, 50, 50, 50]


def test_a_ratio_leaves_disturbed_rounds_out() -> None:
    ours = Sample([Block(1.0), Block(1.0), Block(9.0, True)])
    peer = Sample([Block(2.0), Block(2.0), Block(2.0)])
    assert timing.ratio(peer, ours) == 2.0


class Event:
    """Of a GPU that is as slow as this CPU."""

    def record(self) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        assert self.at


def gpu_namespace(log: list[str]) -> Any:
    """The strict stand-in with as much of CuPy's `cuda` as the benchmark uses."""

    def empty(shape: Any, dtype: Any = float) -> Any:
        if dtype != "uint8":
            return strict.empty(shape, dtype)
        # What is written to empty the cache.
        data = SimpleNamespace(memset_async=lambda value, size: log.append(f"memset {size}"))
        return SimpleNamespace(data=data, nbytes=shape)

    properties = {
        "name": b"Stand-in",
        "multiProcessorCount": 2,
        "l2CacheSize": 1 << 20,
        "totalGlobalMem": 1 << 30,
    }
    runtime = SimpleNamespace(
        getDevice=lambda: 0,
        getDeviceProperties=lambda _: properties,
        driverGetVersion=lambda: 13000,
        runtimeGetVersion=lambda: 13000,
    )
    cuda = SimpleNamespace(
        Event=Event,
        get_elapsed_time=lambda start, stop: (stop.at - start.at) * 1e3,
        runtime=runtime,
    )
    pool = SimpleNamespace(free_all_blocks=lambda: log.append("free"))
    more = {"cuda": cuda, "empty": empty, "get_default_memory_pool": lambda: pool}
    return SimpleNamespace(**{**vars(strict), **more})


def test_cold_writes_the_cache_before_each_call_and_warm_does_not() -> None:
    log: list[str] = []
    xp = gpu_namespace(log)
    block = timing.CudaTimer(xp, True, 1000).block(lambda: log.append("call"), 3)
    assert log == ["memset 1000", "call"] * 3
    assert block.seconds >= 0
    log.clear()
    timing.CudaTimer(xp, False, 1000).block(lambda: log.append("call"), 3)
    assert log == ["call"] * 4


def test_a_cuda_run_on_a_stand_in_that_refuses_what_cupy_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []
    be = Backend(gpu_namespace(log), "cuda")
    monkeypatch.setattr(peers, "get_backend", lambda name: be)
    out = tmp_path / "a.json"
    arguments = ["--device", "cuda", "--peers", "torch-cudnn-fp32", "--out", str(out), *LENET]
    assert run.main(arguments) == 0
    result = result_of(out)
    assert [row["status"] for row in result["rows"]] == ["ok"] * 3
    assert result["environment"]["gpu"]["name"] == "Stand-in"
    assert result["settings"]["l2"] == "cold"
    assert any(gap.startswith("torch-cudnn-fp32: torch ") for gap in result["gaps"])
    assert "memset 268435456" in log
    assert "free" in log


# Runs.


def test_a_run_is_written_whole_and_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.json"
    arguments = ["--out", str(out), "--peers", "none", *LENET]
    assert run.main([*arguments, "--passes", "forward"]) == 0
    (row,) = result_of(out)["rows"]
    entry = row["contenders"][row["best"]["gpuconv"]]
    assert entry["status"] == "ok"
    assert 0 <= entry["error"] <= row["bar"]
    assert entry["seconds"]["q1"] <= entry["seconds"]["median"] <= entry["seconds"]["q3"]
    assert entry["tflops"] == pytest.approx(row["flops"] / entry["seconds"]["median"] / 1e12)
    assert entry["share"] > 0
    assert "| lenet5.5x5-6-16@14.n64 | forward |" in out.with_suffix(".md").read_text()
    environment = result_of(out)["environment"]
    assert environment["commit"]
    assert environment["versions"]["numpy"] == np.__version__

    assert run.main(arguments) == 1  # it is not replaced unasked
    assert "exists; give --resume" in capsys.readouterr().err
    assert run.main([*arguments, "--resume"]) == 0
    rows = result_of(out)["rows"]
    assert rows[0] == row
    assert [r["pass"] for r in rows] == ["forward", "grad_input", "grad_weight"]
    assert run.main([*arguments, "--resume", "--formats", "nchw"]) == 1
    assert "cannot be resumed: formats was" in capsys.readouterr().err
    out.write_text("[]")
    assert run.main([*arguments, "--resume"]) == 1
    assert "is no result of bench.run" in capsys.readouterr().err


def test_what_is_left_when_the_time_is_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.json"
    assert run.main(["--out", str(out), "--peers", "none", "--budget", "1e-9", *LENET]) == 0
    assert result_of(out)["left"] == 3
    assert "3 layer-passes left, go on with --resume" in capsys.readouterr().out


def test_a_wrong_result_is_a_failed_row_and_has_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = gc.conv2d

    def wrong(*arguments: Any, **options: Any) -> Any:
        y = right(*arguments, **options)
        y[-1, -1, -1, -1] += 1e-3
        return y

    monkeypatch.setattr(gc, "conv2d", wrong)
    out = tmp_path / "a.json"
    arguments = ["--out", str(out), "--passes", "forward", "--peers", "none", *LENET]
    assert run.main(arguments) == 1
    (row,) = result_of(out)["rows"]
    assert row["status"] == "failed"
    assert "wrong result: off by" in row["reason"]
    assert all("seconds" not in entry for entry in row["contenders"].values())
    assert "failed: " in out.with_suffix(".md").read_text()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MemoryError("Unable to allocate 9 TiB"), "out of memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 9 GiB"), "out of memory"),
        (RuntimeError("misaligned address"), "failed"),
    ],
)
def test_what_goes_wrong_is_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, status: str
) -> None:
    def fails(*arguments: Any, **options: Any) -> Any:
        raise error

    monkeypatch.setattr(gc, "conv2d_grad_weight", fails)
    out = tmp_path / "a.json"
    assert run.main(["--out", str(out), "--peers", "none", *LENET]) == int(status == "failed")
    rows = result_of(out)["rows"]
    assert [row["status"] for row in rows] == ["ok", "ok", status]
    assert str(error) in rows[2]["reason"]


def test_a_peer_that_is_not_here_is_a_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    out = tmp_path / "a.json"
    arguments = ["--out", str(out), "--peers", "torch-cpu", "--passes", "forward", *LENET]
    assert run.main(arguments) == 0
    (gap,) = result_of(out)["gaps"]
    assert gap.startswith("torch-cpu: torch is not installed")
    assert f"gap: {gap}" in capsys.readouterr().out
    assert f"- gap: {gap}" in out.with_suffix(".md").read_text()
    assert result_of(out)["rows"][0]["oracle"] == "gpuconv's reference in float64"


def test_a_net_without_its_oracle_is_a_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    out = tmp_path / "a.json"
    assert run.main(["--set", "nets", "--filter", "lenet5", "--out", str(out), *SMALL]) == 0
    (row,) = result_of(out)["rows"]
    assert (row["status"], "with torch" in row["reason"]) == ("gap", True)


def test_torch_is_measured_beside_ours(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    out = tmp_path / "a.json"
    assert run.main(["--out", str(out), "--peers", "torch-cpu", *LENET]) == 0
    for row in result_of(out)["rows"]:
        assert row["oracle"] == "torch float64"
        assert set(row["ratios"]) == {"torch-cpu/nchw", "torch-cpu/channels_last"}
        assert row["best_peer"] in row["ratios"]
        assert all(ratio > 0 for ratio in row["ratios"].values())
    assert "time of best peer / ours" in out.with_suffix(".md").read_text()


def test_onnx_runtime_is_measured_in_the_forward_pass(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    out = tmp_path / "a.json"
    assert run.main(["--out", str(out), "--peers", "onnxruntime-cpu", *LENET]) == 0
    forward, *gradients = result_of(out)["rows"]
    assert set(forward["ratios"]) == {"onnxruntime-cpu/nchw"}
    for row in gradients:
        assert row["contenders"]["onnxruntime-cpu/nchw"]["reason"] == "inference only"


def test_another_commit_is_measured_in_a_process_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> None:
        if arguments[:2] == ("worktree", "add"):
            tree = Path(arguments[-2])
            for part in ("gpuconv", "kernels"):
                shutil.copytree(machine.ROOT / part, tree / part, symlinks=True)

    monkeypatch.setattr(base, "_git", git)
    out = tmp_path / "a.json"
    arguments = ["--base", "HEAD", "--peers", "none", "--out", str(out), *LENET]
    assert run.main(arguments) == 0
    for row in result_of(out)["rows"]:
        assert set(row["ratios"]) == {"base/nchw", "base/channels_last"}
        assert "best_peer" not in row
        mine, theirs = (row["contenders"][f"{name}/nchw"] for name in ("gpuconv", "base"))
        assert theirs["error"] == mine["error"]


@pytest.mark.parametrize("name", ["relu.64x6", "max_pool 2x2/2.64", "avg_pool 2x2/2.64"])
def test_operations_are_measured_beside_torch(tmp_path: Path, name: str) -> None:
    pytest.importorskip("torch")
    out = tmp_path / "a.json"
    arguments = ["--set", "ops", "--filter", name, "--peers", "torch-cpu", *SMALL]
    assert run.main(["--out", str(out), *arguments]) == 0
    rows = result_of(out)["rows"]
    assert [row["pass"] for row in rows] == ["forward", "both"]
    for row in rows:
        assert row["status"] == "ok"
        assert row["best_peer"].startswith("torch-cpu")


def test_folded_networks_are_the_same_in_onnx_runtime_and_in_torch() -> None:
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    torch = pytest.importorskip("torch")
    gc.manual_seed(0)
    folded = gc.nn.fold(gc.models.resnet18(num_classes=7).eval())
    x = np.random.default_rng(0).standard_normal((2, 3, 48, 40), dtype=np.float32)
    with gc.no_grad():
        expected = folded(x).numpy()
    graph = onnx_net.model(onnx, folded, x.shape).SerializeToString()
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": x})
    scale = np.abs(expected).max()
    assert np.abs(found - expected).max() <= 1e-4 * scale
    with torch.inference_mode():
        other = problems.torch_folded(folded).eval()(torch.from_numpy(x)).numpy()
    assert np.abs(other - expected).max() <= 1e-4 * scale
