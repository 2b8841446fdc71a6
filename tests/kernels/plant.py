"""A bug planted in a kernel's real source: a copy of its module with a text replaced."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gpuconv.kernels.cuda.compiler import Kernel


def planted(module: ModuleType, folder: Path, *edits: tuple[str, str]) -> ModuleType:
    """A copy of `module` under another name; of each edit the first text, which is there exactly
    once, is replaced by the second."""
    assert module.__file__ is not None
    source = Path(module.__file__).read_text(encoding="utf-8")
    for old, new in edits:
        assert source.count(old) == 1, f"{old!r} is {source.count(old)} times in {module.__file__}"
        source = source.replace(old, new)
    short = module.__name__.rpartition(".")[2]
    path = folder / f"{short}_planted.py"
    path.write_text(source, encoding="utf-8")
    name = f"tests.kernels.{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    sys.modules[name] = copy  # dataclasses look their module up
    spec.loader.exec_module(copy)
    return copy


def replace(monkeypatch: pytest.MonkeyPatch, module: ModuleType, copy: ModuleType) -> None:
    """Let all of gpuconv use `copy` for `module`, wherever it or what it defines was imported."""
    own = {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, Kernel) or getattr(value, "__module__", "") == module.__name__
    }

    def mine(name: str, value: Any) -> Any:
        if value is module:
            return copy
        return vars(copy)[name] if name in own and value is own[name] else None

    for key, user in list(sys.modules.items()):
        if user is module or not key.startswith("gpuconv"):
            continue
        for name, value in list(vars(user).items()):
            if (other := mine(name, value)) is not None:
                monkeypatch.setattr(user, name, other)
