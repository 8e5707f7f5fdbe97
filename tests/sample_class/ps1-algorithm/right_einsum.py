# %% batch-stats
def batch_stats(x):
    flat = x.reshape(*x.shape[:2], -1).astype(np.float64)
    n = flat.shape[0] * flat.shape[2]
    if n < 2:
        raise ValueError(f"only {n} value per channel")
    mean = np.einsum("ncl->c", flat) / n
    centred = flat - mean[None, :, None]
    var = np.einsum("ncl,ncl->c", centred, centred) / n
    return mean.astype(x.dtype), var.astype(x.dtype)

# %% batch-norm-forward
def batch_norm_forward(x, gamma, beta, eps=1e-5):
    shape, dtype = x.shape, x.dtype
    flat = x.reshape(*shape[:2], -1).astype(np.float64)
    n = flat.shape[0] * flat.shape[2]
    centred = flat - (np.einsum("ncl->c", flat) / n)[None, :, None]
    invstd = (np.einsum("ncl,ncl->c", centred, centred) / n + eps) ** -0.5
    x_hat = np.einsum("ncl,c->ncl", centred, invstd)
    y = np.einsum("ncl,c->ncl", x_hat, gamma) + beta[None, :, None]
    return y.reshape(shape).astype(dtype), (x_hat.reshape(shape).astype(dtype), gamma, invstd.astype(dtype))

# %% batch-norm-backward
def batch_norm_backward(dy, cache):
    x_hat, gamma, invstd = cache
    d, h = (a.reshape(*dy.shape[:2], -1) for a in (dy, x_hat))
    n = d.shape[0] * d.shape[2]
    dbeta = np.einsum("ncl->c", d)
    dgamma = np.einsum("ncl,ncl->c", d, h)
    dx = d - (dbeta / n)[None, :, None] - np.einsum("ncl,c->ncl", h, dgamma / n)
    dx = np.einsum("ncl,c,c->ncl", dx, gamma, invstd)
    return dx.reshape(dy.shape), dgamma, dbeta

# %% recover-identity
def recover_identity(mean, var, eps=1e-5):
    return np.power(var + eps, 0.5).astype(var.dtype), +mean
