"""Models for `fusion_report` and `fuse`: chains of parts, each with a reason of its own to be fused or left alone.

A model's parts come in a drawn order, under drawn names, and every layer has drawn numbers. Models are compared through
what they compute, never through how their layers are called: a graph and a module with gaps are both right.
"""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from course_lib.checks.fusion_inputs import both_signs

__all__ = [
    "flat_model",
    "gated_model",
    "illegal_model",
    "images",
    "legal_model",
    "returned_model",
    "rows_model",
    "sequence_model",
    "shared_model",
    "small_model",
]

#: Height and width of the images.
_SIDE = 3

_WORDS = ("alder", "birch", "cedar", "elm", "fir", "hazel", "larch", "maple", "oak", "pine", "rowan", "yew")


def _bent(x):
    """An activation that cuts nothing off and is nowhere a straight line: a difference before it is one after it."""
    return torch.asinh(x)


class Part(nn.Module):
    """Layers by name, registered in the opposite order, and a forward pass over them."""

    moves = False  # its BatchNorm is in training mode

    def __init__(self, forward, **layers):
        super().__init__()
        for name in reversed(layers):
            self.add_module(name, layers[name])
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


class Chain(nn.Module):
    """Parts that are called in one order and were registered in another."""

    def __init__(self, parts, registered):
        super().__init__()
        for name in registered:
            self.add_module(name, parts[name])
        self.order = list(parts)

    def forward(self, x):
        for name in self.order:
            x = getattr(self, name)(x)
        return x


class Gated(Chain):
    """A chain of two arguments."""

    def forward(self, x, gate):
        return super().forward(x * torch.sigmoid(gate))


def _conv(c, **options):
    return nn.Conv2d(c, c, 3, padding=1, **options)


def _plain(c):
    return Part(lambda m, x: _bent(m.norm(m.conv(x))), conv=_conv(c), norm=nn.BatchNorm2d(c))


def _residual(c):
    # The BatchNorm's output is used twice; the convolution's is not.
    def forward(m, x):
        y = m.norm(m.conv(x))
        return _bent(y + m.again(_bent(y)))

    return Part(forward, conv=_conv(c), norm=nn.BatchNorm2d(c), again=_conv(c))


def _upward(c):
    conv = nn.ConvTranspose2d(c, c, 3, padding=1, groups=c, bias=False)
    return Part(lambda m, x: _bent(m.norm(m.conv(x))), conv=conv, norm=nn.BatchNorm2d(c, affine=False))


def _nested(c):
    body = nn.Sequential(_conv(c, padding_mode="circular"), nn.BatchNorm2d(c), nn.LeakyReLU(0.5))
    return Part(lambda m, x: m.body(x), body=body)


def _line(c):
    def forward(m, x):
        # From BatchNorm straight into the next convolution: it comes after one all the same.
        return _bent(m.second(m.back(m.first(m.conv(x.flatten(2)))))).unflatten(2, (_SIDE, _SIDE))

    convs = {"conv": nn.Conv1d(c, c, 3, padding=1), "back": nn.ConvTranspose1d(c, c, 1)}
    return Part(forward, **convs, first=nn.BatchNorm1d(c), second=nn.BatchNorm1d(c))


def _volume(c):
    def forward(m, x):
        return _bent(m.second(m.back(_bent(m.first(m.conv(x.unsqueeze(2))))))).squeeze(2)

    convs = {"conv": nn.Conv3d(c, c, (1, 2, 1)), "back": nn.ConvTranspose3d(c, c, (1, 2, 1))}
    return Part(forward, **convs, first=nn.BatchNorm3d(c), second=nn.BatchNorm3d(c))


def _table(c, features, bias=False):
    fc = nn.Linear(features, c + 1, bias)
    return Part(lambda m, x: m.norm(m.fc(x.flatten(1))), fc=fc, norm=nn.BatchNorm1d(c + 1))


def _sequence(c, positions):
    # As many features as channels: nothing raises if the two axes are taken for each other.
    return Part(lambda m, x: m.norm(m.fc(x.flatten(2))), fc=nn.Linear(positions, c), norm=nn.BatchNorm1d(c))


def _rows(c):
    # The rows of images; once more, as many features as channels.
    return Part(lambda m, x: m.norm(m.fc(x)), fc=nn.Linear(_SIDE, c), norm=nn.BatchNorm2d(c))


def _first(c):
    return Part(lambda m, x: _bent(m.norm(x)), norm=nn.BatchNorm2d(c))


def _across(c):
    # The activation as a function, as a method, and as a module.
    def forward(m, x):
        x = m.first(_bent(m.one(x)))
        x = m.second(m.two(x).asinh())
        return m.third(m.act(m.three(x)))

    layers = {"one": _conv(c), "two": _conv(c), "three": _conv(c), "act": nn.LeakyReLU(0.5)}
    return Part(forward, **layers, first=nn.BatchNorm2d(c), second=nn.BatchNorm2d(c), third=nn.BatchNorm2d(c))


def _before(c):
    return Part(lambda m, x: _bent(m.conv(m.norm(_bent(x)))), norm=nn.BatchNorm2d(c), conv=_conv(c))


def _moving(c):
    part = _plain(c)
    part.moves = True
    return part


def _untracked(c):
    norm = nn.BatchNorm2d(c, track_running_stats=False)
    return Part(lambda m, x: _bent(m.norm(m.conv(x))), conv=_conv(c), norm=norm)


def _uncalled(c):
    return Part(lambda m, x: _bent(m.conv(x)), conv=_conv(c), norm=nn.BatchNorm2d(c))


def _one_conv_twice(c):
    def forward(m, x):
        return _bent(m.second(m.conv(_bent(m.first(m.conv(x))))))

    return Part(forward, conv=_conv(c), first=nn.BatchNorm2d(c), second=nn.BatchNorm2d(c))


def _one_norm_twice(c):
    def forward(m, x):
        return _bent(m.norm(m.second(_bent(m.norm(m.first(x))))))

    return Part(forward, first=_conv(c), second=_conv(c), norm=nn.BatchNorm2d(c))


def _pair_thrice(c):
    # Not twice: the number of calls left tells it from a BatchNorm that two layers share.
    def forward(m, x):
        for _ in range(3):
            x = _bent(m.norm(m.conv(x)))
        return x

    return Part(forward, conv=_conv(c), norm=nn.BatchNorm2d(c))


def _elsewhere(c):
    def forward(m, x):
        y = m.conv(x)
        return _bent(m.norm(y) + y)

    return Part(forward, conv=_conv(c), norm=nn.BatchNorm2d(c))


def _two_norms(c):
    def forward(m, x):
        y = m.conv(x)
        return _bent(m.first(y) + _bent(m.second(y)))

    return Part(forward, conv=_conv(c), first=nn.BatchNorm2d(c), second=nn.BatchNorm2d(c))


def _other_norm(c):
    norm = nn.InstanceNorm2d(c, affine=True, track_running_stats=True)
    return Part(lambda m, x: _bent(m.norm(m.conv(x))), conv=_conv(c), norm=norm)


def _shuffled(case, items):
    rest, order = list(items), []
    while rest:
        order.append(rest.pop(case.integer(0, len(rest) - 1)))
    return order


def _chain(case, parts, *, first=(), last=(), kind=Chain):
    """A model of the parts in a drawn order, under drawn names, with drawn numbers; in eval mode but for what moves."""
    parts = [*first, *_shuffled(case, parts), *last]
    words = _shuffled(case, _WORDS)[: len(parts)]
    model = kind(dict(zip(words, parts, strict=True)), words[::-1])
    case.fill(model).eval()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eps = float(case.uniform(0.2, 0.9))
        if isinstance(module, Part) and module.moves:
            module.norm.train()
    return model


def images(case, c, n=2, name="example"):
    """(N, C, height, width) for a model of so many channels."""
    return case.tensor((n, c, _SIDE, _SIDE), name=name)


def legal_model(case):
    """(model, channels): every BatchNorm can be folded away."""
    c = case.integer(2, 3)
    parts = [_plain(c), _residual(c), _upward(c), _nested(c), _line(c), _volume(c)]
    return _chain(case, parts, last=[_table(c, c * _SIDE**2)]), c


def small_model(case):
    """(model, channels): the same, with a convolution and a linear layer only, both with a bias."""
    c = case.integer(2, 3)
    return _chain(case, [_plain(c)], last=[_table(c, c * _SIDE**2, bias=True)]), c


def flat_model(case):
    """(model, channels): a pair without a parent of its own, and nothing of it is trained."""
    c = case.integer(2, 3)
    model = case.fill(nn.Sequential(_conv(c), nn.BatchNorm2d(c, eps=0.3))).eval().requires_grad_(False)
    both_signs(model[1])
    return model, c


def illegal_model(case):
    """(model, channels): several reasons against folding, and one pair that is fine."""
    c = case.integer(2, 3)
    parts = [_plain(c), _across(c), _before(c), _moving(c), _untracked(c), _uncalled(c), _other_norm(c)]
    return _chain(case, parts, first=[_first(c)]), c


def sequence_model(case):
    """(model, channels): a linear layer on (N, channels, features)."""
    c = case.integer(2, 3)
    return _chain(case, [_plain(c)], last=[_sequence(c, _SIDE**2)]), c


def rows_model(case):
    """(model, channels): a linear layer on (N, channels, rows, features)."""
    c = case.integer(2, 3)
    return _chain(case, [_plain(c)], last=[_rows(c)]), c


def shared_model(case):
    """(model, channels): layers that are called again, an output that is used twice, and one pair that is fine."""
    c = case.integer(2, 3)
    parts = [_plain(c), _one_conv_twice(c), _one_norm_twice(c), _pair_thrice(c), _elsewhere(c), _two_norms(c)]
    return _chain(case, parts), c


def returned_model(case):
    """(model, channels): the convolution's output is what the model returns, and nobody takes the BatchNorm's.

    The model returns a single tensor, as all others here do.
    """

    def forward(m, x):
        y = m.conv(x)
        m.norm(y)
        return y

    c = case.integer(2, 3)
    model = case.fill(Part(forward, conv=_conv(c), norm=nn.BatchNorm2d(c, eps=0.3))).eval()
    both_signs(model.norm)
    return model, c


def gated_model(case, *, dropout=False):
    """(model, channels): two arguments; one BatchNorm in training mode, whose statistics must not move.

    Everything else but the other one is in training mode as well: only a BatchNorm's own mode counts. With dropout,
    every run draws random numbers.
    """
    c = case.integer(2, 3)
    model = _chain(case, [_plain(c), _moving(c), *[nn.Dropout(0.2)] * dropout], kind=Gated)
    for module in model.modules():
        module.training = module.training or not isinstance(module, _BatchNorm)
    return model, c
