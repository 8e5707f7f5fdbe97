# like: right_gather
# %% sync-moments
def sync_moments(x, group=None):
    n, mean, m2 = local_moments(x)
    weighted = torch.cat([torch.tensor([float(n)]).double(), n * mean, m2])
    dist.all_reduce(weighted, group=group)
    total = int(weighted[0])
    # the mean of the means and the mean of the variances, weighted by the number of values
    mean, var = (weighted[1:] / max(total, 1)).chunk(2)
    return total, mean, var
