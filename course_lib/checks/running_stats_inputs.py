"""Inputs and small words that the checks of problem set 2 share."""

import numpy as np
import torch

__all__ = [
    "FAR",
    "HALVES",
    "SINGLE",
    "channels",
    "dtype_as",
    "far_values",
    "flagged",
    "kind",
    "maps",
    "plain_dtype",
    "rearranged",
    "sequences",
    "shares",
    "table",
    "volumes",
]

SINGLE = ("float32",)
HALVES = ("float16", "bfloat16")
# float32 at mean 1e4: an honest mean is off by some 1e-2, and so is y; an honest variance by 1e-3; one pass by 0.1 or
# more. 512 to 640 values per channel, so that n − 1 does not show.
FAR = {"y": 0.25, "running_mean": 0.1, "running_var": 1e-2, "var": 1e-2, "mean": 1e-6}
FAR_STD = (0.5, 0.8, 1.2)


def table(case, c):
    """(N, C) with few rows: n and n − 1 differ."""
    return case.draw((case.integer(5, 8), c), case.uniform(-3, 3, c), case.uniform(1, 3, c))


def maps(case, c, n=None):
    """(N, C, H, W), N, H and W all different."""
    h = case.integer(4, 5)
    shape = (n or case.integer(2, 3), c, h, h + 1)
    return case.draw(shape, case.uniform(-3, 3, (c, 1, 1)), case.uniform(1, 3, (c, 1, 1)))


def sequences(case, c):
    """(N, C, L)."""
    return case.draw((3, c, case.integer(4, 6)), case.uniform(-3, 3, (c, 1)), 2.0)


def volumes(case, c):
    """(N, C, D, H, W)."""
    return case.draw((2, c, 3, case.integer(4, 5), 2), case.uniform(-3, 3, (c, 1, 1, 1)), 2.0)


def far_values(case, shape):
    """Three channels with means around 1e4 in size, of both signs, and standard deviations around 1."""
    wide = (3,) + (1,) * (len(shape) - 2)
    signs = np.reshape([1, -1, case.choice((1, -1))], wide)
    return case.draw(shape, 1e4 * signs * case.uniform(0.9, 1.1, wide), np.reshape(FAR_STD, wide))


def rearranged(x):
    """The same values with the first and the last axis swapped in memory: no less an input, but not contiguous."""
    return x.transpose(0, -1).contiguous().transpose(0, -1)


def channels(case):
    """How many channels: more than two, so that a mix-up shows."""
    return case.integer(3, 4)


def shares(values):
    """Values as shares of their sum: what factor all of them have in common does not show."""
    return values / values.sum()


def flagged(**flags):
    """The names whose flag is set, as one fact."""
    return ", ".join(name for name, flag in flags.items() if flag)


def kind(value):
    """What something is, in a word."""
    return "none" if value is None else type(value).__name__


def plain_dtype(value):
    """The name of a tensor's dtype."""
    return str(value.dtype).removeprefix("torch.") if isinstance(value, torch.Tensor) else f"no tensor: {kind(value)}"


def dtype_as(tensor, case, name="float32"):
    """The name of a dtype; the lifted run's float64 under the name it stands for."""
    found = plain_dtype(tensor)
    return name if found == str(case.as_torch(name)).removeprefix("torch.") else found
