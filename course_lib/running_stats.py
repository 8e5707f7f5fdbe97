"""Running statistics: how a layer remembers its batches, how fast it forgets, and what exact statistics would be.

`x` is (N, C, *spatial) with the channels on axis 1 and 0 to 3 spatial axes; n is the number of values per channel.
`momentum` is the weight of the new value. The biased variance normalises a batch, the unbiased one, n/(n − 1) times
as large, goes into `running_var`. Nothing here names a device: results live where the inputs are.
"""

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from course_lib.shapes import expect_channelwise, expect_number, expect_tensor

__all__ = [
    "BatchNorm",
    "ema_after",
    "has_own_forward",
    "is_batchnorm",
    "population_stats",
    "steps_to_forget",
    "torch_momentum",
    "update_running_stats",
]


def update_running_stats(
    running_mean: torch.Tensor, running_var: torch.Tensor, x: torch.Tensor, momentum: float
) -> None:
    """Move the running statistics a step towards those of a batch, in place.

    running ← (1 − momentum) · running + momentum · batch, with the mean and the unbiased variance,
    Σ(x − mean)² / (n − 1), of every channel. The batch's statistics are computed in float32 at least, and stay
    accurate when |mean| is far larger than the standard deviation. No autograd history is left in the buffers. An
    empty batch changes nothing.

    Args:
        running_mean, running_var: (C,), floating point, on x's device, in units of x and of x².
        x: (N, C, *spatial), any floating dtype, n ≥ 2 values per channel or none.
        momentum: weight of the new value, 0 to 1.

    Raises:
        ValueError: one value per channel, which has no unbiased variance; x not floating or not of rank 2 to 5;
            buffers of another shape or on another device; momentum no number from 0 to 1.

    Example:
        >>> mean, var = torch.zeros(1), torch.ones(1)
        >>> update_running_stats(mean, var, torch.tensor([[2.0], [6.0]]), momentum=0.5)
        >>> mean, var
        (tensor([2.]), tensor([4.5000]))

    Source: [ioffe2015], Algorithm 2, whose variance over training batches is the unbiased one.
    """
    expect_tensor(x)
    expect_channelwise(running_mean, x, name="running_mean")
    expect_channelwise(running_var, x, name="running_var")
    expect_number(momentum, name="momentum", high=1)
    n = x[:, :1].numel()
    if n == 0:
        return
    if n == 1:
        raise ValueError(f"expected more than 1 value per channel, got an input of shape {tuple(x.shape)}")
    axes = (0, *range(2, x.dim()))
    with torch.no_grad():
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        # A shift changes no variance, and what is left after it has the size of the spread, not of the mean.
        pivot = wide[(slice(1), slice(None)) + (slice(1),) * (x.dim() - 2)]
        shifted = wide - pivot
        offset = shifted.mean(axes, keepdim=True)
        mean = (pivot + offset).flatten()
        var = (shifted - offset).square().sum(axes) / (n - 1)
        running_mean.mul_(1 - momentum).add_(momentum * mean)
        running_var.mul_(1 - momentum).add_(momentum * var)


def ema_after(initial: float, value: float, momentum: float, steps: int) -> float:
    """Where a running statistic stands after meeting the same value again and again.

    value + (initial − value) · (1 − momentum)^steps: the distance to the value shrinks by 1 − momentum a step.

    Args:
        initial: the statistic before the first step; 0 for a mean, 1 for a variance in a new layer.
        value: what every batch says.
        momentum: weight of the new value, 0 to 1.
        steps: number of updates, not negative.

    Returns:
        A float, in units of the value.

    Raises:
        ValueError: momentum no number from 0 to 1; steps negative or not whole.

    Example:
        >>> round(ema_after(0.0, 4.0, momentum=0.1, steps=10), 2)
        2.61
    """
    expect_number(momentum, name="momentum", high=1)
    expect_number(steps, name="steps", whole=True)
    return float(value + (initial - value) * (1 - momentum) ** steps)


def steps_to_forget(momentum: float, fraction: float) -> int:
    """Updates until no more than a fraction of the initial value is left in a running statistic.

    The smallest whole k with (1 − momentum)^k ≤ fraction, that is ⌈log fraction / log(1 − momentum)⌉.

    Args:
        momentum: weight of the new value, above 0, at most 1.
        fraction: of the initial value that may remain, above 0, at most 1.

    Returns:
        k, an int; 0 for the fraction 1.

    Raises:
        ValueError: momentum or fraction out of range; with momentum 0 nothing is ever forgotten.

    Example:
        >>> steps_to_forget(0.1, 0.05)
        29
    """
    expect_number(momentum, name="momentum", high=1)
    expect_number(fraction, name="fraction", high=1)
    if momentum == 0 or fraction == 0:
        raise ValueError(f"expected momentum and fraction above 0, got {momentum} and {fraction}: no k is large enough")
    if momentum == 1:
        return 0 if fraction == 1 else 1
    steps = math.log(fraction) / math.log1p(-momentum)
    # On the boundary, 0.81 at 0.1 for example, rounding must not cost a step.
    return math.ceil(steps * (1 - 1e-13))


def torch_momentum(momentum: float, convention: str) -> float:
    """Another library's momentum as PyTorch's, the weight of the new value.

    PyTorch weighs the new value (default 0.1). Keras (0.99), flax (0.99) and ONNX (0.9) weigh the old one, so that
    their momentum is one minus PyTorch's.

    Args:
        momentum: in the convention named, 0 to 1.
        convention: "torch", "keras", "flax" or "onnx".

    Returns:
        PyTorch's momentum, a float.

    Raises:
        ValueError: another convention; momentum no number from 0 to 1.

    Example:
        >>> round(torch_momentum(0.99, "keras"), 6)
        0.01
    """
    expect_number(momentum, name="momentum", high=1)
    if convention == "torch":
        return float(momentum)
    if convention in ("keras", "flax", "onnx"):
        return float(1 - momentum)
    raise ValueError(f"expected convention 'torch', 'keras', 'flax' or 'onnx', got {convention!r}")


def population_stats(batches: "Iterable[torch.Tensor]") -> tuple[torch.Tensor, torch.Tensor, int]:
    """Mean and unbiased variance of every channel over all the data, however it is cut into batches.

    Two parts of n_a and n_b values merge exactly: with δ = mean_b − mean_a and n = n_a + n_b, the mean is
    mean_a + δ·n_b/n and the sum of squares around it is M2_a + M2_b + δ²·n_a·n_b/n. An average of the batches'
    variances would miss what is between the batches, and would weigh a short last batch like a full one.

    Args:
        batches: iterable of (N, C, *spatial) tensors of any floating dtype, of one C and on one device; ranks and
            sizes may differ, batches may be empty or hold one value per channel.

    Returns:
        (mean, var, n): float64 tensors of shape (C,), in units of x and of x², var = M2 / (n − 1); and n, the
        number of values per channel, an int.

    Raises:
        ValueError: fewer than 2 values per channel in all; a batch that is no floating tensor of rank 2 to 5, has
            another number of channels than the first, or lies on another device; one tensor in place of an iterable.

    Example:
        >>> population_stats([torch.tensor([[1.0], [2.0]]), torch.tensor([[6.0]])])
        (tensor([3.], dtype=torch.float64), tensor([7.], dtype=torch.float64), 3)

    Source: [chan1983], the updating formulas for two samples.
    """
    if isinstance(batches, torch.Tensor):
        raise ValueError(f"expected an iterable of batches, got one tensor {tuple(batches.shape)}: put it into a list")
    channels = pivot = None
    n = 0
    with torch.no_grad():
        for batch in batches:
            channels = expect_tensor(batch, channels, name="every batch")
            rows = batch.transpose(0, 1).flatten(1).double()  # (C, values per channel)
            size = rows.shape[1]
            if size == 0:
                continue
            if pivot is None:
                # A value of the data, the same for every split, keeps the digits of a small spread around a large mean.
                pivot = rows[:, :1].clone()
                mean = m2 = torch.zeros_like(pivot[:, 0])
            if rows.device != pivot.device:
                raise ValueError(f"expected every batch on the device of the first, {pivot.device}, got {rows.device}")
            shifted = rows - pivot
            batch_mean = shifted.mean(1)
            batch_m2 = (shifted - batch_mean[:, None]).square().sum(1)
            delta = batch_mean - mean
            total = n + size
            mean = mean + delta * (size / total)
            m2 = m2 + batch_m2 + delta.square() * (n * size / total)
            n = total
    if n < 2:
        raise ValueError(f"expected at least 2 values per channel in all batches together, got {n}")
    return pivot[:, 0] + mean, m2 / (n - 1), n


class BatchNorm(nn.Module):
    """Batch Normalization for tables, sequences, images and volumes, in plain operations and with autograd's backward.

    Training: y = (x − mean) / √(var + eps) · weight + bias with the batch's mean and biased variance; then the
    running statistics move towards the batch's mean and unbiased variance, in place. Eval: the same with the running
    statistics, which stay as they are. Statistics are computed in float32 at least, around one value of the channel,
    so that they keep their digits when |mean| is far larger than the standard deviation.

    Parameters and buffers have the names, shapes and order of PyTorch's layers, so state dicts fit both ways. What
    goes beyond PyTorch: empty and refused batches are not counted, a constant channel gives exactly bias.

    Args:
        num_features: C, the number of channels.
        eps: added to the variance inside the root, in units of x².
        momentum: weight of the new value in the running statistics, 0 to 1; None weighs all batches alike.
        affine: learn weight and bias, both of shape (C,); without, they are None.
        track_running_stats: keep running_mean, running_var, both of shape (C,), and the number of batches; without,
            they are None and the batch's statistics normalise in eval too.
        device, dtype: of parameters and running statistics, as in PyTorch.

    Raises:
        ValueError: num_features not a positive whole number; eps negative; momentum neither None nor a number from 0
            to 1.

    Example:
        >>> layer = BatchNorm(1, momentum=0.5)
        >>> layer(torch.tensor([[2.0], [6.0]])).flatten().tolist(), layer.running_mean, layer.running_var
        ([-0.999998..., 0.999998...], tensor([2.]), tensor([4.5000]))

    Source: [ioffe2015], Algorithms 1 and 2; the shift by one data value: [chan1983].
    """

    _version = 2  # of the state dict's format: the one in which PyTorch's layers count their batches

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        """Registers weight, bias, running_mean, running_var and num_batches_tracked, in this order."""
        super().__init__()
        expect_number(num_features, name="num_features", low=1, whole=True)
        expect_number(eps, name="eps")
        if momentum is not None:
            expect_number(momentum, name="momentum", high=1)
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats
        ones = torch.ones(num_features, device=device, dtype=dtype)
        self.register_parameter("weight", nn.Parameter(ones.clone()) if affine else None)
        self.register_parameter("bias", nn.Parameter(torch.zeros_like(ones)) if affine else None)
        self.register_buffer("running_mean", torch.zeros_like(ones) if track_running_stats else None)
        self.register_buffer("running_var", ones.clone() if track_running_stats else None)
        counter = torch.zeros((), device=device, dtype=torch.int64)
        self.register_buffer("num_batches_tracked", counter if track_running_stats else None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised x.

        Args:
            x: (N, C, *spatial), any floating dtype, of any memory layout, on the device of the layer.

        Returns:
            y of x's shape, dtype and memory layout; empty for an empty x.

        Raises:
            ValueError: one value per channel where the batch's statistics are needed; another number of channels;
                x not floating or not of rank 2 to 5; x on another device than the layer.
        """
        expect_tensor(x, self.num_features)
        for name in ("weight", "bias", "running_mean", "running_var"):
            if getattr(self, name) is not None:
                expect_channelwise(getattr(self, name), x, name=name)
        axes = (0, *range(2, x.dim()))
        per_channel = (1, -1) + (1,) * (x.dim() - 2)
        n = x[:, :1].numel()
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.training or self.running_mean is None:
            if n == 1:
                raise ValueError(
                    f"expected more than 1 value per channel to take statistics of, got an input of shape "
                    f"{tuple(x.shape)}: use a larger batch, or eval mode"
                )
            # y does not change when a channel is shifted: no gradient runs through the pivot.
            pivot = wide[(slice(1), slice(None)) + (slice(1),) * (x.dim() - 2)].detach()
            shifted = wide - pivot
            offset = shifted.mean(axes, keepdim=True)
            centred = shifted - offset
            var = centred.square().mean(axes, keepdim=True)
            if self.track_running_stats and self.running_mean is not None and n > 0:
                with torch.no_grad():
                    self.num_batches_tracked.add_(1)
                    momentum = self.momentum
                    if momentum is None:
                        # As a tensor: reading the counter would make a GPU wait for it.
                        momentum = 1 / self.num_batches_tracked.to(var.dtype)
                    mean = (pivot + offset).flatten()
                    unbiased = var.flatten() * (n / (n - 1))
                    self.running_mean.mul_(1 - momentum).add_(momentum * mean)
                    self.running_var.mul_(1 - momentum).add_(momentum * unbiased)
        else:
            centred = wide - self.running_mean.view(per_channel)
            var = self.running_var.view(per_channel)
        y = centred * (var + self.eps).rsqrt()
        if self.weight is not None:
            y = y * self.weight.view(per_channel)
        if self.bias is not None:
            y = y + self.bias.view(per_channel)
        return y.to(x.dtype)

    def extra_repr(self) -> str:
        """The arguments, as `print` shows them."""
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}"
        )

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *rest):
        """Loads PyTorch's state dicts; one from before version 2 has no counter, and the layer keeps its own."""
        version = local_metadata.get("version")
        key = f"{prefix}num_batches_tracked"
        if (version is None or version < 2) and self.num_batches_tracked is not None and key not in state_dict:
            known = not self.num_batches_tracked.is_meta
            state_dict[key] = self.num_batches_tracked if known else torch.zeros((), dtype=torch.int64)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


def is_batchnorm(module: nn.Module) -> bool:
    """Whether a module is a Batch Normalization layer of any kind.

    PyTorch's BatchNorm1d/2d/3d, SyncBatchNorm and the Lazy ones, materialised or not, `BatchNorm` of this module,
    and whatever derives from one of them. InstanceNorm and the other norms are none.

    Args:
        module: any module.

    Example:
        >>> is_batchnorm(nn.SyncBatchNorm(3)), is_batchnorm(nn.LazyBatchNorm2d()), is_batchnorm(nn.InstanceNorm2d(3))
        (True, True, False)
    """
    # Only _BatchNorm is common to all of torch's: SyncBatchNorm and the Lazy ones are no BatchNorm1d, 2d or 3d.
    return isinstance(module, (_BatchNorm, BatchNorm))


def has_own_forward(layer: nn.Module) -> bool:
    """Whether a layer's forward pass is somebody's own, and not that of a class in torch.nn or of this course.

    Such a layer may do more than its class: normalise and then apply a ReLU, for one. What puts another layer in its
    place would drop that.

    Args:
        layer: any module.

    Example:
        >>> plain, patched = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        >>> patched.forward = torch.relu
        >>> has_own_forward(plain), has_own_forward(patched)
        (False, True)
    """
    forward = getattr(layer.forward, "__func__", layer.forward)  # one that was set on the instance counts, too
    known = ("torch.nn.modules.", "course_lib.")
    # A student's BatchNorm that is plugged in stands for the course's.
    return forward is not BatchNorm.forward and not (getattr(forward, "__module__", None) or "").startswith(known)
