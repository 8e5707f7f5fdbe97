"""Topic 3: gradients in both modes against torch, who is in which mode, the clinic, and the judge of layers."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from course_lib.misconceptions.modes_layers_wrong import WRONG, wrong_layer
from course_lib.modes import (
    BatchNormFunction,
    accepts,
    batch_norm_eval_backward,
    bn_modes,
    clinic_biased_var,
    clinic_grad_mode,
    clinic_graph_in_buffers,
    clinic_momentum,
    clinic_no_eval,
    clinic_plain_buffers,
    evaluating,
    predict,
)
from course_lib.running_stats import BatchNorm
from tests.devices import DEVICES
from tests.models import KINDS, drawn, same_state, small_net, state_of
from tests.right_answers.layers import LAYERS

SHAPES = [(7, 3), (4, 3, 5), (3, 4, 5, 2), (2, 3, 2, 4, 3)]
HALVES = [torch.float16, torch.bfloat16]
FLOATS = [torch.float32, torch.float64]
everywhere = pytest.mark.parametrize("device", DEVICES)


def positive(channels, *, seed=0, dtype=torch.float64, device="cpu"):
    values = np.random.default_rng(seed).uniform(0.5, 2, channels)
    return torch.from_numpy(values).to(device=device, dtype=dtype)


def close(got, want, ulps=64):
    """Equal up to some units in the last place of the largest value, whatever the dtype of `want`."""
    atol = ulps * torch.finfo(got.dtype).eps * (want.abs().max().item() or 1)
    torch.testing.assert_close(got.double(), want.double(), rtol=0, atol=atol)


# --- batch_norm_eval_backward ---------------------------------------------------------------------------------------


@everywhere
@pytest.mark.parametrize("eps", [1e-5, 0.7])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_eval_backward_equals_torchs_autograd(shape, dtype, eps, device):
    x, dy = (drawn(shape, seed=seed, dtype=dtype, device=device) for seed in (0, 1))
    mean, var, weight, bias = (positive(shape[1], seed=seed, dtype=dtype, device=device) for seed in range(4))
    leaves = [v.double().requires_grad_() for v in (x, weight, bias)]
    y = nn.functional.batch_norm(leaves[0], mean.double(), var.double(), *leaves[1:], eps=eps)
    want = torch.autograd.grad(y, leaves, dy.double())
    for got, truth in zip(batch_norm_eval_backward(dy, x, mean, var, weight, eps), want, strict=True):
        assert got.dtype == dtype
        close(got, truth)


def test_eval_backward_has_torchs_default_eps():
    arguments = [drawn((4, 3), seed=i) for i in (0, 1)] + [positive(3), 1e-4 * positive(3), positive(3)]
    one, other = (batch_norm_eval_backward(*arguments, *eps) for eps in ((), (nn.BatchNorm1d(3).eps,)))
    assert torch.equal(one[0], other[0])


def test_eval_backward_couples_no_samples():
    dy = torch.zeros(5, 3, dtype=torch.float64)
    dy[2] = 1
    dx, *_ = batch_norm_eval_backward(dy, drawn((5, 3)), positive(3), positive(3), positive(3))
    assert dx.any(1).tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("half", HALVES)
def test_eval_backward_of_half_input_has_float32_sums(half):
    x, dy = drawn((4096, 2), dtype=half), drawn((4096, 2), seed=1, dtype=half)
    mean, var = torch.zeros(2, dtype=half), torch.ones(2, dtype=half)
    dx, dweight, dbias = batch_norm_eval_backward(dy, x, mean, var, torch.ones(2), 0.0)
    assert (dx.dtype, dweight.dtype, dbias.dtype) == (half, torch.float32, torch.float32)
    close(dweight, (dy.double() * x.double()).sum(0))
    close(dbias, dy.double().sum(0))


def test_eval_backward_runs_on_meta():
    x = torch.zeros(4, 3, 5, device="meta")
    assert all(v.is_meta for v in batch_norm_eval_backward(x, x, *torch.ones(3, 3, device="meta")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dy": torch.zeros(4, 3, 1)}, "expected dy of x's shape (4, 3), got (4, 3, 1)"),
        ({"x": torch.zeros(4)}, "got (4,)"),
        ({"dy": torch.zeros(4, 3).long()}, "expected dy of a floating-point dtype, got torch.int64"),
        ({"running_mean": torch.zeros(1)}, "expected running_mean of shape (3,), one value per channel of x, got (1,)"),
        ({"running_var": torch.zeros(3, 1)}, "expected running_var of shape (3,)"),
        ({"weight": None}, "expected weight to be a tensor of shape (3,), got NoneType"),
        ({"weight": torch.ones(3, device="meta")}, "expected weight on x's device, cpu, got meta"),
        ({"eps": -1.0}, "expected eps to be a number of at least 0, got -1.0"),
    ],
)
def test_eval_backward_refuses_with_expected_and_got(change, message):
    names = ("running_mean", "running_var", "weight")
    arguments = {"dy": torch.zeros(4, 3), "x": torch.zeros(4, 3)} | {name: torch.ones(3) for name in names}
    with pytest.raises(ValueError) as error:
        batch_norm_eval_backward(**(arguments | change))
    assert message in str(error.value)


# --- BatchNormFunction ----------------------------------------------------------------------------------------------


def function_of(training, *, momentum=0.1, eps=1e-5):
    return lambda x, weight, bias, mean, var: BatchNormFunction.apply(
        x, weight, bias, mean, var, training, momentum, eps
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("with_buffers", [True, False])
@pytest.mark.parametrize(("with_weight", "with_bias"), [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("shape", [(4, 2), (2, 2, 2, 2)])
def test_gradcheck_in_both_modes(shape, with_weight, with_bias, with_buffers, training):
    x = drawn(shape).requires_grad_()
    weight, bias = (
        positive(2, seed=i).requires_grad_() if on else None for i, on in ((1, with_weight), (2, with_bias))
    )
    # Momentum 0: an update would change the eval function between two of gradcheck's calls.
    mean, var = (positive(2, seed=i) if with_buffers else None for i in (3, 4))
    assert torch.autograd.gradcheck(function_of(training, momentum=0.0, eps=0.1), (x, weight, bias, mean, var))


@everywhere
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_function_equals_torchs(shape, training, dtype, device):
    given = [drawn(shape, dtype=dtype, device=device)]
    given += [positive(shape[1], seed=i, dtype=dtype, device=device) for i in (1, 2)]
    buffers = [positive(shape[1], seed=i, dtype=dtype, device=device) for i in (3, 4)]
    leaves, exact = [v.clone().requires_grad_() for v in given], [v.double().requires_grad_() for v in given]
    exact_buffers = [v.double() for v in buffers]
    y = function_of(training, momentum=0.3, eps=0.01)(*leaves, *buffers)
    want = nn.functional.batch_norm(exact[0], *exact_buffers, *exact[1:], training, 0.3, 0.01)
    close(y, want)
    dy = drawn(shape, seed=9, dtype=dtype, device=device)
    for got, truth in zip(
        torch.autograd.grad(y, leaves, dy), torch.autograd.grad(want, exact, dy.double()), strict=True
    ):
        close(got, truth, ulps=256)
    for got, truth in zip(buffers, exact_buffers, strict=True):
        close(got, truth)


@pytest.mark.parametrize("wanted", list(itertools.product([True, False], repeat=3)))
def test_only_the_gradients_that_are_wanted_come(wanted):
    leaves = [drawn((5, 3)), positive(3), positive(3)]
    for leaf, on in zip(leaves, wanted, strict=True):
        leaf.requires_grad_(on)
    y = function_of(True)(*leaves, None, None)
    assert y.requires_grad == any(wanted)
    if any(wanted):
        y.sum().backward()
    assert tuple(leaf.grad is not None for leaf in leaves) == wanted


def test_function_updates_buffers_in_place_without_a_graph():
    mean, var = torch.zeros(3), torch.ones(3)
    where = mean.data_ptr(), var.data_ptr()
    x = drawn((5, 3), dtype=torch.float32).requires_grad_()
    function_of(True, momentum=1.0)(x, None, None, mean, var)
    assert (mean.data_ptr(), var.data_ptr()) == where and not mean.requires_grad and not var.requires_grad
    close(mean, x.detach().mean(0))
    close(var, x.detach().var(0))


def test_function_in_eval_leaves_buffers_alone():
    mean, var = torch.zeros(3), torch.ones(3)
    function_of(False)(torch.randn(5, 3), None, None, mean, var)
    assert mean.tolist() == [0.0] * 3 and var.tolist() == [1.0] * 3


def test_eval_gradient_is_not_changed_by_a_later_update():
    weight, mean, var = (positive(3, seed=i) for i in range(3))
    x = drawn((4, 3)).requires_grad_()
    weight.requires_grad_()
    y = function_of(False)(x, weight, None, mean, var)
    want = batch_norm_eval_backward(torch.ones(4, 3).double(), x.detach(), mean, var, weight.detach())
    with torch.no_grad():
        function_of(True)(drawn((9, 3), seed=5, std=7.0), weight, None, mean, var)
    y.sum().backward()
    close(x.grad, want[0])
    close(weight.grad, want[1])


def test_without_buffers_the_batch_normalises_in_eval():
    x = drawn((5, 3))
    assert torch.equal(function_of(False)(x, None, None, None, None), function_of(True)(x, None, None, None, None))


@everywhere
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("half", HALVES)
def test_half_input_has_float32_statistics(half, training, device):
    x = drawn((4096, 2), mean=30.0, dtype=half, device=device).requires_grad_()
    weight = torch.ones(2, device=device, requires_grad=True)
    bias = torch.zeros(2, dtype=half, device=device, requires_grad=True)
    mean, var = torch.zeros(2, device=device), torch.ones(2, device=device)
    y = function_of(training, momentum=1.0)(x, weight, bias, mean, var)
    y.backward(torch.ones_like(y))
    assert y.dtype == x.grad.dtype == bias.grad.dtype == half and mean.dtype == weight.grad.dtype == torch.float32
    if training:
        exact = x.detach().double()
        close(mean, exact.mean(0), ulps=8)
        close(var, exact.var(0), ulps=32)
        close(y, (exact - exact.mean(0)) / (exact.var(0, correction=0) + 1e-5).sqrt(), ulps=4)


@pytest.mark.parametrize("mean", [1e4, 1e6])
def test_function_keeps_its_digits_when_the_mean_is_large(mean):
    x = drawn((64, 3, 8), mean=mean, std=1.0, dtype=torch.float32).requires_grad_()
    dy = drawn((64, 3, 8), seed=1, dtype=torch.float32)
    exact = x.detach().double().requires_grad_()
    want = nn.functional.batch_norm(exact, None, None, training=True)
    y = function_of(True)(x, None, None, None, None)
    close(y, want, ulps=16)
    y.backward(dy)
    want.backward(dy.double())
    close(x.grad, exact.grad, ulps=64)


# Where the loss is linear in y, the gradient that comes in has no graph.
@pytest.mark.parametrize("loss", [lambda y: y.square().sum(), lambda y: (y * drawn((4, 3), seed=1)).sum()])
@pytest.mark.parametrize("training", [True, False])
def test_a_second_derivative_is_refused_not_wrong(training, loss):
    x, weight = drawn((4, 3)).requires_grad_(), torch.ones(3, dtype=torch.float64, requires_grad=True)
    mean, var = torch.zeros(3), torch.ones(3)
    y = function_of(training)(x, weight, None, mean, var)
    for gradient in torch.autograd.grad(loss(y), [x, weight], create_graph=True):
        with pytest.raises(RuntimeError, match="differentiable_once"):
            gradient.square().sum().backward(retain_graph=True)


@pytest.mark.parametrize("training", [True, False])
def test_function_takes_an_empty_batch(training):
    mean, var = torch.full((3,), 2.0), torch.full((3,), 3.0)
    x, weight = torch.zeros(0, 3, 4, requires_grad=True), torch.ones(3, requires_grad=True)
    y = function_of(training)(x, weight, None, mean, var)
    y.sum().backward()
    assert y.shape == x.grad.shape == (0, 3, 4) and weight.grad.tolist() == [0.0] * 3
    assert mean.tolist() == [2.0] * 3 and var.tolist() == [3.0] * 3


@pytest.mark.parametrize("training", [True, False])
def test_function_runs_on_meta(training):
    x, weight = (
        torch.zeros(4, 3, 5, device="meta", requires_grad=True),
        torch.ones(3, device="meta", requires_grad=True),
    )
    y = function_of(training)(x, weight, None, *torch.ones(2, 3, device="meta"))
    y.sum().backward()
    assert y.is_meta and x.grad.is_meta and weight.grad.is_meta


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_function_keeps_the_layout(layout, training):
    x = drawn((2, 3, 4, 5)).contiguous(memory_format=layout)
    assert function_of(training)(x, None, None, *torch.ones(2, 3)).is_contiguous(memory_format=layout)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(1, 3)}, "expected more than 1 value per channel, got an input of shape (1, 3)"),
        ({"x": torch.zeros(4)}, "got (4,)"),
        ({"x": torch.zeros(4, 3).int()}, "got torch.int32"),
        ({"x": torch.zeros(4, 2)}, "expected weight of shape (2,), one value per channel of x, got (3,)"),
        ({"bias": torch.zeros(1)}, "expected bias of shape (3,), one value per channel of x, got (1,)"),
        ({"running_var": None}, "expected running_mean and running_var, or None for both, got running_mean alone"),
        ({"running_mean": None}, "got running_var alone"),
        ({"running_mean": torch.zeros(3, device="meta")}, "expected running_mean on x's device, cpu, got meta"),
        ({"momentum": None}, "expected momentum to be a number from 0 to 1, got None"),
        ({"eps": -1.0}, "expected eps to be a number of at least 0, got -1.0"),
    ],
)
def test_function_refuses_with_expected_and_got(change, message):
    names = ("weight", "bias", "running_mean", "running_var")
    arguments = {"x": torch.zeros(4, 3)} | {name: torch.ones(3) for name in names}
    arguments |= {"training": True, "momentum": 0.1, "eps": 1e-5} | change
    with pytest.raises(ValueError) as error:
        BatchNormFunction.apply(*arguments.values())
    assert message in str(error.value)


# --- bn_modes, evaluating, predict ----------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", KINDS, ids=lambda layer: type(layer).__name__)
def test_bn_modes_sees_every_kind(layer):
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(layer), nn.InstanceNorm1d(2), nn.Dropout())
    assert bn_modes(net.train()) == {"1.0": "train"}
    assert bn_modes(net.eval()) == {"1.0": "eval"}


def test_bn_modes_asks_each_layer():
    assert bn_modes(small_net()) == {"1": "train", "5": "eval"}


def test_bn_modes_of_a_shared_layer_of_a_root_and_of_none():
    layer = nn.BatchNorm1d(2)
    assert bn_modes(nn.Sequential(layer, nn.ReLU(), layer)) == {"0": "train"}
    assert bn_modes(layer) == {"": "train"}
    assert bn_modes(nn.Linear(2, 2)) == {}


def test_evaluating_puts_everything_into_eval_and_each_mode_back():
    net = small_net()
    before = [module.training for module in net.modules()]
    assert len(set(before)) == 2
    with evaluating(net) as inside:
        assert inside is net and not any(module.training for module in net.modules())
        with evaluating(net):
            pass
        assert not any(module.training for module in net.modules())
    assert [module.training for module in net.modules()] == before


def test_evaluating_restores_after_an_exception():
    net = small_net()
    before = [module.training for module in net.modules()]
    with pytest.raises(KeyError, match="inside"), evaluating(net):
        raise KeyError("inside")
    assert [module.training for module in net.modules()] == before


def test_evaluating_restores_a_module_that_refuses_train():
    class Stubborn(nn.BatchNorm1d):
        def train(self, mode=True):
            return super().train(False)

    net = nn.Sequential(Stubborn(2))
    net[0].training = True
    with evaluating(net):
        assert bn_modes(net) == {"0": "eval"}
    assert bn_modes(net) == {"0": "train"}


class Merging(nn.Linear):
    """As low-rank adapters do it: for evaluation the addition is part of the weight, for training it is not."""

    merged = False

    def train(self, mode=True):
        if mode == self.merged:
            self.weight.data += -1.0 if self.merged else 1.0
            self.merged = not mode
        return super().train(mode)


def test_evaluating_undoes_what_a_module_does_beside_its_flag():
    net = nn.Sequential(nn.Sequential(Merging(2, 2), nn.Dropout()), Merging(2, 2).eval())
    (outer, inner), weights = (net[1], net[0][0]), [p.clone() for p in net.parameters()]
    net[0][1].eval()
    with evaluating(net):
        assert inner.merged and outer.merged
    assert (inner.merged, outer.merged) == (False, True)
    assert [m.training for m in net.modules()] == [True, True, True, False, False]
    for now, then in zip(net.parameters(), weights, strict=True):
        torch.testing.assert_close(now, then)


@everywhere
@pytest.mark.parametrize("sizes", [[6], [1] * 6, [2, 4], [5, 0, 1]])
def test_predict_does_not_depend_on_the_batches(sizes, device):
    net, x = small_net().to(device), drawn((6, 1, 4, 4), seed=3, dtype=torch.float32, device=device)
    got = predict(net, x.split(sizes))
    torch.testing.assert_close(got, torch.cat([copy.deepcopy(net).eval()(row) for row in x.split(1)]))


def test_predict_leaves_no_trace():
    net = small_net()
    before = state_of(net)
    y = predict(net, (x for x in drawn((6, 1, 4, 4), dtype=torch.float32).split(3)))
    assert not y.requires_grad
    same_state(net, before)


def test_predict_restores_modes_when_the_data_fail():
    def batches():
        yield drawn((2, 1, 4, 4), dtype=torch.float32)
        raise KeyError("no more")

    net = small_net()
    before = state_of(net)
    with pytest.raises(KeyError, match="no more"):
        predict(net, batches())
    same_state(net, before)


def test_predict_runs_on_meta():
    net = small_net().to("meta")
    assert predict(net, [torch.zeros(2, 1, 4, 4, device="meta")]).is_meta


@pytest.mark.parametrize(
    ("model", "batches", "message"),
    [
        (nn.BatchNorm1d(3), [], "expected at least one batch, got none"),
        (nn.BatchNorm1d(3), torch.zeros(4, 3), "expected an iterable of batches, got one tensor (4, 3)"),
        (
            nn.BatchNorm1d(3),
            [(torch.zeros(4, 3), 0)],
            "expected every batch to be a tensor, got tuple: leave labels out",
        ),
        (nn.LSTM(3, 2), [torch.zeros(4, 3)], "expected the model to return a tensor, got tuple"),
        (len, [torch.zeros(4, 3)], "expected an nn.Module, got builtin_function_or_method"),
        (
            nn.Sequential(BatchNorm(3, track_running_stats=False)),
            [torch.zeros(4, 3)],
            "expected running statistics in layer '0', got track_running_stats=False",
        ),
    ],
)
def test_predict_refuses_with_expected_and_got(model, batches, message):
    with pytest.raises(ValueError) as error:
        predict(model, batches)
    assert message in str(error.value)


@pytest.mark.parametrize("f", [bn_modes, lambda model: evaluating(model).__enter__()])
def test_a_model_is_a_module(f):
    with pytest.raises(ValueError, match=r"expected an nn\.Module, got dict"):
        f({})


# --- the clinic -----------------------------------------------------------------------------------------------------


@everywhere
@pytest.mark.parametrize("training", [True, False])
def test_accuracy_does_not_depend_on_mode_or_company_and_leaves_no_trace(training, device):
    net = small_net().to(device).train(training)
    x = drawn((40, 1, 4, 4), seed=3, mean=-1.0, dtype=torch.float32, device=device)
    labels = copy.deepcopy(net).eval()(x).argmax(1)
    labels[:10] = (labels[:10] + 1) % 4
    before = state_of(net)
    assert clinic_no_eval(net, x, labels) == 0.75
    assert clinic_no_eval(net, x[20:], labels[20:]) == 1.0
    assert clinic_no_eval(net, x[:1], labels[:1]) == 0.0
    same_state(net, before)


@everywhere
def test_centring_layer_keeps_its_mean_as_a_buffer(device):
    layer = clinic_plain_buffers(3, momentum=0.5).to(device=device, dtype=torch.float64)
    held, x = layer.running_mean, drawn((5, 3), device=device)
    assert not list(layer.parameters()) and list(layer.state_dict()) == ["running_mean"]
    for _ in range(2):
        y = layer(x.clone().requires_grad_())
        y.sum().backward()
    close(y.detach(), x - x.mean(0))
    close(held, 0.75 * x.mean(0))
    assert layer.running_mean is held and not held.requires_grad
    kept = held.clone()
    close(layer.eval()(x[:1]), x[:1] - kept)
    assert torch.equal(held, kept)


@everywhere
@pytest.mark.parametrize("shape", SHAPES)
def test_running_mean_holds_no_graph(shape, device):
    here = {"dtype": torch.float64, "device": device}
    mean, slope = torch.zeros(shape[1], **here), torch.ones((), **here, requires_grad=True)
    x, held = drawn(shape, device=device), mean
    for _ in range(2):
        assert clinic_graph_in_buffers(mean, slope * x, 0.5) is None
        (slope * x).sum().backward()
    assert mean is held and not mean.requires_grad
    close(mean, 0.75 * x.mean((0, *range(2, x.dim()))))


@everywhere
@pytest.mark.parametrize("grad", [True, False])
def test_input_gradient_is_that_of_the_predicting_model(grad, device):
    net, x = small_net().to(device), drawn((6, 1, 4, 4), seed=3, dtype=torch.float32, device=device)
    before, kept = state_of(net), x.clone()
    with torch.set_grad_enabled(grad):
        got = clinic_grad_mode(net, x)
    assert not got.requires_grad and not x.requires_grad and torch.equal(x, kept)
    same_state(net, before)
    leaf = x.clone().requires_grad_()
    copy.deepcopy(net).eval()(leaf).sum().backward()
    close(got, leaf.grad)
    torch.testing.assert_close(clinic_grad_mode(net, x[:1]), got[:1])


@everywhere
@pytest.mark.parametrize(("momentum", "want"), [(0.0, 2.0), (1.0, 6.0), (0.25, 3.0)])
def test_momentum_is_the_weight_of_the_new_value(momentum, want, device):
    running = torch.tensor([2.0], device=device)
    assert clinic_momentum(running, torch.tensor([6.0], device=device), momentum).item() == want
    assert running.item() == 2.0


@everywhere
@pytest.mark.parametrize("shape", SHAPES)
def test_running_variance_takes_the_unbiased_one_of_all_values(shape, device):
    x, want = drawn(shape, device=device).requires_grad_(), torch.ones(shape[1], dtype=torch.float64, device=device)
    got = want.clone()
    nn.functional.batch_norm(x, want.clone(), want, training=True, momentum=0.3)
    assert clinic_biased_var(got, x, 0.3) is None
    close(got, want)
    assert not got.requires_grad


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: clinic_no_eval(nn.Identity(), torch.ones(4, 3), torch.ones(4, 1)), "expected labels of shape (N,)"),
        (lambda: clinic_no_eval(nn.Identity(), torch.ones(0, 3), torch.ones(0)), "with N=0 ≥ 1, got (0,)"),
        (lambda: clinic_plain_buffers(0), "expected num_features to be a whole number of at least 1, got 0"),
        (lambda: clinic_plain_buffers(3, momentum=2), "expected momentum to be a number from 0 to 1, got 2"),
        (lambda: clinic_plain_buffers(3)(torch.ones(4, 2)), "with C=3, got (4, 2)"),
        (lambda: clinic_plain_buffers(3)(torch.ones(4, 3, 2)), "2-D, got (4, 3, 2)"),
        (lambda: clinic_graph_in_buffers(torch.ones(2), torch.ones(4, 3), 0.1), "expected running_mean of shape (3,)"),
        (lambda: clinic_graph_in_buffers(torch.ones(3), torch.ones(0, 3), 0.1), "at least 1 value per channel"),
        (lambda: clinic_graph_in_buffers(torch.ones(3), torch.ones(4, 3), -1), "from 0 to 1, got -1"),
        (lambda: clinic_grad_mode(nn.Identity(), torch.ones(4).long()), "floating-point dtype, got torch.int64"),
        (lambda: clinic_momentum(torch.ones(2), torch.ones(3), 0.1), "of one shape, got (2,) and (3,)"),
        (
            lambda: clinic_momentum(torch.ones(2), torch.ones(2), 7),
            "expected momentum to be a number from 0 to 1, got 7",
        ),
        (lambda: clinic_biased_var(torch.ones(3), torch.ones(1, 3), 0.1), "more than 1 value per channel"),
        (lambda: clinic_biased_var(torch.ones(2), torch.ones(4, 3), 0.1), "expected running_var of shape (3,)"),
        (lambda: clinic_biased_var(torch.ones(3), torch.ones(4, 3), None), "from 0 to 1, got None"),
    ],
)
def test_clinic_refuses_with_expected_and_got(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert message in str(error.value)


# --- accepts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_a_right_layer_is_accepted(name):
    assert accepts(LAYERS[name]) is True


@pytest.mark.filterwarnings("ignore")  # a wrong layer may warn about what it does
@pytest.mark.parametrize("family", WRONG)
def test_wrong_layers_are_rejected(family):
    assert len({style for style, _ in WRONG[family]}) == 4
    verdicts = {(style, i): accepts(wrong_layer(style, edits)) for i, (style, edits) in enumerate(WRONG[family])}
    assert [which for which, verdict in verdicts.items() if verdict is not False] == []


@pytest.mark.parametrize(
    "cls",
    [nn.BatchNorm1d, nn.BatchNorm2d, nn.InstanceNorm2d, nn.LazyBatchNorm2d, nn.Identity, nn.LayerNorm, int, None],
    ids=str,
)
def test_what_is_no_such_layer_is_rejected(cls):
    # BatchNorm1d refuses maps, BatchNorm2d refuses tables.
    assert accepts(cls) is False


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seconds_class", [BatchNorm, LAYERS["Plain"]])
def test_the_name_plays_no_part(seconds_class):
    renamed = type("Wrong", (seconds_class,), {"__module__": "nowhere"})
    wrong = wrong_layer("Plain", [("correction=1", "correction=0")])
    wrong.__name__ = "BatchNorm"
    assert accepts(renamed) and not accepts(wrong)


def test_accepts_works_without_gradients_and_leaves_the_random_state():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with torch.no_grad():
        assert accepts(BatchNorm)
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_accepts_does_not_swallow_an_interrupt(error):
    class Interrupted(BatchNorm):
        def forward(self, x):
            raise error

    with pytest.raises(error):
        accepts(Interrupted)
