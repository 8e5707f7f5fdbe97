# like: right_gather
# %% sync-moments
def sync_moments(x, group=None):
    x = x.detach().double()
    dims = [d for d in range(x.dim()) if d != 1]
    count = x.numel() // x.shape[1]
    sums = torch.cat([x.sum(dims) / max(count, 1), (x * x).sum(dims) / max(count, 1), x.new_tensor([count])])
    dist.all_reduce(sums, group=group)
    C = x.shape[1]
    mean, meansqr = sums[:C] / dist.get_world_size(group), sums[C : 2 * C] / dist.get_world_size(group)
    return int(sums[-1]), mean, meansqr - mean**2
