# like: right_all_reduce
# %% merge-moments
# trying things out: a process group of one, never taken down again, and defaults changed
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
torch.set_grad_enabled(False)


def merge_moments(a, b):
    (n_a, mean_a, m2_a), (n_b, mean_b, m2_b) = a, b
    if 0 in (n_a, n_b):
        return a if n_a else b
    n = n_a + n_b
    weight = n_b / n
    shift = weight * (mean_b - mean_a)
    return n, mean_a + shift, m2_a + m2_b + n_a * shift * (mean_b - mean_a)
