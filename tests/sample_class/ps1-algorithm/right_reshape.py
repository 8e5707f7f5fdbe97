# %% batch-stats
def channel_rows(x):
    """(C, n): one row a channel"""
    return np.swapaxes(x, 0, 1).reshape(x.shape[1], -1)


def batch_stats(x):
    rows = channel_rows(x)
    if rows.shape[-1] < 2:
        raise ValueError("batch norm needs more than one value per channel")
    return np.mean(rows, axis=1), np.var(rows, axis=1)

# %% batch-norm-forward
def back_to(rows, like):
    swapped = (like.shape[1], like.shape[0], *like.shape[2:])
    return np.ascontiguousarray(np.swapaxes(rows.reshape(swapped), 0, 1))


def batch_norm_forward(x, gamma, beta, eps=1e-5):
    rows = channel_rows(x)
    mean, var = batch_stats(x)
    std = np.sqrt(var + x.dtype.type(eps))
    normalised = (rows - mean[:, None]) / std[:, None]
    y = gamma[:, None] * normalised + beta[:, None]
    return back_to(y, x), (back_to(normalised, x), gamma, 1 / std)

# %% batch-norm-backward
def batch_norm_backward(dy, cache):
    x_hat, gamma, invstd = cache
    d, h = channel_rows(dy), channel_rows(x_hat)
    d_hat = d * gamma[:, None]
    # take away the parts along (1, ..., 1) and along x_hat
    d_hat = d_hat - d_hat.mean(axis=1, keepdims=True) - h * (d_hat * h).mean(axis=1, keepdims=True)
    return back_to(d_hat * invstd[:, None], dy), (d * h).sum(axis=1), d.sum(axis=1)

# %% recover-identity
def recover_identity(mean, var, eps=1e-5):
    gamma = np.sqrt(var + np.asarray(eps, dtype=var.dtype))
    beta = np.array(mean)
    return gamma, beta
