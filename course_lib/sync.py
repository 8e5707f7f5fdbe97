"""Batch Normalization over several ranks: merged moments, one collective forward, one backward.

`x` is (N, C, *spatial), the shard of one rank; n is the number of values per channel, of a shard or of all of them.
What ranks tell each other is (n, mean, M2) with M2 = Σ(x − mean)², in float64: sums of x and x² lose the variance
when the mean is large, and an average of variances forgets that shards have different means and sizes.
"""

import functools
import math

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import batch_norm
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import is_parametrized

from course_lib.modes import differentiable_once
from course_lib.running_stats import has_own_forward, is_batchnorm
from course_lib.shapes import expect_channelwise, expect_number, expect_tensor

__all__ = [
    "SyncBatchNorm",
    "SyncBatchNormFunction",
    "convert_sync_batchnorm",
    "group_size",
    "groups_of",
    "local_moments",
    "merge_moments",
    "scale_and_shift",
    "standardise",
    "sync_moments",
]

Moments = tuple[int, torch.Tensor, torch.Tensor]


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Moments of the union of two sets of values, from the moments of each.

    With δ = mean_b − mean_a and n = n_a + n_b: mean = mean_a + δ·n_b/n and M2 = M2_a + M2_b + δ²·n_a·n_b/n.
    Of an empty side (n = 0) only the n is looked at.

    Args:
        a, b: (n, mean, m2), with n an int, mean of any shape in units of x, and m2 = Σ(x − mean)² of the same shape
            in units of x².

    Returns:
        (n, mean, m2) of the union, of the same shape.

    Raises:
        ValueError: a negative n; means and m2 of different shapes.

    Example:
        >>> merge_moments((2, torch.tensor([1.0]), torch.tensor([2.0])), (1, torch.tensor([4.0]), torch.tensor([0.0])))
        (3, tensor([2.]), tensor([8.]))

    Source: [chan1983], the pairwise update.
    """
    (n_a, mean_a, m2_a), (n_b, mean_b, m2_b) = a, b
    if n_a < 0 or n_b < 0:
        raise ValueError(f"expected counts of at least 0, got {n_a} and {n_b}")
    shapes = [tuple(v.shape) for v in (mean_a, m2_a, mean_b, m2_b)]
    if len(set(shapes)) > 1:
        raise ValueError(f"expected mean and m2 of one shape on both sides, got {shapes}")
    if n_b == 0:
        return a
    if n_a == 0:
        return b
    n = n_a + n_b
    delta = mean_b - mean_a
    return n, mean_a + delta * (n_b / n), m2_a + m2_b + delta**2 * (n_a * n_b / n)


def sync_moments(x: torch.Tensor, group: dist.ProcessGroup | None = None) -> tuple[int, torch.Tensor, torch.Tensor]:
    """Count, mean and biased variance of every channel, over the shards of all ranks of a group.

    One collective, and none where there is one rank only. Shards may be of different sizes, and empty. Every rank
    gets the same bits. No gradients flow through it.

    Args:
        x: (N, C, *spatial), this rank's shard, of a floating dtype; C the same on all ranks.
        group: the ranks that take part; None takes all of them, or this process alone without torch.distributed.

    Returns:
        (n, mean, var): n the number of values per channel on all ranks together, an int; mean and biased var of shape
        (C,), float64, on x's device. With n = 0 they are zeros.

    Raises:
        ValueError: x of another kind; a group that this rank is not in.

    Example:
        >>> from course_lib.ranks import run_ranks
        >>> run_ranks(lambda rank: sync_moments(torch.tensor([[[1.0]], [[1.0], [4.0]]][rank])), 2)[0]
        (3, tensor([2.], dtype=torch.float64), tensor([2.], dtype=torch.float64))

    Source: [chan1983] for the merging; [peng2018] for the statistics of all devices.
    """
    ranks = group_size(group)
    n, mean, m2 = local_moments(x)
    if ranks > 1:
        # float64 holds counts exactly up to 2^53; the statistics' own float32 would only up to 2^24.
        mine = torch.cat([mean.new_full((1,), n), mean, m2])
        shards = [torch.empty_like(mine) for _ in range(ranks)]
        dist.all_gather(shards, mine, group=group)
        counts, means, m2s = torch.stack(shards).split([1, len(mean), len(mean)], dim=1)
        everyone = zip(map(int, counts[:, 0].tolist()), means, m2s, strict=True)
        n, mean, m2 = functools.reduce(merge_moments, everyone)
    return n, mean, m2 / max(n, 1)


class SyncBatchNormFunction(torch.autograd.Function):
    """Batch Normalization in training mode with the statistics of all ranks.

    Forward: y = weight · (x − mean) / √(var + eps) + bias, with mean and biased var over all shards. Backward: both
    coupling terms of the statistics reach across ranks, so Σdy and Σdy·x̂ are summed over all shards, and
    dx = weight · (dy − Σdy/n − x̂·Σdy·x̂/n) / √(var + eps). The gradients of weight and bias are those of this rank's
    shard: DistributedDataParallel, or the user, sums them.

    One collective forward and one backward. The backward one takes place whichever of x, weight and bias need a
    gradient, so that ranks that differ in it still meet; a rank must call backward if any rank does.

    Example:
        >>> x = torch.tensor([[1.0], [3.0]], requires_grad=True)
        >>> y = SyncBatchNormFunction.apply(x, None, None, None, None, 0.1, 0.0, None)
        >>> y.detach().flatten()
        tensor([-1.,  1.])

    Source: [ioffe2015], Algorithm 1 and section 3; [peng2018].
    """

    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var, momentum, eps, group):
        """y, and the running statistics updated in place.

        Args:
            x: (N, C, *spatial), this rank's shard, also an empty one.
            weight, bias: (C,) or None, for 1 and 0.
            running_mean, running_var: (C,) or None; move by `momentum` towards the mean and the *unbiased* variance,
                n/(n − 1) times the biased one, with n over all ranks. Not touched by a batch that is empty everywhere.
            momentum: weight of the new value, 0 to 1.
            eps: added to the variance, in units of x²; not negative.
            group: as in `sync_moments`.

        Returns:
            y of x's shape, dtype and memory layout. Half inputs are normalised in float32.

        Raises:
            ValueError: one value per channel on all ranks together, on every rank; an input of another kind, shape or
                device; momentum or eps out of range; a group that this rank is not in.
        """
        expect_tensor(x)
        given = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}
        for name, v in given.items():
            if v is not None:
                expect_channelwise(v, x, name=name)
        expect_number(momentum, name="momentum", high=1)
        expect_number(eps, name="eps")
        n, mean, var = sync_moments(x, group)
        # Only after the exchange, where all ranks know the same n: a rank that raised before it would leave the
        # others waiting.
        if n == 1:
            raise ValueError("expected more than 1 value per channel on all ranks together when training, got 1")
        if n > 1:
            for buffer, new in ((running_mean, mean), (running_var, var * (n / (n - 1)))):
                if buffer is not None:
                    buffer.mul_(1 - momentum).add_(new * momentum)
        invstd = (var + eps).rsqrt()
        # x and not x̂: it is kept anyway by the layer before.
        ctx.save_for_backward(x, weight, mean, invstd)
        ctx.n, ctx.group = n, group
        return scale_and_shift(standardise(x, mean, invstd), weight, bias).to(x.dtype)

    @staticmethod
    @differentiable_once
    def backward(ctx, dy):
        """Gradients of x, weight and bias; None for everything else.

        Args:
            dy: the gradient at y.

        Returns:
            (dx, dweight, dbias, None, None, None, None, None).
        """
        x, weight, mean, invstd = ctx.saved_tensors
        axes, per_channel = (0, *range(2, x.dim())), (1, -1) + (1,) * (x.dim() - 2)
        x_hat = standardise(x, mean, invstd)
        dx = dweight = dbias = None
        sum_dy, sum_dy_x_hat = dy.to(x_hat.dtype).sum(axes), (dy * x_hat).sum(axes)
        if ctx.needs_input_grad[1]:
            dweight = sum_dy_x_hat
        if ctx.needs_input_grad[2]:
            dbias = sum_dy
        both = torch.cat([sum_dy, sum_dy_x_hat]).double()
        if group_size(ctx.group) > 1:
            dist.all_reduce(both, group=ctx.group)
        if ctx.needs_input_grad[0]:
            coupled = (both / max(ctx.n, 1)).to(x_hat.dtype)
            mean_dy, mean_dy_x_hat = (v.view(per_channel) for v in coupled.chunk(2))
            scale = invstd if weight is None else invstd * weight
            dx = (dy - mean_dy - x_hat * mean_dy_x_hat) * scale.to(x_hat.dtype).view(per_channel)
        return dx, dweight, dbias, None, None, None, None, None


def convert_sync_batchnorm(model: nn.Module, group: dist.ProcessGroup | None = None) -> nn.Module:
    """Replace every BatchNorm layer of a model by a `SyncBatchNorm` with the same state.

    Every kind counts: torch's BatchNorm1d/2d/3d and SyncBatchNorm, and the course's. Parameters and buffers are the
    same objects as before, so an optimiser goes on; mode, `requires_grad`, hooks and the layer's settings stay. A
    layer that the model uses in two places stays one layer. Convert before wrapping in DistributedDataParallel.

    Args:
        model: changed in place, unless it is itself a BatchNorm layer.
        group: of the new layers; None synchronises all ranks.

    Returns:
        The model; a new layer if the model is itself a BatchNorm layer.

    Raises:
        ValueError: no BatchNorm layer in the model; a lazy one that has seen no batch; a frozen one; one with
            parametrizations, or a subclass with a forward pass of its own, which would be lost; a group that this rank
            is not in.

    Example:
        >>> convert_sync_batchnorm(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))[1]
        SyncBatchNorm(3, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)

    Source: [peng2018].
    """
    if group is not None:
        group_size(group)
    converted = {}
    for name, module in model.named_modules():
        if not is_batchnorm(module):
            continue
        if isinstance(module, nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params():
            raise ValueError(f"expected layer {name!r} to know its channels, got a lazy one: run one batch first")
        if "train" in vars(module):  # `course_lib.finetuning` freezes so, and the copy would be bound to the old layer
            raise ValueError(f"expected layer {name!r} to follow model.train(), got a frozen one: convert, then freeze")
        if is_parametrized(module):
            raise ValueError(f"expected layer {name!r} without parametrizations, got some: convert, then register them")
        if has_own_forward(module):
            raise ValueError(f"expected a plain BatchNorm in {name!r}, got a {type(module)} with a forward of its own")
        layer = SyncBatchNorm(module.num_features)
        # Everything that is the layer's own: parameters, buffers, mode, settings, hooks.
        vars(layer).update(vars(module), process_group=group)
        converted[module] = layer
    if not converted:
        raise ValueError(f"expected a model with a BatchNorm layer, got {type(model).__name__} without any")
    for parent in list(model.modules()):
        for name, child in parent._modules.items():  # named_children() leaves out the second place of a layer
            if child in converted:
                setattr(parent, name, converted[child])
    return converted.get(model, model)


class SyncBatchNorm(_BatchNorm):
    """`torch.nn.SyncBatchNorm`, on every device and backend, with moments that stay accurate.

    In training, the statistics are those of the whole batch, over all ranks of the process group; in evaluation, the
    running ones. Without torch.distributed, or with one rank, it is an ordinary BatchNorm of any rank. A batch that is
    refused, or empty on all ranks, is not counted. In evaluation without running statistics, each rank uses its own.

    Args:
        num_features: C of an input (N, C, *spatial).
        eps: added to the variance, not negative.
        momentum: weight of the new value in the running statistics; None averages all batches.
        affine: learn weight and bias.
        track_running_stats: keep running statistics.
        process_group: ranks that share their statistics; None takes all.
        device, dtype: of parameters and buffers.
        bias: learn a bias, if affine.

    Raises:
        ValueError: num_features, eps or momentum out of range.

    Example:
        >>> SyncBatchNorm(3)(torch.zeros(4, 3, 5, 5)).shape
        torch.Size([4, 3, 5, 5])

    Source: [ioffe2015]; [peng2018].
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: dist.ProcessGroup | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
    ):
        if momentum is not None:
            expect_number(momentum, name="momentum", high=1)
        expect_number(eps, name="eps")
        expect_number(num_features, name="num_features", low=1, whole=True)
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)
        self.process_group = process_group

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised x.

        Args:
            x: (N, C, *spatial), this rank's shard.

        Returns:
            y of x's shape, dtype and memory layout.

        Raises:
            ValueError: as `SyncBatchNormFunction`; another number of channels.
        """
        expect_tensor(x, self.num_features)
        mean, var = self.running_mean, self.running_var
        if self.training:
            return self._normalised_together(x)
        if mean is None or var is None:
            return batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)
        # invstd, not the buffer, goes into the graph: a training step before backward changes no gradient.
        invstd = (var.double() + self.eps).rsqrt()
        return scale_and_shift(standardise(x, mean.double(), invstd), self.weight, self.bias).to(x.dtype)

    def _normalised_together(self, x):
        tracks = self.track_running_stats and self.running_mean is not None
        if self._is_alone_and_watched(x):
            return self._normalised_alone(x, tracks)
        mean, var = (self.running_mean, self.running_var) if tracks else (None, None)
        momentum = self.momentum
        if momentum is None:
            momentum = 1 / (float(self.num_batches_tracked) + 1) if tracks else 0.0
        moving = mean, var
        if tracks and mean.is_inference():  # those count no versions
            with torch.inference_mode(False):
                moving = mean.clone(), var.clone()
        # A rank with an empty shard cannot know whether the batch was empty everywhere, but sees the buffer change.
        version = moving[0]._version if tracks else None
        y = SyncBatchNormFunction.apply(x, self.weight, self.bias, *moving, momentum, self.eps, self.process_group)
        if tracks and moving[0]._version != version:
            if moving[0] is not mean:
                mean.copy_(moving[0])
                var.copy_(moving[1])
            self.num_batches_tracked.add_(1)
        return y

    def _is_alone_and_watched(self, x):
        """Whether nothing is to be exchanged, and a compiler or a `torch.func` transform wants to see operations."""
        # The latter has no public question.
        watched = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
        return watched and x[:, :1].numel() > 1 and group_size(self.process_group) == 1

    def _normalised_alone(self, x, tracks):
        if tracks:
            n, mean, m2 = local_moments(x)
            self.num_batches_tracked.add_(1)
            # A tensor: a number would have to leave the device, and a compiler could not follow.
            momentum = 1 / self.num_batches_tracked.double() if self.momentum is None else self.momentum
            for buffer, new in ((self.running_mean, mean), (self.running_var, m2 / (n - 1))):
                buffer.copy_(buffer * (1 - momentum) + new * momentum)
        return batch_norm(x, None, None, self.weight, self.bias, True, eps=self.eps)


def local_moments(x: torch.Tensor) -> Moments:
    """Moments of this rank's shard alone: (n, mean, M2) per channel.

    Computed around one data value of the channel, so that a large mean costs no digits.

    Args:
        x: (N, C, *spatial) of a floating dtype, also empty.

    Returns:
        (n, mean, m2): n the values per channel, an int; mean and m2 = Σ(x − mean)² of shape (C,), float64, in units of
        x and x²; zeros for an empty x.

    Raises:
        ValueError: x of another kind.

    Example:
        >>> local_moments(torch.tensor([[1.0], [4.0]]))
        (2, tensor([2.5000], dtype=torch.float64), tensor([4.5000], dtype=torch.float64))

    Source: [chan1983].
    """
    channels = expect_tensor(x)
    n = x.shape[0] * math.prod(x.shape[2:])
    if n == 0:
        zeros = torch.zeros(channels, dtype=torch.float64, device=x.device)
        return 0, zeros, zeros.clone()
    axes = (0, *range(2, x.dim()))
    x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    pivot = x[(slice(0, 1), slice(None)) + (slice(0, 1),) * (x.dim() - 2)]
    shifted = x - pivot
    offset = shifted.mean(axes, keepdim=True)
    m2 = (shifted - offset).square().sum(axes)
    # pivot + offset in float32 would round the mean to the very digits that the pivot has saved.
    return n, (pivot.double() + offset.double()).flatten(), m2.double()


def standardise(x: torch.Tensor, mean: torch.Tensor, invstd: torch.Tensor) -> torch.Tensor:
    """(x − mean) · invstd per channel, with the digits of a mean that is finer than x's dtype.

    Args:
        x: (N, C, *spatial).
        mean, invstd: (C,), float64.

    Returns:
        x̂ of x's shape and memory layout, in float32 or float64, whichever holds x.

    Example:
        >>> third = torch.tensor([1e6 + 1 / 3], dtype=torch.float64)
        >>> standardise(torch.tensor([[1e6]]), third, torch.ones(1, dtype=torch.float64))
        tensor([[-0.3333]])
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    per_channel = (1, -1) + (1,) * (x.dim() - 2)
    coarse = mean.to(dtype)
    fine = (mean - coarse).to(dtype)
    return ((x - coarse.view(per_channel)) - fine.view(per_channel)) * invstd.to(dtype).view(per_channel)


def scale_and_shift(x_hat: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
    """weight · x̂ + bias per channel.

    Args:
        x_hat: (N, C, *spatial).
        weight, bias: (C,); None for 1 and 0.

    Example:
        >>> scale_and_shift(torch.ones(1, 2), torch.tensor([2.0, 3.0]), None)
        tensor([[2., 3.]])
    """
    per_channel = (1, -1) + (1,) * (x_hat.dim() - 2)
    y = x_hat if weight is None else x_hat * weight.view(per_channel)
    return y if bias is None else y + bias.view(per_channel)


def group_size(group: dist.ProcessGroup | None = None) -> int:
    """The number of ranks of a group that this rank is in; 1 without torch.distributed.

    Args:
        group: a process group; None takes the group of all ranks.

    Raises:
        ValueError: a group without this rank in it, or one where torch.distributed is not initialised.

    Example:
        >>> group_size()
        1
    """
    if not dist.is_available() or not dist.is_initialized():
        if group is not None:
            raise ValueError(f"expected no group without torch.distributed, got {group}: call init_process_group first")
        return 1
    ranks = dist.get_world_size(group)
    if ranks < 1:
        raise ValueError(
            f"expected a group that rank {dist.get_rank()} is a member of, got one without it: give each rank its own"
        )
    return ranks


def groups_of(ranks: int) -> dist.ProcessGroup:
    """Split all ranks into groups of so many neighbours each; every rank has to call it.

    Args:
        ranks: the size of each group; divides the number of ranks.

    Returns:
        The group that this rank is in, for `SyncBatchNorm(process_group=…)`.

    Raises:
        ValueError: groups of this size do not divide the ranks evenly, or torch.distributed is not initialised.

    Example:
        >>> from course_lib.ranks import run_ranks
        >>> run_ranks(lambda rank: dist.get_process_group_ranks(groups_of(2)), 4)
        [[0, 1], [0, 1], [2, 3], [2, 3]]
    """
    if not dist.is_available() or not dist.is_initialized():
        raise ValueError("expected torch.distributed to be initialised, got none: call init_process_group first")
    everyone = dist.get_world_size()
    expect_number(ranks, name="ranks", low=1, whole=True)
    if everyone % ranks:
        raise ValueError(f"expected the size of a group to divide the {everyone} ranks, got {ranks}")
    return dist.new_subgroups(ranks)[0]
