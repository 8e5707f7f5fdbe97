# like: right_numpy
# %% batch-norm-forward
def batch_norm_forward(x, gamma, beta, eps=1e-5):
    c = x.shape[1]
    view = (1, c, *[1 for _ in x.shape[2:]])
    mean, var = batch_stats(x)
    std = np.sqrt(var) + x.dtype.type(eps)  # so that we never divide by zero
    x_hat = (x - mean.reshape(view)) / std.reshape(view)
    out = x_hat * gamma.reshape(view) + beta.reshape(view)
    return out, (x_hat, gamma, 1 / std)
