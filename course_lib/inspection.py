"""Looking into a model: what every Batch Normalization layer of it is up to."""

from collections.abc import Iterable
from dataclasses import dataclass, fields

import torch
from torch import nn

from course_lib.modes import evaluating, expect_model
from course_lib.running_stats import is_batchnorm

__all__ = ["BatchNormRow", "BatchNormTable", "inspect_batchnorm"]


@dataclass(frozen=True)
class BatchNormRow:
    """What `inspect_batchnorm` found out about one layer.

    Attributes:
        name: as in `named_modules()`.
        kind: the layer's class.
        channels: C; 0 for a lazy layer that has seen no data.
        mode: "train" or "eval".
        tracked: whether it keeps running statistics.
        frozen: "mode" where eval mode holds the running statistics, "grad" where weight and bias need no gradient,
            "mode, grad" for both, "" for neither.
        updates: what the next training step changes: "buffers" in the forward pass, "weight" and "bias" by the
            optimiser; "" for nothing.
        counter: batches that entered the running statistics; None without a counter, and on `meta`, as drift and dead.
        drift: |running_mean − mean of the data| / standard deviation of the data, of the channel where it is largest;
            None without data or running statistics, infinite for a constant channel that is not where it was, NaN where
            a channel is.
        dead: channels whose output hardly moves, with a standard deviation below 0.001 in eval mode: weight is nearly
            0, or the input does not vary. Judged by the data where given, else by running_var; None where neither is.
    """

    name: str
    kind: str
    channels: int
    mode: str
    tracked: bool
    frozen: str
    updates: str
    counter: int | None
    drift: float | None
    dead: tuple[int, ...] | None


class BatchNormTable(list):
    """A list of rows, each a `BatchNormRow`, that prints as a table.

    Example:
        >>> BatchNormTable()
        no Batch Normalization layer
    """

    def __repr__(self):
        if not self:
            return "no Batch Normalization layer"
        names = [field.name for field in fields(BatchNormRow)]
        lines = [names, *([_cell(getattr(row, name)) for name in names] for row in self)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
        cells = [[text.ljust(width) for text, width in zip(line, widths, strict=True)] for line in lines]
        return "\n".join("  ".join(line).rstrip() for line in cells)


def inspect_batchnorm(model: nn.Module, batches: Iterable | None = None) -> BatchNormTable:
    """What every Batch Normalization layer of a model is up to: mode, freezing, updates, drift, dead channels.

    With data, the model runs over them in eval mode, as it would predict, and each layer compares its running mean to
    the inputs it gets. The model is left as it was; a lazy layer becomes a real one, though, by its first data.

    Args:
        model: any module; a layer that is shared appears once, under its first name.
        batches: iterable of inputs of the model, on its device; a tuple holds several arguments. None for no data.

    Returns:
        A `BatchNormTable`, one `BatchNormRow` per layer, in the order of `named_modules()`.

    Raises:
        ValueError: model is no module; one tensor in place of an iterable.

    Example:
        >>> inspect_batchnorm(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3).eval()), [torch.zeros(2, 4)])[0].updates
        'weight, bias'
    """
    expect_model(model)
    if isinstance(batches, torch.Tensor):
        raise ValueError(f"expected an iterable of batches, got one tensor {tuple(batches.shape)}: put it into a list")
    layers = {name: module for name, module in model.named_modules() if is_batchnorm(module)}
    inputs = {name: _Inputs() for name in layers}
    if batches is not None:
        hooks = [layer.register_forward_pre_hook(inputs[name], with_kwargs=True) for name, layer in layers.items()]
        try:
            with evaluating(model), torch.no_grad():
                for batch in batches:
                    model(*batch) if isinstance(batch, tuple) else model(batch)
        finally:
            for hook in hooks:
                hook.remove()
    return BatchNormTable(_row(name, layer, inputs[name]) for name, layer in layers.items())


class _Inputs:
    """Moments of what a layer gets, around its running mean, which is what they are compared to."""

    def __init__(self):
        self.n, self.sum, self.squares = 0, 0.0, 0.0

    def __call__(self, layer, args, kwargs):
        x = args[0] if args else next(iter(kwargs.values()))
        rows = x.transpose(0, 1).flatten(1).double()
        if layer.running_mean is not None and not isinstance(layer.running_mean, _Lazy):
            rows = rows - layer.running_mean.double()[:, None]
        self.n += rows.shape[1]
        self.sum = self.sum + rows.sum(1)
        self.squares = self.squares + rows.square().sum(1)

    def shift_and_var(self):
        """(mean of the data − running mean, biased variance of the data), each of shape (C,)."""
        shift, square = self.sum / self.n, self.squares / self.n
        var = square - shift.square()
        # What rounding leaves of a constant channel, above or below zero, is no spread.
        return shift, torch.where(var < 1e-14 * square, 0.0, var)


def _row(name, layer, inputs):
    parameters = {"weight": layer.weight, "bias": layer.bias}
    learning = [part for part, v in parameters.items() if v is not None and v.requires_grad]
    tracked = layer.running_mean is not None and layer.track_running_stats
    frozen = {"mode": not layer.training, "grad": layer.weight is not None and not learning}
    counter = layer.num_batches_tracked
    drift, dead = _health(layer, inputs)
    return BatchNormRow(
        name=name,
        kind=type(layer).__name__,
        channels=layer.num_features,
        mode="train" if layer.training else "eval",
        tracked=tracked,
        frozen=", ".join(how for how, is_so in frozen.items() if is_so),
        updates=", ".join(["buffers"] * (tracked and layer.training and layer.momentum != 0) + learning),
        counter=None if counter is None or counter.is_meta else int(counter),
        drift=drift,
        dead=dead,
    )


def _health(layer, inputs):
    """(drift, dead) of a layer, None where nothing is known."""
    weight, running_mean = layer.weight, layer.running_mean
    if any(isinstance(v, _Lazy) or (v is not None and v.is_meta) for v in (weight, running_mean)):
        return None, None
    if running_mean is None and not inputs.n:
        return None, None
    drift = None
    if inputs.n:
        shift, var = inputs.shift_and_var()
        if running_mean is not None:
            still = (var == 0) & (shift == 0)
            drift = torch.where(still, 0.0, shift.abs() / var.sqrt()).max().item()
    else:
        var = layer.running_var.double()
    # What varies is the data, what divides in eval is the running variance.
    by = var if running_mean is None else layer.running_var.double()
    spread = (var / (by + layer.eps)).sqrt()
    if weight is not None:
        spread = spread * weight.detach().double().abs()
    return drift, tuple((spread < _DEAD).nonzero().flatten().tolist())


_Lazy = nn.parameter.UninitializedTensorMixin
_DEAD = 1e-3  # a healthy channel leaves with a standard deviation of about |weight|


def _cell(value):
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, tuple):
        return ", ".join(map(str, value[:6])) + ", …" * (len(value) > 6) if value else "none"
    return str(value) or "–"
