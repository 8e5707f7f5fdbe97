# like: right_numpy
# %% batch-stats
def batch_stats(x):
    axes = tuple(i for i in range(x.ndim) if i != 1)
    n = np.prod([x.shape[i] for i in axes])
    if n < 2:
        raise ValueError("not enough values")
    return np.mean(x, axis=axes), np.var(x, axis=axes, ddof=1)

# %% batch-norm-forward
def batch_norm_forward(x, gamma, beta, eps=1e-5):
    shape = [1, -1] + [1] * (x.ndim - 2)
    mean, var = batch_stats(x)
    invstd = 1 / np.sqrt(var + x.dtype.type(eps))
    x_hat = (x - mean.reshape(shape)) * invstd.reshape(shape)
    return gamma.reshape(shape) * x_hat + beta.reshape(shape), (x_hat, gamma, invstd)
