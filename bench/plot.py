"""Ratios of a run as a picture: `python -m bench.plot FILE.json [FILE.png]`."""

import argparse
import io
import sys
from pathlib import Path
from typing import Any

if not __package__:
    sys.exit("plot: error: it is a module, to be run as python -m bench.plot")

from bench import report
from bench.terminal import complain
from gpuconv.errors import Error
from gpuconv.files import write_atomically


def draw(result: dict[str, Any], path: Path) -> bool:
    """Write the picture; False if no row has a peer. ImportError without matplotlib."""
    rows = [row for row in result["rows"] if report.by_peer(row)]
    if not rows:
        return False
    buffer = io.BytesIO()
    figure(rows).savefig(buffer, format="png", dpi=110)
    write_atomically(path, buffer.getvalue())
    return True


def figure(rows: list[dict[str, Any]]) -> Any:
    """Each row's ratio to each peer, on a logarithmic axis; hollow where it is not to be used."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for row in rows for name in report.by_peer(row)))
    picture = Figure(figsize=(9, 1.2 + 0.2 * len(rows)), layout="constrained")
    axes = picture.subplots()
    for (i, name), marker in zip(enumerate(names), "osD^vP*X", strict=False):
        for hollow in (False, True):
            points = [
                (report.by_peer(row)[name], y)
                for y, row in enumerate(rows)
                if name in report.by_peer(row) and hollow == (name in row.get("disturbed", {}))
            ]
            axes.plot(
                *(zip(*points, strict=True) if points else ([], [])),
                marker,
                color=f"C{i}",
                markersize=4,
                fillstyle="none" if hollow else "full",
                label=None if hollow else name,
            )
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    labels = [", ".join([f"{row['case']} {row['pass']}", *report.flaws(row)]) for row in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=6)
    axes.invert_yaxis()
    axes.set_xlabel("peer's time / gpuconv's (right of the line: gpuconv is faster)")
    axes.grid(axis="x", alpha=0.3)
    if any(row.get("disturbed") for row in rows):
        axes.set_title("hollow: disturbed in every round, not to be used", fontsize=7)
    axes.legend(fontsize=7)
    return picture


def main(arguments: list[str]) -> int:
    """Draw a result that is on disk."""
    p = argparse.ArgumentParser(prog="python -m bench.plot", description=__doc__)
    p.add_argument("source", type=Path, metavar="FILE.json", help="a result of bench.run")
    p.add_argument("target", type=Path, nargs="?", metavar="FILE.png", help="default: beside it")
    o = p.parse_args(arguments)
    path = o.target or o.source.with_suffix(".png")
    try:
        drawn = draw(report.read(o.source), path)
    except ImportError as error:
        complain(f"plot: error: matplotlib is needed ({error}); install gpuconv[viz]")
        return 1
    except (Error, OSError, ValueError) as error:
        complain(f"plot: error: {error}")
        return 1
    print(path if drawn else "nothing to draw: no row has a peer")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
