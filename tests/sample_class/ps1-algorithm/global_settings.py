# like: right_numpy
# %% batch-stats
import random
import sys
import warnings

np.seterr(all="raise")
warnings.simplefilter("error")
np.random.seed(0)
np.random.default_rng = lambda *a: 1 / 0
np.random.randn = np.random.normal = None
random.seed(0)
np.set_printoptions(precision=1, threshold=2)
sys.setrecursionlimit(150)


def batch_stats(x):
    axes = (0,) + tuple(range(2, x.ndim))
    if x.size // x.shape[1] < 2:
        raise ValueError("too few")
    return x.mean(axis=axes), x.var(axis=axes)
