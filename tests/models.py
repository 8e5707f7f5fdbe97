"""Data and small models that several test modules look into."""

import numpy as np
import torch
from torch import nn

from course_lib.running_stats import BatchNorm

KINDS = [
    nn.BatchNorm1d(2),
    nn.BatchNorm2d(2),
    nn.BatchNorm3d(2),
    nn.SyncBatchNorm(2),
    nn.LazyBatchNorm1d(),
    BatchNorm(2),
]


def drawn(shape, *, seed=0, mean=1.0, std=2.0, dtype=torch.float64, device="cpu"):
    values = mean + std * np.random.default_rng(seed).standard_normal(shape)
    return torch.from_numpy(values).to(device=device, dtype=dtype)


def small_net(seed=0):
    """Convolution, two kinds of BatchNorm, one of them frozen by mode, and statistics that are not the initial ones."""
    torch.manual_seed(seed)
    parts = [nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4), BatchNorm(4)]
    net = nn.Sequential(*parts)
    for _ in range(3):
        net(drawn((6, 1, 4, 4), dtype=torch.float32))
    net[5].eval()
    return net


def state_of(model):
    return {
        "state": {name: v.clone() for name, v in model.state_dict().items()},
        "modes": [module.training for module in model.modules()],
        "grads": [p.grad for p in model.parameters()],
        "hooks": [len(module._forward_pre_hooks) for module in model.modules()],
    }


def same_state(model, before):
    now = state_of(model)
    assert all(torch.equal(v, before["state"][name]) for name, v in now.pop("state").items())
    before = {key: value for key, value in before.items() if key != "state"}
    assert now == before
