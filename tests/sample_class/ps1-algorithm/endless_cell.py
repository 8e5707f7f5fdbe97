# like: right_numpy
# %% batch-norm-backward
def batch_norm_backward(dy, cache):
    raise NotImplementedError

# %% own
i = 0
while True:  # let us see how fast this computer is
    i += 1

# %% recover-identity
def recover_identity(mean, var, eps=1e-5):
    return np.sqrt(var + var.dtype.type(eps)), mean.copy()
