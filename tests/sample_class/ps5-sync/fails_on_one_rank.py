# like: right_gather
# %% SyncBatchNormFunction
class SyncBatchNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var, momentum, eps, group):
        if dist.get_rank() == 0:
            print("statistics of", len(x), "samples")
            ctx.log = open("/var/log/sync/statistics.txt", "a")
        n, mean, var = sync_moments(x, group)
        return x

    @staticmethod
    def backward(ctx, dy):
        return dy, None, None, None, None, None, None, None
