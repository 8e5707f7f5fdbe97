# like: right_numpy
# %% batch-stats
import warnings

print("my statistics, version 7, of", {"mean", "var", "eps", "momentum"})


def batch_stats(x):
    print("x has shape", x.shape)
    warnings.warn("slow for large x", RuntimeWarning)
    np.log(np.zeros(1))  # a RuntimeWarning of NumPy's
    axes = (0,) + tuple(range(2, x.ndim))
    if x.size // x.shape[1] < 2:
        raise ValueError("need two values per channel")
    return x.mean(axis=axes), x.var(axis=axes)

# %% own
import sys

print("debug", file=sys.stderr)
warnings.warn("still debugging")
