"""Shards of a batch, drawn for several ranks, and what the pieces of problem set 5 are expected to return.

Ranks are threads of `course_lib.ranks`, and share the case: everything is drawn before they start. The mean of every
shard is its own, far from the others', so that no mistake about the spread between shards stays hidden. Groups that
ask for something else than uneven shards have even ones, and look at values that an average of averages gets right.
"""

import torch

from course_lib.checks.piece import WrongReturn

__all__ = ["VOLUMES", "each_empty", "expect_count", "expect_tensor", "maps", "shards", "shuffled", "uneven"]

#: Depth, height and width, of different lengths.
VOLUMES = (2, 4, 3)


def shards(case, sizes, spatial=(), *, constant=None, dtype=None, mean=0.0, layout=None):
    """One shard a rank, with so many samples each. The values of a constant one are all the same in a channel.

    `layout(x)` holds the values of x in another order in memory.
    """
    channels = case.integer(3, 4)
    drawn = []
    for rank, size in enumerate(sizes):
        step = (rank - (len(sizes) - 1) / 2) * case.uniform(1.5, 2.5, (channels,) + (1,) * len(spatial))
        std = 0.0 if rank == constant else case.uniform(1, 2)
        values = case.draw((size, channels, *spatial), mean + step, std)
        x = case.given_tensor(values, f"x of rank {rank}", dtype=dtype)
        if layout is not None:
            x.data = layout(x)  # the tensor itself is watched for changes
        drawn.append(x)
    return drawn


def shuffled(case, sizes):
    """The same sizes, on other ranks."""
    rest, order = list(sizes), []
    while rest:
        order.append(rest.pop(case.integer(0, len(rest) - 1)))
    return order


def uneven(case):
    """Samples of three ranks: one, a few, and most."""
    return shuffled(case, (1, case.integer(2, 3), case.integer(5, 6)))


def maps(case):
    """Height and width, of different lengths."""
    return case.choice([(2, 3), (3, 2), (4, 3)])


def each_empty(case):
    """{words: shards} of three ranks. Each in turn has nothing, and the next one the same value all over."""
    batches = {}
    for empty in range(3):
        sizes = [case.integer(2, 3), case.integer(4, 5)]
        sizes.insert(empty, 0)
        batches[f", rank {empty} empty,"] = shards(case, sizes, (3,), constant=(empty + 1) % 3)
    return batches


def expect_tensor(value, name, shape=None):
    """`value`, without its history, where it is a tensor of this shape.

    Raises:
        WrongReturn: it is something else.
    """
    if not isinstance(value, torch.Tensor):
        raise WrongReturn(f"expected {name} to be a tensor, got {type(value).__name__}")
    if shape is not None and value.shape != shape:
        raise WrongReturn(f"expected {name} of shape {tuple(shape)}, got {tuple(value.shape)}")
    return value.detach()


def expect_count(n):
    """n as a float, whatever kind of number it is: the kind is asked for in one place only."""
    try:
        return float(n)
    except (TypeError, ValueError):
        raise WrongReturn(f"expected n to be a number, got {type(n).__name__}") from None
