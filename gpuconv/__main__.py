"""`python -m gpuconv` is the program `gpuconv`."""

from gpuconv.cli import main

main()
