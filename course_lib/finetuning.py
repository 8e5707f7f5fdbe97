"""Batch Normalization in a model that is trained further: freezing, recalibrating, ghost batches, replacing layers.

`x` is (N, C, *spatial); momentum is the weight of the new value; layers normalise with the biased variance and keep
the unbiased one, n/(n − 1), in `running_var`, n being the number of values per channel.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from course_lib.running_stats import has_own_forward, is_batchnorm
from course_lib.shapes import expect_number, expect_tensor
from course_lib.tracing import deepcopy_memo

__all__ = [
    "Always",
    "FrozenBatchNorm",
    "GhostBatchNorm",
    "batchnorm_layers",
    "freeze_batchnorm",
    "momentum_for_accumulation",
    "recalibrate",
    "replace_batchnorm",
    "unfreeze_batchnorm",
    "weight_decay_groups",
]


class Always:
    """A call whose arguments are fixed: what the caller passes is ignored.

    Set on an object in place of a method, it lasts where other ways do not: unlike a lambda it pickles, and unlike a
    closure it moves along in a deep copy, because its arguments are copied with it.

    Args:
        function: what to call, found by its name when unpickled.
        *args: what to call it with.

    Example:
        >>> ceiling = Always(min, 3, 7)
        >>> ceiling(), ceiling(100, 200)
        (3, 3)
    """

    def __init__(self, function: Callable, *args: object):
        self.function, self.args = function, args

    def __call__(self, *_, **__):
        return self.function(*self.args)


def batchnorm_layers(model: nn.Module, *, tracked: bool = False) -> dict[str, nn.Module]:
    """The BatchNorm layers of a model, of every kind, each once.

    Args:
        model: any module, itself a BatchNorm layer too.
        tracked: ask of every layer that it has running statistics.

    Returns:
        A dict from names to layers, names and order as in `named_modules()`.

    Raises:
        ValueError: there is none; with `tracked`, a layer has no running statistics.

    Example:
        >>> list(batchnorm_layers(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))))
        ['1']
    """
    layers = {name: module for name, module in model.named_modules() if is_batchnorm(module)}
    if not layers:
        raise ValueError(f"expected a model with BatchNorm layers, got {type(model).__name__} without any")
    for name, layer in layers.items():
        if tracked and layer.running_mean is None:
            raise ValueError(
                f"expected running statistics in every BatchNorm layer, got none in {name or 'the model'!r}: without "
                "them it uses the batch's own in eval mode too; make it with track_running_stats=True"
            )
    return layers


def freeze_batchnorm(model: nn.Module, affine: bool = True) -> nn.Module:
    """Keep every BatchNorm layer at the statistics it has, whatever `model.train()` says later.

    A frozen layer normalises with its running statistics and does not update them. Its `training` flag stays False
    until `unfreeze_batchnorm`; the rest of the model changes modes as ever. State-dict keys do not change, and a
    frozen model copies and pickles as a frozen one. Freezing twice is freezing once; what a layer was before is
    remembered the first time. A conversion makes new layers: convert first, then freeze.

    Args:
        model: changed in place; its BatchNorm layers of every kind, torch's and the course's.
        affine: also stop the training of γ and β. False leaves their `requires_grad` as it is.

    Returns:
        The same model.

    Raises:
        ValueError: no BatchNorm layer in the model, or one without running statistics, which cannot be frozen to any.

    Example:
        >>> model = freeze_batchnorm(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))
        >>> [module.training for module in model.train()]
        [True, False]

    Source: [he2016residual], appendix A, fixes the layers while fine-tuning a detector.
    """
    layers = batchnorm_layers(model, tracked=True).values()
    for layer in layers:
        if not hasattr(layer, "frozen_from"):
            wanted = {name: parameter.requires_grad for name, parameter in layer.named_parameters()}
            layer.frozen_from = layer.training, wanted
    # Only now, when every layer's state is remembered: two layers may share a parameter.
    for layer in layers:
        # An attribute of the instance: `model.train()` calls its children's `train`, and finds this one.
        layer.train = Always(nn.Module.train, layer, False)
        layer.train()
        if affine:
            for parameter in layer.parameters():
                parameter.requires_grad = False
    return model


def unfreeze_batchnorm(model: nn.Module) -> nn.Module:
    """Undo `freeze_batchnorm`: every layer gets back the mode and the `requires_grad` it had before it was frozen.

    Layers that are not frozen stay as they are, so undoing twice is undoing once.

    Args:
        model: changed in place.

    Returns:
        The same model.

    Raises:
        ValueError: no BatchNorm layer in the model.

    Example:
        >>> model = unfreeze_batchnorm(freeze_batchnorm(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))))
        >>> [module.training for module in model]
        [True, True]
    """
    for layer in batchnorm_layers(model).values():
        if hasattr(layer, "frozen_from"):
            training, wanted = layer.frozen_from
            del layer.train, layer.frozen_from
            layer.train(training)
            for name, parameter in layer.named_parameters():
                parameter.requires_grad = wanted.get(name, parameter.requires_grad)
    return model


def recalibrate(model: nn.Module, batches: Iterable) -> nn.Module:
    """Replace the running statistics by the exact ones of some data, layer by layer in call order.

    Each BatchNorm layer gets mean = Σx / n and the unbiased var = Σ(x − mean)² / (n − 1) of its own input over all
    batches, while every layer before it already uses its new statistics. The whole model is in eval mode meanwhile,
    so the result does not depend on how the data are split into batches. Modes, weights, momentum and counters are
    afterwards what they were; layers frozen by `freeze_batchnorm` get new statistics too (freezing stops training,
    not an explicit call), and layers that the data do not reach stay as they are. With k layers the data are read k + 1
    times. After an exception the model is as it was before.

    Args:
        model: changed in place.
        batches: can be iterated again and again, giving the same data each time: a list of tensors, a DataLoader. Of
            a tuple or list, such as (x, labels), the first element is the model's input. On the model's device.

    Returns:
        The same model.

    Raises:
        ValueError: `batches` is a tensor, an iterator, which can be read only once, empty, or of another length in
            a later pass; no BatchNorm layer in the model, or one without running statistics; a layer that is called
            twice in one pass of the model, for which there are no statistics that serve both calls; fewer than 2
            values per channel.

    Example:
        >>> model = nn.Sequential(nn.BatchNorm1d(1))
        >>> _ = recalibrate(model, [torch.tensor([[1.0], [2.0]]), torch.tensor([[6.0]])])
        >>> model[0].running_mean, model[0].running_var
        (tensor([3.]), tensor([7.]))

    Source: exact statistics instead of a moving average: [wu2021], section 3; merging moments: [chan1983].
    """
    if isinstance(batches, Tensor | Iterator):
        kind = type(batches).__name__
        raise ValueError(f"expected batches that can be read several times, got a {kind}: make it a list of tensors")
    layers = batchnorm_layers(model, tracked=True)
    order, lengths = [], []

    def read(hooks):
        """One pass over the data with {layer: hook}, where hook takes the layer's input."""
        called = []

        def call(layer, args, kwargs):
            called.append(layer)
            hooks[layer](*args, *kwargs.values())

        handles = [layer.register_forward_pre_hook(call, with_kwargs=True) for layer in hooks]
        length = 0
        try:
            for batch in batches:
                length += 1
                model(batch[0] if isinstance(batch, tuple | list) else batch)
                for name, layer in layers.items():
                    if called.count(layer) > 1:
                        raise ValueError(
                            f"expected every BatchNorm layer to be called once in a pass, got {called.count(layer)} "
                            f"calls of {name!r}: give every call a layer of its own"
                        )
                order.extend(layer for layer in called if layer not in order)
                called.clear()
        finally:
            for handle in handles:
                handle.remove()
        lengths.append(length)
        if length == 0 or length != lengths[0]:
            raise ValueError(f"expected the same batches, at least one, in every pass, got {lengths} of them")

    modes = [(module, module.training) for module in model.modules()]
    saved = []
    try:
        for module, _ in modes:
            module.training = False
        with torch.no_grad():
            read({layer: lambda x: None for layer in layers.values()})
            saved += [(buffer, buffer.clone()) for layer in order for buffer in (layer.running_mean, layer.running_var)]
            for layer in list(order):
                n, mean, m2 = 0, 0.0, 0.0

                def merge(x):
                    nonlocal n, mean, m2
                    rows = x.double().movedim(1, 0).flatten(1)
                    count = rows.shape[1]
                    if count:
                        delta = rows.mean(dim=1) - mean
                        own = (rows - rows.mean(dim=1, keepdim=True)).square().sum(dim=1)
                        mean = mean + delta * (count / (n + count))
                        m2 = m2 + own + delta.square() * (n * count / (n + count))
                        n += count

                read({layer: merge})
                if n < 2:
                    raise ValueError(f"expected at least 2 values per channel in all batches together, got {n}")
                layer.running_mean.copy_(mean)
                layer.running_var.copy_(m2 / (n - 1))
    except BaseException:
        for buffer, value in saved:
            buffer.copy_(value)
        raise
    finally:
        for module, training in modes:
            module.training = training
    return model


class GhostBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm whose training statistics are those of virtual batches, smaller than the batch.

    In training, x is split along axis 0 into parts of `virtual_batch_size` samples, the last may be smaller. Each part
    is normalised with its own mean and biased variance, and updates the running statistics once, in order, with the
    unbiased variance: num_batches_tracked counts virtual batches. In eval mode it is BatchNorm; parameters, buffers
    and state dict are BatchNorm's too. An empty batch comes out empty and changes nothing.

    Args:
        num_features: the number of channels C.
        virtual_batch_size: samples per virtual batch, at least 1.
        eps: added to the variance, in units of x²; not negative.
        momentum: weight of the new value; None averages over all virtual batches.
        affine: γ and β, of shape (C,).
        track_running_stats: False uses the statistics of the whole batch in eval mode.
        device, dtype: of parameters and buffers.

    Raises:
        ValueError: `virtual_batch_size` no whole number of at least 1; eps negative; momentum outside 0 to 1; an input
            that is not (N, C, *spatial); in training, a virtual batch with a single value per channel, before any
            statistic has changed.

    Example:
        >>> layer = GhostBatchNorm(1, virtual_batch_size=2)
        >>> x = torch.tensor([[1.0], [3.0], [10.0], [30.0]])
        >>> layer(x).detach().flatten().round(decimals=2), layer.num_batches_tracked
        (tensor([-1.,  1., -1.,  1.]), tensor(2))

    Source: [hoffer2017], Algorithm 1.
    """

    # torch's forward calls it; any rank the course knows will do.
    _check_input_dim = staticmethod(expect_tensor)

    def __init__(
        self,
        num_features: int,
        virtual_batch_size: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        expect_number(virtual_batch_size, name="virtual_batch_size", low=1, whole=True)
        expect_number(eps, name="eps")
        if momentum is not None:
            expect_number(momentum, name="momentum", high=1)
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        self.virtual_batch_size = virtual_batch_size

    def forward(self, x: Tensor) -> Tensor:
        expect_tensor(x, self.num_features)
        if not self.training:
            return super().forward(x)
        if x.numel() == 0:  # torch would count it
            return batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)
        smallest = len(x) % self.virtual_batch_size or min(len(x), self.virtual_batch_size)
        if smallest * x[0, 0].numel() == 1:
            raise ValueError(
                f"expected at least 2 values per channel in every virtual batch, got 1 in the last of {tuple(x.shape)} "
                f"split by {self.virtual_batch_size}: choose another batch size, or drop the last batch"
            )
        normalise = super().forward
        return torch.cat([normalise(part) for part in x.split(self.virtual_batch_size)])


def momentum_for_accumulation(momentum: float, micro_batches: int) -> float:
    """The momentum with which k updates forget as much of the old statistics as one update with `momentum`.

    With gradient accumulation the running statistics advance once per micro-batch, k times per step. The old value's
    share after them is (1 − m)^k, and is to be 1 − momentum.

    Args:
        momentum: weight of the new value, 0 to 1, for one update per step.
        micro_batches: k, updates per step, at least 1.

    Returns:
        m, a float from 0 to 1.

    Raises:
        ValueError: `momentum` outside 0 to 1; `micro_batches` no whole number of at least 1.

    Example:
        >>> round(momentum_for_accumulation(0.19, micro_batches=2), 6)
        0.1
    """
    expect_number(momentum, name="momentum", high=1)
    expect_number(micro_batches, name="micro_batches", low=1, whole=True)
    if momentum == 1:
        return 1.0
    # 1 − (1 − m)^(1/k), without losing the digits of a small momentum.
    return -math.expm1(math.log1p(-momentum) / micro_batches)


def replace_batchnorm(model: nn.Module, make: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """A copy of a model in which every BatchNorm layer is what `make` makes of it.

    What the input shares, a layer used in two places or a tied weight, is shared in the copy. The replacement of a
    layer in eval mode is put into eval mode.

    Args:
        model: not changed; itself a BatchNorm layer too.
        make: from a BatchNorm layer, a copy that it may change or keep parts of, to any module. Called once per layer.

    Returns:
        A new model, or the replacement of `model` itself.

    Raises:
        ValueError: no BatchNorm layer in the model; a lazy layer that has seen no batch; `make` returns no module.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
        >>> replace_batchnorm(model, lambda bn: nn.GroupNorm(2, bn.num_features))[1]
        GroupNorm(2, 4, eps=1e-05, affine=True, bias=True)
    """
    # deepcopy takes what its memo holds for the copy of an object: wherever a layer is referred to, its
    # replacement comes in.
    memo = deepcopy_memo(model)
    for layer in batchnorm_layers(model).values():
        made = make(copy.deepcopy(layer, memo))
        if not isinstance(made, nn.Module):
            raise ValueError(f"expected make to return a module for {layer}, got {type(made).__name__}")
        memo[id(layer)] = made if layer.training else made.eval()
    return copy.deepcopy(model, memo)


def weight_decay_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Parameters for an optimizer in two groups: with weight decay, and without.

    Without are all parameters of normalisation layers (BatchNorm of every kind, and torch's instance, layer, group and
    RMS normalisation) and all biases: parameters with "bias" in their name. Every trainable parameter is in exactly
    one group; one that is shared is without decay if one of its uses is.

    Args:
        model: any module.
        weight_decay: of the first group, at least 0.

    Returns:
        [decay, none], two dicts with "params", a list in the model's order, and "weight_decay".

    Raises:
        ValueError: `weight_decay` negative; no trainable parameter in the model.

    Example:
        >>> decay, none = weight_decay_groups(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), 0.01)
        >>> len(decay["params"]), len(none["params"]), none["weight_decay"]
        (1, 3, 0.0)

    Source: [he2019], section 3.1; what decay does to weights before BatchNorm: [vanlaarhoven2017].
    """
    expect_number(weight_decay, name="weight_decay")
    norms = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)  # its children: Batch, Instance
    spared = {id(p) for m in model.modules() if is_batchnorm(m) or isinstance(m, norms) for p in m.parameters()}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if "bias" in name.rpartition(".")[2]:
            spared.add(id(parameter))
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError(f"expected a model with trainable parameters, got {type(model).__name__} without any")
    return [
        {"params": [p for p in trainable if id(p) not in spared], "weight_decay": weight_decay},
        {"params": [p for p in trainable if id(p) in spared], "weight_decay": 0.0},
    ]


class FrozenBatchNorm(nn.Module):
    """BatchNorm for good in eval mode: y = weight · (x − running_mean) / √(running_var + eps) + bias, all constant.

    All four are buffers: no optimizer finds them, no mode changes them. The state dict is BatchNorm's without the
    counter, and one with the counter loads too. `replace_batchnorm(model, FrozenBatchNorm.from_batchnorm)` converts a
    model; unlike after `freeze_batchnorm` there is no way back.

    Args:
        num_features: the number of channels C.
        eps: added to the variance, in units of x²; not negative.
        device, dtype: of the buffers.

    Raises:
        ValueError: eps negative; an input that is not (N, C, *spatial).

    Example:
        >>> bn = nn.BatchNorm1d(2).eval()
        >>> x = torch.tensor([[1.0, -2.0]])
        >>> torch.equal(FrozenBatchNorm.from_batchnorm(bn)(x), bn(x))
        True
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        expect_number(eps, name="eps")
        self.num_features, self.eps = num_features, eps
        self.register_buffer("weight", torch.ones(num_features, device=device, dtype=dtype))
        self.register_buffer("bias", torch.zeros(num_features, device=device, dtype=dtype))
        self.register_buffer("running_mean", torch.zeros(num_features, device=device, dtype=dtype))
        self.register_buffer("running_var", torch.ones(num_features, device=device, dtype=dtype))
        self.training = False

    @classmethod
    def from_batchnorm(cls, bn: nn.Module) -> "FrozenBatchNorm":
        """The constant form of a layer, on its device and in its dtype, sharing no memory with it.

        Raises:
            ValueError: not a BatchNorm layer, one without running statistics, or a subclass with a forward pass of its
                own, which would be lost.
        """
        if not is_batchnorm(bn):
            raise ValueError(f"expected a BatchNorm layer, got {type(bn).__name__}")
        if has_own_forward(bn):
            raise ValueError(f"expected a plain BatchNorm, got {type(bn).__name__} with a forward of its own")
        batchnorm_layers(bn, tracked=True)
        frozen = cls(len(bn.running_mean), bn.eps, bn.running_mean.device, bn.running_mean.dtype)
        for name, buffer in frozen.named_buffers():
            value = getattr(bn, name)
            if value is not None:
                buffer.copy_(value.detach())
        return frozen

    def train(self, mode: bool = True) -> "FrozenBatchNorm":
        """Stays in eval mode: there is nothing to train."""
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        expect_tensor(x, self.num_features)
        return batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}"

    def _load_from_state_dict(self, state_dict, prefix, *args):
        # Whoever loads a BatchNorm's state has nothing to count here.
        state_dict.pop(prefix + "num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *args)
