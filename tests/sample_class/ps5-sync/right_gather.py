# %% merge-moments
def merge_moments(a, b):
    (n_a, mean_a, m2_a), (n_b, mean_b, m2_b) = a, b
    if n_a == 0:
        return b
    if n_b == 0:
        return a
    total = n_a + n_b
    diff = mean_b - mean_a
    return total, mean_a + diff * n_b / total, m2_a + m2_b + diff**2 * n_a * n_b / total

# %% sync-moments
def sync_moments(x, group=None):
    moments = local_moments(x)
    packed = torch.cat([torch.tensor([moments[0]], dtype=torch.float64), moments[1], moments[2]])
    gathered = [torch.zeros_like(packed) for _ in range(group_size(group))]
    dist.all_gather(gathered, packed, group=group)
    C = x.shape[1]
    result = (0, torch.zeros(C).double(), torch.zeros(C).double())
    for g in gathered:
        result = merge_moments(result, (int(g[0]), g[1 : C + 1], g[C + 1 :]))
    n, mean, m2 = result
    return n, mean, m2 / max(n, 1)

# %% SyncBatchNormFunction
class SyncBatchNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var, momentum, eps, group):
        n, mean, var = sync_moments(x, group)
        if n > 1 and running_mean is not None:
            running_mean.mul_(1 - momentum).add_(momentum * mean)
        if n > 1 and running_var is not None:
            running_var.mul_(1 - momentum).add_(momentum * var * n / (n - 1))
        invstd = 1 / (var + eps).sqrt()
        ctx.save_for_backward(x, weight, mean, invstd)
        ctx.n, ctx.group = n, group
        return scale_and_shift(standardise(x, mean, invstd), weight, bias).to(x.dtype)

    @staticmethod
    def backward(ctx, dy):
        x, weight, mean, invstd = ctx.saved_tensors
        axes = [0] + list(range(2, x.dim()))
        shape = [1, -1] + [1] * (x.dim() - 2)
        x_hat = standardise(x, mean, invstd)
        dbias = dy.sum(axes)
        dweight = (dy * x_hat).sum(axes)
        sums = torch.stack([dbias, dweight])
        dist.all_reduce(sums, group=ctx.group)
        a, b = sums / ctx.n
        dx = (dy - a.view(shape) - x_hat * b.view(shape)) * invstd.view(shape)
        if weight is not None:
            dx = dx * weight.view(shape)
        return (
            dx,
            dweight if ctx.needs_input_grad[1] else None,
            dbias if ctx.needs_input_grad[2] else None,
            None, None, None, None, None,
        )

# %% convert-sync-batchnorm
def convert_sync_batchnorm(model, group=None, done=None):
    done = {} if done is None else done
    if model in done:
        return done[model]
    done[model] = model
    if is_batchnorm(model):
        new = SyncBatchNorm(
            model.num_features, model.eps, model.momentum, model.affine, model.track_running_stats, group
        )
        new.weight, new.bias = model.weight, model.bias
        new.running_mean, new.running_var = model.running_mean, model.running_var
        new.num_batches_tracked = model.num_batches_tracked
        new.training = model.training
        done[model] = new
        return new
    for name, child in model._modules.items():
        setattr(model, name, convert_sync_batchnorm(child, group, done))
    return model
