"""What several pieces of problem set 3 are tried on: values, and models with parts in modes of their own."""

import torch
from torch import nn

__all__ = [
    "MIXED",
    "Curve",
    "in_training",
    "maps",
    "mixed_model",
    "one_channel",
    "other_ranks",
    "per_channel",
    "state",
    "table",
    "trainable",
]

# Tables of more rows than columns, images with every axis of another length: a statistic over the wrong axes cannot
# come out with the right shape by chance. Few values a channel, so that n and n − 1 differ.


def table(case):
    """(N, C), channels of different mean and spread."""
    n, c = case.integer(5, 7), case.integer(3, 4)
    return case.draw((n, c), case.uniform(-3, 3, c), case.uniform(1, 3, c))


def maps(case):
    """(N, C, H, W)."""
    n, c, h, w = case.choice([(2, 3, 4, 5), (5, 2, 3, 4), (3, 4, 2, 5), (4, 5, 3, 2)])
    return case.draw((n, c, h, w), case.uniform(-3, 3, (c, 1, 1)), case.uniform(1, 3, (c, 1, 1)))


def other_ranks(case):
    """Pairs of the axes in words and values of them: (N, C, L), then (N, C, D, H, W)."""
    for axes, shapes in (
        ("(N, C, L)", [(3, 4, 5), (4, 2, 3), (2, 5, 4)]),
        ("(N, C, D, H, W)", [(2, 3, 2, 4, 3), (3, 2, 4, 2, 2), (4, 3, 2, 2, 3)]),
    ):
        shape = case.choice(shapes)
        channels = (shape[1],) + (1,) * (len(shape) - 2)
        yield axes, case.draw(shape, case.uniform(-3, 3, channels), case.uniform(1, 3, channels))


def one_channel(case):
    """Pairs of the axes in words and values of them: (N, 1), then (N, 1, H, W)."""
    for axes, shape in (("(N, 1)", (case.integer(4, 6), 1)), ("(N, 1, H, W)", (2, 1, 3, 2))):
        yield axes, case.draw(shape, case.uniform(-3, 3), 2.0)


def per_channel(case, c, low, high, name, **options):
    return case.given_tensor(case.uniform(low, high, c), name, **options)


class _Mood(nn.Module):
    """Stands for dropout, without its chance: turns the sign in training."""

    def forward(self, x):
        return -x if self.training else x


class Curve(nn.Module):
    """Bends the values, so that a gradient depends on where it is taken."""

    def forward(self, x):
        return x - 0.3 * x * x


def mixed_model(case, channels, *more, outer=True, frozen=False):
    """A layer that has seen other data and something that is off in eval, both in training.

    Each part has a mode of its own: the outermost module is in training if `outer`, its last part if not. And each
    parameter: bias needs no gradient if `frozen`.
    """
    layer = nn.BatchNorm1d(channels).to(case.torch_dtype)
    with torch.no_grad():
        for name, low, high in (("weight", 0.5, 2), ("bias", -1, 1), ("running_mean", -9, -6), ("running_var", 2, 5)):
            getattr(layer, name).copy_(per_channel(case, channels, low, high, name))
        layer.num_batches_tracked += case.integer(3, 9)
    layer.bias.requires_grad_(not frozen)
    model = nn.Sequential(nn.Sequential(layer, _Mood()), *more, nn.Dropout(0.0))
    model.training, model[-1].training = outer, not outer
    return model


#: Both ways in which a model and what is inside of it may differ.
MIXED = {"a model in training": True, "a model in eval, parts in training": False}


def in_training(model):
    """Names of the modules in training, as an observation."""
    names = [name or "the model itself" for name, module in model.named_modules() if module.training]
    return ", ".join(names) or "none"


def trainable(model):
    """Names of the parameters that need gradients, as an observation."""
    return ", ".join(name for name, p in model.named_parameters() if p.requires_grad) or "none"


def state(layer):
    """What a layer remembers, as observations."""
    state = {f"{name} afterwards": value for name, value in layer.state_dict().items() if name.startswith("running")}
    return {**state, "num_batches_tracked afterwards": layer.num_batches_tracked.item()}
