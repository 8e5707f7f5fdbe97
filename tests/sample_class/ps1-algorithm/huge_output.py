# like: right_numpy
# %% batch-stats
print("\n".join(map(str, range(1_000_000))))
for i in range(5_000):
    print(i)


def batch_stats(x):
    print("x" * 2_000_000)
    axes = (0,) + tuple(range(2, x.ndim))
    if x.size // x.shape[1] < 2:
        raise ValueError("y" * 2_000_000)
    return x.mean(axis=axes), x.var(axis=axes)

# %% own
from IPython.display import display

for _ in range(2_000):
    display(np.zeros(3))
display({"text/plain": "z" * 3_000_000}, raw=True)
raise RuntimeError("w" * 2_000_000)
