"""The models and batches that problem set 4 is asked with, and what is written down about a model.

Everything is tiny, and in float64 where rounding is not the question. Models are filled from the case; Dropout has
p = 0 where it must not matter and p = 1 where being in training mode has to show, so no random number is drawn.
"""

from collections import OrderedDict

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from course_lib import running_stats

__all__ = [
    "EachKind",
    "OwnBatchNorm3d",
    "course_layer",
    "drifting",
    "gradients",
    "in_eval",
    "maps",
    "mixed",
    "net",
    "net_of_kinds",
    "seq",
    "statistics",
    "trainable",
]


def seq(**children):
    """A Sequential of named modules."""
    return nn.Sequential(OrderedDict(children))


def course_layer(channels, eps=1e-5):
    """A layer of the course's own kind that runs without anybody's BatchNorm: in the student edition it is a stub."""

    class BatchNorm(running_stats.BatchNorm):
        def __init__(self):
            nn.Module.__init__(self)
            self.num_features, self.eps, self.momentum = channels, eps, 0.1
            self.affine = self.track_running_stats = True
            self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
            self.register_buffer("running_mean", torch.zeros(channels))
            self.register_buffer("running_var", torch.ones(channels))
            self.register_buffer("num_batches_tracked", torch.tensor(0))

        def forward(self, x):
            self.num_batches_tracked += self.training
            statistics, affine = (self.running_mean, self.running_var), (self.weight, self.bias)
            return F.batch_norm(x, *statistics, *affine, self.training, self.momentum or 0.0, self.eps)

        extra_repr = nn.Module.extra_repr
        _load_from_state_dict = nn.Module._load_from_state_dict

    return BatchNorm()


def net(case):
    """Three layers behind each other, one of them without gamma and beta, two of them nested. Takes `maps`."""
    model = seq(
        stem=seq(conv=nn.Conv2d(2, 4, 1), bn=nn.BatchNorm2d(4), act=nn.ReLU()),
        body=seq(conv=nn.Conv2d(4, 3, 1), bn=nn.BatchNorm2d(3, affine=False), drop=nn.Dropout(0.0)),
        flat=nn.Flatten(),
        fc=nn.Linear(12, 4),
        bn=nn.BatchNorm1d(4),
    )
    return case.fill(model)


def mixed(case):
    """Layers in different modes, and three parameters that were not trained before: of one layer gamma, of another
    beta, and one of no BatchNorm."""
    model = net(case)
    model.stem.bn.eval().weight.requires_grad = False
    model.bn.bias.requires_grad = model.fc.bias.requires_grad = False
    return model


def maps(case, n=5, name="x"):
    """(n, 2, 2, 2), what `net` and `net_of_kinds` take."""
    return case.tensor((n, 2, 2, 2), mean=1.0, std=2.0, name=name)


def drifting(case, n, tail=(), name="x"):
    """(n, 3, *tail) whose mean moves from sample to sample: the batches have different means, and different sizes."""
    drift = np.linspace(-4, 4, n).reshape(-1, 1, *(1 for _ in tail))
    return case.given_tensor(case.draw((n, 3, *tail), drift, 1.0), name)


def net_of_kinds(case):
    """One layer of every other kind, and norms that are none. The lazy layer does not know its channels yet."""
    model = seq(
        layer=nn.LayerNorm((2, 2, 2)),
        conv=nn.Conv2d(2, 4, 1, bias=False),  # instance would take a bias away: its gradient would be rounding
        sync=nn.SyncBatchNorm(4, eps=0.3),  # without eps a wrong variance here would cancel in the layers behind
        instance=nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        course=course_layer(4, eps=0.3),
        lazy=nn.Identity(),
        group=nn.GroupNorm(2, 4),
    )
    case.fill(model)
    model.lazy = nn.LazyBatchNorm2d(dtype=case.torch_dtype)
    return model


class OwnBatchNorm3d(nn.BatchNorm3d):
    """What derives from a kind of BatchNorm is one."""


class EachKind(nn.Module):
    """A layer of every kind beside each other, in training and in eval mode, some with a beta that is not trained.

    Takes (N, 2, 1, 2, 2). The lazy ones do not know their channels before that: not every right way of undoing a
    freeze, or of copying, can cope with them.
    """

    def __init__(self, lazy=False):
        super().__init__()
        # From which axis on each of them wants its input in one piece.
        kinds = [(nn.BatchNorm1d, 2), (nn.BatchNorm2d, 3), (nn.BatchNorm3d, 4)]
        kinds += [(nn.SyncBatchNorm, 2), (course_layer, 3), (OwnBatchNorm3d, 4)]
        lazies = [(nn.LazyBatchNorm1d, 2), (nn.LazyBatchNorm2d, 3), (nn.LazyBatchNorm3d, 4)]
        self.axes = [axis for _, axis in (kinds + lazies if lazy else kinds)]
        self.layers = nn.ModuleList([kind(2) for kind, _ in kinds] + [kind() for kind, _ in lazies if lazy])
        self.drop = nn.Dropout(0.0)
        for layer in self.layers[1 : len(kinds) : 2]:
            layer.eval().bias.requires_grad = False

    def forward(self, x):
        return [layer(x.flatten(axis)) for axis, layer in zip(self.axes, self.layers, strict=True)]


def statistics(model, when=""):
    """All running statistics of a model as observations."""
    return {f"{name}{when}": value.detach().clone() for name, value in model.named_buffers() if "running_" in name}


def in_eval(model):
    """Names of the modules that are in eval mode."""
    return ", ".join(name or "the model" for name, module in model.named_modules() if not module.training) or "none"


def trainable(model):
    """Names of the parameters that are trained."""
    return ", ".join(name for name, p in model.named_parameters() if p.requires_grad) or "none"


def gradients(model, x):
    """Gradients of Σ y·(1, 2, 3, …) by the parameters that are trained."""
    model.zero_grad(set_to_none=True)
    y = model(x)
    (y * torch.arange(1, y.numel() + 1, dtype=y.dtype).view_as(y)).sum().backward()
    return {f"gradient of {name}": p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
