"""Small networks that chapters and problem sets train."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from course_lib import algorithm

__all__ = ["CNN", "MLP", "NumpyMLP", "PostActivationBlock", "PreActivationBlock", "ResNet", "initialise"]

#: What makes a normalisation layer from a number of channels; None leaves the layer out.
Norm = Callable[[int], nn.Module] | None


class NumpyMLP:
    """A multilayer perceptron in plain NumPy, whose Batch Normalization is `course_lib.algorithm`'s.

    Linear → BatchNorm → ReLU for every hidden layer, a linear layer and softmax cross-entropy at the end,
    trained by gradient descent with momentum. The functions are looked up in the module when they are
    called, so pieces that were plugged in do the work.

    Args:
        sizes: features of the input, of every hidden layer, and the number of classes.
        batch_norm: leave the normalisation out for comparison.
        scale: standard deviation of the initial weights, in units of He's √(2 / fan_in).
        seed: of the initial weights.

    Example:
        >>> net = NumpyMLP((2, 8, 2), seed=0)
        >>> net.step(np.array([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]]), np.array([0, 1, 0]), learning_rate=0.1) > 0
        True
    """

    def __init__(self, sizes: Sequence[int], *, batch_norm: bool = True, scale: float = 1.0, seed: int = 0):
        rng = np.random.default_rng(seed)
        pairs = list(pairwise(sizes))
        self.batch_norm = batch_norm
        self.parameters = {}
        for i, (fan_in, fan_out) in enumerate(pairs):
            self.parameters[f"w{i}"] = scale * np.sqrt(2 / fan_in) * rng.standard_normal((fan_in, fan_out))
            self.parameters[f"b{i}"] = np.zeros(fan_out)
            if batch_norm and i < len(pairs) - 1:
                self.parameters[f"gamma{i}"], self.parameters[f"beta{i}"] = np.ones(fan_out), np.zeros(fan_out)
        self.depth = len(pairs)
        self._velocity = {name: np.zeros_like(value) for name, value in self.parameters.items()}

    def forward(self, x):
        """Logits of a batch (N, features), with the statistics of that batch, and what backward needs.

        Returns:
            (logits, tape): logits of shape (N, classes).
        """
        p, tape = self.parameters, []
        for i in range(self.depth - 1):
            z = x @ p[f"w{i}"] + p[f"b{i}"]
            cache = None
            if self.batch_norm:
                z, cache = algorithm.batch_norm_forward(z, p[f"gamma{i}"], p[f"beta{i}"])
            tape.append((x, cache, z > 0))
            x = np.maximum(z, 0)
        last = self.depth - 1
        tape.append((x, None, None))
        return x @ p[f"w{last}"] + p[f"b{last}"], tape

    def gradients(self, tape, dlogits):
        """Gradients of every parameter, by name, from the gradient at the logits."""
        p, grads, d = self.parameters, {}, dlogits
        for i in reversed(range(self.depth)):
            x, cache, active = tape[i]
            if active is not None:
                d = d * active
            if cache is not None:
                d, grads[f"gamma{i}"], grads[f"beta{i}"] = algorithm.batch_norm_backward(d, cache)
            grads[f"w{i}"], grads[f"b{i}"] = x.T @ d, d.sum(axis=0)
            d = d @ p[f"w{i}"].T
        return grads

    def step(self, x, labels, learning_rate, momentum=0.9):
        """One step of gradient descent on a batch.

        Args:
            x: (N, features), float64.
            labels: (N,), whole numbers.
            learning_rate, momentum: of the heavy-ball update.

        Returns:
            The mean cross-entropy of the batch before the step, in nats.
        """
        logits, tape = self.forward(x)
        logits = logits - logits.max(axis=1, keepdims=True)
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        rows = np.arange(len(labels))
        loss = -log_p[rows, labels].mean()
        dlogits = np.exp(log_p)
        dlogits[rows, labels] -= 1
        for name, gradient in self.gradients(tape, dlogits / len(labels)).items():
            self._velocity[name] = momentum * self._velocity[name] - learning_rate * gradient
            self.parameters[name] += self._velocity[name]
        return float(loss)

    def fit(self, x, labels, *, steps, learning_rate, batch_size=64, seed=0):
        """Train on random batches; returns the loss of every step, an array of length `steps`."""
        rng = np.random.default_rng(seed)
        batches = (rng.choice(len(x), batch_size, replace=False) for _ in range(steps))
        return np.array([self.step(x[rows], labels[rows], learning_rate) for rows in batches])


def initialise(model: nn.Module, seed: int = 0, scale: float = 1.0) -> nn.Module:
    """Draw the weights of convolutions and linear layers, and set their biases to zero.

    Normal, of standard deviation scale · √(2 / fan_in). The numbers come from NumPy, which gives the same ones on
    every computer; torch's own do not promise that. Parameters of other layers stay as they are.

    Args:
        model: changed in place, on any device.
        seed: of all weights together.
        scale: of the standard deviation.

    Returns:
        The same model.

    Example:
        >>> one, other = (initialise(nn.Linear(2, 3), seed=7) for _ in range(2))
        >>> torch.equal(one.weight, other.weight)
        True

    Source: [he2015delving], section 2.2.
    """
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
                weight = module.weight
                std = scale * (2 / weight[0].numel()) ** 0.5
                weight.copy_(torch.from_numpy(std * rng.standard_normal(tuple(weight.shape))))
                if module.bias is not None:
                    module.bias.zero_()
    return model


def _norm(make: Norm, channels: int) -> nn.Module:
    return nn.Identity() if make is None else make(channels)


class MLP(nn.Sequential):
    """Linear → norm → ReLU for every hidden layer, and a linear layer at the end.

    Args:
        sizes: features of the input, of every hidden layer, and the number of classes.
        norm: makes the normalisation of a number of features; None leaves it out. With one, the linear layers
            before it have no bias: the mean takes it off again.
        seed: of the initial weights.

    Example:
        >>> MLP((64, 32, 10))(torch.zeros(5, 64)).shape
        torch.Size([5, 10])
    """

    def __init__(self, sizes: Sequence[int], *, norm: Norm = nn.BatchNorm1d, seed: int = 0):
        layers = []
        for fan_in, fan_out in pairwise(sizes[:-1]):
            layers += [nn.Linear(fan_in, fan_out, bias=norm is None), _norm(norm, fan_out), nn.ReLU()]
        super().__init__(*layers, nn.Linear(sizes[-2], sizes[-1]))
        initialise(self, seed)


class CNN(nn.Module):
    """3 × 3 convolution → norm → ReLU, several times, each after the first at half the resolution; then mean, linear.

    Args:
        widths: channels of the convolutions.
        norm: makes the normalisation of a number of channels; None leaves it out.
        in_channels: of the images.
        classes: number of logits.
        seed: of the initial weights.

    Example:
        >>> CNN((8, 16))(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        widths: Sequence[int] = (16, 32),
        *,
        norm: Norm = nn.BatchNorm2d,
        in_channels: int = 1,
        classes: int = 10,
        seed: int = 0,
    ):
        super().__init__()
        layers = []
        for i, (before, width) in enumerate(pairwise((in_channels, *widths))):
            conv = nn.Conv2d(before, width, 3, stride=2 if i else 1, padding=1, bias=norm is None)
            layers += [conv, _norm(norm, width), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], classes)
        initialise(self, seed)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, in_channels, H, W)."""
        return self.head(self.features(x).mean(dim=(2, 3)))


class PostActivationBlock(nn.Module):
    """relu(shortcut(x) + norm(conv(relu(norm(conv(x)))))): the block of the first residual networks.

    Args:
        in_channels, out_channels: of input and output; where they differ, the shortcut is a 1 × 1 convolution and
            norm, and the resolution is halved.
        norm: makes the normalisation of a number of channels; None leaves it out.

    Example:
        >>> PostActivationBlock(4, 8)(torch.zeros(2, 4, 8, 8)).shape
        torch.Size([2, 8, 4, 4])

    Source: [he2016residual], section 3.
    """

    def __init__(self, in_channels: int, out_channels: int, norm: Norm = nn.BatchNorm2d):
        super().__init__()
        stride, bias = 1 if in_channels == out_channels else 2, norm is None
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=bias)
        self.norm1 = _norm(norm, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=bias)
        self.norm2 = _norm(norm, out_channels)
        self.shortcut = nn.Identity()
        if stride == 2:
            conv = nn.Conv2d(in_channels, out_channels, 1, stride, bias=bias)
            self.shortcut = nn.Sequential(conv, _norm(norm, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) → (N, out_channels, H, W), or half of H and W."""
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.shortcut(x) + self.norm2(self.conv2(y)))


class PreActivationBlock(nn.Module):
    """shortcut(x) + conv(relu(norm(conv(relu(norm(x)))))): nothing stands in the way of the shortcut.

    Args:
        in_channels, out_channels: of input and output; where they differ, the shortcut is a 1 × 1 convolution of the
            activated input, and the resolution is halved.
        norm: makes the normalisation of a number of channels; None leaves it out.

    Example:
        >>> PreActivationBlock(4, 8)(torch.zeros(2, 4, 8, 8)).shape
        torch.Size([2, 8, 4, 4])

    Source: [he2016identity], section 4 and figure 1(b).
    """

    def __init__(self, in_channels: int, out_channels: int, norm: Norm = nn.BatchNorm2d):
        super().__init__()
        stride, bias = 1 if in_channels == out_channels else 2, norm is None
        self.norm1 = _norm(norm, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=bias)
        self.norm2 = _norm(norm, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride) if stride == 2 else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) → (N, out_channels, H, W), or half of H and W."""
        active = torch.relu(self.norm1(x))
        y = self.conv2(torch.relu(self.norm2(self.conv1(active))))
        return (x if self.shortcut is None else self.shortcut(active)) + y


class ResNet(nn.Module):
    """A small residual network: 3 × 3 convolution, blocks, mean over the image, linear layer.

    Args:
        widths: channels of the blocks; the first convolution has those of the first block.
        pre_activation: blocks of `PreActivationBlock` (norm → ReLU → convolution) and a last norm and ReLU; otherwise
            of `PostActivationBlock`, and norm and ReLU after the first convolution.
        norm: makes the normalisation of a number of channels; None leaves it out.
        in_channels: of the images.
        classes: number of logits.
        seed: of the initial weights.

    Example:
        >>> ResNet((8, 16), pre_activation=True)(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 10])

    Source: [he2016residual] and [he2016identity].
    """

    def __init__(
        self,
        widths: Sequence[int] = (16, 16, 32),
        *,
        pre_activation: bool = False,
        norm: Norm = nn.BatchNorm2d,
        in_channels: int = 1,
        classes: int = 10,
        seed: int = 0,
    ):
        super().__init__()
        block = PreActivationBlock if pre_activation else PostActivationBlock
        stem = [nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=pre_activation or norm is None)]
        blocks = [block(before, width, norm) for before, width in pairwise((widths[0], *widths))]
        # Each block brings its own norm and ReLU: those of the other end are missing.
        if pre_activation:
            blocks += [_norm(norm, widths[-1]), nn.ReLU()]
        else:
            stem += [_norm(norm, widths[0]), nn.ReLU()]
        self.stem, self.blocks = nn.Sequential(*stem), nn.Sequential(*blocks)
        self.head = nn.Linear(widths[-1], classes)
        initialise(self, seed)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes) of images (N, in_channels, H, W)."""
        return self.head(self.blocks(self.stem(x)).mean(dim=(2, 3)))
