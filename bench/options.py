"""The command line of `bench.run`; a mistake in it is one line."""

import argparse
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import NoReturn

from bench import cases, machine
from bench.problems import FORMATS
from gpuconv.backends import BACKENDS


class Parser(argparse.ArgumentParser):
    """A parser whose errors come without the usage, which has more lines than a screen has room."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"bench: error: {message} (see {self.prog} --help)\n")


def number(kind: type, least: float) -> Callable[[str], float]:
    """What reads a finite number that is not less."""

    def convert(text: str) -> float:
        try:
            value: float = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no {kind.__name__}") from None
        if not least <= value < inf:
            raise argparse.ArgumentTypeError(f"must be at least {least:g}, is {text}")
        return value

    return convert


def parse(arguments: list[str], description: str) -> argparse.Namespace:
    """The options; SystemExit for a mistake."""
    p = Parser(prog="python -m bench.run", description=description)
    p.add_argument("--set", default="main", help=f"some of {','.join(cases.SETS)}")
    p.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    p.add_argument("--backend", choices=BACKENDS, help="who computes ours (default: the device's)")
    p.add_argument("--peers", help="with commas; 'none'; default: all that fit the device")
    p.add_argument("--formats", default=",".join(FORMATS), help="memory formats")
    p.add_argument("--passes", default="", help=",".join(cases.PASSES))
    p.add_argument("--filter", default="", help="only cases with one of these in their name")
    p.add_argument("--rounds", type=number(int, 1), default=9)
    p.add_argument(
        "--block", type=number(float, 1e-6), help="seconds a block (default: 0.05, on a GPU 0.01)"
    )
    p.add_argument(
        "--row", type=number(float, 0), default=20.0, help="no round is begun after these seconds"
    )
    p.add_argument(
        "--budget", type=number(float, 0), default=0.0, help="no row is begun after these seconds"
    )
    p.add_argument("--l2", default="cold", choices=("cold", "warm"), help="on a GPU")
    p.add_argument(
        "--cudnn-benchmark", action="store_true", help="cuDNN's algorithms are tried out"
    )
    p.add_argument("--threads", type=number(int, 1), default=machine.processors())
    p.add_argument("--base", metavar="REV", help="measure this commit too")
    p.add_argument("--out", type=Path, help="FILE.json")
    p.add_argument("--resume", action="store_true", help="keep the rows that are in FILE.json")
    p.add_argument("--overwrite", action="store_true", help="replace FILE.json")
    p.add_argument("--list", action="store_true", help="print the layer-passes and stop")
    options = p.parse_args(arguments)
    for format in options.formats.split(","):
        if format not in FORMATS:
            p.error(f"argument --formats: no format {format!r}; use {', '.join(FORMATS)}")
    options.block = options.block or (0.01 if options.device == "cuda" else 0.05)
    return options
