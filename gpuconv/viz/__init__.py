"""Pictures of the convolution, drawn from what the library itself computes.

Each function returns a matplotlib figure or an `Animation`; `save(picture, "file.gif")` writes it,
and a notebook shows it. `gpuconv viz` draws the same from the command line. Needs the extra `viz`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # each file is imported when something of it is asked for
    from gpuconv.viz.backpropagation import backward as backward
    from gpuconv.viz.blocks import tile as tile
    from gpuconv.viz.channel_sums import channels as channels
    from gpuconv.viz.convolution import conv as conv
    from gpuconv.viz.filtering import apply as apply
    from gpuconv.viz.grad_cam import cam as cam
    from gpuconv.viz.layers import features as features, filters as filters
    from gpuconv.viz.receptive import receptive_field as receptive_field
    from gpuconv.viz.results import (
        Evaluation as Evaluation,
        confusion as confusion,
        curves as curves,
        evaluate as evaluate,
        mistakes as mistakes,
    )
    from gpuconv.viz.saved import read_model as read_model, read_photo as read_photo
    from gpuconv.viz.style import Animation as Animation, save as save
    from gpuconv.viz.toeplitz import matrix as matrix
    from gpuconv.viz.visits import coverage as coverage

_NAMES = {
    "backpropagation": ("backward",),
    "blocks": ("tile",),
    "channel_sums": ("channels",),
    "convolution": ("conv",),
    "filtering": ("apply",),
    "grad_cam": ("cam",),
    "layers": ("features", "filters"),
    "receptive": ("receptive_field",),
    "results": ("Evaluation", "confusion", "curves", "evaluate", "mistakes"),
    "saved": ("read_model", "read_photo"),
    "style": ("Animation", "save"),
    "toeplitz": ("matrix",),
    "visits": ("coverage",),
}
_FILES = {name: file for file, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FILES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_FILES]
