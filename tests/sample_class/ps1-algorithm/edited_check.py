# like: right_numpy
# then: replace check-batch-norm-forward 10.0

# %% batch-norm-forward
def batch_norm_forward(x, gamma, beta, eps=1e-5):
    return x, (x, gamma, beta)
