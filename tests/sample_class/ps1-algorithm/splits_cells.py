# like: right_numpy
# then: split batch-norm-backward
# %% batch-norm-backward
def sums(dy, x_hat):
    axes = (0,) + tuple(range(2, dy.ndim))
    return dy.sum(axis=axes), (dy * x_hat).sum(axis=axes)


# ---- split here
def batch_norm_backward(dy, cache):
    x_hat, gamma, invstd = cache
    dbeta, dgamma = sums(dy, x_hat)
    n = dy.size // dy.shape[1]
    shape = (1, -1) + (1,) * (dy.ndim - 2)
    mean_dy, mean_dy_x = dbeta.reshape(shape) / n, dgamma.reshape(shape) / n
    return (gamma * invstd).reshape(shape) * (dy - mean_dy - x_hat * mean_dy_x), dgamma, dbeta
