# like: right_all_reduce
# %% SyncBatchNormFunction
class SyncBatchNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var, momentum, eps, group):
        if x.numel() == x.shape[1]:
            raise ValueError("expected more than 1 value per channel when training")
        C = x.shape[1]
        n, mean, var = sync_moments(x, group)
        for buffer, new in ((running_mean, mean), (running_var, var * n / (n - 1))):
            if buffer is not None:
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
        # each rank's copy of weight and bias gets the gradient of the whole batch
        dist.all_reduce(sums, group=ctx.group)
        dx = ctx.gamma * ctx.invstd * (d - sums[:C] / ctx.n - ctx.x_hat * sums[C:] / ctx.n)
        no_weight, no_bias = ctx.none
        rest = (None if no_weight else sums[C:], None if no_bias else sums[:C]) + (None,) * 5
        return (dx.transpose(1, -1).to(dy.dtype), *rest)
