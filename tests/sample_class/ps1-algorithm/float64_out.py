# like: right_numpy
# %% batch-stats
def batch_stats(x):
    n, c = x.shape[:2]
    flat = x.reshape(n, c, -1)
    count = flat.shape[0] * flat.shape[2]
    if count < 2:
        raise ValueError("one value per channel")
    mean, var = np.zeros(c), np.zeros(c)  # float64 unless told otherwise
    for k in range(c):
        mean[k] = flat[:, k].sum(dtype=np.float64) / count
        var[k] = ((flat[:, k] - mean[k]) ** 2).sum() / count
    return mean, var

# %% batch-norm-forward
def batch_norm_forward(x, gamma, beta, eps=1e-5):
    shape = (1, -1) + (1,) * (x.ndim - 2)
    mean, var = (s.astype(x.dtype) for s in batch_stats(x))
    invstd = 1 / np.sqrt(var + x.dtype.type(eps))
    x_hat = (x - mean.reshape(shape)) * invstd.reshape(shape)
    return gamma.reshape(shape) * x_hat + beta.reshape(shape), (x_hat, gamma, invstd)
