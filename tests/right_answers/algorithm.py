"""Right answers to problem set 1, each in another style. `RIGHT[piece][style]` is an implementation.

They are honest, not clever: several lose digits that the reference keeps, as far as its contract allows.
"""

import math
import statistics
from collections import defaultdict

import numpy as np

RIGHT = defaultdict(dict)


def right(piece):
    """Decorator that files an implementation under its piece, by its own name."""

    def add(implementation):
        RIGHT[f"algorithm.{piece}"][implementation.__name__] = implementation
        return implementation

    return add


def _refuse_single(x):
    n = x.size // x.shape[1]
    if n < 2:
        raise ValueError(f"need two values per channel, got {n}")
    return n


# --- batch_stats ------------------------------------------------------------------------------------------------


@right("batch_stats")
def numpy_methods(x):
    axes = tuple(i for i in range(x.ndim) if i != 1)
    _refuse_single(x)
    return x.mean(axis=axes), x.var(axis=axes)


@right("batch_stats")
def two_pass_keepdims(x):
    _refuse_single(x)
    axes = (0, *range(2, x.ndim))
    mean = np.mean(x, axis=axes, keepdims=True)
    var = np.mean((x - mean) ** 2, axis=axes, keepdims=True)
    return np.squeeze(mean, axes), np.squeeze(var, axes)


@right("batch_stats")
def python_loops(x):
    n = _refuse_single(x)
    means, variances = [], []
    for c in range(x.shape[1]):
        values = [float(v) for v in x[:, c].ravel()]
        mean = sum(values) / n
        means.append(mean)
        variances.append(sum((v - mean) ** 2 for v in values) / n)
    return np.array(means, dtype=x.dtype), np.array(variances, dtype=x.dtype)


@right("batch_stats")
def accumulators_of_the_same_dtype(x):
    # Sums value by value in x's own dtype: the least accurate of the two-pass ways.
    n = _refuse_single(x)
    mean, var = np.zeros(x.shape[1], x.dtype), np.zeros(x.shape[1], x.dtype)
    for index in np.ndindex(x.shape):
        mean[index[1]] += x[index]
    mean /= n
    for index in np.ndindex(x.shape):
        var[index[1]] += (x[index] - mean[index[1]]) ** 2
    return mean, var / n


@right("batch_stats")
def rows_and_einsum(x):
    n = _refuse_single(x)
    rows = np.swapaxes(x, 0, 1).reshape(x.shape[1], -1)
    mean = np.einsum("cn->c", rows) / n
    centred = rows - mean[:, None]
    return mean.astype(x.dtype), (np.einsum("cn,cn->c", centred, centred) / n).astype(x.dtype)


@right("batch_stats")
def columns_summed_down(x):
    # (n, C): NumPy adds the rows one after the other here, without pairwise summation.
    n = _refuse_single(x)
    columns = np.moveaxis(x, 1, -1).reshape(-1, x.shape[1])
    mean = columns.sum(axis=0) / n
    return mean, ((columns - mean) ** 2).sum(axis=0) / n


@right("batch_stats")
def welford(x):
    _refuse_single(x)
    rows = x.swapaxes(0, 1).reshape(x.shape[1], -1)
    mean, m2 = np.zeros(len(rows), x.dtype), np.zeros(len(rows), x.dtype)
    for k in range(rows.shape[1]):
        delta = rows[:, k] - mean
        mean = mean + delta / x.dtype.type(k + 1)
        m2 = m2 + delta * (rows[:, k] - mean)
    return mean, m2 / x.dtype.type(rows.shape[1])


@right("batch_stats")
def exact_sums(x):
    n = _refuse_single(x)
    mean = [math.fsum(x[:, c].flat) / n for c in range(x.shape[1])]
    var = [math.fsum((float(v) - m) ** 2 for v in x[:, c].flat) / n for c, m in enumerate(mean)]
    return np.asarray(mean).astype(x.dtype), np.asarray(var).astype(x.dtype)


@right("batch_stats")
def float64_inside(x):
    if np.prod(x.shape[:1] + x.shape[2:]) < 2:
        raise ValueError("too few values")
    wide = x.astype(np.float64)
    axes = (0, 2, 3, 4)[: x.ndim - 1]
    mean, squares = wide.mean(axes), np.square(wide).mean(axes)
    # One pass, but in float64: with float32 data that is accurate enough.
    var = np.maximum(squares - mean**2, 0) if x.dtype == np.float32 else wide.var(axes)
    return mean.astype(x.dtype), var.astype(x.dtype)


@right("batch_stats")
def axis_by_axis(x):
    n = _refuse_single(x)

    def total(values):
        while values.ndim > 2:
            values = np.add.reduce(values, axis=-1)
        return np.add.reduce(values, axis=0)

    mean = total(x) / n
    deviation = x - mean.reshape(1, -1, *[1] * (x.ndim - 2))
    return mean, total(deviation * deviation) / n


@right("batch_stats")
def merged_samples(x):
    # The variance of the whole is the mean of the variances plus the variance of the means.
    _refuse_single(x)
    maps = x.reshape(x.shape[0], x.shape[1], -1)
    means, variances = maps.mean(axis=2), maps.var(axis=2)
    return means.mean(axis=0), variances.mean(axis=0) + means.var(axis=0)


@right("batch_stats")
def standard_library(x):
    channels = [x[:, c].ravel().tolist() for c in range(x.shape[1])]
    if len(channels[0]) < 2:
        raise ValueError(f"expected 2 values, got {len(channels[0])}")
    mean = [statistics.fmean(values) for values in channels]
    var = [statistics.fmean([(v - m) ** 2 for v in values]) for values, m in zip(channels, mean, strict=True)]
    return np.array(mean, x.dtype), np.array(var, x.dtype)


@right("batch_stats")
def matrix_products(x):
    n = _refuse_single(x)
    rows = np.transpose(x, (1, 0, *range(2, x.ndim))).reshape(x.shape[1], n)
    mean = rows @ np.full(n, 1 / n, x.dtype)
    centred = rows - np.outer(mean, np.ones(n, x.dtype))
    return mean, np.diag(centred @ centred.T) / n


@right("batch_stats")
def std_squared(x):
    _refuse_single(x)
    channels_first = np.rollaxis(x, 1)
    axes = tuple(range(1, x.ndim))
    return np.average(channels_first, axis=axes), np.std(channels_first, axis=axes) ** 2


# --- batch_norm_forward -----------------------------------------------------------------------------------------


@right("batch_norm_forward")
def broadcast_keepdims(x, gamma, beta, eps=1e-5):
    axes = (0, *range(2, x.ndim))
    shape = [1, -1] + [1] * (x.ndim - 2)
    mean = x.mean(axis=axes, keepdims=True)
    var = x.var(axis=axes, keepdims=True)
    invstd = 1.0 / np.sqrt(var + eps)
    x_hat = (x - mean) * invstd
    return gamma.reshape(shape) * x_hat + beta.reshape(shape), (x_hat, gamma, invstd.reshape(-1))


@right("batch_norm_forward")
def channel_loop(x, gamma, beta, eps=1e-5):
    y, x_hat = np.empty_like(x), np.empty_like(x)
    invstd = np.empty(x.shape[1], dtype=x.dtype)
    for c in range(x.shape[1]):
        values = x[:, c]
        invstd[c] = 1 / math.sqrt(values.var() + eps)
        x_hat[:, c] = (values - values.mean()) * invstd[c]
        y[:, c] = gamma[c] * x_hat[:, c] + beta[c]
    return y, (x_hat, gamma, invstd)


@right("batch_norm_forward")
def channels_moved_last(x, gamma, beta, eps=1e-5):
    last = np.moveaxis(x, 1, -1)
    flat = last.reshape(-1, last.shape[-1])
    mu = flat.sum(0) / len(flat)
    sigma2 = ((flat - mu) ** 2).sum(0) / len(flat)
    invstd = np.power(sigma2 + eps, -0.5)
    x_hat = (flat - mu) * invstd
    y = x_hat * gamma + beta
    back = [np.moveaxis(a.reshape(last.shape), -1, 1) for a in (y, x_hat)]
    return back[0], (back[1], gamma, invstd)


@right("batch_norm_forward")
def divided_by_std(x, gamma, beta, eps=1e-5):
    axes = tuple(set(range(x.ndim)) - {1})
    ones = (1,) * (x.ndim - 2)
    centred = x - x.mean(axes, keepdims=True)
    std = np.sqrt(np.mean(centred**2, axes) + eps)
    x_hat = centred / std.reshape(-1, *ones)
    y = x_hat * gamma.reshape(-1, *ones)
    y += beta.reshape(-1, *ones)
    return y, [x_hat, gamma.copy(), 1 / std]


@right("batch_norm_forward")
def one_scale_one_shift(x, gamma, beta, eps=1e-5):
    # y = a·x + b, as at inference: loses a few digits when the mean is large.
    axes = (0, *range(2, x.ndim))
    mean, var = x.mean(axes), x.var(axes)
    invstd = 1 / np.sqrt(var + x.dtype.type(eps))

    def wide(v):
        return np.expand_dims(v, [i for i in range(x.ndim) if i != 1])

    a = gamma * invstd
    y = wide(a) * x + wide(beta - a * mean)
    return y, ((x - wide(mean)) * wide(invstd), gamma, invstd)


@right("batch_norm_forward")
def float64_and_back(x, gamma, beta, eps=1e-5):
    wide = x.astype(np.float64).swapaxes(1, -1)
    axes = tuple(range(x.ndim - 1))
    invstd = 1 / np.sqrt(wide.var(axis=axes) + eps)
    x_hat = (wide - wide.mean(axis=axes)) * invstd
    y = (gamma.astype(np.float64) * x_hat + beta).swapaxes(1, -1)
    return y.astype(x.dtype), (x_hat.swapaxes(1, -1).astype(x.dtype), gamma, invstd.astype(x.dtype))


@right("batch_norm_forward")
def einsum_rows(x, gamma, beta, eps=1e-5):
    n, c = x.size // x.shape[1], x.shape[1]
    rows = x.reshape(x.shape[0], c, -1)
    mean = (np.einsum("ncl->c", rows) / n).astype(x.dtype)
    d = rows - mean[:, np.newaxis]
    invstd = (np.einsum("ncl,ncl->c", d, d) / n + eps).astype(x.dtype) ** -0.5
    x_hat = np.einsum("ncl,c->ncl", d, invstd)
    y = np.einsum("ncl,c->ncl", x_hat, gamma) + beta[None, :, None]
    return y.reshape(x.shape), (x_hat.reshape(x.shape), gamma, invstd)


@right("batch_norm_forward")
def python_numbers(x, gamma, beta, eps=1e-5):
    y, x_hat = np.zeros_like(x), np.zeros_like(x)
    invstds = []
    for c in range(x.shape[1]):
        indices = [i for i in np.ndindex(x.shape) if i[1] == c]
        values = [float(x[i]) for i in indices]
        mean = sum(values) / len(values)
        var = sum((v - mean) ** 2 for v in values) / len(values)
        invstds.append(1 / (var + eps) ** 0.5)
        for i, v in zip(indices, values, strict=True):
            x_hat[i] = (v - mean) * invstds[-1]
            y[i] = float(gamma[c]) * (v - mean) * invstds[-1] + float(beta[c])
    return (y, (x_hat, gamma, np.array(invstds, dtype=x.dtype)))


# --- batch_norm_backward ----------------------------------------------------------------------------------------


def _over(x):
    return (0, *range(2, x.ndim))


@right("batch_norm_backward")
def kratzert_simplified(dy, cache):
    # The form most posts end with: (1/n)·invstd·(n·dx̂ − Σdx̂ − x̂·Σdx̂x̂).
    x_hat, gamma, invstd = cache
    shape = (1, -1) + (1,) * (dy.ndim - 2)
    n = dy.size / dy.shape[1]
    dx_hat = dy * gamma.reshape(shape)
    dx = n * dx_hat
    dx -= dx_hat.sum(_over(dy), keepdims=True)
    dx -= x_hat * (dx_hat * x_hat).sum(_over(dy), keepdims=True)
    dx = dx * invstd.reshape(shape) / n
    return dx, (dy * x_hat).sum(_over(dy)), dy.sum(_over(dy))


@right("batch_norm_backward")
def computation_graph(dy, cache):
    # Node by node, as in the blog posts with the picture of the graph.
    x_hat, gamma, invstd = cache
    axes, n = _over(dy), dy.size // dy.shape[1]

    def wide(v):
        return v.reshape((-1,) + (1,) * (dy.ndim - 2))

    dbeta, dgamma = np.sum(dy, axes), np.sum(dy * x_hat, axes)
    x_mu = x_hat / wide(invstd)
    dx_hat = dy * wide(gamma)
    dvar = np.sum(dx_hat * x_mu, axes) * -0.5 * invstd**3
    dmean = np.sum(-dx_hat * wide(invstd), axes) + dvar * np.mean(-2 * x_mu, axes)
    dx = dx_hat * wide(invstd) + wide(dvar) * 2 * x_mu / n + wide(dmean) / n
    return dx, dgamma, dbeta


@right("batch_norm_backward")
def means_of_rows(dy, cache):
    x_hat, gamma, invstd = cache
    d = np.moveaxis(dy, 1, 0).reshape(len(gamma), -1)
    h = np.moveaxis(x_hat, 1, 0).reshape(len(gamma), -1)
    dx = d - d.mean(1, keepdims=True) - h * (d * h).mean(1, keepdims=True)
    dx *= (gamma * invstd)[:, None]
    back = dx.reshape(dy.shape[1], dy.shape[0], *dy.shape[2:])
    return np.moveaxis(back, 0, 1), (d * h).sum(1), d.sum(1)


@right("batch_norm_backward")
def einsum_gradient(dy, cache):
    x_hat, gamma, invstd = (np.asarray(part) for part in cache)
    d, h = (a.reshape(a.shape[0], a.shape[1], -1) for a in (dy, x_hat))
    n = d.shape[0] * d.shape[2]
    dgamma, dbeta = np.einsum("ncl,ncl->c", d, h), np.einsum("ncl->c", d)
    inner = d - (dbeta / n)[:, None] - np.einsum("ncl,c->ncl", h, dgamma / n)
    dx = np.einsum("c,c,ncl->ncl", gamma, invstd, inner)
    return dx.reshape(dy.shape), dgamma, dbeta


@right("batch_norm_backward")
def channel_by_channel(dy, cache):
    x_hat, gamma, invstd = cache
    dx, dgamma, dbeta = np.empty_like(dy), np.empty_like(gamma), np.empty_like(gamma)
    for c in range(dy.shape[1]):
        d, h = dy[:, c], x_hat[:, c]
        dbeta[c], dgamma[c] = d.sum(), np.vdot(d, h)
        dx[:, c] = gamma[c] * invstd[c] * (d - d.mean() - h * np.mean(d * h))
    return dx, dgamma, dbeta


@right("batch_norm_backward")
def full_jacobian(dy, cache):
    # dx = J·dy with the n × n matrix J = γ·invstd·(I − 1/n − x̂x̂ᵀ/n), in every channel.
    x_hat, gamma, invstd = cache
    flat = [np.swapaxes(a, 0, 1).reshape(a.shape[1], -1) for a in (dy, x_hat)]
    rows = []
    for d, h, scale in zip(*flat, gamma * invstd, strict=True):
        n = len(d)
        jacobian = np.eye(n, dtype=d.dtype) - np.full((n, n), 1 / n, d.dtype) - np.outer(h, h) / n
        rows.append(scale * (jacobian @ d))
    dx = np.stack(rows).reshape(dy.shape[1], dy.shape[0], *dy.shape[2:]).swapaxes(0, 1)
    return dx, np.array([d @ h for d, h in zip(*flat, strict=True)]), flat[0].sum(axis=1)


@right("batch_norm_backward")
def sums_with_fsum(dy, cache):
    x_hat, gamma, invstd = cache
    n = dy.size // dy.shape[1]
    dx, sums = np.zeros_like(dy), []
    for c in range(dy.shape[1]):
        pairs = [(float(d), float(h)) for d, h in zip(dy[:, c].flat, x_hat[:, c].flat, strict=True)]
        sums.append((math.fsum(d * h for d, h in pairs), math.fsum(d for d, _ in pairs)))
        scale = float(gamma[c]) * float(invstd[c])
        dx[:, c].flat = [scale * (d - sums[-1][1] / n - h * sums[-1][0] / n) for d, h in pairs]
    # .flat writes through the view dx[:, c]
    dgamma, dbeta = np.array(sums, dtype=dy.dtype).T
    return dx, dgamma, dbeta


@right("batch_norm_backward")
def float64_gradient(dy, cache):
    x_hat, gamma, invstd = (part.astype(np.float64) for part in cache)
    d = dy.astype(np.float64).swapaxes(1, -1)
    h = x_hat.swapaxes(1, -1)
    axes = tuple(range(dy.ndim - 1))
    dx = gamma * invstd * (d - d.mean(axes) - h * (d * h).mean(axes))
    return dx.swapaxes(1, -1).astype(dy.dtype), (d * h).sum(axes).astype(dy.dtype), d.sum(axes).astype(dy.dtype)


# --- recover_identity -------------------------------------------------------------------------------------------


@right("recover_identity")
def root_and_mean(mean, var, eps=1e-5):
    return np.sqrt(var + eps), mean


@right("recover_identity")
def power_of_half(mean, var, eps=1e-5):
    gamma = (var + eps) ** 0.5
    return gamma, np.copy(mean)


@right("recover_identity")
def loop_over_channels(mean, var, eps=1e-5):
    gamma, beta = np.zeros_like(mean), np.zeros_like(mean)
    for c in range(len(mean)):
        gamma[c] = math.sqrt(float(var[c]) + eps)
        beta[c] = mean[c]
    return gamma, beta


@right("recover_identity")
def one_over_invstd(mean, var, eps=1e-5):
    invstd = 1 / np.sqrt(var + eps)
    return 1 / invstd, 0 + mean


@right("recover_identity")
def root_of_two_squares(mean, var, eps=1e-5):
    return np.hypot(np.sqrt(var), math.sqrt(eps)), mean.copy()


@right("recover_identity")
def list_comprehensions(mean, var, eps=1e-5):
    return [
        np.array([np.sqrt(float(v) + eps) for v in var], dtype=var.dtype),
        np.array(list(mean), dtype=mean.dtype),
    ]


@right("recover_identity")
def exponential_of_log(mean, var, eps=1e-5):
    return np.exp(np.log(var + eps) / 2), np.array(mean)
