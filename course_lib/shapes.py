"""What every topic asks of its inputs, with one wording for every error."""

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np

__all__ = ["expect_channelwise", "expect_input", "expect_number", "expect_per_channel", "expect_tensor"]


def expect_input(x: Any, channels: int | None = None, *, name: str = "x") -> int:
    """Number of channels of `x`, after checking that it is a batch of the course's kind.

    Args:
        x: array of shape (N, C, *spatial) with 0 to 3 spatial axes, float32 or float64.
        channels: the number of channels it has to have; None takes any.
        name: what the error calls it.

    Returns:
        C, an int.

    Raises:
        ValueError: `x` is no array, its rank is not 2 to 5, its dtype is not float32 or float64,
            or it has no channels or another number of them.

    Example:
        >>> expect_input(np.zeros((8, 3, 5, 5)))
        3
    """
    if not isinstance(x, np.ndarray):
        raise ValueError(f"expected {name} to be a NumPy array (N, C, ...), got {type(x).__name__}")
    if not 2 <= x.ndim <= 5:
        raise ValueError(f"expected {name} of shape (N, C, ...) with 0 to 3 spatial axes, got {x.shape}")
    if x.dtype not in (np.float32, np.float64):
        raise ValueError(f"expected {name} in float32 or float64, got {x.dtype}: convert it with .astype")
    if x.shape[1] == 0:
        raise ValueError(f"expected {name} of shape (N, C, ...) with at least one channel, got {x.shape}")
    if channels is not None and x.shape[1] != channels:
        raise ValueError(f"expected {name} of shape (N, C, ...) with C={channels}, got {x.shape}")
    return x.shape[1]


def expect_per_channel(v: Any, channels: int, *, name: str) -> np.ndarray:
    """`v` as an array of shape (C,), one value per channel.

    Args:
        v: array of shape (C,).
        channels: C.
        name: what the error calls it.

    Raises:
        ValueError: another shape came.

    Example:
        >>> expect_per_channel(np.ones(3), 3, name="gamma")
        array([1., 1., 1.])
    """
    v = np.asarray(v)
    if v.shape != (channels,):
        raise ValueError(f"expected {name} of shape ({channels},), one value per channel, got {v.shape}")
    return v


def expect_tensor(x: Any, channels: int | None = None, *, name: str = "x", ranks: Sequence[int] = (2, 3, 4, 5)) -> int:
    """Number of channels of a tensor, after checking that it is a batch of the course's kind.

    Args:
        x: floating-point tensor of shape (N, C, *spatial).
        channels: the number of channels it has to have; None takes any.
        name: what the error calls it.
        ranks: the numbers of axes it may have.

    Returns:
        C, an int.

    Raises:
        ValueError: `x` is no tensor, its rank is none of `ranks`, it is not of a floating-point dtype, or it has
            another number of channels.

    Example:
        >>> import torch
        >>> expect_tensor(torch.zeros(8, 3, 5, 5), 3)
        3
    """
    dtype = getattr(x, "dtype", None)
    if not hasattr(dtype, "is_floating_point"):  # torch's dtypes have it, without importing torch here
        raise ValueError(f"expected {name} to be a tensor (N, C, ...), got {type(x).__name__}")
    if x.dim() not in ranks:
        wanted = " or ".join(f"{rank}-D" for rank in ranks)
        raise ValueError(f"expected {name} of shape (N, C, ...), {wanted}, got {tuple(x.shape)}")
    if not dtype.is_floating_point:
        raise ValueError(f"expected {name} of a floating-point dtype, got {dtype}: convert it with .float()")
    if channels is not None and x.shape[1] != channels:
        raise ValueError(f"expected {name} of shape (N, C, ...) with C={channels}, got {tuple(x.shape)}")
    return x.shape[1]


def expect_channelwise(v: Any, x: Any, *, name: str) -> None:
    """Check that `v` has one value for every channel of `x`, next to it.

    Args:
        v: floating-point tensor of shape (C,), on x's device.
        x: (N, C, *spatial).
        name: what the error calls v.

    Raises:
        ValueError: v is no floating-point tensor, or has another shape or device; x has no channels.

    Example:
        >>> import torch
        >>> expect_channelwise(torch.zeros(3), torch.zeros(8, 3, 5, 5), name="running_mean")
    """
    channels = x.shape[1]
    if channels == 0:
        raise ValueError(f"expected x of shape (N, C, ...) with at least one channel, got {tuple(x.shape)}")
    if not hasattr(getattr(v, "dtype", None), "is_floating_point"):
        raise ValueError(f"expected {name} to be a tensor of shape ({channels},), got {type(v).__name__}")
    if not v.dtype.is_floating_point:
        raise ValueError(f"expected {name} of a floating-point dtype, got {v.dtype}")
    if v.shape != (channels,):
        raise ValueError(f"expected {name} of shape ({channels},), one value per channel of x, got {tuple(v.shape)}")
    if v.device != x.device:
        raise ValueError(f"expected {name} on x's device, {x.device}, got {v.device}: move one of them with .to")


def expect_number(value: Any, *, name: str, low: float = 0.0, high: float = math.inf, whole: bool = False) -> None:
    """Check that `value` is a number from `low` to `high`.

    Args:
        value: int or float.
        name: what the error calls it.
        low, high: both included.
        whole: take whole numbers only.

    Raises:
        ValueError: no number, or outside.

    Example:
        >>> expect_number(0.1, name="momentum", high=1)
    """
    if not (isinstance(value, Integral if whole else Real) and low <= value <= high):
        wanted = f"from {low:g} to {high:g}" if high < math.inf else f"of at least {low:g}"
        raise ValueError(f"expected {name} to be a {'whole ' * whole}number {wanted}, got {value!r}")
