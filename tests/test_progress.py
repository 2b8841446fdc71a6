"""What a training run shows: a bar on a terminal, a plain line an epoch elsewhere, or nothing."""

import sys

import pytest

from gpuconv.train import Callback, Trainer
from tests.test_train import batches, trainer


def test_one_plain_line_an_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    trainer(progress="auto").fit(batches(), batches(5), epochs=3)
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("epoch 2/3: train_loss ")
    assert ", valid_accuracy " in lines[1]
    assert lines[1].endswith(" s")
    assert "\r" not in shown.err
    assert "\x1b" not in shown.err


def test_nothing_if_not_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    trainer(progress=False).fit(batches())
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("show", [True, "auto"])
def test_a_bar_on_a_terminal(
    show: bool | str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)

    class Speak(Callback):
        def on_epoch_end(self, trainer: Trainer) -> None:
            print("a result")

    trainer(progress=show, callbacks=[Speak()]).fit(batches(), epochs=2)
    shown = capsys.readouterr()
    assert shown.out == "a result\n" * 2, "standard output is the program's own"
    assert "\x1b[" in shown.err
    assert shown.err.count("epoch 2/2: train_loss") == 1


def test_the_bar_is_taken_down_after_an_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")

    class Fail(Callback):
        def on_batch_end(self, trainer: Trainer) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer(progress=True, callbacks=[Fail()]).fit(batches())
    assert "\x1b[?25h" in capsys.readouterr().err, "the cursor is visible again"
