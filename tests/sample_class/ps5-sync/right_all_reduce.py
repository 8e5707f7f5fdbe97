# like: right_gather
# %% merge-moments
def merge_moments(a, b):
    # back to sums, add, forward again
    if a[0] == 0 or b[0] == 0:
        return a if a[0] else b
    sums = [torch.stack([torch.full_like(mean, n), n * mean, m2 + n * mean**2]) for n, mean, m2 in (a, b)]
    n, s, q = sums[0] + sums[1]
    return a[0] + b[0], s / n, q - s * s / n

# %% sync-moments
def sync_moments(x, group=None):
    C = x.shape[1]
    flat = x.detach().double().transpose(0, 1).reshape(C, -1)
    # one vector: n, then sums, then sums of squares
    everything = torch.zeros(2 * C + 1, dtype=torch.float64)
    everything[0] = flat.shape[1]
    everything[1 : C + 1] = flat.sum(1)
    everything[C + 1 :] = flat.pow(2).sum(1)
    dist.all_reduce(everything, group=group)
    n = int(everything[0].item())
    average = everything / max(n, 1)
    mean = average[1 : C + 1]
    return n, mean, average[C + 1 :] - mean**2

# %% SyncBatchNormFunction
class SyncBatchNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var, momentum, eps, group):
        C = x.shape[1]
        n, mean, var = sync_moments(x, group)
        for buffer, new in ((running_mean, mean), (running_var, var * n / (n - 1))):
            if buffer is not None and n > 1:
                buffer.copy_(torch.lerp(buffer.double(), new, momentum))
        ctx.invstd = torch.rsqrt(var + eps)
        ctx.gamma = torch.ones(C).double() if weight is None else weight.detach().double()
        beta = torch.zeros(C).double() if bias is None else bias.double()
        ctx.x_hat = (x.double().transpose(1, -1) - mean) * ctx.invstd
        ctx.n, ctx.group, ctx.none = n, group, (weight is None, bias is None)
        return (ctx.gamma * ctx.x_hat + beta).transpose(1, -1).to(x.dtype)

    @staticmethod
    def backward(ctx, dy):
        d = dy.double().transpose(1, -1)
        C = d.shape[-1]
        sums = torch.cat([d.reshape(-1, C).sum(0), (d * ctx.x_hat).reshape(-1, C).sum(0)])
        mine = sums.clone()
        dist.all_reduce(sums, group=ctx.group)
        dx = ctx.gamma * ctx.invstd * (d - sums[:C] / ctx.n - ctx.x_hat * sums[C:] / ctx.n)
        no_weight, no_bias = ctx.none
        rest = (None if no_weight else mine[C:], None if no_bias else mine[:C]) + (None,) * 5
        return (dx.transpose(1, -1).to(dy.dtype), *rest)

# %% convert-sync-batchnorm
def convert_sync_batchnorm(model, group=None):
    @functools.cache
    def synced(bn):
        new = SyncBatchNorm(bn.num_features)
        new.__dict__.update(bn.__dict__)
        new.process_group = group
        return new

    if is_batchnorm(model):
        return synced(model)
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if is_batchnorm(module):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, synced(module))
    return model
