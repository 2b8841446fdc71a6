"""What the benchmark says: marks and warnings, refusals in a line, files, scripts."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import accuracy, cases, machine, peers, plot, problems, report, run, terminal, timing
from bench.timing import Block, Sample
from gpuconv.backends import get_backend
from gpuconv.errors import DeviceError
from tests.test_bench import LENET, result_of


@pytest.fixture(autouse=True)
def undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests need no quiet machine."""
    monkeypatch.setattr(timing, "DISTURBED", float("inf"))


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (
            ["--filter", "restnet50"],
            "no case of main has 'restnet50' in its name; closest: resnet50",
        ),
        (["--filter", "resnet20"], "no case of main has 'resnet20' in its name; of hard, gpu"),
        (["--filter", "q"], "its nets: resnet50, vgg16, alexnet, mobilenet, lenet5, cifar"),
        (["--set", "nets", "--passes", "forward"], "has a pass 'forward'"),
        (["--set", "mian"], "'mian' is unknown; use some of main, hard, gpu, nets"),
        (["--peers", "cupyx", *LENET], "no peer 'cupyx' on device 'cpu'"),
        (["--base", "no-such-commit", *LENET], "git worktree add: "),
        (["--device", "cuda", "--backend", "numpy", *LENET], "does not compute on device 'cuda'"),
    ):
        assert run.main([*arguments, "--out", str(tmp_path / "a.json")]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_without_a_gpu_there_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(name: str) -> Any:
        raise DeviceError("device 'cuda' is not usable: no GPU is visible; use device 'cpu'")

    monkeypatch.setattr(peers, "get_backend", none)
    out = tmp_path / "a.json"
    assert run.main(["--set", "gpu", "--device", "cuda", "--out", str(out)]) == 1
    assert capsys.readouterr().err.startswith("bench: error: device 'cuda' is not usable")
    result = result_of(out)
    assert result["rows"] == []
    gap = "cuda: device 'cuda' is not usable: no GPU is visible; use device 'cpu'"
    assert result["gaps"] == [gap]
    assert result["environment"]["source"]
    assert result["settings"]["device"] == "cuda"
    table = out.with_suffix(".md").read_text()
    assert f"- gap: {gap}" in table
    assert "0 rows: none" in table
    before = out.write_text(out.read_text() + "\n")  # rows of an earlier run would be in it
    assert run.main(["--set", "gpu", "--device", "cuda", "--out", str(out), "--resume"]) == 1
    assert len(out.read_text()) == before


# The rest.


def test_a_summary_is_of_the_rows_that_are_right() -> None:
    def row(ratio: float, status: str = "ok") -> dict[str, Any]:
        best = {"gpuconv": "gpuconv/nchw", "peer": "peer/nchw"}
        return {"status": status, "ratios": {"peer/nchw": ratio}, "best": best}

    rows = [row(1.0), row(4.0), row(100.0, "failed")]
    assert report.geomeans(rows) == {"peer": (pytest.approx(2.0), 1.0, 2)}


def test_the_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    best = {"gpuconv": "gpuconv/nchw", "peer": "peer/nchw"}
    row = {"case": "a", "pass": "forward", "ratios": {"peer/nchw": 2.0}, "best": best}
    wanted = tmp_path / "a.png"
    assert report.plot({"rows": [row]}, wanted) == str(wanted)
    assert wanted.read_bytes().startswith(b"\x89PNG")
    assert "no row" in report.plot({"rows": []}, wanted)


def test_the_host_cost_of_a_launch_is_measured_without_a_gpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("numba_cuda")
    pytest.importorskip("cupy")
    from bench import launch

    out = tmp_path / "a.json"
    arguments = ["--batches", "2", "--out", str(out), "--bar", "1e9", "--profile", "3"]
    assert launch.main(arguments) == 0
    result = result_of(out)
    assert result["calls"]["conv2d"]["launches"] >= 1
    assert result["calls"]["conv2d"]["microseconds"] > 0
    assert any("conv2d" in row["where"] for row in result["profile"])
    assert launch.main([*arguments, "--case", "lenet6"]) == 1
    assert "is not in main or hard" in capsys.readouterr().err


# Disturbed rows, and shares that cannot be.


def placed(ours: str, peer: str, peaks: dict[str, Any] | None = None) -> dict[str, Any]:
    """A row of a block a round: 1 ms of ours, 2 ms of the peer's, "x" where it was disturbed."""
    samples = {
        label: Sample([Block(seconds, mark == "x") for mark in marks], marks.count("x"))
        for label, seconds, marks in (("gpuconv/nchw", 1e-3, ours), ("peer/nchw", 2e-3, peer))
    }
    row = {"case": "net.layer.n1", "pass": "forward", "status": "ok", "flops": 10**6, "bytes": 10}
    row["contenders"] = {label: {"exact": True, "error": 1e-7} for label in samples}
    problem = SimpleNamespace(flops=row["flops"], bytes=row["bytes"])
    report.place(row, samples, peaks or {"flops": 1e12, "bytes": 1e12}, problem)
    return row


@pytest.mark.parametrize(
    ("ours", "peer", "mark"),
    [
        ("xxx", "...", "disturbed 3 of 3 rounds"),
        ("...", "xxx", "peer disturbed 3 of 3 rounds"),
        ("x..", ".xx", "peer disturbed 3 of 3 rounds"),
        ("xx.", "xx.", ""),
    ],
)
def test_what_was_disturbed_in_every_round_is_marked_and_not_counted(
    ours: str, peer: str, mark: str
) -> None:
    row = placed(ours, peer)
    result = {"gaps": [], "rows": [row, placed("...", "...")]}
    text, table = report.summary(result), report.markdown(result)
    assert report.line(row).endswith(f"! {mark}" if mark else "4 repeats")
    assert ("best_peer" in row) == (not mark)
    assert report.geomeans(result["rows"])["peer"][2] == (1 if mark else 2)
    assert ("(disturbed 3 of 3 rounds)" in table) == bool(mark)
    assert ("2 rows: 1 disturbed, 1 ok" in text) == bool(mark)
    assert ("1 of 2 rows were disturbed in every round: their figures are not" in text) == bool(
        mark
    )


def test_the_picture_marks_what_was_disturbed() -> None:
    pytest.importorskip("matplotlib")
    (axes,) = plot.figure([placed("...", "..."), placed("xxx", "...")]).axes
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert labels == ["net.layer.n1 forward", "net.layer.n1 forward, disturbed 3 of 3 rounds"]
    full, hollow, _ = axes.lines
    assert (full.get_fillstyle(), list(full.get_ydata())) == ("full", [0])
    assert (hollow.get_fillstyle(), list(hollow.get_ydata())) == ("none", [1])
    assert "not to be used" in axes.get_title()


def test_a_share_above_1_and_a_disturbed_peak_are_warnings() -> None:
    peaks = {"flops": 0.8e9, "bytes": 1e12, "disturbed": ["flops"], "small": False}
    row = placed("...", "...", peaks)
    result = {"gaps": [], "rows": [row], "peaks": peaks}
    assert report.line(row).endswith("! share of gpuconv/nchw is 1.25, above 1")
    table = report.markdown(result)
    assert "| 1.250 (above 1) |" in table
    assert "! disturbed: flops" in table
    assert "warning: a share above 1 in 1 of 1 rows" in table
    assert "warning: the measured peak of flops was disturbed: no share is to be used" in table


def test_peaks_are_of_undisturbed_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "PAUSE", 0.0)

    def steady(marks: str) -> tuple[float, bool]:
        blocks = iter([Block(3.0 - (mark == "x"), mark == "x") for mark in marks])
        return timing.steady(SimpleNamespace(block=lambda call, inner: next(blocks)), None)

    assert steady(".....") == (3.0, False)
    assert steady("xx...xx..") == (3.0, False)
    assert steady("x" * (5 + timing.RETRIES)) == (2.0, True)


def test_the_share_counts_the_pixels_that_are_read() -> None:
    (case,) = (c for c in cases.SETS["main"] if c.name == "resnet50.1x1s2-256-512@56.n1")
    weight, y = 512 * 256, 512 * 28**2
    assert problems.size(case, "forward")[1] == 4 * (256 * 28**2 + weight + y)
    assert problems.size(case, "grad_weight")[1] == 4 * (256 * 28**2 + weight + y)
    assert problems.size(case, "grad_input")[1] == 4 * (256 * 56**2 + weight + y)  # zeros too


# Going on.


def test_only_rows_of_the_same_settings_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a.json"
    arguments = ["--out", str(out), "--peers", "none", "--passes", "forward", *LENET]
    assert run.main(arguments) == 0
    peaks = result_of(out)["peaks"]
    capsys.readouterr()
    for change, message in (
        (["--rounds", "1", "--block", "2e-4"], "rounds was 2, is 1; block was 0.0001, is 0.0002;"),
        (["--threads", "2"], "threads was 1, is 2;"),
        (["--row", "3"], "row was 20.0, is 3.0;"),
    ):
        assert run.main([*arguments, "--resume", *change]) == 1
        error = capsys.readouterr().err
        assert f"a.json cannot be resumed: {message} give the same settings, another" in error
        assert error.endswith("or --overwrite\n")
        assert error.count("\n") == 1
    monkeypatch.setattr(machine, "PACKAGES", ("pytest",))
    assert run.main([*arguments, "--resume"]) == 1
    assert "numpy was '" in capsys.readouterr().err
    monkeypatch.undo()
    assert run.main([*arguments, "--resume"]) == 0
    assert result_of(out)["peaks"] == peaks  # to which the shares of the kept rows belong


def test_disturbed_rows_are_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(timing, "PAUSE", 0.0)
    monkeypatch.setattr(timing, "waiting", iter(range(10**9)).__next__)  # a second each time
    monkeypatch.setattr(timing, "DISTURBED", 0.02)
    out = tmp_path / "a.json"
    arguments = ["--out", str(out), "--peers", "none", "--passes", "forward", *LENET]
    assert run.main(arguments) == 0
    assert result_of(out)["rows"][0]["disturbed"] == {"gpuconv": "2 of 2 rounds"}
    assert result_of(out)["peaks"]["disturbed"] == ["flops", "bytes"]
    assert "! disturbed 2 of 2 rounds" in capsys.readouterr().out
    monkeypatch.setattr(timing, "DISTURBED", float("inf"))
    assert run.main([*arguments, "--resume"]) == 0
    (row,) = result_of(out)["rows"]
    assert row["disturbed"] == {}
    assert result_of(out)["peaks"]["disturbed"] == []


# On a terminal.


def test_a_terminal_shows_a_bar_and_short_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with terminal.Display(84) as display:
        display.begin("mobilenet.depthwise-512@14.n256 grad_weight")  # no name is longer
        display.tell("round 1/9, repeat 2/8")
        display.end("word " * 30)
    out = capsys.readouterr().out
    assert "0/84" in out
    assert "grad_weight: round 1/9, repeat 2/8" in out
    assert "\n    word word" in out
    assert terminal.fold("x" * 70 + " torch-cpu 0.46", sys.stdout).endswith("\n    torch-cpu 0.46")
    assert max(len(line) for line in terminal.fold("word " * 30, sys.stdout).split("\n")) <= 80


def test_elsewhere_a_run_says_how_long_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--peers", "none", *LENET]) == 0
    peaks, outlook, *rows, _ = capsys.readouterr().out.splitlines()
    assert peaks.startswith("measured peaks: ")
    assert outlook.startswith("3 layer-passes, 2 rounds: about 1 s, longer")
    assert len(rows) == 3
    assert terminal.duration(100) == "2 min"
    assert terminal.duration(7200) == "2.0 h"


# Programs.


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=machine.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", ["run", "plot", "accuracy", "launch"])
def test_a_program_that_is_not_run_as_a_module_says_how(name: str) -> None:
    done = python(f"bench/{name}.py")
    assert done.returncode == 1
    assert done.stderr.endswith(f"to be run as python -m bench.{name}\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "argument --rounds: must be at least 1, is 0"),
        (["--rounds", "x"], "argument --rounds: 'x' is no int"),
        (["--threads", "-1"], "argument --threads: must be at least 1"),
        (["--block", "0"], "argument --block: must be at least 1e-06"),
        (["--row", "nan"], "argument --row: must be at least 0, is nan"),
        (["--formats", "nhwc"], "argument --formats: no format 'nhwc'; use nchw, channels_last"),
    ],
)
def test_a_bad_option_is_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run.main(arguments)
    error = capsys.readouterr().err
    assert error.startswith(f"bench: error: {message}")
    assert error.count("\n") == 1


def test_plot_and_accuracy_say_what_they_lack(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for program in (plot, accuracy):
        with pytest.raises(SystemExit, match="2"):
            program.main([])
        assert capsys.readouterr().err.startswith("usage: python -m bench.")
    assert accuracy.main([str(tmp_path / "none"), "0.9"]) == 1
    assert capsys.readouterr().err.startswith("accuracy: error: ")
    out = tmp_path / "a.json"
    assert plot.main([str(out)]) == 1
    assert "plot: error: " in capsys.readouterr().err
    assert run.main(["--out", str(out), "--peers", "none", "--passes", "forward", *LENET]) == 0
    capsys.readouterr()
    result = result_of(out)
    result["rows"] = [placed("...", "...")]
    out.write_text(json.dumps(result))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert plot.main([str(out)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("plot: error: matplotlib is needed")
    assert error.count("\n") == 1


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    script = f"{sys.executable} -u -m bench.run --list | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=machine.ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1


def test_the_program_starts_and_lists() -> None:
    done = python("-m", "bench.run", "--list", "--set", "hard")
    assert len(done.stdout.splitlines()) == 30


def test_the_gpu_script_runs_every_part_and_reports_a_failure(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/bash\n"
        "case $1 in -) cat >/dev/null;; -c) echo -n 4;;\n"
        "*) echo ran $2; [ $2 != pytest ];; esac\n"
    )
    python.chmod(0o755)

    def script(*parts: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(machine.ROOT / "bench" / "gpu.sh"), *parts],
            env={"PATH": "/usr/bin:/bin", "PYTHON": str(python), "RESULTS": str(tmp_path / "r")},
            capture_output=True,
            text=True,
            check=False,
        )

    done = script()
    ran = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("ran ")]
    assert ran == ["gpuconv", "pytest", "bench.run", "bench.launch", "bench.run"]
    assert done.returncode == 1  # the tests failed, and the other parts ran all the same
    assert script("layers", "launch").returncode == 0
    refused = script("env", "bogus")
    assert refused.stderr.startswith("gpu.sh: error: no part bogus; use some of env, tests, ")
    assert (refused.returncode, refused.stdout) == (2, "")
    python.write_text("#!/bin/bash\n[ $2 = gpuconv ] && echo doctor\n")  # there is no GPU
    assert (script("env").returncode, "doctor" in script("env").stdout) == (0, True)
    assert script("env", "layers").returncode == 1
    helped = script("--help")
    assert helped.returncode == 0
    assert helped.stdout.startswith("All that a machine with a GPU is asked")
    assert helped.stdout.endswith("BENCH_COMMIT (where there is no .git).\n")


def test_the_gpu_script_says_in_one_line_that_there_is_no_gpu(tmp_path: Path) -> None:
    try:
        get_backend("cuda")
    except DeviceError:
        pass
    else:
        pytest.skip("there is a GPU")
    done = subprocess.run(
        ["bash", str(machine.ROOT / "bench" / "gpu.sh")],
        env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "RESULTS": str(tmp_path / "r")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("gpu.sh: error: device 'cuda'")
    assert done.stderr.count("\n") == 1
