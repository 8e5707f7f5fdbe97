"""Layers to try an `accepts` on: three right ones on PyTorch's shoulders, and one with each fault of the clinic.

A layer is right if it does for float32 on the CPU, on tables (N, C) and images (N, C, H, W), what the docstring of
`course_lib.modes.accepts` lists.
"""

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["RIGHT", "WRONG"]


# --- right examples -------------------------------------------------------------------------------------------------


class AnyRank(nn.BatchNorm2d):
    """PyTorch's layer for images, told not to look at the rank."""

    def _check_input_dim(self, x):
        pass


class ByReshape(nn.BatchNorm2d):
    """PyTorch's layer for images; a table is an image of one pixel."""

    def forward(self, x):
        return super().forward(x if x.dim() == 4 else x[:, :, None, None]).reshape(x.shape)


class ByFunction(AnyRank):
    """PyTorch's function; what its layer adds is written out."""

    def forward(self, x):
        if not self.training:
            by_batch = self.running_mean is None
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, by_batch, 0, self.eps)
        momentum = self.momentum
        if self.running_mean is not None:
            self.num_batches_tracked += 1
            momentum = 1 / self.num_batches_tracked.item() if momentum is None else momentum
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, True, momentum or 0, self.eps
        )


#: Right layers.
RIGHT = (AnyRank, ByReshape, ByFunction)


# --- wrong examples: the six faults of the clinic -------------------------------------------------------------------


class BatchDecides(AnyRank):
    """Normalises by the batch in eval too."""

    def forward(self, x):
        if self.training:
            return super().forward(x)
        return F.batch_norm(x, None, None, self.weight, self.bias, True, 0, self.eps)


class AsksAutograd(AnyRank):
    """Takes "gradients are recorded" for training, and "no gradients" for eval."""

    def forward(self, x):
        mode, self.training = self.training, torch.is_grad_enabled()
        y = super().forward(x)
        self.training = mode
        return y


class Remembering(AnyRank):
    """Normalises by PyTorch's function, and moves the running statistics by its own hand towards those it is given."""

    def forward(self, x):
        ordinary = x.numel() > 0 and x.shape[1] == self.num_features
        if not (self.training and self.track_running_stats and ordinary):
            return super().forward(x)
        y = F.batch_norm(x, None, None, self.weight, self.bias, True, 0, self.eps)
        mean, var = self.statistics(x, [0, 2, 3][: x.dim() - 1])
        self.num_batches_tracked += 1
        momentum = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.mul_(1 - momentum).add_(momentum * mean)
        self.running_var.mul_(1 - momentum).add_(momentum * var)
        return y


class RemembersBiased(Remembering):
    """Moves the running variance towards the biased variance of the batch."""

    def statistics(self, x, axes):
        return x.detach().mean(axes), x.detach().var(axes, correction=0)


class WeighsTheOld(AnyRank):
    """Takes momentum for the weight of the old value."""

    def forward(self, x):
        if self.momentum is None:
            return super().forward(x)
        self.momentum = 1 - self.momentum
        y = super().forward(x)
        self.momentum = 1 - self.momentum
        return y


class PlainAttributes(AnyRank):
    """Keeps the running statistics as attributes the module does not know about."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for name in ("running_mean", "running_var"):
            statistic = getattr(self, name)
            delattr(self, name)
            setattr(self, name, statistic)


class GraphInBuffers(Remembering):
    """Moves the running mean within autograd's sight."""

    def statistics(self, x, axes):
        return x.mean(axes), x.detach().var(axes)


#: What a layer is wrong about, and the layer.
WRONG = {
    "eval": BatchDecides,
    "mode": AsksAutograd,
    "statistics": RemembersBiased,
    "arguments": WeighsTheOld,
    "state": PlainAttributes,
    "gradients": GraphInBuffers,
}
