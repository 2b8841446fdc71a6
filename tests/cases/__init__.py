"""The one table of problems that operations are tested on, a family a file."""

from importlib import import_module

from tests.cases.case import Case

FAMILIES = ("conv", "linear", "elementwise", "shape", "pool", "resample", "norm", "activation", "loss")
CASES: list[Case] = [c for f in FAMILIES for c in import_module(f"tests.cases.{f}").CASES]
