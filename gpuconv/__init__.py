"""gpuconv: convolutional neural networks whose kernels are written in Python."""

from gpuconv.autograd import Tensor as Tensor, no_grad as no_grad, tensor as tensor
from gpuconv.backends import backend as backend
from gpuconv.ops import *  # noqa: F403
from gpuconv.random import manual_seed as manual_seed
