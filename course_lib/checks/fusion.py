"""Problem set 6: what is asked of the five pieces of `course_lib.fusion`."""

from collections import Counter

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from course_lib.checks.devices import attempt
from course_lib.checks.piece import Piece, WrongReturn, named, raised

# Every eps is drawn and large, every BatchNorm keeps its own, and no two sizes of a layer are equal unless the scenario
# is about that: a factor on the wrong axis cannot come out with the right shape by chance. Models are compared through
# what they compute, never through how their layers are called: a graph and a module with gaps are both right.

#: What the contract of `fuse` allows; the outputs of these models are about 1 to 10.
PROBE = 1e-5


def _norm(case, channels, rank, *, dtype=None, **options):
    """A BatchNorm in eval mode with drawn statistics, for `rank` spatial axes."""
    kind = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[rank]
    bn = kind(channels, eps=case.number("eps", 0.2, 0.9), **options)
    return case.fill(bn, dtype=dtype).eval()


def _watch(**modules):
    """What the modules look like now; called later, the result names what has changed."""
    before = {name: _state(module) for name, module in modules.items()}

    def changed():
        now = {name: _state(module) for name, module in modules.items()}
        return [key for name in modules for key in _differing(name, before[name], now[name])]

    return changed


def _state(module):
    tensors = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    modes = {f"mode of {name or 'it'}": part.training for name, part in module.named_modules()}
    return {**tensors, **modes, "its layers": repr(module)}


def _differing(title, before, now):
    for key in [*before, *(key for key in now if key not in before)]:
        then, there = before.get(key), now.get(key)
        if isinstance(then, torch.Tensor) and isinstance(there, torch.Tensor):
            same = then.shape == there.shape and then.dtype == there.dtype and torch.equal(then, there)
        else:
            same = type(then) is type(there) and then == there
        if not same:
            yield f"{title}: {key}"


def _tensors(result):
    for name, part in result.items():
        if not isinstance(part, torch.Tensor):
            raise WrongReturn(f"expected {name} to be a tensor, got {type(part).__name__}")
    return {name: part.detach() for name, part in result.items()}


def _module(result):
    if not isinstance(result, nn.Module):
        raise WrongReturn(f"expected a module to be returned, got {type(result).__name__}")
    return result


def _run(module, *args):
    with torch.no_grad():
        return module(*args)


# --- fold_batchnorm ---------------------------------------------------------------------------------------------

fold = Piece(
    "fusion.fold_batchnorm", call="fold_batchnorm(weight, bias, bn, transposed=False, groups=1) → (weight, bias)"
)


def _fold(impl, weight, bias, bn, **how):
    return _tensors(named(impl(weight, bias, bn, **how), "weight", "bias"))


def _sizes(case, *low):
    """Different sizes, each a little above its lower limit."""
    sizes = []
    for least in low:
        size = least + case.integer(0, 2)
        while size in sizes:
            size += 1
        sizes.append(size)
    return sizes


formula = fold.group("weight and bias of linear layers and convolutions", points=1)


@formula.scenario()
def fold_into_linear(impl, case):
    outputs, inputs = _sizes(case, 3, 3)
    weight, bias = case.tensor((outputs, inputs), name="weight"), case.tensor((outputs,), name="bias")
    return _fold(impl, weight, bias, _norm(case, outputs, 0))


@formula.scenario()
def fold_into_convolution(impl, case):
    groups = case.integer(2, 3)
    outputs = 2 * groups
    shape = case.choice([(outputs, 3, 5), (outputs, 1, 2, 3), (outputs, 2, 2, 1, 3)])
    weight, bias = case.tensor(shape, name="weight"), case.tensor((outputs,), name="bias")
    return _fold(impl, weight, bias, _norm(case, outputs, len(shape) - 2), groups=groups)


missing = fold.group("no bias, or no gamma and beta (affine=False)", points=0.5)


@missing.scenario()
def fold_without_bias(impl, case):
    outputs, inputs = _sizes(case, 3, 3)
    return _fold(impl, case.tensor((outputs, inputs, 3), name="weight"), None, _norm(case, outputs, 1))


@missing.scenario()
def fold_without_affine(impl, case):
    outputs, inputs = _sizes(case, 3, 3)
    weight, bias = case.tensor((outputs, inputs, 2), name="weight"), case.tensor((outputs,), name="bias")
    return _fold(impl, weight, bias, _norm(case, outputs, 1, affine=False))


transposed = fold.group("transposed convolutions, with and without groups", points=0.75)


@transposed.scenario()
def fold_into_transposed(impl, case):
    inputs, outputs = _sizes(case, 3, 3)
    weight, bias = case.tensor((inputs, outputs, 2, 3), name="weight"), case.tensor((outputs,), name="bias")
    return _fold(impl, weight, bias, _norm(case, outputs, 2), transposed=True)


@transposed.scenario()
def fold_into_transposed_with_groups(impl, case):
    groups = case.integer(2, 3)
    weight = case.tensor((2 * groups, case.integer(3, 4), 3), name="weight")
    outputs = weight.shape[1] * groups
    bias = case.tensor((outputs,), name="bias")
    return _fold(impl, weight, bias, _norm(case, outputs, 1), transposed=True, groups=groups)


rounded = fold.group("computed in float64, in the dtypes that came in; inputs untouched", points=0.75)


# The bias is large, and so near to the running mean that their difference is what counts: in float32 what is left after
# multiplying both by the slope is off by 1e-3 or more, of about 20.
@rounded.scenario(dtypes=("float32",), within={"weight": 1e-3, "bias": 1e-4}, rounding=True)
def fold_large_bias(impl, case):
    outputs, inputs = 8, case.integer(2, 4)
    bias = case.draw((outputs,), 1e4 * case.uniform(0.8, 1.2), 1e3)
    near = bias + case.uniform(1, 2, outputs) * np.sign(case.draw((outputs,)))
    bn = case.fill(nn.BatchNorm1d(outputs))
    with torch.no_grad():
        bn.running_mean.copy_(case.given_tensor(near, "running_mean"))
        bn.running_var.copy_(case.given_tensor(case.uniform(0.005, 0.01, outputs), "running_var"))
    weight = case.tensor((outputs, inputs), name="weight")
    result = _fold(impl, weight, case.given_tensor(bias, "bias"), bn.eval())
    return {name: part.to(case.torch_dtype) for name, part in result.items()}


@rounded.scenario(dtypes=("float16", "bfloat16"))
def fold_keeps_dtypes(impl, case):
    outputs, inputs = _sizes(case, 3, 3)
    weight, bias = case.tensor((outputs, inputs), name="weight"), case.tensor((outputs,), name="bias")
    # The usual mixture: a layer in half precision, its normalisation in float32.
    bn = _norm(case, outputs, 0, dtype="float32")
    changed = _watch(bn=bn)
    result = _fold(impl, weight, bias, bn)
    without = _fold(impl, weight, None, bn)
    return {
        "dtype of weight": str(result["weight"].dtype),
        "dtype of bias": str(result["bias"].dtype),
        "dtype of the new bias where there was none": str(without["bias"].dtype),
        "inputs changed": ", ".join(filter(None, [case.changed(), *changed()])),
    }


# --- fuse_conv_bn -----------------------------------------------------------------------------------------------

conv_bn = Piece("fusion.fuse_conv_bn", call="fuse_conv_bn(conv, bn) → module")


def _fused_output(impl, case, layer, bn, shape):
    """What the fused module computes, and that it is one layer."""
    fused = _module(impl(layer, bn)).eval()
    return {"y": _run(fused, case.tensor(shape)), "layers in the result": _leaves(fused)}


def _leaves(module):
    return sum(not list(part.children()) for part in module.modules())


ranks = conv_bn.group("1d, 2d and 3d, with and without bias, gamma and beta", points=1)


@ranks.scenario()
def conv_1d(impl, case):
    inputs, outputs = _sizes(case, 2, 3)
    conv = case.fill(nn.Conv1d(inputs, outputs, 3))
    return _fused_output(impl, case, conv, _norm(case, outputs, 1), (2, inputs, 6))


@ranks.scenario()
def conv_2d_without_bias(impl, case):
    inputs, outputs = _sizes(case, 2, 3)
    conv = case.fill(nn.Conv2d(inputs, outputs, (3, 2), bias=False))
    return _fused_output(impl, case, conv, _norm(case, outputs, 2), (2, inputs, 4, 5))


@ranks.scenario()
def conv_2d_without_affine(impl, case):
    inputs, outputs = _sizes(case, 2, 3)
    conv = case.fill(nn.Conv2d(inputs, outputs, 1))
    return _fused_output(impl, case, conv, _norm(case, outputs, 2, affine=False), (2, inputs, 3, 4))


@ranks.scenario()
def conv_3d(impl, case):
    inputs, outputs = _sizes(case, 1, 2)
    conv = case.fill(nn.Conv3d(inputs, outputs, 2))
    return _fused_output(impl, case, conv, _norm(case, outputs, 3), (2, inputs, 3, 4, 3))


geometry = conv_bn.group("stride, dilation, padding, padding mode and groups of the convolution", points=0.75)


@geometry.scenario()
def conv_stride_and_dilation(impl, case):
    inputs, outputs = _sizes(case, 2, 3)
    conv = nn.Conv2d(inputs, outputs, 3, stride=(2, 1), dilation=(1, 2), padding=(1, 2))
    return _fused_output(impl, case, case.fill(conv), _norm(case, outputs, 2), (2, inputs, 7, 6))


@geometry.scenario()
def conv_padding_mode(impl, case):
    inputs, outputs = _sizes(case, 2, 3)
    mode = case.choice(["reflect", "circular", "replicate"])
    conv = nn.Conv2d(inputs, outputs, 3, padding=case.integer(1, 2), padding_mode=mode)
    return _fused_output(impl, case, case.fill(conv), _norm(case, outputs, 2), (2, inputs, 5, 4))


@geometry.scenario()
def conv_groups(impl, case):
    # One filter for each channel, or a few channels to a group.
    groups = case.integer(2, 3)
    inputs, outputs = groups * case.integer(1, 2), groups * case.integer(2, 3)
    conv = case.fill(nn.Conv1d(inputs, outputs, 3, padding=1, groups=groups))
    return _fused_output(impl, case, conv, _norm(case, outputs, 1), (2, inputs, 5))


backwards = conv_bn.group("transposed convolutions, with groups and output padding", points=0.75)


@backwards.scenario()
def conv_transposed(impl, case):
    inputs, outputs = _sizes(case, 2, 3)
    layer = nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1, dilation=(1, 2))
    return _fused_output(impl, case, case.fill(layer), _norm(case, outputs, 2), (2, inputs, 3, 4))


@backwards.scenario()
def conv_transposed_groups(impl, case):
    groups = case.integer(2, 3)
    inputs, outputs = 2 * groups, groups * case.integer(3, 4)
    layer = case.fill(nn.ConvTranspose1d(inputs, outputs, 3, groups=groups, bias=False))
    return _fused_output(impl, case, layer, _norm(case, outputs, 1), (2, inputs, 4))


@backwards.scenario()
def conv_transposed_3d(impl, case):
    inputs, outputs = _sizes(case, 2, 3)
    layer = case.fill(nn.ConvTranspose3d(inputs, outputs, 2))
    return _fused_output(impl, case, layer, _norm(case, outputs, 3), (1, inputs, 2, 3, 2))


fresh = conv_bn.group("a new module, on the same device, in the same dtype; both layers untouched", points=0.5)


def _as_it_was(impl, case, layer, bn, shape):
    """y of the fused layer, and whether the two it came from still are what they were."""
    changed = _watch(layer=layer, bn=bn)
    fused = _module(impl(layer, bn)).eval()
    y = _run(fused, case.tensor(shape))
    with torch.no_grad():
        for parameter in fused.parameters():
            parameter.zero_()
    return {"y": y, "inputs changed": ", ".join(changed())}


def _kept(impl, case, layer, bn):
    """Dtypes of a fused layer in half precision, and where the fused one of a pair on `meta` lives."""
    fused = _module(impl(layer, bn))
    dtypes = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in fused.parameters()})
    layer, bn = layer.to("meta"), bn.to("meta")
    happened, on_meta = attempt(lambda: _module(impl(layer, bn)))
    places = [] if on_meta is None else [parameter.device.type for parameter in on_meta.parameters()]
    return {
        "dtypes": ", ".join(dtypes),
        "a pair on another device (meta)": happened,
        "where the result lives": ", ".join(sorted(set(places))),
    }


@fresh.scenario()
def conv_layers_untouched(impl, case):
    inputs, outputs = _sizes(case, 2, 3)
    conv = case.fill(nn.Conv1d(inputs, outputs, 2))
    return _as_it_was(impl, case, conv, _norm(case, outputs, 1), (2, inputs, 4))


@fresh.scenario(dtypes=("float16", "bfloat16"))
def conv_dtype_and_device(impl, case):
    inputs, outputs = _sizes(case, 2, 3)
    conv = case.fill(nn.Conv2d(inputs, outputs, 2, bias=False))
    return _kept(impl, case, conv, _norm(case, outputs, 2))


illegal = conv_bn.group("training mode, no running statistics and other channels are refused", points=0.5)


def _refusals(impl, case, layer, make, channels, shape):
    """The errors of pairs that cannot be fused, and the output of the one that can."""
    training, none, other = make(channels).train(), make(channels, track_running_stats=False), make(channels + 1)
    single = make(1)
    changed = _watch(training=training)
    return {
        "error for a BatchNorm in training mode": raised(impl, layer, training),
        "inputs changed": ", ".join(changed()),
        "error for a BatchNorm without running statistics": raised(impl, layer, none),
        "error for another number of channels": raised(impl, layer, other),
        "error for a single channel after several": raised(impl, layer, single),
        "y": _run(_module(impl(layer, training.eval())), case.tensor(shape)),
    }


@illegal.scenario()
def conv_refusals(impl, case):
    inputs, outputs = _sizes(case, 2, 3)
    conv = case.fill(nn.Conv2d(inputs, outputs, 2))
    return _refusals(impl, case, conv, lambda c, **k: _norm(case, c, 2, **k), outputs, (2, inputs, 3, 3))


# --- fuse_linear_bn ---------------------------------------------------------------------------------------------

linear_bn = Piece("fusion.fuse_linear_bn", call="fuse_linear_bn(linear, bn) → module")

tables = linear_bn.group("y of tables (N, features), with and without bias, gamma and beta", points=0.75)


@tables.scenario()
def linear_with_bias(impl, case):
    # As many features in as out: a factor on the wrong axis raises no error.
    features = case.integer(3, 5)
    linear = case.fill(nn.Linear(features, features))
    return _fused_output(impl, case, linear, _norm(case, features, 0), (4, features))


@tables.scenario()
def linear_without_bias(impl, case):
    inputs, outputs = _sizes(case, 3, 3)
    linear = case.fill(nn.Linear(inputs, outputs, bias=False))
    return _fused_output(impl, case, linear, _norm(case, outputs, 0), (4, inputs))


@tables.scenario()
def linear_without_affine(impl, case):
    inputs, outputs = _sizes(case, 3, 3)
    linear = case.fill(nn.Linear(inputs, outputs))
    return _fused_output(impl, case, linear, _norm(case, outputs, 0, affine=False), (4, inputs))


fresh = linear_bn.group("a new module, on the same device, in the same dtype; both layers untouched", points=0.5)


@fresh.scenario()
def linear_layers_untouched(impl, case):
    inputs, outputs = _sizes(case, 3, 3)
    return _as_it_was(impl, case, case.fill(nn.Linear(inputs, outputs)), _norm(case, outputs, 0), (4, inputs))


@fresh.scenario(dtypes=("float16", "bfloat16"))
def linear_dtype_and_device(impl, case):
    inputs, outputs = _sizes(case, 3, 3)
    return _kept(impl, case, case.fill(nn.Linear(inputs, outputs, bias=False)), _norm(case, outputs, 0))


illegal = linear_bn.group("training mode, no running statistics and other channels are refused", points=0.25)


@illegal.scenario()
def linear_refusals(impl, case):
    inputs, outputs = _sizes(case, 3, 3)
    linear = case.fill(nn.Linear(inputs, outputs))
    return _refusals(impl, case, linear, lambda c, **k: _norm(case, c, 0, **k), outputs, (3, inputs))


# --- models for fusion_report and fuse --------------------------------------------------------------------------

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


def _upward(c):
    conv = nn.ConvTranspose2d(c, c, 3, padding=1, groups=c, bias=False)
    return Part(lambda m, x: _bent(m.norm(m.conv(x))), conv=conv, norm=nn.BatchNorm2d(c, affine=False))


def _nested(c):
    body = nn.Sequential(_conv(c, padding_mode="circular"), nn.BatchNorm2d(c), nn.LeakyReLU(0.5))
    return Part(lambda m, x: m.body(x), body=body)


def _table(c, features):
    fc = nn.Linear(features, c + 1, bias=False)
    return Part(lambda m, x: m.norm(m.fc(x.flatten(1))), fc=fc, norm=nn.BatchNorm1d(c + 1))


def _sequence(c, positions):
    # As many features as channels: nothing raises if the two axes are taken for each other.
    return Part(lambda m, x: m.norm(m.fc(x.flatten(2))), fc=nn.Linear(positions, c), norm=nn.BatchNorm1d(c))


def _across(c):
    return Part(lambda m, x: m.norm(_bent(m.conv(x))), conv=_conv(c), norm=nn.BatchNorm2d(c))


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


def _elsewhere(c):
    def forward(m, x):
        y = m.conv(x)
        return _bent(m.norm(y) + y)

    return Part(forward, conv=_conv(c), norm=nn.BatchNorm2d(c))


def _shuffled(case, items):
    rest, order = list(items), []
    while rest:
        order.append(rest.pop(case.integer(0, len(rest) - 1)))
    return order


def _chain(case, parts, last=(), kind=Chain):
    """A model of the parts in a drawn order, under drawn names, with drawn numbers; in eval mode but for what moves."""
    parts = [*_shuffled(case, parts), *last]
    words = _shuffled(case, _WORDS)[: len(parts)]
    model = kind(dict(zip(words, parts, strict=True)), words[::-1])
    case.fill(model).eval()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eps = float(case.uniform(0.2, 0.9))
        if isinstance(module, Part) and module.moves:
            module.norm.train()
    return model


_SIDE = 3


def _images(case, c, n=2, name="example"):
    return case.tensor((n, c, _SIDE, _SIDE), name=name)


def _legal_model(case):
    """(model, channels): every BatchNorm can be folded away."""
    c = case.integer(2, 3)
    return _chain(case, [_plain(c), _upward(c), _nested(c)], [_table(c, c * _SIDE**2)]), c


def _illegal_model(case):
    """(model, channels): several reasons against folding, and one pair that is fine."""
    c = case.integer(2, 3)
    return _chain(case, [_plain(c), _across(c), _before(c), _moving(c), _untracked(c), _uncalled(c)]), c


def _sequence_model(case):
    """(model, channels): a linear layer on (N, channels, features)."""
    c = case.integer(2, 3)
    return _chain(case, [_plain(c)], [_sequence(c, _SIDE**2)]), c


def _shared_model(case):
    """(model, channels): layers that are called twice, an output that is used twice, and one pair that is fine."""
    c = case.integer(2, 3)
    return _chain(case, [_plain(c), _one_conv_twice(c), _one_norm_twice(c), _elsewhere(c)]), c


def _gated_model(case):
    """(model, channels): two arguments; one layer in training mode, whose statistics must not move."""
    c = case.integer(2, 3)
    return _chain(case, [_plain(c), _moving(c)], kind=Gated), c


# --- fusion_report ----------------------------------------------------------------------------------------------

report = Piece("fusion.fusion_report", call='fusion_report(model, example) → [(name, "fused" or a reason), …]')


def _report(impl, model, example):
    """Which layers are fused, and which rows there are in which order."""
    rows = impl(model, example)
    if not isinstance(rows, list | tuple):
        raise WrongReturn(f"expected a list of rows (name, reason) to be returned, got {type(rows).__name__}")
    said, words = [], True
    for row in rows:
        name, reason = named(row, "name", "reason").values()
        if not isinstance(name, str):
            raise WrongReturn(f"expected rows that begin with a layer's name, got {type(name).__name__}")
        words = words and isinstance(reason, str) and reason != ""
        said.append((name, reason == "fused"))
    return {
        "fused layers": ", ".join(sorted(name for name, fused in said if fused)) or "none",
        "layers in the report": ", ".join(name for name, _ in said),
        "verdicts in words": words,
        "fused (1) or left (0), row by row": np.array([float(fused) for _, fused in said]),
    }


good = report.group(
    "legal pairs: convolutions, transposed ones, linear layers on tables; names and call order", points=1
)


@good.scenario()
def report_of_legal_pairs(impl, case):
    model, c = _legal_model(case)
    return _report(impl, model, _images(case, c))


bad = report.group("left: across an activation, before a convolution, in training mode, without statistics", points=1)


@bad.scenario()
def report_of_illegal_pairs(impl, case):
    model, c = _illegal_model(case)
    return _report(impl, model, _images(case, c, n=6))


@bad.scenario()
def report_of_a_sequence(impl, case):
    model, c = _sequence_model(case)
    return _report(impl, model, _images(case, c))


shared = report.group("left: layers called twice, outputs used elsewhere", points=0.75)


@shared.scenario()
def report_of_shared_layers(impl, case):
    model, c = _shared_model(case)
    return _report(impl, model, _images(case, c))


gentle = report.group("several arguments; the model untouched", points=0.25)


@gentle.scenario()
def report_of_two_arguments(impl, case):
    model, c = _gated_model(case)
    changed = _watch(model=model)
    rows = _report(impl, model, (_images(case, c), _images(case, c, name="gate")))
    return {**rows, "inputs changed": ", ".join([case.changed(), *changed()]).strip(", ")}


# --- fuse -------------------------------------------------------------------------------------------------------

whole = Piece("fusion.fuse", call="fuse(model, example) → module")


def _fused_model(impl, case, model, example, *args):
    """What the fused model computes on other inputs than the example, and how many BatchNorm layers still run."""
    fused = _module(impl(model, example))
    ran = []
    for module in fused.modules():
        if isinstance(module, _BatchNorm):
            module.register_forward_hook(lambda norm, *_: ran.append(type(norm).__name__))
    y = _run(fused, *args)
    left = ", ".join(f"{times} {kind}" for kind, times in sorted(Counter(ran).items()))
    return {"y": y, "BatchNorm calls left": left or "none"}


good = whole.group("every legal pair is fused, and the output is the same", points=1)


@good.scenario(within={"y": PROBE})
def fuse_legal_pairs(impl, case):
    model, c = _legal_model(case)
    return _fused_model(impl, case, model, _images(case, c), _images(case, c, 3, "x"))


bad = whole.group("the others stay: across an activation, before a convolution, training mode, sequences", points=1)


@bad.scenario(within={"y": PROBE})
def fuse_illegal_pairs(impl, case):
    model, c = _illegal_model(case)
    return _fused_model(impl, case, model, _images(case, c), _images(case, c, 3, "x"))


@bad.scenario(within={"y": PROBE})
def fuse_a_sequence(impl, case):
    model, c = _sequence_model(case)
    return _fused_model(impl, case, model, _images(case, c), _images(case, c, 3, "x"))


shared = whole.group("the others stay: layers called twice, outputs used elsewhere", points=0.75)


@shared.scenario(within={"y": PROBE})
def fuse_shared_layers(impl, case):
    model, c = _shared_model(case)
    return _fused_model(impl, case, model, _images(case, c), _images(case, c, 3, "x"))


gentle = whole.group("several arguments; a new model, the given one untouched", points=0.25)


@gentle.scenario(within={"y": PROBE})
def fuse_two_arguments(impl, case):
    model, c = _gated_model(case)
    changed = _watch(model=model)
    example = _images(case, c), _images(case, c, name="gate")
    seen = _fused_model(impl, case, model, example, _images(case, c, 3, "x"), _images(case, c, 3, "gate"))
    return {**seen, "inputs changed": ", ".join(changed())}
