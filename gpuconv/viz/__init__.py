"""Pictures of the convolution, drawn from what the library itself computes.

Each function returns a matplotlib figure or an `Animation`; `save(picture, "file.gif")` writes it,
and a notebook shows it. `gpuconv viz` draws the same from the command line. Needs the extra `viz`.
"""

from gpuconv.viz.style import Animation as Animation, save as save
