"""What every topic asks of its inputs, with one wording for every error."""

import numpy as np

__all__ = ["expect_input", "expect_per_channel"]


def expect_input(x, channels=None, *, name="x"):
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


def expect_per_channel(v, channels, *, name):
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
