# like: right_numpy
# %% batch-stats
def batch_stats(x):
    axes = (0,) + tuple(range(2, x.ndim))
    mean = x.mean(axis=axes)
    error = 1.0
    while error > 1e-30:  # until it has converged
        new = mean + 0.5 * ((x - mean.reshape(1, -1, *[1] * (x.ndim - 2))).mean(axis=axes))
        error = abs(new - mean).max() + 1e-20
        mean = new
    return mean, x.var(axis=axes)

# %% batch-norm-forward
def batch_norm_forward(x, gamma, beta, eps=1e-5):
    shape = (1, -1) + (1,) * (x.ndim - 2)
    axes = (0,) + tuple(range(2, x.ndim))
    invstd = 1 / np.sqrt(x.var(axis=axes) + x.dtype.type(eps))
    x_hat = (x - x.mean(axis=axes, keepdims=True)) * invstd.reshape(shape)
    return gamma.reshape(shape) * x_hat + beta.reshape(shape), (x_hat, gamma, invstd)
