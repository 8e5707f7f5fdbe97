"""Problem set 6: what is asked of `fuse_conv_bn` and `fuse_linear_bn`.

Layers are compared through what they compute, never through how they are made.
"""

from itertools import product

import torch
from torch import nn

from course_lib.checks.devices import attempt
from course_lib.checks.fusion_inputs import HALVES, differing_sizes, expect_module, norm, run, watch
from course_lib.checks.piece import Piece, raised

__all__ = ["conv_bn", "linear_bn"]

conv_bn = Piece("fusion.fuse_conv_bn", call="fuse_conv_bn(conv, bn) → module")


def _fused(impl, case, layer, bn, shape, words=""):
    """What the fused module computes, and that it is one layer."""
    fused = expect_module(impl(layer, bn)).eval()
    return {f"y{words}": run(fused, case.tensor(shape)), f"layers in the result{words}": _leaves(fused)}


def _leaves(module):
    return sum(not list(part.children()) for part in module.modules())


def _each(pieces):
    """Several sets of observations as one."""
    return {name: value for seen in pieces for name, value in seen.items()}


_CONV = (None, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (None, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

ranks = conv_bn.group("1d, 2d and 3d, with and without bias, gamma and beta", points=1)


@ranks.scenario()
def conv_1d(impl, case):
    inputs, outputs = differing_sizes(case, 2, 3)
    conv = case.fill(nn.Conv1d(inputs, outputs, 3))
    return _fused(impl, case, conv, norm(case, outputs, 1), (2, inputs, 6))


@ranks.scenario()
def conv_2d_without_some(impl, case):
    def without(bias, affine):
        inputs, outputs = differing_sizes(case, 2, 3)
        conv = case.fill(nn.Conv2d(inputs, outputs, (3, 2), bias=bias)).train(bias)  # its own mode makes no difference
        words = " without" + " bias" * (not bias) + " affine" * (not affine)
        return _fused(impl, case, conv, norm(case, outputs, 2, affine=affine), (2, inputs, 4, 5), words)

    return _each(without(bias, affine) for bias, affine in product((True, False), repeat=2) if not (bias and affine))


@ranks.scenario()
def conv_3d(impl, case):
    inputs, outputs = differing_sizes(case, 1, 2)
    conv = case.fill(nn.Conv3d(inputs, outputs, 2))
    return _fused(impl, case, conv, norm(case, outputs, 3), (2, inputs, 3, 4, 3))


geometry = conv_bn.group("stride, dilation, padding, padding mode and groups of the convolution", points=0.75)


@geometry.scenario()
def conv_stride_and_dilation(impl, case):
    def with_rank(rank):
        inputs, outputs = differing_sizes(case, 2, 3)
        how = {"stride": (2, 1, 2), "dilation": (2, 1, 1), "padding": (1, 2, 0)}
        conv = _CONV[rank](inputs, outputs, 3, **{name: values[:rank] for name, values in how.items()})
        return _fused(
            impl, case, case.fill(conv), norm(case, outputs, rank), (2, inputs, 7, 6, 5)[: rank + 2], f" in {rank}d"
        )

    return _each(map(with_rank, (1, 2, 3)))


@geometry.scenario()
def conv_padding_mode(impl, case):
    def padded(padding, mode, rank=2):
        inputs, outputs = differing_sizes(case, 2, 3)
        dilation = 2 if padding == "same" else 1  # "same" depends on it
        conv = _CONV[rank](inputs, outputs, 3, padding=padding, padding_mode=mode, dilation=dilation)
        words = f", padding {padding}, {mode}" + f" in {rank}d" * (rank != 2)
        bn = norm(case, outputs, rank)
        return _fused(impl, case, case.fill(conv), bn, (2, inputs, 5, 4, 3)[: rank + 2], words)

    ways = (
        (1, "reflect"),
        ((2, 1), "circular"),
        (1, "replicate"),
        ("same", "zeros"),
        (1, "circular", 1),
        (1, "replicate", 3),
    )
    return _each(padded(*way) for way in ways)


@geometry.scenario()
def conv_groups(impl, case):
    def grouped(words, rank, per_group):
        groups = case.integer(2, 3)
        inputs, outputs = groups * per_group, groups * case.integer(2, 3)
        conv = case.fill(_CONV[rank](inputs, outputs, 3, padding=1, groups=groups))
        return _fused(impl, case, conv, norm(case, outputs, rank), (2, inputs, 5, 3, 3)[: rank + 2], words)

    ways = (", one channel each", 1, 1), (", a few channels each", 1, 2), (" in 2d", 2, 2), (" in 3d", 3, 2)
    return _each(grouped(*way) for way in ways)


backwards = conv_bn.group("transposed convolutions, with groups and output padding", points=0.75)


@backwards.scenario()
def conv_transposed(impl, case):
    def with_rank(rank):
        inputs, outputs = differing_sizes(case, 2, 3)
        how = {"stride": (2, 1, 2), "padding": (1, 2, 0), "output_padding": (1, 0, 1), "dilation": (2, 1, 2)}
        how = {name: values[:rank] for name, values in how.items()}
        layer = case.fill(_TRANSPOSED[rank](inputs, outputs, 3, **how))
        return _fused(impl, case, layer, norm(case, outputs, rank), (2, inputs, 3, 4, 2)[: rank + 2], f" in {rank}d")

    return _each(map(with_rank, (1, 2, 3)))


@backwards.scenario()
def conv_transposed_groups(impl, case):
    def grouped(words, rank, bias=True, affine=True):
        groups = case.integer(2, 3)
        inputs, outputs = 2 * groups, groups * case.integer(3, 4)
        layer = case.fill(_TRANSPOSED[rank](inputs, outputs, 2, groups=groups, bias=bias))
        bn = norm(case, outputs, rank, affine=affine)
        return _fused(impl, case, layer, bn, (2, inputs, 4, 2, 3)[: rank + 2], words)

    ways = {", without bias": (1, False, True), ", without affine": (1, True, False)}
    ways |= {", without bias affine": (1, False, False), " in 2d": (2,), " in 3d": (3,)}
    return _each(grouped(words, *how) for words, how in ways.items())


fresh = conv_bn.group("a new module, on the same device, in the same dtype; both layers untouched", points=0.5)


def _as_it_was(impl, case, layer, bn, shape, words=""):
    """y of the fused layer, what of it would be saved, and whether the two it came from still are what they were."""
    changed = watch(layer=layer, bn=bn)
    fused = expect_module(impl(layer, bn)).eval()
    y = run(fused, case.tensor(shape))
    kept = {name.rpartition(".")[2] for name in fused.state_dict()}
    with torch.no_grad():
        for parameter in fused.parameters():
            parameter.zero_()
    return {
        f"y{words}": y,
        f"in its state_dict{words}": ", ".join(name for name in ("weight", "bias") if name in kept),
        f"inputs changed{words}": ", ".join(changed()),
    }


def _kept(impl, case, make):
    """Dtypes of a fused layer, and where the fused one of a pair on `meta` lives, with a bias and without.

    The BatchNorm of a layer in half precision is in float32, as in the usual mixture.

    Args:
        make: `(bias) → (layer, the BatchNorm's number of channels, its spatial axes)`.
    """
    seen = {}
    for dtype, bias in product(HALVES, (True, False)):
        layer, channels, rank = make(bias)
        layer, bn = case.fill(layer, dtype=dtype), norm(case, channels, rank, dtype="float32")
        fused = expect_module(impl(layer, bn))
        dtypes = {str(parameter.dtype).removeprefix("torch.") for parameter in fused.parameters()}
        seen[f"dtypes of a layer in {dtype} with{'out' * (not bias)} bias"] = ", ".join(sorted(dtypes))
    for bias in (True, False):
        layer, channels, rank = make(bias)
        layer, bn = layer.to("meta"), norm(case, channels, rank).to("meta")
        happened, on_meta = attempt(lambda layer=layer, bn=bn: expect_module(impl(layer, bn)))
        places = set() if on_meta is None else {parameter.device.type for parameter in on_meta.parameters()}
        words = f"with{'out' * (not bias)} bias"
        seen[f"a pair on another device (meta), {words}"] = happened
        seen[f"where the result lives, {words}"] = ", ".join(sorted(places))
    return seen


@fresh.scenario()
def conv_layers_untouched(impl, case):
    inputs, outputs = differing_sizes(case, 2, 3)
    conv = case.fill(nn.Conv1d(inputs, outputs, 2))
    bare, up = nn.Conv2d(inputs, outputs, 2, bias=False), nn.ConvTranspose1d(4, 6, 2, groups=2)
    return {
        **_as_it_was(impl, case, conv, norm(case, outputs, 1), (2, inputs, 4)),
        **_as_it_was(
            impl,
            case,
            case.fill(bare),
            norm(case, outputs, 2, affine=False),
            (2, inputs, 3, 4),
            ", no bias, gamma and beta",
        ),
        **_as_it_was(impl, case, case.fill(up), norm(case, 6, 1), (2, 4, 3), ", transposed"),
    }


@fresh.scenario()
def conv_dtype_and_device(impl, case):
    inputs, outputs = differing_sizes(case, 2, 3)
    return _kept(impl, case, lambda bias: (nn.Conv2d(inputs, outputs, 2, bias=bias), outputs, 2))


@fresh.scenario()
def conv_transposed_dtype_and_device(impl, case):
    inputs, outputs = differing_sizes(case, 2, 3)
    return _kept(impl, case, lambda bias: (nn.ConvTranspose1d(inputs, outputs, 2, bias=bias), outputs, 1))


illegal = conv_bn.group("training mode, no running statistics and other channels are refused", points=0.5)


def _refusals(impl, case, layer, make, channels, shape, **others):
    """The errors of pairs that cannot be fused, and the output of the one that can.

    Args:
        make: `(channels, **options) → BatchNorm`.
        channels: the layer's.
        others: further numbers of channels, which it has not.
    """
    training, none = make(channels).train(), make(channels, track_running_stats=False)
    neither = make(channels, affine=False, track_running_stats=False).train()
    changed = watch(training=training)
    seen = {
        "error for a BatchNorm in training mode": raised(impl, layer, training),
        "inputs changed": ", ".join(changed()),
        "error for a BatchNorm without running statistics": raised(impl, layer, none),
        "error for a BatchNorm in training mode and without them": raised(impl, layer, neither),
        "error for a BatchNorm without them, gamma and beta": raised(impl, layer, neither.eval()),
        "error for one channel more, without gamma and beta": raised(impl, layer, make(channels + 1, affine=False)),
    }
    others = {"one channel more": channels + 1, "one channel less": channels - 1, "a single channel": 1, **others}
    seen |= {f"error for {words}": raised(impl, layer, make(other)) for words, other in others.items()}
    return {**seen, "y": run(expect_module(impl(layer, training.eval())), case.tensor(shape))}


@illegal.scenario()
def conv_refusals(impl, case):
    inputs, outputs = differing_sizes(case, 2, 4)
    conv = case.fill(nn.Conv2d(inputs, outputs, 2))
    return _refusals(impl, case, conv, lambda c, **k: norm(case, c, 2, **k), outputs, (2, inputs, 3, 3))


@illegal.scenario()
def conv_transposed_refusals(impl, case):
    layer = case.fill(nn.ConvTranspose1d(4, 6, 2, groups=2))
    axes = {f"as many channels as axis {axis} of the weight is long": layer.weight.shape[axis] for axis in (0, 1)}
    return _refusals(impl, case, layer, lambda c, **k: norm(case, c, 1, **k), 6, (2, 4, 3), **axes)


# --- fuse_linear_bn ---------------------------------------------------------------------------------------------

linear_bn = Piece("fusion.fuse_linear_bn", call="fuse_linear_bn(linear, bn) → module")

tables = linear_bn.group("y of tables (N, features), with and without bias, gamma and beta", points=0.75)


@tables.scenario()
def linear_with_bias(impl, case):
    # As many features in as out: a factor on the wrong axis raises no error.
    features = case.integer(3, 5)
    linear = case.fill(nn.Linear(features, features))
    return _fused(impl, case, linear, norm(case, features, 0), (4, features))


@tables.scenario()
def linear_without_some(impl, case):
    def without(bias, affine):
        inputs, outputs = differing_sizes(case, 3, 3)
        linear = case.fill(nn.Linear(inputs, outputs, bias=bias))
        words = " without" + " bias" * (not bias) + " affine" * (not affine)
        return _fused(impl, case, linear, norm(case, outputs, 0, affine=affine), (4, inputs), words)

    return _each(without(bias, affine) for bias, affine in product((True, False), repeat=2) if not (bias and affine))


fresh = linear_bn.group("a new module, on the same device, in the same dtype; both layers untouched", points=0.5)


@fresh.scenario()
def linear_layers_untouched(impl, case):
    inputs, outputs = differing_sizes(case, 3, 3)
    bare = case.fill(nn.Linear(inputs, outputs, bias=False)), norm(case, outputs, 0, affine=False)
    return {
        **_as_it_was(impl, case, case.fill(nn.Linear(inputs, outputs)), norm(case, outputs, 0), (4, inputs)),
        **_as_it_was(impl, case, *bare, (4, inputs), ", no bias, gamma and beta"),
    }


@fresh.scenario()
def linear_dtype_and_device(impl, case):
    inputs, outputs = differing_sizes(case, 3, 3)
    return _kept(impl, case, lambda bias: (nn.Linear(inputs, outputs, bias=bias), outputs, 0))


illegal = linear_bn.group("training mode, no running statistics and other channels are refused", points=0.25)


@illegal.scenario()
def linear_refusals(impl, case):
    inputs, outputs = differing_sizes(case, 3, 4)
    linear = case.fill(nn.Linear(inputs, outputs))
    return _refusals(impl, case, linear, lambda c, **k: norm(case, c, 0, **k), outputs, (3, inputs))
