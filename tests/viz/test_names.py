"""`gpuconv.viz` imports a file when something of it is asked for."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import gpuconv as gc
from gpuconv import viz


def test_type_checkers_see_the_names_that_there_are() -> None:
    tree = ast.parse(Path(viz.__file__).read_text())
    seen = {
        alias.name: str(node.module).rpartition(".")[2]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("gpuconv.viz.")
        for alias in node.names
    }
    assert seen == viz._FILES
    for name in seen:
        assert callable(getattr(gc.viz, name))
        assert name in dir(viz)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = viz.nothing


def test_importing_gpuconv_imports_no_picture() -> None:
    code = (
        "import gpuconv, sys; print([m for m in sys.modules if m.startswith('gpuconv.viz.') or "
        "m in ('matplotlib', 'PIL', 'typer', 'numba', 'llvmlite')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
