"""Topic 2 against torch's layers and float64 closed forms, and what it promises beyond torch."""

import copy
import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from course_lib import running_stats
from course_lib.running_stats import (
    BatchNorm,
    ema_after,
    has_own_forward,
    is_batchnorm,
    population_stats,
    steps_to_forget,
    torch_momentum,
    update_running_stats,
)
from course_lib.shapes import expect_channelwise, expect_number
from tests.devices import DEVICES

SHAPES = [(7, 3), (4, 3, 5), (3, 4, 5, 2), (2, 3, 2, 4, 3)]
HALVES = [torch.float16, torch.bfloat16]
FLOATS = [torch.float32, torch.float64]
ON_META = [*DEVICES, "meta"]
few = settings(max_examples=25, deadline=None)
everywhere = pytest.mark.parametrize("device", DEVICES)


def drawn(shape, *, seed=0, mean=1.0, std=2.0, dtype=torch.float64, device="cpu"):
    values = mean + std * np.random.default_rng(seed).standard_normal(shape)
    return torch.from_numpy(values).to(device=device, dtype=dtype)


def axes_of(x):
    return (0, *range(2, x.dim()))


def close(got, want, ulps=64):
    """Equal up to some units in the last place of the largest value, whatever the dtype of `want`."""
    atol = ulps * torch.finfo(got.dtype).eps * (want.abs().max().item() or 1) if want.numel() else 0
    torch.testing.assert_close(got.double(), want.to(got.device).double(), rtol=0, atol=atol)


def lifted(x):
    """As a 4-D float64 tensor, which torch's BatchNorm2d takes."""
    return x.double().reshape(*x.shape[:2], -1, 1)


def pair(channels, *, device="cpu", dtype=None, **options):
    """A layer and torch's in float64 with the same random parameters and running statistics."""
    layer = BatchNorm(channels, device=device, dtype=dtype, **options)
    oracle = nn.BatchNorm2d(channels, device=device, **options).double()
    with torch.no_grad():
        for i, (name, v) in enumerate(layer.state_dict().items()):
            if name == "num_batches_tracked":
                v.fill_(3)
            else:
                v.copy_(torch.from_numpy(np.random.default_rng(i).uniform(0.5, 2, channels)))
    oracle.load_state_dict(layer.state_dict())
    return layer, oracle


# --- update_running_stats ----------------------------------------------------------------------------------------


@everywhere
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("momentum", [0.0, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_update_equals_torchs(shape, momentum, dtype, device):
    mean, var = (drawn(shape[1], seed=i, dtype=dtype, device=device).abs() for i in (1, 2))
    x = drawn(shape, dtype=dtype, device=device)
    want = mean.double(), var.double()
    nn.functional.batch_norm(x.double(), *want, training=True, momentum=momentum)
    assert update_running_stats(mean, var, x, momentum) is None
    close(mean, want[0])
    close(var, want[1])


def test_update_leaves_no_graph():
    mean, var = torch.zeros(3), torch.ones(3)
    update_running_stats(mean, var, drawn((5, 3), dtype=torch.float32).requires_grad_(), 0.1)
    assert not mean.requires_grad and not var.requires_grad


@everywhere
@pytest.mark.parametrize("half", HALVES)
def test_update_from_half_input_has_float32_accuracy(half, device):
    # 4,096 values around 100: a sum in half precision would be far off, in float16 even infinite.
    x = drawn((4096, 2), mean=100.0, dtype=half, device=device)
    mean, var = torch.zeros(2, device=device), torch.ones(2, device=device)
    update_running_stats(mean, var, x, 1.0)
    assert mean.dtype == var.dtype == torch.float32
    close(mean, x.double().mean(0), ulps=8)
    close(var, x.double().var(0), ulps=32)


@pytest.mark.parametrize("mean", [1e2, 1e4, 1e6])
def test_update_keeps_its_digits_when_the_mean_is_large(mean):
    x = drawn((64, 3, 8), mean=mean, std=1.0, dtype=torch.float32)
    buffers = torch.zeros(3), torch.ones(3)
    update_running_stats(*buffers, x, 1.0)
    close(buffers[0], x.double().mean((0, 2)), ulps=1)
    close(buffers[1], x.double().var((0, 2)), ulps=16)


@pytest.mark.parametrize("shape", [(0, 3), (4, 3, 0)])
def test_update_by_an_empty_batch_changes_nothing(shape):
    mean, var = torch.full((3,), 2.0), torch.full((3,), 3.0)
    update_running_stats(mean, var, torch.zeros(shape), 0.1)
    assert mean.tolist() == [2.0] * 3 and var.tolist() == [3.0] * 3


def test_update_runs_on_meta():
    buffers = torch.zeros(3, device="meta"), torch.ones(3, device="meta")
    update_running_stats(*buffers, torch.zeros(4, 3, 5, device="meta"), 0.1)
    assert all(v.is_meta and v.shape == (3,) for v in buffers)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (torch.zeros(2), torch.ones(2), torch.zeros(1, 2), 0.1),
            "expected more than 1 value per channel, got an input of shape (1, 2)",
        ),
        ((torch.zeros(2), torch.ones(2), torch.zeros(1, 2, 1), 0.1), "got an input of shape (1, 2, 1)"),
        (
            (torch.zeros(3), torch.ones(2), torch.zeros(4, 2), 0.1),
            "expected running_mean of shape (2,), one value per channel of x, got (3,)",
        ),
        (
            (torch.zeros(2), torch.ones(1, 2), torch.zeros(4, 2), 0.1),
            "expected running_var of shape (2,), one value per channel of x, got (1, 2)",
        ),
        (
            (torch.zeros(2), None, torch.zeros(4, 2), 0.1),
            "expected running_var to be a tensor of shape (2,), got NoneType",
        ),
        (
            (torch.zeros(2).long(), torch.ones(2), torch.zeros(4, 2), 0.1),
            "expected running_mean of a floating-point dtype, got torch.int64",
        ),
        (
            (torch.zeros(2, device="meta"), torch.ones(2), torch.zeros(4, 2), 0.1),
            "expected running_mean on x's device, cpu, got meta",
        ),
        ((torch.zeros(2), torch.ones(2), torch.zeros(4), 0.1), "got (4,)"),
        ((torch.zeros(2), torch.ones(2), torch.zeros(4, 2).long(), 0.1), "got torch.int64"),
        ((torch.zeros(0), torch.ones(0), torch.zeros(4, 0), 0.1), "at least one channel, got (4, 0)"),
        (
            (torch.zeros(2), torch.ones(2), torch.zeros(4, 2), 1.5),
            "expected momentum to be a number from 0 to 1, got 1.5",
        ),
        (
            (torch.zeros(2), torch.ones(2), torch.zeros(4, 2), None),
            "expected momentum to be a number from 0 to 1, got None",
        ),
    ],
)
def test_update_refuses_with_expected_and_got(arguments, message):
    with pytest.raises(ValueError) as error:
        update_running_stats(*arguments)
    assert message in str(error.value)


# --- closed forms ------------------------------------------------------------------------------------------------


@few
@given(st.floats(-5, 5), st.floats(-5, 5), st.floats(0, 1), st.integers(0, 60))
def test_ema_after_equals_the_recursion(initial, value, momentum, steps):
    want = initial
    for _ in range(steps):
        want = (1 - momentum) * want + momentum * value
    assert ema_after(initial, value, momentum, steps) == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize(("steps", "want"), [(10, 2.61), (22, 3.61), (50, 3.98)])
def test_ema_after_known_values(steps, want):
    assert ema_after(0, 4, 0.1, steps) == pytest.approx(want, abs=0.005)


def test_ema_after_is_what_a_layer_does():
    layer = BatchNorm(1, momentum=0.3)
    for _ in range(7):
        layer(torch.tensor([[3.0], [5.0]]))
    assert layer.running_mean.item() == pytest.approx(ema_after(0, 4, 0.3, 7), rel=1e-5)


@few
@given(st.floats(1e-3, 0.999), st.floats(1e-9, 0.999))
def test_steps_to_forget_is_the_smallest(momentum, fraction):
    k = steps_to_forget(momentum, fraction)
    assert type(k) is int
    assert (1 - momentum) ** k <= fraction * (1 + 1e-9)
    assert k == 0 or (1 - momentum) ** (k - 1) > fraction * (1 - 1e-9)


@pytest.mark.parametrize(
    ("momentum", "fraction", "want"),
    [
        (0.1, 0.05, 29),
        (0.01, 0.5, 69),
        (1, 0.5, 1),
        (1.0, 1.0, 0),
        (0.3, 1, 0),
        (0.5, 0.25, 2),
        (0.3, 0.49, 2),
        (1e-9, 0.5, 693147181),
    ],
)
def test_steps_to_forget_known_values(momentum, fraction, want):
    assert steps_to_forget(momentum, fraction) == want


@pytest.mark.parametrize(
    ("convention", "default", "want"),
    [("torch", 0.1, 0.1), ("keras", 0.99, 0.01), ("flax", 0.99, 0.01), ("onnx", 0.9, 0.1)],
)
def test_torch_momentum_of_every_librarys_default(convention, default, want):
    assert torch_momentum(default, convention) == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ema_after(0.0, 1.0, -0.1, 3), "expected momentum to be a number from 0 to 1, got -0.1"),
        (lambda: ema_after(0.0, 1.0, 0.1, -3), "expected steps to be a whole number of at least 0, got -3"),
        (lambda: ema_after(0.0, 1.0, 0.1, 2.5), "expected steps to be a whole number of at least 0, got 2.5"),
        (lambda: steps_to_forget(0, 0.5), "expected momentum and fraction above 0, got 0 and 0.5"),
        (lambda: steps_to_forget(0.1, 0.0), "expected momentum and fraction above 0, got 0.1 and 0.0"),
        (lambda: steps_to_forget(0.1, 2), "expected fraction to be a number from 0 to 1, got 2"),
        (lambda: steps_to_forget(math.nan, 0.5), "expected momentum to be a number from 0 to 1, got nan"),
        (lambda: torch_momentum(0.9, "jax"), "expected convention 'torch', 'keras', 'flax' or 'onnx', got 'jax'"),
        (lambda: torch_momentum("0.9", "keras"), "expected momentum to be a number from 0 to 1, got '0.9'"),
        (lambda: expect_number(-1, name="eps"), "expected eps to be a number of at least 0, got -1"),
        (lambda: expect_channelwise(torch.zeros(2), torch.zeros(4, 3), name="v"), "expected v of shape (3,)"),
    ],
)
def test_numbers_out_of_range_are_refused(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert message in str(error.value)


# --- population_stats --------------------------------------------------------------------------------------------


@everywhere
@pytest.mark.parametrize("shape", SHAPES)
def test_population_of_one_batch_is_its_mean_and_unbiased_variance(shape, device):
    x = drawn(shape, device=device)
    mean, var, n = population_stats([x])
    want = torch.var_mean(x, axes_of(x), correction=1)
    torch.testing.assert_close((var, mean), want, rtol=1e-12, atol=1e-12)
    assert n == x.numel() // shape[1] and type(n) is int


@few
@given(
    st.lists(st.integers(0, 60), max_size=8), st.sampled_from([(60, 3), (60, 2, 4)]), st.sampled_from([0.0, 1e4, 1e6])
)
def test_population_is_the_same_for_every_split(cuts, shape, mean):
    # Cuts may coincide: then some batches are empty. Others hold a single value.
    x = drawn(shape, mean=mean, std=1.0)
    whole = population_stats([x])
    split = population_stats(torch.tensor_split(x, sorted(cuts)))
    torch.testing.assert_close(split[:2], whole[:2], rtol=1e-12, atol=1e-12)
    assert split[2] == whole[2]


@pytest.mark.parametrize("mean", [0.0, 1e4, 1e6])
@pytest.mark.parametrize("dtype", FLOATS)
def test_population_keeps_its_digits(dtype, mean):
    x = drawn((512, 3), mean=mean, std=1.0, dtype=dtype)
    got = population_stats(x.split(100))
    exact = x.numpy().astype(np.longdouble)
    centred = exact - exact[:1]  # accurate where long double is only a double, too
    np.testing.assert_allclose(got[0].numpy(), exact.mean(0).astype(float), rtol=1e-15, atol=1e-15)
    np.testing.assert_allclose(got[1].numpy(), centred.var(0, ddof=1).astype(float), rtol=1e-12)


def test_population_weighs_by_count():
    mean, var, n = population_stats([torch.zeros(9, 1), torch.full((1, 1), 10.0)])
    assert (mean.item(), var.item(), n) == (pytest.approx(1.0), pytest.approx(10.0), 10)


def test_population_takes_a_generator_and_mixed_ranks():
    x = drawn((6, 3, 4, 5))
    got = population_stats(part for part in (x[:2], x[2:5].flatten(2), x[5:].movedim(1, -1).reshape(-1, 3)))
    torch.testing.assert_close(got[:2], population_stats([x])[:2], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [*HALVES, *FLOATS])
def test_population_is_float64_without_history(dtype):
    mean, var, _ = population_stats([drawn((5, 3), dtype=dtype).requires_grad_()])
    assert mean.dtype == var.dtype == torch.float64
    assert not mean.requires_grad and not var.requires_grad


def test_population_runs_on_meta():
    mean, var, n = population_stats([torch.zeros(4, 3, device="meta"), torch.zeros(0, 3, device="meta")])
    assert mean.is_meta and var.is_meta and n == 4


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "expected at least 2 values per channel in all batches together, got 0"),
        ([torch.zeros(0, 3)], "got 0"),
        ([torch.zeros(1, 3)], "got 1"),
        (torch.zeros(4, 3), "expected an iterable of batches, got one tensor (4, 3): put it into a list"),
        ([torch.zeros(4, 3), torch.zeros(4, 2)], "with C=3, got (4, 2)"),
        ([torch.zeros(0, 3), torch.zeros(4, 2)], "with C=3, got (4, 2)"),
        ([torch.zeros(4)], "got (4,)"),
        ([torch.zeros(4, 3).int()], "got torch.int32"),
        ([(torch.zeros(4, 3), torch.zeros(4))], "got tuple"),
        ([torch.zeros(4, 3), torch.zeros(4, 3, device="meta")], "on the device of the first, cpu, got meta"),
    ],
)
def test_population_refuses_with_expected_and_got(batches, message):
    with pytest.raises(ValueError) as error:
        population_stats(batches)
    assert message in str(error.value)


# --- the layer against torch -------------------------------------------------------------------------------------


@everywhere
@pytest.mark.parametrize(
    "options", [{}, {"eps": 0.5, "momentum": 0.3}, {"affine": False}, {"track_running_stats": False}]
)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_layer_equals_torchs(shape, training, dtype, options, device):
    layer, oracle = pair(shape[1], dtype=dtype, device=device, **options)
    x, dy = (drawn(shape, seed=seed, dtype=dtype, device=device) for seed in (1, 2))
    leaf, exact = x.requires_grad_(), lifted(x.detach()).requires_grad_()
    y, want = layer.train(training)(leaf), oracle.train(training)(exact)
    close(y, want.reshape(shape))
    y.backward(dy)
    want.backward(lifted(dy))
    close(leaf.grad, exact.grad.reshape(shape), ulps=256)
    for name, p in layer.named_parameters():
        close(p.grad, oracle.get_parameter(name).grad, ulps=256)
    for name, v in layer.named_buffers():
        close(v.double(), oracle.get_buffer(name).double(), ulps=64 * torch.finfo(dtype).eps / 2**-52)


@pytest.mark.parametrize("momentum", [0.0, 1.0, None, 0.3])
def test_momentum_over_several_batches_equals_torchs(momentum):
    layer, oracle = pair(3, momentum=momentum)
    for seed, shape in enumerate([(4, 3), (7, 3, 2), (3, 3, 4, 5), (2, 3)]):
        x = drawn(shape, seed=seed, dtype=torch.float32)
        layer(x), oracle(lifted(x))
    close(layer.running_mean, oracle.running_mean)
    close(layer.running_var, oracle.running_var)
    assert layer.num_batches_tracked == oracle.num_batches_tracked == 7


@pytest.mark.parametrize("shape", [(4, 2), (3, 2, 2), (2, 2, 1, 2, 2)])
@pytest.mark.parametrize("training", [True, False])
def test_gradcheck(shape, training):
    layer, _ = pair(2, dtype=torch.float64)
    x = drawn(shape).requires_grad_()
    assert torch.autograd.gradcheck(layer.train(training), (x,))


def test_gradient_of_a_gradient():
    layer, _ = pair(2, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(layer, (drawn((4, 2)).requires_grad_(),))


def test_eval_gradient_is_not_changed_by_a_later_update():
    layer, _ = pair(3)
    x = drawn((4, 3), dtype=torch.float32).requires_grad_()
    y = layer.eval()(x)
    slope = layer.weight.detach() / (layer.running_var + layer.eps).sqrt()
    layer.train()(drawn((8, 3), seed=5, std=9.0, dtype=torch.float32))
    y.sum().backward()
    close(x.grad, slope.expand(4, 3))


@everywhere
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("shape", [(2000, 3), (64, 3, 24, 24), (4, 2, 128, 128)])
@pytest.mark.parametrize("mean", [0.0, 1e4, 1e6])
def test_output_error_does_not_depend_on_the_mean(mean, shape, layout, device):
    x = drawn(shape, mean=mean, std=1.0, dtype=torch.float32, device=device)
    if layout == "channels last" and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    exact = lifted(x)
    var, centre = torch.var_mean(exact, (0, 2, 3), correction=0, keepdim=True)
    want = ((exact - centre) / (var + 1e-5).sqrt()).reshape(shape)
    with torch.no_grad():
        got = BatchNorm(shape[1], device=device)(x)
    assert (got.double() - want).abs().max() < 3e-6


@few
@given(st.floats(-1e6, 1e6, width=32), st.floats(-10, 10, width=32))
def test_constant_channel_gives_exactly_bias(value, bias):
    layer = BatchNorm(1)
    nn.init.constant_(layer.bias, bias)
    assert (layer(torch.full((5, 1, 3), value)) == bias).all()


def test_nan_stays_in_its_channel():
    layer, _ = pair(3)
    x = drawn((4, 3, 5), dtype=torch.float32)
    clean = copy.deepcopy(layer)(x)
    x[2, 1, 3] = math.nan
    y = layer(x)
    assert y[:, 1].isnan().all() and layer.running_var.isnan().tolist() == [False, True, False]
    assert torch.equal(y[:, [0, 2]], clean[:, [0, 2]])


# --- the layer: dtype, layout, device ----------------------------------------------------------------------------


@everywhere
@pytest.mark.parametrize("of_layer", [torch.float32, "as the input"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("half", HALVES)
def test_half_in_half_out_with_float32_statistics(half, training, of_layer, device):
    layer, oracle = pair(2, device=device, dtype=half if of_layer == "as the input" else None)
    layer.train(training), oracle.train(training)
    x = drawn((4096, 2), mean=30.0, dtype=half, device=device).requires_grad_()
    y = layer(x)
    assert y.dtype == half and layer.running_var.dtype == layer.weight.dtype
    close(y, oracle(lifted(x)).reshape(x.shape), ulps=4)
    close(layer.running_mean, oracle.running_mean, ulps=8)
    close(layer.running_var, oracle.running_var, ulps=32)
    y.sum().backward()
    assert x.grad.dtype == half and layer.weight.grad.dtype == layer.weight.dtype


def test_parameters_in_float64_do_not_widen_the_output():
    assert BatchNorm(3, dtype=torch.float64)(torch.randn(4, 3)).dtype == torch.float32


@everywhere
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("shape", "layout"), [((2, 3, 4, 5), torch.channels_last), ((2, 3, 2, 4, 5), torch.channels_last_3d)]
)
def test_channels_last_is_kept(shape, layout, training, device):
    layer, oracle = pair(3, device=device)
    x = drawn(shape, dtype=torch.float32, device=device).contiguous(memory_format=layout)
    y = layer.train(training)(x)
    assert y.is_contiguous(memory_format=layout)
    close(y, oracle.train(training)(lifted(x)).reshape(shape))


@pytest.mark.parametrize(
    "view",
    [lambda x: x[:, ::2], lambda x: x.flip(0)[::3], lambda x: x.transpose(0, 1)],
    ids=["channels", "rows", "transposed"],
)
def test_a_view_is_normalised_like_its_copy(view):
    x = view(drawn((9, 6, 5), dtype=torch.float32))
    layer, _ = pair(x.shape[1])
    close(layer(x), copy.deepcopy(layer)(x.contiguous()))


@everywhere
@pytest.mark.parametrize("training", [True, False])
def test_input_is_untouched(training, device):
    x = drawn((4, 3, 5), dtype=torch.float32, device=device)
    kept = x.clone()
    y = BatchNorm(3, device=device).train(training)(x)
    y.detach().zero_()
    assert torch.equal(x, kept)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_and_backward_on_meta(shape, training, momentum):
    layer = BatchNorm(shape[1], momentum=momentum, device="meta").train(training)
    x = torch.zeros(shape, device="meta", requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.is_meta and x.grad.is_meta and y.shape == shape


@pytest.mark.parametrize("device", ON_META)
def test_everything_follows_to(device):
    layer = BatchNorm(3).to(device=device, dtype=torch.float64)
    state = layer.state_dict()
    assert {v.device.type for v in state.values()} == {device}
    assert {v.dtype for v in state.values()} == {torch.float64, torch.int64}
    # A tensor in an attribute of its own would stay behind.
    assert not [name for name, v in vars(layer).items() if isinstance(v, torch.Tensor)]


@pytest.mark.parametrize("device", ON_META)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_device_and_dtype_arguments(dtype, device):
    for name, v in BatchNorm(3, device=device, dtype=dtype).state_dict().items():
        assert v.device.type == device and v.dtype == (torch.int64 if name == "num_batches_tracked" else dtype)


# --- the layer: buffers and state dict ---------------------------------------------------------------------------


def test_buffers_are_updated_in_place_without_a_graph():
    layer = BatchNorm(3)
    before = dict(layer.named_buffers())
    for _ in range(2):  # a graph in a buffer would break the second backward
        layer(drawn((5, 3), dtype=torch.float32).requires_grad_()).sum().backward()
    assert all(v is before[name] and not v.requires_grad for name, v in layer.named_buffers())
    assert before["num_batches_tracked"] == 2


def test_training_without_gradients_updates_too():
    layer = BatchNorm(3)
    with torch.no_grad():
        layer(drawn((5, 3), dtype=torch.float32))
    assert layer.num_batches_tracked == 1 and (layer.running_mean != 0).all()


def test_eval_changes_no_buffer():
    layer, _ = pair(3)
    before = copy.deepcopy(layer.state_dict())
    layer.eval()(drawn((5, 3), dtype=torch.float32))
    assert all(torch.equal(v, before[name]) for name, v in layer.state_dict().items())


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("tracks", [True, False])
def test_state_dict_has_torchs_keys_order_shapes_and_first_values(affine, tracks):
    got = BatchNorm(3, affine=affine, track_running_stats=tracks).state_dict()
    want = nn.BatchNorm2d(3, affine=affine, track_running_stats=tracks).state_dict()
    assert list(got) == list(want)
    assert all(torch.equal(got[key], v) and got[key].dtype == v.dtype for key, v in want.items())
    assert got._metadata[""] == want._metadata[""]


def test_state_dicts_load_both_ways():
    _, oracle = pair(3)
    layer = BatchNorm(3)
    layer.load_state_dict(oracle.state_dict())
    back = nn.BatchNorm1d(3)
    back.load_state_dict(layer.state_dict())
    assert all(torch.equal(v.double(), oracle.state_dict()[name].double()) for name, v in back.state_dict().items())


@pytest.mark.parametrize("version", [None, 1])
@pytest.mark.parametrize("device", ON_META)
def test_a_state_dict_of_before_version_2_loads_without_the_counter(version, device):
    state = nn.Sequential(nn.BatchNorm1d(3)).state_dict()
    del state["0.num_batches_tracked"]
    if version is None:
        state = dict(state)
    else:
        state._metadata["0"]["version"] = version
    net = nn.Sequential(BatchNorm(3, device=device))
    net.load_state_dict(state, assign=device == "meta")
    assert net[0].num_batches_tracked == 0 and net[0].num_batches_tracked.dtype == torch.int64


def test_a_state_dict_of_version_2_needs_the_counter():
    state = BatchNorm(3).state_dict()
    del state["num_batches_tracked"]
    with pytest.raises(RuntimeError, match="num_batches_tracked"):
        BatchNorm(3).load_state_dict(state)


def test_copies_are_independent():
    layer, _ = pair(3)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for twin in (copy.deepcopy(layer), torch.load(file, weights_only=False)):
        kept = layer.running_mean.clone()
        twin(drawn((5, 3), dtype=torch.float32))
        assert torch.equal(layer.running_mean, kept) and not torch.equal(twin.running_mean, kept)


def test_tracking_switched_off_later_keeps_the_old_statistics():
    # As torch does: the buffers stay, and serve in eval.
    layer, oracle = pair(3)
    layer.track_running_stats = oracle.track_running_stats = False
    x = drawn((5, 3), dtype=torch.float32)
    layer(x), oracle(lifted(x))
    assert layer.num_batches_tracked == oracle.num_batches_tracked == 3
    close(layer.eval()(x), oracle.eval()(lifted(x)).reshape(x.shape))


# --- the layer: edges and errors ---------------------------------------------------------------------------------


@everywhere
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4, 4), (4, 3, 0)])
def test_an_empty_batch_is_returned_and_not_counted(shape, training, momentum, device):
    layer, _ = pair(3, momentum=momentum, device=device)
    before = copy.deepcopy(layer.state_dict())
    x = torch.zeros(shape, device=device, requires_grad=True)
    y = layer.train(training)(x)
    y.sum().backward()
    assert y.shape == x.grad.shape == shape and (layer.weight.grad == 0).all()
    assert all(torch.equal(v, before[name]) for name, v in layer.state_dict().items())


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"track_running_stats": False}])
@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1, 1)])
def test_one_value_per_channel_is_refused_and_not_counted(shape, options):
    layer = BatchNorm(3, **options)
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(ValueError, match="expected more than 1 value per channel") as error:
        layer(torch.ones(shape))
    assert f"got an input of shape {shape}" in str(error.value)
    assert all(torch.equal(v, before[name]) for name, v in layer.state_dict().items())


def test_one_sample_with_several_positions_is_taken():
    assert BatchNorm(3)(torch.randn(1, 3, 2)).isfinite().all()


def test_one_value_per_channel_is_taken_in_eval():
    layer, oracle = pair(3)
    x = drawn((1, 3), dtype=torch.float32)
    close(layer.eval()(x), oracle.eval()(lifted(x)).reshape(1, 3))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(4, 2), "with C=3, got (4, 2)"),
        (torch.zeros(4, 1), "with C=3, got (4, 1)"),
        (torch.zeros(4, 5, 3), "with C=3, got (4, 5, 3)"),
        (torch.zeros(3), "got (3,)"),
        (torch.zeros(2, 3, 1, 1, 1, 1), "got (2, 3, 1, 1, 1, 1)"),
        (torch.zeros(4, 3).long(), "got torch.int64"),
        (np.zeros((4, 3)), "to be a tensor (N, C, ...), got ndarray"),
        (torch.zeros(4, 3, device="meta"), "expected weight on x's device, meta, got cpu"),
    ],
)
def test_a_wrong_input_is_refused(x, message, training):
    with pytest.raises(ValueError) as error:
        BatchNorm(3).train(training)(x)
    assert message in str(error.value)


@pytest.mark.parametrize("options", [{"affine": False}, {"affine": False, "track_running_stats": False}])
def test_wrong_channels_are_refused_without_parameters(options):
    with pytest.raises(ValueError, match="with C=3"):
        BatchNorm(3, **options)(torch.zeros(4, 5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_features": 0}, "expected num_features to be a whole number of at least 1, got 0"),
        ({"num_features": 2.5}, "expected num_features to be a whole number of at least 1, got 2.5"),
        ({"eps": -1e-5}, "expected eps to be a number of at least 0, got -1e-05"),
        ({"momentum": 1.5}, "expected momentum to be a number from 0 to 1, got 1.5"),
        ({"momentum": "0.1"}, "expected momentum to be a number from 0 to 1, got '0.1'"),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(ValueError) as error:
        BatchNorm(**{"num_features": 3, **options})
    assert message in str(error.value)


def test_print_shows_the_arguments():
    want = "BatchNorm(3, eps=1e-05, momentum=None, affine=False, track_running_stats=True)"
    assert repr(BatchNorm(3, momentum=None, affine=False)) == want


# --- is_batchnorm ------------------------------------------------------------------------------------------------


class _Derived(BatchNorm):
    pass


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm1d(2),
        nn.BatchNorm2d(2),
        nn.BatchNorm3d(2),
        nn.SyncBatchNorm(2),
        BatchNorm(2),
        _Derived(2),
        nn.LazyBatchNorm1d(),
        nn.LazyBatchNorm2d(),
        nn.LazyBatchNorm3d(),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_every_kind_of_batchnorm_is_one(layer):
    assert is_batchnorm(layer)


@pytest.mark.parametrize(
    "layer",
    [
        nn.InstanceNorm2d(2),
        nn.LazyInstanceNorm2d(),
        nn.GroupNorm(1, 2),
        nn.LayerNorm(2),
        nn.Linear(2, 2),
        nn.Sequential(nn.BatchNorm1d(2)),
        None,
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_nothing_else_is_one(layer):
    assert not is_batchnorm(layer)


def test_a_lazy_one_stays_one_when_it_becomes_real():
    lazy = nn.LazyBatchNorm1d()
    lazy(torch.randn(4, 2))
    assert is_batchnorm(lazy)


def test_a_forward_set_on_the_instance_is_its_own():
    layer = nn.BatchNorm1d(2)
    assert not has_own_forward(layer)
    layer.forward = lambda x: nn.BatchNorm1d.forward(layer, x).relu()
    assert has_own_forward(layer)


def test_a_plugged_in_batchnorm_is_the_courses(monkeypatch):
    class Mine(nn.Module):
        def forward(self, x):
            return x

    assert has_own_forward(Mine())
    monkeypatch.setattr(running_stats, "BatchNorm", Mine)
    assert not has_own_forward(Mine())
