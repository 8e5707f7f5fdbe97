# like: right_rows
# %% population-stats
def population_stats(batches):
    means, variances, n = [], [], 0
    for b in batches:
        rows = rows_of(b).double()
        if rows.shape[1] == 0:
            continue
        means.append(rows.mean(dim=1))
        variances.append(rows.var(dim=1) if rows.shape[1] > 1 else torch.zeros(len(rows)).double())
        n += rows.shape[1]
    return torch.stack(means).mean(0), torch.stack(variances).mean(0), n
