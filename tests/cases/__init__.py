"""The one table of problems that operations are tested on, a family a file."""

from importlib import import_module

from tests.cases.case import Case

FAMILIES = (
    "activation",
    "conv",
    "elementwise",
    "linear",
    "loss",
    "norm",
    "pool",
    "resample",
    "shape",
)
CASES: list[Case] = [c for f in FAMILIES for c in import_module(f"tests.cases.{f}").CASES]
