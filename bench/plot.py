"""Ratios of a run as a picture: `python -m bench.plot FILE.json [FILE.png]`."""

import io
import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bench import report
from gpuconv.files import write_atomically


def draw(result: dict[str, Any], path: Path) -> bool:
    """Each row's ratio to each peer, on a logarithmic axis; False if there is none."""
    rows = [row for row in result["rows"] if report.by_peer(row)]
    if not rows:
        return False
    names = list(dict.fromkeys(name for row in rows for name in report.by_peer(row)))
    figure = Figure(figsize=(9, 1.2 + 0.2 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for name, marker in zip(names, "osD^vP*X", strict=False):
        points = [(report.by_peer(row).get(name), i) for i, row in enumerate(rows)]
        x, y = zip(*((r, i) for r, i in points if r is not None), strict=True)
        axes.plot(x, y, marker, label=name, markersize=4)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yticks(range(len(rows)), [f"{row['case']} {row['pass']}" for row in rows], fontsize=6)
    axes.invert_yaxis()
    axes.set_xlabel("peer's time / gpuconv's (right of the line: gpuconv is faster)")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize=7)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_atomically(path, buffer.getvalue())
    return True


def main(source: str, target: str = "") -> None:
    """Draw a result that is on disk."""
    result = json.loads(Path(source).read_bytes())
    path = Path(target) if target else Path(source).with_suffix(".png")
    print(path if draw(result, path) else "nothing to draw: no row has a peer")


if __name__ == "__main__":
    main(*sys.argv[1:])
