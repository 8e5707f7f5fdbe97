"""Training and eval: two functions under one name, their gradients, who is in which mode, and how it goes wrong.

`x` is (N, C, *spatial) with the channels on axis 1 and 0 to 3 spatial axes; n is the number of values per channel.
`momentum` is the weight of the new value; the biased variance normalises, the unbiased one goes into `running_var`.
"""

import copy
import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from course_lib.running_stats import is_batchnorm
from course_lib.shapes import expect_channelwise, expect_number, expect_tensor

__all__ = [
    "BatchNormFunction",
    "accepts",
    "batch_norm_eval_backward",
    "bn_modes",
    "clinic_biased_var",
    "clinic_grad_mode",
    "clinic_graph_in_buffers",
    "clinic_momentum",
    "clinic_no_eval",
    "clinic_plain_buffers",
    "differentiable_once",
    "evaluating",
    "expect_model",
    "predict",
]


def differentiable_once(backward: Callable) -> Callable:
    """Decorator of a hand-written backward: a derivative of its gradients is an error, always.

    torch's own `once_differentiable` refuses one only where the gradient that comes in has a graph. In a
    loss that is linear in y it has none, the gradients that go out pass for constants, and what is missing in the
    second derivative is missing silently.

    Args:
        backward: the static method `backward(ctx, *gradients)` of a `torch.autograd.Function`.

    Returns:
        The same backward, without gradients inside.

    Example:
        >>> class Square(torch.autograd.Function):
        ...     @staticmethod
        ...     def forward(ctx, x):
        ...         ctx.save_for_backward(x)
        ...         return x**2
        ...     @staticmethod
        ...     @differentiable_once
        ...     def backward(ctx, dy):
        ...         return 2 * ctx.saved_tensors[0] * dy
        >>> x = torch.tensor(3.0, requires_grad=True)
        >>> [dx] = torch.autograd.grad(Square.apply(x), x, create_graph=True)
        >>> dx.backward()  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        RuntimeError: expected no second derivative of what is marked with differentiable_once, got asked for one: ...
    """

    @functools.wraps(backward)
    def refusing(ctx, *gradients):
        with torch.no_grad():
            found = backward(ctx, *gradients)
        if not torch.is_grad_enabled():  # it is with create_graph=True alone
            return found
        found = found if isinstance(found, tuple) else (found,)
        return _Refused.apply(*(v if v is None else v.detach().requires_grad_() for v in found))

    return refusing


class _Refused(torch.autograd.Function):
    """The identity, without a derivative."""

    @staticmethod
    def forward(ctx, *values):
        return values

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError(
            "expected no second derivative of what is marked with differentiable_once, got asked for one: "
            "compute the output in plain operations for that"
        )


def batch_norm_eval_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    weight: torch.Tensor,
    eps: float = 1e-5,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of a layer in eval mode: y = weight · x̂ + bias with x̂ = (x − running_mean) / √(running_var + eps).

    The statistics do not depend on x: the layer is one straight line per channel, and no term couples the samples.

    Args:
        dy: (N, C, *spatial), the gradient at y.
        x: (N, C, *spatial), the layer's input, of any floating dtype.
        running_mean, running_var: (C,), the statistics of the forward pass, in units of x and of x².
        weight: (C,).
        eps: added to the variance inside the root, in units of x²; not negative.

    Returns:
        (dx, dweight, dbias): dx of x's shape and dtype; dweight and dbias of shape (C,) and of weight's dtype. All
        are computed in float32 at least.

    Raises:
        ValueError: dy and x of different shapes; x not floating or not of rank 2 to 5; statistics or weight of
            another shape than (C,) or on another device; eps negative.

    Example:
        >>> x, dy = torch.tensor([[1.0], [5.0]]), torch.tensor([[1.0], [0.0]])
        >>> dx, dweight, dbias = batch_norm_eval_backward(dy, x, *torch.tensor([[3.0], [4.0], [10.0]]), eps=0.0)
        >>> dx.flatten(), dweight, dbias
        (tensor([5., 0.]), tensor([-1.]), tensor([1.]))
    """
    expect_tensor(x)
    expect_tensor(dy, name="dy")
    if dy.shape != x.shape:
        raise ValueError(f"expected dy of x's shape {tuple(x.shape)}, got {tuple(dy.shape)}")
    for name, v in (("running_mean", running_mean), ("running_var", running_var), ("weight", weight)):
        expect_channelwise(v, x, name=name)
    expect_number(eps, name="eps")
    axes = (0, *range(2, x.dim()))
    per_channel = (1, -1) + (1,) * (x.dim() - 2)
    dtype = torch.promote_types(x.dtype, torch.float32)
    dy = dy.to(dtype)
    invstd = (running_var.to(dtype) + eps).rsqrt()
    x_hat = (x.to(dtype) - running_mean.view(per_channel)) * invstd.view(per_channel)
    dx = dy * (weight * invstd).view(per_channel)
    dweight = (dy * x_hat).sum(axes)
    dbias = dy.sum(axes)
    return dx.to(x.dtype), dweight.to(weight.dtype), dbias.to(weight.dtype)


class BatchNormFunction(torch.autograd.Function):
    """Batch Normalization in both modes with a hand-written backward.

    Training: the batch's mean and biased variance normalise, the running statistics given move in place, and
    backward takes off both coupling terms. Eval: the running statistics are constants, as they were in the forward
    pass: a later update does not change the gradient. Without running statistics the batch's are taken in both modes.

    `BatchNormFunction.apply(x, weight, bias, running_mean, running_var, training, momentum, eps)`

    Args:
        x: (N, C, *spatial), any floating dtype; n ≥ 2 values per channel, or none, where the batch is normalised.
        weight, bias: (C,), or None for 1 and 0.
        running_mean, running_var: (C,) on x's device, or both None.
        training: True normalises by the batch.
        momentum: weight of the new value in the running statistics, 0 to 1.
        eps: added to the variance inside the root, in units of x²; not negative.

    Returns:
        y of x's shape and dtype; everything is computed in float32 at least. It can be differentiated once.

    Raises:
        ValueError: one value per channel where the batch's statistics are needed; x not floating or not of rank
            2 to 5; anything of another shape than (C,) or on another device; one running statistic without the other;
            momentum or eps out of range.

    Example:
        >>> x = torch.tensor([[1.0], [2.0], [6.0]], requires_grad=True)
        >>> BatchNormFunction.apply(x, None, None, None, None, True, 0.1, 1e-5)[0].backward()
        >>> bool(abs(x.grad.sum()) < 1e-6)
        True

    Source: [ioffe2015], Algorithms 1 and 2, and section 3.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var, training, momentum, eps):
        """y, and in ctx what backward needs."""
        expect_tensor(x)
        state = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}
        for name, v in state.items():
            if v is not None:
                expect_channelwise(v, x, name=name)
        if (running_mean is None) != (running_var is None):
            lone = "running_mean" if running_var is None else "running_var"
            raise ValueError(f"expected running_mean and running_var, or None for both, got {lone} alone")
        expect_number(momentum, name="momentum", high=1)
        expect_number(eps, name="eps")
        axes = (0, *range(2, x.dim()))
        per_channel = (1, -1) + (1,) * (x.dim() - 2)
        n = x[:, :1].numel()
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        ctx.batch_normalised = training or running_mean is None
        if ctx.batch_normalised:
            if n == 1:
                raise ValueError(f"expected more than 1 value per channel, got an input of shape {tuple(x.shape)}")
            # A shift changes no variance, and what is left after it has the size of the spread, not of the mean.
            pivot = wide[(slice(1), slice(None)) + (slice(1),) * (x.dim() - 2)]
            shifted = wide - pivot
            offset = shifted.mean(axes, keepdim=True)
            centred = shifted - offset
            var = centred.square().mean(axes)
            if running_mean is not None and n > 0:
                mean = (pivot + offset).flatten()
                unbiased = var * (n / (n - 1))
                running_mean.mul_(1 - momentum).add_(momentum * mean)
                running_var.mul_(1 - momentum).add_(momentum * unbiased)
        else:
            centred = wide - running_mean.view(per_channel)
            var = running_var.to(wide.dtype)
        invstd = (var + eps).rsqrt()
        x_hat = centred * invstd.view(per_channel)
        # New tensors, not the buffers: those may have moved when backward comes.
        ctx.save_for_backward(x_hat, invstd, weight)
        y = x_hat
        if weight is not None:
            y = y * weight.view(per_channel)
        if bias is not None:
            y = y + bias.view(per_channel)
        return y.to(x.dtype)

    @staticmethod
    @differentiable_once
    def backward(ctx, dy):
        """Gradients of x, weight and bias, and None for the five other arguments."""
        x_hat, invstd, weight = ctx.saved_tensors
        axes = (0, *range(2, dy.dim()))
        per_channel = (1, -1) + (1,) * (dy.dim() - 2)
        n = dy[:, :1].numel()
        wide = dy.to(x_hat.dtype)
        dbias = wide.sum(axes)
        dweight = (wide * x_hat).sum(axes)
        scale = invstd if weight is None else invstd * weight
        dx = wide
        if ctx.batch_normalised:
            dx = dx - (dbias.view(per_channel) + x_hat * dweight.view(per_channel)) / n
        dx = dx * scale.view(per_channel)
        # Autograd casts each gradient to its input's dtype, and wants None where there was no tensor.
        gradients = zip((dx, dweight, dbias), ctx.needs_input_grad, strict=False)
        return *(gradient if needed else None for gradient, needed in gradients), None, None, None, None, None


def bn_modes(model: nn.Module) -> dict[str, str]:
    """The mode of every Batch Normalization layer of a model.

    Args:
        model: any module; a layer that is shared appears once, under its first name.

    Returns:
        A dict from names to "train" or "eval", by each layer's own flag; names and order as in `named_modules()`; the
        model itself has the name "". Empty for a model without such layers.

    Raises:
        ValueError: model is no module.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Sequential(nn.BatchNorm1d(3).eval()))
        >>> bn_modes(net)
        {'1': 'train', '2.0': 'eval'}
    """
    expect_model(model)
    return {
        name: "train" if module.training else "eval" for name, module in model.named_modules() if is_batchnorm(module)
    }


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside a `with` block, and afterwards each module's own mode back, also after an exception.

    `model.train()` would put every module into training, those too that had been frozen in eval. A module with a
    `train` of its own, such as one that merges weights for evaluation, has it called with its own mode.

    Args:
        model: any module.

    Yields:
        The model, in eval mode.

    Raises:
        ValueError: model is no module.

    Example:
        >>> net = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3).eval())
        >>> with evaluating(net):
        ...     inside = bn_modes(net)
        >>> inside, bn_modes(net)
        ({'0': 'eval', '1': 'eval'}, {'0': 'train', '1': 'eval'})
    """
    expect_model(model)
    before = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield model
    finally:
        for module, mode in before:
            if type(module).train is not nn.Module.train:  # what its eval() did beside the flag, it undoes itself
                module.train(mode)
        for module, training in before:
            module.training = training


def predict(model: nn.Module, batches: "Iterable[torch.Tensor]") -> torch.Tensor:
    """Outputs of a model for all the data, the same however the data are cut into batches.

    In eval mode and without autograd history; every module's mode and all buffers are as before afterwards. Nothing
    is moved between devices.

    Args:
        model: maps a batch to a tensor, batch axis first in both.
        batches: iterable of tensors on the model's device.

    Returns:
        The outputs, concatenated along axis 0.

    Raises:
        ValueError: no batches; one tensor in place of an iterable; a batch or an output that is no tensor; a Batch
            Normalization layer without running statistics, which normalises by the batch in eval too; model is no
            module.

    Example:
        >>> net = nn.BatchNorm1d(1, eps=0.0)
        >>> predict(net, [torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0]])]).flatten(), net.training
        (tensor([1., 2., 3.]), True)
    """
    if isinstance(batches, torch.Tensor):
        raise ValueError(f"expected an iterable of batches, got one tensor {tuple(batches.shape)}: put it into a list")
    outputs = []
    with evaluating(model), torch.no_grad():
        for name, module in model.named_modules():
            if is_batchnorm(module) and module.running_mean is None:
                raise ValueError(f"expected running statistics in layer {name!r}, got track_running_stats=False")
        for batch in batches:
            if not isinstance(batch, torch.Tensor):
                raise ValueError(f"expected every batch to be a tensor, got {type(batch).__name__}: leave labels out")
            outputs.append(model(batch))
            if not isinstance(outputs[-1], torch.Tensor):
                raise ValueError(f"expected the model to return a tensor, got {type(outputs[-1]).__name__}")
    if not outputs:
        raise ValueError("expected at least one batch, got none: a generator is empty after its first use")
    return torch.cat(outputs)


# --- the clinic: six patients, healthy here -------------------------------------------------------------------------


def clinic_no_eval(model: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> float:
    """Accuracy of a classifier on held-out data.

    Right means: the prediction for a sample does not depend on the other samples in x, whatever mode the model came
    in; and the model leaves as it came: modes, running statistics and counters.

    Args:
        model: maps x to logits (N, classes).
        x: (N, ...), the held-out inputs, N ≥ 1.
        labels: (N,), whole numbers.

    Returns:
        The fraction of right predictions, a float from 0 to 1.

    Raises:
        ValueError: labels not of shape (N,); no samples; model is no module.

    Example:
        >>> net = nn.Sequential(nn.BatchNorm1d(2, affine=False))
        >>> clinic_no_eval(net, torch.tensor([[5.0, 4.0], [7.0, 6.0], [9.0, 5.0]]), torch.tensor([0, 0, 0]))
        1.0
    """
    if len(x) == 0 or labels.shape != x.shape[:1]:
        raise ValueError(f"expected labels of shape (N,) with N={len(x)} ≥ 1, got {tuple(labels.shape)}")
    with evaluating(model), torch.no_grad():
        return (model(x).argmax(1) == labels).double().mean().item()


class clinic_plain_buffers(nn.Module):  # a cell of a problem set, named like the other five
    """A layer that centres its input: y = x − mean, with the batch's mean in training, the running mean in eval.

    Right means: `running_mean` is part of the state dict and keeps its own keys there, `.to()` moves and casts it
    with the rest of the model, an optimiser does not see it, and training updates it in place, so that whoever holds
    it sees the new values.

    Args:
        num_features: the number of channels C.
        momentum: weight of the new value, 0 to 1.

    Raises:
        ValueError: num_features not a positive whole number; momentum out of range.

    Example:
        >>> layer = clinic_plain_buffers(1, momentum=0.5)
        >>> layer(torch.tensor([[2.0], [6.0]])).flatten(), layer.state_dict()["running_mean"]
        (tensor([-2.,  2.]), tensor([2.]))
    """

    def __init__(self, num_features: int, momentum: float = 0.1):
        """A running mean of zeros, of shape (C,)."""
        super().__init__()
        expect_number(num_features, name="num_features", low=1, whole=True)
        expect_number(momentum, name="momentum", high=1)
        self.momentum = momentum
        self.register_buffer("running_mean", torch.zeros(num_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Centred x.

        Args:
            x: (N, C), N ≥ 1 in training.
        """
        expect_tensor(x, len(self.running_mean), ranks=(2,))
        if not self.training:
            return x - self.running_mean
        mean = x.mean(0)
        with torch.no_grad():
            self.running_mean.mul_(1 - self.momentum).add_(self.momentum * mean)
        return x - mean


def clinic_graph_in_buffers(running_mean: torch.Tensor, x: torch.Tensor, momentum: float) -> None:
    """Move a running mean a step towards a batch's mean, in place.

    Right means: however many training steps follow each other, the running mean holds no graph: it needs no gradient,
    memory does not grow, and the second step's backward works.

    Args:
        running_mean: (C,), floating point.
        x: (N, C, *spatial), usually part of an autograd graph; n ≥ 1.
        momentum: weight of the new value, 0 to 1.

    Raises:
        ValueError: running_mean not of shape (C,); x empty, not floating or not of rank 2 to 5; momentum out of range.

    Example:
        >>> mean = torch.zeros(1)
        >>> clinic_graph_in_buffers(mean, torch.tensor([[2.0], [6.0]], requires_grad=True), momentum=0.5)
        >>> mean
        tensor([2.])
    """
    expect_tensor(x)
    expect_channelwise(running_mean, x, name="running_mean")
    expect_number(momentum, name="momentum", high=1)
    if x.numel() == 0:
        raise ValueError(f"expected at least 1 value per channel, got an input of shape {tuple(x.shape)}")
    axes = (0, *range(2, x.dim()))
    with torch.no_grad():
        running_mean.mul_(1 - momentum).add_(momentum * x.mean(axes))


def clinic_grad_mode(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """How strongly each input value moves the model's output: the gradient of the summed outputs with respect to x.

    Right means: it is the gradient of the model as it predicts, so that a sample's row depends on no other sample;
    it is there whether or not the caller has switched gradients off; and nothing else happens: modes, running
    statistics, x and the parameters' `.grad` are as before.

    Args:
        model: maps x to a tensor.
        x: (N, ...), floating point.

    Returns:
        A tensor like x, without autograd history.

    Raises:
        ValueError: model is no module; x not floating.

    Example:
        >>> clinic_grad_mode(nn.BatchNorm1d(1, eps=0.0), torch.tensor([[1.0], [2.0]])).flatten()
        tensor([1., 1.])
    """
    if not x.is_floating_point():
        raise ValueError(f"expected x of a floating-point dtype, got {x.dtype}")
    with evaluating(model), torch.enable_grad():
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(model(leaf).sum(), leaf)[0]


def clinic_momentum(running: torch.Tensor, batch: torch.Tensor, momentum: float) -> torch.Tensor:
    """A running statistic after one more batch, in PyTorch's convention.

    Right means: momentum is the weight of the new value, so that 0 keeps the running statistic and 1 forgets it.

    Args:
        running: (C,), the statistic so far.
        batch: (C,), the batch's statistic.
        momentum: 0 to 1.

    Returns:
        (C,), a new tensor.

    Raises:
        ValueError: running and batch of different shapes; momentum out of range.

    Example:
        >>> clinic_momentum(torch.tensor([0.0]), torch.tensor([4.0]), momentum=0.25)
        tensor([1.])
    """
    if running.shape != batch.shape:
        raise ValueError(
            f"expected running and batch of one shape, got {tuple(running.shape)} and {tuple(batch.shape)}"
        )
    expect_number(momentum, name="momentum", high=1)
    return (1 - momentum) * running + momentum * batch


def clinic_biased_var(running_var: torch.Tensor, x: torch.Tensor, momentum: float) -> None:
    """Move a running variance a step towards a batch's variance, in place.

    Right means: the variance that enters is the unbiased one, Σ(x − mean)² / (n − 1), where n counts all values of a
    channel, its positions included.

    Args:
        running_var: (C,), floating point.
        x: (N, C, *spatial), n ≥ 2.
        momentum: weight of the new value, 0 to 1.

    Raises:
        ValueError: n < 2; running_var not of shape (C,); x not floating or not of rank 2 to 5; momentum out of range.

    Example:
        >>> var = torch.ones(1)
        >>> clinic_biased_var(var, torch.tensor([[2.0], [6.0]]), momentum=0.5)
        >>> var
        tensor([4.5000])
    """
    expect_tensor(x)
    expect_channelwise(running_var, x, name="running_var")
    expect_number(momentum, name="momentum", high=1)
    if x[:, :1].numel() < 2:
        raise ValueError(f"expected more than 1 value per channel, got an input of shape {tuple(x.shape)}")
    axes = (0, *range(2, x.dim()))
    with torch.no_grad():
        running_var.mul_(1 - momentum).add_(momentum * x.var(axes, correction=1))


def accepts(cls: type[nn.Module]) -> bool:
    """Whether a Batch Normalization layer is right, by what it does.

    Right is what `course_lib.running_stats.BatchNorm` promises for float32 input of shape (N, C) and (N, C, H, W) on
    the CPU: output and gradients in both modes; biased variance to normalise, unbiased into `running_var`; momentum
    as the weight of the new value, None for a cumulative average; every argument; the state dict of PyTorch's layer,
    both ways; registered buffers, updated in place and without a graph; ValueError for one value per channel in
    training, any exception for another number of channels; empty batches; channels_last kept; digits kept at mean
    1e4, std 1; inputs untouched.

    Where PyTorch and this course differ, both are right: an empty or refused batch may be counted or not, and a
    constant channel may give bias up to rounding.

    Args:
        cls: takes the arguments of `nn.BatchNorm2d`.

    Returns:
        True for a right layer, however it is written; False for one that is wrong anywhere, or raises where it should
        not. Names and source play no part.

    Example:
        >>> class AnyRank(nn.BatchNorm2d):
        ...     _check_input_dim = lambda self, x: None
        >>> accepts(AnyRank), accepts(nn.BatchNorm2d)  # torch's own refuses (N, C)
        (True, False)
    """
    rng = np.random.default_rng(0)  # torch's own numbers differ between CPUs
    tables, maps = [(8, 3), (5, 3), (3, 3)], [(5, 3, 4, 3), (1, 3, 2, 3), (6, 3, 1, 1)]

    def drawn(*shape, mean=1.0, std=2.0):
        return torch.from_numpy(mean + std * rng.standard_normal(shape)).float()

    def close(got, want, rtol=1e-3, atol=1e-4):
        """Of the same shape and of float32, or equal where the truth is no float (the counter)."""
        dtype = torch.float32 if want.is_floating_point() else want.dtype
        if got.shape != want.shape or got.dtype != dtype:
            return False
        return torch.allclose(got.double(), want.double(), rtol=rtol, atol=atol)

    def same_state(layer, oracle, **tolerance):
        got, want = layer.state_dict(), oracle.state_dict()
        return got.keys() == want.keys() and all(close(got[key], want[key], **tolerance) for key in want)

    def pair(*args, fresh=False, features=3, **settings):
        """A layer and torch's in float64, which is exact at this precision, in the same state."""
        layer, oracle = cls(features, *args, **settings), nn.BatchNorm2d(features, *args, **settings)
        if not fresh:
            scramble(layer, oracle)
        return layer, oracle.double()

    def scramble(layer, oracle):
        """The same new numbers in both, by the state dict."""
        state = oracle.float().state_dict()
        for key, v in state.items():
            if key == "num_batches_tracked":
                v.add_(5)
            elif key == "running_var":
                v.copy_(torch.tensor([1e-3, 0.5, 4.0])[: len(v)])  # so small that eps shows, too
            else:
                v.copy_(drawn(*v.shape))
        layer.load_state_dict(state)
        oracle.double()

    def lifted(x):
        return x.detach().double().reshape(*x.shape[:2], *(x.shape[2:] or (1, 1)))

    def parameter(layer, name):
        at = layer.state_dict()[name].data_ptr()
        return next(p for p in layer.parameters() if p.data_ptr() == at)

    def agrees(layer, oracle, x, training=True, **tolerance):
        """One forward pass without gradients: output, state, and what must not change."""
        nn.Sequential(layer).train(training)  # the mode comes from the model around a layer
        oracle.train(training)
        before, kept = layer.state_dict(), x.clone()
        with torch.no_grad():
            y, want = layer(x), oracle(lifted(kept)).reshape(x.shape)
        after = layer.state_dict()
        return (
            close(y, want, **tolerance)
            and same_state(layer, oracle, **tolerance)
            and all(after[key].data_ptr() == before[key].data_ptr() for key in before)
            and torch.equal(x, kept)
        )

    def learns(layer, oracle, x, training=True):
        """One forward and backward pass: every gradient, and no graph left behind in a buffer."""
        nn.Sequential(layer).train(training)
        oracle.train(training)
        names = [name for name, p in oracle.named_parameters() if p.requires_grad]
        leaf, exact, dy = x.detach().requires_grad_(), lifted(x).requires_grad_(), drawn(*x.shape)
        kept = dy.clone()
        y, want = layer(leaf), oracle(exact)
        got = torch.autograd.grad(y, [leaf, *(parameter(layer, name) for name in names)], dy)
        truth = torch.autograd.grad(want, [exact, *(getattr(oracle, name) for name in names)], lifted(kept))
        return (
            close(y, want.reshape(x.shape))
            and close(got[0], truth[0].reshape(x.shape))
            and all(close(g, t) for g, t in zip(got[1:], truth[1:], strict=True))
            and same_state(layer, oracle)
            and torch.equal(dy, kept)
            and not any(buffer.requires_grad for buffer in layer.buffers())
        )

    def refused(layer, x, error=Exception):
        """An error, and running statistics as they were."""
        before = {key: v.clone() for key, v in layer.state_dict().items() if key.startswith("running")}
        try:
            layer(x)
        except error:
            return all(torch.equal(layer.state_dict()[key], v) for key, v in before.items())
        return False

    def lives(layer, oracle):
        """Training and eval in turn, on both ranks, with and without gradients."""
        tracks = oracle.running_mean is not None
        features = oracle.num_features
        shapes = [(shape[0], features, *shape[2:]) for shape in (*tables, *maps)]
        return (
            all(agrees(layer, oracle, drawn(*shape), training=False) for shape in shapes[:1] + shapes[-3:])
            and all(learns(layer, oracle, drawn(*shape)) for shape in shapes)
            and (not tracks or agrees(layer, oracle, drawn(1, features), training=False))
            and all(learns(layer, oracle, drawn(*shape), training=False) for shape in shapes[::3])
            # So small a spread that the default eps shows.
            and all(agrees(layer, oracle, drawn(*shape, mean=0.01, std=0.003)) for shape in shapes[::3])
            and all(agrees(layer, oracle, drawn(*shape), training=False) for shape in shapes[::3])
        )

    def starts_like_torch():
        for affine in (True, False):
            for tracks in (True, False):
                settings = {"affine": affine, "track_running_stats": tracks, "device": None}
                layer, oracle = pair(fresh=True, **settings)
                wide = cls(3, dtype=torch.float64, **settings).state_dict()
                if not (
                    layer.training
                    and same_state(layer, oracle)
                    and len(list(layer.parameters())) == 2 * affine
                    and all(p.requires_grad for p in layer.parameters())
                    and all(wide[key].dtype == v.dtype for key, v in oracle.state_dict().items())
                ):
                    return False
        # Two layers of one class share nothing.
        layer, other, untouched = cls(3), cls(3), nn.BatchNorm2d(3)
        layer(drawn(8, 3))
        return same_state(other, untouched) and same_state(cls(3), untouched)

    def obeys_its_arguments():
        return (
            all(lives(*pair(fresh=True, momentum=momentum)) for momentum in (0.1, None))
            and all(lives(*pair(momentum=momentum)) for momentum in (0.3, None, 0.0, 1.0))
            and lives(*pair(eps=1e-8))
            and all(lives(*pair(affine=affine, track_running_stats=False)) for affine in (True, False))
            and lives(*pair(0.5, 0.3, False, True))
            and lives(*pair(features=1))
        )

    def refuses_what_it_must():
        for affine, tracks in ((True, True), (False, True), (True, False)):
            layer = pair(affine=affine, track_running_stats=tracks)[0]
            if not all(refused(layer.train(), drawn(*shape), ValueError) for shape in ((1, 3), (1, 3, 1, 1))):
                return False
            for training in (True, False):
                layer.train(training)
                # One channel too: it would broadcast.
                if not all(refused(layer, drawn(4, c, *rest)) for c in (1, 2, 5) for rest in ((), (3, 2))):
                    return False
        return refused(cls(1), drawn(4, 3)) and refused(cls(1).eval(), drawn(4, 3, 2, 2))

    def survives_an_empty_batch():
        for training in (True, False):
            for shape in ((0, 3), (0, 3, 4, 2)):
                layer, oracle = pair()
                y = layer.train(training)(drawn(*shape))
                got, want = layer.state_dict(), oracle.state_dict()
                if y.shape != shape or y.dtype != torch.float32:
                    return False
                if not all(close(got[key], want[key]) for key in ("running_mean", "running_var")):
                    return False
        return True

    def keeps_its_state():
        layer, oracle = pair(momentum=None)
        steady = lives(layer, oracle)
        nn.BatchNorm2d(3).load_state_dict(layer.state_dict())
        # Before version 2 there was no counter; a plain dict has no version at all.
        old = {f"0.{key}": v for key, v in oracle.state_dict().items() if key != "num_batches_tracked"}
        loaded = cls(3)
        nn.Sequential(loaded).load_state_dict(old)
        steady &= all(close(v, old[f"0.{key}"]) for key, v in loaded.state_dict().items() if f"0.{key}" in old)
        scramble(layer, oracle)  # nothing computed from the former state may stay behind
        steady &= agrees(layer, oracle, drawn(4, 3), training=False)
        steady &= lives(copy.deepcopy(layer), copy.deepcopy(oracle)) and same_state(layer, oracle)
        wide = layer.double().state_dict()
        steady &= all(wide[key].dtype == v.dtype for key, v in oracle.state_dict().items())
        return steady and lives(layer.float(), oracle)

    def takes_any_layout():
        layouts = [
            drawn(4, 3, 5, 2).contiguous(memory_format=torch.channels_last),
            drawn(4, 6, 5, 4)[:, ::2, :, 1::2],
            drawn(3, 7).t(),
        ]
        layer, oracle = pair()
        for training in (True, False):
            if not all(learns(layer, oracle, x, training) and agrees(layer, oracle, x, training) for x in layouts):
                return False
            if not layer.train(training)(layouts[0]).is_contiguous(memory_format=torch.channels_last):
                return False
            oracle.load_state_dict(layer.state_dict())  # that last pass was the layer's alone
        return True

    def trains_when_frozen():
        layer, oracle = pair()
        for module in (layer, oracle):
            for p in module.parameters():
                p.requires_grad_(False)
        return all(learns(layer, oracle, drawn(*shape)) for shape in (tables[0], maps[0]))

    def stays_itself():
        layer, oracle = pair(fresh=True)
        return all(agrees(layer, oracle, drawn(*shape)) for _ in range(10) for shape in (*tables, *maps))

    def keeps_its_digits():
        layer, oracle = pair(momentum=1.0)
        shapes = [(256, 3), (8, 3, 8, 8)] * 3
        # Honest float32 layers, torch's too, are off by up to 0.02 here; the difference of two squares by more than 1.
        return all(agrees(layer, oracle, drawn(*shape, mean=1e4, std=1.0), rtol=0.05, atol=0.1) for shape in shapes)

    probes = [  # the short ones first
        starts_like_torch,
        refuses_what_it_must,
        survives_an_empty_batch,
        trains_when_frozen,
        takes_any_layout,
        keeps_its_digits,
        keeps_its_state,
        obeys_its_arguments,
        stays_itself,
    ]
    try:
        with torch.enable_grad():
            return all(probe() for probe in probes)
    except Exception:
        return False


def expect_model(model: nn.Module) -> None:
    """Check that `model` is a module.

    Raises:
        ValueError: it is not.

    Example:
        >>> expect_model(nn.Identity())
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"expected an nn.Module, got {type(model).__name__}")
