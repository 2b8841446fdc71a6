"""Winograd's convolution against the reference."""


import pytest

from gpuconv.kernels.cpu import winograd
from gpuconv.shapes import ConvSpec
from tests.cpu.conftest import check_conv


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("which", ["forward", "grad_input"])
def test_smoke(isa: str, which: str, last: bool) -> None:
    check_conv(winograd, which, ConvSpec.infer((2, 16, 9, 11), (33, 16, 3, 3), padding=1), last)
