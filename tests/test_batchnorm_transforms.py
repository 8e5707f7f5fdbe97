"""The layer under what rewrites it, on every device: torch.compile, torch.export, torch.func."""

import copy
import io
import shutil

import pytest
import torch
from torch import nn

from course_lib.batchnorm import BatchNorm2d
from tests.devices import DEVICES
from tests.test_batchnorm import drawn, filled, modes, torch_warns

inductor = pytest.param(
    "inductor", marks=pytest.mark.skipif(not shutil.which("g++"), reason="the default backend needs a C++ compiler")
)


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@pytest.fixture
def x(device):
    return drawn((8, 3, 5, 4), device, torch.float32)[0]


@pytest.fixture
def dy(device):
    return drawn((8, 3, 5, 4), device, torch.float32)[1]


@pytest.fixture
def trained(x, dy):
    """Output, gradients and buffers of two steps."""

    def run(forward, layer):
        results = []
        for _ in range(2):
            leaf = x.clone().requires_grad_()
            y = forward(leaf)
            results += [y.detach(), *torch.autograd.grad(y, [leaf, *layer.parameters()], dy)]
        return [*results, *(buffer.clone() for buffer in layer.buffers())]

    return run


def compiled(layer, backend="aot_eager"):
    torch.compiler.reset()
    return torch.compile(layer, fullgraph=True, backend=backend)


# --- torch.compile ----------------------------------------------------------------------------------------------------


@modes
@pytest.mark.parametrize("backend", ["eager", "aot_eager", inductor])
@torch_warns
def test_compiled_in_one_graph_it_trains_as_before(backend, training, trained, device):
    layer = filled(BatchNorm2d(3, device=device)).train(training)
    same = copy.deepcopy(layer)
    torch.testing.assert_close(trained(compiled(layer, backend), layer), trained(same, same), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("flags", [{"momentum": None}, {"affine": False}, {"bias": False}], ids=str)
def test_every_flag_compiles_in_one_graph(flags, trained, device):
    layer = BatchNorm2d(3, device=device, **flags)
    same = copy.deepcopy(layer)
    torch.testing.assert_close(trained(compiled(layer), layer), trained(same, same), rtol=1e-5, atol=1e-5)


def test_compiled_it_follows_the_batch_size(x):
    layer = BatchNorm2d(3, device=x.device)
    forward, same = compiled(layer), copy.deepcopy(layer)
    for n in (8, 5, 3):
        torch.testing.assert_close(forward(x[:n]), same(x[:n]))


def test_compiled_it_refuses_a_single_value(x):
    with pytest.raises(Exception, match="Expected more than 1 value per channel"):  # Dynamo wraps it in its own
        compiled(BatchNorm2d(3, device=x.device))(x[:1, :, :1, :1])


def test_compiled_it_keeps_its_digits_when_the_mean_is_large(x):
    x = x + 1e5
    wide = x.double()
    want = nn.functional.batch_norm(wide - wide.mean((0, 2, 3), keepdim=True), None, None, training=True)
    torch.testing.assert_close(compiled(BatchNorm2d(3, device=x.device))(x).double(), want, rtol=0, atol=2e-6)


# --- torch.export -----------------------------------------------------------------------------------------------------


@modes
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("strict", [False, True])
def test_exported_with_an_open_batch_size_it_gives_the_same(strict, momentum, training, x, device):
    if device == "standin":
        pytest.skip("torch.export fixes every size of a tensor that wraps another")
    layer = filled(BatchNorm2d(3, momentum=momentum, device=x.device)).train(training)
    program = torch.export.export(
        copy.deepcopy(layer), (x,), strict=strict, dynamic_shapes=({0: torch.export.Dim("n", min=2)},)
    ).module()
    torch.testing.assert_close(program(x[:5]), layer(x[:5]))
    kept = program.state_dict()
    torch.testing.assert_close(kept, {name: layer.state_dict()[name] for name in kept})
    assert "running_var" in kept


# --- older tools ------------------------------------------------------------------------------------------------------


@modes
@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_trace_is_of_torchs_operations_and_can_be_saved(gradients, training, x, device):
    if device == "standin":
        pytest.skip("torch.jit.trace does not look into a tensor that wraps another")
    layer, file = filled(BatchNorm2d(3, device=x.device)).train(training), io.BytesIO()
    with torch.set_grad_enabled(gradients):
        torch.jit.save(torch.jit.trace(copy.deepcopy(layer), x), file)
    torch.testing.assert_close(torch.jit.load(io.BytesIO(file.getvalue()))(x), layer(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_the_parity_page_says_it_does_not_do():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), BatchNorm2d(3)).eval()
    with pytest.raises(AssertionError, match="did not find fuser method"):
        torch.ao.quantization.fuse_modules(model, ["0", "1"])
    with pytest.raises(torch.jit.frontend.NotSupportedError):
        torch.jit.script(model[1])
    with pytest.raises(torch.fx.proxy.TraceError):
        torch.fx.symbolic_trace(model)


# --- torch.func -------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["eval", "untracked"])
def layer(request, device):
    """One whose buffers a forward leaves alone."""
    if request.param == "eval":
        return filled(BatchNorm2d(3, device=device)).eval()
    return filled(BatchNorm2d(3, track_running_stats=False, device=device))


@pytest.fixture
def many(x):
    return torch.stack([x, 2 * x - 1, x.flip(0)])


def test_vmap_equals_a_loop(layer, many):
    want = torch.stack([layer(x) for x in many])
    torch.testing.assert_close(torch.vmap(layer)(many), want)
    torch.testing.assert_close(torch.vmap(layer, in_dims=2)(many.movedim(0, 2)), want)


def test_vmap_over_an_ensemble_of_layers(x):
    layers = [filled(BatchNorm2d(3, device=x.device), seed).eval() for seed in range(3)]
    parameters, buffers = torch.func.stack_module_state(layers)

    def run(parameters, buffers):
        return torch.func.functional_call(layers[0], (parameters, buffers), (x,))

    torch.testing.assert_close(torch.vmap(run)(parameters, buffers), torch.stack([layer(x) for layer in layers]))


@torch_warns
def test_gradients_of_every_sample_at_once_equal_a_loop(layer, many, dy):
    parameters = {name: v.detach() for name, v in layer.named_parameters()}

    def loss(parameters, x):
        return (torch.func.functional_call(layer, parameters, (x,)) * dy).sum()

    got = torch.vmap(torch.func.grad(loss), (None, 0))(parameters, many)
    for i, x in enumerate(many):
        want = torch.func.grad(loss)(parameters, x)
        torch.testing.assert_close({name: v[i] for name, v in got.items()}, want, rtol=1e-5, atol=1e-5)


@torch_warns
def test_jacobians_agree_whoever_computes_them(layer, device):
    layer, x = layer.double(), drawn((3, 3, 2, 1), device)[0]
    want = torch.autograd.functional.jacobian(layer, x)
    torch.testing.assert_close(torch.autograd.functional.jacobian(layer, x, vectorize=True), want)
    torch.testing.assert_close(torch.func.jacrev(layer)(x), want)
    torch.testing.assert_close(torch.func.jacfwd(layer)(x), want)
