# %% merge-moments
def merge_moments(a, b):
    if a[0] == 0 or b[0] == 0:
        return a if b[0] == 0 else b
    n = a[0] + b[0]
    mean = (a[1] * a[0] + b[1] * b[0]) / n
    return n, mean, a[2] + b[2] + a[0] * (a[1] - mean) ** 2 + b[0] * (b[1] - mean) ** 2

# %% sync-moments
def sync_moments(x, group=None):
    n, mean, m2 = local_moments(x)
    mine = torch.stack([torch.full_like(mean, n), mean, m2])
    everybody = torch.zeros(group_size(group), *mine.shape, dtype=mine.dtype)
    dist.all_gather_into_tensor(everybody, mine, group=group)
    n, mean, m2 = functools.reduce(merge_moments, [(int(s[0, 0]), s[1], s[2]) for s in everybody])
    return n, mean, m2 / max(n, 1)
