"""What the first chapters run again and again: a network of blocks, a training loop, and what is measured on both."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from course_lib.data import Digits, minibatches

__all__ = ["accuracy", "cross_entropy", "fit", "gaussian", "length_of_history", "mlp", "span", "spreads", "train"]


def mlp(
    block: Callable[[int], Sequence[nn.Module]], *, gain: float = 1.0, depth: int = 6, width: int = 64, seed: int = 0
) -> nn.Sequential:
    """Linear → block, `depth` times, then a linear layer: a network for the digits whose blocks are up to the caller.

    Weights are normal, of standard deviation √(2 / inputs), those of the hidden layers times `gain`; biases are zero.
    The numbers come from NumPy and are the same on every computer.

    Args:
        block: makes what stands behind a hidden linear layer, from its number of features.
        gain: factor of the hidden layers' first weights.
        depth: number of hidden layers.
        width: features of each.
        seed: of the weights.

    Returns:
        A network from (N, 64) to logits (N, 10).

    Example:
        >>> net = mlp(lambda c: [nn.BatchNorm1d(c), nn.ReLU()], depth=2)
        >>> [type(layer).__name__ for layer in net]
        ['Linear', 'BatchNorm1d', 'ReLU', 'Linear', 'BatchNorm1d', 'ReLU', 'Linear']

    Source: [he2015delving], section 2.2, for gain 1.
    """
    rng = np.random.default_rng(seed)
    sizes = [64] + [width] * depth + [10]
    layers = []
    for i in range(depth + 1):
        linear = nn.Linear(sizes[i], sizes[i + 1])
        std = np.sqrt(2 / sizes[i]) * (gain if i < depth else 1)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(rng.normal(0, std, tuple(linear.weight.shape))))
            linear.bias.zero_()
        layers += [linear, *(block(width) if i < depth else [])]
    return nn.Sequential(*layers)


def train(
    model: nn.Module,
    data: Digits,
    lr: float = 0.1,
    *,
    steps: int = 100,
    size: int = 64,
    samples: int | None = None,
    seed: int = 0,
    momentum: float = 0.0,
    fade: bool = False,
    after: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Gradient descent on the cross-entropy of the training pictures, in whatever mode the model is.

    It stops at a loss that is not a number: no later one would be.

    Args:
        model: changed in place.
        data: pictures of the shape that the model takes.
        lr: learning rate.
        steps: number of steps.
        size: pictures per step.
        samples: train on the first so many pictures only.
        seed: of the order of the pictures.
        momentum: of the optimiser, weight of the old velocity.
        fade: let the learning rate fall to zero in a straight line.
        after: called with 1, 2, … when that step is done.

    Returns:
        (steps,) the loss of each batch before its step, in nats; NaN after one that is.

    Example:
        >>> from course_lib.data import digits
        >>> losses = train(mlp(lambda c: [nn.ReLU()], depth=1), digits(), steps=30)
        >>> losses.shape, bool(losses[-1] < losses[0])
        ((30,), True)
    """
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=momentum)
    losses = []
    for step, i in enumerate(minibatches(samples or len(data.x_train), size, steps, seed=seed), start=1):
        if fade:
            optimizer.param_groups[0]["lr"] = lr * (1 - (step - 1) / steps)
        loss = F.cross_entropy(model(data.x_train[i]), data.y_train[i])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if np.isnan(losses[-1]):  # the weights are lost, and what follows is known
            return np.array(losses + [np.nan] * (steps - step))
        if after is not None:
            after(step)
    return np.array(losses)


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor, size: int | None = None) -> float:
    """Share of right answers, 0 to 1. The mode is the caller's: in training mode the buffers move.

    Args:
        model: gives logits (N, classes).
        x: (N, ...) inputs.
        y: (N,) the right classes.
        size: inputs at a time; None for all at once.

    Returns:
        The share as a number.

    Example:
        >>> accuracy(nn.Identity(), torch.eye(4), torch.tensor([0, 1, 2, 0]), size=3)
        0.75
    """
    size = size or len(y)
    parts = zip(x.split(size), y.split(size), strict=True)
    return sum((model(inputs).argmax(1) == labels).sum().item() for inputs, labels in parts) / len(y)


@torch.no_grad()
def cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Mean cross-entropy of all inputs in one batch. The mode is the caller's: in training mode the buffers move.

    Args:
        model: gives logits (N, classes).
        x: (N, ...) inputs.
        y: (N,) the right classes.

    Returns:
        The mean as a number, in nats.

    Example:
        >>> round(cross_entropy(nn.Identity(), torch.zeros(3, 10), torch.tensor([0, 1, 2])), 3)  # ln 10
        2.303
    """
    return F.cross_entropy(model(x), y).item()


@torch.no_grad()
def spreads(model: nn.Sequential, x: Tensor) -> list[float]:
    """Standard deviation of all values behind each linear layer but the last.

    Args:
        model: linear layers and what stands between them.
        x: (N, features), one batch.

    Returns:
        One number a hidden layer.

    Example:
        >>> net = mlp(lambda c: [nn.BatchNorm1d(c), nn.ReLU()], depth=3)
        >>> len(spreads(net, torch.rand(8, 64)))
        3
    """
    result = []
    for layer in model:
        x = layer(x)
        if isinstance(layer, nn.Linear):
            result.append(x.std().item())
    return result[:-1]


def gaussian(*shape: int, mean: float = 0.0, std: float = 1.0, seed: int = 0) -> Tensor:
    """Normal random numbers that are the same on every computer.

    Args:
        shape: of the tensor.
        mean: of the distribution.
        std: standard deviation of the distribution.
        seed: of the numbers.

    Returns:
        A float32 tensor of that shape.

    Example:
        >>> torch.equal(gaussian(2, 3, seed=1), gaussian(2, 3, seed=1))
        True
    """
    return torch.from_numpy(np.random.default_rng(seed).normal(mean, std, size=shape).astype(np.float32))


def span(values: Sequence[float], digits: int = 3) -> str:
    """The lowest and the highest of several results, as text.

    Args:
        values: the results, of several seeds for example.
        digits: behind the point.

    Returns:
        Two numbers with "to" between them.

    Example:
        >>> span([0.25, 0.5, 0.125])
        '0.125 to 0.500'
    """
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


def length_of_history(tensor: Tensor) -> int:
    """How many nodes autograd's graph behind a tensor holds, the leaves included.

    Args:
        tensor: of any shape.

    Returns:
        Their number; 0 for a tensor without history.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> length_of_history(x.detach()), length_of_history(2 * x)  # the product, and the leaf it leads to
        (0, 2)
    """
    seen, todo = set(), [tensor.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [parent for parent, _ in node.next_functions]
    return len(seen)


def fit(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss_of: Callable[[Tensor, Tensor], Tensor],
    lr: float,
) -> np.ndarray:
    """Gradient descent on batches that the caller draws, in whatever mode the model is.

    Args:
        model: changed in place.
        batches: (inputs, targets), one pair a step.
        loss_of: of the model's outputs and the targets; a scalar.
        lr: learning rate.

    Returns:
        (steps,) the loss of each batch before its step.

    Example:
        >>> x = torch.linspace(-1, 1, 8)[:, None]
        >>> losses = fit(nn.Linear(1, 1), [(x, 2 * x)] * 50, F.mse_loss, lr=0.5)
        >>> losses.shape, bool(losses[-1] < 1e-3)
        ((50,), True)
    """
    optimizer = torch.optim.SGD(model.parameters(), lr)
    losses = []
    for inputs, targets in batches:
        loss = loss_of(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return np.array(losses)
