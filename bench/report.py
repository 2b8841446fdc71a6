"""A run's rows in figures: rates, ratios, the Markdown table, the summary."""

from math import exp, log
from pathlib import Path
from typing import Any

from bench import timing

OURS = "gpuconv"


def place(
    row: dict[str, Any], samples: dict[str, timing.Sample], peaks: dict[str, float], problem: Any
) -> None:
    """Fill in times, rates and ratios; a contender's best format stands for it in `best`."""
    found = row["contenders"]
    # The least time a device with these peaks could need, whichever of the two it waits for.
    computing, moving = problem.flops / peaks["flops"], problem.bytes / peaks["bytes"]
    best: dict[str, str] = {}
    for label, sample in samples.items():
        entry, name = found[label], label.partition("/")[0]
        entry["seconds"] = sample.summary()
        seconds = entry["seconds"]["median"]
        if problem.flops:
            entry["tflops"] = problem.flops / seconds / 1e12
            entry["gbps"] = problem.bytes / seconds / 1e9
            entry["share"] = max(computing, moving) / seconds
        if name not in best or seconds < found[best[name]]["seconds"]["median"]:
            best[name] = label
    row["best"] = best
    row["bound"] = "flops" if computing >= moving else "bytes"
    ours = samples[best[OURS]]
    row["ratios"] = {
        label: timing.ratio(sample, ours)
        for label, sample in samples.items()
        if not label.startswith(f"{OURS}/")
    }
    exact = [
        label
        for name, label in best.items()
        if name not in (OURS, "base") and found[label]["exact"]
    ]
    if exact:
        row["best_peer"] = min(exact, key=lambda label: row["ratios"][label])


def line(row: dict[str, Any]) -> str:
    """A row on one line of a terminal."""
    head = f"{row['case']:38} {row['pass']:11}"
    if row["status"] != "ok":
        return f"{head} {row['status'].upper()}: {row['reason']}"
    ours = row["contenders"][row["best"][OURS]]
    ratios = ", ".join(f"{name} {ratio:.2f}" for name, ratio in by_peer(row).items())
    taken = f"{ours['seconds']['median'] * 1e3:9.4f} ms  off {ours['error']:.1e}  {ratios}"
    return f"{head} {taken}".rstrip()


def by_peer(row: dict[str, Any]) -> dict[str, float]:
    """Peer -> ratio of its best format."""
    return {
        name: row["ratios"][label] for name, label in row.get("best", {}).items() if name != OURS
    }


def geomeans(rows: list[dict[str, Any]]) -> dict[str, tuple[float, float, int]]:
    """Peer -> (geometric mean of the ratios, the least of them, of how many rows).

    "best peer" is the fastest of a row that computes in float32 throughout.
    """
    ratios: dict[str, list[float]] = {}
    for row in rows:
        if row["status"] != "ok":
            continue
        for name, ratio in by_peer(row).items():
            ratios.setdefault(name, []).append(ratio)
        if "best_peer" in row:
            ratios.setdefault("best peer", []).append(row["ratios"][row["best_peer"]])
    return {
        name: (exp(sum(log(r) for r in found) / len(found)), min(found), len(found))
        for name, found in ratios.items()
    }


def summary(result: dict[str, Any]) -> str:
    """What a run comes to, in a few lines."""
    rows = result["rows"]
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["status"]] = counts.get(row["status"], 0) + 1
    lines = [f"{len(rows)} rows: " + (", ".join(f"{n} {s}" for s, n in counts.items()) or "none")]
    for name, (mean, least, count) in geomeans(rows).items():
        lines.append(f"time of {name} / ours: geomean {mean:.3f}, worst {least:.3f}, {count} rows")
    return "\n".join(lines)


def markdown(result: dict[str, Any]) -> str:
    """The whole result as a page: what it was made on, the table, the summary."""
    env, settings, rows = result.get("environment", {}), result.get("settings", {}), result["rows"]
    names: list[str] = []
    for row in rows:
        names += [name for name in by_peer(row) if name not in names]
    out = ["# Benchmark", ""]
    out += [f"- {key}: {_plain(value)}" for key, value in {**env, **settings}.items()]
    if "peaks" in result:
        flops, moved = (result["peaks"][name] for name in ("flops", "bytes"))
        out.append(f"- measured peaks: {flops / 1e12:.3f} TFLOP/s float32, {moved / 1e9:.1f} GB/s")
    out += [f"- gap: {gap}" for gap in result["gaps"]]
    if result.get("left"):
        out.append(f"- not finished: {result['left']} layer-passes left")
    out += [
        "",
        "Times are of ours in its faster memory format, with quartiles; `x NAME` is NAME's time "
        "over ours, in its faster format: above 1, ours is faster. `share` is of what the measured "
        "peaks allow; `off` the largest error over the largest number.",
        "",
        "| case | pass | ms | quartiles | TFLOP/s | GB/s | share | off |"
        + "".join(f" x {name} |" for name in names),
        "|---|---|" + "---:|" * (6 + len(names)),
    ]
    for row in rows:
        cells = [row["case"], row["pass"]]
        if row["status"] != "ok":
            cells += [f"{row['status']}: {row['reason']}".replace("|", "/")]
            cells += [""] * (5 + len(names))
        else:
            ours, ratios = row["contenders"][row["best"][OURS]], by_peer(row)
            seconds = ours["seconds"]
            cells += [
                f"{seconds['median'] * 1e3:.4f}",
                f"{seconds['q1'] * 1e3:.4f}-{seconds['q3'] * 1e3:.4f}",
                *(f"{ours[key]:.{digits}f}" if key in ours else "" for key, digits in _RATES),
                f"{ours['error']:.1e}",
                *(f"{ratios[name]:.2f}" if name in ratios else "" for name in names),
            ]
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join([*out, "", *(f"- {text}" for text in summary(result).splitlines()), ""])


_RATES = (("tflops", 3), ("gbps", 1), ("share", 3))


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {inner}" for key, inner in value.items())
    return ", ".join(value) if isinstance(value, list) else str(value)


def plot(result: dict[str, Any], path: Path) -> str:
    """The picture of `bench.plot`; what was written, or why nothing was."""
    if not any(by_peer(row) for row in result["rows"]):
        return "no plot (no row with a peer)"
    try:
        from bench.plot import draw
    except ImportError as error:
        return f"no plot ({error})"
    draw(result, path)
    return str(path)
