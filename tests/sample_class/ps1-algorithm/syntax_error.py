# like: right_numpy
# %% batch-norm-forward
def batch_norm_forward(x, gamma, beta, eps=1e-5):
    mean, var = batch_stats(x)
    shape = (1, -1) + (1,) * (x.ndim - 2
    x_hat = (x - mean.reshape(shape)) / np.sqrt(var.reshape(shape) + eps)
    return gamma.reshape(shape) * x_hat + beta.reshape(shape), (x_hat, gamma, var)
