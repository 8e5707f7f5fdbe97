"""A GPU's objections, raised without a GPU."""

import pytest
import torch
from torch import nn

from course_lib.checks.devices import DONE, OneDevice, WrongDevice, attempt, gpus, left_behind, whereabouts

HERE = torch.empty(4, 3, device="meta")


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, dy):
        return dy * torch.full((3,), 2.0)


@pytest.mark.parametrize(
    "function",
    [
        lambda: HERE.mean(0) + 1,
        lambda: HERE * torch.tensor(2.0),
        lambda: HERE + HERE.new_ones(3),
        lambda: HERE + torch.ones(3, device=HERE.device),
        lambda: HERE + torch.ones(3).to(HERE.device),
        lambda: HERE.copy_(torch.ones(4, 3)),
        lambda: HERE[torch.tensor([0, 2])],
        lambda: torch.ones(3).cumsum(0),
        lambda: HERE.double().to(torch.bfloat16),
    ],
    ids=["a number", "0-d", "new_ones", "named", "moved", "copied here", "indexed", "elsewhere alone", "dtypes"],
)
def test_what_a_gpu_allows_is_done(function):
    assert attempt(function)[0] == DONE


@pytest.mark.parametrize(
    ("function", "operation"),
    [
        (lambda: HERE + torch.ones(3), "mixes tensors on cpu and meta in add"),
        (lambda: torch.ones(3).mul_(0.9).add_(HERE[0]), "mixes tensors on cpu and meta in add_"),
        (lambda: torch.ones(3).lerp_(HERE[0], 0.1), "mixes tensors on cpu and meta in lerp_"),
        (lambda: torch.stack([HERE[0], torch.ones(3)]), "mixes tensors on cpu and meta in stack"),
        (lambda: torch.ones(3).copy_(HERE[0]), "takes a tensor away from meta in copy_"),
        (lambda: HERE.cpu(), "takes a tensor away from meta in _to_copy"),
        (
            lambda: _Backward.apply(HERE.clone().requires_grad_()).sum().backward(),
            "mixes tensors on cpu and meta in mul",
        ),
    ],
    ids=["out of place", "in place", "lerp", "stack", "copied away", "cpu", "backward"],
)
def test_what_a_gpu_refuses_is_refused_and_told(function, operation, capsys):
    with pytest.raises(WrongDevice) as error, OneDevice("meta"):
        function()
    assert operation in str(error.value)
    assert attempt(function) == ("mixes devices", None)
    assert f"on meta: {operation}" in capsys.readouterr().out


@pytest.mark.parametrize(("read", "number"), [(lambda x: x.sum().item(), 1.0), (lambda x: bool(x.sum() > 0), True)])
def test_a_number_that_is_read_is_one(read, number):
    assert attempt(lambda: read(HERE)) == (DONE, number)


def test_numpy_is_not_for_tensors_elsewhere(capsys):
    assert attempt(lambda: HERE.numpy())[0] == "TypeError"
    assert "on meta: TypeError" in capsys.readouterr().out


def test_outside_of_the_context_nothing_is_refused():
    with OneDevice("meta"):
        pass
    assert torch.ones(3).mul_(0.9).add_(HERE[0]).device.type == "cpu"


@pytest.mark.parametrize(
    ("keep", "names"),
    [
        (lambda m: None, ""),
        (lambda m: setattr(m, "scale", torch.ones(3)), "scale"),
        (lambda m: setattr(m, "scale", torch.tensor(1.0)), ""),
        (lambda m: setattr(m, "tables", {"a": [torch.ones(3)]}), "tables"),
        (lambda m: m.register_buffer("scale", torch.ones(3)), ""),
        (lambda m: m.add_module("inner", nn.Linear(2, 2)), ""),
    ],
    ids=["nothing", "an attribute", "a number", "in a dict", "a buffer", "a module"],
)
def test_what_a_move_leaves_behind(keep, names):
    module = nn.Linear(2, 3)
    keep(module)
    assert left_behind(module.to("meta"), "meta") == names


def test_what_never_moved_is_left_behind_with_its_path():
    assert left_behind(nn.Sequential(nn.Linear(2, 3, bias=False)), "meta") == "0.weight"
    layer = nn.BatchNorm1d(2, affine=False)
    layer.running_mean = layer.running_mean.to("meta")
    assert left_behind(layer, "meta") == "num_batches_tracked, running_var"


def test_whereabouts_of_what_is_no_tensor():
    assert whereabouts(None) == "no tensor but NoneType"


def test_gpus_are_those_of_this_machine():
    assert gpus() == (["cuda"] if torch.cuda.is_available() else [])
