"""A run's rows in figures: rates, ratios, the Markdown table, the summary."""

import json
from math import exp, log
from pathlib import Path
from typing import Any

from bench import timing
from gpuconv.files import read_bytes

FORMAT = 1
OURS = "gpuconv"


def place(
    row: dict[str, Any], samples: dict[str, timing.Sample], peaks: dict[str, Any], problem: Any
) -> None:
    """Fill in times, rates and ratios; a contender's best format stands for it in `best`.

    `disturbed` names those whose figures are not to be used, for no round of one of their formats
    was undisturbed: of ours, and of a peer's together with ours.
    """
    found = row["contenders"]
    best: dict[str, str] = {}
    for label, sample in samples.items():
        entry, name = found[label], label.partition("/")[0]
        entry["seconds"] = sample.summary()
        seconds = entry["seconds"]["median"]
        if problem.flops:
            entry["tflops"] = problem.flops / seconds / 1e12
            entry["gbps"] = problem.bytes / seconds / 1e9
        if name not in best or seconds < found[best[name]]["seconds"]["median"]:
            best[name] = label
    row["best"] = best
    share(row, peaks)
    ours = samples[best[OURS]]
    row["ratios"] = {
        label: timing.ratio(sample, ours)
        for label, sample in samples.items()
        if not label.startswith(f"{OURS}/")
    }
    row["disturbed"] = {}
    for label, sample in samples.items():
        name, of = label.partition("/")[0], len(sample.blocks)
        if timing.lost(sample, sample if name == OURS else ours) == of:
            row["disturbed"][name] = f"{of} of {of} rounds"
    exact = {
        name: label
        for name, label in best.items()
        if name not in (OURS, "base") and found[label]["exact"]
    }
    # One whose time is not known might be the best.
    if exact and not row["disturbed"].keys() & {OURS, *exact}:
        row["best_peer"] = min(exact.values(), key=lambda label: row["ratios"][label])


def share(row: dict[str, Any], peaks: dict[str, Any]) -> None:
    """Of each time, how much a device with these peaks would need at the least.

    That is for computing or for moving, whichever takes longer.
    """
    computing, moving = row["flops"] / peaks["flops"], row["bytes"] / peaks["bytes"]
    row["bound"] = "flops" if computing >= moving else "bytes"
    for entry in row["contenders"].values():
        if row["flops"] and "seconds" in entry:
            entry["share"] = max(computing, moving) / entry["seconds"]["median"]


def most(row: dict[str, Any]) -> int:
    """The share that is possible: Winograd's F(4x4, 3x3) does with a quarter of the products."""
    return 4 if row.get("winograd") and row.get("bound") == "flops" else 1


def flaws(row: dict[str, Any]) -> list[str]:
    """What a reader of a row's figures must know."""
    lost = row.get("disturbed", {})
    found = [f"disturbed {lost[OURS]}"] if OURS in lost else []
    found += [f"{name} disturbed {text}" for name, text in lost.items() if OURS not in lost]
    return found + [
        f"share of {label} is {entry['share']:.2f}, above {most(row)}"
        for label, entry in row.get("contenders", {}).items()
        if entry.get("share", 0) > most(row)
    ]


def line(row: dict[str, Any]) -> str:
    """A row on one line of a terminal."""
    head = f"{row['case']:31} {row['pass']:11}"
    if row["status"] != "ok":
        return f"{head} {row['status'].upper()}: {row['reason']}"
    ours = row["contenders"][row["best"][OURS]]
    ratios = ", ".join(f"{name} {ratio:.2f}" for name, ratio in by_peer(row).items())
    taken = f"{ours['seconds']['median'] * 1e3:9.4f} ms  off {ours['error']:.1e}"
    again = sum(entry.get("seconds", {}).get("repeated", 0) for entry in row["contenders"].values())
    parts = [f"{head} {taken}", ratios, f"{again} repeats" if again else ""]
    return "  ".join([part for part in parts if part] + [f"! {text}" for text in flaws(row)])


def by_peer(row: dict[str, Any]) -> dict[str, float]:
    """Peer -> ratio of its best format."""
    return {
        name: row["ratios"][label] for name, label in row.get("best", {}).items() if name != OURS
    }


def geomeans(rows: list[dict[str, Any]]) -> dict[str, tuple[float, float, int]]:
    """Peer -> (geometric mean of the ratios, the least of them, of how many rows).

    "best peer" is the fastest of a row that computes in float32 throughout. Ratios that were
    disturbed in every round are left out.
    """
    ratios: dict[str, list[float]] = {}
    for row in rows:
        if row["status"] != "ok":
            continue
        lost = row.get("disturbed", {})
        for name, ratio in by_peer(row).items():
            if OURS not in lost and name not in lost:
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
        state = "disturbed" if row.get("disturbed") else row["status"]
        counts[state] = counts.get(state, 0) + 1
    lines = [f"{len(rows)} rows: " + (", ".join(f"{n} {s}" for s, n in counts.items()) or "none")]
    for name, (mean, least, count) in geomeans(rows).items():
        lines.append(f"time of {name} / ours: geomean {mean:.3f}, worst {least:.3f}, {count} rows")
    return "\n".join(lines + warnings(result))


def warnings(result: dict[str, Any]) -> list[str]:
    """What a reader of a run's figures must know."""
    rows, found = result["rows"], []
    rough = result.get("peaks", {}).get("disturbed", [])
    if rough:
        found.append(
            f"warning: the measured peak of {' and '.join(rough)} was disturbed: "
            "no share is to be used"
        )
    high = sum(any(text.startswith("share of") for text in flaws(row)) for row in rows)
    if high:
        found.append(
            f"warning: a share above 1 in {high} of {len(rows)} rows: "
            "the data was in a cache, or the peak was measured too low"
        )
    lost = sum(bool(row.get("disturbed")) for row in rows)
    if lost:
        found.append(
            f"warning: {lost} of {len(rows)} rows were disturbed in every round: their figures are "
            "not to be used; measure them again with --resume when the machine is quiet"
        )
    return found


def peaks(found: dict[str, Any]) -> str:
    """The measured peaks on a line."""
    text = f"{found['flops'] / 1e12:.3f} TFLOP/s float32, {found['bytes'] / 1e9:.1f} GB/s"
    if found.get("small"):
        text += "; of small arrays, which fit into caches"
    if found.get("disturbed"):
        text += f"; ! disturbed: {', '.join(found['disturbed'])}"
    return f"measured peaks: {text}"


def markdown(result: dict[str, Any]) -> str:
    """The whole result as a page: what it was made on, the table, the summary."""
    env, settings, rows = result.get("environment", {}), result.get("settings", {}), result["rows"]
    names: list[str] = []
    for row in rows:
        names += [name for name in by_peer(row) if name not in names]
    out = ["# Benchmark", ""]
    out += [f"- {key}: {_plain(value)}" for key, value in {**env, **settings}.items()]
    if "peaks" in result:
        out.append(f"- {peaks(result['peaks'])}")
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
            marks = {
                name: f" (disturbed {text})" for name, text in row.get("disturbed", {}).items()
            }
            rates = {key: f"{ours[key]:.{digits}f}" for key, digits in _RATES if key in ours}
            if ours.get("share", 0) > most(row):
                rates["share"] += f" (above {most(row)})"
            cells += [
                f"{seconds['median'] * 1e3:.4f}{marks.get(OURS, '')}",
                f"{seconds['q1'] * 1e3:.4f}-{seconds['q3'] * 1e3:.4f}",
                *(rates.get(key, "") for key, _ in _RATES),
                f"{ours['error']:.1e}",
                *(
                    f"{ratios[name]:.2f}{marks.get(name, '')}" if name in ratios else ""
                    for name in names
                ),
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
    from bench.plot import draw  # which imports this module

    try:
        draw(result, path)
    except ImportError as error:
        return f"no plot ({error})"
    return str(path)


def read(path: Path) -> dict[str, Any]:
    """A result that was written; ValueError for another file."""
    try:
        result = json.loads(read_bytes(path))
        if result["format"] == FORMAT and isinstance(result["rows"], list):
            return dict(result)
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"{path} is no result of bench.run; give another file")
