# like: right_numpy
# %% batch-stats
version = input("which version shall I take? ")

# %% own
def batch_stats(x):
    axes = (0,) + tuple(range(2, x.ndim))
    if x.size // x.shape[1] < 2:
        raise ValueError("two, please")
    return x.mean(axis=axes), x.var(axis=axes)


exit()
