"""Batch Normalization as an algorithm: statistics, forward, backward, identity. NumPy only.

`x` is (N, C, *spatial) with the channels on axis 1 and 0 to 3 spatial axes; every statistic is per
channel, over all other axes; n is the number of values per channel. float32 and float64 come in, and
the same dtype goes out.
"""

import numpy as np

from course_lib.shapes import expect_input, expect_per_channel

__all__ = ["batch_norm_backward", "batch_norm_forward", "batch_stats", "recover_identity"]


def batch_stats(x):
    """Mean and biased variance of every channel.

    mean = Σx / n and var = Σ(x − mean)² / n, both over every axis but axis 1. The variance is the
    biased one: the forward pass divides by n, not by n − 1. It stays accurate when |mean| is far
    larger than the standard deviation.

    Args:
        x: (N, C, *spatial), float32 or float64, n ≥ 2 values per channel.

    Returns:
        (mean, var), each of shape (C,) and of x's dtype, in units of x and of x².

    Raises:
        ValueError: fewer than 2 values per channel; not an array of rank 2 to 5; another dtype.

    Example:
        >>> mean, var = batch_stats(np.array([[1.0, 10.0], [3.0, 10.0]]))
        >>> mean, var
        (array([ 2., 10.]), array([1., 0.]))

    Source: [ioffe2015], Algorithm 1; the shift by one data value: [chan1983].
    """
    channels = expect_input(x)
    rows = np.moveaxis(x, 1, 0).reshape(channels, -1)  # (C, n): one contiguous row a channel, so that sums cascade
    if rows.shape[1] < 2:
        raise ValueError(f"expected at least 2 values per channel, got {rows.shape[1]} in an input of shape {x.shape}")
    # A shift changes no variance, and what is left after it has the size of the spread, not of the mean.
    pivot = rows[:, :1]
    shifted = rows - pivot
    offset = shifted.mean(axis=1, keepdims=True)
    var = np.square(shifted - offset).mean(axis=1)
    return (pivot + offset)[:, 0], var


def batch_norm_forward(x, gamma, beta, eps=1e-5):
    """Normalise every channel by its batch statistics, then scale and shift it.

    x̂ = (x − mean) / √(var + eps) and y = gamma · x̂ + beta, with the biased variance and eps inside
    the root.

    Args:
        x: (N, C, *spatial), float32 or float64, n ≥ 2.
        gamma, beta: (C,), the learned scale and shift.
        eps: added to the variance, in units of x²; not negative.

    Returns:
        (y, cache): y like x; cache = (x_hat, gamma, invstd) is what `batch_norm_backward` needs, x_hat
        like x, gamma and invstd = 1/√(var + eps) of shape (C,), all of x's dtype.

    Raises:
        ValueError: as `batch_stats`; gamma or beta of another shape than (C,); eps negative.

    Example:
        >>> y, cache = batch_norm_forward(np.array([[1.0], [3.0]]), np.ones(1), np.zeros(1), eps=0.0)
        >>> y
        array([[-1.],
               [ 1.]])

    Source: [ioffe2015], Algorithm 1.
    """
    channels = expect_input(x)
    gamma = expect_per_channel(gamma, channels, name="gamma").astype(x.dtype)
    beta = expect_per_channel(beta, channels, name="beta").astype(x.dtype)
    if eps < 0:
        raise ValueError(f"expected eps ≥ 0, got {eps}")
    per_channel = (1, channels) + (1,) * (x.ndim - 2)
    first = (slice(0, 1), slice(None)) + (slice(0, 1),) * (x.ndim - 2)
    # The output does not change when a channel is shifted: shift by one of its values, and the rounding
    # of a large mean never reaches y. A constant channel is then exactly zero, and y exactly beta.
    shifted = x - x[first] if x.size else x
    mean, var = batch_stats(shifted)
    invstd = 1 / np.sqrt(var + x.dtype.type(eps))
    x_hat = (shifted - mean.reshape(per_channel)) * invstd.reshape(per_channel)
    y = gamma.reshape(per_channel) * x_hat + beta.reshape(per_channel)
    return y, (x_hat, gamma, invstd)


def batch_norm_backward(dy, cache):
    """Gradients of `batch_norm_forward`, in closed form.

    The statistics are functions of x, so two coupling terms come off dy: one for the path through the mean,
    one for the path through the variance. With them Σdx = 0 and Σdx·x̂ ≈ 0 in every channel.

    Args:
        dy: (N, C, *spatial), the gradient at y, float32 or float64.
        cache: (x_hat, gamma, invstd) as `batch_norm_forward` returns it.

    Returns:
        (dx, dgamma, dbeta): dx like dy; dgamma and dbeta of shape (C,); all of dy's dtype.

    Raises:
        ValueError: dy and x_hat of different shapes; dy not an array of rank 2 to 5; gamma or invstd
            of another shape than (C,).

    Example:
        >>> y, cache = batch_norm_forward(np.array([[1.0], [2.0], [6.0]]), np.ones(1), np.zeros(1))
        >>> dx, dgamma, dbeta = batch_norm_backward(np.array([[1.0], [0.0], [0.0]]), cache)
        >>> dbeta, bool(abs(dx.sum()) < 1e-12)
        (array([1.]), True)

    Source: [ioffe2015], section 3.
    """
    x_hat, gamma, invstd = cache
    channels = expect_input(dy, name="dy")
    x_hat = np.asarray(x_hat, dtype=dy.dtype)
    if x_hat.shape != dy.shape:
        raise ValueError(f"expected dy of the shape of the cached x_hat, {x_hat.shape}, got {dy.shape}")
    gamma = expect_per_channel(gamma, channels, name="gamma").astype(dy.dtype)
    invstd = expect_per_channel(invstd, channels, name="invstd").astype(dy.dtype)
    axes = (0, *range(2, dy.ndim))
    n = dy.size // channels
    dbeta = dy.sum(axis=axes)
    dgamma = (dy * x_hat).sum(axis=axes)
    per_channel = (1, channels) + (1,) * (dy.ndim - 2)
    coupled = (dbeta.reshape(per_channel) + x_hat * dgamma.reshape(per_channel)) / n
    dx = (gamma * invstd).reshape(per_channel) * (dy - coupled)
    return dx, dgamma, dbeta


def recover_identity(mean, var, eps=1e-5):
    """The gamma and beta that make the layer the identity on data with these statistics.

    With them the layer gives back its input, eps and all, for this one set of statistics only.

    Args:
        mean, var: (C,), float32 or float64, the statistics of the data; var biased and not negative.
        eps: the layer's eps.

    Returns:
        (gamma, beta), each of shape (C,) and of mean's dtype.

    Raises:
        ValueError: mean and var of different shapes or dtypes; another dtype; a negative variance.

    Example:
        >>> recover_identity(np.array([5.0]), np.array([4.0]), eps=0.0)
        (array([2.]), array([5.]))

    Source: [ioffe2015], section 3.
    """
    mean, var = np.asarray(mean), np.asarray(var)
    if mean.shape != var.shape:
        raise ValueError(f"expected mean and var of one shape, got {mean.shape} and {var.shape}")
    if mean.dtype != var.dtype or var.dtype not in (np.float32, np.float64):
        raise ValueError(f"expected mean and var both in float32 or float64, got {mean.dtype} and {var.dtype}")
    if (var < 0).any():
        raise ValueError(f"expected a variance that is not negative, got {var.min()}")
    gamma = np.sqrt(var + var.dtype.type(eps))
    return gamma, mean.copy()
