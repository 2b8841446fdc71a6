"""The ONNX graph of one of our folded networks, for the peers that read ONNX."""

from typing import Any

import numpy as np


class Graph:
    """Nodes and constants, added layer after layer; `add` gives the name of a layer's output."""

    def __init__(self, onnx: Any) -> None:
        self.onnx, self.nodes, self.constants = onnx, [], []

    def node(self, kind: str, inputs: list[str], **options: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, [name], **options))
        return name

    def constant(self, array: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(self.onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def add(self, layer: Any, x: str) -> str:
        """The nodes of a module of `gpuconv.nn.fold`."""
        name = type(layer).__name__
        if name == "Sequential":
            for inner in layer:
                x = self.add(inner, x)
            return x
        if name == "FusedConv2d":
            return self.conv(layer, x)
        if name == "FoldedBlock":
            shortcut = x if layer.downsample is None else self.add(layer.downsample, x)
            for conv in layer.convs[:-1]:
                x = self.conv(conv, x)
            return self.conv(layer.convs[-1], x, shortcut)
        if name == "MaxPool2d":
            return self.node(
                "MaxPool",
                [x],
                kernel_shape=_pair(layer.kernel_size),
                strides=_pair(layer.stride),
                pads=_pair(layer.padding) * 2,
            )
        if name == "AdaptiveAvgPool2d":
            return self.node("GlobalAveragePool", [x])
        if name == "Flatten":
            return self.node("Flatten", [x])
        if name == "Linear":
            weights = [self.constant(p.numpy()) for p in (layer.weight, layer.bias)]
            return self.node("Gemm", [x, *weights], transB=1)
        raise ValueError(f"bench.onnx_net does not know {name}; add it there")

    def conv(self, layer: Any, x: str, residual: str = "") -> str:
        stride, padding, dilation, groups, _ = layer.options
        x = self.node(
            "Conv",
            [x, *(self.constant(p.numpy()) for p in (layer.weight, layer.bias))],
            strides=_pair(stride),
            dilations=_pair(dilation),
            pads=_pair(padding) * 2,
            group=groups,
        )
        if residual:
            x = self.node("Add", [x, residual])
        return self.node("Relu", [x]) if layer.relu else x


def _pair(value: Any) -> list[int]:
    """One number for both axes, or one each."""
    return [value] * 2 if isinstance(value, int) else list(value)


def model(onnx: Any, folded: Any, x_shape: Any) -> Any:
    """An ONNX model with input "x" and output "y"."""
    graph, float32 = Graph(onnx), onnx.TensorProto.FLOAT
    graph.add(folded, "x")
    graph.nodes[-1].output[0] = "y"
    made = onnx.helper.make_graph(
        graph.nodes,
        "net",
        [onnx.helper.make_tensor_value_info("x", float32, x_shape)],
        [onnx.helper.make_tensor_value_info("y", float32, None)],
        graph.constants,
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    return onnx.helper.make_model(made, opset_imports=opset, ir_version=8)
