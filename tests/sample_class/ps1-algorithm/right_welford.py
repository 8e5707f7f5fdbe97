# %% batch-stats
def batch_stats(x):
    """One pass over the samples, with running moments that are merged (Chan et al.)."""
    count, mean, m2 = 0, 0.0, 0.0
    for sample in x:
        values = sample.reshape(sample.shape[0], -1).astype(np.float64)
        k = values.shape[1]
        its_mean = values.mean(axis=1)
        its_m2 = ((values - its_mean[:, None]) ** 2).sum(axis=1)
        delta = its_mean - mean
        total = count + k
        mean = mean + delta * k / total
        m2 = m2 + its_m2 + delta**2 * count * k / total
        count = total
    if count < 2:
        raise ValueError("expected at least two values per channel")
    return mean.astype(x.dtype), (m2 / count).astype(x.dtype)

# %% batch-norm-forward
class Layer:
    def __init__(self, gamma, beta, eps):
        self.gamma, self.beta, self.eps = gamma, beta, eps

    def __call__(self, x):
        view = [1] * x.ndim
        view[1] = x.shape[1]
        x64 = x.astype(np.float64)
        # centred once more: the statistics come back rounded
        x64 = x64 - batch_stats(x64)[0].reshape(view)
        invstd = 1 / np.sqrt(batch_stats(x64)[1] + self.eps)
        x_hat = x64 * invstd.reshape(view)
        y = self.gamma.reshape(view) * x_hat + self.beta.reshape(view)
        return y.astype(x.dtype), (x_hat.astype(x.dtype), self.gamma, invstd.astype(x.dtype))


def batch_norm_forward(x, gamma, beta, eps=1e-5):
    return Layer(gamma, beta, eps)(x)

# %% batch-norm-backward
def batch_norm_backward(dy, cache):
    x_hat, gamma, invstd = cache
    view = [1] * dy.ndim
    view[1] = dy.shape[1]
    others = tuple(i for i in range(dy.ndim) if i != 1)
    n = dy.size / dy.shape[1]
    # the node of the graph at a time: y, x_hat, then invstd and the mean
    dbeta = np.sum(dy, others)
    dgamma = np.sum(dy * x_hat, others)
    dx_hat = dy * gamma.reshape(view)
    centred = x_hat / invstd.reshape(view)
    dinvstd = np.sum(dx_hat * centred, others)
    dvar = dinvstd * -0.5 * invstd**3
    dcentred = dx_hat * invstd.reshape(view) + (2 / n * dvar).astype(dy.dtype).reshape(view) * centred
    dx = dcentred - np.mean(dcentred, others).reshape(view)
    return dx, dgamma, dbeta

# %% recover-identity
def recover_identity(mean, var, eps=1e-5):
    y0, y1 = mean, mean + np.sqrt(var + var.dtype.type(eps))  # where x_hat is 0, and where it is 1
    return y1 - y0, y0.copy()
