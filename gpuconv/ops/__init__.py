"""Differentiable operations, one family a file. Each takes Tensors, arrays or both.

Arrays alone give an array and record nothing; a Tensor among the inputs gives a Tensor.
"""

from gpuconv.ops.activation import (
    celu as celu,
    elu as elu,
    gelu as gelu,
    hardsigmoid as hardsigmoid,
    hardswish as hardswish,
    hardtanh as hardtanh,
    leaky_relu as leaky_relu,
    log_softmax as log_softmax,
    mish as mish,
    prelu as prelu,
    relu as relu,
    relu6 as relu6,
    selu as selu,
    sigmoid as sigmoid,
    silu as silu,
    softmax as softmax,
    softplus as softplus,
    tanh as tanh,
)
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
    fused_conv2d as fused_conv2d,
)
from gpuconv.ops.dropout import (
    dropout as dropout,
    dropout2d as dropout2d,
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
from gpuconv.ops.linear import (
    linear as linear,
    matmul as matmul,
)
from gpuconv.ops.loss import (
    binary_cross_entropy as binary_cross_entropy,
    binary_cross_entropy_with_logits as binary_cross_entropy_with_logits,
    cross_entropy as cross_entropy,
    huber_loss as huber_loss,
    kl_div as kl_div,
    l1_loss as l1_loss,
    mse_loss as mse_loss,
    nll_loss as nll_loss,
    smooth_l1_loss as smooth_l1_loss,
)
from gpuconv.ops.norm import (
    batch_norm as batch_norm,
    group_norm as group_norm,
    instance_norm as instance_norm,
    layer_norm as layer_norm,
    local_response_norm as local_response_norm,
)
from gpuconv.ops.pool import (
    adaptive_avg_pool1d as adaptive_avg_pool1d,
    adaptive_avg_pool2d as adaptive_avg_pool2d,
    adaptive_avg_pool3d as adaptive_avg_pool3d,
    adaptive_max_pool1d as adaptive_max_pool1d,
    adaptive_max_pool2d as adaptive_max_pool2d,
    adaptive_max_pool3d as adaptive_max_pool3d,
    avg_pool1d as avg_pool1d,
    avg_pool2d as avg_pool2d,
    avg_pool3d as avg_pool3d,
    global_avg_pool as global_avg_pool,
    global_max_pool as global_max_pool,
    max_pool1d as max_pool1d,
    max_pool2d as max_pool2d,
    max_pool3d as max_pool3d,
    max_unpool1d as max_unpool1d,
    max_unpool2d as max_unpool2d,
    max_unpool3d as max_unpool3d,
)
from gpuconv.ops.reduce import (
    max as max,
    mean as mean,
    min as min,
    sum as sum,
    var as var,
)
from gpuconv.ops.resample import (
    interpolate as interpolate,
    pixel_shuffle as pixel_shuffle,
    pixel_unshuffle as pixel_unshuffle,
)
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
