"""LeNet-5, the first convolutional network in wide use."""

from gpuconv import nn
from gpuconv.errors import ArgumentError


def lenet5(
    num_classes: int = 10, in_channels: int = 1, classic: bool = False, image_size: int = 28
) -> nn.Sequential:
    """LeNet-5 for images (N, in_channels, 28, 28), or 32 x 32: (N, num_classes) scores.

    As usual today, with ReLU and max pooling; `classic` has tanh and average pooling as in 1998.
    (Left out of the original: trainable pooling weights, the partial table of connections of the
    second convolution, and the radial basis functions at the end.) 61,706 parameters for one
    channel and ten classes. Source: LeCun, Bottou, Bengio and Haffner, "Gradient-based learning
    applied to document recognition", Proceedings of the IEEE 86 (1998), section II.B.
    """
    if image_size not in (28, 32):
        raise ArgumentError(
            f"lenet5: image_size={image_size} must be 28 or 32; resize the images or use simple_cnn"
        )
    activation: type[nn.Module] = nn.Tanh if classic else nn.ReLU
    pool: type[nn.AvgPool2d] | type[nn.MaxPool2d] = nn.AvgPool2d if classic else nn.MaxPool2d
    return nn.Sequential(
        {
            # The paper pads images to 32 x 32, so that every stroke lies in the middle of a field.
            "conv1": nn.Conv2d(in_channels, 6, 5, padding=(32 - image_size) // 2),
            "act1": activation(),
            "pool1": pool(2),
            "conv2": nn.Conv2d(6, 16, 5),
            "act2": activation(),
            "pool2": pool(2),
            "flatten": nn.Flatten(),
            "fc1": nn.Linear(16 * 5 * 5, 120),
            "act3": activation(),
            "fc2": nn.Linear(120, 84),
            "act4": activation(),
            "fc3": nn.Linear(84, num_classes),
        }
    )
