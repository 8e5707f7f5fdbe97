"""Where `course_lib`'s BatchNorm layers and torch.nn's differ: each row is measured, by the tests and by the book.

A row is a claim, a probe that returns what torch's layer and ours did on torch's default device, and the limit that
ours has to keep. `ahead` says whether torch's misses the limit on the CPU; a test holds both, so a torch that gets
better is noticed.
"""

import contextlib
import copy
import inspect
import io
import logging
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape

import torch
from torch import nn

from course_lib.batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d

__all__ = ["ROWS", "Row", "Table", "table"]

MEANS = (0.0, 6e4, 1e6)  # 6e4 is where sums that do not cascade are worst: every rounding goes the same way
TORCHS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
OURS = (BatchNorm1d, BatchNorm2d, BatchNorm3d)
#: All rows, in the order of the page.
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


def _yes(answer):
    return "yes" if answer else "no"


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


@_row(1e-5, ahead=True)
def _gradient_of_swapped_axes():
    """Largest error of a training gradient, of one sample (1, 2, 1, 8) that is a transpose of (8, 2, 1, 1)."""

    def measure(layer):
        x, dy = _data(8, 2, 1, 1).transpose(0, 3), _data(1, 2, 1, 8, seed=1)

        def gradient(x, layer):
            leaf = x.detach().requires_grad_()
            return torch.autograd.grad(layer(leaf), leaf, dy.to(x.dtype))[0]

        want = gradient(x.double().contiguous(), nn.BatchNorm2d(2, dtype=torch.float64))
        return (gradient(x, layer(2)) - want).abs().max().item()

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
        return _yes(right)

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


@_row("0 of 168", ahead=True)
def _threads():
    """Results with 2, 3 or 4 threads that are not those with 1: outputs, gradients, buffers; 4 shapes, 2 layouts."""

    def measure(layer):
        changed, compared, threads = 0, 0, torch.get_num_threads()
        try:
            for x in (_data(8, 70, 17, 19), _data(3000, 130, 1, 1), _data(2, 1, 300, 300), _data(90_000, 1, 1, 1)):
                for last in (False, True):
                    alone, *shared = (_step(layer(x.shape[1]), x, last, number) for number in (1, 2, 3, 4))
                    for results in shared:
                        changed += sum(not torch.equal(one, other) for one, other in zip(alone, results, strict=True))
                        compared += len(results)
        finally:
            torch.set_num_threads(threads)
        return f"{changed} of {compared}"

    return _both(measure)


def _step(layer, x, last, threads):
    torch.set_num_threads(threads)
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
        return _yes(close and state["num_batches_tracked"] == 1)

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
def _arguments():
    """The three classes take torch's arguments: names, order, defaults."""

    def measure(layers):
        pairs = zip(layers, TORCHS, strict=True)
        return _yes(all(inspect.signature(layer) == inspect.signature(torchs) for layer, torchs in pairs))

    return _both(measure, TORCHS, OURS)


@_row("yes", ahead=False)
def _classes():
    """isinstance finds them by torch's classes, and convert_sync_batchnorm of torch.nn exchanges them."""

    def measure(layers):
        found = all(isinstance(layer(3), torchs) for layer, torchs in zip(layers, TORCHS, strict=True))
        convert = nn.SyncBatchNorm.convert_sync_batchnorm
        return _yes(found and all(isinstance(convert(layer(3)), nn.SyncBatchNorm) for layer in layers))

    return _both(measure, TORCHS, OURS)


@_row("yes", ahead=False)
def _state_dicts():
    """A state_dict goes to torch's layer and back, with all its keys and bits, whatever parts are switched off."""

    def measure(layers):
        same = True
        for layer, torchs in zip(layers, TORCHS, strict=True):
            for off in ({}, {"affine": False}, {"bias": False}, {"track_running_stats": False}):
                one, other, again = layer(3, **off), torchs(3, **off), layer(3, **off)
                for v in one.state_dict().values():
                    v.copy_(_data(*v.shape, mean=5, seed=v.ndim))
                other.load_state_dict(one.state_dict())
                again.load_state_dict(other.state_dict())
                states = [list(it.state_dict().items()) for it in (one, other, again)]
                same &= all(
                    [name for name, _ in state] == [name for name, _ in states[0]]
                    and all(torch.equal(v, want) for (_, v), (_, want) in zip(state, states[0], strict=True))
                    for state in states[1:]
                )
        return _yes(same)

    return _both(measure, TORCHS, OURS)


#: Arguments, and shape and dtype of a batch, that torch's BatchNorm1d refuses in training.
REFUSED = (
    ({}, (4, 5), torch.float32),  # another number of channels
    ({}, (4, 3, 2, 2), torch.float32),  # another rank
    ({}, (1, 3), torch.float32),  # one value per channel
    ({"eps": 0.0}, (4, 3), torch.float32),
    ({"momentum": "0.1"}, (4, 3), torch.float32),
    ({}, (4, 3), torch.float64),
    ({}, (4, 3), torch.int64),
    ({"device": "meta"}, (4, 3), torch.float32),
)


@_row(f"{len(REFUSED)} of {len(REFUSED)}", ahead=False)
def _errors():
    """Errors of torch's kind for a wrong number of channels or axes or values, eps, momentum, dtype (two) or device."""

    def kinds(layer, shape, dtype):
        try:
            layer(torch.zeros(shape, dtype=dtype))
        except Exception as error:
            return {kind for kind in (ValueError, TypeError, RuntimeError) if isinstance(error, kind)}
        return set()

    def measure(layer):
        of_torch = [kinds(nn.BatchNorm1d(3, **arguments), *batch) for arguments, *batch in REFUSED]
        here = [kinds(layer(3, **arguments), *batch) for arguments, *batch in REFUSED]
        return f"{sum(bool(want) and want <= got for want, got in zip(of_torch, here, strict=True))} of {len(REFUSED)}"

    return _both(measure, nn.BatchNorm1d, BatchNorm1d)


@_row("yes", ahead=False)
def _evaluation():
    """In evaluation the outputs are torch.nn's, bit for bit."""
    torchs, x = nn.BatchNorm2d(70), _data(8, 70, 17, 19)
    torchs(x)
    ours = BatchNorm2d(70)
    ours.load_state_dict(torchs.state_dict())
    return "yes", _yes(torch.equal(ours.eval()(x), torchs.eval()(x)))


@_row(0.01, ahead=False)
def _evaluation_with_a_large_mean():
    """Largest output error in evaluation, running_mean 1e5 and running_var 2: float32 has steps of 0.008 there."""

    def measure(layer):
        layer, x = layer(4), _data(8, 4, 50, 50, mean=1e5)
        layer.running_mean.fill_(1e5), layer.running_var.fill_(2.0)
        want = (x.double() - 1e5) / (2 + layer.eps) ** 0.5
        with torch.no_grad():
            return (layer.eval()(x) - want).abs().max().item()

    return _both(measure)
