"""A small convolutional network of today's kind, light enough to train on a CPU."""

from gpuconv import nn
from gpuconv.shapes import ints


def simple_cnn(num_classes: int = 10, in_channels: int = 1, width: int = 16) -> nn.Sequential:
    """For images (N, in_channels, H, W), 8 x 8 or larger: (N, num_classes) scores.

    Four 3x3 convolutions of `width` to 4 * `width` channels with batch normalisation and ReLU, the
    first three with a max pooling that halves the image; the mean over the pixels left; a linear
    layer. With width=16, one channel and ten classes: 61,050 parameters, and for 28 x 28 pixels 2.3
    million multiplications an image.
    """
    (width,) = ints("simple_cnn", "width", width, 1, least=1)
    return nn.Sequential(
        {
            "block1": _block(in_channels, width, halve=True),
            "block2": _block(width, 2 * width, halve=True),
            "block3": _block(2 * width, 4 * width, halve=True),
            "block4": _block(4 * width, 4 * width, halve=False),
            "pool": nn.AdaptiveAvgPool2d(1),
            "flatten": nn.Flatten(),
            "fc": nn.Linear(4 * width, num_classes),
        }
    )


def _block(in_channels: int, out_channels: int, halve: bool) -> nn.Sequential:
    # Pooling comes before normalisation and ReLU, which are then done on a quarter of the pixels;
    # the maximum of increasing functions is the function of the maximum.
    return nn.Sequential(
        {
            "conv": nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            "pool": nn.MaxPool2d(2) if halve else nn.Identity(),
            "norm": nn.BatchNorm2d(out_channels),
            "act": nn.ReLU(),
        }
    )
