"""What a device other than the CPU refuses, and what it allows: a GPU, or what stands in for one."""

import pytest
import torch

from tests.devices import DEVICES

on_devices = pytest.mark.parametrize("device", DEVICES)


def drawn_by_the_cpu(x):
    return torch.empty_like(x).uniform_(generator=torch.Generator())


@on_devices
@pytest.mark.parametrize(
    "cross",
    [
        lambda x: x + torch.ones(3, 2),
        lambda x: torch.ones(3, 2).mul_(0.9).add_(x),
        lambda x: torch.cat([x, torch.ones(3, 2)]),
        lambda x: x.clone().index_put_((torch.tensor([0]),), torch.ones(1, 2)),
        lambda x: torch.ones(3)[x[0].long()],
        lambda x: torch.nn.functional.linear(x, torch.ones(4, 2)),
        lambda x: x.numpy(),
        drawn_by_the_cpu,
    ],
    ids=["sum", "in place", "cat", "put", "positions from there", "weights", "NumPy", "generator"],
)
def test_what_lies_elsewhere_does_not_meet_the_cpu(cross, device):
    x = torch.ones(3, 2, device=device)
    if device == "cpu":
        cross(x)
    else:
        with pytest.raises((RuntimeError, TypeError, IndexError)):
            cross(x)


@on_devices
@pytest.mark.parametrize(
    ("cross", "want"),
    [
        (lambda x: x * torch.tensor(2.0), 12.0),
        (lambda x: x[torch.tensor([0, 2])], 4.0),
        (lambda x: torch.zeros(3, 2).copy_(x), 6.0),
        (lambda x: x.clone().copy_(torch.zeros(3, 2)), 0.0),
        (lambda x: torch.from_numpy(x.cpu().numpy()), 6.0),
        (lambda x: torch.ones(3, 2).to(x), 6.0),
    ],
    ids=["a number", "positions", "copied here", "copied there", "NumPy", "moved"],
)
def test_what_a_gpu_allows_gives_numbers(cross, want, device):
    assert cross(torch.ones(3, 2, device=device)).sum().item() == want


@on_devices
def test_a_module_that_moves_is_there_as_a_whole(device):
    layer = torch.nn.BatchNorm1d(2).to(device).double()
    assert {(v.device.type, v.dtype) for v in layer.parameters()} == {(device, torch.float64)}
    assert layer(torch.ones(3, 2, device=device, dtype=torch.float64)).device.type == device
