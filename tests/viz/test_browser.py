"""An animation's page in a browser: its buttons and its slider show the frames that they should.

No driver is needed: a script at the end of a copy of the page uses the real controls, and writes
what it saw into the document, which headless Chromium prints.
"""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gpuconv.cli import app

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
FRAMES = 9
STEP = 700  # milliseconds of a frame
pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(NAMES)} is installed")
pytest.importorskip("matplotlib")

# What happens is named; after it, what is shown is written down.
SCRIPT = """
<script>
addEventListener("load", async () => {
  const image = document.querySelector("img"), slider = document.querySelector("[type=range]");
  const wait = time => new Promise(done => setTimeout(done, time));
  const click = title => document.querySelector(`button[title="${title}"]`).click();
  const move = to => { slider.value = to; slider.dispatchEvent(new Event("input")); };
  const seen = {};
  const note = async name => {
    await wait(20);  // a new source is decoded
    seen[name] = [image.src, Number(slider.value), image.naturalWidth];
  };
  await wait(100);
  await note("start");
  click("Next frame"); await note("next");
  click("Next frame"); await note("next again");
  click("Previous frame"); await note("previous");
  click("Last frame"); await note("last");
  click("Next frame"); await note("next of last");
  click("First frame"); await note("first");
  click("Previous frame"); await note("previous of first");
  move(6); await note("slider");
  move(2); click("Play"); await wait(STEP * 3.5); await note("played");
  click("Pause"); await wait(STEP * 3); await note("paused");
  move(8); click("Play"); await wait(STEP * 1.5); await note("looped");
  click("Play backwards"); await wait(STEP * 1.5); await note("backwards");
  click("Pause");
  const loads = performance.getEntriesByType("resource").map(entry => entry.name);
  const report = document.createElement("pre");
  report.id = "report";
  report.textContent = JSON.stringify({seen, loads, slider: [slider.min, slider.max]});
  document.body.append(report);
});
</script>
""".replace("STEP", str(STEP))


@pytest.fixture(scope="module")
def player(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("player") / "conv.html"
    words = ["viz", "conv", "--image", "5x5", "--kernel", "3", "-o", str(path)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    return path


def drive(page: str, folder: Path) -> Any:
    """What the script saw in this page."""
    copy = folder / "driven.html"
    copy.write_text(page.replace("</body>", SCRIPT + "</body>"), encoding="utf-8")
    done = subprocess.run(
        [
            str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-extensions",
            f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=30000", "--dump-dom",
            copy.as_uri(),
        ],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    report = re.search(r'<pre id="report">(.*?)</pre>', done.stdout, re.DOTALL)
    assert report, f"the script did not end: {done.stderr[-2000:]}"
    return json.loads(html.unescape(report[1]))


def frames(page: str) -> list[str]:
    return re.findall(r'frames\[\d+\] = "(data:image/png;base64,[^"]+)"', page)


def test_the_controls_show_the_frames(player: Path, tmp_path: Path) -> None:
    page = player.read_text(encoding="utf-8")
    shown = frames(page)
    assert len(set(shown)) == FRAMES  # so that a source says which frame it is
    report = drive(page, tmp_path)
    assert report["slider"] == ["0", str(FRAMES - 1)]
    assert all(width > 500 for *_, width in report["seen"].values())
    at = {}
    for name, (source, value, _) in report["seen"].items():
        assert value == shown.index(source), f"{name}: the slider is not where the picture is"
        at[name] = value
    last = FRAMES - 1
    # Time in the page is not that of a clock, but timers fire in their order.
    assert at == {
        "start": 0, "next": 1, "next again": 2, "previous": 1, "last": last, "next of last": last,
        "first": 0, "previous of first": 0, "slider": 6, "played": 5, "paused": 5, "looped": 0,
        "backwards": last,
    }  # fmt: skip


def test_the_page_loads_nothing_from_elsewhere(player: Path, tmp_path: Path) -> None:
    page = player.read_text(encoding="utf-8")
    assert not re.search(r"https?://|<link|@import", page)
    loads = drive(page, tmp_path)["loads"]
    assert [name for name in loads if not name.startswith("data:")] == []
