"""The layer as a drop-in: right against a float64 closed form, and everything torch.nn's does, on every device."""

import copy
import gc
import inspect
import io
import pickle
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils.parametrize import register_parametrization

import course_lib
from course_lib.batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from tests.devices import DEVICES

SHAPES = [(7, 3), (300, 5), (4, 3, 5), (2, 3, 2000), (3, 4, 5, 2), (4, 3, 9, 8), (2, 3, 2, 4, 3), (8, 3, 2, 1, 1)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "strided": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "batch inside": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
}
PAIRS = [(BatchNorm1d, nn.BatchNorm1d), (BatchNorm2d, nn.BatchNorm2d), (BatchNorm3d, nn.BatchNorm3d)]
devices = pytest.mark.parametrize("device", DEVICES)
pairs = pytest.mark.parametrize(("ours", "torchs"), PAIRS, ids=["1d", "2d", "3d"])
modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def kind(rank):
    """The pair of classes for inputs of this rank."""
    return PAIRS[max(rank - 3, 0)]


def per_channel(v, x):
    return v.reshape(1, -1, *(1,) * (x.ndim - 2))


def drawn(shape, device="cpu", dtype=torch.float64, seed=0):
    """x with a mean, and dy, rounded to dtype."""
    generator = torch.Generator().manual_seed(seed)
    x, dy = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return (2 * x + 1).to(device, dtype), dy.to(device, dtype)


def filled(layer, seed=0):
    """The layer with parameters and buffers that are not the initial ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for v in (*layer.parameters(), layer.running_mean, layer.running_var):
            if v is not None:
                v.copy_(torch.rand(v.shape, generator=generator) + 0.5)
    return layer


def closed_form(layer, x, training):
    """(y, running_mean, running_var) in float64 from the layer as it stands; y is differentiable."""
    wide = {name: v.double() for name, v in layer.state_dict(keep_vars=True).items()}
    axes, n = (0, *range(2, x.ndim)), x.numel() // x.shape[1]
    mean, var = wide.get("running_mean"), wide.get("running_var")
    if training or mean is None:
        batch = x.double().mean(axes)
        centred = x.double() - per_channel(batch, x)
        biased = (centred**2).mean(axes)
        if layer.track_running_stats:
            mean = (1 - layer.momentum) * mean + layer.momentum * batch.detach()
            var = (1 - layer.momentum) * var + layer.momentum * biased.detach() * n / (n - 1)
    else:
        centred, biased = x.double() - per_channel(mean, x), var
    y = centred / per_channel((biased + layer.eps).sqrt(), x)
    y = y * per_channel(wide["weight"], x) if "weight" in wide else y
    return y + per_channel(wide["bias"], x) if "bias" in wide else y, mean, var


def close(got, want, dtype, ulps=16):
    """Equal up to some units in the last place of the largest value."""
    assert got.dtype == dtype
    atol = ulps * torch.finfo(dtype).eps * max(want.abs().max().item(), 1)
    torch.testing.assert_close(got.double(), want, rtol=0, atol=atol)


# --- right ------------------------------------------------------------------------------------------------------------


@devices
@modes
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_gradients_and_buffers_equal_the_closed_form(shape, dtype, layout, training, device):
    x, dy = (LAYOUTS[layout](v) for v in drawn(shape, device, dtype))
    x.requires_grad_()
    parameters = torch.promote_types(dtype, torch.float32)
    layer = filled(kind(len(shape))[0](shape[1], device=device, dtype=parameters)).train(training)
    want, mean, var = closed_form(layer, x, training)
    leaves = [x, layer.weight, layer.bias]
    wanted = torch.autograd.grad(want, leaves, dy.double())
    got = layer(x)
    close(got, want, dtype)
    for name, one, other in zip(("dx", "dweight", "dbias"), torch.autograd.grad(got, leaves, dy), wanted, strict=True):
        close(one, other.double(), dtype if name == "dx" else parameters, ulps=128)
    close(layer.running_mean, mean, parameters)
    close(layer.running_var, var, parameters)


@devices
@modes
@pytest.mark.parametrize(
    "flags",
    [
        {"affine": False},
        {"bias": False},
        {"track_running_stats": False},
        {"affine": False, "track_running_stats": False},
        {"eps": 0.5},
        {"momentum": 0.0},
        {"momentum": 1.0},
    ],
    ids=str,
)
def test_every_flag_equals_the_closed_form(flags, training, device):
    x, dy = drawn((4, 3, 5), device)
    x.requires_grad_()
    layer = filled(BatchNorm1d(3, device=device, dtype=torch.float64, **flags)).train(training)
    want, mean, var = closed_form(layer, x, training)
    leaves = [x, *layer.parameters()]
    wanted = torch.autograd.grad(want, leaves, dy)
    got = layer(x)
    close(got, want, torch.float64)
    for one, other in zip(torch.autograd.grad(got, leaves, dy), wanted, strict=True):
        close(one, other, torch.float64, ulps=64)
    if layer.track_running_stats:
        close(layer.running_mean, mean, torch.float64)
        close(layer.running_var, var, torch.float64)


@devices
def test_a_slab_of_scratch_less_than_the_tensor_changes_nothing(device, monkeypatch):
    x, dy = drawn((9, 3, 40, 7), device, torch.float32)
    results = []
    for slab in (2**19, 100):
        monkeypatch.setattr("course_lib.batchnorm_sums._SLAB", slab)
        for layout in ("contiguous", "channels last"):
            v = LAYOUTS[layout](x).requires_grad_()
            y = BatchNorm2d(3, device=device)(v)
            results.append([y, *torch.autograd.grad(y, v, dy)])
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=4e-6)


@devices
def test_momentum_none_averages_over_all_batches(device):
    batches = [drawn((6, 3), device, seed=seed)[0] for seed in range(4)]
    layer = BatchNorm1d(3, momentum=None, device=device, dtype=torch.float64)
    for batch in batches:
        layer(batch)
    close(layer.running_mean, torch.stack([batch.mean(0) for batch in batches]).mean(0), torch.float64)
    close(layer.running_var, torch.stack([batch.var(0) for batch in batches]).mean(0), torch.float64)
    assert layer.num_batches_tracked == 4


@pytest.mark.parametrize("momentum", [np.float32(0.25), torch.tensor(0.25), 1], ids=repr)
def test_momentum_may_be_whatever_torch_takes_for_a_number(momentum):
    x, _ = drawn((6, 3), dtype=torch.float32)
    ours, torchs = (cls(3, momentum=momentum) for cls in (BatchNorm1d, nn.BatchNorm1d))
    ours(x), torchs(x)
    torch.testing.assert_close(dict(ours.state_dict()), dict(torchs.state_dict()))


@devices
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_not_finite_stays_in_its_channel(layout, value, device):
    x = drawn((4, 3, 5, 6), device, torch.float32)[0]
    layer = BatchNorm2d(3, device=device)
    clean = layer(LAYOUTS[layout](x))
    x[2, 1, 3, 2] = value
    spoilt = layer(LAYOUTS[layout](x))
    assert spoilt[:, 1].isnan().all()
    assert torch.equal(spoilt[:, [0, 2]], clean[:, [0, 2]])


@devices
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_layer_that_half_has_narrowed_works_in_float32_inside(dtype, training, device):
    x, _ = drawn((64, 3, 5), device, dtype)
    layer = filled(BatchNorm1d(3, device=device).to(dtype)).train(training)
    want, mean, var = closed_form(layer, x, training)
    close(layer(x), want, dtype, ulps=4)
    close(layer.running_mean, mean, dtype, ulps=2)
    close(layer.running_var, var, dtype, ulps=2)


@devices
def test_autocast_keeps_float32_statistics(device):
    net = nn.Sequential(nn.Conv2d(3, 4, 1), BatchNorm2d(4)).to(device)
    with torch.autocast(device, dtype=torch.bfloat16):
        y = net(drawn((8, 3, 4, 4), device, torch.float32)[0])
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert {v.dtype for v in (net[1].running_mean, net[1].running_var, net[1].weight.grad)} == {torch.float32}


# --- derivatives ------------------------------------------------------------------------------------------------------


# torch's own decompositions for forward-mode derivatives call the deprecated torch.jit.script when first loaded.
torch_warns = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


def as_function(layer):
    """The layer as a function of (x, weight, bias) whose buffers stay."""

    def f(x, *parameters):
        names = [name for name, _ in layer.named_parameters()]
        fixed = {name: v.clone() for name, v in layer.named_buffers()}
        return torch.func.functional_call(layer, {**fixed, **dict(zip(names, parameters, strict=True))}, (x,))

    return f


@pytest.mark.parametrize("flags", [{}, {"affine": False}, {"bias": False}], ids=str)
@pytest.mark.parametrize(("shape", "layout"), [((4, 2), "contiguous"), ((2, 2, 2, 3), "channels last")], ids=str)
@modes
@torch_warns
def test_derivatives_of_every_kind_equal_finite_differences(shape, layout, flags, training):
    layer = filled(kind(len(shape))[0](shape[1], dtype=torch.float64, **flags)).train(training)
    inputs = (LAYOUTS[layout](drawn(shape)[0]).requires_grad_(), *layer.parameters())
    f = as_function(layer)
    assert gradcheck(f, inputs, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert gradgradcheck(f, inputs, check_fwd_over_rev=True, check_batched_grad=True)


def test_plain_and_tuned_backward_agree_in_float32():
    x, dy = drawn((16, 3, 20), dtype=torch.float32)
    x.requires_grad_()
    for training in (True, False):
        layer = filled(BatchNorm1d(3)).train(training)
        leaves = [x, *layer.parameters()]
        tuned = torch.autograd.grad(layer(x), leaves, dy)
        plain = torch.autograd.grad(layer(x), leaves, dy, create_graph=True)
        torch.testing.assert_close(plain, tuned, rtol=1e-5, atol=1e-5)


@modes
def test_an_activation_in_place_may_follow(training):
    x = drawn((4, 3, 5), dtype=torch.float32)[0].requires_grad_()
    net = nn.Sequential(filled(BatchNorm1d(3)), nn.ReLU(inplace=True)).train(training)
    inplace = torch.autograd.grad(net(x).sum(), x)
    net[1].inplace = False
    assert torch.equal(inplace[0], torch.autograd.grad(net(x).sum(), x)[0])


def test_a_frozen_weight_keeps_no_activation_alive():
    layer = filled(BatchNorm1d(3)).eval().requires_grad_(False)
    x = drawn((50, 3), dtype=torch.float32)[0].requires_grad_() * 1
    alive = weakref.ref(x)
    y = layer(x)
    del x
    gc.collect()
    assert y.requires_grad and alive() is None


# --- drop-in ----------------------------------------------------------------------------------------------------------


@pairs
def test_arguments_are_torchs(ours, torchs):
    assert inspect.signature(ours) == inspect.signature(torchs)


@pairs
def test_it_is_found_by_whoever_looks_for_torchs(ours, torchs):
    assert isinstance(ours(3), torchs)
    assert isinstance(ours(3), nn.modules.batchnorm._BatchNorm)


@pairs
@pytest.mark.parametrize("flags", [{}, {"affine": False}, {"bias": False}, {"track_running_stats": False}], ids=str)
def test_state_goes_to_torch_and_back(ours, torchs, flags):
    mine, other = filled(ours(3, **flags)), torchs(3, **flags)
    assert list(mine.state_dict()) == list(other.state_dict())
    other.load_state_dict(mine.state_dict())
    again = ours(3, **flags)
    again.load_state_dict(other.state_dict())
    torch.testing.assert_close(dict(again.state_dict()), dict(mine.state_dict()), rtol=0, atol=0)


def test_a_dict_from_before_the_counter_loads():
    old = filled(nn.BatchNorm1d(3)).state_dict()
    del old["num_batches_tracked"], old._metadata
    layer = BatchNorm1d(3)
    layer.load_state_dict(old)
    assert layer.num_batches_tracked == 0


def test_a_dict_of_today_without_the_counter_is_refused():
    state = nn.BatchNorm1d(3).state_dict()
    del state["num_batches_tracked"]
    with pytest.raises(RuntimeError, match="num_batches_tracked"):
        BatchNorm1d(3).load_state_dict(state)


@pairs
def test_it_prints_as_torchs(ours, torchs):
    assert repr(ours(3, momentum=None, bias=False)) == repr(torchs(3, momentum=None, bias=False))


@pairs
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_a_copy_is_equal_and_independent(ours, torchs, copied):
    layer = filled(ours(3))
    other = copied(layer)
    torch.testing.assert_close(dict(other.state_dict()), dict(layer.state_dict()), rtol=0, atol=0)
    other(torch.rand(4, 3, *(2,) * (0, 2, 3)[PAIRS.index((ours, torchs))]))
    assert other.num_batches_tracked == 1 and layer.num_batches_tracked == 0


@pytest.mark.parametrize("layer", [BatchNorm1d, BatchNorm2d, BatchNorm3d])
def test_the_package_has_it_too(layer):
    assert getattr(course_lib, layer.__name__) is layer


def test_the_package_brings_no_torch_before_a_layer_is_asked_for():
    code = "import sys, course_lib; assert 'torch' not in sys.modules; from course_lib import BatchNorm1d"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_it_saves_and_loads_as_a_whole():
    file = io.BytesIO()
    torch.save(filled(BatchNorm1d(3)), file)
    file.seek(0)
    assert isinstance(torch.load(file, weights_only=False), BatchNorm1d)


@devices
@modes
@pytest.mark.parametrize("shape", [(4, 3, 5, 6), (2, 3, 2, 4, 3)], ids=str)
def test_channels_last_is_kept(shape, training, device):
    x = LAYOUTS["channels last"](drawn(shape, device, torch.float32)[0]).requires_grad_()
    y = kind(len(shape))[0](3, device=device).train(training)(x)
    [dx] = torch.autograd.grad(y.square().sum(), x)
    assert y.stride() == dx.stride() == x.stride()
    assert not y.is_contiguous()


@pytest.mark.parametrize("layout", ["strided", "batch inside"])
@modes
def test_any_other_layout_comes_out_contiguous_as_from_torch(layout, training):
    x = LAYOUTS[layout](drawn((4, 3, 5, 6), dtype=torch.float32)[0])
    assert BatchNorm2d(3).train(training)(x).stride() == nn.BatchNorm2d(3).train(training)(x).stride()


def test_eval_gives_torchs_very_bits():
    for shape in SHAPES:
        x, _ = drawn(shape, dtype=torch.float32)
        ours, torchs = (filled(cls(shape[1])).eval() for cls in kind(len(shape)))
        assert torch.equal(ours(x), torchs(x))
        with torch.no_grad():
            assert torch.equal(ours(x), torchs(x))


@devices
@modes
@pytest.mark.parametrize("shape", [(0, 3), (4, 3, 0), (0, 3, 2, 2)], ids=str)
def test_an_empty_batch_gives_an_empty_output_and_zero_gradients(shape, training, device):
    layer = kind(len(shape))[0](3, device=device).train(training)
    x = torch.zeros(shape, device=device, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.shape == x.grad.shape == shape
    assert not layer.weight.grad.any() and not layer.bias.grad.any()


@devices
def test_track_running_stats_switched_off_later_fixes_the_buffers_and_eval_still_uses_them(device):
    layer = filled(BatchNorm1d(3, device=device, dtype=torch.float64))
    layer.track_running_stats = False
    before, (x, _) = copy.deepcopy(layer.state_dict()), drawn((6, 3), device)
    layer(x)
    torch.testing.assert_close(dict(layer.state_dict()), dict(before), rtol=0, atol=0)
    close(layer.eval()(x), closed_form(layer, x, False)[0], torch.float64)


def test_buffers_taken_away_later_mean_batch_statistics():
    layer = BatchNorm1d(3).eval()
    layer.running_mean = layer.running_var = None
    x, _ = drawn((6, 3), dtype=torch.float32)
    assert torch.equal(layer(x), layer.train()(x))


def test_it_runs_without_numbers_on_meta():
    x = torch.zeros(4, 3, 5, device="meta", requires_grad=True)
    for momentum in (0.1, None):
        layer = BatchNorm1d(3, momentum=momentum, device="meta")
        for training in (True, False):
            y = layer.train(training)(x)
            y.sum().backward()
            assert y.is_meta and x.grad.is_meta and layer.running_mean.is_meta


def test_nothing_stays_behind_when_it_moves():
    layer = BatchNorm1d(3).to("meta")
    assert not [name for name, v in vars(layer).items() if isinstance(v, torch.Tensor)]
    assert all(v.is_meta for v in layer.state_dict().values())


def test_torch_converts_it_to_sync_batchnorm():
    net = nn.Sequential(filled(BatchNorm2d(3)), nn.Sequential(BatchNorm1d(2, bias=False, momentum=None)))
    state = dict(net.state_dict())
    net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    assert [type(net[0]), type(net[1][0])] == [nn.SyncBatchNorm] * 2
    torch.testing.assert_close(dict(net.state_dict()), state, rtol=0, atol=0)
    assert net[1][0].momentum is None


def test_torch_fuses_it_into_a_convolution():
    conv, norm = nn.Conv2d(3, 4, 3).eval(), filled(BatchNorm2d(4)).eval()
    x, _ = drawn((2, 3, 5, 5), dtype=torch.float32)
    fused = nn.utils.fuse_conv_bn_eval(conv, norm)
    torch.testing.assert_close(fused(x), norm(conv(x)))


# --- errors -----------------------------------------------------------------------------------------------------------

REFUSED = {
    "channels": ({}, (4, 5), torch.float32),
    "channels, weight only": ({"track_running_stats": False}, (4, 5), torch.float32),
    "rank 4": ({}, (4, 3, 2, 2), torch.float32),
    "rank 1": ({}, (3,), torch.float32),
    "one value": ({}, (1, 3), torch.float32),
    "one value in a plane": ({}, (1, 3, 1), torch.float32),
    "one value, untracked": ({"track_running_stats": False}, (1, 3), torch.float32),
    "eps 0": ({"eps": 0.0}, (4, 3), torch.float32),
    "eps negative": ({"eps": -1.0}, (4, 3), torch.float32),
    "momentum": ({"momentum": "0.1"}, (4, 3), torch.float32),
    "float64 into float32": ({}, (4, 3), torch.float64),
    "float32 into half": ({"dtype": torch.float16}, (4, 3), torch.float32),
    "half into bfloat16": ({"dtype": torch.bfloat16}, (4, 3), torch.float16),
    "integers": ({}, (4, 3), torch.int64),
    "device": ({"device": "meta"}, (4, 3), torch.float32),
}


def refusal(layer, x):
    with pytest.raises(Exception) as error:
        layer(x)
    return error.value


@pytest.mark.parametrize("case", REFUSED)
@modes
def test_what_torch_refuses_is_refused_with_the_same_kind_of_error(case, training):
    flags, shape, dtype = REFUSED[case]
    x = torch.zeros(shape, dtype=dtype)
    torchs = nn.BatchNorm1d(3, **flags).train(training)
    try:
        torchs(x)
    except Exception as error:
        want = error
    else:
        return  # eps = 0 or a single value, in eval
    got = refusal(BatchNorm1d(3, **flags).train(training), x)
    family = NotImplementedError if case == "integers" else type(want)  # torch's is a RuntimeError too
    assert isinstance(got, RuntimeError if family is NotImplementedError else family)
    assert isinstance(got, ValueError | TypeError)


@pytest.mark.parametrize(
    "case",
    ["channels", "channels, weight only", "rank 4", "one value", "eps 0", "eps negative", "one value in a plane"],
)
def test_a_refusal_begins_with_torchs_message(case):
    flags, shape, dtype = REFUSED[case]
    x = torch.zeros(shape, dtype=dtype)
    got, want = (refusal(cls(3, **flags), x) for cls in (BatchNorm1d, nn.BatchNorm1d))
    assert str(got).startswith(str(want))


@pytest.mark.parametrize(
    ("case", "parts"),
    [
        ("channels", ["expected (N, C, ...) with C=3, got (4, 5)"]),
        ("one value", ["use a larger batch, or .eval()"]),
        ("momentum", ["expected momentum to be a number or None, got '0.1'"]),
        ("float64 into float32", ["running_mean in torch.float64 or float32, got torch.float32"]),
        ("integers", ["torch.int64", "expected a floating-point dtype"]),
        ("device", ["expected running_mean on the input's device, cpu, got meta", ".to()"]),
    ],
)
def test_a_refusal_quotes_expected_and_got(case, parts):
    flags, shape, dtype = REFUSED[case]
    message = str(refusal(BatchNorm1d(3, **flags), torch.zeros(shape, dtype=dtype)))
    assert [part for part in parts if part not in message] == []


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_batch_changes_nothing(case):
    flags, shape, dtype = REFUSED[case]
    layer = BatchNorm1d(3, **flags)
    if layer.track_running_stats and not layer.weight.is_meta:
        refusal(layer, torch.ones(shape, dtype=dtype))
        assert layer.num_batches_tracked == 0
        assert not layer.running_mean.any() and (layer.running_var == 1).all()


def test_one_buffer_without_the_other_is_refused():
    layer = BatchNorm1d(3)
    layer.running_mean = None
    with pytest.raises(RuntimeError, match="must either both be None or neither"):
        layer(torch.rand(4, 3))


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


@pytest.mark.parametrize("training", [True, False])
def test_a_parametrised_weight_that_does_not_fit_is_refused_by_its_name(training):
    layer = BatchNorm1d(3, track_running_stats=False)
    register_parametrization(layer, "weight", Doubled())  # a new tensor at every access
    with pytest.raises(ValueError, match="weight should contain 2 elements not 3"):
        layer.train(training)(torch.rand(4, 2))
