"""Residual networks, whose parameters have torchvision's names and shapes: its weights load."""

from typing import Any

from gpuconv import nn, ops


class Block(nn.Module):
    """relu(y + shortcut), y of two 3x3 convolutions, or of 1x1, 3x3 and 1x1 ones (`bottleneck`).

    The stride is the 3x3 convolution's, as in torchvision. The shortcut is the input itself, or a
    1x1 convolution of it where the shapes differ (option B of the paper).
    """

    def __init__(self, channels: int, width: int, stride: int, bottleneck: bool) -> None:
        self.relu = nn.ReLU()
        if bottleneck:
            out = 4 * width
            self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
            self.conv3 = nn.Conv2d(width, out, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(out)
        else:
            out = width
            self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def layers(self) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
        """(convolution, normalisation), in order."""
        pairs = [(self.conv1, self.bn1), (self.conv2, self.bn2)]
        return [*pairs, (self.conv3, self.bn3)] if hasattr(self, "conv3") else pairs

    def forward(self, x: Any) -> Any:
        *first, (conv, norm) = self.layers()
        y = x
        for before, between in first:
            y = self.relu(between(before(y)))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(norm(conv(y)) + shortcut)

    def fold(self) -> nn.Module:
        """The same block for inference; see `gpuconv.nn.fold`."""
        return FoldedBlock(self)


class FoldedBlock(nn.Module):
    """A `Block` whose normalisation, ReLU and sum are done by the convolutions themselves."""

    def __init__(self, block: Block) -> None:
        pairs = block.layers()
        self.convs = nn.ModuleList(nn.FusedConv2d.of(conv, norm, relu=True) for conv, norm in pairs)
        self.downsample = None if block.downsample is None else nn.fold(block.downsample)

    def forward(self, x: Any) -> Any:
        shortcut = x if self.downsample is None else self.downsample(x)
        *first, last = self.convs
        for conv in first:
            x = conv(x)
        return last(x, shortcut)


class ResNet(nn.Module):
    """`stem`, stages of blocks, the mean over the pixels, a linear layer; see the functions."""

    def __init__(
        self,
        blocks: tuple[int, ...],
        width: int,
        bottleneck: bool,
        imagenet: bool,
        num_classes: int,
        in_channels: int,
    ) -> None:
        if imagenet:
            self.conv1 = nn.Conv2d(in_channels, width, 7, 2, 3, bias=False)
        else:
            self.conv1 = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1) if imagenet else nn.Identity()
        channels = width
        self.stages = len(blocks)
        for i, count in enumerate(blocks):
            stage = []
            for j in range(count):
                stage.append(Block(channels, width << i, 2 if i and not j else 1, bottleneck))
                channels = (width << i) * (4 if bottleneck else 1)
            setattr(self, f"layer{i + 1}", nn.Sequential(*stage))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Any) -> Any:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for i in range(self.stages):
            x = getattr(self, f"layer{i + 1}")(x)
        return self.fc(ops.flatten(self.avgpool(x), 1))

    def fold(self) -> nn.Module:
        """The same network for inference; see `gpuconv.nn.fold`."""
        stages = [nn.fold(getattr(self, f"layer{i + 1}")) for i in range(self.stages)]
        stem = nn.FusedConv2d.of(self.conv1, self.bn1, relu=True)
        ends = nn.fold(self.avgpool), nn.Flatten(), nn.fold(self.fc)
        return nn.Sequential(stem, nn.fold(self.maxpool), *stages, *ends)


def resnet20(num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """For small images (CIFAR's are 32 x 32): (N, num_classes) scores; 272,474 parameters.

    Source: He, Zhang, Ren and Sun, "Deep residual learning for image recognition", arXiv
    1512.03385, section 4.2, with shortcuts of 1x1 convolutions where shapes change (option B).
    """
    return ResNet((3, 3, 3), 16, False, False, num_classes, in_channels)


def resnet18(num_classes: int = 1000, in_channels: int = 3) -> ResNet:
    """For images of 224 x 224, or others; 11,689,512 parameters. Source: as `resnet50`."""
    return ResNet((2, 2, 2, 2), 64, False, True, num_classes, in_channels)


def resnet34(num_classes: int = 1000, in_channels: int = 3) -> ResNet:
    """For images of 224 x 224, or others; 21,797,672 parameters. Source: as `resnet50`."""
    return ResNet((3, 4, 6, 3), 64, False, True, num_classes, in_channels)


def resnet50(num_classes: int = 1000, in_channels: int = 3) -> ResNet:
    """For images of 224 x 224, or others: (N, num_classes) scores; 25,557,032 parameters.

    Source: He, Zhang, Ren and Sun, "Deep residual learning for image recognition", arXiv
    1512.03385, table 1; the stride is in the 3x3 convolutions ("ResNet v1.5"), as in torchvision.
    """
    return ResNet((3, 4, 6, 3), 64, True, True, num_classes, in_channels)
