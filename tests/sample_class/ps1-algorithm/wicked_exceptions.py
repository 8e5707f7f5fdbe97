# like: right_numpy
# %% batch-stats
class Wicked(BaseException):
    def __str__(self):
        raise self

    def __repr__(self):
        raise self


def batch_stats(x):
    raise Wicked

# %% batch-norm-forward
def batch_norm_forward(x, gamma, beta, eps=1e-5):
    return batch_norm_forward(x, gamma, beta)

# %% batch-norm-backward
def batch_norm_backward(dy, cache):
    raise SystemExit

# %% recover-identity
def recover_identity(mean, var, eps=1e-5):
    raise KeyboardInterrupt
