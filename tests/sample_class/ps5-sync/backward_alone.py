# like: right_gather
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
        ctx.has_bias = bias is not None
        return scale_and_shift(standardise(x, mean, invstd), weight, bias).to(x.dtype)

    @staticmethod
    def backward(ctx, dy):
        x, weight, mean, invstd = ctx.saved_tensors
        axes = [0] + list(range(2, x.dim()))
        shape = [1, -1] + [1] * (x.dim() - 2)
        x_hat = standardise(x, mean, invstd)
        dbias, dweight = dy.sum(axes), (dy * x_hat).sum(axes)
        n = max(x.numel() // x.shape[1], 1)
        dx = dy - dbias.view(shape) / n - x_hat * dweight.view(shape) / n
        dx = dx * invstd.view(shape)
        if weight is None:
            return dx, None, None, None, None, None, None, None
        return dx * weight.view(shape), dweight, dbias if ctx.has_bias else None, None, None, None, None, None
