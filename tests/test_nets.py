"""The network that trains on the student's own Batch Normalization, and the small ones of torch."""

import numpy as np
import pytest
import torch
from torch import nn

import course_lib
from course_lib import algorithm
from course_lib.data import digits, minibatches
from course_lib.nets import CNN, MLP, NumpyMLP, PostActivationBlock, PreActivationBlock, ResNet, initialise
from tests.devices import DEVICES


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


# --- networks of torch ------------------------------------------------------------------------------------------

NETS = {
    "mlp": lambda **k: MLP((64, 16, 16, 10), **k),
    "cnn": lambda **k: CNN((8, 16), **k),
    "post-activation": lambda **k: ResNet((8, 8, 16), **k),
    "pre-activation": lambda **k: ResNet((8, 8, 16), pre_activation=True, **k),
}


def images(n=4):
    return torch.from_numpy(np.random.default_rng(0).random((n, 1, 8, 8), dtype=np.float32))


def input_of(name):
    return images().flatten(1) if name == "mlp" else images()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", NETS)
def test_a_network_gives_a_logit_per_class_and_a_gradient_per_parameter(name, device):
    model, x = NETS[name]().to(device), input_of(name).to(device)
    y = model(x)
    assert y.shape == (4, 10) and y.device == x.device
    y.square().sum().backward()
    # After the mean of a whole batch is taken off, and only there, a constant has no effect.
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())


@pytest.mark.parametrize(("name", "count"), [("mlp", 2), ("cnn", 2), ("post-activation", 8), ("pre-activation", 7)])
def test_norm_decides_on_the_normalisation(name, count):
    def layers(model, kind):
        return sum(isinstance(module, kind) for module in model.modules())

    assert layers(NETS[name](), nn.modules.batchnorm._BatchNorm) == count
    assert layers(NETS[name](norm=lambda channels: nn.GroupNorm(2, channels)), nn.GroupNorm) == count
    bare = NETS[name](norm=None)
    assert layers(bare, (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)) == 0
    assert bare(input_of(name)).shape == (4, 10)


@pytest.mark.parametrize("name", NETS)
def test_a_layer_has_a_bias_unless_batchnorm_follows_it(name):
    graph = torch.fx.symbolic_trace(NETS[name]())
    for node in graph.graph.nodes:
        layer = graph.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(layer, nn.Conv2d | nn.Linear):
            [first, *rest] = node.users
            followed = first.op == "call_module" and "BatchNorm" in type(graph.get_submodule(first.target)).__name__
            assert (layer.bias is None) == (followed and not rest), node.target


@pytest.mark.parametrize("name", NETS)
def test_the_seed_decides_the_weights_whatever_torch_drew(name):
    torch.manual_seed(1)
    one = NETS[name](seed=3).state_dict()
    torch.manual_seed(2)
    other = NETS[name](seed=3).state_dict()
    assert all(torch.equal(one[key], other[key]) for key in one)
    key = next(key for key in one if one[key].dim() > 1)
    assert not torch.equal(one[key], NETS[name](seed=4).state_dict()[key])


@pytest.mark.parametrize("layer", [nn.Linear(400, 300), nn.Conv2d(40, 50, 3), nn.Conv1d(30, 100, 5)], ids=repr)
def test_weights_are_drawn_with_the_deviation_of_he(layer):
    initialise(layer, scale=3.0)
    fan_in = layer.weight[0].numel()
    assert layer.weight.std().item() == pytest.approx(3 * (2 / fan_in) ** 0.5, rel=0.05)
    assert layer.weight.mean().abs() < 0.05 * layer.weight.std()
    assert (layer.bias == 0).all()


def test_initialising_leaves_other_parameters():
    layer = nn.BatchNorm1d(3)
    nn.init.uniform_(layer.weight)
    before = layer.weight.clone()
    initialise(layer)
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize(("widths", "sizes"), [((4,), (8, 8)), ((4, 4), (4, 4)), ((4, 6, 8), (2, 2))])
def test_a_cnn_halves_the_resolution_after_its_first_convolution(widths, sizes):
    assert CNN(widths).features(images()).shape[2:] == sizes


@pytest.mark.parametrize("block", [PostActivationBlock, PreActivationBlock])
@pytest.mark.parametrize(("out", "size"), [(4, 8), (6, 4)])
def test_a_block_halves_the_resolution_where_it_changes_the_channels(block, out, size):
    assert block(4, out)(torch.ones(2, 4, 8, 8)).shape == (2, out, size, size)


def test_a_post_activation_block_ends_in_relu_after_the_sum():
    block, x = PostActivationBlock(4, 4), images().expand(-1, 4, -1, -1) - 0.5
    nn.init.zeros_(block.norm2.weight)
    torch.testing.assert_close(block(x), torch.relu(x))


def test_a_pre_activation_block_leaves_the_shortcut_alone():
    block, x = PreActivationBlock(4, 4), images().expand(-1, 4, -1, -1) - 0.5
    initialise(block.conv2, scale=0.0)
    torch.testing.assert_close(block(x), x)


@pytest.mark.parametrize("name", NETS)
def test_a_network_learns_the_digits(name):
    data = digits(images=name != "mlp")
    model = NETS[name]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for rows in minibatches(len(data.x_train), 64, steps=200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data.x_train[rows]), data.y_train[rows]).backward()
        optimizer.step()
    right = model.eval()(data.x_test).argmax(1) == data.y_test
    assert right.float().mean() > 0.9
