"""What ranks run that may be spawned: they import the module of their function, so it stands in a small one."""

import copy

import torch
import torch.distributed as dist
from torch import nn

from course_lib.sync import convert_sync_batchnorm


def gathered(rank, unit):
    """Each rank's own value, as every rank sees it."""
    mine = torch.tensor([unit * rank])
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, mine)
    return torch.cat(everyone)


def train(model, batches):
    """SGD with momentum, a step a batch of (x, target)."""
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for x, target in batches:
        optimiser.zero_grad()
        nn.functional.mse_loss(model(x), target).backward()
        optimiser.step()
    return model


def trained_on_a_shard(rank, device, model, batches):
    """State of a copy of the model after data-parallel, synchronised training on this rank's part of every batch."""
    place = torch.device(device, rank % torch.cuda.device_count()) if device == "cuda" else torch.device(device)
    ranks = dist.get_world_size()
    mine = [(x.chunk(ranks)[rank].to(place), target.chunk(ranks)[rank].to(place)) for x, target in batches]
    replica = nn.parallel.DistributedDataParallel(convert_sync_batchnorm(copy.deepcopy(model).to(place)))
    return {name: v.cpu() for name, v in train(replica, mine).module.state_dict().items()}
