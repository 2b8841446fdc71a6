"""Optimizer steps in array code: the only methods of a backend that change their arguments.

`w` (a parameter) and the state arrays of its shape are changed in place; the gradient `gw` is not:
it may be shared. Arithmetic is in the parameter's dtype; formulas and their order are PyTorch's.
"""

from typing import Any

Array = Any


class Step:
    xp: Any

    def sgd_step(
        self,
        w: Array,
        gw: Array,
        buffer: Array | None,
        first: bool,
        *,
        lr: float,
        momentum: float,
        dampening: float,
        weight_decay: float,
        nesterov: bool,
    ) -> None:
        """One step of gradient descent; `buffer` is None without momentum.

        The `first` step sets the buffer to the gradient. Source: Sutskever et al., "On the
        importance of initialization and momentum in deep learning", ICML 2013.
        """
        if weight_decay:
            gw = gw + weight_decay * w
        if buffer is not None:
            if first:
                buffer[...] = gw
            else:
                buffer *= momentum
                buffer += (1 - dampening) * gw
            gw = gw + momentum * buffer if nesterov else buffer
        w -= lr * gw

    def adam_step(
        self,
        w: Array,
        gw: Array,
        mean: Array,
        square: Array,
        largest: Array | None,
        step: int,
        *,
        lr: float,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        decoupled: bool,
    ) -> None:
        """Step number `step` (from 1) of Adam; `decoupled` weight decay makes it AdamW.

        `mean` and `square` are the moving averages of the gradient and of its square, `largest` the
        largest `square` so far (AMSGrad) or None. Sources: Kingma and Ba, "Adam", arXiv 1412.6980;
        Loshchilov and Hutter, "Decoupled weight decay regularization", arXiv 1711.05101; Reddi et
        al., "On the convergence of Adam and beyond", arXiv 1904.09237.
        """
        if weight_decay and decoupled:
            w *= 1 - lr * weight_decay
        elif weight_decay:
            gw = gw + weight_decay * w
        mean += (1 - beta1) * (gw - mean)
        square *= beta2
        square += (1 - beta2) * (gw * gw)
        if largest is not None:
            self.xp.maximum(largest, square, out=largest)
            square = largest
        scale = lr / (1 - beta1**step)
        w -= scale * mean / (self.xp.sqrt(square) / (1 - beta2**step) ** 0.5 + eps)

    def rmsprop_step(
        self,
        w: Array,
        gw: Array,
        square: Array,
        mean: Array | None,
        buffer: Array | None,
        *,
        lr: float,
        alpha: float,
        eps: float,
        weight_decay: float,
        momentum: float,
    ) -> None:
        """One step of RMSprop; `mean` is None unless centered, `buffer` None without momentum.

        Source: Tieleman and Hinton, "Lecture 6.5: rmsprop"; centered: Graves, arXiv 1308.0850.
        """
        if weight_decay:
            gw = gw + weight_decay * w
        square *= alpha
        square += (1 - alpha) * (gw * gw)
        if mean is None:
            variance = square
        else:
            mean += (1 - alpha) * (gw - mean)
            # A variance is not negative, but this difference can be, by rounding: no NaN from it.
            variance = self.xp.maximum(square - mean * mean, 0)
        update = gw / (self.xp.sqrt(variance) + eps)
        if buffer is not None:
            buffer *= momentum
            buffer += update
            update = buffer
        w -= lr * update
