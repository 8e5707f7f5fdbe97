"""What chapters run again and again: networks and layers, training loops, measurements on both, lines of tables."""

from collections.abc import Callable, Iterable, Sequence
from time import perf_counter

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from course_lib.data import Digits, minibatches

__all__ = [
    "SeparateDevices",
    "accuracy",
    "best_rate",
    "cross_entropy",
    "distance",
    "fit",
    "gaussian",
    "length_of_history",
    "mlp",
    "row",
    "span",
    "spreads",
    "time_ratios",
    "train",
    "with_numbers",
]


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
    rows = minibatches(samples or len(data.x_train), size, steps, seed=seed)
    batches = [(data.x_train[i], data.y_train[i]) for i in rows]
    return fit(model, batches, F.cross_entropy, lr, momentum=momentum, fade=fade, after=after)


def fit(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss_of: Callable[[Tensor, Tensor], Tensor],
    lr: float,
    *,
    momentum: float = 0.0,
    fade: bool = False,
    after: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Gradient descent on batches that the caller draws, in whatever mode the model is.

    It stops at a loss that is not a number: no later one would be.

    Args:
        model: changed in place; what has `requires_grad=False` is left alone.
        batches: (inputs, targets), one pair a step.
        loss_of: of the model's outputs and the targets; a scalar.
        lr: learning rate; 0 only looks at the data.
        momentum: of the optimiser, weight of the old velocity.
        fade: let the learning rate fall to zero in a straight line.
        after: called with 1, 2, … when that step is done.

    Returns:
        (steps,) the loss of each batch before its step; NaN after one that is.

    Example:
        >>> x = torch.linspace(-1, 1, 8)[:, None]
        >>> losses = fit(nn.Linear(1, 1), [(x, 2 * x)] * 50, F.mse_loss, lr=0.5)
        >>> losses.shape, bool(losses[-1] < 1e-3)
        ((50,), True)
    """
    batches = list(batches)
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=momentum)
    losses = np.full(len(batches), np.nan)
    for step, (inputs, targets) in enumerate(batches):
        if fade:
            optimizer.param_groups[0]["lr"] = lr * (1 - step / len(batches))
        loss = loss_of(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses[step] = loss.item()
        if np.isnan(losses[step]):  # the weights are lost, and what follows is known
            break
        if after is not None:
            after(step + 1)
    return losses


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


def best_rate(
    run: Callable[[int, float], float], rates: Sequence[float], seeds: Iterable[int]
) -> tuple[float, list[float]]:
    """The learning rate with the best median over the seeds, and what every seed reached at it.

    Args:
        run: (seed, rate) → result, the larger the better.
        rates: to try; of two that are equally good the first counts.
        seeds: one run of each at every rate.

    Returns:
        (rate, results), a result for each seed.

    Example:
        >>> best_rate(lambda seed, rate: seed - rate, (0.5, 0.1), range(3))
        (0.1, [-0.1, 0.9, 1.9])
    """
    seeds = list(seeds)
    reached = {rate: [run(seed, rate) for seed in seeds] for rate in rates}
    best = max(reached, key=lambda rate: np.median(reached[rate]))
    return best, reached[best]


def row(label: str, values: Iterable[float], width: int = 34, digits: int = 3) -> None:
    """Print a label and numbers behind it, as one line of a table.

    Args:
        label: what the numbers are.
        values: the numbers.
        width: of the label's column, in characters.
        digits: behind the point.

    Example:
        >>> row("accuracy", [0.5, 0.75], width=10)
        accuracy    0.500  0.750
    """
    print(f"{label:{width}}", *(f"{value:{digits + 3}.{digits}f}" for value in values))


def with_numbers(norm: nn.Module, seed: int = 0) -> nn.Module:
    """A BatchNorm layer as after a training: statistics, and γ and β if it has them, that are not 0 and 1.

    Args:
        norm: a layer with running statistics, changed in place.
        seed: of the numbers.

    Returns:
        The layer, in eval mode.

    Example:
        >>> bn = with_numbers(nn.BatchNorm2d(3))
        >>> bn.training, bool((bn.running_var != 1).all())
        (False, True)
    """
    rng, channels = np.random.default_rng(seed), norm.num_features
    with torch.no_grad():
        norm.running_mean.copy_(torch.from_numpy(rng.normal(size=channels)))
        norm.running_var.copy_(torch.from_numpy(rng.uniform(0.2, 3, channels)))
        if norm.affine:
            norm.weight.copy_(torch.from_numpy(rng.uniform(0.5, 2, channels)))
            norm.bias.copy_(torch.from_numpy(rng.normal(size=channels)))
    return norm.eval()


@torch.no_grad()
def distance(model: nn.Module, other: nn.Module, x: Tensor) -> float:
    """Largest difference of the outputs of two models, in units of the standard deviation of the first's outputs.

    Args:
        model: to compare with.
        other: whose outputs have the same shape.
        x: a batch for both.

    Returns:
        At least 0; 0 where both answer the same.

    Example:
        >>> distance(nn.Identity(), nn.ReLU(), torch.tensor([-1.0, 1.0]))
        0.7071067690849304
    """
    want = model(x)
    return ((other(x) - want).abs().max() / want.std()).item()


@torch.no_grad()
def time_ratios(model: nn.Module, other: nn.Module, x: Tensor, *, rounds: int = 16, calls: int = 4) -> np.ndarray:
    """How long `other` takes, in units of the time of `model`, on this machine.

    Both take turns, so that a busy moment hits both, and of a few calls the fastest counts, since nothing makes a
    call faster than it is.

    Args:
        model: to compare with.
        other: the one in question.
        x: a batch for both, on their device.
        rounds: how often both are timed.
        calls: calls in a round, of which the fastest counts.

    Returns:
        (3,) the quartiles of the ratio over the rounds.

    Example:
        >>> ratios = time_ratios(nn.Identity(), nn.ReLU(), torch.ones(2), rounds=3)
        >>> ratios.shape, bool((ratios > 0).all())
        ((3,), True)
    """

    def seconds(net: nn.Module) -> float:
        start = perf_counter()
        net(x)
        if x.is_cuda:  # the GPU works on while Python goes on
            torch.cuda.synchronize()
        return perf_counter() - start

    def fastest(net: nn.Module) -> float:
        return min(seconds(net) for _ in range(calls))

    fastest(model), fastest(other)  # the first calls are slower
    return np.quantile([fastest(other) / fastest(model) for _ in range(rounds)], (0.25, 0.5, 0.75))


class SeparateDevices(nn.Module):
    """BatchNorm of several devices that do not talk, played by one process.

    In training mode the batch is cut into as many shards as there are devices, in order, and each is normalised by
    itself; γ and β are common to all. In eval mode the buffers of the first device serve, which is what
    `DistributedDataParallel` leaves when rank 0 saves the model.

    Args:
        channels: number of channels.
        devices: how many shards, a divisor of the batch size.

    Example:
        >>> y = SeparateDevices(1, devices=2)(torch.arange(4.0).view(4, 1, 1, 1))
        >>> y.flatten().round().tolist()
        [-1.0, 1.0, -1.0, 1.0]
    """

    def __init__(self, channels: int, devices: int):
        super().__init__()
        self.devices, self.affine = devices, nn.BatchNorm2d(channels)
        self.norms = nn.BatchNorm2d(channels * devices, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        n, c, h, w = x.shape
        if not self.training:
            mean, var = self.norms.running_mean[:c], self.norms.running_var[:c]
            return F.batch_norm(x, mean, var, self.affine.weight, self.affine.bias)
        k = n // self.devices
        side_by_side = x.view(-1, k, c, h, w).transpose(0, 1).reshape(k, -1, h, w)
        y = self.norms(side_by_side).view(k, -1, c, h, w).transpose(0, 1)
        weight, bias = (v.view(-1, 1, 1) for v in self.affine.parameters())
        return y.reshape(x.shape) * weight + bias
