# like: right_plain
# %% population-stats
def population_stats(batches):
    import numpy as np

    rows = np.concatenate([b.double().numpy().swapaxes(0, 1).reshape(b.shape[1], -1) for b in batches], axis=1)
    return rows.mean(axis=1), rows.var(axis=1, ddof=1), rows.shape[1]
