# like: right_numpy
# %% batch-stats
def batch_stats(x):
    # statistics over the batch
    if x.size // x.shape[1] < 2:
        raise ValueError("batch too small")
    mu = np.mean(x, axis=0)
    sigma2 = np.mean((x - mu) ** 2, axis=0)
    return mu, sigma2

# %% batch-norm-forward
def batch_norm_forward(x, gamma, beta, eps=1e-5):
    shape = (1, -1) + (1,) * (x.ndim - 2)
    axes = (0,) + tuple(range(2, x.ndim))
    mean = x.mean(axis=axes, keepdims=True)
    invstd = 1 / np.sqrt(x.var(axis=axes) + x.dtype.type(eps))
    x_hat = (x - mean) * invstd.reshape(shape)
    return gamma.reshape(shape) * x_hat + beta.reshape(shape), (x_hat, gamma, invstd)
