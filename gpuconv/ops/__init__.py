"""Differentiable operations, one family a file. Each takes Tensors, arrays or both.

Arrays alone give an array and record nothing; a Tensor among the inputs gives a Tensor.
"""

from gpuconv.ops.conv import (
    conv1d as conv1d,
    conv1d_grad_input as conv1d_grad_input,
    conv1d_grad_weight as conv1d_grad_weight,
    conv2d as conv2d,
    conv2d_grad_input as conv2d_grad_input,
    conv2d_grad_weight as conv2d_grad_weight,
    conv3d as conv3d,
    conv3d_grad_input as conv3d_grad_input,
    conv3d_grad_weight as conv3d_grad_weight,
    conv_transpose1d as conv_transpose1d,
    conv_transpose2d as conv_transpose2d,
    conv_transpose3d as conv_transpose3d,
)
from gpuconv.ops.elementwise import (
    ToDevice as ToDevice,
    absolute as absolute,
    add as add,
    astype as astype,
    clip as clip,
    divide as divide,
    exp as exp,
    log as log,
    maximum as maximum,
    minimum as minimum,
    multiply as multiply,
    negative as negative,
    power as power,
    sqrt as sqrt,
    subtract as subtract,
    where as where,
)
from gpuconv.ops.linear import linear as linear, matmul as matmul
from gpuconv.ops.reduce import max as max, mean as mean, min as min, sum as sum, var as var
from gpuconv.ops.shape import (
    broadcast_to as broadcast_to,
    concat as concat,
    flatten as flatten,
    flip as flip,
    getitem as getitem,
    pad as pad,
    reshape as reshape,
    squeeze as squeeze,
    stack as stack,
    transpose as transpose,
    unsqueeze as unsqueeze,
)
