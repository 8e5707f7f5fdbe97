# what the hostile ones hand in as answers: plausible forms, no right values

# %% batch-stats
def batch_stats(x):
    return np.zeros(x.shape[1], x.dtype), np.ones(x.shape[1], x.dtype)

# %% batch-norm-forward
def batch_norm_forward(x, gamma, beta, eps=1e-5):
    return x.copy(), (x.copy(), gamma, np.ones_like(gamma))

# %% batch-norm-backward
def batch_norm_backward(dy, cache):
    return dy.copy(), np.zeros_like(cache[1]), np.zeros_like(cache[1])

# %% recover-identity
def recover_identity(mean, var, eps=1e-5):
    return np.ones_like(var), np.zeros_like(mean)
