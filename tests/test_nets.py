"""The network that trains on the student's own Batch Normalization."""

import numpy as np
import pytest

import course_lib
from course_lib import algorithm
from course_lib.nets import NumpyMLP


@pytest.fixture
def library():
    """The library as it came, also after a test that plugged something in."""
    yield algorithm
    course_lib.unplug()


def problem(n=256, seed=0):
    """Two classes on either side of a curve; features of very different size."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 4))
    return x * [1, 10, 0.1, 3] + [0, 50, 0, -7], (x[:, 0] + x[:, 1] ** 2 > 1).astype(int)


def cross_entropy(net, x, labels):
    logits, _ = net.forward(x)
    logits = logits - logits.max(axis=1, keepdims=True)
    return float((np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(x)), labels]).mean())


@pytest.mark.parametrize("sizes", [(4, 3), (4, 16, 2), (4, 8, 6, 2)])
def test_logits_have_a_column_per_class(sizes):
    assert NumpyMLP(sizes).forward(problem(10)[0])[0].shape == (10, sizes[-1])


@pytest.mark.parametrize("batch_norm", [True, False])
def test_the_gradient_of_every_parameter_equals_finite_differences(batch_norm):
    x, labels = problem(12)
    net = NumpyMLP((4, 5, 3, 2), batch_norm=batch_norm, seed=3)
    before = {name: value.copy() for name, value in net.parameters.items()}
    net.step(x, labels, learning_rate=1.0, momentum=0.0)
    gradients = {name: before[name] - value for name, value in net.parameters.items()}
    net.parameters = before
    for name, value in before.items():
        for index in np.ndindex(value.shape):
            old, around = value[index], []
            for step in (1e-6, -1e-6):
                value[index] = old + step
                around.append(cross_entropy(net, x, labels))
            value[index] = old
            slope = (around[0] - around[1]) / 2e-6
            assert gradients[name][index] == pytest.approx(slope, rel=1e-5, abs=1e-7), (name, index)


def test_the_loss_of_a_step_is_the_one_before_it():
    x, labels = problem(20)
    net = NumpyMLP((4, 8, 2))
    before = cross_entropy(net, x, labels)
    assert net.step(x, labels, 0.1) == pytest.approx(before)
    assert cross_entropy(net, x, labels) != pytest.approx(before, rel=1e-6)


def test_the_loss_falls():
    losses = NumpyMLP((4, 16, 2)).fit(*problem(), steps=150, learning_rate=0.05)
    assert losses.shape == (150,)
    assert losses[-20:].mean() < 0.4 * losses[:5].mean()


def test_without_batch_norm_it_learns_less_on_features_of_different_size():
    with_it, without = (
        NumpyMLP((4, 16, 2), batch_norm=on).fit(*problem(), steps=150, learning_rate=0.05)[-20:].mean()
        for on in (True, False)
    )
    assert with_it < 0.6 * without


def test_equal_seeds_give_equal_losses():
    one, other = (NumpyMLP((4, 8, 2), seed=5).fit(*problem(), steps=3, learning_rate=0.1) for _ in range(2))
    np.testing.assert_array_equal(one, other)


def test_another_seed_gives_other_weights():
    one, other = (NumpyMLP((4, 8, 2), seed=seed).parameters["w0"] for seed in (0, 1))
    assert (one != other).all()


def test_without_batch_norm_there_is_no_gamma_and_none_of_the_pieces_is_called(library, monkeypatch):
    monkeypatch.setattr(algorithm, "batch_norm_forward", None)
    net = NumpyMLP((4, 8, 2), batch_norm=False)
    assert set(net.parameters) == {"w0", "b0", "w1", "b1"}
    assert net.step(*problem(8), 0.1) > 0


def test_a_plugged_in_backward_does_the_work(library):
    right = NumpyMLP((4, 16, 2)).fit(*problem(), steps=20, learning_rate=0.05)
    reference = algorithm.batch_norm_backward

    def batch_norm_backward(dy, cache):
        return tuple(-gradient for gradient in reference(dy, cache))

    course_lib.plug_in(batch_norm_backward)
    wrong = NumpyMLP((4, 16, 2)).fit(*problem(), steps=20, learning_rate=0.05)
    assert wrong[0] == right[0]  # the forward pass is still the library's
    assert (wrong[1:] != right[1:]).all()


def test_a_plugged_in_right_backward_trains_alike(library):
    before = NumpyMLP((4, 16, 2)).fit(*problem(), steps=20, learning_rate=0.05)

    def batch_norm_backward(dy, cache):
        x_hat, gamma, invstd = cache
        return gamma * invstd * (dy - dy.mean(0) - x_hat * (dy * x_hat).mean(0)), (dy * x_hat).sum(0), dy.sum(0)

    course_lib.plug_in(batch_norm_backward)
    np.testing.assert_allclose(NumpyMLP((4, 16, 2)).fit(*problem(), steps=20, learning_rate=0.05), before, rtol=1e-9)
