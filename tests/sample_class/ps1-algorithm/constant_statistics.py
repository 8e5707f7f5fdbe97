# like: right_numpy
# %% batch-norm-backward
def batch_norm_backward(dy, cache):
    x_hat, gamma, invstd = cache
    axes = tuple(a for a in range(dy.ndim) if a != 1)
    # y = gamma * (x - mean) * invstd + beta, so dy/dx = gamma * invstd
    scale = np.expand_dims(gamma * invstd, [a - 1 if a else 0 for a in axes][1:]) if dy.ndim > 2 else gamma * invstd
    return dy * scale, np.sum(dy * x_hat, axis=axes), np.sum(dy, axis=axes)
