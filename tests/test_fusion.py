"""Folding: every kind of pair against the two layers in float64, and every way in which a model forbids it."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from course_lib import batchnorm
from course_lib.finetuning import FrozenBatchNorm, GhostBatchNorm, freeze_batchnorm, replace_batchnorm
from course_lib.fusion import (
    expect_plain,
    expect_plain_batchnorm,
    expect_unhooked,
    fold_batchnorm,
    fuse,
    fuse_conv_bn,
    fuse_linear_bn,
    fusion_report,
    is_foldable,
)
from course_lib.nets import CNN, MLP, ResNet
from course_lib.running_stats import BatchNorm
from course_lib.sync import SyncBatchNorm
from course_lib.tracing import reproducible, twin
from tests.devices import DEVICES


@pytest.fixture(autouse=True)
def seeded():
    """Layers are initialised from torch's generator."""
    torch.manual_seed(0)


on_devices = pytest.mark.parametrize("device", DEVICES)


def drawn(*shape, seed=0, device="cpu", dtype=torch.float32):
    """Normal values of mean 1 and deviation 2."""
    return (1 + 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(device, dtype)


def used(model, seed=0):
    """The model in eval mode, its BatchNorm layers as training could have left them."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if is_foldable(module) and module.running_mean is not None and not module.running_mean.is_meta:
            for name, low, high in (("mean", -1, 1), ("var", 0.2, 2)):
                getattr(module, f"running_{name}").uniform_(low, high, generator=generator)
            for tensor in (module.weight, module.bias):
                if tensor is not None:
                    tensor.data.uniform_(0.5, 2, generator=generator)
                    tensor.data[::2] *= -1
    return model.eval()


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(got, want, dtype=torch.float32):
    """Equal to 1e-5, in float64 to 1e-12, in half precision to 16 roundings, in units of the largest value."""
    assert got.dtype == want.dtype and got.device == want.device
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 16 * torch.finfo(dtype).eps)
    assert (got.double() - want.double()).abs().max() <= tolerance * max(1.0, want.abs().max().item())


def norm_of(layer):
    """A BatchNorm that fits behind a convolution or linear layer."""
    if isinstance(layer, nn.Linear):
        return used(nn.BatchNorm1d(layer.out_features))
    return used((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[layer.weight.dim() - 3](layer.out_channels))


# --- one pair ---------------------------------------------------------------------------------------------------

CONVOLUTIONS = {
    "1d": lambda **k: nn.Conv1d(4, 6, 3, **k),
    "2d": lambda **k: nn.Conv2d(4, 6, 3, **k),
    "3d": lambda **k: nn.Conv3d(4, 6, 3, **k),
    "no bias": lambda **k: nn.Conv2d(4, 6, 3, bias=False, **k),
    "groups": lambda **k: nn.Conv2d(4, 6, 3, groups=2, **k),
    "depthwise": lambda **k: nn.Conv2d(4, 8, 3, groups=4, **k),
    "stride, dilation, padding": lambda **k: nn.Conv2d(4, 6, 3, stride=2, dilation=2, padding=3, **k),
    "same": lambda **k: nn.Conv2d(4, 6, 3, padding="same", **k),
    "reflect": lambda **k: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect", **k),
    "circular": lambda **k: nn.Conv1d(4, 6, 3, padding=1, padding_mode="circular", **k),
    "replicate": lambda **k: nn.Conv3d(4, 6, 3, padding=1, padding_mode="replicate", **k),
    "transposed 1d": lambda **k: nn.ConvTranspose1d(4, 6, 3, **k),
    "transposed 2d": lambda **k: nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, dilation=2, **k),
    "transposed 3d": lambda **k: nn.ConvTranspose3d(4, 6, 3, bias=False, **k),
    "transposed, groups": lambda **k: nn.ConvTranspose2d(4, 6, 3, groups=2, **k),
    "transposed, as many groups as channels": lambda **k: nn.ConvTranspose1d(4, 12, 3, groups=4, **k),
}


@on_devices
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_a_fused_convolution_does_what_the_two_layers_do(kind, dtype, device):
    conv = CONVOLUTIONS[kind](device=device, dtype=dtype)
    bn = norm_of(conv).to(device, dtype)
    x = drawn(2, 4, *[7] * (conv.weight.dim() - 2), device=device, dtype=dtype)
    fused = fuse_conv_bn(conv, bn)
    assert type(fused) is type(conv)
    assert_same(fused(x), bn(conv(x)), dtype)


@on_devices
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_fused_linear_layer_does_what_the_two_layers_do(bias, dtype, device):
    linear = nn.Linear(5, 6, bias=bias, device=device, dtype=dtype)
    bn, x = norm_of(linear).to(device, dtype), drawn(7, 5, device=device, dtype=dtype)
    assert_same(fuse_linear_bn(linear, bn)(x), bn(linear(x)), dtype)


@pytest.mark.parametrize(
    "bn",
    [
        nn.BatchNorm2d(6, eps=0.3),
        nn.BatchNorm2d(6, affine=False),
        nn.BatchNorm2d(6, bias=False),
        nn.SyncBatchNorm(6),
        BatchNorm(6),
        batchnorm.BatchNorm2d(6),
        GhostBatchNorm(6, 2),
        FrozenBatchNorm(6),
    ],
    ids=["eps", "no affine", "no bias", "sync", "teaching", "course", "ghost", "frozen"],
)
def test_every_kind_of_batchnorm_is_folded(bn):
    conv, x = nn.Conv2d(4, 6, 3), drawn(2, 4, 7, 7)
    used(bn)
    assert_same(fuse_conv_bn(conv, bn)(x), bn(conv(x)))


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 6, 3, bias=False), nn.Linear(4, 6)], ids=["conv", "linear"])
def test_neither_layer_is_changed(layer):
    bn = norm_of(layer)
    before = state(layer), state(bn)
    fused = (fuse_linear_bn if isinstance(layer, nn.Linear) else fuse_conv_bn)(layer, bn)
    for parameter in fused.parameters():
        parameter.data.zero_()
    for module, then in zip((layer, bn), before, strict=True):
        assert all(torch.equal(value, then[name]) for name, value in module.state_dict().items())


def test_a_fused_layer_has_trainable_parameters_where_the_layer_had():
    conv = nn.Conv2d(4, 6, 3)
    conv.weight.requires_grad = False
    fused = fuse_conv_bn(conv, norm_of(conv))
    assert isinstance(fused.weight, nn.Parameter) and isinstance(fused.bias, nn.Parameter)
    assert (fused.weight.requires_grad, fused.bias.requires_grad) == (False, True)


def test_memory_format_is_kept():
    conv = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    assert fuse_conv_bn(conv, norm_of(conv)).weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_no_device_is_named(kind):
    conv = CONVOLUTIONS[kind](device="meta")
    fused = fuse_conv_bn(conv, norm_of(conv).to("meta"))
    assert fused.weight.is_meta and fused.weight.shape == conv.weight.shape and fused.bias.is_meta


# --- fold_batchnorm ---------------------------------------------------------------------------------------------


def test_folding_is_rounded_once():
    weight, bias = drawn(6, 4, 3), drawn(6, seed=1)
    bn = used(nn.BatchNorm1d(6))
    exact = fold_batchnorm(weight.double(), bias.double(), copy.deepcopy(bn).double())
    for got, want in zip(fold_batchnorm(weight, bias, bn), exact, strict=True):
        assert torch.equal(got, want.float())


def test_without_a_bias_the_new_one_has_the_dtype_of_the_weight():
    weight, bias = fold_batchnorm(drawn(6, 4).half(), None, used(nn.BatchNorm1d(6)))
    assert (weight.dtype, bias.dtype, bias.shape) == (torch.float16, torch.float16, (6,))


def test_folding_is_differentiable():
    weight, bn = drawn(6, 4).requires_grad_(), used(nn.BatchNorm1d(6))
    sum(part.sum() for part in fold_batchnorm(weight, None, bn)).backward()
    assert weight.grad.abs().min() > 0 and bn.weight.grad.abs().min() > 0


def hooked(module):
    module.register_forward_hook(lambda *_: None)
    return module


class Standardised(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


conv, linear, bn = nn.Conv2d(4, 6, 3), nn.Linear(4, 6), nn.BatchNorm2d(6).eval()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fuse_conv_bn(conv, nn.BatchNorm2d(6)), "expected a BatchNorm in eval mode, got one in training mode"),
        (
            lambda: fuse_linear_bn(linear, nn.BatchNorm1d(6)),
            "expected a BatchNorm in eval mode, got one in training mode",
        ),
        (lambda: fuse_conv_bn(conv, nn.BatchNorm2d(6, track_running_stats=False).eval()), "with running statistics"),
        (lambda: fuse_conv_bn(conv, nn.BatchNorm2d(4).eval()), "expected a BatchNorm of 6 channels, got 4"),
        (lambda: fuse_linear_bn(linear, nn.BatchNorm1d(4).eval()), "expected a BatchNorm of 6 channels, got 4"),
        (lambda: fuse_conv_bn(nn.ConvTranspose2d(6, 4, 3), bn), "expected a BatchNorm of 4 channels, got 6"),
        (lambda: fuse_conv_bn(conv, nn.GroupNorm(2, 6).eval()), "expected a BatchNorm layer, got GroupNorm"),
        (lambda: fuse_conv_bn(conv, None), "expected a module, got NoneType"),
        (lambda: fuse_conv_bn(linear, bn), "expected one of Conv1d, Conv2d, Conv3d, .*, got Linear"),
        (lambda: fuse_linear_bn(conv, bn), "expected one of Linear, got Conv2d"),
        (lambda: fuse_conv_bn(nn.LazyConv2d(6, 3), bn), "before its first input"),
        (lambda: fuse_conv_bn(hooked(nn.Conv2d(4, 6, 3)), bn), "a Conv2d without hooks, got one with forward_hooks"),
        (lambda: fuse_conv_bn(conv, hooked(nn.BatchNorm2d(6).eval())), "a BatchNorm2d without hooks, got one with"),
        (lambda: fuse_conv_bn(Standardised(4, 6, 3), bn), "got Standardised with a forward of its own"),
        (lambda: fuse_conv_bn(parametrizations.weight_norm(nn.Conv2d(4, 6, 3)), bn), "got one with parametrizations"),
        (lambda: fuse_conv_bn(nn.Conv2d(4, 6, 3, device="meta"), bn), "on the device of the weight, meta, got cpu"),
        (lambda: fold_batchnorm(drawn(6, 4), None, bn, groups=4), "divide the first axis of weight, 6, got groups=4"),
        (lambda: fold_batchnorm(drawn(6, 4), None, bn, groups=0), "groups to be a whole number of at least 1, got 0"),
    ],
)
def test_what_cannot_be_fused_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_plain_layers_are_taken():
    expect_plain(conv, (nn.Linear, nn.Conv2d))
    expect_unhooked(conv)
    for layer in (
        nn.BatchNorm2d(3),
        nn.SyncBatchNorm(3),
        batchnorm.BatchNorm2d(3),
        SyncBatchNorm(3),
        BatchNorm(3),
        FrozenBatchNorm(3),
        GhostBatchNorm(3, 2),
    ):
        expect_plain_batchnorm(layer)


class BatchNormReLU(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()


def test_a_forward_of_its_own_is_not_dropped():
    message = "expected a plain BatchNorm, got BatchNormReLU with a forward of its own"
    for layer, fuse_pair in ((nn.Conv2d(4, 6, 3), fuse_conv_bn), (nn.Linear(4, 6), fuse_linear_bn)):
        with pytest.raises(ValueError, match=message):
            fuse_pair(layer, BatchNormReLU(6).eval())
    model = nn.Sequential(nn.Conv2d(3, 3, 3), BatchNormReLU(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)).eval()
    zeros = torch.zeros(1, 3, 5, 5)  # where the ReLU does not show
    assert fusion_report(model, zeros) == [("1", message), ("3", "fused")]
    torch.testing.assert_close(fuse(model, zeros)(images()), model(images()))


# --- a whole model ----------------------------------------------------------------------------------------------


class Model(nn.Module):
    """Layers by name and a forward pass over them."""

    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


def pair(forward, **others):
    return used(Model(forward, conv=nn.Conv2d(3, 3, 3, padding=1), bn=nn.BatchNorm2d(3), **others))


def images(n=2, **kwargs):
    return drawn(n, 3, 6, 6, **kwargs)


def norms_in(model):
    return [name for name, module in model.named_modules() if is_foldable(module)]


#: What a model does, and what the report says of each of its BatchNorm layers, in call order.
CASES = {
    "conv, bn": (lambda: pair(lambda m, x: m.bn(m.conv(x))), {"bn": "fused"}),
    "conv, bn, relu in place": (lambda: pair(lambda m, x: F.relu(m.bn(m.conv(x)), inplace=True)), {"bn": "fused"}),
    "keyword arguments": (lambda: pair(lambda m, x: m.bn(input=m.conv(input=x))), {"bn": "fused"}),
    "tied weights": (lambda: tied(), {"0.1": "fused", "1.1": "fused"}),
    "bn, conv": (lambda: pair(lambda m, x: m.conv(m.bn(x))), {"bn": "follows x, no convolution or linear layer"}),
    "conv, relu, bn": (
        lambda: pair(lambda m, x: m.bn(m.act(m.conv(x))), act=nn.ReLU()),
        {"bn": "follows 'act' (ReLU), no convolution or linear layer"},
    ),
    "functional convolution": (
        lambda: pair(lambda m, x: m.bn(F.conv2d(x, m.conv.weight, padding=1))),
        {"bn": "follows conv2d, no convolution or linear layer"},
    ),
    "training mode": (
        lambda: pair(lambda m, x: m.bn(m.conv(x))).train(),
        {"bn": "expected a BatchNorm in eval mode, got one in training mode: call .eval() first"},
    ),
    "frozen in a model in training mode": (
        lambda: freeze_batchnorm(pair(lambda m, x: m.bn(m.conv(x)))).train(),
        {"bn": "fused"},
    ),
    "output used elsewhere": (
        lambda: pair(lambda m, x: (y := m.conv(x)) + m.bn(y)),
        {"bn": "the output of 'conv' is used elsewhere too: add"},
    ),
    "output returned too": (
        lambda: pair(lambda m, x: (y := m.conv(x), m.bn(y))),
        {"bn": "the output of 'conv' is used elsewhere too: output"},
    ),
    "convolution called twice": (
        lambda: pair(lambda m, x: m.bn(m.conv(m.conv(x)))),
        {"bn": "'conv' before it is called 2 times"},
    ),
    "convolution shared by two layers": (
        lambda: pair(lambda m, x: m.bn(m.conv(x)) + m.other(m.conv(x)), other=nn.BatchNorm2d(3)),
        {"bn": "'conv' before it is called 2 times", "other": "'conv' before it is called 2 times"},
    ),
    "one output for two layers": (
        lambda: pair(lambda m, x: m.other(y := m.conv(x)) + m.bn(y), other=nn.BatchNorm2d(3)),
        {
            "other": "the output of 'conv' is used elsewhere too: bn",
            "bn": "the output of 'conv' is used elsewhere too: other",
        },
    ),
    "bn called twice": (
        lambda: pair(lambda m, x: m.bn(m.second(m.bn(m.conv(x)))), second=nn.Conv2d(3, 3, 1)),
        {"bn": "is called 2 times"},
    ),
    "weight used elsewhere": (
        lambda: pair(lambda m, x: m.bn(m.conv(x)) * m.conv.weight.mean()),
        {"bn": "the weight or bias of 'conv' is used outside the layer too"},
    ),
    "γ used elsewhere": (lambda: pair(lambda m, x: m.bn(m.conv(x)) * m.bn.weight.mean()), {"bn": "fused"}),
    "no running statistics": (
        lambda: pair(lambda m, x: m.none(m.conv(x)), none=nn.BatchNorm2d(3, track_running_stats=False, affine=False)),
        {
            "none": "expected a BatchNorm with running statistics, got a BatchNorm2d without any",
            "bn": "is not called",
        },
    ),
    "linear on 2-D": (
        lambda: used(Model(lambda m, x: m.bn(m.fc(x.flatten(1))), fc=nn.Linear(108, 5), bn=nn.BatchNorm1d(5))),
        {"bn": "fused"},
    ),
    "linear on 3-D": (
        lambda: used(Model(lambda m, x: m.bn(m.fc(x.flatten(2))), fc=nn.Linear(36, 3), bn=nn.BatchNorm1d(3))),
        {"bn": "the output of 'fc' is 3-D, its channels are not on axis 1"},
    ),
    "convolution without a batch": (
        lambda: used(Model(lambda m, x: m.bn(m.conv(x[0])), conv=nn.Conv2d(3, 3, 1), bn=BatchNorm(6))),
        {"bn": "the output of 'conv' is 3-D, its channels are not on axis 1"},
    ),
    "other channels by accident": (
        lambda: used(Model(lambda m, x: m.bn(m.conv(x[0, 0])), conv=nn.Conv1d(6, 6, 1), bn=nn.BatchNorm1d(6))),
        {"bn": "the output of 'conv' is 2-D, its channels are not on axis 1"},
    ),
    "grouped transposed convolution": (
        lambda: pair(lambda m, x: m.bn(m.up(x)), up=nn.ConvTranspose2d(3, 3, 2, stride=2, groups=3)),
        {"bn": "fused"},
    ),
    "transposed convolution with an output size": (
        lambda: pair(lambda m, x: m.bn(m.up(x, output_size=(12, 12))), up=nn.ConvTranspose2d(3, 3, 3, 2, 1)),
        {"bn": "fused"},
    ),
    "convolution with a forward of its own": (
        lambda: pair(lambda m, x: m.bn(m.std(x)), std=Standardised(3, 3, 3)),
        {"bn": "expected a plain Conv2d, got Standardised with a forward of its own"},
    ),
    "batchnorm with a forward of its own": (
        lambda: pair(lambda m, x: m.odd(m.conv(x)), odd=Odd(3)),
        {"odd": "expected a plain BatchNorm, got Odd with a forward of its own", "bn": "is not called"},
    ),
    "a mean so large that its rounding shows": (
        lambda: far_away(pair(lambda m, x: m.bn(m.conv(x)))),
        {"bn": "differs by "},
    ),
    "batchnorm of two tensors": (
        lambda: pair(lambda m, x: m.two(m.conv(x), x), two=Conditional(3)),
        {"two": "takes 2 tensors", "bn": "is not called"},
    ),
    "hook on the convolution": (
        lambda: pair(lambda m, x: m.bn(m.seen(x)), seen=hooked(nn.Conv2d(3, 3, 3))),
        {"bn": "expected a Conv2d without hooks, got one with forward_hooks: remove them first"},
    ),
    "weight_norm": (
        lambda: pair(lambda m, x: m.bn(m.p(x)), p=parametrizations.weight_norm(nn.Conv2d(3, 3, 3))),
        {"bn": "expected a plain Conv2d, got one with parametrizations: remove them first"},
    ),
    "spectral_norm": (
        lambda: pair(lambda m, x: m.bn(m.p(x)), p=parametrizations.spectral_norm(nn.Conv2d(3, 3, 3))),
        {"bn": "expected a plain Conv2d, got one with parametrizations: remove them first"},
    ),
    "spectral_norm by hooks, after a forward pass": (
        lambda: pair(lambda m, x: m.bn(m.p(x)), p=warmed(torch.nn.utils.spectral_norm(nn.Conv2d(3, 3, 3)))),
        {"bn": "expected a Conv2d without hooks, got one with forward_pre_hooks: remove them first"},
    ),
    "pruned": (
        lambda: pair(lambda m, x: m.bn(m.p(x)), p=pruned(nn.Conv2d(3, 3, 3))),
        {"bn": "expected a Conv2d without hooks, got one with forward_pre_hooks: remove them first"},
    ),
    "nested": (
        lambda: used(nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), BatchNorm(4)), nn.Conv2d(4, 2, 1), BatchNorm(2))),
        {"0.1": "fused", "2": "fused"},
    ),
    "no batchnorm": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), {}),
    "dropout in training mode": (
        lambda: freeze_batchnorm(pair(lambda m, x: F.dropout(m.bn(m.conv(x)), 0.5, m.training))).train(),
        {"bn": "fused"},
    ),
}  # fmt: skip


class Conditional(nn.BatchNorm2d):
    def forward(self, x, scale):
        return super().forward(x) * scale


class Odd(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) + 0.5 * x.mean()


def far_away(model):
    for tensor in (model.conv.bias.data, model.bn.running_mean):
        tensor.fill_(1e6)
    return model


def tied():
    blocks = [nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)) for _ in range(2)]
    blocks[1][0].weight = blocks[0][0].weight
    for seed, block in enumerate(blocks):
        used(block, seed)
    return nn.Sequential(*blocks).eval()


def warmed(layer):
    layer(drawn(1, 3, 5, 5))
    return layer


def pruned(layer):
    from torch.nn.utils import prune

    return prune.l1_unstructured(layer, "weight", 0.5)


@pytest.mark.parametrize("case", CASES)
def test_the_report_says_what_is_fused_and_why_not(case):
    make, want = CASES[case]
    report = fusion_report(make(), images())
    assert [name for name, _ in report] == list(want)
    assert all(reason.startswith(said) for (_, reason), said in zip(report, want.values(), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_the_fused_model_does_what_the_model_does(case):
    model = CASES[case][0]()
    fused = fuse(model, images())
    for n, seed in ((2, 0), (3, 1)):
        x = images(n, seed=seed)
        with reproducible():
            want = twin(model)(x)
        with reproducible():
            got = fused(x)
        for one, other in zip(*(out if isinstance(out, tuple) else (out,) for out in (got, want)), strict=True):
            assert_same(one, other)


@pytest.mark.parametrize("case", CASES)
def test_fused_layers_are_gone_and_the_others_are_there(case):
    make, want = CASES[case]
    kept = {name for name, reason in want.items() if reason not in ("fused", "is not called")}
    kept |= {"bn"} if case == "γ used elsewhere" else set()
    called = set(norms_in(fuse(make(), images())))
    assert called == kept


@pytest.mark.parametrize("case", CASES)
def test_the_model_is_not_changed(case):
    model = CASES[case][0]()
    before, shown, modes = state(model), repr(model), [module.training for module in model.modules()]
    numbers = torch.get_rng_state()
    fuse(model, images())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (repr(model), [module.training for module in model.modules()]) == (shown, modes)
    assert torch.equal(torch.get_rng_state(), numbers)


def test_statistics_that_still_move_are_the_model_s_in_the_result():
    model = pair(lambda m, x: m.bn(m.conv(x))).train()
    fused = fuse(model, images())
    assert all(torch.equal(value, fused.state_dict()[name]) for name, value in model.state_dict().items())


def test_the_result_shares_no_memory_with_the_model():
    model = used(CNN((4, 6)))
    mine = {value.data_ptr() for value in model.state_dict().values()}
    assert not mine & {value.data_ptr() for value in fuse(model, drawn(2, 1, 8, 8)).state_dict().values()}


NETS = {
    "mlp": (lambda: MLP((12, 8, 6, 3)), (5, 12), 0),
    "cnn": (lambda: CNN((4, 6)), (3, 1, 8, 8), 0),
    "post-activation": (lambda: ResNet((4, 4, 8)), (3, 1, 8, 8), 0),
    "pre-activation": (lambda: ResNet((4, 4, 8), pre_activation=True), (3, 1, 8, 8), 4),
}
LAYERS = {
    "torch": lambda bn: bn,
    "teaching": lambda bn: BatchNorm(bn.num_features),
    "course": lambda bn: getattr(batchnorm, type(bn).__name__)(bn.num_features),
    "ghost": lambda bn: GhostBatchNorm(bn.num_features, 2),
    "frozen": FrozenBatchNorm.from_batchnorm,
}


@on_devices
@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("net", NETS)
def test_networks_of_torch_s_and_of_the_course_s_layers_are_fused(net, layers, device):
    make, shape, left = NETS[net]
    model = used(replace_batchnorm(make().eval(), LAYERS[layers])).to(device)
    fused, x = fuse(model, drawn(*shape, device=device)), drawn(*shape, seed=1, device=device)
    assert_same(fused(x), model(x))
    assert len(norms_in(fused)) == left


def test_rows_come_in_call_order_and_what_is_not_called_comes_last():
    model = Model(
        lambda m, x: m.early(m.b(m.late(m.a(x)))),
        **{name: nn.BatchNorm2d(3) for name in ("unused", "early", "late")},
        **{name: nn.Conv2d(3, 3, 1) for name in ("a", "b")},
    )
    assert fusion_report(used(model), images()) == [("late", "fused"), ("early", "fused"), ("unused", "is not called")]


def test_two_names_of_a_layer_are_one_layer():
    bn = nn.BatchNorm2d(3)
    model = used(nn.Sequential(nn.Conv2d(3, 3, 1), bn, nn.Conv2d(3, 3, 1), bn))
    assert fusion_report(model, images()) == [("1", "is called 2 times")]


def test_fusing_again_changes_nothing():
    model = used(ResNet((4, 8), pre_activation=True))
    x = drawn(2, 1, 8, 8)
    once = fuse(model, x)
    assert_same(fuse(once, x)(x), once(x))
    assert "fused" not in dict(fusion_report(once, x)).values()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_dtype_is_kept(dtype):
    model, x = used(ResNet((4, 8))).to(dtype), drawn(2, 1, 8, 8, dtype=dtype)
    fused = fuse(model, x)
    assert norms_in(fused) == [] and {p.dtype for p in fused.parameters()} == {dtype}
    assert_same(fused(x), model(x), dtype)


def test_a_model_on_meta_is_fused():
    model = ResNet((4, 8)).eval().to("meta")
    fused = fuse(model, torch.empty(2, 1, 8, 8, device="meta"))
    assert norms_in(fused) == [] and all(p.is_meta for p in fused.parameters())


def test_several_arguments_and_defaults_are_traced_as_in_the_example():
    class Masked(Model):
        def forward(self, x, mask=None, negate=False):
            x = x if mask is None else x * mask
            return -self.bn(self.conv(x)) if negate else self.bn(self.conv(x))

    model = used(Masked(None, conv=nn.Conv2d(3, 3, 1), bn=nn.BatchNorm2d(3)))
    x, mask = images(), images(seed=1)
    for args in ((x,), (x, None), (x, mask), (x, mask, True)):
        fused = fuse(model, args)
        assert norms_in(fused) == []
        assert_same(fused(*args), model(*args))


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved])
@pytest.mark.parametrize("layers", ["torch", "teaching"])
def test_the_result_can_be_copied(copied, layers):
    model = used(replace_batchnorm(ResNet((4, 8), pre_activation=True), LAYERS[layers]))
    x = drawn(2, 1, 8, 8)
    fused = fuse(model, x)
    assert_same(copied(fused)(x), fused(x), torch.float64)


def test_an_exported_result_has_no_batchnorm_and_computes_the_same():
    model, x = used(ResNet((4, 8))), drawn(2, 1, 8, 8)
    fused = fuse(model, x)
    program = torch.export.export(fused, (x,))
    assert not any("batch_norm" in str(node.target) for node in program.graph.nodes)
    assert_same(program.module()(x), model(x))


def test_control_flow_on_values_is_refused_and_named():
    def forward(m, x):
        y = m.bn(m.conv(x))
        return -y if y.sum() > 0 else y

    for f in (fuse, fusion_report):
        with pytest.raises(ValueError) as error:
            f(pair(forward), images())
        assert "`return -y if y.sum() > 0 else y` (forward, line" in str(error.value)
        assert "Move that out of the forward pass" in str(error.value)


def test_a_layer_alone_is_refused():
    with pytest.raises(ValueError, match="expected a network of layers, got a BatchNorm2d alone"):
        fusion_report(nn.BatchNorm2d(3).eval(), images())


def test_a_forward_pass_that_a_graph_does_not_record_is_noticed():
    passes = []

    def forward(m, x):
        passes.append(1)
        return m.bn(m.conv(x)) * len(passes)

    with pytest.raises(ValueError, match=r"to equal the original on the example to 1e-05, got a difference of \d"):
        fuse(pair(forward), images())
