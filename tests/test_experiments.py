"""What chapters run again and again: networks with known weights, a training loop, and measurements on both."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from course_lib.data import digits, minibatches
from course_lib.experiments import (
    SeparateDevices,
    accuracy,
    best_rate,
    cross_entropy,
    distance,
    fit,
    gaussian,
    length_of_history,
    mlp,
    row,
    span,
    spreads,
    time_ratios,
    train,
    with_numbers,
)


def plain(c):
    return [nn.ReLU()]


def normed(c):
    return [nn.BatchNorm1d(c), nn.ReLU()]


@pytest.fixture(scope="module")
def data():
    return digits()


def linear_layers(model):
    return [layer for layer in model if isinstance(layer, nn.Linear)]


# --- the network ----------------------------------------------------------------------------------------------------


def test_a_block_stands_behind_every_linear_layer_but_the_last():
    kinds = [type(layer) for layer in mlp(normed, depth=2)]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU] * 2 + [nn.Linear]


def test_the_block_is_told_the_number_of_features():
    asked = []
    mlp(lambda c: asked.append(c) or [], depth=3, width=7)
    assert asked == [7, 7, 7]


@pytest.mark.parametrize("gain", [0.3, 1.0, 2.0])
def test_the_gain_scales_the_hidden_weights_and_leaves_the_last_layer(gain):
    *hidden, last = linear_layers(mlp(plain, gain=gain, depth=3, seed=4))
    *usual, usual_last = linear_layers(mlp(plain, depth=3, seed=4))
    assert all(torch.allclose(a.weight, gain * b.weight) for a, b in zip(hidden, usual, strict=True))
    assert torch.equal(last.weight, usual_last.weight)


def test_weights_have_the_variance_of_he():
    for layer in linear_layers(mlp(plain, width=256, depth=2)):
        assert layer.weight.var().item() == pytest.approx(2 / layer.in_features, rel=0.1)
        assert (layer.bias == 0).all()


def test_weights_come_from_the_seed_alone():
    torch.manual_seed(1)
    first = mlp(plain, seed=3)
    torch.manual_seed(2)
    again, other = mlp(plain, seed=3), mlp(plain, seed=4)
    assert torch.equal(first[0].weight, again[0].weight) and not torch.equal(first[0].weight, other[0].weight)


# --- training -------------------------------------------------------------------------------------------------------


def by_hand(model, data, lr, steps, *, momentum=0.0, fade=False):
    """The same training with the update written out."""
    velocity, losses = [torch.zeros_like(p) for p in model.parameters()], []
    for step, i in enumerate(minibatches(len(data.x_train), 64, steps, seed=0)):
        rate = lr * (1 - step / steps) if fade else lr
        loss = F.cross_entropy(model(data.x_train[i]), data.y_train[i])
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for p, v, g in zip(model.parameters(), velocity, gradients, strict=True):
                v.mul_(momentum).add_(g)
                p.sub_(rate * v)
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("fade", [False, True])
def test_training_is_gradient_descent(data, momentum, fade):
    model, twin = (mlp(normed, depth=2, seed=1) for _ in range(2))
    losses = train(model, data, 0.05, steps=8, momentum=momentum, fade=fade)
    np.testing.assert_allclose(losses, by_hand(twin, data, 0.05, 8, momentum=momentum, fade=fade), rtol=1e-4)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-5)


def test_the_first_loss_is_that_of_the_untrained_network(data):
    model = mlp(plain, depth=1)
    [i] = minibatches(len(data.x_train), 32, 1, seed=5)
    expected = cross_entropy(model, data.x_train[i], data.y_train[i])
    assert train(model, data, size=32, steps=3, seed=5)[0] == pytest.approx(expected)


def test_only_the_first_samples_are_trained_on(data):
    spoiled = data._replace(x_train=data.x_train.clone())
    spoiled.x_train[200:] = float("nan")
    assert np.isfinite(train(mlp(plain, depth=1), spoiled, steps=20, samples=200)).all()
    assert not np.isfinite(train(mlp(plain, depth=1), spoiled, steps=20)).all()


@pytest.mark.parametrize("training", [True, False])
def test_training_leaves_the_mode_alone(data, training):
    model = mlp(normed, depth=1).train(training)
    train(model, data, steps=2)
    assert model.training is training
    assert model[1].num_batches_tracked.item() == (2 if training else 0)


def test_it_says_when_a_step_is_done(data):
    model, seen = mlp(plain, depth=1), []
    train(model, data, steps=3, after=lambda step: seen.append((step, model[0].weight.clone())))
    assert [step for step, _ in seen] == [1, 2, 3]
    assert torch.equal(seen[-1][1], model[0].weight) and not torch.equal(seen[0][1], seen[1][1])


def test_it_stops_at_a_loss_that_is_not_a_number(data):
    calls = []
    losses = train(mlp(plain, gain=2.0), data, lr=1e6, steps=30, after=calls.append)
    first = int(np.isnan(losses).argmax())
    assert losses.shape == (30,) and 0 < first < 29
    assert np.isnan(losses[first:]).all() and not np.isnan(losses[:first]).any() and calls == list(range(1, first + 1))


# --- measurements ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [None, 1, 3, 4, 100])
def test_accuracy_is_the_share_of_right_answers_however_the_inputs_are_cut(size):
    logits, labels = torch.eye(4), torch.tensor([0, 1, 2, 0])
    assert accuracy(nn.Identity(), logits, labels, size) == 0.75


def test_accuracy_leaves_mode_and_gradients_alone():
    model = mlp(normed, depth=1).eval()
    accuracy(model, torch.rand(8, 64), torch.zeros(8, dtype=torch.int64))
    assert not model.training and all(p.grad is None for p in model.parameters())
    assert model[1].num_batches_tracked.item() == 0


def test_in_training_mode_every_part_moves_the_buffers():
    model = mlp(normed, depth=1)
    accuracy(model, torch.rand(9, 64), torch.zeros(9, dtype=torch.int64), size=3)
    assert model[1].num_batches_tracked.item() == 3


def test_cross_entropy_is_the_mean_of_minus_the_log_of_the_right_share():
    logits, labels = gaussian(6, 10, seed=2), torch.tensor([0, 9, 3, 3, 1, 7])
    shares = logits.double().exp() / logits.double().exp().sum(1, keepdim=True)
    expected = -shares[torch.arange(6), labels].log().mean().item()
    assert cross_entropy(nn.Identity(), logits, labels) == pytest.approx(expected)


def test_spreads_are_those_behind_the_hidden_linear_layers():
    model, x = mlp(plain, depth=2, seed=1), gaussian(16, 64)
    first = model[0](x)
    second = model[2](first.relu())
    assert spreads(model, x) == pytest.approx([first.std().item(), second.std().item()])


def test_gaussian_has_the_mean_and_the_deviation_that_was_asked_for():
    x = gaussian(200, 100, mean=5.0, std=2.0, seed=1)
    assert (x.shape, x.dtype) == ((200, 100), torch.float32)
    assert x.mean().item() == pytest.approx(5, abs=0.1) and x.std().item() == pytest.approx(2, abs=0.1)


def test_gaussian_comes_from_the_seed_alone():
    torch.manual_seed(1)
    assert torch.equal(gaussian(5, seed=3), gaussian(5, seed=3)) and not torch.equal(gaussian(5), gaussian(5, seed=1))


@pytest.mark.parametrize(
    ("values", "digits", "text"),
    [([2.0, 1.0, 3.0], 1, "1.0 to 3.0"), (np.array([0.5]), 3, "0.500 to 0.500"), ((-1, 1), 0, "-1 to 1")],
)
def test_a_span_is_the_lowest_and_the_highest(values, digits, text):
    assert span(values, digits) == text


def test_history_grows_with_every_operation_and_ends_at_no_grad():
    x = torch.ones(3, requires_grad=True)
    y = x
    lengths = []
    for _ in range(4):
        y = y + 1
        lengths.append(length_of_history(y))
    assert lengths == [2, 3, 4, 5]
    with torch.no_grad():
        assert length_of_history(y * 2) == 0
    assert length_of_history(y.detach()) == length_of_history(torch.ones(3)) == 0


def test_a_node_that_is_used_twice_counts_once():
    x = torch.ones(3, requires_grad=True)
    y = x * 2
    assert length_of_history(y + y) == length_of_history(y) + 1


# --- gradient descent on batches of the caller -----------------------------------------------------------------------


def line(n=16):
    x = torch.linspace(-1, 1, n)[:, None]
    return x, 3 * x


def test_fit_is_gradient_descent_and_nothing_else():
    x, y = line()
    model, by_hand = nn.Linear(1, 1), nn.Linear(1, 1)
    by_hand.load_state_dict(model.state_dict())
    fit(model, [(x, y)] * 3, F.mse_loss, lr=0.1)
    for _ in range(3):
        by_hand.zero_grad()
        F.mse_loss(by_hand(x), y).backward()
        with torch.no_grad():
            for parameter in by_hand.parameters():
                parameter -= 0.1 * parameter.grad
    torch.testing.assert_close(model.state_dict(), by_hand.state_dict())


def test_fit_returns_the_loss_before_each_step():
    x, y = line()
    model = nn.Linear(1, 1)
    first = F.mse_loss(model(x), y).item()
    losses = fit(model, [(x, y)] * 4, F.mse_loss, lr=0.1)
    assert losses.shape == (4,)
    assert losses[0] == pytest.approx(first)
    assert (np.diff(losses) < 0).all()


def test_fit_draws_one_pair_a_step():
    x, y = line()
    drawn = iter([(x, y)] * 5)
    assert len(fit(nn.Linear(1, 1), drawn, F.mse_loss, lr=0.1)) == 5
    assert next(drawn, None) is None


@pytest.mark.parametrize("training", [True, False])
def test_fit_leaves_the_mode_to_the_caller(training):
    x, y = line()
    model = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1)).train(training)
    fit(model, [(x, y)] * 2, F.mse_loss, lr=0.1)
    assert model.training is training
    assert model[0].num_batches_tracked == (2 if training else 0)


def test_what_is_frozen_is_not_trained(data):
    model = mlp(plain, depth=1)
    model[0].requires_grad_(False)
    first, last = model[0].weight.clone(), model[-1].weight.clone()
    fit(model, [(data.x_train[:8], data.y_train[:8])] * 3, F.cross_entropy, lr=0.1)
    assert torch.equal(model[0].weight, first) and not torch.equal(model[-1].weight, last)


def test_at_rate_zero_fit_only_looks(data):
    model = mlp(normed, depth=1)
    first = copy.deepcopy(model)
    losses = fit(model, [(data.x_train[:16], data.y_train[:16])] * 3, F.cross_entropy, lr=0.0)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), first.parameters(), strict=True))
    assert losses.tolist() == [losses[0]] * 3 and not torch.equal(model[1].running_mean, first[1].running_mean)


def test_without_batches_there_are_no_losses():
    assert fit(nn.Linear(1, 1), [], F.mse_loss, lr=0.1).shape == (0,)


# --- choosing, comparing, printing ----------------------------------------------------------------------------------


def test_the_best_rate_is_that_of_the_best_median_and_not_of_the_best_run():
    reached = {0.1: [0.5, 0.6, 0.7], 1.0: [0.1, 0.2, 0.9]}
    assert best_rate(lambda seed, rate: reached[rate][seed], (1.0, 0.1), range(3)) == (0.1, reached[0.1])


def test_of_two_equally_good_rates_the_first_is_taken():
    assert best_rate(lambda seed, rate: 1.0, (0.3, 0.1), iter(range(2))) == (0.3, [1.0, 1.0])


@pytest.mark.parametrize(
    ("kwargs", "line"), [({}, f"{'a':34}  0.500 -0.125\n"), ({"width": 3, "digits": 1}, "a    0.5 -0.1\n")]
)
def test_a_row_is_a_label_and_numbers(capsys, kwargs, line):
    row("a", [0.5, -0.125], **kwargs)
    assert capsys.readouterr().out == line


@pytest.mark.parametrize("affine", [True, False])
def test_a_layer_with_numbers_has_none_of_the_first_values_left(affine):
    bn, again, other = (with_numbers(nn.BatchNorm2d(5, affine=affine), seed) for seed in (1, 1, 2))
    assert (
        not bn.training and (bn.running_mean != 0).all() and (bn.running_var != 1).all() and (bn.running_var > 0).all()
    )
    if affine:
        assert (bn.weight != 1).all() and (bn.bias != 0).all()
    for mine, same, another in zip(*(m.state_dict().values() for m in (bn, again, other)), strict=True):
        assert torch.equal(mine, same) and (mine.dim() == 0 or not torch.equal(mine, another))


def test_distance_is_in_deviations_of_the_first_models_outputs():
    x = gaussian(50, 4, seed=3)

    def shifted(by):
        return lambda x: 10 * x + by

    assert distance(shifted(0), shifted(5), x) == pytest.approx(5 / (10 * x.std().item()), rel=1e-4)
    assert distance(shifted(0), shifted(0), x) == 0


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until somebody adds seconds to it."""
    now = [0.0]
    monkeypatch.setattr("course_lib.experiments.perf_counter", lambda: now[0])
    return now


def takes(clock, seconds):
    """A model that takes so long, call by call, and from the beginning again."""
    seconds = itertools.cycle(seconds)

    def model(x):
        clock[0] += next(seconds)
        return x

    return model


def test_the_fastest_call_of_a_round_counts(clock):
    model, other = takes(clock, [2.0, 9.0, 4.0]), takes(clock, [8.0, 1.0, 30.0])
    assert time_ratios(model, other, torch.ones(1), rounds=5, calls=3).tolist() == [0.5, 0.5, 0.5]


def test_time_ratios_are_the_quartiles_over_the_rounds(clock):
    model = takes(clock, [1.0])
    other = takes(clock, [100.0, 1.0, 2.0, 3.0, 4.0, 5.0])  # the first call warms up
    assert time_ratios(model, other, torch.ones(1), rounds=5, calls=1).tolist() == [2.0, 3.0, 4.0]


# --- devices that do not talk ---------------------------------------------------------------------------------------


def test_each_of_the_separate_devices_normalises_its_own_shard():
    layer, x = SeparateDevices(3, devices=4), gaussian(8, 3, 2, 2, seed=1)
    with torch.no_grad():
        layer.affine.weight.copy_(torch.tensor([1.0, 2.0, 3.0]))
        layer.affine.bias.copy_(torch.tensor([0.5, 0.0, -0.5]))
    expected = [F.batch_norm(part, None, None, layer.affine.weight, layer.affine.bias, True) for part in x.chunk(4)]
    torch.testing.assert_close(layer(x), torch.cat(expected))


def test_in_eval_mode_the_buffers_of_the_first_of_the_separate_devices_serve():
    layer, bn, x = SeparateDevices(3, devices=2), nn.BatchNorm2d(3), gaussian(8, 3, 2, 2, mean=2.0, seed=1)
    layer(x), bn(x[:4])
    torch.testing.assert_close(layer.eval()(x), bn.eval()(x))


def test_one_separate_device_is_a_batchnorm():
    layer, bn, x = SeparateDevices(3, devices=1), nn.BatchNorm2d(3), gaussian(8, 3, 2, 2, mean=2.0, seed=1)
    torch.testing.assert_close(layer(x), bn(x))
    torch.testing.assert_close(layer.eval()(x), bn.eval()(x))
