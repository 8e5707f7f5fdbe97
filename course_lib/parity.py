"""Where `course_lib`'s BatchNorm layers and torch.nn's differ: each row is measured, by the tests and by the book.

A row is a claim, a probe that returns what torch's layer and ours did on torch's default device, and the limit that
ours has to keep. `ahead` says whether torch's misses the limit on the CPU; a test holds both, so a torch that gets
better is noticed.
"""

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape

import torch
from torch import nn

from course_lib.batchnorm import BatchNorm1d, BatchNorm2d

__all__ = ["ROWS", "Row", "Table", "table"]

MEANS = (0.0, 6e4, 1e6)  # 6e4 is where sums that do not cascade are worst: every rounding goes the same way
ROWS = []


@dataclass(frozen=True)
class Row:
    """One line of the page.

    Attributes:
        name: of the probe.
        claim: what is measured, in a sentence; the probe's docstring.
        limit: the largest number, or the very answer, that counts as right.
        ahead: whether torch's layer misses the limit.
        probe: () → (torch's, ours), two numbers or two words.

    Example:
        >>> ROWS[0].holds(1e-3)
        False
    """

    name: str
    claim: str
    limit: float | str
    ahead: bool
    probe: Callable

    def holds(self, value):
        """Whether this value keeps the limit."""
        return value == self.limit if isinstance(self.limit, str) else value <= self.limit


class Table(list):
    """Rows (row, torch's value, ours); shows itself in a notebook and prints as text.

    Example:
        >>> print(Table([(ROWS[0], 0.5, 0.0)]))
        eval gradient: torch 0.5, ours 0, wanted ≤ 1e-06
    """

    def __str__(self):
        return "\n".join(
            f"{row.name}: torch {_shown(torchs)}, ours {_shown(ours)}, wanted {_limit(row)}"
            for row, torchs, ours in self
        )

    def _repr_html_(self):
        head = "".join(f"<th>{name}</th>" for name in ("what is measured", "torch.nn", "course_lib", "wanted"))
        lines = [
            f"<tr><td>{escape(row.claim)}</td><td>{_shown(torchs)}</td><td>{_shown(ours)}</td><td>{_limit(row)}</td></tr>"
            for row, torchs, ours in self
        ]
        return f'<table class="table"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'


def table(rows: Iterable[Row]) -> Table:
    """Measure these rows now.

    Args:
        rows: of `ROWS`.

    Returns:
        A `Table` of (row, torch's value, ours).

    Example:
        >>> [(row, torchs, ours)] = table(ROWS[:1])
        >>> row.holds(torchs), row.holds(ours)
        (False, True)
    """
    return Table((row, *row.probe()) for row in rows)


def _shown(value):
    return value if isinstance(value, str) else f"{value:.2g}"


def _limit(row):
    return row.limit if isinstance(row.limit, str) else f"≤ {row.limit:g}"


def _row(limit, *, ahead):
    def add(probe):
        claim = " ".join(probe.__doc__.split())
        ROWS.append(Row(probe.__name__.strip("_").replace("_", " "), claim, limit, ahead, probe))
        return probe

    return add


def _both(measure, torchs=nn.BatchNorm2d, ours=BatchNorm2d):
    return measure(torchs), measure(ours)


def _data(*shape, mean=0.0, std=1.0, seed=0):
    # The same values for every device.
    drawn = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
    return (std * drawn + mean).to(torch.get_default_device())


@contextlib.contextmanager
def _quietly():
    """torch's compilers say on stderr what the exception says too, and its forward-mode part is deprecated inside."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logging.disable(before)


# --- gradients --------------------------------------------------------------------------------------------------------


@_row(1e-6, ahead=True)
def _eval_gradient():
    """Relative error of an evaluation's gradient, when a training step comes between its forward and backward pass."""

    def measure(layer):
        layer, x = layer(3), _data(8, 3, 4, 4).requires_grad_()
        y = layer.eval()(x)
        layer.train()(_data(8, 3, 4, 4, mean=5, std=10, seed=1))
        [dx] = torch.autograd.grad(y.sum(), x)
        return (dx * (1 + layer.eps) ** 0.5 - 1).abs().max().item()  # at the time, running_var was 1

    return _both(measure)


@_row("yes", ahead=False)
def _derivatives_of_derivatives():
    """Gradients, their gradients and forward-mode derivatives equal finite differences, in training and evaluation."""

    def measure(layer):
        layer = layer(1, dtype=torch.float64, momentum=0.0)
        x = _data(3, 1, 2, 1).double().requires_grad_()
        right = True
        for training in (True, False):
            inputs = (x, *layer.train(training).parameters())

            def f(x, weight, bias):
                return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

            with _quietly():
                right &= torch.autograd.gradcheck(f, inputs, check_forward_ad=True, raise_exception=False)
                right &= torch.autograd.gradgradcheck(f, inputs, raise_exception=False)
        return "yes" if right else "no"

    return _both(measure)


# --- digits -----------------------------------------------------------------------------------------------------------


def _worst_output(arranged, shape, torchs=nn.BatchNorm2d, ours=BatchNorm2d):
    """Worst output error over all means, against the float64 closed form on the same rounded input."""

    def measure(layer):
        worst = 0.0
        for mean in MEANS:
            x = arranged(_data(*shape, mean=mean))
            centred = x.double()
            axes = (0, *range(2, x.ndim))
            centred -= centred.mean(axes, keepdim=True)
            want = centred / (centred.square().mean(axes, keepdim=True) + 1e-5).sqrt()
            with torch.no_grad():
                worst = max(worst, (layer(shape[1])(x) - want).abs().max().item())
        return worst

    return _both(measure, torchs, ours)


@_row(1e-5, ahead=True)
def _planes_with_a_large_mean():
    """Largest output error in training, 2 million values a channel of std 1 and means from 0 to 1e6, contiguous."""
    return _worst_output(torch.Tensor.contiguous, (2, 2, 1000, 1000))


@_row(1e-5, ahead=True)
def _channels_last_with_a_large_mean():
    """The same in channels_last."""
    return _worst_output(lambda x: x.contiguous(memory_format=torch.channels_last), (2, 2, 1000, 1000))


@_row(1e-5, ahead=True)
def _strides_with_a_large_mean():
    """The same in a transposed, non-contiguous input."""
    return _worst_output(lambda x: x.transpose(2, 3), (2, 2, 1000, 1000))


@_row(1e-5, ahead=True)
def _rows_with_a_large_mean():
    """The same for an input (N, C), N of 2 million."""
    return _worst_output(torch.Tensor.contiguous, (2_000_000, 2), nn.BatchNorm1d, BatchNorm1d)


@_row(1e-5, ahead=True)
def _running_variance():
    """Relative error of running_var after one batch (N, C) of mean 1e5 and std 1."""

    def measure(layer):
        layer, x = layer(2, momentum=1.0), _data(100_000, 2, mean=1e5)
        layer(x)
        want = x.double().var(0)
        return ((layer.running_var - want) / want).abs().max().item()

    return _both(measure, nn.BatchNorm1d, BatchNorm1d)


@_row(0.0, ahead=True)
def _constant_channel():
    """Distance from the bias of what a constant channel becomes: 100 channels, each of its own value around 1000."""

    def measure(layer):
        layer, x = layer(100), _data(1, 100, 1, 1, mean=1000).expand(2, 100, 10, 10)
        nn.init.constant_(layer.bias, 0.7)
        return (layer(x) - layer.bias.view(1, 100, 1, 1)).abs().max().item()

    return _both(measure)


@_row(0.0, ahead=True)
def _threads():
    """Results that change with the number of threads (1 to 4): outputs, gradients, buffers; 4 shapes in 2 layouts."""

    def measure(layer):
        changed, threads = 0, torch.get_num_threads()
        try:
            for x in (_data(8, 70, 17, 19), _data(3000, 130, 1, 1), _data(2, 1, 300, 300), _data(90_000, 1, 1, 1)):
                for last in (False, True):
                    first = None
                    for number in (1, 2, 3, 4):
                        torch.set_num_threads(number)
                        results = _step(layer(x.shape[1]), x, last)
                        first = first or results
                        changed += sum(not torch.equal(one, other) for one, other in zip(first, results, strict=True))
        finally:
            torch.set_num_threads(threads)
        return changed

    return _both(measure)


def _step(layer, x, last):
    x = (x.contiguous(memory_format=torch.channels_last) if last else x).detach().requires_grad_()
    y = layer(x)
    gradients = torch.autograd.grad((y * y.detach().cos()).sum(), [x, layer.weight, layer.bias])
    return [y.detach(), *gradients, *layer.buffers()]


# --- counting ---------------------------------------------------------------------------------------------------------


@_row(0, ahead=True)
def _refused_batches():
    """num_batches_tracked after a batch that was refused, one value a channel."""

    def measure(layer):
        layer = layer(3)
        with contextlib.suppress(ValueError):
            layer(torch.zeros(1, 3, 1, 1))
        return int(layer.num_batches_tracked)

    return _both(measure)


@_row(0, ahead=True)
def _empty_batches():
    """num_batches_tracked after a batch without samples."""

    def measure(layer):
        layer = layer(3)
        layer(torch.zeros(0, 3, 2, 2))
        return int(layer.num_batches_tracked)

    return _both(measure)


# --- compilers --------------------------------------------------------------------------------------------------------


def _works(attempt):
    """Whether a layer with momentum=None goes through, and its counter still counts."""

    def measure(layer):
        layer, x = layer(3, momentum=None), _data(4, 3, 2, 2)
        want = copy.deepcopy(layer)
        want(x)
        with _quietly():
            try:
                state = attempt(layer, x)
            except Exception:
                return "error"
        close = torch.allclose(state["running_mean"], want.running_mean, atol=1e-6)
        return "yes" if close and state["num_batches_tracked"] == 1 else "no"

    return _both(measure)


@_row("yes", ahead=True)
def _export_of_a_cumulative_average():
    """A layer with momentum=None in training goes through torch.export."""

    def attempt(layer, x):
        program = torch.export.export(layer, (x,)).module()
        program(x)
        return program.state_dict()

    return _works(attempt)


@_row("yes", ahead=True)
def _compilation_of_a_cumulative_average():
    """The same layer compiles into one graph: torch.compile(fullgraph=True)."""

    def attempt(layer, x):
        torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
        return layer.state_dict()

    return _works(attempt)


# --- what is the same -------------------------------------------------------------------------------------------------


@_row("yes", ahead=False)
def _evaluation():
    """In evaluation the outputs are torch.nn's, bit for bit."""
    torchs, x = nn.BatchNorm2d(70), _data(8, 70, 17, 19)
    torchs(x)
    ours = BatchNorm2d(70)
    ours.load_state_dict(torchs.state_dict())
    return "yes", "yes" if torch.equal(ours.eval()(x), torchs.eval()(x)) else "no"
