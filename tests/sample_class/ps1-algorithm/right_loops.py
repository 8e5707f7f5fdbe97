# %% batch-stats
def batch_stats(x):
    N, C = x.shape[0], x.shape[1]
    flat = x.reshape(N, C, -1)
    if flat.shape[0] * flat.shape[2] < 2:
        raise ValueError("a variance of one number?")
    mean = np.zeros(C, dtype=x.dtype)
    var = np.zeros(C, dtype=x.dtype)
    for c in range(C):
        values = [float(v) for n in range(N) for v in flat[n, c]]
        m = sum(values) / len(values)
        mean[c] = m
        var[c] = sum((v - m) ** 2 for v in values) / len(values)
    return mean, var

# %% batch-norm-forward
def batch_norm_forward(x, gamma, beta, eps=1e-5):
    mean, var = batch_stats(x)
    y, x_hat, invstd = np.empty_like(x), np.empty_like(x), np.empty_like(mean)
    for c in range(x.shape[1]):
        invstd[c] = 1.0 / (float(var[c]) + eps) ** 0.5
        x_hat[:, c] = (x[:, c] - mean[c]) * invstd[c]
        y[:, c] = gamma[c] * x_hat[:, c] + beta[c]
    return y, (x_hat, gamma, invstd)

# %% batch-norm-backward
def batch_norm_backward(dy, cache):
    x_hat, gamma, invstd = cache
    dx = np.empty_like(dy)
    dgamma, dbeta = np.empty_like(gamma), np.empty_like(gamma)
    for c in range(dy.shape[1]):
        d, h = dy[:, c], x_hat[:, c]
        n = d.size
        dbeta[c] = d.sum()
        dgamma[c] = (d * h).sum()
        dx[:, c] = gamma[c] * invstd[c] / n * (n * d - dbeta[c] - h * dgamma[c])
    return dx, dgamma, dbeta

# %% recover-identity
def recover_identity(mean, var, eps=1e-5):
    gamma, beta = np.empty_like(var), np.empty_like(mean)
    for c in range(len(mean)):
        gamma[c] = (float(var[c]) + eps) ** 0.5
        beta[c] = mean[c]
    return gamma, beta
