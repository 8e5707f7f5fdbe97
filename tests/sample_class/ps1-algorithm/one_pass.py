# like: right_numpy
# %% batch-stats
def batch_stats(x):
    # E[x^2] - E[x]^2: only one loop over the data
    axes = (0, *range(2, x.ndim))
    n = x.size // x.shape[1]
    if n < 2:
        raise ValueError("need two values")
    s = x.sum(axis=axes)
    s2 = (x * x).sum(axis=axes)
    mean = s / n
    return mean, s2 / n - mean * mean

# %% batch-norm-forward
def batch_norm_forward(x, gamma, beta, eps=1e-5):
    shape = (1, -1) + (1,) * (x.ndim - 2)
    axes = (0,) + tuple(range(2, x.ndim))
    mean, var = x.mean(axis=axes), x.var(axis=axes)
    invstd = 1 / np.sqrt(var + x.dtype.type(eps))
    x_hat = (x - mean.reshape(shape)) * invstd.reshape(shape)
    return gamma.reshape(shape) * x_hat + beta.reshape(shape), (x_hat, gamma, invstd)
